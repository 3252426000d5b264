"""How the scripted expert puts things into a box that is open at the side, such as a microwave.

From above there is no way in. The hand leans so that it points into the box, pinches the object at the side that stays
outside longest (a mug by its handle), lifts it over the sill, moves it straight in and lets go. Everything follows
from the region, the collision geometry around it and that of the object.

Shape legend: `N` points. Local coordinates of the hand are (finger axis, depth axis, approach).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from evaluation.expert_articulation import Joint, has_joint, reach_tilted
from evaluation.expert_geometry import (
    FINGER_HALF_DEPTH,
    FINGER_THICKNESS,
    HALF_OPENING,
    PALM_HALF_DEPTH,
    PALM_HALF_LENGTH,
    PALM_HEIGHT,
    grip_rotation,
)
from evaluation.expert_grasp import LIFT_SPEED, MAX_WIDTH, close_fingers
from evaluation.expert_motion import ANY_ANGLE, CLOSE, OPEN, Arm, Motion, MotionWithResult
from evaluation.expert_perception import Goal, Scene

TILTS = tuple(
    math.radians(angle) for angle in (45, 55, 65)
)  # of the approach from straight down; the arm reaches less far with each
UP = np.array([0, 0, 1.0])
PROBE_HALF_WIDTH = 0.03  # metres around the middle of a region in which its walls are looked for
LEVEL = 0.1  # largest vertical part of an axis that counts as horizontal
WALL_CLEARANCE = 0.012  # metres between the load and the walls
SILL_CLEARANCE = 0.02  # metres by which the load passes over the sill
RELEASE_CLEARANCE = 0.004
ENTRANCE_DISTANCE = 0.02  # metres between the load and the entrance when it is lined up
GRID = 0.004  # metres between candidate grip positions
PAD_HALF_DEPTH, PAD_HALF_LENGTH = 0.010, 0.009  # the part of a finger that holds, across it and along the approach
LEAST_SUPPORT = 10  # cells of 3 mm of the object between the fingers
SUPPORT_CELL = 0.003
NEIGHBOURHOOD = 0.35  # metres around an object in which others may be in the hand's way
STICKING_OUT = 0.03  # metres of the load that may stay outside where the hand finds no room: a door pushes them in
HAND_LENGTH = 0.20  # metres of the hand behind the palm that must stay free
WRIST_DISTANCE, SHOULDER_HEIGHT = 0.21, 0.333  # metres: behind the grip site, above the base (Panda)
REACH = 0.745  # metres from the shoulder to the wrist, up to which the hand still keeps its angle
ATTEMPTS = 3
OPENING_STEPS = 7


@dataclass(frozen=True)
class Cavity:
    """A region under a roof with one open side.

    Attributes:
        inward (`np.ndarray` of shape `(3,)`): horizontal unit vector from the entrance into the region.
        sideways (`np.ndarray` of shape `(3,)`): horizontal unit vector at a right angle to it.
        origin (`np.ndarray` of shape `(3,)`): the middle of the region, world metres.
        entrance, back (`float`): where floor and back wall are along `inward` from the origin.
        left, right (`float`): where the walls are along `sideways`.
        floor, roof (`float`): world heights.
        walls (`np.ndarray` of shape `(N, 3)`): the fixture's points, world metres, its door included.
    """

    inward: np.ndarray
    sideways: np.ndarray
    origin: np.ndarray
    entrance: float
    back: float
    left: float
    right: float
    floor: float
    roof: float
    walls: np.ndarray


def find_cavity(scene: Scene, region: str) -> Cavity | None:
    """Look whether a region can only be filled from the side.

    Args:
        scene (`Scene`): the scene.
        region (`str`): a BDDL region of a fixture.

    Returns:
        `Cavity`, or `None` where the region has no roof, no floor, or no open side.
    """
    site = scene.domain.object_sites_dict.get(region)
    owner = getattr(site, "parent_name", None)
    if owner is None or not scene.has(owner) or scene.is_object(owner):
        return None
    doors = Joint.of(scene, owner).geoms if has_joint(scene, owner) else []
    fixed = scene.points_of_geoms([geom for geom in scene.geoms_of(owner) if geom not in doors])
    index = scene.model.site(region).id
    axes = scene.data.site_xmat[index].reshape(3, 3).T
    return measure_cavity(fixed, scene.points_of(owner), scene.data.site_xpos[index].copy(), axes)


def measure_cavity(fixed: np.ndarray, walls: np.ndarray, origin: np.ndarray, axes: np.ndarray) -> Cavity | None:
    """Measure the box around a place.

    Args:
        fixed (`np.ndarray` of shape `(N, 3)`): points of a fixture without its door, world metres.
        walls (`np.ndarray` of shape `(N, 3)`): all its points.
        origin (`np.ndarray` of shape `(3,)`): a place inside.
        axes (`np.ndarray` of shape `(3, 3)`): rows are the region's axes; the way in is along a horizontal one.

    Returns:
        `Cavity`, or `None` where there is no roof, no floor, or not one open side between three walls.
    """
    local = fixed - origin
    middle = (np.abs(local[:, :2]) < PROBE_HALF_WIDTH).all(axis=1)
    above, below = local[middle & (local[:, 2] > 0), 2], local[middle & (local[:, 2] < 0), 2]
    if not len(above) or not len(below):
        return None
    roof, floor = float(above.min()), float(below.max())
    around = local[(local[:, 2] > floor + WALL_CLEARANCE) & (local[:, 2] < roof - WALL_CLEARANCE)]
    for inward in (sign * axis for axis in axes if abs(axis[2]) < LEVEL for sign in (1, -1)):
        sideways = np.cross(UP, inward)
        along, across = around @ inward, around @ sideways
        in_line, abreast = np.abs(across) < PROBE_HALF_WIDTH, np.abs(along) < PROBE_HALF_WIDTH
        back = along[in_line & (along > 0)]
        left, right = across[abreast & (across < 0)], across[abreast & (across > 0)]
        if (in_line & (along < 0)).any() or not (len(back) and len(left) and len(right)):
            continue
        sill = local[(np.abs(local[:, 2] - floor) < 0.005) & (np.abs(local @ sideways) < PROBE_HALF_WIDTH)] @ inward
        sides = {"entrance": sill.min(), "back": back.min(), "left": left.max(), "right": right.min()}
        heights = {"floor": origin[2] + floor, "roof": origin[2] + roof}
        lengths = {key: float(value) for key, value in {**sides, **heights}.items()}
        return Cavity(inward=inward, sideways=sideways, origin=origin, walls=walls, **lengths)
    return None


@dataclass(frozen=True)
class Insertion:
    """A tilted pinch and where it shall be let go.

    Attributes:
        position (`np.ndarray` of shape `(3,)`): grip position at the object.
        rotation (`np.ndarray` of shape `(3, 3)`): grip rotation, kept all the way.
        depth (`float`): where the load's foremost point shall come to lie along `inward`, from the region's middle.
    """

    position: np.ndarray
    rotation: np.ndarray
    depth: float


def hand_cuts_into(points: np.ndarray, position: np.ndarray, rotation: np.ndarray, half_opening: float) -> bool:
    """Whether a hand in a pose would touch any of some points.

    Args:
        points (`np.ndarray` of shape `(N, 3)`): world metres.
        position (`np.ndarray` of shape `(3,)`): grip position.
        rotation (`np.ndarray` of shape `(3, 3)`): grip rotation.
        half_opening (`float`): metres from the grip site to a finger pad.

    Returns:
        `bool`.
    """
    local = (points - position) @ rotation
    along, across, ahead = np.abs(local[:, 0]), np.abs(local[:, 1]), local[:, 2]
    fingers = (along > half_opening) & (along < half_opening + FINGER_THICKNESS) & (across < FINGER_HALF_DEPTH)
    fingers &= (ahead > -PALM_HEIGHT) & (ahead < 0.010)
    palm = (along < PALM_HALF_LENGTH) & (across < PALM_HALF_DEPTH)
    palm &= (ahead < -PALM_HEIGHT) & (ahead > -PALM_HEIGHT - HAND_LENGTH)
    return bool((fingers | palm).any())


def plan_insertion(scene: Scene, name: str, cavity: Cavity) -> Insertion | None:
    """Choose how to hold an object and how deep to bring it in.

    Args:
        scene (`Scene`): the scene.
        name (`str`): the object.
        cavity (`Cavity`): where it shall go.

    Returns:
        `Insertion`: with the first tilt that brings the object wholly inside, as deep as it can and with the most of
        the object between the fingers; else one that leaves its rear outside; `None` where none has room.
    """
    points = scene.points_of(name)
    lift = UP * (cavity.floor + RELEASE_CLEARANCE - points[:, 2].min()) + cavity.sideways * _to_middle(points, cavity)
    foremost = ((points - cavity.origin) @ cavity.inward).max()
    pinches = {tilt: sorted(_candidates(scene, name, cavity, tilt), key=_support, reverse=True) for tilt in TILTS}
    for reach, depths in product((REACH, math.inf), _depths(points, cavity)):
        for tilt, depth in product(TILTS, depths):
            motion = lift + cavity.inward * (depth - foremost)
            for _, position, rotation in pinches[tilt]:
                if stretch(scene, position, rotation) > reach:
                    continue
                if not hand_cuts_into(cavity.walls, position + motion, rotation, HALF_OPENING):
                    return Insertion(position, rotation, depth)
    return None


def stretch(scene: Scene, position: np.ndarray, rotation: np.ndarray) -> float:
    """How far the wrist is from the shoulder when the hand is in a pose: the elbow can only straighten.

    Args:
        scene (`Scene`): the scene.
        position (`np.ndarray` of shape `(3,)`): grip position.
        rotation (`np.ndarray` of shape `(3, 3)`): grip rotation.

    Returns:
        `float`: metres.
    """
    wrist = position - rotation[:, 2] * WRIST_DISTANCE
    return float(np.linalg.norm(wrist - scene.base_position - UP * SHOULDER_HEIGHT))


def _support(candidate: tuple[int, np.ndarray, np.ndarray]) -> int:
    return candidate[0]


def _candidates(scene: Scene, name: str, cavity: Cavity, tilt: float) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Tilted pinches with room for the hand where the object is now: how much they hold, position, rotation."""
    points = scene.points_of(name)
    obstacles = np.concatenate([scene.points_of(other) for other in scene.names])
    obstacles = obstacles[np.linalg.norm(obstacles - points.mean(axis=0), axis=1) < NEIGHBOURHOOD]
    finger_axis = cavity.sideways * (1 if cavity.sideways @ scene.grip_rotation[:, 0] > 0 else -1)
    rotation = grip_rotation(finger_axis, math.cos(tilt) * -UP + math.sin(tilt) * cavity.inward)
    for support, position in _pinches(points, cavity, rotation):
        if support < LEAST_SUPPORT or _lowest_of_hand(position, rotation) < scene.table_height:
            continue
        if not hand_cuts_into(obstacles, position, rotation, HALF_OPENING):
            yield support, position, rotation


def _depths(points: np.ndarray, cavity: Cavity) -> tuple[np.ndarray, np.ndarray]:
    """Where the load's foremost point may come to lie, deepest first: wholly inside, and where its rear sticks out."""
    length = float(np.ptp(points @ cavity.inward))
    just_inside = min(cavity.entrance + WALL_CLEARANCE + length, cavity.back - WALL_CLEARANCE)
    middle = (just_inside + cavity.back - WALL_CLEARANCE) / 2
    return np.arange(middle, just_inside - 1e-9, -0.01), np.arange(just_inside, just_inside - STICKING_OUT, -0.01)


def _to_middle(points: np.ndarray, cavity: Cavity) -> float:
    """How far an object must move sideways to be in the middle between the walls."""
    across = (points - cavity.origin) @ cavity.sideways
    return float((cavity.left + cavity.right) / 2 - (across.min() + across.max()) / 2)


def _lowest_of_hand(position: np.ndarray, rotation: np.ndarray) -> float:
    """Height of the fingers' lowest point."""
    return float(position[2] + 0.010 * rotation[2, 2] - FINGER_HALF_DEPTH * abs(rotation[2, 1]))


def _pinches(points: np.ndarray, cavity: Cavity, rotation: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Grip positions that have a narrow piece of the object in the middle between the fingers, and how much of it."""
    near = points[(points @ cavity.inward) < (points @ cavity.inward).min() + 0.06]
    local = near @ rotation
    low, high = local.min(axis=0), local.max(axis=0)
    for across in np.arange(low[1], high[1], GRID):
        for ahead in np.arange(low[2], high[2], GRID):
            held = local[
                (np.abs(local[:, 1] - across) < PAD_HALF_DEPTH) & (np.abs(local[:, 2] - ahead) < PAD_HALF_LENGTH)
            ]
            if not len(held) or np.ptp(held[:, 0]) > MAX_WIDTH - 0.01:
                continue
            support = len(np.unique(np.floor(held[:, 1:] / SUPPORT_CELL).astype(int), axis=0))
            middle = (held[:, 0].min() + held[:, 0].max()) / 2
            yield support, rotation @ np.array([middle, across, ahead])


def insert(arm: Arm, name: str, cavity: Cavity, goal: Goal) -> Motion:
    """Take an object and put it in from the side.

    Args:
        arm (`Arm`): the robot, with an empty hand.
        name (`str`): the object.
        cavity (`Cavity`): where it shall go.
        goal (`Goal`): the predicate that shall hold.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    for _ in range(ATTEMPTS):
        plan = plan_insertion(arm.scene, name, cavity)
        if plan is None:
            return
        held = yield from _take(arm, name, plan)
        if held:
            yield from _bring_in(arm, name, cavity, plan)
        yield from _leave(arm, cavity, plan.rotation)
        if arm.scene.satisfied(goal):
            return


def _take(arm: Arm, name: str, plan: Insertion) -> MotionWithResult:
    """Pinch the object and lift it a little; returns whether it came along."""
    scene, approach = arm.scene, plan.rotation[:, 2]
    yield from reach_tilted(arm, plan.position - approach * 0.10, plan.rotation)
    yield from arm.move_to(
        plan.position, plan.rotation, OPEN, tolerance=0.004, max_steps=40, max_speed=0.8, patience=5
    )
    before = scene.position_of(name)[2]
    yield from close_fingers(arm, plan.position, plan.rotation)
    lifted = plan.position + UP * 0.04
    yield from arm.move_to(
        lifted, plan.rotation, CLOSE, tolerance=0.01, angle_tolerance=ANY_ANGLE, max_steps=26, max_speed=LIFT_SPEED
    )
    if scene.position_of(name)[2] < before + 0.02:
        return False
    arm.take_hold(name)
    return True


def _bring_in(arm: Arm, name: str, cavity: Cavity, plan: Insertion) -> Motion:
    """Lift over the sill, line up before the entrance, move in, come down, let go."""
    scene, rotation = arm.scene, plan.rotation

    def target(along: float, height: float) -> np.ndarray:
        """Grip position that brings the load's foremost point and foot there, measured anew on the load."""
        load = scene.points_of(name)
        forward = cavity.inward * (along - ((load - cavity.origin) @ cavity.inward).max())
        return (
            scene.grip_position
            + forward
            + cavity.sideways * _to_middle(load, cavity)
            + UP * (height - load[:, 2].min())
        )

    passing, lowered = cavity.floor + SILL_CLEARANCE, cavity.floor + RELEASE_CLEARANCE
    lifted = np.r_[scene.grip_position[:2], target(0, passing)[2]]
    yield from arm.move_to(lifted, rotation, CLOSE, tolerance=0.01, angle_tolerance=ANY_ANGLE, max_steps=40)
    for _ in range(2):
        before = target(cavity.entrance - ENTRANCE_DISTANCE, passing)
        yield from arm.move_to(before, rotation, CLOSE, tolerance=0.008, angle_tolerance=0.1)
    if not arm.held:
        return
    inside = target(plan.depth, passing)
    yield from arm.move_to(inside, rotation, CLOSE, tolerance=0.01, angle_tolerance=0.15, max_speed=0.6)
    down = target(plan.depth, lowered)
    yield from arm.move_to(
        down, rotation, CLOSE, tolerance=0.004, angle_tolerance=0.15, max_steps=30, max_speed=0.5, patience=8
    )
    arm.held = None


def _leave(arm: Arm, cavity: Cavity, rotation: np.ndarray) -> Motion:
    """Let go, draw the fingers straight back out of the box, rise."""
    yield from arm.stay(rotation, OPEN, OPENING_STEPS)
    yield from arm.back_off(-cavity.inward * 0.12, rotation, max_steps=25, tolerance=0.02)
    yield from arm.back_off(UP * 0.12, rotation, max_steps=20, tolerance=0.03)
