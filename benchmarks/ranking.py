"""What best-of-n costs: seconds per decision of a policy that imagines n chunks and chooses, against the plain policy.

    OMP_NUM_THREADS=1 python benchmarks/ranking.py --checkpoint outputs/demo-train/checkpoint \
        --demonstrations outputs/demo-train/held_out

Prints a Markdown table. A decision is everything between the camera's frames and the commands: encoding the frames,
the policy's chunk and, with n above 1, drawing, imagining and rating the others. The goal is the file's last frames.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from transformers import HfArgumentParser

from benchmarks.measuring import Row, collect, fastest, report, size_and_dtype
from evaluation.checkpoints import choose_cameras, load_checkpoint
from evaluation.policies import ChunkRequest
from evaluation.ranking import ChunkRanker
from evaluation.ranking_scores import GoalScore
from evaluation.worldvla_policy import WorldVLAPolicy
from tokenization.demonstrations import Demonstration, find_demonstration_files, read_demonstrations


@dataclass
class BenchmarkArguments:
    """Options of `benchmarks/ranking.py`."""

    checkpoint: str = field(metadata={"help": "Trained model with its processor."})
    demonstrations: str = field(metadata={"help": "HDF5 file, or folder of them; the first episode is taken."})
    candidates: list[int] = field(default_factory=lambda: [4, 8], metadata={"help": "Numbers of chunks n."})
    decisions: int = field(default=4, metadata={"help": "Decisions, spread over the episode, of one after another."})
    repetitions: int = field(default=2, metadata={"help": "Repetitions of everything that is timed."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the numbers, the machine and commit."})

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to measure."""
        if not self.candidates or min(self.candidates) < 2 or self.decisions < 1:
            raise ValueError(
                f"`--candidates` are numbers of at least 2 and `--decisions` at least 1, got {self.candidates} and "
                f"{self.decisions}."
            )


def read_requests(episode: Demonstration, policy: WorldVLAPolicy, decisions: int) -> list[ChunkRequest]:
    """Requests of as many episodes, each in the middle of the recorded one, with as many frames as are shown."""
    frames = {camera: episode.frames(camera) for camera in policy.cameras}
    steps = np.linspace(policy.n_obs_steps, len(episode) - 1, decisions + 2).round().astype(int)[1:-1]
    return [
        ChunkRequest(
            f"decision {number}",
            [
                {camera: pictures[k] for camera, pictures in frames.items()}
                for k in range(step - policy.n_obs_steps, step)
            ],
        )
        for number, step in enumerate(steps)
    ]


def decide(policy: WorldVLAPolicy, instruction: str, requests: list[ChunkRequest]) -> list[np.ndarray]:
    """One decision after another, each the first of its episode."""
    answers = []
    for request in requests:
        policy.begin(request.episode_id, instruction)
        answers += policy.predict_chunks([request])
    return answers


def run(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measure everything.

    Args:
        arguments (`BenchmarkArguments`): all options.

    Returns:
        `dict`: machine, commit, options and one entry per line of the table.
    """
    cameras = choose_cameras(arguments.checkpoint, None)
    model, processor = load_checkpoint(arguments.checkpoint, "cpu")
    file = find_demonstration_files([arguments.demonstrations])[0]
    episode = read_demonstrations(file)[0]
    plain = WorldVLAPolicy(model, processor, cameras)
    requests = read_requests(episode, plain, arguments.decisions)
    score = GoalScore.from_paths(processor, [str(file)], cameras[0])
    policies = {1: plain}
    for count in arguments.candidates:
        ranker = ChunkRanker(model, processor, score, count, plain.n_action_steps)
        policies[count] = WorldVLAPolicy(model, processor, cameras, ranker=ranker)
    ways: list[Callable[[], Any]] = [
        lambda policy=policy: decide(policy, episode.instruction, requests) for policy in policies.values()
    ]
    expected, *answers = (way() for way in ways)
    base, *seconds = fastest(arguments.repetitions, *ways)
    rows = []
    for count, chunks, took in zip(arguments.candidates, answers, seconds, strict=True):
        others = sum(not np.array_equal(*pair) for pair in zip(chunks, expected, strict=True))
        rows.append(
            Row(
                what=f"best of {count}",
                shape=f"K = {plain.chunk_size}, {plain.n_action_steps} frames of each, {len(requests)} decisions",
                baseline=f"plain policy: {base / len(requests):.3f} s per decision",
                result=f"{took / len(requests):.3f} s per decision, not the greedy chunk in {others}",
                ratio=took / base,
                target="none",
                holds=True,
            )
        )
    return collect(rows, *size_and_dtype(model), arguments.repetitions)


def main() -> None:
    """Command line entry."""
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    torch.set_num_threads(arguments.threads)
    report(run(arguments), arguments.output)


if __name__ == "__main__":
    main()
