"""Where the time of a run goes: simulators, policy, and what is neither."""

import time
from typing import Any

Interval = tuple[float, float]  # start and end, seconds of the system's monotonic clock


def covered_seconds(intervals: list[Interval], start: float, end: float) -> float:
    """How much of a span at least one interval covers.

    Args:
        intervals (`list[tuple[float, float]]`): start and end, in any order, overlapping or not.
        start (`float`): start of the span.
        end (`float`): end of the span.

    Returns:
        `float`: seconds.
    """
    covered, reached = 0.0, start
    for begin, finish in sorted(intervals):
        begin, finish = max(begin, reached), min(finish, end)
        if finish > begin:
            covered += finish - begin
            reached = finish
    return covered


class Accounting:
    """Collects when simulators and the policy were at work, and how large the policy's batches were."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._simulators: list[Interval] = []
        self._policy: list[Interval] = []
        self._batches: list[tuple[int, int]] = []
        self.restarts = 0

    def add_simulator(self, busy: Interval) -> None:
        """A simulator was at work.

        Args:
            busy (`tuple[float, float]`): start and end.
        """
        self._simulators.append(busy)

    def add_policy_call(self, start: float, batch_size: int, running: int) -> None:
        """The policy has answered.

        Args:
            start (`float`): when it was asked.
            batch_size (`int`): episodes in the call.
            running (`int`): simulators at that time, those that are being reset or filmed included.
        """
        self._policy.append((start, time.monotonic()))
        self._batches.append((batch_size, running))

    def summarise(self) -> dict[str, Any]:
        """The numbers so far.

        Returns:
            `dict`: `wall_seconds`; `simulator_seconds` and `policy_seconds`, sums over processes and calls;
            `overhead_seconds`, when neither a simulator nor the policy was at work; `policy_calls`,
            `mean_batch_size`, `mean_running`; `restarts` of simulators.
        """
        end, calls = time.monotonic(), len(self._batches)
        wall = end - self._started
        return {
            "wall_seconds": round(wall, 3),
            "simulator_seconds": round(sum(finish - begin for begin, finish in self._simulators), 3),
            "policy_seconds": round(sum(finish - begin for begin, finish in self._policy), 3),
            "overhead_seconds": round(wall - covered_seconds(self._simulators + self._policy, self._started, end), 3),
            "policy_calls": calls,
            "mean_batch_size": sum(size for size, _ in self._batches) / calls if calls else None,
            "mean_running": sum(running for _, running in self._batches) / calls if calls else None,
            "restarts": self.restarts,
        }
