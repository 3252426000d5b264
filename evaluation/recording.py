"""Records demonstrations with the scripted expert in parallel processes; can be interrupted at any moment.

Episode k of a task is decided by the seed `first_seed + k` alone. A task's file holds its first successful seeds in
ascending order, so it does not depend on the number of processes, nor on interruptions. Finished episodes wait in
`<out>/.recording/<task name>/` until the task is complete.
"""

import json
import multiprocessing
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.demonstration_files import RecordedEpisode, join_episodes, read_recorder_settings, write_episode
from evaluation.expert import ScriptedExpert
from evaluation.libero_env import LiberoEnv
from evaluation.libero_setup import LiberoTask, find_task
from evaluation.protocol import max_steps


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
    """

    suite: str
    episodes: int
    placements: str
    first_seed: int
    max_attempts: int
    cameras: tuple[str, ...]
    image_size: int


@dataclass(frozen=True)
class Attempt:
    """How one attempt ended: whether it succeeded, in how many steps."""

    success: bool
    num_steps: int


def record_episode(
    env: LiberoEnv, seed: int, initial_state: int | None, cameras: Sequence[str]
) -> RecordedEpisode | int:
    """Let the expert try one episode without rendering, and render it afterwards if it succeeded.

    Args:
        env (`LiberoEnv`): the task, opened without cameras.
        seed (`int`): seed of the reset.
        initial_state (`int`, *optional*): benchmark state; None for a random placement.
        cameras (`Sequence[str]`): cameras to render.

    Returns:
        `RecordedEpisode` when it succeeded within the suite's step limit, else `int`: the steps it took to fail.
    """
    env.reset(initial_state=initial_state, seed=seed)
    actions, states, robot, success = [], [], [], False
    for action in ScriptedExpert(env.domain).actions():
        states.append(env.simulator_state())
        robot.append(env.robot_observation())
        actions.append(action)
        _, success, _ = env.step(action)
        if success or len(actions) >= max_steps(env.task.suite):
            break
    if not success:
        return len(actions)
    frames: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
    for state in states:
        env.set_simulator_state(state)
        for camera in cameras:
            frames[camera].append(env.render(camera))
    return RecordedEpisode(
        seed=seed,
        initial_state=-1 if initial_state is None else initial_state,
        actions=np.stack(actions),
        states=np.stack(states),
        robot={key: np.stack([step[key] for step in robot]) for key in robot[0]},
        frames={camera: np.stack(images) for camera, images in frames.items()},
    )


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
        if self.path.exists():
            note = read_recorder_settings(self.path)
            self._require_same_settings(self.path, note)
            self.is_written = True
            self._load_attempts((note or {})["attempts"])
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        note_file = self.folder / "settings.json"
        if note_file.exists():
            self._require_same_settings(self.folder, json.loads(note_file.read_text()))
        else:
            _write_json(note_file, self._note())
        for file in self.folder.glob("attempt_*.json"):
            self._load_attempts([json.loads(file.read_text())])

    def _load_attempts(self, notes: list[dict[str, Any]]) -> None:
        for note in notes:
            self.attempts[note["seed"]] = Attempt(note["success"], note["num_steps"])

    def _require_same_settings(self, path: Path, found: dict[str, Any] | None) -> None:
        if found is None:
            raise ValueError(
                f"`{path}` exists and was not written by this recorder. Choose another `--out` or remove it."
            )
        wanted = self._note()
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
        _write_json(self.folder / f"attempt_{seed:06d}.json", {"seed": seed, **asdict(attempt)})

    def write(self) -> None:
        """Join the successful episodes into the task's file, if there are any; finished episodes are then removed."""
        if not self.is_written and self.successes:
            attempts = [{"seed": seed, **asdict(self.attempts[seed])} for seed in sorted(self.attempts)]
            note = {**self._note(), "attempts": attempts}
            join_episodes(self.path, [self.part_of(seed) for seed in self.successes], self.task, note)
            self.is_written = True
        if self.is_written:
            shutil.rmtree(self.folder, ignore_errors=True)


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def _work(connection: Connection, suite: str, task_id: int, settings: RecordingSettings, folder: Path) -> None:
    """Body of a worker process: one task, one environment, one seed after another as the parent asks."""
    try:
        with LiberoEnv(suite, task_id, cameras=(), image_size=settings.image_size) as env:
            while (seed := connection.recv()) is not None:
                initial_state = seed if settings.placements == "benchmark" else None
                result = record_episode(env, seed, initial_state, settings.cameras)
                if isinstance(result, RecordedEpisode):
                    write_episode(folder / f"episode_{seed:06d}.hdf5", result)
                    attempt = Attempt(True, len(result.actions))
                else:
                    attempt = Attempt(False, result)
                connection.send((seed, attempt))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the parent is gone
    except BaseException:
        connection.send(traceback.format_exc())


class _Worker:
    """A process bound to one task."""

    def __init__(self, ledger: TaskLedger):
        context = multiprocessing.get_context("spawn")
        self.ledger = ledger
        self.connection, child = context.Pipe()
        arguments = (child, ledger.settings.suite, ledger.task.task_id, ledger.settings, ledger.folder)
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        child.close()
        self.started = time.monotonic()

    def give(self, seed: int) -> None:
        self.ledger.under_way.add(seed)
        self.connection.send(seed)

    def take(self) -> None:
        """Receive the outcome of the last seed."""
        try:
            message = self.connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(
                f"The process recording `{self.ledger.task.name}` ended with code {self.process.exitcode}. Negative "
                "codes are signals; -9 usually means out of memory (about 2.5 GB a process): lower `--num_workers`. "
                "The same command goes on where it stopped."
            ) from None
        if isinstance(message, str):
            raise RuntimeError(f"The process recording `{self.ledger.task.name}` failed:\n{message}")
        self.ledger.finish(*message)

    def dismiss(self) -> None:
        try:
            self.connection.send(None)
        except OSError:
            pass
        self.process.join(timeout=10)
        self.stop()

    def stop(self) -> None:
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def record(
    ledgers: Sequence[TaskLedger], num_workers: int, on_attempt: Callable[[TaskLedger], None] = lambda ledger: None
) -> None:
    """Record until every task has its episodes or has used up its attempts, and write the tasks' files.

    Args:
        ledgers (`Sequence[TaskLedger]`): the tasks, in the order in which to begin them.
        num_workers (`int`): processes at a time; each needs about a core and 2.5 GB.
        on_attempt (`Callable`): called with the task's ledger after each attempt, for progress.

    Raises:
        RuntimeError: if a process fails; what it had finished is kept.
    """
    workers: list[_Worker] = []
    try:
        while True:
            _write_complete(ledgers, workers)
            while len(workers) < num_workers and (ledger := _next_task(ledgers, workers)) is not None:
                workers.append(_Worker(ledger))
                workers[-1].give(_require_seed(ledger))
            if not workers:
                return
            ready = wait([worker.connection for worker in workers])
            for worker in [worker for worker in workers if worker.connection in ready]:
                worker.take()
                on_attempt(worker.ledger)
                seed = worker.ledger.next_seed()
                if seed is None:
                    workers.remove(worker)
                    worker.dismiss()
                else:
                    worker.give(seed)
    finally:
        for worker in workers:
            worker.stop()


def _require_seed(ledger: TaskLedger) -> int:
    seed = ledger.next_seed()
    if seed is None:
        raise RuntimeError(f"No attempt is left for `{ledger.task.name}`.")
    return seed


def _next_task(ledgers: Sequence[TaskLedger], workers: Sequence[_Worker]) -> TaskLedger | None:
    """The task with work to start on which the fewest processes are at work; the first of them."""
    open_tasks = [ledger for ledger in ledgers if ledger.next_seed() is not None]
    return min(open_tasks, key=lambda ledger: sum(worker.ledger is ledger for worker in workers), default=None)


def _write_complete(ledgers: Sequence[TaskLedger], workers: Sequence[_Worker]) -> None:
    for ledger in ledgers:
        if not ledger.is_written and ledger.is_complete:
            ledger.write()


def open_ledgers(settings: RecordingSettings, task_ids: Sequence[int], out: Path) -> list[TaskLedger]:
    """Check the settings against the suite and find the work of earlier runs.

    Args:
        settings (`RecordingSettings`): what is wanted.
        task_ids (`Sequence[int]`): tasks of the suite.
        out (`Path`): folder of the demonstration files.

    Returns:
        `list[TaskLedger]`: one per task.

    Raises:
        ValueError: if a task does not exist, or its earlier recording had other settings.
    """
    tasks = [find_task(settings.suite, task_id) for task_id in task_ids]
    out.mkdir(parents=True, exist_ok=True)
    return [TaskLedger(task, settings, out) for task in tasks]


def summarise(ledgers: Sequence[TaskLedger]) -> list[dict[str, Any]]:
    """Numbers of each task.

    Args:
        ledgers (`Sequence[TaskLedger]`): the tasks, after `record`.

    Returns:
        `list[dict]`: task id, name, instruction, attempts, successes, wanted episodes, mean steps of the successes,
        the seeds that failed, the file (None where nothing succeeded).
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
                "failed_seeds": sorted(set(ledger.attempts) - set(ledger.successes)),
                "file": ledger.path.name if ledger.is_written else None,
            }
        )
    return rows
