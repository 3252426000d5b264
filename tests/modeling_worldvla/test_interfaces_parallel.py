"""Tensor parallelism and FSDP2 over two processes on the CPU give what one process gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .sequences import tiny_model

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"plain": {}, "norms of two shards": {"model_parallel_size": 2}, "tied": {"tie_word_embeddings": True}}


def run_two_processes(mode, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.modeling_worldvla.parallel_processes", mode, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"report_{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(params=MODELS)
def folder(tmp_path, request):
    """A saved model, none of whose norms is as made."""
    model = tiny_model(**MODELS[request.param])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    return tmp_path


def test_every_rule_of_the_plans_names_something():
    """In one process: a plan that matches nothing would leave the weights whole."""
    model = tiny_model()
    modules = {name.replace(".0.", ".*.").replace(".1.", ".*.") for name, _ in model.named_modules()}
    linears = {
        name.replace(".0.", ".*.").replace(".1.", ".*.")
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding))
    }
    assert set(model.tp_plan) <= modules and linears <= set(model.tp_plan)
    if hasattr(model, "fsdp_plan"):
        wrapped = {"model.embed_tokens", "model.norm", "lm_head"}
        assert wrapped <= set(model.fsdp_plan) <= wrapped | {"model.layers.*"}
    assert set(model._no_split_modules) == {"WorldVLADecoderLayer"}


@pytest.mark.slow  # starts two processes
def test_tensor_parallel_equals_one_process(folder):
    for report in run_two_processes("tensor", folder):
        assert report["local_heads"] == 2
        assert report["predict_action_chunk"] and report["predict_next_frame"]
        assert report["logits"] < 1e-4 and report["loss"] < 1e-5
        assert report["gradients"][1] < 1e-5, report["gradients"]


@pytest.mark.slow  # starts two processes
def test_fully_sharded_step_equals_one_process(folder):
    for report in run_two_processes("sharded", folder):
        assert report["local_rows"] == 32
        assert report["predict_action_chunk"] and report["predict_next_frame"]
        assert report["loss"] < 1e-5
        assert report["gradients"][1] < 1e-5, report["gradients"]
