"""The configurations of accelerate that come along, as commands: two processes that share a model equal one each."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import train.run

from .test_starting_points import DEBUG, tokens  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
ACCELERATE = Path(train.run.__file__).parent / "recipes" / "accelerate"

pytestmark = pytest.mark.slow


def launch(output, data, config, script, port):
    """Run the debug recipe in two processes on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no"]
    command += [
        "--main_process_port",
        str(port),
        *config,
        script,
        DEBUG,
        "--tokens",
        data,
        "--output_dir",
        str(output),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command += ["--disable_tqdm", "true", "--optim", "sgd", "--learning_rate", "0.1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return AutoModelForCausalLM.from_pretrained(output).state_dict()


@pytest.fixture(scope="module")
def expected(tokens, tmp_path_factory):  # noqa: F811
    """The weights that two processes with a whole model each end with."""
    plain = ["--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no"]
    return launch(tmp_path_factory.mktemp("plain"), tokens, plain, "train/run.py", 29561)


@pytest.mark.parametrize(
    ("name", "script"), [("fsdp2", "tests/train/fsdp_on_processors.py"), ("zero3", "train/run.py")]
)
def test_a_shared_model_ends_with_the_same_weights(tokens, expected, tmp_path, name, script):  # noqa: F811
    if name == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("optional: deepspeed")
    config = ["--config_file", str(ACCELERATE / f"{name}.yaml")]
    found = launch(tmp_path / "out", tokens, config, script, 29562)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(
            found[key], weight, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )
    kept = {path.name for path in (tmp_path / "out" / "checkpoint-1").iterdir()}
    assert kept & {"pytorch_model_fsdp.bin", "global_step1"}  # it was shared indeed
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["auto_map"]["AutoModelForCausalLM"] == "modeling_worldvla.WorldVLAForCausalLM"
    assert not list((tmp_path / "out").glob("_fsdp*"))
