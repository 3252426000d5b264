"""Records demonstrations with the scripted expert in parallel processes; can be interrupted at any moment.

Episode k of a task is decided by the seed `first_seed + k` alone. A task's file holds its first successful seeds in
ascending order, so it does not depend on the number of processes, nor on interruptions.
"""

import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from evaluation.demonstration_files import RecordedEpisode, RecordedPictures, write_episode
from evaluation.expert import ScriptedExpert
from evaluation.expert_variation import EpisodeVariation
from evaluation.libero_env import LiberoEnv
from evaluation.libero_rendering import objects_of_interest, segmentation_names
from evaluation.libero_setup import find_task
from evaluation.protocol import max_steps
from evaluation.recording_ledger import Attempt, RecordingSettings, TaskLedger
from evaluation.worker_process import WorkerEnded, WorkerProcess

TICK_SECONDS = 2.0


def record_episode(
    env: LiberoEnv, seed: int, initial_state: int | None, settings: RecordingSettings
) -> tuple[Attempt, RecordedEpisode | None]:
    """Let the expert try one episode without rendering, and render it afterwards if it succeeded.

    Args:
        env (`LiberoEnv`): the task, opened without cameras.
        seed (`int`): seed of the reset.
        initial_state (`int`, *optional*): benchmark state; None for a random placement.
        settings (`RecordingSettings`): what to render.

    Returns:
        `tuple`: how it ended, and the episode when it succeeded within the suite's step limit.
    """
    env.reset(initial_state=initial_state, seed=seed)
    variation = EpisodeVariation(settings.variation, seed)
    actions, wanted, states, robot = [], [], [], []
    success, error = False, None
    try:
        for action in variation.start_actions(lambda: env.robot_observation()["robot0_eef_pos"]):
            env.step(action)
        for action in ScriptedExpert(env.domain, variation.speed).actions():
            states.append(env.simulator_state())
            robot.append(env.robot_observation())
            wanted.append(action)
            actions.append(variation.disturb(action))
            _, success, _ = env.step(actions[-1])
            if success or len(actions) >= max_steps(env.task.suite):
                break
    except (ValueError, ArithmeticError, LookupError, np.linalg.LinAlgError) as failure:
        error = f"{type(failure).__name__}: {failure}"  # a scene that the expert cannot read counts as a failure
    if not success:
        return Attempt(False, len(actions), error), None
    episode = RecordedEpisode(
        seed=seed,
        initial_state=-1 if initial_state is None else initial_state,
        actions=np.stack(actions),
        expert_actions=np.stack(wanted),
        states=np.stack(states),
        robot={key: np.stack([step[key] for step in robot]) for key in robot[0]},
        pictures=render_states(env, states[:: settings.picture_stride], settings.cameras, settings.segmentation),
        picture_stride=settings.picture_stride,
    )
    return Attempt(True, len(actions)), episode


def render_states(
    env: LiberoEnv, states: Sequence[np.ndarray], cameras: Sequence[str], segmentation: bool = False
) -> RecordedPictures:
    """Render states of the present episode.

    Args:
        env (`LiberoEnv`): not reset since; fixtures are not part of a state.
        states (`Sequence[np.ndarray]`): P simulator states.
        cameras (`Sequence[str]`): cameras to render.
        segmentation (`bool`): whether to render masks, too.

    Returns:
        `RecordedPictures`: upright, by camera.
    """
    frames: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
    masks: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras if segmentation}
    for state in states:
        env.set_simulator_state(state)
        for camera in cameras:
            frames[camera].append(env.render(camera))
            if segmentation:
                masks[camera].append(env.render_segmentation(camera))
    return RecordedPictures(
        frames={camera: np.stack(images) for camera, images in frames.items()},
        masks={camera: np.stack(images) for camera, images in masks.items()},
        names=segmentation_names(env.domain) if segmentation else (),
        objects_of_interest=objects_of_interest(env.domain) if segmentation else (),
    )


def _work(connection: Connection, suite: str, task_id: int, settings: RecordingSettings, folder: Path) -> None:
    """Body of a worker process: one task, one environment, one seed after another as the parent asks."""
    try:
        with LiberoEnv(suite, task_id, cameras=(), image_size=settings.image_size) as env:
            while (seed := connection.recv()) is not None:
                initial_state = seed if settings.placements == "benchmark" else None
                attempt, episode = record_episode(env, seed, initial_state, settings)
                if episode is not None:
                    write_episode(folder / f"episode_{seed:06d}.hdf5", episode)
                connection.send((seed, attempt))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the parent is gone
    except BaseException:
        connection.send(traceback.format_exc())


class _Worker(WorkerProcess):
    """A process bound to one task."""

    def __init__(self, ledger: TaskLedger):
        super().__init__(_work, ledger.settings.suite, ledger.task.task_id, ledger.settings, ledger.folder)
        self.ledger = ledger

    def give(self, seed: int) -> None:
        self.ledger.under_way.add(seed)
        self.send(seed)

    def take(self) -> None:
        """Receive the outcome of the last seed."""
        message = self.receive()
        if isinstance(message, str):
            raise RuntimeError(f"The process recording `{self.ledger.task.name}` failed:\n{message}")
        self.ledger.finish(*message)

    def _ended(self) -> WorkerEnded:
        code = super()._ended().exit_code
        advice = "A process needs about 2.5 GB: lower `--num_workers`. " if code == -9 else ""
        return WorkerEnded(
            code,
            f"The process recording `{self.ledger.task.name}`",
            f" {advice}The same command goes on where it stopped.",
        )


def record(ledgers: Sequence[TaskLedger], num_workers: int, on_tick: Callable[[], None] = lambda: None) -> None:
    """Record until every task has its episodes or has used up its attempts, and write the tasks' files.

    Args:
        ledgers (`Sequence[TaskLedger]`): the tasks, in the order in which to begin them.
        num_workers (`int`): processes at a time; each needs about a core and 2.5 GB.
        on_tick (`Callable`): called after each attempt and at least every two seconds, for progress.

    Raises:
        RuntimeError: if a process fails; what it had finished is kept.
    """
    workers: list[_Worker] = []
    try:
        while True:
            _write_complete(ledgers)
            while len(workers) < num_workers and (ledger := _next_task(ledgers, workers)) is not None:
                workers.append(_Worker(ledger))
                workers[-1].give(_require_seed(ledger))
            if not workers:
                return
            ready = wait([worker.connection for worker in workers], timeout=TICK_SECONDS)
            for worker in [worker for worker in workers if worker.connection in ready]:
                worker.take()
                seed = worker.ledger.next_seed()
                if seed is None:
                    workers.remove(worker)
                    worker.dismiss()
                else:
                    worker.give(seed)
            on_tick()
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


def _write_complete(ledgers: Sequence[TaskLedger]) -> None:
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
