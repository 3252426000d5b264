import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evaluation import checkpoints
from evaluation.checkpoints import (
    check_imagined_camera,
    check_policy_in_imagination,
    check_simulator_fit,
    check_world_model,
    choose_cameras,
    load_checkpoint,
    load_processor,
)
from evaluation.policy_arguments import PolicyArguments
from evaluation.worldvla_policy import WorldVLAPolicy
from tokenization import WorldVLAProcessor
from train import episodes, exporting


@pytest.fixture
def checkpoint(make_model, processor, tmp_path):
    make_model().save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def with_limits(checkpoint, folder, **limits):
    """The processor with other limits, in a folder of its own."""
    WorldVLAProcessor.from_pretrained(checkpoint, action_limits=limits).save_pretrained(folder)
    return WorldVLAProcessor.from_pretrained(folder)


def limits_of(size, width=7):
    return {"low": [-size] * width, "high": [size] * width}


def test_a_checkpoint_comes_ready_to_act(checkpoint, make_model):
    model, processor = load_checkpoint(str(checkpoint), "cpu")
    assert not model.training and type(processor) is WorldVLAProcessor
    assert torch.equal(model.lm_head.weight, make_model().lm_head.weight)
    policy = WorldVLAPolicy.from_arguments(PolicyArguments(checkpoint=str(checkpoint), chunk_size=3))
    assert policy.chunk_size == 3
    assert policy.fingerprint == checkpoints.fingerprint_checkpoint(str(checkpoint), model)


@pytest.mark.parametrize(("name", "part"), [("config.json", "model"), ("processor_config.json", "processor")])
def test_a_part_that_is_missing_is_named(checkpoint, name, part):
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=f"checkpoint` holds no {part}: `{name}` is missing. Give a folder in which"):
        load_checkpoint(str(checkpoint), "cpu")


def test_weights_that_are_missing(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="checkpoint` cannot be read: .*model.safetensors"):
        load_checkpoint(str(checkpoint), "cpu")


def test_a_vqgan_that_is_missing(checkpoint):
    shutil.rmtree(checkpoint / "vq_model")
    with pytest.raises(ValueError, match="vq_model|VQ-GAN"):
        load_checkpoint(str(checkpoint), "cpu")


def test_a_name_that_is_nothing():
    with pytest.raises(ValueError, match="outputs/no/such run` is no folder here, and cannot be had from the Hub: "):
        load_checkpoint("outputs/no/such run", "cpu")


def test_another_model(checkpoint):
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(checkpoint)
    with pytest.raises(
        ValueError, match="holds a `LlamaForCausalLM`, expected a `WorldVLAForCausalLM`. Models of oth"
    ):
        load_checkpoint(str(checkpoint), "cpu")


def test_a_processor_of_another_model(checkpoint):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"action_dim": 6}))
    with pytest.raises(
        ValueError, match=r"do not belong together: action_dim 6 \(processor: 7\)\. Save the processor"
    ):
        load_checkpoint(str(checkpoint), "cpu")


def test_actions_of_another_width(processor):
    model = SimpleNamespace(config=SimpleNamespace(action_dim=14))
    with pytest.raises(ValueError, match="predicts actions of 14 numbers; the simulator takes 7"):
        check_simulator_fit(model, processor, None)


def test_limits_of_another_robot(checkpoint, make_model, tmp_path):
    processor = with_limits(checkpoint, tmp_path / "both", libero_goal=limits_of(0.9375), arm=limits_of(2.5))
    model = make_model()
    check_simulator_fit(model, processor, "libero_goal")
    with pytest.raises(
        ValueError,
        match=r"Commands of data set `arm` run from -2\.5 to 2\.5; .* knows the data sets: arm, libero_goal\. Choose",
    ):
        check_simulator_fit(model, processor, "arm")
    with pytest.raises(ValueError, match="Unknown data set `libero_gaol`.*Did you mean `libero_goal`"):
        check_simulator_fit(model, processor, "libero_gaol")
    with pytest.raises(ValueError, match="several data sets: arm, libero_goal. Say whose"):
        check_simulator_fit(model, processor, None)


def test_a_processor_that_cannot_act(processor):
    parts = {"image_tokenizer": None, "action_tokenizer": processor.action_tokenizer}
    blind = type("WorldVLAProcessor", (), parts)()
    with pytest.raises(ValueError, match="The processor of `c` has no VQ-GAN, so it cannot act"):
        checkpoints._check_processor("c", blind)


def test_the_cameras_are_those_trained_on(checkpoint):
    assert checkpoints.DATA_CARD == episodes.DATA_CARD
    assert choose_cameras(str(checkpoint), "wrist") == ("wrist",)  # no card: nothing is known
    assert choose_cameras(str(checkpoint), None) == ("agentview",)
    card = checkpoint / "data_card.json"
    card.write_text(json.dumps({"camera": "wrist"}))
    assert choose_cameras(str(checkpoint), "wrist") == choose_cameras(str(checkpoint), None) == ("wrist",)
    with pytest.raises(ValueError, match="was trained on camera `wrist` .*not on `agentview` alone. Leave `--camera`"):
        WorldVLAPolicy.from_arguments(PolicyArguments(checkpoint=str(checkpoint), camera="agentview"))
    card.write_text(json.dumps({"camera": "agentview+wrist", "cameras": ["agentview", "wrist"]}))
    assert choose_cameras(str(checkpoint), None) == ("agentview", "wrist")
    for camera in ("agentview", "wrist"):
        with pytest.raises(ValueError, match="was trained on cameras `agentview`, `wrist`"):
            choose_cameras(str(checkpoint), camera)
    card.write_text("{}")
    with pytest.raises(ValueError, match="data_card.json` does not say which camera"):
        choose_cameras(str(checkpoint), None)


def test_the_world_model_imagines_the_first_camera(checkpoint):
    check_imagined_camera(str(checkpoint), "wrist")  # no card: nothing is known
    check_policy_in_imagination(str(checkpoint))
    card = checkpoint / "data_card.json"
    card.write_text(json.dumps({"camera": "wrist"}))
    check_imagined_camera(str(checkpoint), "wrist")
    check_policy_in_imagination(str(checkpoint))
    with pytest.raises(ValueError, match="imagines `wrist`, not `agentview`. Choose `--camera wrist`"):
        check_imagined_camera(str(checkpoint), "agentview")
    card.write_text(json.dumps({"camera": "agentview+wrist", "cameras": ["agentview", "wrist"]}))
    check_imagined_camera(str(checkpoint), "agentview")
    with pytest.raises(ValueError, match="cameras `agentview`, `wrist` .* imagines `agentview`, not `wrist`. Choose"):
        check_imagined_camera(str(checkpoint), "wrist")
    with pytest.raises(ValueError, match="is shown cameras `agentview`, `wrist`, and the world model imagines `agent"):
        check_policy_in_imagination(str(checkpoint))


def test_a_processor_comes_alone(checkpoint):
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).unlink()
    assert type(load_processor(str(checkpoint), "cpu")) is WorldVLAProcessor
    (checkpoint / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="holds no processor: `processor_config.json` is missing"):
        load_processor(str(checkpoint), "cpu")


def test_checkpoints_that_were_trained_to_act_only_imagine_nothing(checkpoint, make_model):
    assert checkpoints.TRAINING_ARGS == exporting.TRAINING_ARGS
    message = "checkpoint` was trained as a policy only: .* `--world_model_samples true` and a `--world_model_loss_we"
    check_world_model(str(checkpoint), make_model())  # says nothing of its training
    with pytest.raises(ValueError, match=message):
        check_world_model(str(checkpoint), make_model(world_model_loss_weight=0.0))
    for samples in (True, False):
        options = {"data": {"world_model_samples": samples}}
        (checkpoint / checkpoints.TRAINING_ARGS).write_text(json.dumps(options))
        if samples:
            check_world_model(str(checkpoint), make_model())
    with pytest.raises(ValueError, match=message):
        check_world_model(str(checkpoint), make_model())
