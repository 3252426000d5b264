"""How the scripted expert moves: the control law of single steps, straight moves, waiting, safe travel heights.

Every motion is a generator of actions: 7 numbers in [-1, 1], three position deltas, three rotation deltas (operational
space controller, world frame) and the gripper (-1 open ... +1 close). The generator reads the state again after each
action, so whoever iterates must apply the action before asking for the next one.
"""

from collections.abc import Generator, Iterator, Sequence

import numpy as np

from evaluation.expert_geometry import HeightMap, rotation_to_axis_angle
from evaluation.expert_perception import Scene

OPEN, CLOSE = -1.0, 1.0
ANY_ANGLE = 9.0  # an angle tolerance that every rotation meets

POSITION_GAIN = 14.0  # action per metre of error
ROTATION_GAIN = 3.0  # action per radian of error
MAX_ROTATION_ACTION = 0.6
INTEGRAL_GAIN = 0.15  # against the steady-state error near full reach
INTEGRAL_RANGE = 0.03  # metres of error within which, and up to which, the integral grows
DROP_DISTANCE = 0.05  # metres an object may shift in the hand before it counts as dropped
LEAST_PROGRESS = 5e-4  # metres per step below which a move counts as stalled

Motion = Iterator[np.ndarray]
MotionWithResult = Generator[np.ndarray, None, bool]


class Arm:
    """The robot's hand, with the memory that a controller needs between two steps.

    Args:
        scene (`Scene`): where it moves.
        speed (`float`): share of full speed, in (0, 1].
    """

    def __init__(self, scene: Scene, speed: float = 1.0):
        self.scene = scene
        self.speed = speed
        self.held: str | None = None
        self._held_offset = np.zeros(3)
        self._integral = np.zeros(3)

    def command(
        self, position: np.ndarray, rotation: np.ndarray, gripper: float, max_speed: float = 1.0
    ) -> np.ndarray:
        """One action towards a grip pose.

        Args:
            position (`np.ndarray` of shape `(3,)`): wanted grip position, metres.
            rotation (`np.ndarray` of shape `(3, 3)`): wanted grip rotation.
            gripper (`float`): `OPEN` or `CLOSE`.
            max_speed (`float`): largest position action, at full speed, in (0, 1].

        Returns:
            `np.ndarray` of shape `(7,)`: the action.
        """
        translation = (position - self.scene.grip_position + self._integral) * POSITION_GAIN
        largest, max_speed = np.abs(translation).max(), max_speed * self.speed
        if largest > max_speed:
            translation *= max_speed / largest
        turn = rotation_to_axis_angle(rotation @ self.scene.grip_rotation.T) * ROTATION_GAIN
        largest = np.abs(turn).max()
        if largest > MAX_ROTATION_ACTION:
            turn *= MAX_ROTATION_ACTION / largest
        return np.clip(np.r_[translation, turn, gripper], -1, 1)

    def take_hold(self, name: str) -> None:
        """Remember that an object is in the hand, and where."""
        self.held = name
        self._held_offset = self.scene.position_of(name) - self.scene.grip_position

    def _has_dropped(self) -> bool:
        if self.held is None:
            return False
        offset = self.scene.position_of(self.held) - self.scene.grip_position
        return bool(np.linalg.norm(offset - self._held_offset) > DROP_DISTANCE)

    def move_to(
        self,
        position: Sequence[float] | np.ndarray,
        rotation: np.ndarray,
        gripper: float,
        tolerance: float = 0.006,
        angle_tolerance: float = 0.08,
        max_steps: int = 80,
        max_speed: float = 1.0,
        patience: int = 15,
    ) -> MotionWithResult:
        """Move straight to a grip pose.

        Args:
            position (`np.ndarray` of shape `(3,)`): metres.
            rotation (`np.ndarray` of shape `(3, 3)`): grip rotation.
            gripper (`float`): `OPEN` or `CLOSE`, kept all along.
            tolerance (`float`): metres within which the position counts as reached.
            angle_tolerance (`float`): radians within which the rotation counts as reached.
            max_steps (`int`): give up after so many actions at full speed.
            max_speed (`float`): largest position action, at full speed.
            patience (`int`): give up after so many actions without progress.

        Yields:
            `np.ndarray` of shape `(7,)`: actions.

        Returns:
            `bool`: whether the pose was reached; false as well when the held object was dropped.
        """
        target = np.asarray(position, float)
        nearest, stalled = 1e9, 0
        self._integral = np.zeros(3)
        for _ in range(round(max_steps / self.speed)):
            error = target - self.scene.grip_position
            distance = float(np.linalg.norm(error))
            if self._has_dropped():
                self.held = None
                return False
            if distance < INTEGRAL_RANGE:
                self._integral = np.clip(self._integral + INTEGRAL_GAIN * error, -INTEGRAL_RANGE, INTEGRAL_RANGE)
            if distance < tolerance and self._angle_to(rotation) < angle_tolerance:
                return True
            if distance > nearest - LEAST_PROGRESS:
                stalled += 1
            else:
                stalled, nearest = 0, distance
            if stalled > patience:
                return False
            yield self.command(target, rotation, gripper, max_speed)
        return False

    def _angle_to(self, rotation: np.ndarray) -> float:
        return float(np.linalg.norm(rotation_to_axis_angle(rotation @ self.scene.grip_rotation.T)))

    def stay(self, rotation: np.ndarray, gripper: float, num_steps: int, position: np.ndarray | None = None) -> Motion:
        """Keep a pose for some steps, for the fingers to open or close.

        Args:
            rotation (`np.ndarray` of shape `(3, 3)`): grip rotation.
            gripper (`float`): `OPEN` or `CLOSE`.
            num_steps (`int`): how long.
            position (`np.ndarray` of shape `(3,)`, *optional*): by default where the hand is now.

        Yields:
            `np.ndarray` of shape `(7,)`: actions.
        """
        target = self.scene.grip_position if position is None else position
        self._integral = np.zeros(3)
        for _ in range(num_steps):
            yield self.command(target, rotation, gripper)

    def back_off(self, offset: np.ndarray, rotation: np.ndarray, max_steps: int, tolerance: float = 0.02) -> Motion:
        """Move by an offset with an open hand, whatever the rotation reached: to leave a place.

        Args:
            offset (`np.ndarray` of shape `(3,)`): metres from here.
            rotation (`np.ndarray` of shape `(3, 3)`): grip rotation to turn towards.
            max_steps (`int`): give up after so many actions.
            tolerance (`float`): metres.

        Yields:
            `np.ndarray` of shape `(7,)`: actions.
        """
        yield from self.move_to(
            self.scene.grip_position + offset,
            rotation,
            OPEN,
            tolerance=tolerance,
            angle_tolerance=ANY_ANGLE,
            max_steps=max_steps,
        )

    def travel_height(self, target: np.ndarray, height_map: HeightMap, depth: float, half_width: float) -> float:
        """Grip height at which the hand passes over everything on its way.

        Args:
            target (`np.ndarray` of shape `(2,)` or more): where to, world x, y.
            height_map (`HeightMap`): the obstacles.
            depth (`float`): metres by which the load reaches below the grip site.
            half_width (`float`): half the width of the corridor, metres.

        Returns:
            `float`: metres.
        """
        start = self.scene.grip_position[:2]
        highest = height_map.highest_along(start, np.asarray(target)[:2], half_width, self.scene.table_height)
        return highest + depth + 0.02
