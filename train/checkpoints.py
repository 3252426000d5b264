"""Checkpoint folders of a run: complete or absent, never in between.

A checkpoint is written into `_unfinished/`, closed with a manifest of its files, flushed to the disk, and then
renamed to `checkpoint-<step>`. What carries no manifest, or differs from it, was not finished and is passed over.
"""

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from train.atomic_files import flush, flush_folder, write_json

logger = logging.getLogger("worldvla.train")

MANIFEST = "complete.json"
UNFINISHED = "_unfinished"  # names that begin so are never uploaded
_REPLACED, _DISCARDED = "_replaced-", "_discarded-"
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def checkpoint_name(step: int) -> str:
    """The folder's name of the checkpoint after so many optimizer steps.

    Args:
        step (`int`): optimizer steps done.

    Returns:
        `str`: as transformers names it.
    """
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def publish_checkpoint(written: Path, final: Path, step: int) -> None:
    """Close a checkpoint with its manifest and give it its final name.

    Args:
        written (`Path`): every file is there, on the same disk as `final`.
        final (`Path`): its name from now on; an older checkpoint of this name is replaced.
        step (`int`): optimizer steps done.

    Raises:
        OSError: if the disk does not take it; `final` is as before.
    """
    write_json(written / MANIFEST, {"step": step, "files": _sizes(written)})
    flush_folder(written)
    replaced = final.with_name(_REPLACED + final.name)
    if final.exists():
        final.rename(replaced)
    written.rename(final)
    flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def what_is_missing(checkpoint: Path) -> str | None:
    """Say why a checkpoint is not complete.

    Args:
        checkpoint (`Path`): its folder.

    Returns:
        `str` or None: the reason; None for a complete one.
    """
    path = checkpoint / MANIFEST
    if not path.is_file():
        return f"no {MANIFEST}, so writing it did not end"
    expected = json.loads(path.read_text("utf-8"))["files"]
    found = _sizes(checkpoint)
    for name, size in expected.items():
        if name not in found:
            return f"`{name}` is missing"
        if found[name] != size:
            return f"`{name}` has {found[name]} bytes instead of {size}"
    return None


def list_checkpoints(output: Path) -> list[tuple[int, Path]]:
    """Find the complete checkpoints of a run; what is not complete is named in the log.

    Args:
        output (`Path`): the run's folder; it may not exist yet.

    Returns:
        `list[tuple[int, Path]]`: steps done and folder, oldest first.
    """
    found = []
    for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        name = _NAME.fullmatch(path.name)
        if name is None or not path.is_dir():
            continue
        if reason := what_is_missing(path):
            logger.warning("Checkpoint `%s` is passed over: %s.", path, reason)
        else:
            found.append((int(name[1]), path))
    return sorted(found)


def drop_old_checkpoints(output: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest complete checkpoints; the newest and the best one always stay.

    Args:
        output (`Path`): the run's folder.
        limit (`int` or None): how many are kept; None or 0 keeps all.
        best (`str` or None): folder of the best one.
    """
    checkpoints = [path for _, path in list_checkpoints(output)]
    spared = {path.name for path in checkpoints[-1:]} | ({Path(best).name} if best else set())
    excess = len(checkpoints) - max(limit, len(spared)) if limit else 0
    for path in [path for path in checkpoints if path.name not in spared][: max(0, excess)]:
        discarded = path.with_name(_DISCARDED + path.name)
        path.rename(discarded)  # a checkpoint that is half deleted must not look like one
        shutil.rmtree(discarded, ignore_errors=True)


@contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Keep every other run out of a folder, and put right what a kill left behind in it.

    Half written, half replaced and half deleted checkpoints are removed or get their name back.

    Args:
        output (`Path`): the run's folder; it is made when missing.

    Raises:
        RuntimeError: if another process is writing there.
    """
    output.mkdir(parents=True, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed process loses it: nothing is left to clean up
    except BlockingIOError:
        os.close(folder)
        raise RuntimeError(
            f"Another process is training into `{output}`. Wait until it has ended, or choose another `--output_dir`."
        ) from None
    except OSError as error:  # some network file systems know no locks
        logger.warning("`%s` cannot be locked (%s): nobody else may train into it now.", output, error)
    try:
        _clear_leftovers(output)
        yield
    finally:
        os.close(folder)


def _clear_leftovers(output: Path) -> None:
    for replaced in output.glob(f"{_REPLACED}*"):
        final = output / replaced.name.removeprefix(_REPLACED)
        if not final.exists():
            replaced.rename(final)
    for pattern in (UNFINISHED, f"{_REPLACED}*", f"{_DISCARDED}*"):
        for leftover in output.glob(pattern):
            shutil.rmtree(leftover)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, the manifest aside."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
