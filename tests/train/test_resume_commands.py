"""train/run.py stopped and killed as schedulers do it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import train.run
from train.callbacks import EXIT_STOPPED
from train.checkpoints import list_checkpoints
from train.pretokenize import main as pretokenize
from train.trainer import WorldVLATrainer

from .made_up_demonstrations import write_demonstrations

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = [
    "--hidden_size",
    "32",
    "--intermediate_size",
    "48",
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
]
OPTIONS += ["--use_cpu", "true", "--disable_tqdm", "true", "--per_device_train_batch_size", "2", "--save_steps", "2"]
OPTIONS += ["--attention_dropout", "0.1", "--lr_scheduler_type", "cosine"]
AVERAGE = ["--ema_decay", "0.9"]


@pytest.fixture(scope="module")
def tokens(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    processor.save_pretrained(folder / "processor")
    demonstrations = write_demonstrations(folder / "square_demo.hdf5")
    flags = ["--demonstrations", demonstrations, "--processor", folder / "processor", "--dataset_name", "made_up"]
    pretokenize([*map(str, flags), "--validation_fraction", "0.34", "--output_dir", str(folder / "tokens")])
    return folder / "tokens"


def flags_of(tokens, output, steps, more=AVERAGE):
    return ["--tokens", str(tokens), "--output_dir", str(output), "--max_steps", str(steps), *OPTIONS, *more]


def assert_same_model(output, whole):
    one, other = (load_file(folder / "model.safetensors") for folder in (output, whole))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_stopped_command_leaves_with_its_code_and_goes_on(tokens, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole", tmp_path / "run"
    metrics = train.run.main(flags_of(tokens, whole, 6))
    train_step = WorldVLATrainer.training_step

    def stop(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(WorldVLATrainer, "training_step", stop)
        with pytest.raises(SystemExit) as end:
            train.run.main(flags_of(tokens, output, 6))
    assert end.value.code == EXIT_STOPPED == 75
    assert [step for step, _ in list_checkpoints(output)] == [2, 3]
    assert not (output / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = train.run.main(flags_of(tokens, output, 6))
    assert again["eval_val_ind_loss"] == metrics["eval_val_ind_loss"]
    assert_same_model(output, whole)


def test_command_refuses_the_folder_of_another_run(tokens, tmp_path):
    train.run.main(flags_of(tokens, tmp_path, 2))
    with pytest.raises(ValueError, match=r"holds a run with other settings \(max_steps: 2 -> 4; seed: 42 -> 7\)"):
        train.run.main([*flags_of(tokens, tmp_path, 4), "--seed", "7"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    train.run.main(flags_of(tokens, tmp_path, 2))  # the same command once more changes nothing
    assert json.loads((tmp_path / "metrics.json").read_text())["eval_val_ind_loss"] == metrics["eval_val_ind_loss"]


def start(command, log):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=log.open("a"), stderr=subprocess.STDOUT
    )


def wait_for_checkpoint(process, output, step):
    while not (output / f"checkpoint-{step}").is_dir():
        assert process.poll() is None, "the run ended before its checkpoint"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_command_killed_at_random_moments(tokens, tmp_path):
    """SIGKILL falls anywhere between two checkpoints, some fifty steps of writing almost without a pause."""
    whole, output, generator = tmp_path / "whole", tmp_path / "run", random.Random(0)
    steps, log = 200, tmp_path / "log.txt"
    assert start(["train/run.py", *flags_of(tokens, whole, steps)], log).wait() == 0
    for kills in range(1, 9):
        process = start(["train/run.py", *flags_of(tokens, output, steps)], log)
        done = max((step for step, _ in list_checkpoints(output)), default=0)
        wait_for_checkpoint(process, output, done + 2)
        time.sleep(generator.uniform(0, 0.8))
        assert process.poll() is None, f"the run ended before kill {kills}"
        process.kill()
        process.wait()
    assert start(["train/run.py", *flags_of(tokens, output, steps)], log).wait() == 0
    assert_same_model(output, whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_launched_command_saves_when_the_launcher_is_told_to_stop(tokens, tmp_path):
    output, log, steps = tmp_path / "run", tmp_path / "log.txt", 100
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29581", "train/run.py"]
    process = start([*launch, *flags_of(tokens, output, steps)], log)
    wait_for_checkpoint(process, output, 2)
    process.terminate()
    assert process.wait() != 0
    text = log.read_text()
    assert "The same command goes on from there." in text
    last = max(step for step, _ in list_checkpoints(output))
    assert f"Stopped after step {last}." in text and last < steps
    assert start([*launch, *flags_of(tokens, output, steps)], log).wait() == 0
    whole = tmp_path / "whole"
    assert start([*launch, *flags_of(tokens, whole, steps)], log).wait() == 0
    assert_same_model(output, whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "script"), [("fsdp2", "tests/train/fsdp_on_processors.py"), ("zero3", "train/run.py")]
)
def test_a_model_in_parts_goes_on(tokens, tmp_path, name, script):
    """Killed, and resumed by the configurations of accelerate that come along."""
    if name == "zero3":
        pytest.importorskip("deepspeed", reason="optional: ZeRO-3")
    whole, output, log, steps = tmp_path / "whole", tmp_path / "run", tmp_path / "log.txt", 40
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no", "--config_file"]
    launch += [str(Path(train.run.__file__).parent / f"recipes/accelerate/{name}.yaml"), script]
    assert start([*launch, *flags_of(tokens, whole, steps, more=[])], log).wait() == 0, log.read_text()[-4000:]
    process = start([*launch, *flags_of(tokens, output, steps, more=[])], log)
    wait_for_checkpoint(process, output, 4)
    process.terminate()  # the launcher passes it on
    assert process.wait() != 0 and not (output / "model.safetensors").exists()
    assert start([*launch, *flags_of(tokens, output, steps, more=[])], log).wait() == 0, log.read_text()[-4000:]
    assert_same_model(output, whole)
