"""Where and how the scripted expert grasps: top-down pinches planned on the height map, and the pick itself.

A candidate closes the fingers along a yaw, at some height, around a piece of the object that fits between them, with
room for fingers and palm. The best candidate has steep walls, is near the object's middle and within easy reach.
Shape legend: `N` points of the object.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from evaluation.expert_geometry import HeightMap, gripper_outline, nearest_equivalent_yaw, pointing_down
from evaluation.expert_motion import ANY_ANGLE, CLOSE, OPEN, Arm, Motion, MotionWithResult
from evaluation.expert_perception import Scene

NUM_YAWS = 16
DEPTHS_BELOW_TOP = (0.036, 0.03, 0.024, 0.018, 0.012)  # grip heights tried, metres below the object's top
LEAST_HEIGHT = 0.012  # metres above the object's foot
MAX_WIDTH = 0.067  # metres that fit between the open fingers
GAP = 0.012  # metres without points that separate two pieces
SLICE_STEP, SLICE_HALF_WIDTH = 0.008, 0.009  # metres across the finger axis
COMFORTABLE_REACH = 0.68  # metres from the robot's base; beyond it the arm is slow and imprecise
# (cells by which neighbours grow, required clearance in metres): from careful to daring
CLEARANCE_LEVELS = ((1, 0.001), (0, 0.001), (0, -0.006))
CLOSING_STEPS = 14
LIFT = 0.06
LIFT_SPEED = 0.4  # faster, bowls held at their rim slip


@dataclass(frozen=True)
class Grasp:
    """A planned top-down pinch.

    Attributes:
        score (`float`): cost, smaller is better.
        position (`np.ndarray` of shape `(3,)`): grip site, world metres.
        yaw (`float`): radians, the one nearest to the hand's present yaw.
        nominal_yaw (`float`): the same finger line in [0, pi).
        wall_slant (`float`): how much the pinched wall runs away along the finger's depth, metres per metre; above
            0.4 the fingers slip.
    """

    score: float
    position: np.ndarray
    yaw: float
    nominal_yaw: float
    wall_slant: float


@dataclass(frozen=True)
class ObjectInScene:
    """What grasp planning needs to know about the object and the place.

    Attributes:
        points (`np.ndarray` of shape `(N, 3)`): the object's surface, world metres.
        origin (`np.ndarray` of shape `(2,)`): the object's body origin.
        own_heights (`HeightMap`): the object alone.
        height_map (`HeightMap`): everything, the object included.
        hand_yaw (`float`): the hand's present yaw.
        base (`np.ndarray` of shape `(2,)`): the robot's base.
        destination (`np.ndarray` of shape `(2,)`, *optional*): where the origin shall come down.
    """

    points: np.ndarray
    origin: np.ndarray
    own_heights: HeightMap
    height_map: HeightMap
    hand_yaw: float
    base: np.ndarray
    destination: np.ndarray | None = None

    @property
    def centre(self) -> np.ndarray:
        """Middle of the object's bounding box, `(2,)`."""
        return ((self.points.max(0) + self.points.min(0)) / 2)[:2]

    @property
    def grip_heights(self) -> list[float]:
        """Grip heights to try, ascending."""
        foot, top = self.points[:, 2].min(), self.points[:, 2].max()
        return sorted({round(max(foot + LEAST_HEIGHT, top - depth), 4) for depth in DEPTHS_BELOW_TOP})


@dataclass(frozen=True)
class Pinch:
    """Geometry of one candidate before it is scored; lengths in metres, angles in radians."""

    position: np.ndarray  # grip site, world
    turn: float  # from the hand's present yaw
    nominal_yaw: float
    height_above_lowest: float
    width: float
    support: float  # length of the wall under the finger pads
    clearance: float
    slant_along: float
    slant_up: float


def split_into_pieces(
    coordinates: np.ndarray, is_solid: Callable[[float], bool] = lambda middle: False
) -> Iterator[tuple[float, float]]:
    """Split sorted coordinates of surface points wherever a gap lets a finger in.

    Args:
        coordinates (`np.ndarray` of shape `(N,)`): ascending, metres along the finger axis.
        is_solid (`Callable`): whether the object closes the gap around a coordinate from above (the inside of a box,
            unlike the inside of a bowl).

    Yields:
        `tuple[float, float]`: first and last coordinate of each piece.
    """
    gaps = np.where(np.diff(coordinates) > GAP)[0]
    cuts = np.array([gap for gap in gaps if not is_solid((coordinates[gap] + coordinates[gap + 1]) / 2)], dtype=int)
    for first, last in zip(np.r_[0, cuts + 1], np.r_[cuts, len(coordinates) - 1], strict=True):
        yield coordinates[first], coordinates[last]


def score_pinch(pinch: Pinch, item: ObjectInScene) -> float:
    """Cost of a candidate: smaller is better.

    Args:
        pinch (`Pinch`): the candidate.
        item (`ObjectInScene`): the object it pinches.

    Returns:
        `float`: cost, without unit.
    """
    xy = pinch.position[:2]
    cost = 0.6 * abs(pinch.turn) + 12 * float(np.linalg.norm(xy - item.centre))
    cost += 45 * pinch.height_above_lowest + 15 * max(0.0, pinch.width - 0.05)
    cost -= 20 * min(pinch.support, 0.016) + 4 * min(pinch.clearance, 0.02)
    cost += _reach_cost(xy - item.base)
    if item.destination is not None:
        cost += _reach_cost(xy - item.origin + item.destination - item.base)
    diagonal = math.radians(27) < pinch.nominal_yaw % (math.pi / 2) < math.radians(63)
    if pinch.width < 0.03 and diagonal:  # thin rims slip when they are held diagonally
        cost += 0.5
    return cost + 3.0 * min(abs(pinch.slant_along), 1) + 0.5 * min(abs(pinch.slant_up), 1)


def _reach_cost(offset_from_base: np.ndarray) -> float:
    return 25 * max(0.0, float(np.linalg.norm(offset_from_base)) - COMFORTABLE_REACH)


def pieces_in_band(band: np.ndarray, is_solid: Callable[[float, float], bool]) -> Iterator[tuple[float, np.ndarray]]:
    """Cut a band of an object into slices across the finger axis, and those into pieces between which a finger fits.

    Args:
        band (`np.ndarray` of shape `(N, 3)`): points as (along, across, z) of the finger axis, metres.
        is_solid (`Callable`): whether the object covers a place (across, along).

    Yields:
        `tuple[float, np.ndarray]`: the slice's middle across the finger axis, and the points of one piece.
    """
    if not len(band):
        return
    along, across = band[:, 0], band[:, 1]
    for middle in np.arange(across.min(), across.max() + 1e-6, SLICE_STEP):
        in_slice = np.abs(across - middle) < SLICE_HALF_WIDTH
        if in_slice.sum() < 4:
            continue
        for low, high in split_into_pieces(np.sort(along[in_slice]), partial(is_solid, middle)):
            yield middle, band[in_slice & (along >= low) & (along <= high)]


def pinches_at_yaw(item: ObjectInScene, nominal_yaw: float, least_clearance: float) -> Iterator[Pinch]:
    """All candidates that close the fingers along one line and have room for the hand.

    Args:
        item (`ObjectInScene`): the object.
        nominal_yaw (`float`): radians in [0, pi).
        least_clearance (`float`): metres that must stay free below the open hand.

    Yields:
        `Pinch`: a candidate.
    """
    yaw = nearest_equivalent_yaw(nominal_yaw, item.hand_yaw)
    rotation = pointing_down(yaw)
    outline = gripper_outline(yaw)
    framed = np.c_[item.points @ rotation[:, :2], item.points[:, 2]]
    heights = item.grip_heights
    for height in heights:
        band = framed[(framed[:, 2] > height - 0.012) & (framed[:, 2] < height + 0.010)]
        is_solid = partial(_covers, item.own_heights, rotation, height)
        for middle, piece in pieces_in_band(band, is_solid):
            low, high = piece[:, 0].min(), piece[:, 0].max()
            if high - low > MAX_WIDTH:
                continue
            xy = rotation[:2, 0] * (low + high) / 2 + rotation[:2, 1] * middle
            clearance = item.height_map.clearance(outline + np.r_[xy, height])
            if clearance < least_clearance:
                continue
            slant_along, slant_up = wall_slants(piece - [0, middle, height])
            yield Pinch(
                position=np.r_[xy, height],
                turn=yaw - item.hand_yaw,
                nominal_yaw=nominal_yaw,
                height_above_lowest=height - heights[0],
                width=high - low,
                support=float(np.ptp(piece[:, 1])),
                clearance=clearance,
                slant_along=slant_along,
                slant_up=slant_up,
            )


def _covers(own_heights: HeightMap, rotation: np.ndarray, height: float, across: float, along: float) -> bool:
    """Whether an object is higher than a grip height at a place given along and across the finger axis."""
    xy = rotation[:2, 0] * along + rotation[:2, 1] * across
    return bool(own_heights.heights_under(xy[None])[0] > height)


def wall_slants(piece: np.ndarray) -> tuple[float, float]:
    """Fit a plane to a pinched wall.

    Args:
        piece (`np.ndarray` of shape `(N, 3)`): points as (along, across, up) relative to the finger pads, metres.

    Returns:
        `tuple[float, float]`: how far the wall runs along the finger axis per metre across it, and per metre up.
    """
    along = piece[:, 0]
    slopes = np.linalg.lstsq(np.c_[piece[:, 1:], np.ones(len(along))], along, rcond=None)[0]
    return float(slopes[0]), float(slopes[1])


def plan_grasp(
    scene: Scene,
    name: str,
    banned: Sequence[Grasp] = (),
    destination: np.ndarray | None = None,
    obstacles: np.ndarray | None = None,
) -> Grasp | None:
    """Choose the best top-down pinch of an object.

    Args:
        scene (`Scene`): the scene.
        name (`str`): the object.
        banned (`Sequence[Grasp]`): grasps that failed; their neighbourhood is left out.
        destination (`np.ndarray` of shape `(2,)`, *optional*): where its origin shall come down; places that the arm
            reaches badly cost extra.
        obstacles (`np.ndarray` of shape `(N, 3)`, *optional*): further points to keep clear of.

    Returns:
        `Grasp`, or `None` where no candidate has room.
    """
    points = scene.points_of(name)
    own_heights = HeightMap(-math.inf)
    own_heights.raise_to(points)
    for spread, least_clearance in CLEARANCE_LEVELS:
        height_map = scene.height_map(exclude=(name,), spread=spread, obstacles=obstacles)
        height_map.raise_to(points)
        item = ObjectInScene(
            points=points,
            origin=scene.position_of(name)[:2],
            own_heights=own_heights,
            height_map=height_map,
            hand_yaw=scene.grip_yaw,
            base=scene.base_position[:2],
            destination=destination,
        )
        best = _best_grasp(item, banned, least_clearance)
        if best is not None:
            return best
    return None


def _best_grasp(item: ObjectInScene, banned: Sequence[Grasp], least_clearance: float) -> Grasp | None:
    best = None
    for nominal_yaw in np.arange(NUM_YAWS) * math.pi / NUM_YAWS:
        for pinch in pinches_at_yaw(item, nominal_yaw, least_clearance):
            if any(_is_near(pinch, failed) for failed in banned):
                continue
            score = score_pinch(pinch, item)
            if best is None or score < best.score:
                best = Grasp(score, pinch.position, item.hand_yaw + pinch.turn, nominal_yaw, pinch.slant_along)
    return best


def _is_near(pinch: Pinch, failed: Grasp) -> bool:
    shift = float(np.linalg.norm((pinch.position - failed.position)[:2]))
    return shift < 0.015 and abs(failed.nominal_yaw - pinch.nominal_yaw) < 0.3


def pick(arm: Arm, name: str, destination: np.ndarray | None = None, attempts: int = 4) -> MotionWithResult:
    """Pick an object up; another grasp is tried where one fails.

    Args:
        arm (`Arm`): the robot.
        name (`str`): the object.
        destination (`np.ndarray` of shape `(2,)`, *optional*): where its origin shall come down later.
        attempts (`int`): how many grasps to try.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.

    Returns:
        `bool`: whether the object hangs in the hand.
    """
    banned: list[Grasp] = []
    for _ in range(attempts):
        grasp = plan_grasp(arm.scene, name, banned, destination)
        if grasp is None:
            return False
        rotation = pointing_down(grasp.yaw)
        yield from _approach(arm, grasp, rotation)
        height_before = arm.scene.position_of(name)[2]
        yield from close_fingers(arm, grasp.position, rotation)
        lifted = grasp.position + [0, 0, LIFT]
        yield from arm.move_to(
            lifted, rotation, CLOSE, tolerance=0.015, angle_tolerance=ANY_ANGLE, max_steps=26, max_speed=LIFT_SPEED
        )
        if arm.scene.position_of(name)[2] > height_before + LIFT / 2:
            arm.take_hold(name)
            return True
        banned.append(grasp)
        yield from arm.stay(rotation, OPEN, 4)
    return False


def _approach(arm: Arm, grasp: Grasp, rotation: np.ndarray) -> Motion:
    """Rise, travel above everything, come down around the object with an open hand."""
    scene, target = arm.scene, grasp.position
    height = max(arm.travel_height(target, scene.height_map(), 0.01, 0.05), target[2] + 0.06)
    here = scene.grip_position
    if here[2] < height - 0.02:
        yield from arm.move_to([here[0], here[1], height], rotation, OPEN, tolerance=0.03, angle_tolerance=ANY_ANGLE)
    yield from arm.move_to([target[0], target[1], height], rotation, OPEN, tolerance=0.012, angle_tolerance=0.12)
    yield from arm.move_to(target, rotation, OPEN, tolerance=0.004, max_steps=40, max_speed=0.8, patience=5)


def close_fingers(arm: Arm, position: np.ndarray, rotation: np.ndarray) -> Motion:
    """Close until the fingers stop moving.

    Args:
        arm (`Arm`): the robot.
        position (`np.ndarray` of shape `(3,)`): grip position to keep, metres.
        rotation (`np.ndarray` of shape `(3, 3)`): grip rotation to keep.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    before = math.inf
    for step in range(CLOSING_STEPS):
        yield arm.command(position, rotation, CLOSE)
        opening = arm.scene.finger_opening
        if step > 4 and abs(opening - before) < 2e-4:
            break
        before = opening
