"""Runs episodes in several simulator processes with one policy that answers in batches.

The policy is asked once every episode that acts waits for it, so a batch is as large as the number of acting
simulators; simulators that are being reset or filmed are not waited for. An episode that ends is replaced at once.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Literal

import numpy as np

from evaluation.libero_env import ACTION_DIM
from evaluation.policies import BatchedPolicy, ChunkRequest, PolicyError
from evaluation.rollout_accounting import Accounting
from evaluation.simulator_process import (
    Abandon,
    ChunkWanted,
    EpisodeEnded,
    EpisodeFailed,
    EpisodeJob,
    SignOfLife,
    SimulatorSettings,
    work,
)
from evaluation.worker_process import WorkerEnded, WorkerProcess

logger = logging.getLogger("worldvla.rollout")

TICK_SECONDS = 1.0
MAX_ERRORS_IN_A_ROW = 10


class HopelessRunError(RuntimeError):
    """No episode can be run; the message says why."""


@dataclass(frozen=True)
class PoolOptions:
    """How episodes are spread over processes; changes no result.

    Attributes:
        num_envs (`int`): simulator processes.
        timeout (`float`): seconds without a sign of life after which a simulator is killed.
        max_attempts (`int`): how often an episode is tried before it counts as an error.
    """

    num_envs: int = 1
    timeout: float = 120.0
    max_attempts: int = 3


class _Slot:
    """Place of one simulator process and the attempt under way in it.

    Phases: `idle`; `away` (opening, resetting, filming: nobody waits for it); `acting`; `waiting` for a chunk.
    """

    def __init__(self) -> None:
        self.worker: WorkerProcess | None = None
        self.task: tuple[str, int] | None = None  # that the process has open
        self.phase: Literal["idle", "away", "acting", "waiting"] = "idle"

    def begin(self, job: EpisodeJob, attempt: int) -> None:
        self.job, self.attempt, self.phase = job, attempt, "away"
        self.episode_id = f"{job.episode.name} attempt {attempt}"
        self.task = job.episode[:2]
        self.begun = self.last_sign = time.monotonic()
        self.observations: list[dict[str, np.ndarray]] = []
        self.num_chunks, self.simulator_seconds, self.policy_seconds = 0, 0.0, 0.0

    def drop_worker(self) -> None:
        if self.worker is not None:
            self.worker.stop()
        self.worker = self.task = None


class Rollout:
    """Runs a list of episodes.

    Args:
        jobs (`Sequence[EpisodeJob]`): the episodes.
        settings (`SimulatorSettings`): for the simulator processes.
        options (`PoolOptions`): how many of them, and when to give up.
        on_record (`Callable`): gets the record of every episode as it ends.
        policy (`BatchedPolicy`, *optional*): gives the chunks, unless `settings.make_policy` acts in the processes.
    """

    def __init__(
        self,
        jobs: Sequence[EpisodeJob],
        settings: SimulatorSettings,
        options: PoolOptions,
        on_record: Callable[[dict[str, Any]], None],
        policy: BatchedPolicy | None = None,
    ) -> None:
        if (policy is None) == (settings.make_policy is None):
            raise ValueError("Either the main process or the simulator processes hold the policy: give one of both.")
        self.settings, self.options, self.on_record, self.policy = settings, options, on_record, policy
        self.accounting = Accounting()
        self._queues: dict[tuple[str, int], deque[tuple[EpisodeJob, int]]] = {}
        for job in jobs:
            self._queues.setdefault(job.episode[:2], deque()).append((job, 1))
        self._slots = [_Slot() for _ in range(min(options.num_envs, len(jobs)))]
        self._errors_in_a_row = 0

    def run(self) -> dict[str, Any]:
        """Run until every episode has its record.

        Returns:
            `dict`: see `Accounting.summarise`.

        Raises:
            HopelessRunError: if the simulator cannot start at all, or episode after episode ends in an error.
        """
        try:
            while True:
                self._hand_out()
                busy = [slot for slot in self._slots if slot.phase != "idle"]
                if not busy and not any(self._queues.values()):
                    break
                if self._waiting() and all(slot.phase != "acting" for slot in busy):
                    self._predict()
                elif busy:
                    self._listen(busy)
                    self._stop_silent(busy)
            for slot in self._slots:
                if slot.worker is not None:
                    slot.worker.dismiss()
            return self.accounting.summarise()
        finally:
            for slot in self._slots:
                slot.drop_worker()

    # Giving out work

    def _hand_out(self) -> None:
        for slot in self._slots:
            if slot.phase != "idle" or (next_job := self._next_job(slot)) is None:
                continue
            slot.begin(*next_job)
            try:
                if slot.worker is None:
                    slot.worker = WorkerProcess(work, self.settings)
                slot.worker.send(slot.job)
            except WorkerEnded as error:
                self._fail(slot, str(error))

    def _next_job(self, slot: _Slot) -> tuple[EpisodeJob, int] | None:
        """The next episode of the slot's task, or of the task at which the fewest processes are at work."""
        queues = [task for task, queue in self._queues.items() if queue]
        if not queues:
            return None
        at_work = [other.task for other in self._slots if other.phase != "idle"]
        task = slot.task if slot.task in queues else min(queues, key=at_work.count)
        return self._queues[task].popleft()

    # Asking the policy

    def _waiting(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.phase == "waiting"]

    def _predict(self) -> None:
        """Ask the policy for the chunks of all episodes that wait."""
        slots = self._waiting()
        requests = [ChunkRequest(slot.episode_id, slot.observations) for slot in slots]
        running = sum(slot.phase != "idle" for slot in self._slots)
        started = time.monotonic()
        try:
            chunks = self._require_policy().predict_chunks(requests)
        except PolicyError as error:
            names = [slot.episode_id for slot in slots] if error.episode_ids is None else error.episode_ids
            for slot in slots:
                if slot.episode_id in names:
                    self._abandon(slot, str(error))
            return
        finally:
            self.accounting.add_policy_call(started, len(slots), running)
        if len(chunks) != len(slots):
            raise RuntimeError(f"The policy answered {len(slots)} requests with {len(chunks)} chunks.")
        seconds = time.monotonic() - started
        for slot, chunk in zip(slots, chunks, strict=True):
            slot.policy_seconds += seconds
            self._send_chunk(slot, np.asarray(chunk, dtype=float))

    def _send_chunk(self, slot: _Slot, chunk: np.ndarray) -> None:
        problem = chunk_problem(chunk)
        if problem is not None:
            self._abandon(slot, problem)
            return
        slot.num_chunks += 1
        slot.phase, slot.last_sign = "acting", time.monotonic()
        self._tell(slot, chunk)

    def _abandon(self, slot: _Slot, error: str) -> None:
        """The policy cannot go on with this episode; the simulator is sound."""
        self._tell(slot, Abandon())
        if slot.phase != "idle":
            self._finish(slot, "error", error=error)

    def _tell(self, slot: _Slot, message: Any) -> None:
        try:
            self._require_worker(slot).send(message)
        except WorkerEnded as error:
            self._fail(slot, str(error))

    def _require_policy(self) -> BatchedPolicy:
        if self.policy is None:
            raise RuntimeError("A simulator process asks for a chunk, but the policy acts in the processes.")
        return self.policy

    def _require_worker(self, slot: _Slot) -> WorkerProcess:
        if slot.worker is None:
            raise WorkerEnded(None)
        return slot.worker

    # Hearing from the simulators

    def _listen(self, slots: Sequence[_Slot]) -> None:
        """Wait for messages and take one of each simulator that has sent any."""
        connections = {slot.worker.connection: slot for slot in slots if slot.worker is not None}
        for connection in wait(list(connections), timeout=TICK_SECONDS):
            slot = connections[connection]  # type: ignore[index]
            try:
                self._take(slot, self._require_worker(slot).receive())
            except WorkerEnded as error:
                self._fail(slot, str(error))

    def _take(self, slot: _Slot, message: Any) -> None:
        slot.last_sign = time.monotonic()
        if isinstance(message, SignOfLife):
            slot.phase = slot.phase if message.acting else "away"
            return
        self.accounting.add_simulator(message.busy)
        slot.simulator_seconds += message.busy[1] - message.busy[0]
        if isinstance(message, ChunkWanted):
            self._take_request(slot, message)
        elif isinstance(message, EpisodeEnded):
            slot.policy_seconds += message.policy_seconds
            slot.simulator_seconds -= message.policy_seconds
            self._finish(slot, "success" if message.success else "step_limit", message)
        else:
            self._take_failure(slot, message)

    def _take_request(self, slot: _Slot, message: ChunkWanted) -> None:
        slot.observations, slot.phase = message.observations, "waiting"
        if not slot.num_chunks:
            try:
                self._require_policy().begin(slot.episode_id, slot.job.instruction)
            except PolicyError as error:
                self._abandon(slot, str(error))

    def _take_failure(self, slot: _Slot, message: EpisodeFailed) -> None:
        if message.hopeless:
            raise HopelessRunError(message.error)
        if message.again:
            self._fail(slot, message.error)
        else:
            self._finish(slot, "error", error=message.error)

    def _stop_silent(self, slots: Sequence[_Slot]) -> None:
        """Kill simulators that have not been heard of for too long; who waits for the policy is not meant."""
        for slot in slots:
            if slot.phase not in ("away", "acting") or slot.worker is None or slot.worker.connection.poll():
                continue
            if time.monotonic() - slot.last_sign > self.options.timeout:
                self._fail(
                    slot, f"The simulator gave no sign of life for {self.options.timeout:g} seconds and was killed."
                )

    # How attempts end

    def _fail(self, slot: _Slot, error: str) -> None:
        """An attempt failed together with its simulator: start another process, and repeat the episode."""
        slot.drop_worker()
        if slot.attempt >= self.options.max_attempts:
            self._finish(slot, "error", error=error)
            return
        logger.warning("%s: %s Once more.", slot.episode_id, error)
        self.accounting.restarts += 1
        self._end_episode(slot)
        self._queues[slot.job.episode[:2]].appendleft((slot.job, slot.attempt + 1))

    def _end_episode(self, slot: _Slot) -> None:
        if self.policy is not None:
            self.policy.end(slot.episode_id)
        slot.phase, slot.observations = "idle", []

    def _finish(self, slot: _Slot, outcome: str, ended: EpisodeEnded | None = None, error: str | None = None) -> None:
        self._end_episode(slot)
        job, total = slot.job, time.monotonic() - slot.begun
        record = {
            **job.episode._asdict(),
            "instruction": job.instruction,
            "seed": job.seed,
            "outcome": outcome,
            "success": outcome == "success",
            "num_steps": ended.num_steps if ended is not None else None,
            "error": error,
            "attempts": slot.attempt,
            "num_chunks": slot.num_chunks,
            "num_frames": ended.num_frames if ended is not None else None,
            "seconds": {
                "simulator": round(slot.simulator_seconds, 3),
                "policy": round(slot.policy_seconds, 3),
                "total": round(total, 3),
            },
            "video": ended.video if ended is not None else None,
        }
        self.on_record(record)
        self._errors_in_a_row = self._errors_in_a_row + 1 if outcome == "error" else 0
        if error is not None:
            logger.warning("%s counts as an error: %s", slot.episode_id, error)
        if self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
            raise HopelessRunError(
                f"The last {MAX_ERRORS_IN_A_ROW} episodes ended in errors, so the run was stopped. What is finished "
                f"is kept, and the same command tries the errors again. The last one: {error}"
            )


def chunk_problem(chunk: np.ndarray) -> str | None:
    """What is wrong with a policy's answer.

    Args:
        chunk (`np.ndarray`): what should be commands `(n, 7)`, n at least 1.

    Returns:
        `str`, *optional*: what was expected and what came; None when all is well.
    """
    if chunk.ndim != 2 or chunk.shape[1] != ACTION_DIM or not len(chunk):
        return f"The policy shall answer with commands of shape (n, {ACTION_DIM}), but it answered with {chunk.shape}."
    if not np.isfinite(chunk).all():
        return "The policy answered with commands that hold NaN or infinity."
    return None
