"""How the scripted expert puts down what it holds."""

import numpy as np

from evaluation.expert_geometry import gripper_outline, pointing_down
from evaluation.expert_motion import ANY_ANGLE, CLOSE, OPEN, Arm, Motion

RELEASE_CLEARANCE = 0.008  # metres between the load and what is below it when the fingers open
OPENING_STEPS = 7


def place(arm: Arm, name: str, target: np.ndarray) -> Motion:
    """Carry the held object over a place, lower it and let go; ends early when it is dropped on the way.

    The object may hang askew: its offset in the hand is measured again above the place, and the release height comes
    from the height map under both the object and the hand.

    Args:
        arm (`Arm`): the robot, holding the object.
        name (`str`): the object.
        target (`np.ndarray` of shape `(2,)`): where its body origin shall come down, world x, y.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    scene = arm.scene
    yaw = scene.grip_yaw
    rotation = pointing_down(yaw)
    height_map = scene.height_map(exclude=(name,))
    yield from _carry(arm, name, target, rotation)
    if not arm.held:
        return
    goal = _grip_goal(arm, name, target)
    for _ in range(2):
        goal = _grip_goal(arm, name, target)
        here = np.r_[goal, scene.grip_position[2]]
        yield from arm.move_to(here, rotation, CLOSE, angle_tolerance=0.15, max_steps=10)
    load = scene.points_of(name) - scene.grip_position
    underside = np.concatenate([load, gripper_outline(yaw)])
    height = RELEASE_CLEARANCE - height_map.clearance(underside + np.r_[goal, 0])
    yield from arm.move_to(
        np.r_[goal, height], rotation, CLOSE, angle_tolerance=0.15, max_steps=50, max_speed=0.6, patience=8
    )
    arm.held = None
    yield from arm.stay(rotation, OPEN, OPENING_STEPS)
    yield from arm.back_off(np.array([0, 0, 0.08]), rotation, max_steps=12)


def _grip_goal(arm: Arm, name: str, target: np.ndarray) -> np.ndarray:
    """Where the grip site must be so that the held object's origin is over the target, world x, y."""
    return np.asarray(target) - (arm.scene.position_of(name)[:2] - arm.scene.grip_position[:2])


def _carry(arm: Arm, name: str, target: np.ndarray, rotation: np.ndarray) -> Motion:
    """Rise above everything on the way, then travel."""
    scene = arm.scene
    goal = _grip_goal(arm, name, target)
    here = scene.grip_position
    depth = max(here[2] - scene.points_of(name)[:, 2].min(), 0.01)
    height = arm.travel_height(goal, scene.height_map(exclude=(name,)), depth, 0.07)
    if here[2] < height - 0.01:
        yield from arm.move_to([here[0], here[1], height], rotation, CLOSE, tolerance=0.03, angle_tolerance=ANY_ANGLE)
    if arm.held:
        over = [goal[0], goal[1], max(height, 0.0)]
        yield from arm.move_to(over, rotation, CLOSE, tolerance=0.015, angle_tolerance=0.15)
