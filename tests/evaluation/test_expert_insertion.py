"""What goes into a box from the side: the box is measured, the hand fits, the pinch is at the rear."""

import math

import numpy as np
import pytest

from evaluation.expert_geometry import HALF_OPENING, box_surface_points, grip_rotation
from evaluation.expert_insertion import UP, hand_cuts_into, measure_cavity, plan_insertion, stretch

ORIGIN = np.array([0.0, 0.3, 0.1])
# A box 20 cm wide, 20 cm deep and 16 cm high inside, open towards -y: centres and half extents from its middle.
WALLS = {
    "floor": ((0, 0, -0.09), (0.11, 0.1, 0.01)),
    "roof": ((0, 0, 0.09), (0.11, 0.1, 0.01)),
    "back": ((0, 0.11, 0), (0.11, 0.01, 0.1)),
    "left": ((-0.11, 0, 0), (0.01, 0.1, 0.1)),
    "right": ((0.11, 0, 0), (0.01, 0.1, 0.1)),
}
HANDLE, CUP = ((0.0, -0.06, 0.05), (0.008, 0.03, 0.04)), ((0.0, 0.0, 0.05), (0.045, 0.03, 0.05))


def box(*left_out):
    parts = [
        box_surface_points(np.array(half)) + centre for name, (centre, half) in WALLS.items() if name not in left_out
    ]
    return np.concatenate(parts) + ORIGIN


def cavity_of(points):
    return measure_cavity(points, points, ORIGIN, np.eye(3))


class Shelf:
    """A cup with a handle before an open box, and a robot; stands in for `Scene`."""

    table_height = 0.0
    base_position = np.array([-0.6, 0.0, 0.0])
    grip_rotation = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]])

    def __init__(self, **objects):
        self.objects = {name: np.concatenate([box_surface_points(np.array(half)) + centre for centre, half in parts])
                        for name, parts in objects.items()}  # fmt: skip

    @property
    def names(self):
        return (*self.objects, "box")

    def points_of(self, name):
        return box() if name == "box" else self.objects[name]


def test_a_box_with_one_open_side_is_measured():
    cavity = cavity_of(box())
    assert np.allclose(cavity.inward, [0, 1, 0])
    assert np.allclose(abs(cavity.sideways[0]), 1)
    found = cavity.entrance, cavity.back, cavity.left, cavity.right, cavity.floor, cavity.roof
    assert np.allclose(found, (-0.1, 0.1, -0.1, 0.1, 0.02, 0.18), atol=1e-6)


@pytest.mark.parametrize("missing", [("roof",), ("floor",), ("back",), ("left",)])
def test_what_is_no_such_box_is_left_to_other_skills(missing):
    assert cavity_of(box(*missing)) is None


def test_a_closed_box_has_no_way_in():
    front = box_surface_points(np.array([0.11, 0.01, 0.1])) + ORIGIN + [0, -0.11, 0]
    assert cavity_of(np.concatenate([box(), front])) is None


def test_the_cup_is_held_by_its_handle_and_ends_inside():
    scene, cavity = Shelf(cup=[HANDLE, CUP]), cavity_of(box())
    plan = plan_insertion(scene, "cup", cavity)
    assert plan.position[1] < -0.03  # at the handle, which stays outside longest
    assert abs(plan.position[0]) < 0.004  # in the middle between the fingers
    assert abs(plan.rotation[0, 0]) == pytest.approx(1)  # the fingers close sideways
    assert plan.rotation[1, 2] > 0.7 and plan.rotation[2, 2] < 0  # leaning into the box, pointing down
    assert cavity.entrance < plan.depth <= cavity.back
    assert not hand_cuts_into(scene.points_of("cup"), plan.position, plan.rotation, HALF_OPENING)


def test_nothing_narrow_at_the_rear_means_no_plan():
    assert plan_insertion(Shelf(cup=[CUP]), "cup", cavity_of(box())) is None


def test_a_neighbour_before_the_handle_means_no_plan():
    wall = ((0.0, -0.15, 0.1), (0.15, 0.03, 0.1))
    assert plan_insertion(Shelf(cup=[HANDLE, CUP], wall=[wall]), "cup", cavity_of(box())) is None


def test_hand_cuts_into_what_lies_in_a_finger_or_the_palm():
    down = grip_rotation(np.array([1.0, 0, 0]), -UP)
    for point, cuts in (([0, 0, 0], False), ([0.05, 0, 0], True), ([0, 0, 0.05], True), ([0, 0.05, 0], False)):
        assert hand_cuts_into(np.array([point], float), np.zeros(3), down, HALF_OPENING) is cuts


def test_leaning_stretches_the_arm():
    scene = Shelf(cup=[CUP])
    poses = []
    for tilt in (0, math.radians(60)):
        approach = math.cos(tilt) * -UP + math.sin(tilt) * np.array([-1.0, 0, 0])  # back towards the robot
        poses.append(stretch(scene, np.array([0.1, 0, 0.1]), grip_rotation(np.array([0, 1.0, 0]), approach)))
    assert poses[1] > poses[0]


@pytest.mark.libero
@pytest.mark.slow
def test_the_mug_goes_into_the_microwave_and_the_door_is_shut():
    from evaluation.expert import ScriptedExpert
    from evaluation.libero_env import LiberoEnv
    from evaluation.protocol import max_steps

    with LiberoEnv("libero_10", task_id=9, cameras=(), image_size=64) as env:
        env.reset(initial_state=0)
        success = False
        for _, action in zip(range(max_steps("libero_10")), ScriptedExpert(env.domain).actions(), strict=False):
            _, success, _ = env.step(action)
            if success:
                break
        assert success
        assert env.domain._eval_predicate(("in", "white_yellow_mug_1", "microwave_1_heating_region"))
        assert env.domain._eval_predicate(("close", "microwave_1"))
