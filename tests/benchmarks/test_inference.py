import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.inference import BenchmarkArguments

ROOT = Path(__file__).resolve().parents[2]


def test_prefill_and_decode_of_chunks_and_frames(tmp_path):
    output = tmp_path / "results.json"
    sizes = {
        "--hidden_size": 64,
        "--intermediate_size": 128,
        "--num_layers": 1,
        "--num_heads": 2,
        "--vocab_size": 17000,
    }
    options = [str(value) for pair in sizes.items() for value in pair]
    command = [sys.executable, "benchmarks/inference.py", "--device", "cpu", "--dtype", "float32", *options]
    command += ["--bandwidth_gb", "10", "--chunk_sizes", "2", "--frame_codes", "2", "--repetitions", "1"]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["rows"]
    whats = ["chunk, K = 2", "frame of 2 x 2 codes, draft none", "frame of 2 x 2 codes, draft jacobi"]
    assert [row["what"] for row in rows] == [f"{what}, {part}" for what in whats for part in ("prefill", "decode")]
    assert "6 forwards" in rows[1]["shape"] and "3 forwards" in rows[3]["shape"]
    layer = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64 + 4 * 32  # attention, MLP, norms, norms of queries and keys
    milliseconds = 4 * (layer + 256 * 64) / 10e9 * 1e3
    assert f"{6 * milliseconds:.2f} ms" in rows[1]["baseline"]
    assert all(0 < row["ratio"] < 1 for row in rows)


def test_a_bandwidth_is_needed():
    with pytest.raises(ValueError, match="--bandwidth_gb"):
        BenchmarkArguments(device="cpu")
