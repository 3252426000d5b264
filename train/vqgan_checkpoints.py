"""Checkpoints of a VQ-GAN run: complete or absent."""

import shutil
from pathlib import Path

from accelerate import Accelerator


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
