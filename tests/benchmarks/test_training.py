"""The benchmark runs, at a size that says nothing about speed; what it counts is counted right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.training import BASELINES, WAYS, BenchmarkArguments, count_flops, make_batch, make_model, make_step
from tests.conftest import DATASET
from tests.train.made_up_demonstrations import write_demonstrations
from train.pretokenize import main as pretokenize

ROOT = Path(__file__).parents[2]
SIZES = {"length": 40, "vocab_size": 20000, "hidden_size": 16, "num_layers": 1, "chunk_actions": 2, "frame_tokens": 30}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is asked of the Linux kernel")
def test_the_benchmark_prints_a_table_and_writes_its_numbers(tmp_path):
    output = tmp_path / "results.json"
    options = [str(value) for name, number in SIZES.items() for value in (f"--{name}", number)]
    command = [sys.executable, "benchmarks/training.py", *options, "--repetitions", "1", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    times = [f"step: {baseline.name}" for baseline in BASELINES]
    peaks = [
        f"{what}: {baseline.name}"
        for baseline in BASELINES
        for what in ("peak memory", "the same beyond weights and moments")
    ]
    assert [row["what"] for row in results["rows"]] == [*times, "of it the decoder alone", *peaks]
    assert all(row["ratio"] > 0 for row in results["rows"])
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(results["rows"]) and all(line.count("|") == 8 for line in table)


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda baseline: baseline.name)
def test_both_ways_train_the_same_step(baseline):
    arguments = BenchmarkArguments(**SIZES)
    losses = [make_step(arguments, baseline, way)() for way in WAYS]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] > 1


def test_waiting_for_pretokenized_data(processor, tmp_path):
    processor.save_pretrained(tmp_path / "processor")
    demonstrations = write_demonstrations(tmp_path / "square_demo.hdf5")
    options = ["--demonstrations", demonstrations, "--processor", str(tmp_path / "processor")]
    pretokenize([*options, "--dataset_name", DATASET, "--output_dir", str(tmp_path / "tokens")])
    arguments = BenchmarkArguments(**SIZES, tokens=str(tmp_path / "tokens"), steps=4)
    row = training.measure_wait(arguments)
    assert 0 < row.ratio < 1 and row.holds == (row.ratio < 0.02)
    assert row.result == f"{100 * row.ratio:.2f} % of the time" and float(row.baseline.split()[0]) > 0


def test_flops_by_hand():
    """A layer of width 16 has 4 x 16 x 16 and 3 x 16 x 44 weights; 80 tokens; 19 and 31 labels."""
    arguments = BenchmarkArguments(**SIZES)
    model, batch = make_model(arguments, "paper"), make_batch(arguments)
    weights, attention = 4 * 16 * 16 + 3 * 16 * 44, 3 * 2 * 80 * 40 * 16
    assert count_flops(model, batch) == 6 * (80 * weights + 50 * 16 * 20000) + attention
    model.requires_grad_(False)
    assert count_flops(model, batch) == 4 * (80 * weights + 50 * 16 * 20000) + attention


@pytest.mark.parametrize("shape", ["tiny", "tiny-lora"])
def test_throughput_is_measured(shape, monkeypatch):
    if shape.endswith("lora"):
        pytest.importorskip("peft")
    sizes = {"hidden_size": 16, "intermediate_size": 44, "num_hidden_layers": 1, "num_attention_heads": 1}
    monkeypatch.setattr(training, "SHAPES", {shape: sizes})
    arguments = BenchmarkArguments(
        **SIZES, shapes=[shape], repetitions=1, peak_tflops=0.001, lora_rank=2, checkpointing=True
    )
    row = training.measure_throughput(arguments, shape)
    assert row.what == f"step, {shape}, bfloat16" and row.ratio > 0
    assert row.holds == (row.ratio >= 0.45) and float(row.result.split()[0]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "Unknown device `gpu`"),
        ({"shapes": ["7b-lore"]}, r"Unknown shape `7b-lore`.*Did you mean `7b-lora`\?"),
        ({"device": "cuda"}, "share of the card's peak: give its dense bfloat16 TFLOP/s"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkArguments(**options)
