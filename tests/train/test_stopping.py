"""What ends a run early: a loss that is no number or explodes, a metric that does not get better."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from transformers import TrainerCallback

from train.arguments import WorldVLATrainingArguments
from train.stopping import EarlyStop, LossGuard, TrainingDivergedError

from .test_trainer import StopAt, assert_equal_weights, make_trainer


class Break(TrainerCallback):
    """Spoils a weight when a step begins, so that its loss is what `value` makes of it."""

    def __init__(self, model, step, value):
        self.model, self.step, self.value, self.before = model, step, value, None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            with torch.no_grad():
                self.model.model.norm.weight.mul_(self.value)
            self.before = {name: weight.clone() for name, weight in self.model.state_dict().items()}


@pytest.mark.parametrize(
    ("value", "options", "fault"),
    [
        (float("nan"), {}, "The loss is nan, at step 3 "),
        (float("inf"), {}, "The loss is nan|inf, at step 3 "),
    ],
)
def test_a_loss_that_is_no_number_ends_training_before_the_step(make_model, samples, tmp_path, value, options, fault):
    model = make_model()
    trainer = make_trainer(model, samples, tmp_path, save_strategy="no", gradient_accumulation_steps=2, **options)
    spoiler = Break(model, 3, value)
    trainer.add_callback(spoiler)
    with pytest.raises(TrainingDivergedError, match=fault) as error:
        trainer.train()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight.nan_to_num(7), spoiler.before[name].nan_to_num(7)), name
    assert trainer.state.global_step == 2
    path = tmp_path / "offending_batch_step3_rank0.safetensors"
    assert f"`{path}`" in str(error.value) and "(process 0, micro-batch" in str(error.value)
    with safe_open(path, "pt") as file:
        assert file.metadata()["step"] == "3"
        batch = {name: file.get_tensor(name) for name in file.keys()}
    assert set(batch) == {"input_ids", "labels", "attention_mask"} and len(batch["labels"]) == 4
    assert not torch.isfinite(model(**batch).loss)


def test_a_gradient_that_is_no_number_ends_training_before_the_step(make_model, samples, tmp_path):
    model = make_model()
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    trainer = make_trainer(model, samples, tmp_path, save_strategy="no")
    with pytest.raises(TrainingDivergedError, match="The norm of the gradient is nan, at step 1 "):
        trainer.train()
    assert_equal_weights(model, make_model())


def test_an_exploding_loss_ends_training_before_the_step(make_model, samples, tmp_path):
    model = make_model()
    settings = {"save_strategy": "no", "max_steps": 20, "max_loss_ratio": 3.0}
    trainer = make_trainer(model, samples, tmp_path, **settings)
    trainer.add_callback(Break(model, 15, 1e3))
    with pytest.raises(TrainingDivergedError, match="over 3 times .*median of the last 14 steps, at step 15 "):
        trainer.train()


def test_guard_by_hand():
    guard = LossGuard()
    for loss in [4.0] * LossGuard.FEWEST:
        assert guard.check(loss, 2.0) is None
    assert guard.check(8.0, 2.0) is None
    fault = "is 8.1, over 2 times (`--max_loss_ratio`) the 4 that is the median of the last 11"
    assert fault in guard.check(8.1, 2.0)
    assert guard.check(8.1, None) is None
    assert guard.check(float("-inf"), None) == "The loss is -inf"
    for _ in range(200):
        guard.check(1.0, None)
    assert guard.recent == [1.0] * LossGuard.WINDOW


def test_a_resumed_run_knows_the_losses_before(make_model, samples, tmp_path):
    settings = {"max_steps": 6, "save_steps": 3}
    whole = make_trainer(make_model(), samples, tmp_path / "whole", **settings)
    whole.train()
    first = make_trainer(make_model(), samples, tmp_path / "halves", **settings)
    first.add_callback(StopAt(3))
    first.train()
    resumed = make_trainer(make_model(), samples, tmp_path / "halves", **settings)
    resumed.train(resume_from_checkpoint=True)
    guards = [next(c for c in t.callback_handler.callbacks if isinstance(c, LossGuard)) for t in (whole, resumed)]
    assert guards[0].recent == guards[1].recent and len(guards[0].recent) == 6


@pytest.mark.parametrize(
    ("values", "greater", "stops_after"),
    [([3.0, 2.0, 2.5, 2.0, 1.0], False, 4), ([3.0, 2.0, 2.5], False, None), ([0.1, 0.1, 0.2, 0.1, 0.1], True, 5)],
)
def test_early_stop_counts_evaluations_since_the_best(tmp_path, values, greater, stops_after):
    metric = "eval_val_ind_accuracy_action" if greater else "eval_val_ind_action_l1"
    args = WorldVLATrainingArguments(
        output_dir=str(tmp_path), metric_for_best_model=metric, early_stopping_patience=2, eval_strategy="steps"
    )
    assert args.greater_is_better is greater
    state, stopped = type("State", (), {"log_history": []}), None
    for number, value in enumerate(values, start=1):
        state.log_history += [{metric: value}, {"eval_val_ood_loss": 9.0}]
        for metrics in ({metric: value}, {"eval_val_ood_loss": 9.0}):
            control = type("Control", (), {"should_training_stop": False})
            EarlyStop().on_evaluate(args, state, control, metrics=metrics)
            if control.should_training_stop and stopped is None:
                stopped = number
    assert stopped == stops_after


def test_early_stop_and_best_checkpoint_in_a_run(make_model, samples, tmp_path):
    """With a learning rate that spoils the model, the first evaluation stays the best one."""
    settings = {
        "metric_for_best_model": "eval_val_ind_loss_action",
        "early_stopping_patience": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "max_steps": 9,
        "learning_rate": 0.5,
        "load_best_model_at_end": True,
    }
    model = make_model()
    trainer = make_trainer(model, samples, tmp_path, **settings)
    trainer.train()
    values = [line["eval_val_ind_loss_action"] for line in trainer.state.log_history if "eval_val_ind_loss" in line]
    best = values.index(min(values))
    assert trainer.state.global_step == best + 3 < 9
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best + 1}")
    assert trainer.evaluate()["eval_val_ind_loss_action"] == pytest.approx(values[best], rel=1e-6)
    state = json.loads((tmp_path / f"checkpoint-{best + 1}" / "trainer_state.json").read_text())
    assert state["best_metric"] == values[best]


def test_unknown_metric_is_refused_with_the_nearest(make_model, samples, tmp_path):
    with pytest.raises(ValueError, match=re.escape("Did you mean `eval_val_ind_loss_action`?")):
        make_trainer(make_model(), samples, tmp_path, metric_for_best_model="eval_val_ind_los_action")
    with pytest.raises(ValueError, match="Unknown metric for `--metric_for_best_model`: `eval_val_ind_action_l1`"):
        make_trainer(make_model(), samples, tmp_path, metric_for_best_model="eval_val_ind_action_l1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_stopping_patience": 2}, "waits for a metric of evaluations, got none. Give `--metric_for_best_model"),
        ({"early_stopping_patience": 0}, "`--early_stopping_patience` must be larger than 0, got 0"),
        ({"max_loss_ratio": -1.0}, "`--max_loss_ratio` must be larger than 0, got -1.0"),
        ({"train_sampling_strategy": "group_by_length"}, "builds every sample to measure it.*`--packing true`"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        WorldVLATrainingArguments(output_dir=str(tmp_path), **options)
