"""Overhead of the evaluation, its speed with two simulator processes, and the size of the policy's batches.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --output results.json
    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --simulator libero --episodes 2

By default the simulator only sleeps, as long as LIBERO takes on a free core: the numbers tell of the evaluation alone.
With `--simulator libero` it is real, and needs a free core for each process.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

# Simulator processes import this file: what loads torch is imported where it is needed.
from benchmarks.sleeping_simulator import SleepingEnv
from evaluation.libero_env import LiberoEnv
from evaluation.libero_setup import choose
from evaluation.protocol import EpisodeKey
from evaluation.simulator_process import EpisodeJob, SimulatorSettings

if TYPE_CHECKING:
    from benchmarks.measuring import Row
    from evaluation.policies import ChunkRequest

SIMULATORS = ("sleeping", "libero")


@dataclass
class BenchmarkArguments:
    """Options of `benchmarks/evaluation.py`."""

    simulator: str = field(default="sleeping", metadata={"help": "sleeping, or libero: the real one."})
    suite: str = field(default="libero_object", metadata={"help": "LIBERO suite."})
    tasks: int = field(default=2, metadata={"help": "Tasks of the suite, from the first."})
    episodes: int = field(default=8, metadata={"help": "Episodes of each task."})
    steps: int = field(default=60, metadata={"help": "Steps of an episode."})
    chunk_size: int = field(default=5, metadata={"help": "Actions of a chunk."})
    n_obs_steps: int = field(default=2, metadata={"help": "Frames that are rendered for each chunk."})
    policy_seconds: float = field(default=0.0, metadata={"help": "How long a call of the policy takes."})
    num_envs: int = field(default=2, metadata={"help": "Simulator processes that are compared with one."})
    pace: float = field(default=1.0, metadata={"help": "Factor on the times of the sleeping simulator."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the numbers, the machine and commit."})


class InstantPolicy:
    """Answers with still commands after a given time, and counts who asks while who acts.

    Args:
        arguments (`BenchmarkArguments`): size of a chunk, and the time of a call.
    """

    cameras: tuple[str, ...] = ("agentview",)

    def __init__(self, arguments: BenchmarkArguments) -> None:
        self.n_obs_steps = arguments.n_obs_steps
        self.seconds = arguments.policy_seconds
        self.chunk = np.tile([0.0, 0, 0, 0, 0, 0, -1], (arguments.chunk_size, 1))
        self.acting: set[str] = set()
        self.asked = self.could_ask = 0

    def begin(self, episode_id: str, instruction: str) -> None:
        """Take up an episode."""
        self.acting.add(episode_id)

    def end(self, episode_id: str) -> None:
        """Forget an episode."""
        self.acting.discard(episode_id)

    def predict_chunks(self, requests: Sequence["ChunkRequest"]) -> list[np.ndarray]:
        """Give everyone the same chunk."""
        self.asked += len(requests)
        self.could_ask += len(self.acting)
        time.sleep(self.seconds)
        return [self.chunk for _ in requests]

    def describe(self) -> dict[str, Any]:
        """Nothing decides these answers."""
        return {"policy": "instant"}


def play(arguments: BenchmarkArguments, num_envs: int) -> dict[str, float]:
    """Run all episodes.

    Args:
        arguments (`BenchmarkArguments`): all options.
        num_envs (`int`): simulator processes.

    Returns:
        `dict`: `wall` seconds; `overhead`: share of them in which neither a simulator nor the policy was at work;
        `waiting`: share of the episodes' time in which they waited for others; `batch`: episodes in a call, divided by
        those that acted at that time; `calls`.
    """
    from evaluation.rollout import PoolOptions, Rollout

    jobs = [
        EpisodeJob(EpisodeKey(arguments.suite, task, state), "stand still", state, arguments.steps)
        for task in range(arguments.tasks)
        for state in range(arguments.episodes)
    ]
    sleeping = partial(SleepingEnv, pace=arguments.pace)
    settings = SimulatorSettings(
        n_obs_steps=arguments.n_obs_steps,
        open_environment=LiberoEnv if arguments.simulator == "libero" else sleeping,
    )
    policy, records = InstantPolicy(arguments), []
    found = Rollout(jobs, settings, PoolOptions(num_envs), records.append, policy).run()
    errors = [record["error"] for record in records if record["error"]]
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(records)} episodes ended in errors. The first: {errors[0]}")
    seconds = {key: sum(record["seconds"][key] for record in records) for key in ("simulator", "policy", "total")}
    return {
        "wall": found["wall_seconds"],
        "overhead": found["overhead_seconds"] / found["wall_seconds"],
        "waiting": 1 - (seconds["simulator"] + seconds["policy"]) / seconds["total"],
        "batch": policy.asked / policy.could_ask,
        "calls": found["policy_calls"],
    }


def compare(arguments: BenchmarkArguments) -> list["Row"]:
    """One process and several.

    Args:
        arguments (`BenchmarkArguments`): all options.

    Returns:
        `list[Row]`: lines of the table.
    """
    from benchmarks.measuring import Row

    one, several = play(arguments, 1), play(arguments, arguments.num_envs)
    shape = (
        f"{arguments.tasks * arguments.episodes} episodes of {arguments.steps} steps, {arguments.num_envs} processes"
    )
    speedup = one["wall"] / several["wall"]
    return [
        Row(
            "neither simulator nor policy at work",
            shape,
            f"{several['wall']:.1f} s in all",
            f"{several['overhead'] * several['wall']:.2f} s; episodes wait {100 * several['waiting']:.1f} % of theirs",
            several["overhead"],
            "under 0.05",
            several["overhead"] < 0.05,
        ),
        Row(
            f"{arguments.num_envs} processes against one",
            shape,
            f"{one['wall']:.1f} s",
            f"{several['wall']:.1f} s",
            speedup,
            f"at least {0.8 * arguments.num_envs:g}",
            speedup >= 0.8 * arguments.num_envs,
        ),
        Row(
            "episodes in a call of the policy",
            shape,
            "all that act",
            f"{several['calls']:.0f} calls",
            several["batch"],
            "1",
            several["batch"] == 1,
        ),
    ]


def main() -> None:
    """Command line entry."""
    import torch
    from transformers import HfArgumentParser

    from benchmarks.measuring import describe_machine, report

    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    choose("simulator", arguments.simulator, SIMULATORS)
    results = {
        "machine": describe_machine(),
        "preset": f"{arguments.simulator} simulator, policy of {arguments.policy_seconds:g} s",
        "dtype": "no model",
        "threads": torch.get_num_threads(),
        "options": asdict(arguments),
        "rows": [asdict(row) for row in compare(arguments)],
    }
    report(results, arguments.output)


if __name__ == "__main__":
    main()
