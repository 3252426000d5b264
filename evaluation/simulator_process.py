"""What happens inside a simulator process: one environment, one episode after another as the main process asks.

The environment stays open while the same task is asked for. Frames are rendered only where they are wanted: the
observations that a policy gets, and after the episode, from stored states, those of a video. Loads no torch.

Shapes: `n` actions of a chunk, `H, W` pixels of a frame.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluation.atomic_files import write_atomically
from evaluation.libero_env import OPEN_HAND_STILL, LiberoEnv
from evaluation.protocol import EpisodeKey

SIGN_OF_LIFE_SECONDS = 1.0


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to run.

    Attributes:
        episode (`EpisodeKey`): which.
        instruction (`str`): what the robot is told.
        seed (`int`): of the reset.
        step_limit (`int`): most steps.
        video (`str`): whether to write one: `never`, `failure` (only when the goal is not reached) or `always`.
    """

    episode: EpisodeKey
    instruction: str
    seed: int
    step_limit: int
    video: Literal["never", "failure", "always"] = "never"


@dataclass(frozen=True)
class SimulatorSettings:
    """What all episodes of a run have in common.

    Attributes:
        cameras (`tuple[str, ...]`): what the policy sees; the first is filmed.
        n_obs_steps (`int`): latest observations that are sent with each request for a chunk.
        image_size (`int`): height and width of a frame, pixels.
        settling_steps (`int`): still steps after the reset.
        videos (`Path`, *optional*): folder of the videos.
        traces (`bool`): write the frames and actions of a video beside it, as NumPy arrays.
        make_policy (`Callable`, *optional*): makes the policy that acts in this process; None: the main process is
            asked for chunks.
        open_environment (`Callable`): opens an environment, with the arguments of `LiberoEnv`.
    """

    cameras: tuple[str, ...] = ("agentview",)
    n_obs_steps: int = 1
    image_size: int = 128
    settling_steps: int = 10
    videos: Path | None = None
    traces: bool = False
    make_policy: Callable[[], Any] | None = None
    open_environment: Callable[..., Any] = LiberoEnv


@dataclass(frozen=True)
class SignOfLife:
    """The simulator is at work.

    Attributes:
        acting (`bool`): whether the episode goes on; False while it is filmed.
    """

    acting: bool = True


@dataclass(frozen=True)
class ChunkWanted:
    """The episode needs actions.

    Attributes:
        observations (`list[dict]`): the new ones, oldest first.
        busy (`tuple[float, float]`): when the simulator worked since the last message, by the system's clock.
    """

    observations: list[dict[str, np.ndarray]] = field(repr=False)
    busy: tuple[float, float]


@dataclass(frozen=True)
class EpisodeEnded:
    """An episode came to its end.

    Attributes:
        success (`bool`): whether the goal was reached within the step limit.
        num_steps (`int`): steps that the policy took.
        num_frames (`int`): frames that were rendered.
        policy_seconds (`float`): time that a policy in this process took.
        video (`str`, *optional*): name of the file.
        busy (`tuple[float, float]`): as in `ChunkWanted`.
    """

    success: bool
    num_steps: int
    num_frames: int
    policy_seconds: float
    video: str | None
    busy: tuple[float, float]


@dataclass(frozen=True)
class EpisodeFailed:
    """An episode could not be run.

    Attributes:
        error (`str`): what happened.
        again (`bool`): whether another attempt may help.
        hopeless (`bool`): whether every other episode will fail, too.
        busy (`tuple[float, float]`): as in `ChunkWanted`.
    """

    error: str
    again: bool
    hopeless: bool
    busy: tuple[float, float]


class Abandon:
    """Sent instead of a chunk: forget the episode."""


class _Abandoned(Exception):
    pass


class _ParentGone(Exception):
    pass


def work(connection: Connection, settings: SimulatorSettings) -> None:
    """Run episodes until None is received or the main process is gone.

    Args:
        connection (`Connection`): receives `EpisodeJob`, chunks `(n, 7)`, `Abandon` and None; sends the other messages
            above.
        settings (`SimulatorSettings`): of the run.
    """
    simulator = _Simulator(connection, settings)
    try:
        while (job := simulator.receive()) is not None:
            simulator.run(job)
    except (_ParentGone, KeyboardInterrupt):
        return
    finally:
        simulator.close()


class _Simulator:
    """The open environment and the episode under way."""

    def __init__(self, connection: Connection, settings: SimulatorSettings) -> None:
        self.connection = connection
        self.settings = settings
        self.policy = settings.make_policy() if settings.make_policy is not None else None
        self.env: Any = None
        self.task: tuple[str, int] | None = None

    # Messages

    def receive(self) -> Any:
        """Wait for the main process; from then on the simulator is busy."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            raise _ParentGone from None
        self.busy_since = self.last_sign = time.monotonic()
        return message

    def send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            raise _ParentGone from None

    def show_life(self, acting: bool = True) -> None:
        """Tell the main process at most every second that all is well; ends this process where that one is gone."""
        if time.monotonic() - self.last_sign >= SIGN_OF_LIFE_SECONDS:
            self.last_sign = time.monotonic()
            self.send(SignOfLife(acting))

    @property
    def busy(self) -> tuple[float, float]:
        return self.busy_since, time.monotonic()

    # Episodes

    def run(self, job: EpisodeJob) -> None:
        """Run one episode and say how it ended."""
        self.num_frames, self.policy_seconds = 0, 0.0
        try:
            message: EpisodeEnded | EpisodeFailed = self._run(job)
        except _Abandoned:
            return
        except (_ParentGone, KeyboardInterrupt):
            raise
        except ValueError as error:  # bad input; the simulator is sound, and the next attempt would say the same
            message = EpisodeFailed(str(error), again=False, hopeless=False, busy=self.busy)
        except ImportError as error:
            message = EpisodeFailed(str(error), again=False, hopeless=True, busy=self.busy)
        except Exception:
            message = EpisodeFailed(traceback.format_exc(), again=True, hopeless=False, busy=self.busy)
        self.send(message)

    def _run(self, job: EpisodeJob) -> EpisodeEnded:
        env, state = self._open(job.episode), job.episode.initial_state
        if self.policy is None:
            self.observation, commands = env.reset(initial_state=state, seed=job.seed), self._ask(env)
        else:
            self.observation = self.policy.reset(env, initial_state=state, seed=job.seed)
            commands = self._act(self.policy.actions(env))
        states, actions = [env.simulator_state()], list[np.ndarray]()
        success = False
        while not success and len(actions) < job.step_limit:
            actions.append(next(commands))
            self.observation, success, _ = env.step(actions[-1])
            states.append(env.simulator_state())
            self.show_life()
        video = None
        if job.video == "always" or (job.video == "failure" and not success):
            video = self._film(env, job, states, actions, "success" if success else "step_limit")
        return EpisodeEnded(success, len(actions), self.num_frames, self.policy_seconds, video, self.busy)

    def _open(self, episode: EpisodeKey) -> Any:
        task = (episode.suite, episode.task_id)
        if self.task != task:
            self.close()
            self.env = self.settings.open_environment(
                *task, cameras=(), image_size=self.settings.image_size, settling_steps=self.settings.settling_steps
            )
            self.task = task
        return self.env

    def close(self) -> None:
        """Close the environment, if one is open."""
        if self.env is not None:
            self.env.close()
            self.env = self.task = None

    def _ask(self, env: Any) -> Iterator[np.ndarray]:
        """The commands of a policy in the main process."""
        observations = [self._observe(env)]
        while True:
            self.send(ChunkWanted(observations, self.busy))
            chunk = self.receive()
            if isinstance(chunk, Abandon):
                raise _Abandoned
            observations = []
            for left, action in zip(range(len(chunk) - 1, -1, -1), chunk, strict=True):
                yield action
                if left < self.settings.n_obs_steps:
                    observations.append(self._observe(env))

    def _act(self, actions: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The commands of a policy in this process; when it has no more, the robot stands still."""
        command = OPEN_HAND_STILL
        while True:
            started = time.monotonic()
            action = next(actions, None)
            self.policy_seconds += time.monotonic() - started
            if action is None:
                break
            command = action
            yield command
        still = np.append(np.zeros(len(command) - 1), command[-1])
        while True:
            yield still

    def _observe(self, env: Any) -> dict[str, np.ndarray]:
        return {**{camera: self._render(env, camera) for camera in self.settings.cameras}, **self.observation}

    def _render(self, env: Any, camera: str) -> np.ndarray:
        self.num_frames += 1
        return env.render(camera)

    def _film(
        self, env: Any, job: EpisodeJob, states: list[np.ndarray], actions: list[np.ndarray], outcome: str
    ) -> str:
        """Render every state, the first included, and write the video; returns the file's name."""
        from evaluation.video import write_episode_video  # brings an encoder along

        if self.settings.videos is None:
            raise ValueError("A video is wanted, but the settings name no folder for it. Give `videos`.")
        self.last_sign = float("-inf")  # say at once that this episode acts no more: nobody shall wait for it
        frames, camera = [], self.settings.cameras[0]
        for state in states:
            self.show_life(acting=False)
            env.set_simulator_state(state)
            frames.append(self._render(env, camera))
        path = self.settings.videos / f"{job.episode.name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.settings.traces:
            trace: dict[str, Any] = {"instruction": job.instruction, "camera": camera, "outcome": outcome}
            trace |= {"frames": np.stack(frames), "actions": np.asarray(actions, np.float32)}
            write_atomically(path.with_suffix(".npz"), lambda temporary: np.savez_compressed(temporary, **trace))
        return write_episode_video(path, frames, job.instruction, outcome.replace("_", " ")).name
