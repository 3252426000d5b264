"""LoRA from the command line: adapters are trained and resumed, and what comes out is one merged folder."""

import builtins

import pytest
import torch

from modeling_worldvla import WorldVLAForCausalLM
from train.adapters import add_adapters, base_of, merge_adapters
from train.arguments import ModelArguments
from train.exporting import ADAPTER, save_model

from .test_trainer import make_trainer

peft = pytest.importorskip("peft", reason="optional: adapters")


def arguments(**changes):
    return ModelArguments("checkpoint", lora_rank=2, lora_alpha=8, **changes)


def shaken(model, **changes):
    """A model with adapters that do something."""
    adapted = add_adapters(model, arguments(**changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return adapted


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20)[None]).logits


@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj"], ["down_proj", "lm_head"], ["all-linear", "lm_head"]])
def test_merged_weights_compute_the_same_and_the_model_is_untouched(make_model, targets):
    adapted = shaken(make_model(), lora_targets=targets)
    expected, before = logits_of(adapted), {name: value.clone() for name, value in adapted.state_dict().items()}
    plain = make_model()
    plain.load_state_dict(merge_adapters(adapted, adapted.state_dict()))
    assert (logits_of(make_model()) - expected).abs().max() > 0.05
    torch.testing.assert_close(logits_of(plain), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


def test_unknown_layers_are_refused(make_model):
    with pytest.raises(ValueError, match="Unknown layer of `--lora_targets`: `q_prj`.*Did you mean `q_proj`"):
        add_adapters(make_model(), arguments(lora_targets=["q_prj"]))


def test_without_peft_the_error_says_what_to_install(make_model, monkeypatch):
    load = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"`--lora_rank` needs the package peft: `pip install worldvla\[lora\]`"):
        add_adapters(make_model(), arguments())


def test_training_moves_adapters_alone_and_the_folder_is_merged(make_model, samples, tmp_path):
    base = make_model()
    adapted = add_adapters(make_model(), arguments())
    trainer = make_trainer(adapted, samples, tmp_path, max_steps=3, learning_rate=0.05, save_strategy="no")
    trainer.train()
    before = base.state_dict()
    for name, value in base_of(adapted).state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(value, before[name.replace(".base_layer.", ".")]), name
    metrics = trainer.evaluate()
    save_model(trainer, tmp_path / "out")
    expected = logits_of(adapted)
    merged = WorldVLAForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-5)
    assert (expected - logits_of(base)).abs().max() > 0.05
    again = peft.PeftModel.from_pretrained(make_model(), tmp_path / "out" / ADAPTER)
    assert torch.equal(logits_of(again), expected)
    loss = make_trainer(merged, samples, tmp_path).evaluate()["eval_val_ind_loss"]
    assert metrics["eval_val_ind_loss"] == pytest.approx(loss, rel=1e-4)


def test_adapters_resume(make_model, samples, tmp_path):
    """Stopped at a checkpoint and taken up again: the adapters are those of a run that never stopped."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    models = [add_adapters(make_model(), arguments()) for _ in range(3)]
    make_trainer(models[0], samples, whole).train()
    make_trainer(models[1], samples, halves, max_steps=4).train()
    for leftover in halves.glob("checkpoint-4"):
        leftover.rename(tmp_path / "away")
    make_trainer(models[2], samples, halves).train(resume_from_checkpoint=True)
    for (name, one), two in zip(models[0].named_parameters(), models[2].parameters(), strict=True):
        assert torch.equal(one, two), name
