"""One process, two processes and accumulation give one loss, one gradient, one evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.collation import WorldVLACollator
from train.scores import LabelScores

from .equal_runs import run

ROOT = Path(__file__).resolve().parents[2]
# Seen: 2e-8 in float64, where the softmax of the loss alone is float32; 3e-7 in float32.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-6}


@pytest.fixture
def folder(make_model, samples, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "samples.json").write_text(json.dumps([samples[index] for index in range(len(samples))]))
    return tmp_path


def assert_same(got, expected, tolerance):
    assert torch.allclose(got["losses"], expected["losses"], rtol=tolerance, atol=0)
    for one, other in zip(got["gradients"], expected["gradients"], strict=True):
        assert (one - other).norm() < tolerance * other.norm()
    assert got["metrics"] == pytest.approx(expected["metrics"], rel=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_accumulated_micro_batches_equal_one_batch(folder, dtype):
    whole = run(folder, dtype, 1, 1)
    assert len(whole["gradients"]) == 2 and whole["gradients"][0].dtype == dtype
    for micro_batches, packed_length in ((4, None), (2, 260)):
        assert_same(run(folder, dtype, 1, micro_batches, packed_length), whole, TOLERANCE[dtype])


def run_two_processes(folder, kind):
    """What each of two processes reports."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += ["-m", "tests.train.equal_runs", str(folder), kind]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"results_{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", ["whole", pytest.param("sharded", marks=pytest.mark.slow)])
def test_two_processes_equal_one(folder, kind):
    """With a whole model in each (DDP), and with one that is sharded over both (FSDP2)."""
    alone = {dtype: run(folder, dtype, 1, 1) for dtype in TOLERANCE}
    for results in run_two_processes(folder, kind):
        assert len(results) == 6
        for name, result in results.items():
            (dtype,) = (dtype for dtype in TOLERANCE if str(dtype) in name)
            assert_same(result, alone[dtype], TOLERANCE[dtype])


@pytest.mark.slow
def test_scores_of_a_sharded_model_equal_those_of_a_whole_one(folder, make_model, samples):
    model = make_model()
    scores = LabelScores(model.config)
    scores.update(model, WorldVLACollator(model.config.pad_token_id)([samples[i] for i in range(len(samples))]))
    for results in run_two_processes(folder, "scores"):
        assert results["scores"] == pytest.approx(scores.metrics(), rel=1e-6)


@pytest.mark.slow
def test_processes_stop_together(folder):
    """One of them sees a loss that is no number; each keeps its own batch."""
    for rank, result in enumerate(run_two_processes(folder, "diverge")):
        path = folder / "out" / f"offending_batch_step2_rank{rank}.safetensors"
        assert result["step"] == 1 and path.is_file()
        assert result["error"].startswith("The loss is nan, at step 2 ")
        assert f"(process {rank}, micro-batch" in result["error"] and f"`{path}`" in result["error"]
