"""A run that was interrupted and one that was not end alike, to the bit."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from train.callbacks import EXIT_STOPPED
from train.checkpoints import list_checkpoints

from .resumable_runs import STEPS, run, write_task

KILLED = -9
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The server of processes finds this checkout."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def task(processor, samples, tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("task"), processor.model_config(), samples)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """The run that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole")
    assert run(task, output) == [0]
    return output


def assert_same_end(output, whole):
    last = f"checkpoint-{STEPS}"
    for file in ("final/model.safetensors", f"{last}/model.safetensors", f"{last}/weight_average.safetensors"):
        one, other = load_file(output / file), load_file(whole / file)
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one), file
    assert read_log(output) == read_log(whole)
    assert not list(output.glob("_*"))


def read_log(output):
    kept = (
        "step",
        "epoch",
        "loss",
        "loss_action",
        "loss_world_model",
        "grad_norm",
        "learning_rate",
        "eval_val_ind_loss",
    )
    lines = json.loads((output / "log.json").read_text())
    return [{key: line[key] for key in kept if key in line} for line in lines if "train_runtime" not in line]


def test_killed_in_and_after_steps(task, whole, tmp_path):
    """Before the first checkpoint, in the middle of an epoch, between epochs, and with everything done."""
    for step, kind in ((1, "kill in step"), (5, "kill after step"), (8, "kill after step"), (9, "kill in step")):
        assert run(task, tmp_path / "run", (kind, step)) == [KILLED]
    assert run(task, tmp_path / "run") == [0]
    assert_same_end(tmp_path / "run", whole)
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [9, 10]
    assert run(task, tmp_path / "run") == [0]  # a finished run does nothing more
    assert_same_end(tmp_path / "run", whole)
    assert "train_runtime" not in (tmp_path / "run/log.json").read_text()  # nor says that it took no time


def test_killed_while_checkpoints_are_written_and_dropped(task, whole, tmp_path):
    output = tmp_path / "run"
    for operation, complete in (
        (("open", "_unfinished/checkpoint-3/config.json"), []),
        (("os.rename", "_unfinished/checkpoint-3"), []),
        (("open", "_unfinished/checkpoint-6/trainer_state.json"), [3]),
        (("os.rename", "checkpoint-3"), [3, 6, 9]),
        (("os.rmdir", "_discarded-checkpoint-6"), [9, 10]),
    ):
        assert run(task, output, ("file operation", operation)) == [KILLED]
        assert [step for step, _ in list_checkpoints(output)] == complete
    assert run(task, output) == [0]
    assert_same_end(output, whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_file_operation(task, whole, tmp_path):
    """Until one run gets through to its end."""
    number, codes = 0, [KILLED]
    while codes == [KILLED]:
        number += 1
        output = tmp_path / f"run_{number}"
        codes = run(task, output, ("file operation", number), save_steps=5)
        assert run(task, output, save_steps=5) == [0]
        assert_same_end(output, whole)
        shutil.rmtree(output)
    assert codes == [0] and number > 60


def test_a_signal_ends_with_a_checkpoint_and_a_code_of_its_own(task, whole, tmp_path):
    output = tmp_path / "run"
    assert run(task, output, ("SIGTERM", 4)) == [EXIT_STOPPED]
    assert [step for step, _ in list_checkpoints(output)] == [3, 5]
    assert run(task, output) == [0]
    assert_same_end(output, whole)


def test_a_signal_in_the_middle_of_an_epoch_evaluates_nothing_more(task, tmp_path):
    by_epoch = {"eval_strategy": "epoch", "save_strategy": "epoch", "metric_for_best_model": "eval_val_ind_loss"}
    by_epoch["load_best_model_at_end"] = True
    assert run(task, tmp_path / "whole", **by_epoch) == [0]
    assert run(task, tmp_path / "run", ("SIGTERM", 5), **by_epoch) == [EXIT_STOPPED]
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [4, 6]
    assert run(task, tmp_path / "run", **by_epoch) == [0]
    assert read_log(tmp_path / "run") == read_log(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "final/model.safetensors") for name in ("run", "whole"))
    assert all(one[name].equal(other[name]) for name in one)


def test_a_log_line_goes_on(task, tmp_path):
    """Stopped between two lines of the log, the next line is the mean over all of its steps."""
    rarely = {"logging_steps": 5, "bf16": True}
    assert run(task, tmp_path / "whole", **rarely) == [0]
    assert run(task, tmp_path / "run", ("SIGINT", 6), **rarely) == [EXIT_STOPPED]
    assert run(task, tmp_path / "run", **rarely) == [0]
    assert [line["step"] for line in read_log(tmp_path / "run")] == [5, 10]
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_full_disk_leaves_the_last_good_checkpoint(task, whole, tmp_path):
    output = tmp_path / "run"
    assert run(task, output, ("full disk", 3)) == [1]
    message = (tmp_path / "error.txt").read_text()
    assert "checkpoint-6` could not be written: " in message
    assert f"The last good one is `{output}/checkpoint-3`. Free space on the disk" in message
    assert [step for step, _ in list_checkpoints(output)] == [3]
    assert {path.name for path in output.iterdir()} == {"checkpoint-3"}
    assert run(task, output) == [0]
    assert_same_end(output, whole)


def test_two_processes_killed_and_resumed(task, tmp_path):
    whole, output = tmp_path / "whole", tmp_path / "run"
    two = {"processes": 2, "per_device_train_batch_size": 2}
    assert run(task, whole, **two, port=29571) == [0, 0]
    assert run(task, output, ("kill in step", 7), **two, port=29572)[1] == KILLED
    assert [step for step, _ in list_checkpoints(output)] == [3, 6]
    assert run(task, output, ("SIGTERM", 7), **two, port=29573) == [EXIT_STOPPED, EXIT_STOPPED]  # one was told
    assert [step for step, _ in list_checkpoints(output)] == [6, 8]
    assert run(task, output, **two, port=29574) == [0, 0]
    assert_same_end(output, whole)


def test_early_stopping_counts_on(task, tmp_path):
    """Nothing improves at a learning rate of 1e-30, so the third evaluation of four ends the run."""
    stopping = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "learning_rate": 1e-30, "max_steps": 8}
    stopping |= {"metric_for_best_model": "eval_val_ind_loss", "early_stopping_patience": 2}
    output = tmp_path / "run"
    assert run(task, output, ("kill after step", 5), **stopping) == [KILLED]
    for _ in ("to the end", "not beyond it"):
        assert run(task, output, **stopping) == [0]
    steps = [line["step"] for line in json.loads((output / "log.json").read_text()) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
