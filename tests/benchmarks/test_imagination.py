"""The benchmark runs, at a size that says nothing about speed; its tokens and its memory do."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks.imagination import BenchmarkArguments

ROOT = Path(__file__).resolve().parents[2]


def test_rollouts_in_every_way_make_the_same_tokens_and_memory_stays(tmp_path, make_model, processor):
    make_model(initializer_range=0.5).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    generator = np.random.default_rng(0)
    with h5py.File(tmp_path / "cup_demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "lift the cup"})
        data.attrs["macros_image_convention"] = "opengl"
        data["demo_0/actions"] = generator.uniform(-1, 1, (5, 7))
        data["demo_0/obs/agentview_rgb"] = generator.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    command = [sys.executable, "benchmarks/imagination.py", "--checkpoint", str(tmp_path / "checkpoint")]
    command += ["--demonstrations", str(tmp_path / "cup_demo.hdf5"), "--frames", "3", "--repetitions", "1"]
    command += ["--memory_frames", "120", "--output", str(tmp_path / "results.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    whats = [*(f"rollout, draft {draft}" for draft in ("none", "last_frame", "jacobi")), "memory of a long rollout"]
    assert [row["what"] for row in rows] == whats
    assert all("100.0% of the codes equal" in row["result"] for row in rows[:3])
    assert "of the drafts right" not in rows[0]["result"] and "of the drafts right" in rows[2]["result"]
    assert rows[3]["holds"] and rows[3]["ratio"] < 1.1


def test_the_long_rollout_must_be_long():
    with pytest.raises(ValueError, match="`--memory_frames` must be larger than 50, got 50"):
        BenchmarkArguments("c", "d", memory_frames=50)
