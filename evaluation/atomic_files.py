"""Files that are complete or absent: written under a temporary name, then renamed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let a function write a file under a temporary name, then move it to its place.

    Args:
        path (`Path`): the final name; its folder must exist. An older file is replaced.
        write (`Callable`): receives the temporary path, which ends as the final one does.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write a text file as `write_atomically` does.

    Args:
        path (`Path`): the final name.
        content (`str`): UTF-8 text.
    """
    write_atomically(path, lambda temporary: Path.write_text(temporary, content, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as `write_atomically` does.

    Args:
        path (`Path`): the final name.
        content (`Any`): what `json` can write.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")
