"""The benchmark runs, at a size that says nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is asked of the Linux kernel")
def test_the_benchmark_prints_a_table_and_writes_its_numbers(tmp_path):
    output = tmp_path / "results.json"
    sizes = {"--preset": "tiny-128", "--image_size": 32, "--frames": 3, "--slice_size": 2, "--num_actions": 50}
    options = [str(value) for pair in sizes.items() for value in pair]
    command = [sys.executable, "benchmarks/tokenization.py", *options, "--repetitions", "1", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert [row["what"] for row in results["rows"]] == [
        "encode a batch, time",
        "encode a batch, peak memory",
        *["processor outside its VQ-GAN"] * 2,
        "encode and decode actions",
    ]
    assert all(row["ratio"] > 0 for row in results["rows"])
    assert results["rows"][1]["baseline"].startswith("largest slice, 2: ")
    assert results["machine"]["torch"] and results["dtype"] == "float32" and results["threads"] == 1
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(results["rows"]) and all(line.count("|") == 8 for line in table)
