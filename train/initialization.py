"""What training begins with: random weights, a checkpoint of ours or a converted one; and whether it fits the data.

Everything that could make a run worthless is refused here, before the first step.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import cached_file

from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM
from tokenization import WorldVLAProcessor
from train.arguments import LORA_OPTIONS, DataArguments, ModelArguments
from train.episodes import DATA_CARD, PROCESSOR, Episodes, TokenizedEpisodes

logger = logging.getLogger("worldvla.train")

# Options of ModelArguments that a checkpoint keeps its own value for.
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "swin_norm",
)
# Options of ModelArguments that say how a model is made, not what it is.
ONLY_HERE = ("model_name_or_path", "dtype", "attn_implementation", "image_embeddings_from_codebook")
LOOKED_AT = 64  # samples of a split whose length is measured before training
_NOTHING = (
    "`--model_name_or_path {}` is neither a folder here nor a model that the Hub gives out. "
    "docs/training.md#where-training-begins says how to make a starting point."
)
PROCESSOR_CONFIG = "processor_config.json"


def load_processor(episodes: TokenizedEpisodes) -> WorldVLAProcessor:
    """Load the processor that made the tokens, and check that it still does.

    Args:
        episodes (`TokenizedEpisodes`): the data set.

    Returns:
        `WorldVLAProcessor`: from the data set's own folder.

    Raises:
        ValueError: if the VQ-GAN beside the tokens is not the one that made them, or the commands have another width
            than the action limits.
    """
    processor = WorldVLAProcessor.from_pretrained(episodes.folder / PROCESSOR)
    made_by, found = episodes.card["image_token_hash"], processor.image_token_hash()
    if made_by != found:
        raise ValueError(
            f"The tokens in `{episodes.folder}` were made by another VQ-GAN ({made_by[:12]}) than the processor's "
            f"({found[:12]}). Run train/pretokenize.py again into a new folder."
        )
    row = next(iter(episodes.splits.values()))[0]
    width, expected = len(row["actions"]) // row["num_steps"], processor.model_config()["action_dim"]
    if width != expected:
        raise ValueError(
            f"The commands in `{episodes.folder}` have {width} numbers, but the action limits of its processor "
            f"{expected}. Run train/pretokenize.py again into a new folder."
        )
    return processor


def build_model(
    model_arguments: ModelArguments, data_arguments: DataArguments, processor: WorldVLAProcessor
) -> WorldVLAForCausalLM:
    """Make a new model for the processor's vocabulary, or load a checkpoint.

    Args:
        model_arguments (`ModelArguments`): sizes and loss weights, or the checkpoint.
        data_arguments (`DataArguments`): M, K and the history, which the config remembers.
        processor (`WorldVLAProcessor`): gives every token id.

    Returns:
        `WorldVLAForCausalLM`: ready to train.

    Raises:
        ValueError: if a checkpoint has other token ids or another action width than the processor that made the
            tokens.
    """
    attention = model_arguments.attn_implementation
    not_config = {*ONLY_HERE, *LORA_OPTIONS}
    own = {f.name for f in fields(model_arguments)} - not_config
    options = {name: getattr(model_arguments, name) for name in own}
    options |= {name: getattr(data_arguments, name) for name in ("n_obs_steps", "chunk_size", "world_model_history")}
    ids, path = processor.model_config(), model_arguments.model_name_or_path
    if path is None:
        config = WorldVLAConfig(**ids, **options, num_key_value_heads=model_arguments.num_attention_heads)
        model = WorldVLAForCausalLM._from_config(config, attn_implementation=attention)
        if model_arguments.image_embeddings_from_codebook:
            embed_codebook(model, processor)
        return model
    model = WorldVLAForCausalLM.from_pretrained(
        path,
        dtype=getattr(torch, model_arguments.dtype),
        attn_implementation=attention,
        **{name: value for name, value in options.items() if name not in SIZES},
    )
    if model.config.derived_from is None and not Path(path).is_dir():
        model.config.derived_from = path  # the model card names it, and its licence
    require_same_ids(model.config, ids, path)
    return model


@torch.no_grad()
def embed_codebook(model: WorldVLAForCausalLM, processor: WorldVLAProcessor) -> None:
    """Let the embeddings of image tokens begin as their codebook vectors, so that like codes are read alike.

    The vectors are centred, turned at random into the model's width and scaled to `config.initializer_range`.

    Args:
        model (`WorldVLAForCausalLM`): a new model; changed in place.
        processor (`WorldVLAProcessor`): holds the VQ-GAN.

    Raises:
        ValueError: if the processor has no VQ-GAN.
    """
    if processor.image_tokenizer is None:
        raise ValueError(
            "`--image_embeddings_from_codebook` needs the codebook, but the processor of the data set has no VQ-GAN. "
            "Leave the option out."
        )
    config = model.config
    ids = torch.arange(config.num_image_tokens)[:, None, None] + config.image_token_id_start
    codebook = processor.image_tokenizer.embed_ids(ids)[:, 0, 0].float().cpu()
    width = codebook.shape[1]
    directions = torch.linalg.qr(torch.randn(max(config.hidden_size, width), width))[0]
    vectors = (codebook - codebook.mean(0)) @ directions[: config.hidden_size].T
    rows = slice(config.image_token_id_start, config.image_token_id_start + config.num_image_tokens)
    model.model.embed_tokens.weight[rows] = vectors * (config.initializer_range / vectors.std())


def require_checkpoint(path: str) -> None:
    """Refuse a folder or Hub repository that holds no model of this project.

    Args:
        path (`str`): folder or Hub id.

    Raises:
        FileNotFoundError: if there is nothing of that name, or a folder holds no model; says what it holds instead.
        ValueError: if it is a Chameleon model that has not been converted.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        hint = "Give the folder of a finished run, or one of its checkpoints."
        if (folder / "adapter_config.json").is_file():
            hint = "It holds adapters alone: give the folder above it, where they are merged."
        elif saved := sorted(path.name for path in folder.glob("checkpoint-*")):
            hint = f"That run is not finished; give one of its checkpoints: {', '.join(saved)}."
        raise FileNotFoundError(f"`--model_name_or_path {path}` holds no model: config.json is missing. {hint}")
    try:
        config = _read_checkpoint_file(path, "config.json")
    except OSError as error:
        raise FileNotFoundError(f"{_NOTHING.format(path)} The Hub says: {error}") from error
    if config is None:
        raise FileNotFoundError(_NOTHING.format(path))
    if config.get("model_type") == "chameleon":
        raise ValueError(
            f"`--model_name_or_path {path}` is a Chameleon model in its own form. Convert it first: "
            "`python -m modeling_worldvla.convert_worldvla_weights_to_hf` for official WorldVLA weights, "
            "`python -m modeling_worldvla.convert_chameleon_base` for Chameleon's."
        )


def require_same_ids(config: WorldVLAConfig, ids: dict[str, Any], path: str) -> None:
    """Refuse a checkpoint whose token ids or action width are not those of the data.

    Args:
        config (`WorldVLAConfig`): of the checkpoint.
        ids (`dict`): `processor.model_config()` of the data.
        path (`str`): the checkpoint, for the message.

    Raises:
        ValueError: names each value that differs.
    """
    if config.action_dim != ids.get("action_dim", config.action_dim):
        raise ValueError(
            f"Checkpoint `{path}` gives actions of {config.action_dim} numbers, the data set has {ids['action_dim']}. "
            "Choose demonstrations of the same robot and command, or leave out `--model_name_or_path`."
        )
    different = [f"{name}: {getattr(config, name)} != {v}" for name, v in ids.items() if getattr(config, name) != v]
    if different:
        raise ValueError(
            f"Checkpoint `{path}` uses other token ids than the processor of the tokens ({'; '.join(different)}). "
            "Tokenize the demonstrations again with `--processor` set to that checkpoint."
        )


def require_same_data(path: str, episodes: Episodes, processor: WorldVLAProcessor) -> None:
    """Refuse a checkpoint that was trained on other pictures than the data set holds.

    A checkpoint without a processor or data card (a step's checkpoint, official weights) says nothing to compare.

    Args:
        path (`str`): folder or Hub id of the checkpoint.
        episodes (`Episodes`): the data set.
        processor (`WorldVLAProcessor`): that of the data set.

    Raises:
        ValueError: if its cameras, VQ-GAN or action bins are others.
    """
    card = _read_checkpoint_file(path, DATA_CARD)
    if card is not None and list_cameras(card) != list_cameras(episodes.card):
        raise ValueError(
            f"Checkpoint `{path}` was trained on the camera set {', '.join(list_cameras(card))}; the tokens in "
            f"`{episodes.folder}` show {', '.join(list_cameras(episodes.card))}. Run train/pretokenize.py with the "
            "checkpoint's cameras, in that order."
        )
    if _read_checkpoint_file(path, PROCESSOR_CONFIG) is None:
        logger.warning("`%s` holds no processor: whether its VQ-GAN is that of the tokens is not known.", path)
        return
    own = WorldVLAProcessor.from_pretrained(path)
    if own.image_token_hash() != processor.image_token_hash():
        raise ValueError(
            f"Checkpoint `{path}` reads images by another VQ-GAN ({own.image_token_hash()[:12]}) than the one that "
            f"made the tokens in `{episodes.folder}` ({processor.image_token_hash()[:12]}). Tokenize the "
            "demonstrations again with `--processor` set to that checkpoint."
        )
    if own.binning != processor.binning:
        raise ValueError(
            f"Checkpoint `{path}` has `{own.binning}` action bins, the tokens `{processor.binning}` ones. Tokenize "
            "the demonstrations again with `--processor` set to that checkpoint."
        )


def require_wanted_data(arguments: DataArguments, episodes: Episodes, processor: WorldVLAProcessor) -> None:
    """Refuse a data set that is not the one the recipe is for.

    Args:
        arguments (`DataArguments`): `dataset_name` and `image_size`, where they were given.
        episodes (`Episodes`): the data set.
        processor (`WorldVLAProcessor`): that of the data set.

    Raises:
        ValueError: names what was wanted, what is there, and what to do.
    """
    for name, wanted, found in (
        ("dataset_name", arguments.dataset_name, episodes.card["dataset_name"]),
        ("image_size", arguments.image_size and [arguments.image_size] * 2, list(processor.image_size)),
    ):
        if wanted is not None and wanted != found:
            value = getattr(arguments, name)
            raise ValueError(
                f"`--{name} {value}` asks for other tokens than those in `{episodes.folder}`, which have {found}. "
                f"Choose the recipe that fits, set `--{name}`, or run train/pretokenize.py for {value}."
            )


def require_positions(samples: Mapping[str, Any], config: WorldVLAConfig) -> None:
    """Refuse samples that are longer than the model's positions; a few of each split are looked at.

    Args:
        samples (`Mapping`): data sets by split.
        config (`WorldVLAConfig`): of the model.

    Raises:
        ValueError: names the length that was found and what would shorten it.
    """
    for split, rows in samples.items():
        looked_at = {round(place) for place in np.linspace(0, len(rows) - 1, LOOKED_AT)}
        longest = max(len(rows[index]["input_ids"]) for index in sorted(looked_at))
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"Samples of split `{split}` have up to {longest} tokens, the model {config.max_position_embeddings} "
                "positions. Lower `--n_obs_steps`, `--chunk_size` or `--world_model_history`, or give a new model "
                f"`--max_position_embeddings {longest}`."
            )


def require_sharding(sharded: bool) -> None:
    """Refuse a run that was launched to split its model and does not: accelerate splits on accelerators alone.

    Args:
        sharded (`bool`): whether the trainer splits the model.

    Raises:
        ValueError: if the launcher asked for FSDP and each process holds the whole model.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not sharded:
        raise ValueError(
            "The launcher asked for FSDP, but each process would hold the whole model: accelerate splits models on "
            "accelerators alone, and among several processes. Launch on GPUs with `--num_processes` above 1, or "
            "without FSDP."
        )


def list_cameras(card: dict[str, Any]) -> list[str]:
    """The cameras of a data card, in the order of the sequence; older cards name one."""
    return list(card.get("cameras") or [card["camera"]])


def _read_checkpoint_file(path: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a checkpoint's folder or Hub repository; None where there is none."""
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else json.loads(Path(found).read_text("utf-8"))
