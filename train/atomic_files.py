"""Files and folders that are complete or absent: written under a temporary name, then renamed."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary name and rename it.

    Args:
        path (`Path`): final name; an older file is replaced.
        content (`Any`): what `json` can write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that gets its final name only when the block ends without an error.

    Args:
        path (`Path`): final name; an older folder is replaced.

    Yields:
        `Path`: the temporary folder, beside the final one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Wait until every file of a folder, and its list of names, has reached the disk.

    Args:
        folder (`Path`): written to the end; its subfolders are included.

    Raises:
        OSError: if the disk does not take a file, which may show only now.
    """
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, has reached the disk.

    Args:
        path (`Path`): a file or a folder.

    Raises:
        OSError: if the disk does not take it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems write names at once
            raise
    finally:
        os.close(descriptor)
