"""How the scripted expert slides things over the table: flat objects, and objects that stand in the way."""

import math

import numpy as np

from evaluation.expert_geometry import HeightMap, gripper_outline, pointing_down, unit
from evaluation.expert_motion import ANY_ANGLE, CLOSE, Arm, Motion
from evaluation.expert_perception import Goal, Scene

NUM_YAWS = 16
RIM_SLIP_DISTANCE = 0.085  # metres from the object's origin at which the fingers have left it
ROOM = 0.15  # metres around an object within which tall neighbours hinder the palm
MAKE_ROOM_DISTANCE = 0.08


def push_from_inside(
    arm: Arm, name: str, target: np.ndarray, goal: Goal | None = None, max_steps: int = 120
) -> Motion:
    """Slide a dished object: the closed fingers go inside and push against its inner rim.

    Args:
        arm (`Arm`): the robot.
        name (`str`): the object.
        target (`np.ndarray` of shape `(2,)`): where its origin shall come, world x, y.
        goal (`Goal`, *optional*): stop as soon as this predicate holds.
        max_steps (`int`): give up after so many pushing actions.

    Yields:
        `np.ndarray` of shape `(7,)`: actions.
    """
    scene = arm.scene
    start = scene.position_of(name)
    height = _floor_inside(scene.points_of(name), start) + 0.011
    yaw = _roomy_yaw(scene, scene.height_map(exclude=(name,)), np.r_[start[:2], height], target)
    rotation = pointing_down(yaw)
    above = max(arm.travel_height(start, scene.height_map(), 0.02, 0.05), height + 0.05)
    here = scene.grip_position
    yield from arm.move_to([here[0], here[1], above], rotation, CLOSE, tolerance=0.04, angle_tolerance=ANY_ANGLE)
    yield from arm.move_to([start[0], start[1], above], rotation, CLOSE, tolerance=0.02, angle_tolerance=0.15)
    inside = [start[0], start[1], height]
    yield from arm.move_to(inside, rotation, CLOSE, tolerance=0.008, angle_tolerance=0.15, max_steps=50, max_speed=0.6)
    for _ in range(max_steps):
        if goal is not None and scene.satisfied(goal):
            return
        origin = scene.position_of(name)[:2]
        remaining = target - origin
        distance = float(np.linalg.norm(remaining))
        hand = scene.grip_position[:2]
        if distance < 0.01 or np.linalg.norm(hand - origin) > RIM_SLIP_DISTANCE:
            return
        ahead = hand + remaining / distance * min(0.06, distance + 0.02)
        yield arm.command(np.r_[ahead, height], rotation, CLOSE, 0.6)


def _floor_inside(points: np.ndarray, origin: np.ndarray) -> float:
    """Height of the dish's floor around its origin."""
    near = points[np.linalg.norm(points[:, :2] - origin[:2], axis=1) < 0.03]
    return float(near[:, 2].max() if len(near) else points[:, 2].max() - 0.01)


def _roomy_yaw(scene: Scene, height_map: HeightMap, position: np.ndarray, target: np.ndarray) -> float:
    """The wrist angle nearest to the present one at which the palm clears the neighbours, here and half-way."""
    here = scene.grip_yaw
    half_way = np.r_[(position[:2] + target) / 2, position[2]]
    for turn in sorted(np.arange(-NUM_YAWS // 2, NUM_YAWS // 2) * math.pi / NUM_YAWS, key=abs):
        hand = gripper_outline(here + turn, half_opening=0.0)
        if height_map.clearance(hand + position) > 0 and height_map.clearance(hand + half_way) > -0.02:
            return here + turn
    return here


def make_room(arm: Arm, name: str, obstacles: np.ndarray | None = None) -> Motion:
    """Drag a hollow object away from tall neighbours that leave no room for the palm.

    Args:
        arm (`Arm`): the robot.
        name (`str`): the object.
        obstacles (`np.ndarray` of shape `(N, 3)`, *optional*): further points that count as neighbours, such as the
            space that a drawer will take.

    Yields:
        `np.ndarray` of shape `(7,)`: actions; none where the object stands free.
    """
    scene = arm.scene
    height_map = scene.height_map(exclude=(name,), obstacles=obstacles)
    origin = scene.position_of(name)[:2]
    away = origin - height_map.cells_above(scene.points_of(name)[:, 2].max() + 0.02)
    distances = np.linalg.norm(away, axis=1)
    near = distances < ROOM
    if not near.any():
        return
    direction = unit((away[near] / distances[near][:, None] ** 2).sum(0))
    yield from push_from_inside(arm, name, origin + direction * MAKE_ROOM_DISTANCE, max_steps=25)
    yield from arm.back_off(np.array([0, 0, 0.07]), pointing_down(scene.grip_yaw), max_steps=12, tolerance=0.03)
