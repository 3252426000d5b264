"""What trackers get to see, and the speeds and shares that stand in the log."""

import pytest
import torch

from train.arguments import WorldVLATrainingArguments
from train.metering import StepMeter
from train.packing import PackingCollator
from train.scores import list_metrics

from .test_trainer import make_trainer

IN_EVERY_LINE = {
    "loss",
    "loss_action",
    "loss_world_model",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "padding_share",
    "data_wait_share",
    "peak_memory_gib",
}


def run(model, samples, folder, **options):
    settings = {"max_steps": 4, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    trainer = make_trainer(model, samples, folder, **(settings | options))
    trainer._bin_values = torch.linspace(-1, 1, model.config.num_action_tokens).expand(model.config.action_dim, -1)
    trainer._clipped_by_split = {"val_ind": [0.25, 0, 0, 0, 0, 0, 0.5]}
    trainer.train()
    return trainer


def test_lines_of_the_log(make_model, samples, tmp_path):
    model = make_model()
    history = run(model, samples, tmp_path).state.log_history
    lines = [line for line in history if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert IN_EVERY_LINE <= set(line)
        assert line["tokens_per_second"] > 0 and line["grad_norm"] > 0
        assert 0 <= line["data_wait_share"] <= 1 and 0 < line["padding_share"] < 0.5
        assert 0.1 < line["peak_memory_gib"] < 100
    evaluations = [line for line in history if "eval_val_ind_loss" in line]
    assert len(evaluations) == 2
    for line in evaluations:
        assert {f"eval_val_ind_{name}" for name in list_metrics(model.config, with_units=True)} <= set(line)
        assert line["eval_val_ind_clipped_actions_0"] == 0.25 and line["eval_val_ind_clipped_actions_6"] == 0.5


def test_tensorboard_gets_every_number(make_model, samples, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    model = make_model()
    trainer = run(model, samples, tmp_path, report_to="tensorboard")
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    tags = set(board.Tags()["scalars"])
    assert {f"train/{name}" for name in IN_EVERY_LINE} <= tags
    assert {f"eval/val_ind_{name}" for name in list_metrics(model.config, with_units=True)} <= tags
    logged = [line["loss_action"] for line in trainer.state.log_history if "loss" in line]
    assert [event.step for event in board.Scalars("train/loss_action")] == [2, 4]
    assert [event.value for event in board.Scalars("train/loss_action")] == pytest.approx(logged, rel=1e-6)


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_before_the_first_step(
    make_model, samples, tmp_path, monkeypatch, tracker
):
    monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{tracker}_available", lambda: False)
    with pytest.raises(RuntimeError, match=f"requires {tracker} to be installed. Run `pip install {tracker}"):
        make_trainer(make_model(), samples, tmp_path, report_to=tracker)


def test_unknown_trackers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown tracker .* `tensorbord`.*Did you mean `tensorboard`\?"):
        WorldVLATrainingArguments(output_dir=str(tmp_path), report_to="tensorbord")


def test_meter_by_hand(monkeypatch, make_model):
    from accelerate import Accelerator

    clock = iter([10.0, 11.0, 14.0, 50.0, 50.5, 52.0])
    monkeypatch.setattr("train.metering.time.perf_counter", lambda: next(clock))
    meter = StepMeter(torch.device("cpu"))
    assert meter.read(Accelerator(cpu=True)) == {}
    for rows in (1, 2):  # 4 s, one of them waiting; then 2 s, half a second waiting
        with meter.waiting():
            pass
        ids = torch.zeros(rows, 5, dtype=torch.long)
        meter.count({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0, 0]] * rows)})
        meter.end_step()
    meter.end_step()  # the end of an epoch: no step is open
    numbers = meter.read(Accelerator(cpu=True))
    assert numbers.pop("peak_memory_gib") > 0
    assert numbers == pytest.approx(
        {"tokens_per_second": 9 / 6, "padding_share": 1 - 9 / 15, "data_wait_share": 1.5 / 6}
    )
    samples = [{"input_ids": [0, 1, 2], "labels": [-100] * 3}, {"input_ids": [0], "labels": [-100]}]
    meter.count(PackingCollator(make_model().config, 3)(samples))
    assert (int(meter.tokens), meter.places) == (4, 6)
