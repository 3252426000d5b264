"""Grasps on hand-made boxes, control towards a pose, and the order of goals."""

import math

import numpy as np
import pytest

from evaluation.expert import order_goals
from evaluation.expert_grasp import Pinch, plan_grasp, score_pinch, split_into_pieces, wall_slants
from evaluation.expert_motion import CLOSE, OPEN, Arm

BLOCK = ((0.0, 0.1, 0.03), (0.05, 0.02, 0.03))  # long along x: the fingers must close along y


def test_pieces_are_split_where_a_finger_fits():
    assert list(split_into_pieces(np.array([0.0, 0.01, 0.02, 0.05, 0.06]))) == [(0.0, 0.02), (0.05, 0.06)]
    assert list(split_into_pieces(np.array([0.0]))) == [(0.0, 0.0)]
    assert list(split_into_pieces(np.array([0.0, 0.01, 0.05]), is_solid=lambda middle: middle > 0.02)) == [(0.0, 0.05)]


def test_wall_slants_of_a_tilted_plane():
    across, up = (grid.ravel() for grid in np.meshgrid(np.linspace(-0.01, 0.01, 5), np.linspace(-0.01, 0.01, 5)))
    piece = np.stack([0.3 * across - 0.7 * up + 0.02, across, up], 1)
    assert np.allclose(wall_slants(piece), (0.3, -0.7))


def test_block_is_grasped_across_its_short_side(box_scene):
    grasp = plan_grasp(box_scene(block=BLOCK), "block")
    assert abs(math.sin(grasp.nominal_yaw)) < 1e-6
    assert np.abs(grasp.position[:2] - [0.0, 0.1]).max() < 0.01
    assert 0.012 <= grasp.position[2] <= 0.06
    assert abs(grasp.wall_slant) < 1e-6


def test_turned_block_turns_the_grasp(box_scene):
    grasp = plan_grasp(box_scene(block=((0.0, 0.1, 0.03), (0.02, 0.05, 0.03))), "block")
    assert np.isclose(grasp.nominal_yaw, math.pi / 2)
    assert np.isclose(abs(grasp.yaw), math.pi / 2)


def test_a_walled_in_block_has_no_grasp(box_scene):
    sides = {"left": (0, 0.16), "right": (0, 0.04), "front": (0.09, 0.1), "back": (-0.09, 0.1)}
    walls = {name: ((*xy, 0.15), (0.1 if xy[0] == 0 else 0.02, 0.02, 0.15)) for name, xy in sides.items()}
    assert plan_grasp(box_scene(block=BLOCK, **walls), "block") is None


def test_a_failed_grasp_is_not_repeated(box_scene):
    scene = box_scene(block=BLOCK)
    first = plan_grasp(scene, "block")
    second = plan_grasp(scene, "block", banned=[first])
    apart = np.linalg.norm((second.position - first.position)[:2])
    assert apart >= 0.015 or abs(second.nominal_yaw - first.nominal_yaw) >= 0.3


def test_a_wall_beside_the_block_moves_the_grasp_away(box_scene):
    free = plan_grasp(box_scene(block=BLOCK), "block")
    wall = ((0.03, 0.15, 0.1), (0.02, 0.02, 0.1))  # where the hand would be, at the far end
    hindered = plan_grasp(box_scene(block=BLOCK, wall=wall), "block")
    assert hindered.position[0] < free.position[0] - 0.005 or hindered.nominal_yaw != free.nominal_yaw


def test_reach_counts_at_the_destination(box_scene):
    scene = box_scene(block=BLOCK)
    near = plan_grasp(scene, "block", destination=np.array([-0.1, 0.0]))
    far = plan_grasp(scene, "block", destination=np.array([0.3, 0.3]))
    assert far.score > near.score + 5


def test_score_prefers_steep_walls_and_small_turns(box_scene):
    from evaluation.expert_grasp import ObjectInScene

    scene = box_scene(block=BLOCK)
    item = ObjectInScene(
        points=scene.points_of("block"),
        origin=np.array([0, 0.1]),
        own_heights=scene.height_map(),
        height_map=scene.height_map(),
        hand_yaw=0.0,
        base=np.array([-0.6, 0]),
    )
    plain = {"position": np.array([0, 0.1, 0.03]), "turn": 0.0, "nominal_yaw": 0.0, "height_above_lowest": 0.0}
    plain |= {"width": 0.04, "support": 0.016, "clearance": 0.02, "slant_along": 0.0, "slant_up": 0.0}
    best = score_pinch(Pinch(**plain), item)
    assert np.isclose(best, -20 * 0.016 - 4 * 0.02)
    for worse in ({"turn": 0.5}, {"slant_along": 0.4}, {"slant_up": -0.5}, {"width": 0.065}, {"clearance": 0.0}):
        assert score_pinch(Pinch(**(plain | worse)), item) > best


def follow(scene, motion, speed=0.02):
    """Apply a motion to the fake hand: each action moves it by `speed` metres per unit; returns steps and result."""
    for steps in range(500):
        try:
            action = next(motion)
        except StopIteration as stop:
            return steps, stop.value
        assert action.shape == (7,) and np.abs(action).max() <= 1
        scene.grip_position = scene.grip_position + action[:3] * speed
    raise AssertionError("the motion does not end")


def test_command_points_at_the_target_and_saturates(box_scene):
    scene = box_scene()
    action = Arm(scene).command(scene.grip_position + [0.2, -0.1, 0.0], scene.grip_rotation, CLOSE)
    assert np.allclose(action, [1, -0.5, 0, 0, 0, 0, 1])
    near = Arm(scene).command(scene.grip_position + [0.01, 0, 0], scene.grip_rotation, OPEN, max_speed=0.5)
    assert np.allclose(near, [0.14, 0, 0, 0, 0, 0, -1])


def test_move_to_reaches_the_target(box_scene):
    scene = box_scene()
    target = np.array([0.1, 0.1, 0.2])
    steps, reached = follow(scene, Arm(scene).move_to(target, scene.grip_rotation, OPEN))
    assert reached is True and 10 < steps < 60
    assert np.linalg.norm(scene.grip_position - target) < 0.006


def test_move_to_gives_up_when_it_is_stuck(box_scene):
    scene = box_scene()
    steps, reached = follow(scene, Arm(scene).move_to([0.1, 0.1, 0.2], scene.grip_rotation, OPEN, patience=5), speed=0)
    assert reached is False and steps <= 7


def test_move_to_notices_a_dropped_object(box_scene):
    scene = box_scene(block=((-0.2, 0.0, 0.3), (0.02, 0.02, 0.02)))
    arm = Arm(scene)
    arm.take_hold("block")
    steps, reached = follow(scene, arm.move_to([0.2, 0.0, 0.3], scene.grip_rotation, CLOSE))  # the block stays behind
    assert reached is False and arm.held is None and steps < 10


def test_travel_height_clears_what_is_between(box_scene):
    scene = box_scene(tower=((0.0, 0.0, 0.1), (0.02, 0.02, 0.1)))
    arm = Arm(scene)
    over = arm.travel_height(np.array([0.2, 0.0]), scene.height_map(), depth=0.05, half_width=0.05)
    beside = arm.travel_height(np.array([-0.2, 0.2]), scene.height_map(), depth=0.05, half_width=0.05)
    assert np.isclose(over, 0.2 + 0.05 + 0.02) and np.isclose(beside, 0.07)


def test_goals_open_first_and_close_last():
    goals = [
        ["close", "drawer"],
        ["in", "bowl", "drawer"],
        ["open", "drawer"],
        ["on", "cup", "plate"],
        ["turnon", "stove"],
    ]
    assert [goal[0] for goal in order_goals(goals)] == ["open", "turnon", "in", "on", "close"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotation_error_turns_towards_the_target(box_scene, axis):
    from evaluation.expert_geometry import rotation_about

    scene = box_scene()
    turn = np.eye(3)[axis]
    action = Arm(scene).command(scene.grip_position, rotation_about(turn, 0.1) @ scene.grip_rotation, OPEN)
    assert np.allclose(action[3:6], 0.3 * turn)
