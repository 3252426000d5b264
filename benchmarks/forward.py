"""Speed and memory of the loss, and the cost of the action attention mask, as ratios measured in one run.

    OMP_NUM_THREADS=1 python benchmarks/forward.py --output results.json

Prints a Markdown table. Weights and tokens are random. The loss is compared with the cross-entropy of all logits, both
with their backward to the hidden states and the head; batches are those of training: answers of a policy (K actions),
of a world model (one frame), and half of each.
"""

import json
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

import torch
from torch import nn
from torch.nn import functional as F
from transformers import HfArgumentParser

from benchmarks.measuring import EXACT_MEMORY, Row, collect, fastest, now, process_memory, report
from modeling_worldvla import WorldVLAConfig, WorldVLAModel, modeling_worldvla
from modeling_worldvla.loss_worldvla import IGNORED_LABEL, role_losses

BATCHES = ("mixed", "policy", "world_model")
WAYS = ("all logits", "labelled chunks")


@dataclass
class BenchmarkArguments:
    """Options of `benchmarks/forward.py`."""

    batch_size: int = field(default=4, metadata={"help": "Samples of the batch whose loss is computed."})
    length: int = field(default=620, metadata={"help": "Tokens of a sample."})
    vocab_size: int = field(default=65536, metadata={"help": "Entries of the vocabulary."})
    hidden_size: int = field(default=512, metadata={"help": "Width of the model."})
    chunk_actions: int = field(default=5, metadata={"help": "K: actions that a policy sample answers with."})
    frame_tokens: int = field(default=276, metadata={"help": "Tokens of the frame that a world-model sample writes."})
    loss_chunk_size: int | None = field(default=None, metadata={"help": "Rows of a chunk; by default the model's."})
    num_layers: int = field(default=8, metadata={"help": "Layers of the decoder under which the mask is measured."})
    mask_lengths: list[int] = field(
        default_factory=lambda: [64, 128, 256, 512, 1024, 2048, 4096],
        metadata={"help": "Tokens of the sequence whose mask is built."},
    )
    repetitions: int = field(default=3, metadata={"help": "Repetitions of everything that is timed."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the numbers, the machine and commit."})
    measure_memory: bool = field(
        default=False, metadata={"help": "Internal: print the bytes that loss and backward take, as JSON, and stop."}
    )


def make_config(arguments: BenchmarkArguments) -> WorldVLAConfig:
    """The decoder's sizes, with heads of 64."""
    return WorldVLAConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=11 * arguments.hidden_size // 4,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=max(1, arguments.hidden_size // 64),
        loss_chunk_size=arguments.loss_chunk_size,
    )


def make_labels(arguments: BenchmarkArguments, batch: str) -> torch.Tensor:
    """Labels at the end of every row: K actions or one frame, and the separator."""
    config = make_config(arguments)
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((arguments.batch_size, arguments.length), IGNORED_LABEL)
    for row in range(arguments.batch_size):
        is_world = batch == "world_model" or (batch == "mixed" and row % 2 == 1)
        answer = arguments.frame_tokens if is_world else arguments.chunk_actions * config.action_block_length
        start = arguments.length - answer - 1
        drawn = torch.randint(4, config.image_token_id_start + config.num_image_tokens, (answer,), generator=generator)
        labels[row, start:-1] = drawn
        labels[row, start] = config.boi_token_id if is_world else config.boa_token_id
        labels[row, -1] = config.sep_token_id
    return labels


def make_loss(arguments: BenchmarkArguments, batch: str, way: str) -> Callable[[], None]:
    """Make a call that computes the loss and the gradients of the hidden states and the head."""
    torch.manual_seed(0)
    config, labels = make_config(arguments), make_labels(arguments, batch)
    head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    hidden_states = torch.randn(*labels.shape, config.hidden_size, requires_grad=True)
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL).flatten()

    def call() -> None:
        hidden_states.grad = head.weight.grad = None
        if way == "all logits":
            loss = F.cross_entropy(head(hidden_states).flatten(0, 1), shifted)
        else:
            loss = role_losses(hidden_states, labels, head, config).loss
        loss.backward()

    return call


def compare_loss_time(arguments: BenchmarkArguments, batch: str) -> Row:
    """Loss and backward of labelled chunks against those of all logits."""
    plain, chunked = fastest(arguments.repetitions, *(make_loss(arguments, batch, way) for way in WAYS))
    return Row(
        what=f"loss and backward, {batch}",
        shape=_shape(arguments, batch),
        baseline=f"all logits: {plain:.2f} s",
        result=f"{chunked:.2f} s",
        ratio=plain / chunked,
        target="at least 3",
        holds=plain >= 3 * chunked,
    )


def compare_loss_memory(arguments: BenchmarkArguments) -> list[Row]:
    """Peak memory of loss and backward beyond weights and hidden states, in a process of its own."""
    names = ("batch_size", "length", "vocab_size", "hidden_size", "chunk_actions", "frame_tokens", "threads")
    command = [sys.executable, __file__, "--measure_memory"]
    command += [text for name in names for text in (f"--{name}", str(getattr(arguments, name)))]
    if arguments.loss_chunk_size is not None:
        command += ["--loss_chunk_size", str(arguments.loss_chunk_size)]
    environment = {**os.environ, **EXACT_MEMORY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = []
    for batch, (plain, chunked) in json.loads(done.stdout.splitlines()[-1]).items():
        rows.append(
            Row(
                what=f"loss and backward, {batch}, peak memory",
                shape=_shape(arguments, batch),
                baseline=f"all logits: {plain / 2**20:.0f} MiB",
                result=f"{chunked / 2**20:.0f} MiB",
                ratio=chunked / plain,
                target="at most 1/3",
                holds=chunked <= plain / 3,
            )
        )
    return rows


def measure_memory(arguments: BenchmarkArguments) -> dict[str, list[int]]:
    """Bytes that loss and backward need at their peak. Linux only: its kernel keeps the peak."""
    peaks: dict[str, list[int]] = {batch: [] for batch in BATCHES}
    for batch in BATCHES:
        for way in WAYS:
            call = make_loss(arguments, batch, way)
            before = process_memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            call()
            peaks[batch].append(process_memory("VmHWM") - before)
            del call
    return peaks


@torch.no_grad()
def measure_mask(model: WorldVLAModel, arguments: BenchmarkArguments, length: int) -> Row:
    """What building the mask costs, as a share of the decoder's forwards it was built in."""
    ids = torch.randint(16384 % arguments.vocab_size, arguments.vocab_size, (1, length))
    block, answer = model.config.action_block_length, arguments.chunk_actions * model.config.action_block_length
    for start in range(length - min(answer, length // block * block), length, block):
        ids[0, start], ids[0, start + block - 1] = model.config.boa_token_id, model.config.eoa_token_id
    padding = torch.ones_like(ids)
    shares: list[tuple[float, float]] = []
    with _time_of_masks() as building:
        for _ in range(arguments.repetitions + 1):
            before, start_time = building[0], now()
            model(ids, attention_mask=padding, use_cache=False)
            shares.append((now() - start_time, building[0] - before))
    forward, mask = (min(values) for values in zip(*shares[1:], strict=True))
    return Row(
        what="building the mask",
        shape=f"1 x {length}, {arguments.num_layers} layers of {arguments.hidden_size}",
        baseline=f"forward of the decoder: {1e3 * forward:.1f} ms",
        result=f"{1e3 * mask:.2f} ms",
        ratio=mask / forward,
        target="under 0.02",
        holds=mask < 0.02 * forward,
    )


@contextmanager
def _time_of_masks() -> Iterator[list[float]]:
    """Count the seconds spent in building masks."""
    seconds, build = [0.0], modeling_worldvla.prepare_mask

    def timed(*arguments: Any) -> Any:
        start = now()
        try:
            return build(*arguments)
        finally:
            seconds[0] += now() - start

    modeling_worldvla.prepare_mask = timed  # type: ignore[assignment]
    try:
        yield seconds
    finally:
        modeling_worldvla.prepare_mask = build


def run(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measure everything.

    Args:
        arguments (`BenchmarkArguments`): all options.

    Returns:
        `dict`: machine, commit, options and one entry per line of the table.
    """
    rows = [compare_loss_time(arguments, batch) for batch in BATCHES] + compare_loss_memory(arguments)
    model = WorldVLAModel(make_config(arguments)).eval()
    rows += [measure_mask(model, arguments, length) for length in arguments.mask_lengths]
    preset = f"{arguments.num_layers} layers of {arguments.hidden_size}"
    return collect(rows, preset, "float32", arguments.repetitions)


def _shape(arguments: BenchmarkArguments, batch: str) -> str:
    labels = int((make_labels(arguments, batch) != IGNORED_LABEL).sum())
    sizes = f"{arguments.batch_size} x {arguments.length} x {arguments.vocab_size}"
    return f"{sizes}, width {arguments.hidden_size}, {labels} labels"


def main() -> None:
    """Command line entry."""
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    torch.set_num_threads(arguments.threads)
    if arguments.measure_memory:
        sys.stdout.write(f"{json.dumps(measure_memory(arguments))}\n")
        return
    results = run(arguments)
    report(results, arguments.output)


if __name__ == "__main__":
    main()
