"""The stages of a demo: commands that a user could type, run in the checkout one after another.

What is finished is kept, what was interrupted goes on: `stages.json` in the folder of the demo remembers the commands,
which of them are done, how long they took and the most memory that they held.
"""

import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from evaluation.atomic_files import write_json

logger = logging.getLogger("worldvla.demo")

ROOT = Path(__file__).resolve().parents[1]
STAGES = "stages.json"
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class Stage:
    """One step of a demo.

    Attributes:
        name (`str`): its key in the record.
        title (`str`): what the user is told.
        command (`list[str]`): script and options.
        result (`Path`): folder or file that it writes.
        reads (`str`): fingerprint of what it reads that no stage before it wrote; another one starts it anew.
    """

    name: str
    title: str
    command: list[str]
    result: Path
    reads: str = ""


class PeakMemory:
    """Watches, in a thread, how much memory this process and all below it hold together; use as a context manager.

    Attributes:
        gib (`float`): the largest sum of resident memory seen, in GiB; pages that processes share count for each.
    """

    def __init__(self, every: float = 1.0) -> None:
        self.gib = 0.0
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:  # it ended between the listing and the look
                    continue
            self.gib = max(self.gib, total / 2**30)
            if self._ended.wait(self._every):
                return


class Road:
    """Takes stage after stage, and remembers the time each took.

    A stage whose command or reading changed, or that follows one whose did, starts anew: its old result is deleted.

    Args:
        output (`Path`): folder of the record `stages.json`.
        num_stages (`int`, *optional*): how many there are, where that is known before.

    Attributes:
        record (`dict`): by name of the stages taken: command, seconds (interrupted attempts included) and peak memory
            in GiB.
    """

    def __init__(self, output: Path, num_stages: int | None = None) -> None:
        self.record: dict[str, dict[str, Any]] = {}
        self._path = output / STAGES
        self._known = json.loads(self._path.read_text("utf-8")) if self._path.exists() else {}
        self._taken: list[list[str]] = []
        self._of = "" if num_stages is None else f"/{num_stages}"

    def take(self, stage: Stage) -> None:
        """Run a stage that is not done.

        Args:
            stage (`Stage`): the next one.

        Raises:
            SystemExit: with the stage's exit code when it fails.
        """
        self._taken.append([*stage.command, *([stage.reads] if stage.reads else [])])
        number = f"[{len(self._taken)}{self._of}]"
        entry = self.record[stage.name] = self._find(stage)
        if entry["done"]:
            logger.info("%s %s: done before", number, stage.title)
            return
        logger.info("%s %s\n      python %s", number, stage.title, " ".join(stage.command))
        started = time.monotonic()
        try:
            with PeakMemory() as memory:
                code = subprocess.run([sys.executable, *stage.command], cwd=ROOT, check=False).returncode
        finally:
            entry["seconds"] = round(entry["seconds"] + time.monotonic() - started, 1)
            write_json(self._path, self._known)
        if code:
            logger.error(
                "Stage `%s` failed with exit code %d; what is finished is kept. Run again to go on.", stage.name, code
            )
            raise SystemExit(code)
        entry |= {"done": True, "peak_gib": round(memory.gib, 2)}
        write_json(self._path, self._known)

    def _find(self, stage: Stage) -> dict[str, Any]:
        """The entry of a stage that was taken on the same road before, or a fresh one."""
        entry = self._known.get(stage.name, {})
        if entry.get("road") != self._taken:
            _remove(stage.result)
            fresh = {"command": stage.command, "road": list(self._taken), "seconds": 0.0, "done": False}
            entry = self._known[stage.name] = fresh
            write_json(self._path, self._known)  # if this process is killed, what the stage has by then is kept
        return entry


def open_folder(folder: str) -> Path:
    """Make the folder of a demo.

    Args:
        folder (`str`): as the user names it; it lies where the command was started, though stages run in the checkout.

    Returns:
        `Path`: the folder.
    """
    output = Path(folder)
    if Path.cwd() != ROOT:
        output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    return output


@contextmanager
def kept_when_interrupted() -> Iterator[None]:
    """Leave with a message and the shells' exit code when the user interrupts.

    Raises:
        SystemExit: with code 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("Interrupted; what is finished is kept. Run the same command again to go on.")
        raise SystemExit(INTERRUPTED) from None


def _remove(path: Path) -> None:
    """Delete a file or a folder, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
