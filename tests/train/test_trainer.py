import pytest
import torch
from transformers import TrainerCallback

from train.arguments import WorldVLATrainingArguments
from train.collation import WorldVLACollator
from train.trainer import WorldVLATrainer


def make_trainer(model, samples, folder, **changes):
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 0,
        "lr_scheduler_type": "cosine",
    } | changes
    return WorldVLATrainer(
        model=model,
        args=WorldVLATrainingArguments(**arguments),
        train_dataset=samples,
        eval_dataset={"val_ind": samples},
        data_collator=WorldVLACollator(model.config.pad_token_id),
    )


def assert_equal_weights(model, other, **tolerance):
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        if tolerance:
            torch.testing.assert_close(one, two, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        else:
            assert torch.equal(one, two), name


def test_collator_pads_right(processor):
    batch = WorldVLACollator(9)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_resumed_run_equals_uninterrupted_run(make_model, samples, tmp_path):
    whole = make_model()
    make_trainer(whole, samples, tmp_path / "whole").train()
    # The first half stops at step 2 as a kill would: the schedule is that of 4 steps.
    first = make_trainer(make_model(), samples, tmp_path / "halves")
    first.add_callback(StopAt(2))
    first.train()
    resumed = make_model()
    make_trainer(resumed, samples, tmp_path / "halves").train(resume_from_checkpoint=True)
    assert_equal_weights(whole, resumed)
    assert not torch.equal(whole.lm_head.weight, make_model().lm_head.weight)


def test_accumulation_equals_one_large_batch(make_model, samples, tmp_path):
    settings = {"max_steps": 2, "save_strategy": "no", "learning_rate": 1e-2, "max_grad_norm": 0.0, "optim": "sgd"}
    large, small = make_model(), make_model()
    make_trainer(large, samples, tmp_path / "a", per_device_train_batch_size=8, **settings).train()
    trainer = make_trainer(
        small, samples, tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings
    )
    trainer.train()
    assert_equal_weights(large, small, rtol=1e-5, atol=1e-6)


def test_logged_role_losses_make_up_the_loss(make_model, samples, tmp_path):
    model = make_model()
    trainer = make_trainer(model, samples, tmp_path, save_strategy="no", gradient_accumulation_steps=2, max_steps=3)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 3
    for line in lines:
        weighted = line["loss_action"] + model.config.world_model_loss_weight * line["loss_world_model"]
        assert line["loss"] == pytest.approx(weighted, rel=2e-3)  # the Trainer rounds `loss` to four places


def test_evaluation_scores_equal_the_models_own_loss(make_model, samples, tmp_path):
    model = make_model().eval()
    trainer = make_trainer(model, samples, tmp_path, per_device_eval_batch_size=3)
    metrics = trainer.evaluate()
    whole = WorldVLACollator(model.config.pad_token_id)([samples[index] for index in range(len(samples))])
    with torch.no_grad():
        expected = model(**whole)
    assert metrics["eval_val_ind_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    assert metrics["eval_val_ind_loss_action"] == pytest.approx(expected.loss_action.item(), rel=1e-5)
    assert metrics["eval_val_ind_loss_world_model"] == pytest.approx(expected.loss_world_model.item(), rel=1e-5)
    assert 0 <= metrics["eval_val_ind_accuracy_action"] <= 1
    assert metrics["eval_val_ind_action_bin_error"] > 0


def test_nothing_as_wide_as_the_vocabulary_leaves_a_batch(make_model, samples, tmp_path):
    model = make_model()
    shapes = []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: shapes.append(tuple(logits.shape)))
    model.config.loss_chunk_size = 7
    output = make_trainer(model, samples, tmp_path, per_device_eval_batch_size=3).predict(samples)
    assert output.predictions is None and output.label_ids is None and output.metrics["test_loss"] > 0
    assert len(shapes) > len(samples) and max(rows for rows, _ in shapes) == 7


class StopAt(TrainerCallback):
    """Ends training after a step, as an interruption does: nothing else changes."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
