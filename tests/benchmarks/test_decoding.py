"""The benchmark runs, at a size that says nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_benchmark_decodes_the_same_tokens_in_every_way(tmp_path):
    output = tmp_path / "results.json"
    sizes = {"--hidden_size": 64, "--num_layers": 1, "--vocab_size": 17000, "--image_codes": 2, "--text_tokens": 3}
    options = [str(value) for pair in sizes.items() for value in pair]
    command = [sys.executable, "benchmarks/decoding.py", *options, "--chunk_sizes", "2", "5", "--repetitions", "1"]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    rows = results["rows"]
    assert [row["what"] for row in rows] == [
        *["chunk, decode only", "chunk, prefill"] * 2,
        *[f"next frame, draft {draft}" for draft in ("none", "last_frame", "jacobi")],
        *[f"forward of 1 + {count} tokens" for count in (1, 2, 4, 8, 16, 32)],
    ]
    decoding = [row for row in rows if "decode only" in row["what"] or "next frame" in row["what"]]
    assert len(decoding) == 5 and all("100.0% of the" in row["result"] for row in decoding)
    assert all(row["ratio"] > 0 for row in rows) and results["threads"] == 1
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows) and all(line.count("|") == 8 for line in table)
