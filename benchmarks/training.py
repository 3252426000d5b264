"""Speed and memory of a training step, and the wait for data, as ratios measured in one run.

    OMP_NUM_THREADS=2 python benchmarks/training.py --threads 2 --output results.json
    OMP_NUM_THREADS=2 python benchmarks/training.py --threads 2 --tokens tokens/
    python benchmarks/training.py --device cuda --shapes 1b 7b-lora --peak_tflops 989

Prints a Markdown table. Weights and tokens are random. A step is forward, loss, backward and AdamW. It is compared
with the same step by the logits of all tokens under a dense float mask: with the loss of the official code (class
weights, z-loss) under eager and fused attention, and with the paper's. Both give one loss, which the table shows.

With `--tokens`, a data set of train/pretokenize.py, a model of the same size is trained on it, and the share of the
time that it waits for data is told. With `--device cuda`, tokens per second and the share of the card's peak: model
FLOPs are those that the mathematics asks for, without what checkpointing computes twice.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch.nn import functional as F
from transformers import HfArgumentParser, PrinterCallback

from benchmarks.forward import make_labels
from benchmarks.measuring import EXACT_MEMORY, Row, collect, fastest, process_memory, report
from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM, build_action_attention_mask, count_labels
from modeling_worldvla.loss_worldvla import IGNORED_LABEL, class_weights, world_model_labels
from tokenization.choices_worldvla import require_choice
from train.adapters import add_adapters
from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments
from train.collation import WorldVLACollator
from train.episodes import TokenizedEpisodes
from train.initialization import load_processor
from train.run import build_datasets
from train.trainer import WorldVLATrainer

WAYS = ("all logits", "labelled tokens")
SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_attention_heads": 16},
    "7b-lora": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}


class Baseline(NamedTuple):
    """A usual way to write the step: form of the loss, and the attention of the logits' decoder."""

    name: str
    form: str
    attention: str


BASELINES = (
    Baseline("official loss, eager attention", "official", "eager"),
    Baseline("official loss, sdpa", "official", "sdpa"),
    Baseline("paper's loss, sdpa", "paper", "sdpa"),
)


@dataclass
class BenchmarkArguments:
    """Options of `benchmarks/training.py`."""

    batch_size: int = field(default=2, metadata={"help": "Samples of a step, policy and world model by turns."})
    length: int = field(default=640, metadata={"help": "Tokens of a sample."})
    vocab_size: int = field(default=65536, metadata={"help": "Entries of the vocabulary."})
    hidden_size: int = field(default=512, metadata={"help": "Width of the model."})
    num_layers: int = field(default=8, metadata={"help": "Layers of the model."})
    chunk_actions: int = field(default=5, metadata={"help": "K: actions that a policy sample answers with."})
    frame_tokens: int = field(default=276, metadata={"help": "Tokens of the frame that a world-model sample writes."})
    loss_chunk_size: int | None = field(default=None, metadata={"help": "Rows of a chunk; by default the model's."})
    tokens: str | None = field(default=None, metadata={"help": "Pretokenized data set: measures the wait for it."})
    steps: int = field(default=20, metadata={"help": "Steps on that data set, half of which are measured."})
    device: str = field(default="cpu", metadata={"help": "cpu: ratios; cuda: tokens per second of the shapes."})
    shapes: list[str] = field(default_factory=lambda: ["1b", "7b-lora"], metadata={"help": "What cuda measures."})
    peak_tflops: float = field(default=0.0, metadata={"help": "The card's dense bfloat16 peak, from its data sheet."})
    lora_rank: int = field(default=32, metadata={"help": "Rank of the adapters of such shapes."})
    checkpointing: bool = field(default=False, metadata={"help": "cuda: compute activations twice to save memory."})
    repetitions: int = field(default=3, metadata={"help": "Repetitions of everything that is timed."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the numbers, the machine and commit."})
    measure_memory: bool = field(
        default=False, metadata={"help": "Internal: print the bytes that each way takes, as JSON, and stop."}
    )

    def __post_init__(self) -> None:
        """Check every option before anything is measured."""
        require_choice("device", self.device, ["cpu", "cuda"])
        for shape in self.shapes:
            require_choice("shape", shape, SHAPES)
        if self.device == "cuda" and self.peak_tflops <= 0:
            raise ValueError(
                "`--device cuda` tells the share of the card's peak: give its dense bfloat16 TFLOP/s as "
                "`--peak_tflops` (H100 SXM: 989, A100: 312)."
            )


def make_model(arguments: BenchmarkArguments, form: str, **changes: Any) -> WorldVLAForCausalLM:
    """The model with random weights and the official token ids, unless others are given; the same every time."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": arguments.vocab_size,
        "hidden_size": arguments.hidden_size,
        "intermediate_size": 11 * arguments.hidden_size // 4,
        "num_hidden_layers": arguments.num_layers,
        "num_attention_heads": max(1, arguments.hidden_size // 64),
        "loss_chunk_size": arguments.loss_chunk_size,
        "loss_form": form,
        "z_loss_weight": 1e-5 if form == "official" else 0.0,
    } | changes
    return WorldVLAForCausalLM(WorldVLAConfig(**sizes, num_key_value_heads=sizes["num_attention_heads"])).train()


def make_batch(arguments: BenchmarkArguments) -> dict[str, torch.Tensor]:
    """Random tokens; each row ends with what is labelled: K actions or one frame, by turns."""
    labels = make_labels(arguments, "mixed")  # type: ignore[arg-type]
    text = torch.randint(16384 % arguments.vocab_size, arguments.vocab_size, labels.shape)
    ids = torch.where(labels == IGNORED_LABEL, text, labels)
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def loss_of_all_logits(model: WorldVLAForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss as it is usually written: a dense float mask, all logits, a weight for each token."""
    config, labels = model.config, batch["labels"]
    seen = build_action_attention_mask(batch["input_ids"], config, batch["attention_mask"])[:, None]
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    logits = model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).logits.float()
    logits = logits[:, :-1].contiguous().view(-1, config.vocab_size)
    targets = labels[:, 1:].reshape(-1)
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED_LABEL)
    labelled = targets != IGNORED_LABEL
    if config.loss_form == "official":
        weights = class_weights(targets, config) * labelled
        z_loss = (torch.logsumexp(logits, dim=-1).square() * labelled).sum() / labelled.sum()
        return (weights * losses).sum() / weights.sum() + config.z_loss_weight * z_loss
    is_world = world_model_labels(labels, config)[:, 1:].reshape(-1)
    actions, world = count_labels(labels, config)
    weights = torch.where(is_world, config.world_model_loss_weight / world, 1 / actions)
    return (weights * losses).sum()


def make_step(arguments: BenchmarkArguments, baseline: Baseline, way: str) -> Callable[[], float]:
    """Make a call that trains one step and gives its loss."""
    model, batch = make_model(arguments, baseline.form), make_batch(arguments)
    model.set_attn_implementation("sdpa" if way == WAYS[1] else baseline.attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step() -> float:
        loss = model(**batch).loss if way == WAYS[1] else loss_of_all_logits(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def compare_time(arguments: BenchmarkArguments, baseline: Baseline) -> Row:
    """A step by labelled tokens against one by all logits."""
    steps = [make_step(arguments, baseline, way) for way in WAYS]
    full_loss, loss = (step() for step in steps)
    plain, ours = fastest(arguments.repetitions, *steps)
    return Row(
        what=f"step: {baseline.name}",
        shape=_shape(arguments),
        baseline=f"all logits: {plain:.2f} s, loss {full_loss:.5f}",
        result=f"{ours:.2f} s, loss {loss:.5f}",
        ratio=plain / ours,
        target="at least 3",
        holds=plain >= 3 * ours,
    )


def measure_decoder(arguments: BenchmarkArguments) -> Row:
    """What both ways have in common: the decoder forward and backward, as a share of the step by labelled tokens."""
    step = make_step(arguments, BASELINES[-1], WAYS[1])
    model, batch = make_model(arguments, BASELINES[-1].form), make_batch(arguments)
    inputs = {name: values for name, values in batch.items() if name != "labels"}

    def decode() -> None:
        model.zero_grad()
        model.model(**inputs, use_cache=False).last_hidden_state.sum().backward()

    whole, decoder = fastest(arguments.repetitions, step, decode)
    return Row(
        what="of it the decoder alone",
        shape=_shape(arguments),
        baseline=f"step: {whole:.2f} s",
        result=f"{decoder:.2f} s",
        ratio=decoder / whole,
        target="none",
        holds=True,
    )


def compare_memory(arguments: BenchmarkArguments) -> list[Row]:
    """Peak memory of the second step, in a process of its own."""
    names = ("batch_size", "length", "vocab_size", "hidden_size", "num_layers", "chunk_actions", "frame_tokens")
    command = [sys.executable, __file__, "--measure_memory", "--threads", str(arguments.threads)]
    command += [text for name in names for text in (f"--{name}", str(getattr(arguments, name)))]
    if arguments.loss_chunk_size is not None:
        command += ["--loss_chunk_size", str(arguments.loss_chunk_size)]
    environment = {**os.environ, **EXACT_MEMORY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = []
    for what, (plain, ours) in json.loads(done.stdout.splitlines()[-1]).items():
        rows.append(
            Row(
                what=what,
                shape=_shape(arguments),
                baseline=f"all logits: {plain / 2**20:.0f} MiB",
                result=f"{ours / 2**20:.0f} MiB",
                ratio=ours / plain,
                target="at most 1/3",
                holds=ours <= plain / 3,
            )
        )
    return rows


def measure_memory(arguments: BenchmarkArguments) -> dict[str, list[int]]:
    """Peak bytes of a step, with and without what weights, moments and the optimizer hold before it (Linux only)."""
    peaks: dict[str, list[int]] = {}
    for baseline in BASELINES:
        for way in WAYS:
            empty = process_memory("VmRSS")
            step = make_step(arguments, baseline, way)
            step()
            before = process_memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            step()
            peak = process_memory("VmHWM")
            del step
            peaks.setdefault(f"peak memory: {baseline.name}", []).append(peak - empty)
            peaks.setdefault(f"the same beyond weights and moments: {baseline.name}", []).append(peak - before)
    return peaks


def measure_wait(arguments: BenchmarkArguments) -> Row:
    """Train on a pretokenized data set, and tell the share of the time that the model waits for samples."""
    episodes = TokenizedEpisodes.load(str(arguments.tokens))
    processor = load_processor(episodes)
    samples = build_datasets(episodes, DataArguments(str(arguments.tokens)), processor, seed=0)["train"]
    model = make_model(arguments, "paper", **processor.model_config())
    with tempfile.TemporaryDirectory() as folder:
        options = WorldVLATrainingArguments(
            output_dir=folder,
            use_cpu=arguments.device == "cpu",
            per_device_train_batch_size=arguments.batch_size,
            max_steps=arguments.steps,
            logging_steps=max(1, arguments.steps // 2),
            save_strategy="no",
            disable_tqdm=True,
        )
        collator = WorldVLACollator(model.config.pad_token_id)
        trainer = WorldVLATrainer(model=model, args=options, train_dataset=samples, data_collator=collator)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    line = [line for line in trainer.state.log_history if "data_wait_share" in line][-1]
    return Row(
        what="wait for pretokenized data",
        shape=f"{arguments.batch_size} samples a step, {model.num_parameters() / 1e6:.0f}M parameters",
        baseline=f"{line['tokens_per_second']:.0f} tokens/s",
        result=f"{100 * line['data_wait_share']:.2f} % of the time",
        ratio=line["data_wait_share"],
        target="under 0.02",
        holds=line["data_wait_share"] < 0.02,
    )


def count_flops(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """Floating-point operations that a step asks for.

    Two per weight and token forward, as many backward to the inputs, and to the weights where these are trained;
    attention under the causal mask; the head at labels alone.
    """
    tokens, length = batch["input_ids"].numel(), batch["input_ids"].shape[1]
    labelled = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
    total = 0.0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            passes = 3 if module.weight.requires_grad else 2
            total += 2 * passes * module.weight.numel() * (labelled if name.endswith("lm_head") else tokens)
    config = model.config
    return total + 3 * config.num_hidden_layers * 2 * tokens * length * config.hidden_size


def measure_throughput(arguments: BenchmarkArguments, shape: str) -> Row:
    """Tokens per second in bfloat16, and the share of the card's peak."""
    device, with_adapters = torch.device(arguments.device), shape.endswith("-lora")
    batch = {name: values.to(device) for name, values in make_batch(arguments).items()}
    with device:
        model: Any = make_model(arguments, "paper", **SHAPES[shape])
    if with_adapters:
        options = ModelArguments(lora_rank=arguments.lora_rank, model_name_or_path=shape)
        model = add_adapters(model.to(torch.bfloat16), options)
    if arguments.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())  # waits for the device

    step()
    (seconds,) = fastest(arguments.repetitions, step)
    utilisation = count_flops(model, batch) / seconds / (1e12 * arguments.peak_tflops)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else process_memory("VmHWM")
    return Row(
        what=f"step, {shape}, bfloat16",
        shape=f"{arguments.batch_size} x {arguments.length}, {model.num_parameters() / 1e9:.2f}B parameters",
        baseline=f"{arguments.peak_tflops:g} TFLOP/s, peak {memory / 2**30:.1f} GiB",
        result=f"{batch['input_ids'].numel() / seconds:.0f} tokens/s",
        ratio=utilisation,
        target="at least 0.45",
        holds=utilisation >= 0.45,
    )


def run(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measure everything that the options ask for.

    Args:
        arguments (`BenchmarkArguments`): all options.

    Returns:
        `dict`: machine, commit, options and one entry per line of the table.
    """
    if arguments.device == "cuda":
        rows = [measure_throughput(arguments, shape) for shape in arguments.shapes]
    else:
        rows = [compare_time(arguments, baseline) for baseline in BASELINES]
        rows += [measure_decoder(arguments), *compare_memory(arguments)]
    if arguments.tokens is not None:
        rows.append(measure_wait(arguments))
    dtype = "float32" if arguments.device == "cpu" else "bfloat16"
    return collect(rows, "training steps", dtype, arguments.repetitions, arguments.device)


def _shape(arguments: BenchmarkArguments) -> str:
    labels = int((make_labels(arguments, "mixed") != IGNORED_LABEL).sum())  # type: ignore[arg-type]
    sizes = f"{arguments.batch_size} x {arguments.length} x {arguments.vocab_size}"
    parameters = make_model(arguments, "paper").num_parameters() / 1e6
    return f"{sizes}, {parameters:.1f}M parameters, {labels} labels"


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
