"""Checkpoints of a VQ-GAN run: complete or absent, and only continued with the settings they were started with."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

SETTINGS = "settings.json"


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Find the newest complete checkpoint.

    Args:
        folder (`Path`): the run's folder.

    Returns:
        `tuple[Path, int]` or None: the checkpoint and its step.
    """
    found = [(int(path.name.removeprefix("step-")), path) for path in folder.glob("step-*")]
    return (max(found)[1], max(found)[0]) if found else None


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Write a checkpoint under a temporary name, rename it, and only then drop older ones.

    Args:
        accelerator (`Accelerator`): holds everything that a run continues from.
        folder (`Path`): the run's folder.
        step (`int`): optimizer steps done.
    """
    temporary = folder / f".step-{step}"
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        temporary.rename(folder / f"step-{step}")
        for older in folder.glob("step-*"):
            if older.name != f"step-{step}":
                shutil.rmtree(older)
    accelerator.wait_for_everyone()


def check_settings(settings: Mapping[str, Any], defaults: Mapping[str, Any], output: Path) -> None:
    """Refuse to continue a run that was started with other settings.

    An option that did not exist when the run was started counts as left at its default.

    Args:
        settings (`Mapping[str, Any]`): options by name, as JSON can hold them.
        defaults (`Mapping[str, Any]`): their defaults.
        output (`Path`): the run's folder.

    Raises:
        ValueError: names the settings that changed.
    """
    path = output / SETTINGS
    if path.exists():
        before = {**defaults, **json.loads(path.read_text("utf-8"))}
        changed = [
            f"{key}: {before.get(key)} -> {value}" for key, value in settings.items() if before.get(key) != value
        ]
        if changed:
            raise ValueError(
                f"`{output}` holds a run with other settings ({'; '.join(changed)}). "
                "Choose another `--output_dir`, or delete this one."
            )
