"""Reads from demonstration files what is needed to carry their actions out again. Loads no torch.

`tokenization/demonstrations.py` reads the pictures as well; its package brings torch along, which simulator processes
do not load. Shapes: `T` steps, `S` numbers of a simulator state.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from evaluation.expert_variation import Variation
from evaluation.libero_env import ACTION_DIM


@dataclass(frozen=True)
class RecordedActions:
    """The actions of one demonstration, and where it began.

    Attributes:
        number (`int`): k of its group `demo_k`.
        seed (`int`, *optional*): seed of its reset; official files do not say.
        initial_state (`int`, *optional*): its benchmark state; None for a random placement.
        first_state (`np.ndarray` of shape `(S,)`): the simulator's state before the first action.
        actions (`np.ndarray` of shape `(T, 7)`): what was carried out.
    """

    number: int
    seed: int | None
    initial_state: int | None
    first_state: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class RecordedTask:
    """The demonstrations of one file.

    Attributes:
        path (`Path`): the file.
        task_name (`str`): LIBERO's name of the task.
        variation (`Variation`): how our recorder varied them; no variation where the file says nothing.
        demonstrations (`list[RecordedActions]`): in the order of their numbers.
    """

    path: Path
    task_name: str
    variation: Variation
    demonstrations: list[RecordedActions]


def list_files(paths: Sequence[str]) -> list[Path]:
    """List the demonstration files that a user named.

    Args:
        paths (`Sequence[str]`): HDF5 files, or folders whose `*.hdf5` files are meant.

    Returns:
        `list[Path]`: in the order given, the files of a folder by name.

    Raises:
        ValueError: if there is no HDF5 file at a path.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise ValueError(
                f"No demonstrations at `{path}`. Give HDF5 files or folders that hold them; "
                "`python evaluation/record_demonstrations.py` records some."
            )
        files += found
    return files


def hash_file(path: Path) -> str:
    """Name a file by its contents.

    Args:
        path (`Path`): the file.

    Returns:
        `str`: SHA-256.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_recorded_actions(path: Path) -> RecordedTask:
    """Read the actions of a demonstration file.

    Args:
        path (`Path`): an HDF5 file in LIBERO's layout.

    Returns:
        `RecordedTask`: what can be replayed.

    Raises:
        ValueError: if the file is damaged, incomplete or of another kind; names the key.
    """
    try:
        with h5py.File(path, "r") as file:
            data = file["data"]
            names = sorted((name for name in data if name.startswith("demo_")), key=lambda name: int(name[5:]))
            demonstrations = [_read_one(path, name, data[name]) for name in names or ["demo_0"]]
            note = json.loads(data.attrs.get("recorder", "{}"))
            return RecordedTask(path, _task_name(path, data), Variation(**note.get("variation", {})), demonstrations)
    except (OSError, KeyError) as error:
        raise ValueError(
            f"`{path}` cannot be replayed: truncated, incomplete, or no demonstration file "
            f"({type(error).__name__}: {error}). Record or download the file again."
        ) from error


def _task_name(path: Path, data: Any) -> str:
    definition = data.attrs.get("bddl_file_name")
    return Path(str(definition)).stem if definition else path.stem.removesuffix("_demo")


def _read_one(path: Path, name: str, group: Any) -> RecordedActions:
    actions = group["actions"][()].astype(float)
    states = group["states"]
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0 or not np.isfinite(actions).all():
        raise ValueError(
            f"`{path}`: `data/{name}/actions` must be finite numbers of shape (T, {ACTION_DIM}), T >= 1, got shape "
            f"{actions.shape}. Record or download the file again."
        )
    seed, initial_state = group.attrs.get("seed"), group.attrs.get("initial_state")
    return RecordedActions(
        number=int(name[5:]),
        seed=None if seed is None else int(seed),
        initial_state=None if initial_state is None or initial_state < 0 else int(initial_state),
        first_state=states[0],
        actions=actions,
    )
