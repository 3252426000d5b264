"""Pure geometry of the scripted expert: rotations, point clouds of collision boxes, the height map, the open hand.

Conventions: world frame in metres, z up; a grip rotation has the finger axis as its first column (local x), and the
approach direction as its third (local z). Shape legend: `N` points.
"""

import math
from collections.abc import Sequence

import numpy as np

CELL = 0.005  # edge of a height-map cell, metres
WINDOW_ORIGIN = (-0.75, -0.65)  # world x, y of the first cell
WINDOW_CELLS = (260, 260)
SURFACE_SPACING = 0.004  # metres between sampled surface points of a box

# The parallel gripper seen from above, relative to the grip site (measured on the Panda hand).
FINGER_HALF_DEPTH = 0.012  # half width of a finger across the finger axis
FINGER_THICKNESS = 0.028  # along the finger axis
FINGER_TIP_HEIGHT = -0.010  # lowest point of the fingers
PALM_HALF_LENGTH = 0.104  # along the finger axis
PALM_HALF_DEPTH = 0.033  # across it
PALM_HEIGHT = 0.030  # lowest point of the palm
HALF_OPENING = 0.0375  # finger pad to grip site, hand fully open


def unit(vector: np.ndarray) -> np.ndarray:
    """A vector scaled to length one.

    Args:
        vector (`np.ndarray` of shape `(n,)`): non-zero.

    Returns:
        `np.ndarray` of shape `(n,)`.
    """
    return vector / np.linalg.norm(vector)


def rotation_to_axis_angle(rotation: np.ndarray) -> np.ndarray:
    """Turn a rotation matrix into the vector axis * angle.

    Args:
        rotation (`np.ndarray` of shape `(3, 3)`): a proper rotation.

    Returns:
        `np.ndarray` of shape `(3,)`: the axis times the angle in radians, angle in [0, pi].
    """
    cosine = np.clip((np.trace(rotation) - 1) / 2, -1, 1)
    angle = math.acos(cosine)
    if angle < 1e-6:
        return np.zeros(3)
    if angle > math.pi - 1e-3:  # the antisymmetric part vanishes: take the axis from the symmetric one
        _, vectors = np.linalg.eigh((rotation + rotation.T) / 2)
        return vectors[:, -1] * angle
    antisymmetric = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    return antisymmetric / (2 * math.sin(angle)) * angle


def rotation_about(axis: Sequence[float] | np.ndarray, angle: float) -> np.ndarray:
    """Rotation matrix about an axis (Rodrigues' formula).

    Args:
        axis (`np.ndarray` of shape `(3,)`): any non-zero vector.
        angle (`float`): radians, right-handed.

    Returns:
        `np.ndarray` of shape `(3, 3)`.
    """
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def pointing_down(yaw: float) -> np.ndarray:
    """Grip rotation that approaches straight down, the finger axis turned by `yaw` from world +y.

    Args:
        yaw (`float`): radians about world z.

    Returns:
        `np.ndarray` of shape `(3, 3)`: columns are finger axis, depth axis, approach.
    """
    fingers_along_y = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]])
    return rotation_about([0, 0, 1], yaw) @ fingers_along_y


def yaw_of(rotation: np.ndarray) -> float:
    """The yaw that `pointing_down` would need to give this finger axis.

    Args:
        rotation (`np.ndarray` of shape `(3, 3)`): a grip rotation.

    Returns:
        `float`: radians in (-pi, pi].
    """
    finger_axis = rotation[:, 0]
    return math.atan2(-finger_axis[0], finger_axis[1])


def nearest_equivalent_yaw(yaw: float, reference: float) -> float:
    """The yaw of the same finger line (period pi) that is nearest to a reference.

    Args:
        yaw (`float`): radians.
        reference (`float`): radians.

    Returns:
        `float`: `yaw` plus a multiple of pi, within pi / 2 of `reference`.
    """
    return reference + ((yaw - reference + math.pi / 2) % math.pi - math.pi / 2)


def grip_rotation(finger_axis: np.ndarray, approach: np.ndarray) -> np.ndarray:
    """Grip rotation from its finger axis and its approach direction.

    Args:
        finger_axis (`np.ndarray` of shape `(3,)`): unit vector.
        approach (`np.ndarray` of shape `(3,)`): unit vector at a right angle to it.

    Returns:
        `np.ndarray` of shape `(3, 3)`.
    """
    return np.stack([finger_axis, np.cross(approach, finger_axis), approach], 1)


def box_surface_points(half_extents: np.ndarray) -> np.ndarray:
    """Sample the six faces of a box on a regular grid.

    Args:
        half_extents (`np.ndarray` of shape `(3,)`): metres.

    Returns:
        `np.ndarray` of shape `(N, 3)`: points in the box's frame, edges included.
    """
    axes = [np.linspace(-h, h, max(2, int(math.ceil(2 * h / SURFACE_SPACING)) + 1)) for h in half_extents]
    faces = []
    for normal in range(3):
        first, second = (axis for axis in range(3) if axis != normal)
        a, b = np.meshgrid(axes[first], axes[second], indexing="ij")
        for sign in (-1, 1):
            face = np.zeros((a.size, 3))
            face[:, first], face[:, second], face[:, normal] = a.ravel(), b.ravel(), sign * half_extents[normal]
            faces.append(face)
    return np.concatenate(faces)


def gripper_outline(yaw: float, half_opening: float = HALF_OPENING) -> np.ndarray:
    """Underside of the hand pointing straight down, as points relative to the grip site.

    Args:
        yaw (`float`): radians, as in `pointing_down`.
        half_opening (`float`): metres from the grip site to a finger pad.

    Returns:
        `np.ndarray` of shape `(N, 3)`: horizontal offsets and the lowest z of the hand there.
    """
    parts = []
    for side in (-1, 1):
        along, across = np.meshgrid(
            np.arange(half_opening, half_opening + FINGER_THICKNESS + 1e-6, 0.004),
            np.arange(-FINGER_HALF_DEPTH, FINGER_HALF_DEPTH + 1e-6, 0.004),
        )
        parts.append(np.stack([side * along.ravel(), across.ravel(), np.full(along.size, FINGER_TIP_HEIGHT)], 1))
    along, across = np.meshgrid(
        np.arange(-PALM_HALF_LENGTH, PALM_HALF_LENGTH + 1e-6, 0.005),
        np.arange(-PALM_HALF_DEPTH, PALM_HALF_DEPTH + 1e-6, 0.005),
    )
    parts.append(np.stack([along.ravel(), across.ravel(), np.full(along.size, PALM_HEIGHT)], 1))
    outline = np.concatenate(parts)
    rotation = pointing_down(yaw)
    horizontal = outline[:, :1] * rotation[:, 0][None, :2] + outline[:, 1:2] * rotation[:, 1][None, :2]
    return np.concatenate([horizontal, outline[:, 2:]], 1)


class HeightMap:
    """Highest obstacle over each 5 mm cell of the workspace.

    Args:
        floor (`float`): height of empty cells, metres.
    """

    def __init__(self, floor: float):
        self.heights = np.full(WINDOW_CELLS, float(floor))

    @staticmethod
    def cells_of(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cell indices of points; points outside the window count as on its border.

        Args:
            points (`np.ndarray` of shape `(N, 2)` or `(N, 3)`): world coordinates.

        Returns:
            `tuple` of two `np.ndarray` of shape `(N,)`: row (x) and column (y) indices.
        """
        rows = np.clip(((points[:, 0] - WINDOW_ORIGIN[0]) / CELL).astype(int), 0, WINDOW_CELLS[0] - 1)
        columns = np.clip(((points[:, 1] - WINDOW_ORIGIN[1]) / CELL).astype(int), 0, WINDOW_CELLS[1] - 1)
        return rows, columns

    def raise_to(self, points: np.ndarray) -> None:
        """Raise the cells under the points to the points' heights, in place.

        Args:
            points (`np.ndarray` of shape `(N, 3)`): world coordinates; may be empty.
        """
        if len(points):
            np.maximum.at(self.heights, self.cells_of(points), points[:, 2])

    def spread(self, cells: int) -> None:
        """Let every cell take the height of its highest neighbour, in place: a safety margin.

        Args:
            cells (`int`): how often; each time grows obstacles by one cell in the four directions.
        """
        for _ in range(cells):
            shifted = [np.roll(self.heights, step, axis) for step in (1, -1) for axis in (0, 1)]
            self.heights = np.maximum.reduce([self.heights, *shifted])

    def heights_under(self, points: np.ndarray) -> np.ndarray:
        """Obstacle heights under points.

        Args:
            points (`np.ndarray` of shape `(N, 3)`): world coordinates.

        Returns:
            `np.ndarray` of shape `(N,)`: metres.
        """
        return self.heights[self.cells_of(points)]

    def clearance(self, points: np.ndarray) -> float:
        """Smallest height of the points above the map (negative: they cut into something).

        Args:
            points (`np.ndarray` of shape `(N, 3)`): world coordinates.

        Returns:
            `float`: metres.
        """
        return float((points[:, 2] - self.heights_under(points)).min())

    def highest_along(self, start: np.ndarray, end: np.ndarray, half_width: float, floor: float) -> float:
        """Highest obstacle in a corridor between two places.

        Args:
            start (`np.ndarray` of shape `(2,)`): world x, y.
            end (`np.ndarray` of shape `(2,)`): world x, y.
            half_width (`float`): metres to either side.
            floor (`float`): the least value to return.

        Returns:
            `float`: metres.
        """
        highest = floor
        reach = int(half_width / CELL)
        fractions = np.linspace(0, 1, max(2, int(np.linalg.norm(end - start) / 0.01)))
        for row, column in zip(*self.cells_of(start + fractions[:, None] * (end - start)), strict=True):
            window = self.heights[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach]
            highest = max(highest, float(window.max()))
        return highest

    def cells_above(self, height: float) -> np.ndarray:
        """Centres of the cells that rise above a height.

        Args:
            height (`float`): metres.

        Returns:
            `np.ndarray` of shape `(N, 2)`: world x, y.
        """
        rows, columns = np.where(self.heights > height)
        return np.stack([WINDOW_ORIGIN[0] + (rows + 0.5) * CELL, WINDOW_ORIGIN[1] + (columns + 0.5) * CELL], 1)
