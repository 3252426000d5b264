"""An average of the weights: what it is, where it is used, and that it goes on."""

from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_worldvla import WorldVLAForCausalLM
from train.adapters import add_adapters
from train.arguments import ModelArguments, WorldVLATrainingArguments
from train.collation import WorldVLACollator
from train.exporting import save_model
from train.trainer import WorldVLATrainer
from train.weight_average import WeightAverage


def make_trainer(model, samples, folder, **changes):
    options = {"use_cpu": True, "max_steps": 3, "logging_steps": 1, "disable_tqdm": True, "save_steps": 3}
    options |= {"learning_rate": 1e-2, "ema_decay": 0.15, "per_device_train_batch_size": 4}
    return WorldVLATrainer(
        model=model,
        args=WorldVLATrainingArguments(output_dir=str(folder), **(options | changes)),
        train_dataset=samples,
        eval_dataset=samples,
        data_collator=WorldVLACollator(model.config.pad_token_id),
    )


class KeepWeights(TrainerCallback):
    """Notes the head's weight after each step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.seen.append(model.lm_head.weight.detach().clone())


@pytest.fixture
def trained(make_model, samples, tmp_path):
    trainer = make_trainer(make_model(), samples, tmp_path)
    keeper = KeepWeights()
    trainer.add_callback(keeper)
    start = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    return trainer, [start, *keeper.seen]


def test_average_is_that_of_the_steps(trained):
    trainer, (average, *weights) = trained
    for decay, weight in zip((0.15, 0.15, 0.15), weights, strict=True):  # (1 + 1) / (10 + 1) is larger already
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(trainer.average.weights["lm_head.weight"], average)


def test_evaluation_and_export_take_the_average_and_the_steps_their_own(trained, make_model, samples, tmp_path):
    trainer, weights = trained
    averaged = make_model()
    trainer.average.copy_to(averaged)
    expected = make_trainer(averaged, samples, tmp_path / "other", ema_decay=0.0).evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == expected
    assert torch.equal(trainer.model.lm_head.weight, weights[-1])
    trainer.save_model(str(tmp_path / "export"))
    exported = load_file(tmp_path / "export/model.safetensors")
    assert torch.equal(exported["lm_head.weight"], averaged.lm_head.weight)
    checkpoint = tmp_path / "checkpoint-3"
    assert torch.equal(load_file(checkpoint / "model.safetensors")["lm_head.weight"], weights[-1])
    assert torch.equal(load_file(checkpoint / "weight_average.safetensors")["lm_head.weight"], averaged.lm_head.weight)
    with safe_open(checkpoint / "weight_average.safetensors", "pt") as file:
        assert file.metadata() == {"updates": "3"}


def test_the_best_checkpoint_brings_its_average(make_model, samples, tmp_path):
    """The loss falls; where the greatest counts as the best, it is the first."""
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "eval_loss", "greater_is_better": True, "ema_decay": 0.5}
    trainer = make_trainer(make_model(), samples, tmp_path, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric


def test_frozen_weights_have_no_average_and_half_precision_has_a_wide_one():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    model[0].requires_grad_(False)
    model[1].to(torch.bfloat16)
    torch.nn.init.ones_(model[1].weight)
    average = WeightAverage(model, decay=0.999)
    assert list(average.weights) == ["1.weight"]
    average.updates = 10**6
    model[1].weight.data.fill_(1.5)
    for _ in range(3):  # in bfloat16, where the step after 1 is 1.0078, none of these would change anything
        average.update(model)
    assert average.weights["1.weight"].item() == pytest.approx(1 + 0.5 * (1 - 0.999**3), abs=1e-6)
    with average.in_place_of(model):
        assert model[1].weight.item() == 1.0  # rounded
    assert model[1].weight.item() == 1.5


@pytest.mark.parametrize("split", ["fsdp", "zero3", "tensor parallel"])
def test_weights_in_parts_are_refused(make_model, samples, tmp_path, monkeypatch, split):
    trainer = make_trainer(make_model(), samples, tmp_path, ema_decay=0.0)
    trainer.args.ema_decay = 0.9
    if split == "zero3":
        plugin = SimpleNamespace(zero_stage=3)
        monkeypatch.setattr(trainer.accelerator, "state", SimpleNamespace(deepspeed_plugin=plugin))
    elif split == "tensor parallel":
        trainer.model.lm_head.weight.to_local = None
    else:
        trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="`--ema_decay 0.9` needs whole weights.*Train with `--ema_decay 0`"):
        trainer._make_average()


def test_adapters_alone_are_averaged_and_what_is_merged_is_their_average(make_model, samples, tmp_path):
    pytest.importorskip("peft", reason="optional: adapters")
    options = ModelArguments("checkpoint", lora_rank=2)
    models = [add_adapters(make_model(), options) for _ in range(2)]
    whole = make_trainer(models[0], samples, tmp_path, learning_rate=0.05, save_steps=2)
    whole.train()
    assert whole.average.weights and all(".lora_" in name for name in whole.average.weights)
    with whole.averaged_weights():
        save_model(whole, tmp_path / "out")
        expected = models[0].eval()(input_ids=torch.arange(20)[None]).logits
    merged = WorldVLAForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(input_ids=torch.arange(20)[None]).logits, expected, rtol=1e-4, atol=1e-5)
    (tmp_path / "checkpoint-3").rename(tmp_path / "away")
    resumed = make_trainer(models[1], samples, tmp_path, learning_rate=0.05, save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.average.updates == 3
    assert all(torch.equal(value, whole.average.weights[name]) for name, value in resumed.average.weights.items())
