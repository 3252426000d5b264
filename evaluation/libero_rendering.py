"""Pictures and segmentation masks of a LIBERO scene, upright.

Shape legend: `H`, `W` pixels of a frame.
"""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from evaluation.libero_setup import RENDERER_HELP, choose
from evaluation.view_culling import only_in_view

# Our names of the cameras and LIBERO's names in the simulator.
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
BACKGROUND, ROBOT, GRIPPER = "background", "robot", "gripper"


def render_picture(domain: Any, camera: str, image_size: int) -> np.ndarray:
    """Render one camera.

    Args:
        domain (robosuite environment): the scene as it is now.
        camera (`str`): `agentview` or `wrist`.
        image_size (`int`): height and width in pixels.

    Returns:
        `np.ndarray` of shape `(H, W, 3)`: `uint8`, upright (MuJoCo's picture turned by 180 degrees).

    Raises:
        ValueError: if the camera is unknown.
        ImportError: if the renderer does not start; the message says what to install.
    """
    _start(domain, camera)
    with _only_in_view(domain, camera):
        frame = domain.sim.render(camera_name=CAMERAS[camera], width=image_size, height=image_size)
    return np.ascontiguousarray(frame[::-1, ::-1])


def render_segmentation(domain: Any, camera: str, image_size: int) -> np.ndarray:
    """Say for each pixel of a camera what is seen there.

    Args:
        domain (robosuite environment): the scene as it is now.
        camera (`str`): `agentview` or `wrist`.
        image_size (`int`): height and width in pixels.

    Returns:
        `np.ndarray` of shape `(H, W)`: `uint8`, upright, an index into `segmentation_names(domain)`.

    Raises:
        ValueError: if the camera is unknown.
        ImportError: if the renderer does not start; the message says what to install.
    """
    context = _start(domain, camera)
    sites = context.vopt.sitegroup.copy()
    context.vopt.sitegroup[:] = 0  # invisible markers of regions would hide what lies in them
    try:
        with _only_in_view(domain, camera):
            seen = domain.sim.render(
                camera_name=CAMERAS[camera], width=image_size, height=image_size, segmentation=True
            )  # object type and number of each pixel; sky is -1
    finally:
        context.vopt.sitegroup[:] = sites
    classes = _geom_classes(domain)
    geoms = np.where(seen[..., 1] >= 0, seen[..., 1], len(classes) - 1)
    return np.ascontiguousarray(classes[geoms][::-1, ::-1])


def segmentation_names(domain: Any) -> tuple[str, ...]:
    """What the numbers in a segmentation mask stand for.

    Args:
        domain (robosuite environment): the scene.

    Returns:
        `tuple[str, ...]`: `background`, `robot`, `gripper`, then LIBERO's names of the objects and fixtures, sorted.
    """
    return (BACKGROUND, ROBOT, GRIPPER, *sorted([*domain.objects_dict, *domain.fixtures_dict]))


def objects_of_interest(domain: Any) -> tuple[str, ...]:
    """The objects and fixtures that the task is about.

    Args:
        domain (robosuite environment): the scene.

    Returns:
        `tuple[str, ...]`: names among `segmentation_names`; a region of a fixture counts as the fixture.
    """
    names = segmentation_names(domain)
    owners = [max((name for name in names if wanted.startswith(name)), key=len, default=None)
              for wanted in domain.obj_of_interest]  # fmt: skip
    return tuple(dict.fromkeys(owner for owner in owners if owner is not None))


def _only_in_view(domain: Any, camera: str) -> AbstractContextManager[None]:
    model, data = domain.sim.model._model, domain.sim.data._data
    return only_in_view(model, data, model.camera(CAMERAS[camera]).id)


def _geom_classes(domain: Any) -> np.ndarray:
    """Index into `segmentation_names` of each geometry, and of the sky at the end."""
    names = segmentation_names(domain)
    classes = np.zeros(domain.sim.model.ngeom + 1, np.uint8)
    for geom, instance in domain.model.geom_ids_to_instances.items():
        if instance in names:
            classes[geom] = names.index(instance)
        elif "Gripper" in instance:
            classes[geom] = names.index(GRIPPER)
        elif "Panda" in instance:
            classes[geom] = names.index(ROBOT)
    return classes


def _start(domain: Any, camera: str) -> Any:
    """The renderer of the present simulation, started when it is first needed."""
    choose("camera", camera, tuple(CAMERAS))
    if domain.sim._render_context_offscreen is None:
        _make_context(domain)
    context = domain.sim._render_context_offscreen
    context.gl_ctx.make_current()
    return context


def _make_context(domain: Any) -> None:
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    try:
        context = MjRenderContextOffscreen(domain.sim, device_id=-1)
    except Exception as error:
        raise ImportError(f"The headless renderer does not start ({error}). {RENDERER_HELP}") from error
    context.vopt.geomgroup[0] = 0  # collision geometry
    context.vopt.geomgroup[1] = 1  # what is to be seen
