"""How the scripted expert opens and closes drawers, closes doors and turns knobs.

All four skills work from the joint's axis and the collision geometry of the part that it moves.
"""

import math
from dataclasses import dataclass

import numpy as np

from evaluation.expert_geometry import grip_rotation, nearest_equivalent_yaw, pointing_down, unit, yaw_of
from evaluation.expert_motion import ANY_ANGLE, CLOSE, OPEN, Arm, Motion
from evaluation.expert_perception import Goal, Scene

UP = np.array([0, 0, 1.0])
PULL_TILT = math.radians(65)  # of the approach from straight down, for a drawer handle
PUSH_TILT = math.radians(35)  # leans the palm back so that it clears the other handles
SLIDE_JOINT = 2  # mujoco.mjtJoint.mjJNT_SLIDE
DRAWER_TRAVEL = 0.155  # metres at which a drawer is surely open


@dataclass(frozen=True)
class Joint:
    """One joint of a fixture and the part that it moves.

    Attributes:
        scene (`Scene`): where it is.
        index (`int`): MuJoCo joint id.
        ranges (`dict[str, list[float]]`): joint positions that count as open, closed, on, off, as LIBERO defines them.
    """

    scene: Scene
    index: int
    ranges: dict

    @classmethod
    def of(cls, scene: Scene, name: str) -> "Joint":
        """Look a joint up.

        Args:
            scene (`Scene`): the scene.
            name (`str`): a BDDL region (a drawer) or fixture (a stove, a microwave).

        Returns:
            `Joint`.
        """
        domain = scene.domain
        part = domain.object_sites_dict.get(name) or domain.get_object(name)
        owner = domain.get_object(getattr(part, "parent_name", None)) or part
        return cls(scene, scene.model.joint(next(iter(part.joints))).id, owner.object_properties["articulation"])

    @property
    def position(self) -> float:
        """Metres or radians."""
        return float(self.scene.data.qpos[self.scene.model.jnt_qposadr[self.index]])

    @property
    def axis(self) -> np.ndarray:
        """World direction of the axis, `(3,)`."""
        return self.scene.data.xaxis[self.index].copy()

    @property
    def anchor(self) -> np.ndarray:
        """World position of the axis, `(3,)`."""
        return self.scene.data.xanchor[self.index].copy()

    @property
    def slides(self) -> bool:
        """Whether it is a drawer's joint (else a hinge)."""
        return bool(self.scene.model.jnt_type[self.index] == SLIDE_JOINT)

    @property
    def geoms(self) -> list[int]:
        """Collision geoms of the moving part."""
        return self.scene.moving_geoms(int(self.scene.model.jnt_bodyid[self.index]))

    @property
    def points(self) -> np.ndarray:
        """Points of the moving part, `(N, 3)`."""
        return self.scene.points_of_geoms(self.geoms)

    def sign_towards(self, predicate: str) -> float:
        """Which way the joint must move to satisfy `open`, `close`, `turnon` or `turnoff`: +1 or -1."""
        return 1.0 if np.mean(self.ranges[f"default_{predicate}_ranges"]) > self.position else -1.0

    def foremost_middle(self, direction: np.ndarray) -> np.ndarray:
        """Middle of what sticks out furthest along a direction (the handle, when it is the drawer's front), `(3,)`."""
        clouds = [self.scene.points_of_geoms([geom]) for geom in self.geoms]
        reaches = [(cloud @ direction).max() for cloud in clouds]
        foremost = [cloud for cloud, reach in zip(clouds, reaches, strict=True) if reach > max(reaches) - 0.006]
        points = np.concatenate(foremost)
        return (points.max(0) + points.min(0)) / 2

    def swept_when_opened(self) -> np.ndarray:
        """Points of the space that the moving part of a drawer will pass through, `(N, 3)`."""
        limits = np.array(self.ranges["default_open_ranges"])
        travel = self.axis * (limits[np.argmax(np.abs(limits))] * 1.03 - self.position)
        points = self.points
        return np.concatenate([points + travel * fraction for fraction in (0.25, 0.5, 0.75, 1.0)])


def is_drawer(scene: Scene, region: str) -> bool:
    """Whether a BDDL region is the inside of a drawer.

    Args:
        scene (`Scene`): the scene.
        region (`str`): its name.

    Returns:
        `bool`.
    """
    site = scene.domain.object_sites_dict.get(region)
    if site is None or not getattr(site, "joints", None):
        return False
    return site.parent_name in scene.domain.fixtures_dict and Joint.of(scene, region).slides


def has_joint(scene: Scene, name: str) -> bool:
    """Whether a fixture has a part that moves on a joint.

    Args:
        scene (`Scene`): the scene.
        name (`str`): its BDDL name.

    Returns:
        `bool`.
    """
    return bool(getattr(scene.domain.get_object(name), "joints", None))


def articulate(arm: Arm, goal: Goal) -> Motion:
    """Open, close, turn on or turn off.

    Args:
        arm (`Arm`): the robot, with an empty hand.
        goal (`Goal`): the predicate and the name of the fixture or region.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    predicate, name = goal
    joint = Joint.of(arm.scene, name)
    sign = joint.sign_towards(predicate)
    if predicate.startswith("turn"):
        yield from twist_knob(arm, goal, joint, sign)
    elif joint.slides and predicate == "open":
        yield from pull_drawer(arm, goal, joint, sign * joint.axis)
    elif joint.slides:
        yield from push_drawer(arm, goal, joint, sign * joint.axis)
    else:
        yield from push_door(arm, goal, joint, sign)


def _enter(arm: Arm, start: np.ndarray, rotation: np.ndarray, tolerance: float) -> Motion:
    """Rise, travel above everything, come down at a starting point with closed fingers."""
    height = max(arm.travel_height(start, arm.scene.height_map(), 0.01, 0.06), start[2] + 0.05)
    here = arm.scene.grip_position
    yield from arm.move_to([here[0], here[1], height], rotation, CLOSE, tolerance=0.03, angle_tolerance=ANY_ANGLE)
    yield from arm.move_to([start[0], start[1], height], rotation, CLOSE, tolerance=0.02, angle_tolerance=0.2)
    yield from arm.move_to(start, rotation, CLOSE, tolerance=tolerance, angle_tolerance=0.2, max_steps=50)


def _finger_axis_like(arm: Arm, axis: np.ndarray) -> np.ndarray:
    """The axis or its opposite, whichever is nearer to the present finger axis."""
    return -axis if axis @ arm.scene.grip_rotation[:, 0] < 0 else axis


def pull_drawer(arm: Arm, goal: Goal, joint: Joint, direction: np.ndarray) -> Motion:
    """Pinch a drawer's handle from a tilt and pull.

    Args:
        arm (`Arm`): the robot.
        goal (`Goal`): stop as soon as it holds.
        joint (`Joint`): the drawer's joint.
        direction (`np.ndarray` of shape `(3,)`): unit vector of the opening motion.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    scene = arm.scene
    handle = joint.foremost_middle(direction)
    approach = math.cos(PULL_TILT) * -UP - math.sin(PULL_TILT) * direction
    finger_axis = _finger_axis_like(arm, unit(np.cross(np.cross(UP, direction), approach)))
    rotation = grip_rotation(finger_axis, approach)
    yield from reach_tilted(arm, handle - approach * 0.10, rotation)
    yield from arm.move_to(
        handle + approach * 0.004,
        rotation,
        OPEN,
        tolerance=0.008,
        angle_tolerance=0.15,
        max_steps=30,
        max_speed=0.8,
        patience=4,
    )
    yield from arm.stay(rotation, CLOSE, 8, position=handle)
    for _ in range(90):
        if scene.satisfied(goal) or abs(joint.position) > DRAWER_TRAVEL:
            break
        yield arm.command(joint.foremost_middle(direction) + direction * 0.05, rotation, CLOSE, 0.7)
    for _ in range(2):
        yield arm.command(scene.grip_position + direction * 0.02, rotation, CLOSE)
    yield from arm.stay(rotation, OPEN, 5)
    yield from arm.back_off(-approach * 0.07 + [0, 0, 0.02], rotation, max_steps=12, tolerance=0.03)
    up = scene.grip_position + [0, 0, 0.06]
    yield from arm.move_to(up, pointing_down(0), OPEN, tolerance=0.05, angle_tolerance=0.7, max_steps=20)


def reach_tilted(arm: Arm, before: np.ndarray, rotation: np.ndarray) -> Motion:
    """Rise, travel above everything, turn, and stop at a pose from which a tilted hand goes straight in.

    Args:
        arm (`Arm`): the robot, with an empty hand.
        before (`np.ndarray` of shape `(3,)`): where to stop, metres.
        rotation (`np.ndarray` of shape `(3, 3)`): the tilted grip rotation.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    scene = arm.scene
    here, present = scene.grip_position, scene.grip_rotation
    height = max(here[2], arm.travel_height(before, scene.height_map(), 0.0, 0.06))
    yield from arm.move_to(
        [here[0], here[1], height], present, OPEN, tolerance=0.04, angle_tolerance=ANY_ANGLE, max_steps=30
    )
    over = [before[0], before[1], max(height, before[2])]
    yield from arm.move_to(over, rotation, OPEN, tolerance=0.03, angle_tolerance=0.3, max_steps=60)
    yield from arm.move_to(before, rotation, OPEN, tolerance=0.015, angle_tolerance=0.12, max_steps=60)


def push_drawer(arm: Arm, goal: Goal, joint: Joint, direction: np.ndarray) -> Motion:
    """Push a drawer shut with closed fingers, the palm leaned back.

    Args:
        arm (`Arm`): the robot.
        goal (`Goal`): stop as soon as it holds.
        joint (`Joint`): the drawer's joint.
        direction (`np.ndarray` of shape `(3,)`): unit vector of the closing motion.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    scene = arm.scene
    front = joint.foremost_middle(-direction)
    approach = math.cos(PUSH_TILT) * -UP + math.sin(PUSH_TILT) * direction
    rotation = grip_rotation(_finger_axis_like(arm, unit(np.cross(UP, direction))), approach)
    height = max(front[2], scene.table_height + 0.03)
    start = front - direction * 0.07
    yield from _enter(arm, np.r_[start[:2], height], rotation, tolerance=0.01)
    for _ in range(80):
        if scene.satisfied(goal):
            break
        hand = scene.grip_position
        sideways = (front - hand) - ((front - hand) @ direction) * direction
        ahead = hand + direction * 0.06 + sideways
        yield arm.command(np.r_[ahead[:2], height], rotation, CLOSE, 0.8)
    back = scene.grip_position - direction * 0.06
    yield from arm.move_to(back, rotation, CLOSE, tolerance=0.02, angle_tolerance=ANY_ANGLE, max_steps=15)
    yield from arm.back_off(np.array([0, 0, 0.15]), rotation, max_steps=25, tolerance=0.03)


def push_door(arm: Arm, goal: Goal, joint: Joint, sign: float) -> Motion:
    """Push a hinged door near its free edge.

    Args:
        arm (`Arm`): the robot.
        goal (`Goal`): stop as soon as it holds.
        joint (`Joint`): the hinge.
        sign (`float`): +1 or -1, the joint's wanted sense.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    scene = arm.scene
    rotation = pointing_down(scene.grip_yaw)
    contact, tangent, top = _door_edge(joint, sign)
    height = top - 0.02
    yield from _enter(arm, np.r_[(contact - tangent * 0.07)[:2], height], rotation, tolerance=0.012)
    for _ in range(160):
        if scene.satisfied(goal):
            break
        contact, tangent, _ = _door_edge(joint, sign)
        yield arm.command(np.r_[(contact + tangent * 0.05)[:2], height], rotation, CLOSE, 0.8)
    yield from arm.back_off(np.array([0, 0, 0.15]), rotation, max_steps=25, tolerance=0.03)


def _door_edge(joint: Joint, sign: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Where to push a door: the point behind its free edge, the direction it moves in there, the edge's top."""
    axis, anchor, points = joint.axis, joint.anchor, joint.points
    radii = (points - anchor) - ((points - anchor) @ axis)[:, None] * axis
    lengths = np.linalg.norm(radii, axis=1)
    edge = points[lengths > np.quantile(lengths, 0.8)]
    middle = edge.mean(0)
    radius = middle - anchor
    radius -= (radius @ axis) * axis
    tangent = unit(sign * np.cross(axis, radius))
    behind = (edge @ tangent).min() - middle @ tangent
    return middle + tangent * behind, tangent, float(edge[:, 2].max())


def twist_knob(arm: Arm, goal: Goal, joint: Joint, sign: float) -> Motion:
    """Pinch the ridge of a knob from above and turn the wrist.

    Args:
        arm (`Arm`): the robot.
        goal (`Goal`): stop as soon as it holds.
        joint (`Joint`): the knob's hinge.
        sign (`float`): +1 or -1, the joint's wanted sense.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    scene = arm.scene
    grip, yaw = _knob_grip(joint, scene.grip_yaw)
    rotation = pointing_down(yaw)
    height = max(arm.travel_height(grip, scene.height_map(), 0.02, 0.06), grip[2] + 0.06)
    here = scene.grip_position
    yield from arm.move_to(
        [here[0], here[1], height], rotation, OPEN, tolerance=0.04, angle_tolerance=ANY_ANGLE, max_steps=30
    )
    yield from arm.move_to([grip[0], grip[1], height], rotation, OPEN, tolerance=0.015, angle_tolerance=0.12)
    yield from arm.move_to(grip, rotation, OPEN, angle_tolerance=0.1, max_steps=50, max_speed=0.6, patience=10)
    yield from arm.stay(rotation, CLOSE, 9, position=grip)
    turn = sign * np.sign(joint.axis[2])
    for _ in range(70):
        if scene.satisfied(goal):
            break
        yield arm.command(grip, pointing_down(scene.grip_yaw + turn * 0.25), CLOSE)
    for _ in range(6):
        yield arm.command(grip, pointing_down(scene.grip_yaw + turn * 0.15), CLOSE)
    yield from arm.stay(scene.grip_rotation, OPEN, 6)
    yield from arm.back_off(np.array([0, 0, 0.10]), pointing_down(scene.grip_yaw), max_steps=20)


def _knob_grip(joint: Joint, hand_yaw: float) -> tuple[np.ndarray, float]:
    """Where to hold a knob, `(3,)`, and the yaw that puts the fingers across its ridge."""
    points = joint.points
    top = points[:, 2].max()
    ridge = points[points[:, 2] > top - 0.012]
    spread = ridge[:, :2] - ridge[:, :2].mean(0)
    lengthwise = np.linalg.eigh(spread.T @ spread)[1][:, -1]
    across = np.array([[-lengthwise[1]], [lengthwise[0]], [0.0]])
    yaw = nearest_equivalent_yaw(yaw_of(across), hand_yaw)
    stands_upright = abs(joint.axis[2]) > 0.7
    grip = np.r_[joint.anchor[:2], top - 0.016] if stands_upright else (ridge.max(0) + ridge.min(0)) / 2
    return grip, yaw
