"""Leaves out of a picture what lies outside the camera's view, before it is drawn: the same picture, sooner.

MuJoCo draws every visible geometry, wherever it is, and on a processor the time goes with the number of faces. The
wrist camera sees nothing of the arm that carries it: two fifths of all faces. The picture does not change in any bit,
because LIBERO's lights cast no shadows; where one does, everything is drawn.

Shape legend: `G` geoms.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # importing MuJoCo for real needs the renderer to be chosen first: `libero_setup.import_libero`
    import mujoco

HIDDEN_GROUP = 0  # robosuite's group of collision geometry, which is not drawn
PLANE, HEIGHT_FIELD, BOX = 0, 1, 6  # mujoco.mjtGeom
MARGIN = 1.02  # of the tangent of half the field of view
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


@contextmanager
def only_in_view(model: "mujoco.MjModel", data: "mujoco.MjData", camera: int) -> Iterator[None]:
    """Hide, for the time of a `with` block, the geoms that a square picture of a camera cannot show.

    Args:
        model (`mujoco.MjModel`): the model.
        data (`mujoco.MjData`): its state, with body and camera poses up to date.
        camera (`int`): MuJoCo camera id.

    Yields:
        `None`.
    """
    groups = model.geom_group.copy()
    model.geom_group[~geoms_in_view(model, data, camera)] = HIDDEN_GROUP
    try:
        yield
    finally:
        model.geom_group[:] = groups


def geoms_in_view(model: "mujoco.MjModel", data: "mujoco.MjData", camera: int) -> np.ndarray:
    """Say which geoms may show in a square picture, themselves or in a mirror.

    Args:
        model (`mujoco.MjModel`): the model.
        data (`mujoco.MjData`): its state, with body and camera poses up to date.
        camera (`int`): MuJoCo camera id.

    Returns:
        `np.ndarray` of shape `(G,)`: `bool`; geoms whose bounding box touches the view, or is mirrored into it by a
        plane or the upper face of a box that is in view. What has no bounds (planes, height fields) is always in view.
    """
    if model.light_castshadow.any():  # the shadow of what is out of view may fall into it
        return np.ones(model.ngeom, dtype=bool)
    in_box = _CORNERS * model.geom_aabb[:, None, 3:] + model.geom_aabb[:, None, :3]
    corners = np.einsum("gij,gkj->gki", data.geom_xmat.reshape(-1, 3, 3), in_box) + data.geom_xpos[:, None]
    shown = _touch_view(corners, model, data, camera) | np.isin(model.geom_type, (PLANE, HEIGHT_FIELD))
    materials = model.geom_matid
    reflects = (materials >= 0) & (model.mat_reflectance[materials] > 0) if model.nmat else np.zeros(len(shown), bool)
    mirrors = np.flatnonzero(shown & reflects & np.isin(model.geom_type, (PLANE, BOX)))
    for mirror in mirrors:
        normal = data.geom_xmat[mirror].reshape(3, 3)[:, 2]
        height = model.geom_size[mirror, 2] if model.geom_type[mirror] == BOX else 0.0
        distances = (corners - data.geom_xpos[mirror] - normal * height) @ normal
        shown |= _touch_view(corners - 2 * distances[..., None] * normal, model, data, camera)
    return shown


def _touch_view(corners: np.ndarray, model: "mujoco.MjModel", data: "mujoco.MjData", camera: int) -> np.ndarray:
    """Whether boxes given by corners `(G, 8, 3)` touch a camera's pyramid of view; may say yes to some that do not."""
    seen = (corners - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)
    across, up, ahead = seen[..., 0], seen[..., 1], -seen[..., 2]
    edge = ahead * np.tan(np.radians(model.cam_fovy[camera]) / 2) * MARGIN
    beyond = [across > edge, across < -edge, up > edge, up < -edge, ahead < 0]
    return ~np.any([side.all(axis=1) for side in beyond], axis=0)
