"""What a run leaves: one folder that anybody can load, judge and share.

| file | what it is |
|---|---|
| `config.json`, `model*.safetensors`, `*_worldvla.py` | the model with its code; adapters are merged |
| `adapter/` | the adapters alone, where the run trained some |
| `processor_config.json`, `tokenizer*.json`, `vq_model/` | the processor, with action limits and VQ-GAN |
| `data_card.json` | how the tokens were made |
| `training_args.json` | every option of the run |
| `training_log.json`, `metrics.json` | every logged line; the scores at the end |
| `README.md` | the model card, written from these files |
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling_worldvla import WorldVLAForCausalLM
from modeling_worldvla.hub_worldvla import upload_checkpoint
from modeling_worldvla.model_card_worldvla import write_model_card
from tokenization import WorldVLAProcessor
from train.adapters import base_of, merge_adapters
from train.atomic_files import write_json
from train.episodes import DATA_CARD
from train.trainer import WorldVLATrainer

ADAPTER = "adapter"
METRICS = "metrics.json"
TRAINING_ARGS = "training_args.json"
TRAINING_LOG = "training_log.json"


def gather_weights(trainer: WorldVLATrainer) -> dict[str, Tensor]:
    """Collect the whole state dict, wherever its parts lie. Every process must call this.

    Args:
        trainer (`WorldVLATrainer`): has the model.

    Returns:
        `dict[str, Tensor]`: whole on the main process; others may get less where weights are split among processes.
    """
    return trainer.accelerator.get_state_dict(trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model)


def save_model(trainer: WorldVLATrainer, folder: Path) -> None:
    """Write the model as `from_pretrained` reads it, adapters merged. Every process must call this.

    Args:
        trainer (`WorldVLATrainer`): has the model, which is not touched.
        folder (`Path`): gets the files, and the adapters in `adapter/`.
    """
    weights = gather_weights(trainer)
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = base_of(model)
    if base is not model:
        model.save_pretrained(folder / ADAPTER, state_dict=weights)
        weights = merge_adapters(model, weights)
    write_model(base, weights, folder)


def write_model(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Write config, weights and code, whatever became of the model's modules and class in training.

    FSDP2 gives a model another class, LoRA other modules: what is written is that of an untouched one.

    Args:
        model (`PreTrainedModel`): of which config and generation config are taken.
        weights (`dict[str, Tensor]`): the state dict.
        folder (`Path`): gets the files.
    """
    config: Any = model.config
    with torch.device("meta"):
        plain: Any = WorldVLAForCausalLM(config)
    plain = plain.to(next(iter(weights.values())).dtype)
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder, state_dict=weights)


def save_processor(trainer: WorldVLATrainer, processor: WorldVLAProcessor, folder: Path) -> None:
    """Write the processor, bounded by the model's positions.

    Args:
        trainer (`WorldVLATrainer`): has the model.
        processor (`WorldVLAProcessor`): that of the data set.
        folder (`Path`): gets the files.
    """
    config = trainer.accelerator.unwrap_model(trainer.model).config
    before = processor.tokenizer.model_max_length
    processor.tokenizer.model_max_length = config.max_position_embeddings
    try:
        processor.save_pretrained(folder)
    finally:
        processor.tokenizer.model_max_length = before  # the caller's processor may go on with another model


def save_everything(
    trainer: WorldVLATrainer,
    processor: WorldVLAProcessor,
    card: dict[str, Any],
    options: dict[str, Any],
    metrics: dict[str, Any],
) -> None:
    """Write the output folder, and upload it with `--push_to_hub true`. Every process must call this.

    Args:
        trainer (`WorldVLATrainer`): after training.
        processor (`WorldVLAProcessor`): that of the data set.
        card (`dict`): the data card.
        options (`dict`): dataclasses of options by name, beside those of the trainer.
        metrics (`dict`): scores at the end.
    """
    output, arguments = Path(str(trainer.args.output_dir)), trainer.args
    save_model(trainer, output)
    if trainer.is_world_process_zero():
        save_processor(trainer, processor, output)
        write_json(output / DATA_CARD, card)
        write_json(output / TRAINING_LOG, trainer.state.log_history)
        write_json(output / METRICS, metrics)
        used = {name: asdict(part) for name, part in options.items()} | {"training": arguments.to_dict()}
        write_json(output / TRAINING_ARGS, json.loads(json.dumps(used, default=str)))
        if arguments.push_to_hub:
            upload_checkpoint(
                output,
                str(trainer.hub_model_id),
                private=arguments.hub_private_repo,
                token=arguments.hub_token,
                revision=arguments.hub_revision,
                commit_message="End of training",
            )
        else:
            write_model_card(output)
    trainer.accelerator.wait_for_everyone()
