"""Speed of decoding chunks and frames, as ratios to one-token decoding of the same weights in one run.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py --output results.json
    OMP_NUM_THREADS=1 python benchmarks/decoding.py --checkpoint outputs/demo-train/checkpoint \
        --demonstrations outputs/demo-train/held_out

Prints a Markdown table. The baseline is `generate()`: one token per forward, under the same mask and the same grammar.
Without a checkpoint weights and prompts are random, and no draft is right.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import HfArgumentParser

from benchmarks.measuring import Row, collect, fastest, now, report, size_and_dtype
from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM
from modeling_worldvla.decoding_cache_worldvla import DecodingCache


@dataclass
class BenchmarkArguments:
    """Options of `benchmarks/decoding.py`."""

    hidden_size: int = field(default=512, metadata={"help": "Width of the model with random weights."})
    num_layers: int = field(default=8, metadata={"help": "Its layers."})
    vocab_size: int = field(default=65536, metadata={"help": "Its vocabulary."})
    text_tokens: int = field(default=38, metadata={"help": "Text tokens of a random prompt."})
    image_codes: int = field(default=16, metadata={"help": "Side of a random frame in codes."})
    chunk_sizes: list[int] = field(default_factory=lambda: [5, 10, 25], metadata={"help": "Actions of a chunk."})
    checkpoint: str | None = field(default=None, metadata={"help": "Trained model; measures frames by draft only."})
    demonstrations: str | None = field(default=None, metadata={"help": "HDF5 file or folder of held-out frames."})
    frames: int = field(default=4, metadata={"help": "Frames to imagine with a trained model."})
    repetitions: int = field(default=3, metadata={"help": "Repetitions of everything that is timed."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the numbers, the machine and commit."})


def generate_chunk(model: Any, prompt: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """What `predict_action_chunk` returns, by `generate()`."""
    answer = model.generate(prompt, token_grammar="policy", chunk_size=chunk_size, do_sample=False)
    return answer[:, prompt.shape[1] : -1].view(1, chunk_size, -1)[..., 1:-1]


def generate_frame(model: Any, prompt: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What `predict_next_frame` returns, by `generate()`."""
    answer = model.generate(prompt, token_grammar="world_model", do_sample=False)
    return answer[:, prompt.shape[1] + 3 : -2].view(1, height, width + 1)[..., :-1]


def make_model(arguments: BenchmarkArguments) -> Any:
    """A model with random weights and the official token ids."""
    torch.manual_seed(0)
    config = WorldVLAConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=11 * arguments.hidden_size // 4,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=max(1, arguments.hidden_size // 64),
    )
    return WorldVLAForCausalLM(config).eval()


def make_prompt(config: Any, text_tokens: int, side: int, role: str) -> torch.Tensor:
    """Random text, then two frames (policy) or a frame and an action (world model), then the separator."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, count: int, *shape: int) -> list[Any]:
        return torch.randint(low, low + count, shape, generator=generator).tolist()

    def image() -> list[int]:
        rows = draw(config.image_token_id_start, config.num_image_tokens, side, side)
        grid = config.grid_token_id_start + side // config.codes_per_grid_unit
        return [config.boi_token_id, grid, grid, *sum((row + [config.eol_token_id] for row in rows), []), *end]

    end = [config.eoi_token_id]
    bins = draw(config.action_token_id_start, config.num_action_tokens, config.action_dim)
    action = [config.boa_token_id, *bins, config.eoa_token_id]
    text = draw(config.vocab_size - 1000, 1000, text_tokens)
    shown = image() + image() if role == "policy" else image() + action
    return torch.tensor([[config.bos_token_id, *text, *shown, config.sep_token_id]])


def compare_chunk(model: Any, prompt: torch.Tensor, chunk_size: int, arguments: BenchmarkArguments) -> list[Row]:
    """A chunk at once against one token per forward, the forward over the prompt apart."""
    calls: dict[str, Callable[[], Any]] = {
        "one": lambda: generate_chunk(model, prompt, chunk_size),
        "chunk": lambda: model.predict_action_chunk(prompt, chunk_size=chunk_size),
    }
    answers = {name: call() for name, call in calls.items()}
    same = float((answers["one"] == answers["chunk"]).float().mean())
    prefill: dict[str, float] = {}
    decode: dict[str, float] = {}
    plain = float("inf")
    for _ in range(arguments.repetitions):  # everything in turns, so that a noisy while hits all
        for name, call in calls.items():
            first, rest = time_call(model, call)
            prefill[name] = min(first, prefill.get(name, first))
            decode[name] = min(rest, decode.get(name, rest))
        with torch.no_grad():
            plain = min(plain, *fastest(1, lambda: model(prompt, use_cache=True, logits_to_keep=1)))
    target = {5: 4.0, 10: 8.0, 25: 15.0}.get(chunk_size)
    ratio = decode["one"] / decode["chunk"]
    shape = f"K = {chunk_size}, prompt {prompt.shape[1]}"
    return [
        Row(
            what="chunk, decode only",
            shape=shape,
            baseline=f"generate(): {decode['one']:.3f} s",
            result=f"{decode['chunk']:.3f} s, {same:.1%} of the bins equal",
            ratio=ratio,
            target=f"at least {target:g}" if target else "none",
            holds=target is None or ratio >= target,
        ),
        Row(
            what="chunk, prefill",
            shape=shape,
            baseline=f"model(input_ids): {plain:.3f} s",
            result=f"{prefill['chunk']:.3f} s",
            ratio=prefill["chunk"] / plain,
            target="at most 1 (noise: 5 %)",
            holds=prefill["chunk"] <= 1.05 * plain,
        ),
    ]


def time_call(model: Any, call: Callable[[], Any], clock: Callable[[], float] = now) -> tuple[float, float]:
    """Seconds of the first forward of the decoder inside a call, and of the rest of the call."""
    ends: list[float] = []

    def note(*_: Any) -> None:
        if not ends:  # a clock that waits for a card must not do so at every forward
            ends.append(clock())

    hook = model.model.register_forward_hook(note)
    try:
        start = clock()
        call()
        end = clock()
    finally:
        hook.remove()
    return ends[0] - start, end - ends[0]


def compare_frames(model: Any, prompts: list[torch.Tensor], side: tuple[int, int], arguments: Any) -> list[Row]:
    """The next frame with every draft against one token per forward."""
    rows, trained = [], arguments.checkpoint is not None
    expected = [generate_frame(model, prompt, *side) for prompt in prompts]
    for draft in ("none", "last_frame", "jacobi"):
        outputs = [model.predict_next_frame(prompt, draft=draft, return_dict_in_generate=True) for prompt in prompts]
        same = sum(float((out.image_ids == ids).float().mean()) for out, ids in zip(outputs, expected, strict=True))
        one, ours = fastest(
            arguments.repetitions,
            lambda: [generate_frame(model, prompt, *side) for prompt in prompts],
            lambda draft=draft: [model.predict_next_frame(prompt, draft=draft) for prompt in prompts],
        )
        accepted = sum(float(out.acceptance_rate.mean()) for out in outputs) / len(prompts) if draft != "none" else 0.0
        target = 4.0 if trained and draft == "jacobi" else 2.0
        details = [f"{ours / len(prompts):.3f} s per frame", f"{same / len(prompts):.1%} of the codes equal"]
        details += [f"{sum(out.num_forwards for out in outputs) / len(prompts):.1f} forwards"]
        details += [f"{accepted:.1%} of the drafts right"] if draft != "none" else []
        rows.append(
            Row(
                what=f"next frame, draft {draft}",
                shape=f"{side[0]} x {side[1]} codes, prompt {prompts[0].shape[1]}",
                baseline=f"generate(): {one / len(prompts):.3f} s per frame",
                result=", ".join(details),
                ratio=one / ours,
                target=f"at least {target:g}",
                holds=one / ours >= target,
            )
        )
    return rows


def compare_extra_tokens(model: Any, prompt: torch.Tensor, arguments: BenchmarkArguments) -> list[Row]:
    """What more tokens in a forward cost, in forwards of one token: the head's rows of image tokens included."""
    config, length = model.config, prompt.shape[1]
    cache = DecodingCache(config, length + 64)
    head = model.lm_head.weight[config.image_token_id_start :][: config.num_image_tokens]
    counts = [1, 2, 3, 5, 9, 17, 33]
    tokens = prompt.repeat(1, -(-max(counts) // length))  # a prompt may be shorter than the longest step

    @torch.no_grad()
    def feed(start: int, count: int) -> None:
        slots = torch.arange(start, start + count)[None]
        cache.seek(slots, start, start + count)
        mask = torch.ones(1, count, start + count, dtype=torch.bool).tril(start)
        torch.nn.functional.linear(model._extend(tokens[:, :count], mask, slots, cache), head)

    feed(0, length)
    calls = [lambda count=count: [feed(length, count) for _ in range(10)] for count in counts]
    one, *times = (seconds / 10 for seconds in fastest(arguments.repetitions + 2, *calls))
    return [
        Row(
            what=f"forward of 1 + {count - 1} tokens",
            shape=f"{length} cached",
            baseline=f"1 token: {one * 1e3:.1f} ms",
            result=f"{seconds * 1e3:.1f} ms, {(seconds / one - 1) / (count - 1):.3f} forwards per extra token",
            ratio=seconds / one,
            target="none",
            holds=True,
        )
        for count, seconds in zip(counts[1:], times, strict=True)
    ]


def read_prompts(arguments: BenchmarkArguments) -> tuple[Any, list[torch.Tensor], tuple[int, int]]:
    """A trained model, world-model prompts spread over the first episode of held-out frames, and a frame's size."""
    from evaluation.checkpoints import load_checkpoint
    from tokenization.demonstrations import find_demonstration_files, read_demonstrations

    if arguments.checkpoint is None or arguments.demonstrations is None:
        raise ValueError(
            "A trained model is measured on held-out frames, got `--checkpoint` without `--demonstrations`. Give both."
        )
    model, processor = load_checkpoint(arguments.checkpoint, "cpu")
    episode = read_demonstrations(find_demonstration_files([arguments.demonstrations])[0])[0]
    frames, actions = episode.frames(), processor.encode_actions(episode.actions)
    prompts = []
    for number in range(arguments.frames):
        step = (len(actions) - 1) * number // arguments.frames
        codes = processor.encode_images([frames[step]])
        shown = {"images": [codes[0]], "actions": actions[step : step + 1]}
        prompts.append(processor(**shown, role="world_model", return_tensors="pt")["input_ids"])
    return model, prompts, (codes.shape[1], codes.shape[2])


def run(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measure everything.

    Args:
        arguments (`BenchmarkArguments`): all options.

    Returns:
        `dict`: machine, commit, options and one entry per line of the table.
    """
    if arguments.checkpoint is not None:
        model, prompts, side = read_prompts(arguments)
        rows = compare_frames(model, prompts, side, arguments)
    else:
        model = make_model(arguments)
        prompt = make_prompt(model.config, arguments.text_tokens, arguments.image_codes, "policy")
        rows = [row for size in arguments.chunk_sizes for row in compare_chunk(model, prompt, size, arguments)]
        prompt = make_prompt(model.config, arguments.text_tokens, arguments.image_codes, "world_model")
        rows += compare_frames(model, [prompt], (arguments.image_codes, arguments.image_codes), arguments)
        rows += compare_extra_tokens(model, prompt, arguments)
    return collect(rows, *size_and_dtype(model), arguments.repetitions)


def main() -> None:
    """Command line entry."""
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    torch.set_num_threads(arguments.threads)
    results = run(arguments)
    report(results, arguments.output)


if __name__ == "__main__":
    main()
