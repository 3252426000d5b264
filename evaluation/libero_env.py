"""A LIBERO task as an environment: upright images, proprioception, seeded resets, step and success.

Shape legend: `H`, `W` pixels of a frame, `S` numbers of a flattened simulator state.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.libero_rendering import CAMERAS, render_picture, render_segmentation
from evaluation.libero_setup import LiberoTask, choose, find_task, import_libero, quiet

ACTION_DIM = 7
OPEN_HAND_STILL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
SETTLING_STEPS = 10  # objects are placed slightly above their support and have to come to rest
_ROBOT_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "robot0_joint_pos")

_open_environment: "LiberoEnv | None" = None


def quaternion_to_axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Turn a unit quaternion into axis * angle, as LIBERO and the field's policies define it.

    Args:
        quaternion (`np.ndarray` of shape `(4,)`): x, y, z, w.

    Returns:
        `np.ndarray` of shape `(3,)`: radians, angle in [0, 2 pi): it is not wrapped, so a hand that points down gives
        values around pi.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return quaternion[:3] * 2.0 * np.arccos(w) / sine


class LiberoEnv:
    """One task of LIBERO.

    Only one can be open in a process: two live renderers corrupt each other's images. Run several in processes of
    their own (start method `spawn`), or close one before opening the next.

    Args:
        suite (`str`): `libero_spatial`, `libero_object`, `libero_goal`, `libero_10` or `libero_90`.
        task_id (`int`): number of the task in the suite.
        cameras (`Sequence[str]`): any of `agentview` (third person) and `wrist`; empty for physics only, which is ten
            times faster.
        image_size (`int`): height and width of a frame, pixels.
        settling_steps (`int`): still steps after each reset, before the first observation. The benchmark has 10.

    Raises:
        ValueError: if suite, task, camera or size do not exist; the message lists what does.
        RuntimeError: if another environment is open in this process.
        ImportError: if LIBERO or the headless renderer is missing; the message says what to install.

    Example:
        ```python
        with LiberoEnv("libero_object", 0) as env:
            observation = env.reset(initial_state=0)
            observation, success, info = env.step([0, 0, 0, 0, 0, 0, -1])
        ```
    """

    def __init__(
        self,
        suite: str,
        task_id: int,
        cameras: Sequence[str] = ("agentview", "wrist"),
        image_size: int = 128,
        settling_steps: int = SETTLING_STEPS,
    ):
        self._control_env: Any = None
        self.cameras = _check_cameras(cameras)
        if isinstance(image_size, bool) or not isinstance(image_size, (int, np.integer)) or image_size < 1:
            raise ValueError(
                f"`image_size` is a number of pixels, at least 1, got {image_size!r}. Usual are 128 and 256."
            )
        self.image_size = int(image_size)
        self.settling_steps = settling_steps
        self.task: LiberoTask = find_task(suite, task_id)
        self._num_resets = 0
        self._num_steps = 0
        self._claim_process()
        try:
            self._control_env = self._make()
        except BaseException:
            self._release_process()
            raise

    def _claim_process(self) -> None:
        global _open_environment
        if _open_environment is not None:
            other = _open_environment.task
            raise RuntimeError(
                f"One LIBERO environment per process: `{other.suite}` task {other.task_id} is still open in this one, "
                "and a second would corrupt its images. Close it first (`env.close()` or `with LiberoEnv(...)`), "
                "or open the second in another process (multiprocessing with start method `spawn`)."
            )
        _open_environment = self

    def _release_process(self) -> None:
        global _open_environment
        if _open_environment is self:
            _open_environment = None

    def _make(self) -> Any:
        import_libero()
        from libero.libero.envs.env_wrapper import ControlEnv

        random_state = np.random.get_state()
        try:
            with quiet():
                return ControlEnv(
                    bddl_file_name=self.task.bddl_file,
                    has_offscreen_renderer=False,  # frames are rendered by `render`, only when they are wanted
                    use_camera_obs=False,
                    ignore_done=True,  # the step limit belongs to the protocol
                    hard_reset=True,  # soft resets drift
                )
        finally:
            np.random.set_state(random_state)

    # What the environment is

    @property
    def domain(self) -> Any:
        """The robosuite environment inside, for privileged access."""
        self._require_open()
        return self._control_env.env

    @property
    def instruction(self) -> str:
        """What the robot is told to do."""
        return self.task.instruction

    @property
    def num_initial_states(self) -> int:
        """How many benchmark states the task has (50)."""
        return len(self.task.initial_states)

    def _require_open(self) -> None:
        if self._control_env is None:
            raise RuntimeError("This LIBERO environment is closed. Open a new one with `LiberoEnv(suite, task_id)`.")

    # Episodes

    def reset(self, initial_state: int | None = None, seed: int | None = None) -> dict[str, np.ndarray]:
        """Begin an episode and let the objects come to rest.

        The seed decides everything random: the same arguments give the same episode again, to the bit, whatever
        happened before. Fixtures (cabinets, stoves, racks) are not part of a benchmark state and move by about a
        centimetre with the seed. NumPy's global random state is left as it was.

        Args:
            initial_state (`int`, *optional*): number of a benchmark state (0 to 49); by default objects are placed at
                random, as the task's definition allows.
            seed (`int`, *optional*): by default the number of the benchmark state, or else of the resets so far.

        Returns:
            `dict`: for each camera a `uint8` array `(H, W, 3)`, upright; under `"state"` a `float32` array `(8,)`:
            hand position (metres), hand orientation (axis * angle, radians), the two finger joints (metres).

        Raises:
            ValueError: if there is no such benchmark state.
            RuntimeError: if the environment is closed.
        """
        self._require_open()
        if initial_state is not None:
            self._check_initial_state(initial_state)
        if seed is None:
            seed = self._num_resets if initial_state is None else int(initial_state)
        self._num_resets += 1
        self._num_steps = 0
        self._hard_reset(seed)
        if initial_state is not None:
            self.set_simulator_state(self.task.initial_states[initial_state])
        for _ in range(self.settling_steps):
            self._advance(OPEN_HAND_STILL)
        return self._observe()

    def _check_initial_state(self, initial_state: int) -> None:
        count = self.num_initial_states
        is_number = isinstance(initial_state, (int, np.integer)) and not isinstance(initial_state, bool)
        if not is_number or not 0 <= initial_state < count:
            raise ValueError(
                f"Unknown initial state `{initial_state}` of `{self.task.suite}` task {self.task.task_id}. "
                f"Choose 0 to {count - 1}, or None for a random placement."
            )

    def _hard_reset(self, seed: int) -> None:
        random_state = np.random.get_state()
        try:
            with quiet():
                # LIBERO appends its joint samplers again at each reset: later episodes would draw other numbers.
                self.domain.object_property_initializers = []
                self._control_env.seed(seed)
                self._robot = self._control_env.reset()
        finally:
            np.random.set_state(random_state)

    def step(self, action: Sequence[float] | np.ndarray) -> tuple[dict[str, np.ndarray], bool, dict[str, Any]]:
        """Carry out one command (1/20 s).

        Args:
            action (`np.ndarray` of shape `(7,)`): position deltas, rotation deltas, gripper (-1 open ... +1 close), in
                the controller's units: [-1, 1], which the simulator clips to.

        Returns:
            `tuple`: the observation after the command (as `reset`), whether the task's goal is reached, and a dict
            with the number of commands since the reset under `"num_steps"`.

        Raises:
            ValueError: if the action has another shape or holds NaN or infinity.
            RuntimeError: if the environment is closed.
        """
        self._require_open()
        success = self._advance(_check_action(action))
        self._num_steps += 1
        return self._observe(), success, {"num_steps": self._num_steps}

    def _advance(self, action: np.ndarray) -> bool:
        """One step; the poses that rendering and the expert read are brought up to date afterwards."""
        import mujoco

        self._robot, _, done, _ = self._control_env.step(action)
        # robosuite leaves body poses one physics step (2 ms) behind the state; frames shall show the state itself.
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        return bool(done)

    @property
    def _model(self) -> Any:
        return self.domain.sim.model._model

    @property
    def _data(self) -> Any:
        return self.domain.sim.data._data

    def close(self) -> None:
        """Free the simulator; further calls do nothing."""
        if self._control_env is not None:
            self._control_env.close()
            self._control_env = None
        self._release_process()

    def __enter__(self) -> "LiberoEnv":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What can be seen

    def _observe(self) -> dict[str, np.ndarray]:
        observation = {camera: self.render(camera) for camera in self.cameras}
        observation["state"] = self.proprioception().astype(np.float32)
        return observation

    def proprioception(self) -> np.ndarray:
        """What the robot feels, in full precision.

        Returns:
            `np.ndarray` of shape `(8,)`: hand position, hand orientation (axis * angle), finger joints.
        """
        position, quaternion, fingers = (self._robot[key] for key in _ROBOT_KEYS[:3])
        return np.concatenate([position, quaternion_to_axis_angle(quaternion), fingers])

    def robot_observation(self) -> dict[str, np.ndarray]:
        """The robot's part of LIBERO's own observation after the last step.

        Returns:
            `dict`: `robot0_eef_pos (3,)`, `robot0_eef_quat (4,)` x y z w, `robot0_gripper_qpos (2,)`,
            `robot0_joint_pos (7,)`.
        """
        return {key: np.array(self._robot[key]) for key in _ROBOT_KEYS}

    def render(self, camera: str) -> np.ndarray:
        """Render one camera now.

        Args:
            camera (`str`): `agentview` or `wrist`.

        Returns:
            `np.ndarray` of shape `(H, W, 3)`: `uint8`, upright (MuJoCo's picture turned by 180 degrees).

        Raises:
            ValueError: if the camera is unknown.
            ImportError: if the renderer does not start; the message says what to install.
        """
        return render_picture(self.domain, camera, self.image_size)

    def render_segmentation(self, camera: str) -> np.ndarray:
        """Say for each pixel of a camera what is seen there now.

        Args:
            camera (`str`): `agentview` or `wrist`.

        Returns:
            `np.ndarray` of shape `(H, W)`: `uint8`, upright, an index into `segmentation_names` of the scene.

        Raises:
            ValueError: if the camera is unknown.
            ImportError: if the renderer does not start; the message says what to install.
        """
        return render_segmentation(self.domain, camera, self.image_size)

    # The simulator's state

    def simulator_state(self) -> np.ndarray:
        """The flattened state: time, joint positions, joint velocities.

        Returns:
            `np.ndarray` of shape `(S,)`.
        """
        return self.domain.sim.get_state().flatten()

    def set_simulator_state(self, state: np.ndarray) -> None:
        """Put the simulation into a state of this episode; fixtures stay where the last reset put them.

        Args:
            state (`np.ndarray` of shape `(S,)`): as `simulator_state` gives it.

        Raises:
            ValueError: if the length is not the simulation's.
        """
        expected = 1 + self.domain.sim.model.nq + self.domain.sim.model.nv
        if np.shape(state) != (expected,):
            raise ValueError(
                f"A state of `{self.task.suite}` task {self.task.task_id} has {expected} numbers, got shape "
                f"{np.shape(state)}. It belongs to another task or version of LIBERO."
            )
        self._robot = self._control_env.set_init_state(state)


def _check_cameras(cameras: Sequence[str]) -> tuple[str, ...]:
    names = (cameras,) if isinstance(cameras, str) else tuple(cameras)
    return tuple(choose("camera", name, tuple(CAMERAS)) for name in names)


def _check_action(action: Sequence[float] | np.ndarray) -> np.ndarray:
    command = np.asarray(action, dtype=float)
    if command.shape != (ACTION_DIM,):
        raise ValueError(
            f"An action has {ACTION_DIM} numbers (position deltas, rotation deltas, gripper), got shape "
            f"{command.shape}. Send one action per step, without batch or chunk dimension."
        )
    if not np.isfinite(command).all():
        raise ValueError(f"An action must be finite, got {command.tolist()}. Check what produced it.")
    return command
