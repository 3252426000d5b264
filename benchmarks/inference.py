"""Milliseconds and memory of acting and imagining on a card, beside what its memory bandwidth allows.

    python benchmarks/inference.py --device cuda --bandwidth_gb 3350 --output results.json

Random weights of the 7B shape in bfloat16, random prompts: no draft is right, so a frame costs one forward per code,
or what Jacobi rounds make of it. The forward over the prompt ("prefill") is told apart from what follows ("decode"). A
forward of few tokens cannot be faster than its weights can be read: that time, over the measured one, is the ratio.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import HfArgumentParser

from benchmarks.decoding import make_prompt, time_call
from benchmarks.measuring import Row, collect, process_memory, report
from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM
from tokenization.choices_worldvla import require_choice


@dataclass
class BenchmarkArguments:
    """Options of `benchmarks/inference.py`; the sizes are those of the official 7B checkpoints."""

    hidden_size: int = field(default=4096, metadata={"help": "Width."})
    intermediate_size: int = field(default=11008, metadata={"help": "Width of the MLP."})
    num_layers: int = field(default=32, metadata={"help": "Layers."})
    num_heads: int = field(default=32, metadata={"help": "Attention heads."})
    vocab_size: int = field(default=65536, metadata={"help": "Vocabulary."})
    text_tokens: int = field(default=38, metadata={"help": "Text tokens of a prompt."})
    chunk_sizes: list[int] = field(default_factory=lambda: [5, 10, 25], metadata={"help": "Actions of a chunk."})
    frame_codes: list[int] = field(
        default_factory=lambda: [16, 32], metadata={"help": "Sides of frames in codes: 16 is 256 pixels, 32 is 512."}
    )
    drafts: list[str] = field(default_factory=lambda: ["none", "jacobi"], metadata={"help": "Drafts of frames."})
    repetitions: int = field(default=5, metadata={"help": "Repetitions; the fastest counts."})
    device: str = field(default="cuda", metadata={"help": "cuda; cpu for tiny sizes."})
    dtype: str = field(default="bfloat16", metadata={"help": "bfloat16, float16 or float32."})
    bandwidth_gb: float = field(default=0.0, metadata={"help": "The memory's bandwidth in 1e9 bytes a second."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the numbers, the machine and commit."})

    def __post_init__(self) -> None:
        """Check every option before anything is made."""
        require_choice("device", self.device, ["cuda", "cpu"])
        require_choice("dtype", self.dtype, ["bfloat16", "float16", "float32"])
        if self.bandwidth_gb <= 0:
            raise ValueError("Times are compared with the memory's bandwidth: give `--bandwidth_gb` (H100 SXM: 3350).")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`--device cuda`, but PyTorch sees no card. Give `--device cpu` and tiny sizes.")


def make_model(arguments: BenchmarkArguments) -> Any:
    """Random weights, made on the device in the dtype that they stay in."""
    torch.manual_seed(0)
    config = WorldVLAConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.intermediate_size,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.num_heads,
        num_key_value_heads=arguments.num_heads,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    try:
        with torch.device(arguments.device):
            return WorldVLAForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def measure(
    model: Any, arguments: BenchmarkArguments, what: str, prompt: torch.Tensor, rows: int, call: Callable[[], Any]
) -> list[Row]:
    """Time prefill and decode of a call, and compare the latter with reading the weights once a forward.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        arguments (`BenchmarkArguments`): device and bandwidth.
        what (`str`): what the call does, for the table.
        prompt (`torch.LongTensor` of shape `(1, P)`): what it is given.
        rows (`int`): rows of the head that a forward reads.
        call (`Callable`): the call; its answer says `num_forwards`.

    Returns:
        `list[Row]`: prefill, decode.
    """
    answer = call()
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = _wait_and_look if arguments.device == "cuda" else time.perf_counter
    times = [time_call(model, call, clock) for _ in range(arguments.repetitions)]
    memory = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else process_memory("VmHWM")
    layers = sum(weight.numel() for weight in model.model.layers.parameters())
    read = (layers + rows * arguments.hidden_size) * model.lm_head.weight.element_size()
    bound, forwards = read / (1e9 * arguments.bandwidth_gb), int(answer.num_forwards) - 1
    prefill, decode = min(first for first, _ in times), min(rest for _, rest in times)
    shape, peak = f"prompt {prompt.shape[1]}", f"peak {memory / 2**30:.2f} GiB"
    return [
        Row(f"{what}, prefill", shape, f"weights once: {1e3 * bound:.2f} ms", f"{1e3 * prefill:.2f} ms, {peak}",
            bound / prefill, "none", True),
        Row(f"{what}, decode", f"{shape}, {forwards} forwards", f"weights each time: {1e3 * forwards * bound:.2f} ms",
            f"{1e3 * decode:.2f} ms", forwards * bound / decode, "none", True),
    ]  # fmt: skip


def _wait_and_look() -> float:
    """Seconds, once the card has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def run(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measure everything.

    Args:
        arguments (`BenchmarkArguments`): all options.

    Returns:
        `dict`: machine, commit, options and one entry per line of the table.
    """
    model = make_model(arguments)
    rows: list[Row] = []
    prompt = make_prompt(model.config, arguments.text_tokens, arguments.frame_codes[0], "policy").to(arguments.device)
    for size in arguments.chunk_sizes:
        options: dict[str, Any] = {"chunk_size": size, "return_dict_in_generate": True}
        act = partial(model.predict_action_chunk, prompt, **options)
        rows += measure(model, arguments, f"chunk, K = {size}", prompt, model.config.num_action_tokens, act)
    for side in arguments.frame_codes:
        prompt = make_prompt(model.config, arguments.text_tokens, side, "world_model").to(arguments.device)
        for draft in arguments.drafts:
            look = partial(model.predict_next_frame, prompt, draft=draft, return_dict_in_generate=True)
            what = f"frame of {side} x {side} codes, draft {draft}"
            rows += measure(model, arguments, what, prompt, model.config.num_image_tokens, look)
    preset = f"{model.num_parameters() / 1e9:.2f}B parameters"
    return collect(rows, preset, arguments.dtype, arguments.repetitions, arguments.device)


def main() -> None:
    """Command line entry."""
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    report(run(arguments), arguments.output)


if __name__ == "__main__":
    main()
