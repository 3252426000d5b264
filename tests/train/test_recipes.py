"""Recipes say what the paper says, and the configurations of accelerate name layers that the model has."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

import train
from train.argument_parsing import parse_arguments
from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments

CLASSES = [ModelArguments, DataArguments, WorldVLATrainingArguments]
RECIPES = Path(train.__file__).parent / "recipes"


def parse(name, *flags):
    return parse_arguments(CLASSES, [str(RECIPES / f"{name}.yaml"), "--tokens", "t", "--bf16", "false", *flags])


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize(("suite", "chunk_size"), [("spatial", 5), ("object", 5), ("goal", 5), ("10", 10)])
def test_recipes_of_the_suites_say_what_the_paper_says(suite, chunk_size, size):
    model, data, training = parse(f"libero_{suite}_{size}")
    assert (data.dataset_name, data.image_size, data.chunk_size) == (f"libero_{suite}", size, chunk_size)
    assert (data.n_obs_steps, data.world_model_history, model.world_model_loss_weight) == (2, 1, 0.04)
    assert (model.z_loss_weight, model.use_action_attention_mask, model.loss_form) == (1e-5, True, "paper")
    assert (training.learning_rate, training.lr_scheduler_type, training.warmup_steps) == (5e-6, "constant", 0)
    assert (training.adam_beta1, training.adam_beta2, training.weight_decay) == (0.9, 0.95, 0.1)
    assert (training.max_grad_norm, training.num_train_epochs) == (4.0, 40)
    assert training.per_device_train_batch_size == 8


def test_adapters_for_24_gigabytes():
    model, _, training = parse("lora_24gb", "--model_name_or_path", "checkpoint")
    assert (model.dtype, model.lora_rank, model.lora_targets) == ("bfloat16", 32, ["all-linear"])
    assert training.gradient_checkpointing


def test_fsdp2_splits_the_models_own_layers(make_model, monkeypatch):
    path = str(RECIPES / "accelerate" / "fsdp2.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", path, "--use_fsdp", "train/run.py"])
    for name, value in load_config_from_file(path).fsdp_config.items():
        setattr(arguments, name, value)
    arguments.num_processes, arguments.num_machines = 2, 1
    arguments.mixed_precision, arguments.dynamo_backend = "bf16", "no"
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(make_model())
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward
    assert plugin.transformer_cls_names_to_wrap == ["WorldVLADecoderLayer"]
    (layers,) = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {type(layer) for layer in make_model().model.layers} == {layers}
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)


def test_zero3_is_what_accelerate_reads():
    config = load_config_from_file(str(RECIPES / "accelerate" / "zero3.yaml"))
    assert config.distributed_type == "DEEPSPEED" and config.mixed_precision == "bf16"
    settings = config.deepspeed_config
    assert settings["zero_stage"] == 3 and settings["zero3_save_16bit_model"] and settings["zero3_init_flag"]
    understood = vars(launch_command_parser().parse_args(["train/run.py"]))
    assert set(settings) <= set(understood)
