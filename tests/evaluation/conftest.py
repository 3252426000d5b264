"""Simulator tests are skipped where LIBERO is not installed; a fake scene for the expert's pure parts."""

import importlib.util

import numpy as np
import pytest

from evaluation.expert_geometry import HeightMap, box_surface_points


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("libero") is not None:
        return
    skip = pytest.mark.skip(reason="LIBERO is not installed: pip install 'worldvla[libero]'")
    for item in items:
        if item.get_closest_marker("libero"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def stored():
    """Two made-up episodes by name: upright pixels `(T, 32, 32, 3)` and commands `(T, 7)`."""
    generator = np.random.default_rng(0)
    return {
        name: (
            generator.integers(0, 256, (steps, 32, 32, 3), dtype=np.uint8),
            generator.uniform(-1, 1, (steps, 7)).astype(np.float32),
        )
        for name, steps in {"demo_0": 6, "demo_1": 4}.items()
    }


class BoxScene:
    """A table at height 0 with boxes on it, and a hand that goes wherever it is sent; stands in for `Scene`."""

    table_height = 0.0
    grip_yaw = 0.0
    finger_opening = 0.0

    def __init__(self, **boxes):
        """Each box is (centre, half extents), in metres."""
        self.boxes = {name: (np.array(centre, float), np.array(half, float)) for name, (centre, half) in boxes.items()}
        self.base_position = np.array([-0.6, 0.0, 0.0])
        self.grip_position = np.array([-0.2, 0.0, 0.3])
        self.grip_rotation = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]])

    def points_of(self, name):
        centre, half = self.boxes[name]
        return box_surface_points(half) + centre

    def position_of(self, name):
        return self.boxes[name][0].copy()

    def height_map(self, exclude=(), spread=1, obstacles=None):
        height_map = HeightMap(self.table_height)
        for name in self.boxes:
            if name not in exclude:
                height_map.raise_to(self.points_of(name))
        if obstacles is not None:
            height_map.raise_to(obstacles)
        height_map.spread(spread)
        return height_map


@pytest.fixture
def box_scene():
    return BoxScene
