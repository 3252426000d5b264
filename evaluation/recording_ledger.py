"""Keeps the books of a recording: what is wanted, which attempts are finished, which file is complete.

Everything is on disk, so that a recording can be interrupted at any moment: finished episodes and the outcome of every
attempt wait in `<out>/.recording/<task name>/` until the task has all its episodes.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.atomic_files import write_json
from evaluation.demonstration_files import join_episodes, read_recorder_settings
from evaluation.expert_variation import Variation
from evaluation.libero_setup import LiberoTask


@dataclass(frozen=True)
class RecordingSettings:
    """What decides the contents of a task's file.

    Attributes:
        suite (`str`): LIBERO suite.
        episodes (`int`): successful episodes wanted per task.
        placements (`str`): `random`, or `benchmark` for the benchmark states with the seeds' numbers.
        first_seed (`int`): seed of the first attempt.
        max_attempts (`int`): attempts per task after which its file is written with what there is.
        cameras (`tuple[str, ...]`): cameras to record.
        image_size (`int`): pixels, height and width.
        picture_stride (`int`): pictures are recorded of every n-th step; 1 for training policies.
        segmentation (`bool`): whether to record, for each picture, what is seen in each pixel.
        variation (`Variation`): how much episodes vary.
    """

    suite: str
    episodes: int
    placements: str
    first_seed: int
    max_attempts: int
    cameras: tuple[str, ...]
    image_size: int
    picture_stride: int = 1
    segmentation: bool = False
    variation: Variation = Variation()


@dataclass(frozen=True)
class Attempt:
    """How one attempt ended.

    Attributes:
        success (`bool`): whether the goal was reached within the step limit.
        num_steps (`int`): steps taken.
        error (`str`, *optional*): what stopped the expert, where it failed with an exception.
    """

    success: bool
    num_steps: int
    error: str | None = None


_DEFAULTS = {
    entry.name: asdict(entry.default) if isinstance(entry.default, Variation) else entry.default
    for entry in fields(RecordingSettings)
    if entry.default is not MISSING
}


class TaskLedger:
    """The attempts of one task: which are finished, which are under way, which comes next.

    Args:
        task (`LiberoTask`): the task.
        settings (`RecordingSettings`): what is wanted.
        out (`Path`): folder of the demonstration files.
    """

    def __init__(self, task: LiberoTask, settings: RecordingSettings, out: Path):
        self.task = task
        self.settings = settings
        self.path = out / f"{task.name}_demo.hdf5"
        self.folder = out / ".recording" / task.name
        self.attempts: dict[int, Attempt] = {}
        self.under_way: set[int] = set()
        self.is_written = False
        self._find_previous_work()

    def _note(self) -> dict[str, Any]:
        """The settings as they are kept in files."""
        return json.loads(json.dumps({"task_id": self.task.task_id, **asdict(self.settings)}))

    def _find_previous_work(self) -> None:
        for leftover in self.path.parent.glob(f".{self.path.name}.*"):
            leftover.unlink()
        if self.path.exists():
            note = read_recorder_settings(self.path)
            self._require_same_settings(self.path, note)
            self.is_written = True
            self._load_attempts((note or {})["attempts"])
            self._remove_parts()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        note_file = self.folder / "settings.json"
        if note_file.exists():
            self._require_same_settings(self.folder, json.loads(note_file.read_text()))
        else:
            write_json(note_file, self._note())
        for file in self.folder.glob("attempt_*.json"):
            self._load_attempts([json.loads(file.read_text())])

    def _load_attempts(self, notes: list[dict[str, Any]]) -> None:
        for note in notes:
            attempt = Attempt(note["success"], note["num_steps"], note.get("error"))
            if self.is_written or not attempt.success or self.part_of(note["seed"]).exists():
                self.attempts[note["seed"]] = attempt

    def _require_same_settings(self, path: Path, found: dict[str, Any] | None) -> None:
        if found is None:
            raise ValueError(
                f"`{path}` exists and was not written by this recorder. Choose another `--out` or remove it."
            )
        wanted = self._note()
        found = {**_DEFAULTS, **found}  # files of before an option existed
        differences = [f"{key} {found.get(key)!r} there, {value!r} asked for" for key, value in wanted.items()
                       if found.get(key) != value]  # fmt: skip
        if differences:
            raise ValueError(
                f"`{path}` was recorded with other settings: {'; '.join(differences)}. "
                "Give the same settings to go on, choose another `--out`, or remove it."
            )

    @property
    def successes(self) -> list[int]:
        """Successful seeds, ascending."""
        return sorted(seed for seed, attempt in self.attempts.items() if attempt.success)

    @property
    def missing(self) -> int:
        """How many further successes are wanted."""
        return max(0, self.settings.episodes - len(self.successes))

    def next_seed(self) -> int | None:
        """The seed to try now; None where nothing is left to start.

        No more attempts are under way than successes are missing: otherwise which seeds are kept would depend on the
        number of processes.
        """
        if self.is_written or len(self.under_way) >= self.missing:
            return None
        first = self.settings.first_seed
        tried = self.attempts.keys() | self.under_way
        seeds = range(first, first + self.settings.max_attempts)
        return next((seed for seed in seeds if seed not in tried), None)

    @property
    def is_complete(self) -> bool:
        """Whether no attempt is left to be made."""
        return not self.under_way and self.next_seed() is None

    def part_of(self, seed: int) -> Path:
        """File of one successful episode."""
        return self.folder / f"episode_{seed:06d}.hdf5"

    def finish(self, seed: int, attempt: Attempt) -> None:
        """Note how an attempt ended; the episode's file must be in place before."""
        self.under_way.discard(seed)
        self.attempts[seed] = attempt
        write_json(self.folder / f"attempt_{seed:06d}.json", {"seed": seed, **asdict(attempt)})

    def write(self) -> None:
        """Join the successful episodes into the task's file, if there are any; finished episodes are then removed."""
        if not self.is_written and self.successes:
            attempts = [{"seed": seed, **asdict(self.attempts[seed])} for seed in sorted(self.attempts)]
            note = {**self._note(), "attempts": attempts}
            join_episodes(self.path, [self.part_of(seed) for seed in self.successes], self.task, note)
            self.is_written = True
        if self.is_written:
            self._remove_parts()

    def _remove_parts(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.exists() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def summarise(ledgers: Sequence[TaskLedger]) -> list[dict[str, Any]]:
    """Numbers of each task.

    Args:
        ledgers (`Sequence[TaskLedger]`): the tasks, after `record`.

    Returns:
        `list[dict]`: task id, name, instruction, attempts, successes, wanted episodes, mean steps of the successes,
        the seeds that failed and what stopped the expert there, the file (None where nothing succeeded).
    """
    rows = []
    for ledger in ledgers:
        lengths = [ledger.attempts[seed].num_steps for seed in ledger.successes]
        rows.append(
            {
                "suite": ledger.task.suite,
                "task_id": ledger.task.task_id,
                "name": ledger.task.name,
                "instruction": ledger.task.instruction,
                "attempts": len(ledger.attempts),
                "successes": len(lengths),
                "episodes": ledger.settings.episodes,
                "mean_steps": round(float(np.mean(lengths)), 1) if lengths else None,
                "errors": {seed: attempt.error for seed, attempt in ledger.attempts.items() if attempt.error},
                "failed_seeds": sorted(set(ledger.attempts) - set(ledger.successes)),
                "file": ledger.path.name if ledger.is_written else None,
            }
        )
    return rows
