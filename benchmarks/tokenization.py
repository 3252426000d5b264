"""Speed and memory of the tokenizers, as ratios measured in one run.

    OMP_NUM_THREADS=1 python benchmarks/tokenization.py --output results.json

Prints a Markdown table. Weights are random: they do not change the time. What is compared runs in turns, and of each
the fastest repetition counts; with one thread, time is what the processor spent on it, so that a busy machine changes
little.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from diffusers import VQModel
from transformers import HfArgumentParser

from benchmarks.measuring import EXACT_MEMORY, Row, collect, fastest, now, process_memory, report
from tokenization import (
    LIBERO_ACTION_LIMITS,
    VQ_MODEL_PRESETS,
    VocabularyLayout,
    WorldVLAProcessor,
    list_prompts,
    train_text_tokenizer,
    vq_model_config,
)

INSTRUCTION = "put the black bowl on top of the cabinet"
NUM_CODES = 8192


@dataclass
class BenchmarkArguments:
    """Options of `benchmarks/tokenization.py`."""

    preset: str = field(default="small-128", metadata={"help": f"VQ-GAN: {', '.join(VQ_MODEL_PRESETS)}."})
    image_size: int = field(default=256, metadata={"help": "Side of the frames in pixels."})
    frames: int = field(default=32, metadata={"help": "Frames in the batch."})
    slice_size: int | None = field(default=None, metadata={"help": "Frames at once; by default the tokenizer's own."})
    num_actions: int = field(default=100_000, metadata={"help": "Actions to encode and decode."})
    repetitions: int = field(default=5, metadata={"help": "Repetitions of everything that is timed."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the numbers, the machine and commit."})
    measure_memory: int | None = field(
        default=None, metadata={"help": "Internal: encode so many frames and print the bytes that took at their peak."}
    )


def make_processor(arguments: BenchmarkArguments) -> WorldVLAProcessor:
    """A processor with random weights and the official vocabulary."""
    torch.manual_seed(0)
    layout = VocabularyLayout.official()
    vq_model: Any = VQModel(**vq_model_config(arguments.preset, num_vq_embeddings=NUM_CODES))
    processor = WorldVLAProcessor(
        train_text_tokenizer([INSTRUCTION, *list_prompts()], layout, min_frequency=1),
        layout,
        action_limits={"libero": LIBERO_ACTION_LIMITS},
        image_size=(arguments.image_size, arguments.image_size),
        vq_model=vq_model.eval().requires_grad_(False),
    )
    if processor.image_tokenizer is not None:
        processor.image_tokenizer.slice_size = arguments.slice_size
    return processor


def make_frames(count: int, size: int) -> list[np.ndarray]:
    """Frames of noise."""
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def compare_batch(processor: WorldVLAProcessor, arguments: BenchmarkArguments) -> Row:
    """One call for all frames against one call for each."""
    frames = make_frames(arguments.frames, arguments.image_size)
    encode = processor.image_tokenizer.encode
    encode(frames[:1])
    batch, singles = fastest(
        arguments.repetitions, lambda: encode(frames), lambda: [encode([frame]) for frame in frames]
    )
    return Row(
        what="encode a batch, time",
        shape=_shape(arguments, arguments.frames),
        baseline=f"single calls: {1e3 * singles / len(frames):.1f} ms per image",
        result=f"{1e3 * batch / len(frames):.1f} ms per image",
        ratio=batch / singles,
        target="at most 1 (noise: 2 %)",
        holds=batch <= 1.02 * singles,
    )


def compare_memory(processor: WorldVLAProcessor, arguments: BenchmarkArguments) -> Row:
    """Peak memory of a batch against that of its largest slice, each in a process of its own."""
    side = arguments.image_size
    at_once = min(arguments.frames, processor.image_tokenizer.images_at_once(side, side))
    peaks = {}
    for count in (at_once, arguments.frames):
        command = [sys.executable, __file__, "--measure_memory", str(count), "--preset", arguments.preset]
        command += ["--image_size", str(side), "--threads", str(arguments.threads)]
        if arguments.slice_size is not None:
            command += ["--slice_size", str(arguments.slice_size)]
        environment = {**os.environ, **EXACT_MEMORY}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks[count] = int(done.stdout.split()[-1])
    ratio = peaks[arguments.frames] / peaks[at_once]
    return Row(
        what="encode a batch, peak memory",
        shape=_shape(arguments, arguments.frames),
        baseline=f"largest slice, {at_once}: {peaks[at_once] / 2**20:.0f} MiB",
        result=f"{peaks[arguments.frames] / 2**20:.0f} MiB",
        ratio=ratio,
        target="at most 1.5",
        holds=ratio <= 1.5,
    )


def measure_memory(arguments: BenchmarkArguments) -> int:
    """Bytes that encoding needs at its peak, beyond model and frames. Linux only: its kernel keeps the peak."""
    processor = make_processor(arguments)
    frames = make_frames(arguments.measure_memory or 1, arguments.image_size)
    before = process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    processor.image_tokenizer.encode(frames)
    return process_memory("VmHWM") - before


def measure_overhead(processor: WorldVLAProcessor, arguments: BenchmarkArguments, count: int) -> Row:
    """What a call of the processor costs beside its VQ-GAN, both taken from the same calls."""
    frames = make_frames(count, arguments.image_size)
    samples: list[tuple[float, float]] = []
    with _time_inside(processor.vq_model) as inside:
        for _ in range(arguments.repetitions + 1):
            before, start = inside[0], now()
            processor(images=[[frame] for frame in frames], text=[INSTRUCTION] * count)
            samples.append((now() - start, inside[0] - before))
    outside, within = min((total - vq_gan, vq_gan) for total, vq_gan in samples[1:])
    return Row(
        what="processor outside its VQ-GAN",
        shape=_shape(arguments, count),
        baseline=f"VQ-GAN: {1e3 * within / count:.1f} ms per image",
        result=f"{1e3 * outside / count:.2f} ms per image",
        ratio=outside / within,
        target="under 0.05",
        holds=outside < 0.05 * within,
    )


def measure_actions(processor: WorldVLAProcessor, arguments: BenchmarkArguments) -> Row:
    """Encode and decode many actions."""
    low, high = np.array(LIBERO_ACTION_LIMITS["low"]), np.array(LIBERO_ACTION_LIMITS["high"])
    draws = np.random.default_rng(0).random((arguments.num_actions, len(low)))
    actions = low + draws * (high - low)
    (seconds,) = fastest(
        arguments.repetitions, lambda: processor.decode_actions(processor.encode_actions(actions, "libero"), "libero")
    )
    return Row(
        what="encode and decode actions",
        shape=f"{arguments.num_actions} x {len(low)}",
        baseline="1 s",
        result=f"{seconds:.3f} s",
        ratio=seconds,
        target="under 1",
        holds=seconds < 1,
    )


def run(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measure everything.

    Args:
        arguments (`BenchmarkArguments`): all options.

    Returns:
        `dict`: machine, commit, options and one entry per line of the table.
    """
    processor = make_processor(arguments)
    rows = [
        compare_batch(processor, arguments),
        compare_memory(processor, arguments),
        measure_overhead(processor, arguments, 1),
        measure_overhead(processor, arguments, min(8, arguments.frames)),
        measure_actions(processor, arguments),
    ]
    dtype = str(processor.vq_model.dtype).removeprefix("torch.")
    return collect(rows, arguments.preset, dtype, arguments.repetitions)


@contextmanager
def _time_inside(vq_model: Any) -> Iterator[list[float]]:
    """Count the seconds spent in the VQ-GAN's encoder and quantizer."""
    seconds, originals = [0.0], {"encode": vq_model.encode, "quantize": vq_model.quantize.forward}

    def timed(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = now()
            try:
                return originals[name](*arguments, **options)
            finally:
                seconds[0] += now() - start

        return call

    vq_model.encode, vq_model.quantize.forward = timed("encode"), timed("quantize")
    try:
        yield seconds
    finally:
        del vq_model.encode, vq_model.quantize.forward


def _shape(arguments: BenchmarkArguments, count: int) -> str:
    return f"{count} x {arguments.image_size} x {arguments.image_size}"


def main() -> None:
    """Command line entry."""
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    torch.set_num_threads(arguments.threads)
    if arguments.measure_memory is not None:
        sys.stdout.write(f"{measure_memory(arguments)}\n")
        return
    results = run(arguments)
    report(results, arguments.output)


if __name__ == "__main__":
    main()
