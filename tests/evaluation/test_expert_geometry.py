"""Rotations, sampled surfaces, the open hand's outline and the height map, against values worked out by hand."""

import math

import numpy as np
import pytest

from evaluation.expert_geometry import (
    CELL,
    HALF_OPENING,
    PALM_HEIGHT,
    HeightMap,
    box_surface_points,
    grip_rotation,
    gripper_outline,
    nearest_equivalent_yaw,
    pointing_down,
    rotation_about,
    rotation_to_axis_angle,
    yaw_of,
)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.5, math.pi / 2, 3.0, math.pi - 1e-4])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 0, 2), (1, -2, 3)])
def test_axis_angle_undoes_rotation(axis, angle):
    vector = rotation_to_axis_angle(rotation_about(axis, angle))
    expected = np.array(axis) / np.linalg.norm(axis) * angle
    # At half a turn the sign of the axis is free.
    assert min(np.abs(vector - expected).max(), np.abs(vector + expected).max()) < 2e-4
    if angle < 3.1:
        assert np.allclose(vector, expected, atol=1e-6)


def test_quarter_turn_about_z():
    assert np.allclose(rotation_about([0, 0, 5], math.pi / 2) @ [1, 0, 0], [0, 1, 0])


@pytest.mark.parametrize("yaw", [-3.0, -0.7, 0.0, 1.2, 3.1])
def test_pointing_down_is_a_rotation_with_that_yaw(yaw):
    rotation = pointing_down(yaw)
    assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.isclose(np.linalg.det(rotation), 1)
    assert np.allclose(rotation[:, 2], [0, 0, -1])
    assert np.isclose(yaw_of(rotation), yaw)


def test_finger_axis_is_world_y_without_yaw():
    assert np.allclose(pointing_down(0.0)[:, 0], [0, 1, 0])


@pytest.mark.parametrize(
    ("yaw", "reference", "expected"), [(3.0, 0.0, 3.0 - math.pi), (0.2, 0.1, 0.2), (0, 6.3, 6.2832)]
)
def test_nearest_equivalent_yaw(yaw, reference, expected):
    assert np.isclose(nearest_equivalent_yaw(yaw, reference), expected, atol=1e-4)


def test_grip_rotation_is_proper():
    rotation = grip_rotation(np.array([0, 1.0, 0]), np.array([0, 0, -1.0]))
    assert np.allclose(rotation, pointing_down(0.0))


def test_box_surface_points_lie_on_the_box_and_reach_its_corners():
    half = np.array([0.01, 0.02, 0.005])
    points = box_surface_points(half)
    assert np.allclose(np.abs(points / half).max(1), 1)
    assert np.allclose(points.max(0), half) and np.allclose(points.min(0), -half)
    assert {tuple(row) for row in np.sign(points[np.all(np.isclose(np.abs(points), half), 1)])} == {
        (x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)
    }


def test_gripper_outline_turns_with_the_yaw():
    outline = gripper_outline(0.0)
    fingers = outline[outline[:, 2] < PALM_HEIGHT]
    assert np.isclose(np.abs(fingers[:, 1]).min(), HALF_OPENING)  # fingers are apart along y
    turned = gripper_outline(math.pi / 2)
    assert np.allclose(np.sort(np.abs(turned[:, 0])), np.sort(np.abs(outline[:, 1])))


def test_height_map_takes_the_highest_point_of_a_cell():
    height_map = HeightMap(0.1)
    height_map.raise_to(np.array([[0.0, 0.0, 0.3], [0.001, 0.001, 0.2], [0.1, 0.1, 0.05]]))
    probes = np.array([[0.002, 0.002, 0], [0.1, 0.1, 0], [-0.3, 0.4, 0]])
    assert np.allclose(height_map.heights_under(probes), [0.3, 0.1, 0.1])


def test_height_map_spreads_to_the_four_neighbours():
    height_map = HeightMap(0.0)
    height_map.raise_to(np.array([[0.0025, 0.0025, 0.2]]))
    height_map.spread(1)
    assert (height_map.heights == 0.2).sum() == 5
    height_map.spread(1)
    assert (height_map.heights == 0.2).sum() == 13


def test_clearance_is_negative_inside_an_obstacle():
    height_map = HeightMap(0.0)
    height_map.raise_to(np.array([[0.0, 0.0, 0.2]]))
    assert np.isclose(height_map.clearance(np.array([[0.0, 0.0, 0.15], [0.2, 0.0, 0.3]])), -0.05)


def test_highest_along_sees_only_the_corridor():
    height_map = HeightMap(0.0)
    height_map.raise_to(np.array([[0.1, 0.0, 0.2], [0.1, 0.2, 0.5]]))
    start, end = np.array([0.0, 0.0]), np.array([0.2, 0.0])
    assert np.isclose(height_map.highest_along(start, end, 0.05, floor=0.0), 0.2)
    assert np.isclose(height_map.highest_along(start, end, 0.25, floor=0.0), 0.5)
    assert np.isclose(height_map.highest_along(start, end - [0.15, 0], 0.02, floor=0.01), 0.01)


def test_points_outside_the_window_count_as_on_its_border():
    rows, columns = HeightMap.cells_of(np.array([[-9.0, 9.0]]))
    assert (rows[0], columns[0]) == (0, 259)


def test_cells_above_gives_cell_centres():
    height_map = HeightMap(0.0)
    height_map.raise_to(np.array([[0.1, -0.2, 0.3]]))
    (centre,) = height_map.cells_above(0.2)
    assert np.abs(centre - [0.1, -0.2]).max() <= CELL / 2 + 1e-9
