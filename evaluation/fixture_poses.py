"""Where cabinets, stoves and racks stand: no part of a simulator state, and moved by every reset.

LIBERO's own demonstration files hold the whole scene of each episode as XML; of it only these poses are taken, so that
neither its paths nor its age matter. A pose is seven numbers: position in metres, then a quaternion w x y z.
"""

import json
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np

from evaluation.libero_setup import choose

MODEL_FILE = "model_file"  # LIBERO's attribute of an episode: the scene as XML
FIXTURE_POSES = "fixture_poses"  # ours: the poses as JSON


def _bodies(domain: Any) -> dict[str, int]:
    """Number of the body of each fixture that has one."""
    model = domain.sim.model._model
    numbers = {model.body(number).name: number for number in range(model.nbody)}
    return {name: numbers[fixture.root_body] for name, fixture in domain.fixtures_dict.items()
            if getattr(fixture, "root_body", None) in numbers}  # fmt: skip


def current_fixture_poses(domain: Any) -> dict[str, list[float]]:
    """Where the fixtures stand now.

    Args:
        domain (robosuite environment): the scene.

    Returns:
        `dict[str, list[float]]`: pose by LIBERO's name of the fixture; empty where a task has none.
    """
    model = domain.sim.model._model
    return {
        name: [*model.body_pos[number].tolist(), *model.body_quat[number].tolist()]
        for name, number in _bodies(domain).items()
    }


def read_fixture_poses(attributes: Mapping[str, Any], domain: Any) -> dict[str, list[float]] | None:
    """Where the fixtures stood in a recorded episode, as its file says.

    Args:
        attributes (`Mapping`): of the episode's group.
        domain (robosuite environment): the scene of the task.

    Returns:
        `dict[str, list[float]]`: pose by name, or `None` where the file does not say.

    Raises:
        ValueError: if what the file says is damaged or of another task.
    """
    if FIXTURE_POSES in attributes:
        return json.loads(attributes[FIXTURE_POSES])
    if MODEL_FILE not in attributes:
        return None
    try:
        scene = ElementTree.fromstring(attributes[MODEL_FILE])
    except ElementTree.ParseError as error:
        raise ValueError(
            f"The attribute `{MODEL_FILE}` is no XML ({error}). Record or download the file again."
        ) from error
    bodies = {body.get("name"): body for body in scene.iter("body")}
    poses = {}
    for name in _bodies(domain):
        body = bodies.get(domain.fixtures_dict[name].root_body)
        if body is None:
            raise ValueError(
                f"The attribute `{MODEL_FILE}` knows no fixture `{name}`. The episode belongs to another task."
            )
        poses[name] = _pose_of(body)
    return poses


def _pose_of(body: ElementTree.Element) -> list[float]:
    position = np.array((body.get("pos") or "0 0 0").split(), dtype=float)
    quaternion = np.array((body.get("quat") or "1 0 0 0").split(), dtype=float)
    return [*position.tolist(), *(quaternion / np.linalg.norm(quaternion)).tolist()]


def place_fixtures(domain: Any, poses: Mapping[str, list[float]]) -> None:
    """Put the fixtures where they stood; the next reset moves them again.

    Args:
        domain (robosuite environment): the scene.
        poses (`Mapping[str, list[float]]`): pose by name.

    Raises:
        ValueError: if the scene has no such fixture; names the nearest.
    """
    model, bodies = domain.sim.model._model, _bodies(domain)
    for name, pose in poses.items():
        choose("fixture", name, tuple(bodies))
        model.body_pos[bodies[name]], model.body_quat[bodies[name]] = pose[:3], pose[3:]
    domain.sim.forward()
