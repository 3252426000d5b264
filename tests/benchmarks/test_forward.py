"""The benchmark runs, at a size that says nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEAK = ", peak memory"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is asked of the Linux kernel")
def test_the_benchmark_prints_a_table_and_writes_its_numbers(tmp_path):
    output = tmp_path / "results.json"
    sizes = {"--batch_size": 2, "--length": 40, "--vocab_size": 20000, "--hidden_size": 16, "--chunk_actions": 2}
    sizes |= {"--frame_tokens": 30, "--num_layers": 1, "--loss_chunk_size": 16, "--repetitions": 1}
    options = [str(value) for pair in sizes.items() for value in pair]
    command = [sys.executable, "benchmarks/forward.py", *options, "--mask_lengths", "8", "32", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    names = [f"loss and backward, {name}{what}" for what in ("", PEAK) for name in ("mixed", "policy", "world_model")]
    assert [row["what"] for row in results["rows"]] == [*names, *["building the mask"] * 2]
    assert all(row["ratio"] > 0 for row in results["rows"])
    assert [row["shape"].split(", ")[-1] for row in results["rows"][:3]] == ["50 labels", "38 labels", "62 labels"]
    assert results["machine"]["torch"] and results["dtype"] == "float32" and results["threads"] == 1
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(results["rows"]) and all(line.count("|") == 8 for line in table)
