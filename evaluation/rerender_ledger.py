"""Keeps the books of rendering demonstration files anew: what is wanted, what is finished. Loads no torch.

Finished episodes, and notes of those that failed, wait in `<out>/.rerendering/<file>/` until the whole file is done.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.atomic_files import write_json
from evaluation.demonstration_files import join_episodes, read_recorder_settings
from evaluation.libero_setup import SUITES, LiberoTask, choose, list_tasks
from evaluation.recorded_actions import RecordedTask, hash_file, read_recorded_actions
from evaluation.rerendering import EpisodeJob, RerenderSettings


def find_task_named(name: str) -> LiberoTask:
    """Find a task by LIBERO's name of it.

    Args:
        name (`str`): such as `put_the_bowl_on_the_plate`.

    Returns:
        `LiberoTask`.

    Raises:
        ValueError: if no suite has it; names the nearest.
    """
    tasks = {task.name: task for suite in SUITES for task in list_tasks(suite)}
    choose("LIBERO task", name, tuple(tasks))
    return tasks[name]


class FileLedger:
    """One demonstration file: which of its episodes are rendered, which are left.

    Args:
        recorded (`RecordedTask`): what the file holds.
        task (`LiberoTask`): the task.
        settings (`RerenderSettings`): what is wanted.
        out (`Path`): folder of the new files.
        find_noops (`Callable`): the rule for no-ops, on an array of actions.

    Raises:
        ValueError: if the new file, or a part of it, was made from another file or with other settings.
    """

    def __init__(
        self,
        recorded: RecordedTask,
        task: LiberoTask,
        settings: RerenderSettings,
        out: Path,
        find_noops: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.recorded = recorded
        self.task = task
        self.settings = settings
        self.path = out / recorded.path.name
        self.folder = out / ".rerendering" / recorded.path.stem
        self.kept = {
            one.number: tuple(np.flatnonzero(~find_noops(one.actions)).tolist())
            if settings.drop_noops
            else tuple(range(len(one.actions)))
            for one in recorded.demonstrations
        }
        self.steps: dict[int, int | None] = {}
        self._find_previous_work()

    def _note(self) -> dict[str, Any]:
        """What decides the new file."""
        return json.loads(json.dumps({**asdict(self.settings), "source_sha256": hash_file(self.recorded.path)}))

    def _find_previous_work(self) -> None:
        if self.path.exists():
            found = read_recorder_settings(self.path) or {}
            self._require_same(self.path, found.get("rerendered"))
            self.steps = {int(number): steps for number, steps in found["steps"].items()}
            self._remove_parts()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "settings.json"
        if settings.exists():
            self._require_same(settings, json.loads(settings.read_text("utf-8")))
        else:
            write_json(settings, self._note())
        for number in self.kept:
            note = self._outcome(number)
            if note.exists():
                steps = json.loads(note.read_text("utf-8"))
                if steps is None or self.part_of(number).exists():
                    self.steps[number] = steps

    def _require_same(self, path: Path, found: dict[str, Any] | None) -> None:
        if found is None:
            raise ValueError(f"`{path}` exists and was not rendered here. Choose another `--out` or remove it.")
        wanted = self._note()
        changed = [f"{key} {found.get(key)!r} there, {wanted[key]!r} asked for" for key in wanted
                   if found.get(key) != wanted[key]]  # fmt: skip
        if changed:
            raise ValueError(
                f"`{path}` was made otherwise: {'; '.join(changed)}. Give the same files and options to go on, choose "
                "another `--out`, or remove it."
            )

    def part_of(self, number: int) -> Path:
        """The file of one finished episode."""
        return self.folder / f"episode_{number:06d}.hdf5"

    def _outcome(self, number: int) -> Path:
        return self.folder / f"outcome_{number:06d}.json"

    def open_jobs(self) -> list[EpisodeJob]:
        """The episodes that are not finished, in order.

        An episode of nothing but no-ops cannot be replayed: it counts as failed at once.
        """
        for number, kept in self.kept.items():
            if number not in self.steps and not kept:
                self.finish(number, None)
        return [
            EpisodeJob(self.recorded.path, number, self.task, kept, self.part_of(number))
            for number, kept in self.kept.items()
            if number not in self.steps
        ]

    def finish(self, number: int, steps: int | None) -> None:
        """Note that an episode is finished.

        Args:
            number (`int`): which.
            steps (`int`, *optional*): its steps; None where replaying it did not reach the goal.
        """
        write_json(self._outcome(number), steps)
        self.steps[number] = steps

    @property
    def successes(self) -> list[int]:
        """Episodes that the new file holds, in order."""
        return sorted(number for number, steps in self.steps.items() if steps is not None)

    def write_if_complete(self) -> bool:
        """Join the episodes when all are finished; whether there is a file then."""
        if self.path.exists() or len(self.steps) < len(self.kept) or not self.successes:
            return self.path.exists()
        note = {
            "rerendered": self._note(),
            "steps": {str(number): self.steps[number] for number in sorted(self.steps)},
            "variation": asdict(self.recorded.variation),
            "image_size": self.settings.image_size,
        }
        join_episodes(self.path, [self.part_of(number) for number in self.successes], self.task, note)
        self._remove_parts()
        return True

    def _remove_parts(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.exists() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def summary(self) -> dict[str, Any]:
        """Numbers of the file.

        Returns:
            `dict`: file, task, episodes, how many are kept, which failed, steps before and after, file that was
            written (None where no replay succeeded).
        """
        lengths = {one.number: len(one.actions) for one in self.recorded.demonstrations}
        return {
            "file": self.path.name if self.path.exists() else None,
            "source": self.recorded.path.name,
            "suite": self.task.suite,
            "task_id": self.task.task_id,
            "episodes": len(self.kept),
            "kept": len(self.successes),
            "failed": sorted(set(self.steps) - set(self.successes)),
            "steps_before": sum(lengths.values()),
            "dropped_noops": sum(lengths[number] - len(kept) for number, kept in self.kept.items()),
            "steps": sum(steps for steps in self.steps.values() if steps is not None),
        }


def open_file_ledgers(
    files: Sequence[Path], settings: RerenderSettings, out: Path, find_noops: Callable[[np.ndarray], np.ndarray]
) -> list[FileLedger]:
    """Check the files and find the work of earlier runs.

    Args:
        files (`Sequence[Path]`): demonstration files.
        settings (`RerenderSettings`): what is wanted.
        out (`Path`): folder of the new files.
        find_noops (`Callable`): the rule for no-ops.

    Returns:
        `list[FileLedger]`: one per file.

    Raises:
        ValueError: if a file is damaged, of no known task, would be overwritten, or was rendered otherwise before.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in files]
    for path in files:
        if path.resolve().parent == out.resolve() or names.count(path.name) > 1:
            raise ValueError(
                f"`{path}` would be overwritten, or another file of this name: new files have the names of the old "
                "ones. Choose another `--out`, or render them one after the other."
            )
    recorded = [read_recorded_actions(path) for path in files]
    return [FileLedger(one, find_task_named(one.task_name), settings, out, find_noops) for one in recorded]
