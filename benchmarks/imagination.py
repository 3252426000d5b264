"""Frames per second of rollouts against one-token decoding of the same model, and memory over a long rollout.

    OMP_NUM_THREADS=1 python benchmarks/imagination.py --checkpoint outputs/demo-train/checkpoint \
        --demonstrations outputs/demo-train/held_out

Prints a Markdown table. The baseline is `generate()`, one token per forward, on a prompt made anew for every frame,
under the same mask and grammar; every way imagines its own rollout, and their tokens are compared.
"""

import multiprocessing
import os
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

from benchmarks.decoding import generate_frame
from benchmarks.measuring import EXACT_MEMORY, Row, collect, fastest, process_memory, report, size_and_dtype
from evaluation.checkpoints import load_checkpoint
from evaluation.imagination_streams import stream_actions
from tokenization.demonstrations import find_demonstration_files, read_demonstrations

TARGET = 4.0  # times the frames per second of the baseline
WARM_UP_FRAMES = 50  # of the long rollout, before memory counts
LARGEST_GROWTH = 4 * 2**20  # bytes that still count as constant: the kernel counts pages


@dataclass
class BenchmarkArguments:
    """Options of `benchmarks/imagination.py`."""

    checkpoint: str = field(metadata={"help": "Trained model with its processor."})
    demonstrations: str = field(metadata={"help": "HDF5 file, or folder of them, with held-out episodes."})
    episodes: int = field(default=1, metadata={"help": "Episodes; each is imagined from its first frame."})
    frames: int = field(default=50, metadata={"help": "Frames of each rollout."})
    memory_frames: int = field(default=500, metadata={"help": "Frames of the long rollout whose memory is watched."})
    repetitions: int = field(default=2, metadata={"help": "Repetitions of everything that is timed."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the numbers, the machine and commit."})

    def __post_init__(self) -> None:
        """Refuse a long rollout that ends before its memory counts."""
        if self.memory_frames <= WARM_UP_FRAMES:
            raise ValueError(f"`--memory_frames` must be larger than {WARM_UP_FRAMES}, got {self.memory_frames}.")


def read_starts(processor: Any, arguments: BenchmarkArguments) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """First frames `(1, 1, h, w)` and actions `(1, N, D)` of held-out episodes, as tokens."""
    files = find_demonstration_files([arguments.demonstrations])
    found = [episode for file in files for episode in read_demonstrations(file)][: arguments.episodes]
    starts = []
    for episode in found:
        actions = processor.encode_actions(episode.actions[: arguments.frames])
        images = processor.encode_images([episode.frames(steps=slice(0, 1))[0]])
        starts.append((images[None], torch.as_tensor(actions)[None]))
    return starts


def imagine_by_one_token(model: Any, processor: Any, images: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """What `stream_actions` makes, by `generate()` on whole prompts."""
    history, frames = model.config.world_model_history, [images[0, 0].numpy()]
    for step in range(1, actions.shape[1] + 1):
        shown = frames[-history:]
        known = actions[0, step - len(shown) : step].numpy()
        prompt = processor(images=shown, actions=known, role="world_model", return_tensors="pt")["input_ids"]
        frames.append(generate_frame(model, prompt, *images.shape[2:])[0].numpy())
    return torch.from_numpy(np.stack(frames[1:]))


def imagine_by_stream(
    model: Any, processor: Any, images: torch.Tensor, actions: torch.Tensor, draft: str
) -> torch.Tensor:
    """Frames `(N, h, w)` of one episode, with the entropies that come with them."""
    stream = stream_actions(model, processor, images, actions, draft=draft)
    return torch.cat([frame.image_ids for frame in stream])


def compare_rollouts(model: Any, processor: Any, arguments: BenchmarkArguments) -> list[Row]:
    """Rollouts with every draft against one token per forward."""
    starts, rows = read_starts(processor, arguments), []
    count = sum(actions.shape[1] for _, actions in starts)
    drafts = ("none", "last_frame", "jacobi")
    ways: dict[str, Callable[[], Any]] = {
        "one": lambda: [imagine_by_one_token(model, processor, *start) for start in starts]
    }
    for draft in drafts:
        ways[draft] = lambda draft=draft: [imagine_by_stream(model, processor, *start, draft) for start in starts]
    expected, *found = (torch.cat(way()) for way in ways.values())
    one, *seconds = fastest(arguments.repetitions, *ways.values())
    for draft, ids, took in zip(drafts, found, seconds, strict=True):
        details = f"{count / took:.2f} frames/s, {float((ids == expected).float().mean()):.1%} of the codes equal"
        rate = None if draft == "none" else mean_acceptance(model, processor, starts, draft)
        target = TARGET if draft == "jacobi" else None
        rows.append(
            Row(
                what=f"rollout, draft {draft}",
                shape=f"{len(starts)} x {count // len(starts)} frames of {ids.shape[1]} x {ids.shape[2]} codes",
                baseline=f"generate(): {count / one:.2f} frames/s",
                result=details + ("" if rate is None else f", {rate:.1%} of the drafts right"),
                ratio=one / took,
                target=f"at least {target:g}" if target else "none",
                holds=torch.equal(ids, expected) and (target is None or one / took >= target),
            )
        )
    return rows


def mean_acceptance(model: Any, processor: Any, starts: list[tuple[torch.Tensor, torch.Tensor]], draft: str) -> float:
    """Share of the codes that their drafts had right."""
    rates = []
    for images, actions in starts:
        shown = {"images": [images[0, 0].numpy()], "actions": actions[0, :1].numpy()}
        inputs = processor(**shown, role="world_model", return_tensors="pt")
        options = {"draft": draft, "return_dict_in_generate": True}
        rates.append(model.imagine(**inputs, actions=actions[:, 1:], **options).acceptance_rate.flatten())
    return float(torch.cat(rates).mean())


def watch_memory(arguments: BenchmarkArguments) -> tuple[int, int]:
    """Bytes of this process after the first frames of a long rollout, and the most it came to hold after them."""
    torch.set_num_threads(arguments.threads)
    model, processor = load_checkpoint(arguments.checkpoint, "cpu")
    images, actions = read_starts(processor, arguments)[0]
    repeated = actions.repeat(1, -(-arguments.memory_frames // actions.shape[1]), 1)[:, : arguments.memory_frames]
    before, largest = 0, 0
    for number, _ in enumerate(stream_actions(model, processor, images, repeated), start=1):
        held = process_memory("VmRSS")
        if number <= WARM_UP_FRAMES:
            before = max(before, held)
        largest = max(largest, held)
    return before, largest


def run(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measure everything.

    Args:
        arguments (`BenchmarkArguments`): all options.

    Returns:
        `dict`: machine, commit, options and one entry per line of the table.
    """
    os.environ.update(EXACT_MEMORY)  # for the process that is started now
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, largest = pool.apply(watch_memory, (arguments,))
    model, processor = load_checkpoint(arguments.checkpoint, "cpu")
    rows = compare_rollouts(model, processor, arguments)
    rows.append(
        Row(
            what="memory of a long rollout",
            shape=f"{arguments.memory_frames} frames",
            baseline=f"most in {WARM_UP_FRAMES} frames: {before / 2**20:.1f} MiB",
            result=f"most in all: {largest / 2**20:.1f} MiB",
            ratio=largest / before,
            target=f"at most {LARGEST_GROWTH / 2**20:g} MiB more",
            holds=largest - before <= LARGEST_GROWTH,
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
