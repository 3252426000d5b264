"""Loading a checkpoint for evaluation: model and processor from one folder, refused at once where they do not fit."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoProcessor

import modeling_worldvla  # noqa: F401  registers the model with the Auto classes
from evaluation.libero_env import ACTION_DIM
from modeling_worldvla import WorldVLAForCausalLM
from tokenization import WorldVLAProcessor

# What a training run writes beside a checkpoint that says nothing about how it acts.
LOGS = ("trainer_state.json", "training_log.json")
# As in train/episodes.py: what the checkpoint's data were made of.
DATA_CARD = "data_card.json"
CONFIGS = {"model": "config.json", "processor": "processor_config.json"}
# As in train/exporting.py: every option of the run that made a checkpoint.
TRAINING_ARGS = "training_args.json"
TOLERANCE = 1e-6  # of limits, around the simulator's range


def load_checkpoint(folder_or_id: str, device: str) -> tuple[Any, Any]:
    """Load what acts and imagines.

    Args:
        folder_or_id (`str`): folder or Hub id that holds model and processor.
        device (`str`): torch device of the model and the VQ-GAN.

    Returns:
        `tuple`: the model in evaluation mode, and its processor.

    Raises:
        ValueError: if there is no such checkpoint, a part of it is missing, or model and processor disagree.
    """
    processor = load_processor(folder_or_id, device, parts=("model", "processor"))
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder_or_id)
    except OSError as error:
        raise _unreadable(folder_or_id, error) from error
    _check_pair(folder_or_id, model, processor)
    return model.to(device).eval(), processor


def load_processor(folder_or_id: str, device: str, parts: Sequence[str] = ("processor",)) -> Any:
    """Load what turns pixels and commands into tokens, of a checkpoint whose model is not needed.

    Args:
        folder_or_id (`str`): folder or Hub id that holds a processor.
        device (`str`): torch device of the VQ-GAN.
        parts (`Sequence[str]`): `model`, `processor`: what a folder must hold.

    Returns:
        `WorldVLAProcessor`: with its VQ-GAN.

    Raises:
        ValueError: if there is no such folder, a part of it is missing, or it is of another kind.
    """
    for part in parts if Path(folder_or_id).is_dir() else ():
        if not Path(folder_or_id, CONFIGS[part]).is_file():
            raise ValueError(
                f"`{folder_or_id}` holds no {part}: `{CONFIGS[part]}` is missing. Give a folder in which "
                "`train/run.py` has finished, or save model and processor into one folder."
            )
    try:
        processor: Any = AutoProcessor.from_pretrained(folder_or_id)
    except OSError as error:
        raise _unreadable(folder_or_id, error) from error
    _check_processor(folder_or_id, processor)
    return processor.to(device)


def _unreadable(folder_or_id: str, error: OSError) -> ValueError:
    """What to say of a checkpoint that transformers cannot load."""
    found = Path(folder_or_id).is_dir()
    where = "cannot be read" if found else "is no folder here, and cannot be had from the Hub"
    return ValueError(f"`{folder_or_id}` {where}: {str(error).splitlines()[0]}")


def _require_kind(folder_or_id: str, part: Any, expected: type) -> None:
    """Refuse models and processors of other kinds."""
    if type(part).__name__ != expected.__name__:  # code from the Hub brings classes of its own
        raise ValueError(
            f"`{folder_or_id}` holds a `{type(part).__name__}`, expected a `{expected.__name__}`. Models of other "
            "kinds can be evaluated over HTTP: docs/remote_policies.md."
        )


def _check_processor(folder_or_id: str, processor: Any) -> None:
    """Refuse processors of other kinds, and those that lack a part."""
    _require_kind(folder_or_id, processor, WorldVLAProcessor)
    for name, what in (("image_tokenizer", "VQ-GAN"), ("action_tokenizer", "action limits")):
        if getattr(processor, name) is None:
            raise ValueError(f"The processor of `{folder_or_id}` has no {what}, so it cannot act. Save it with them.")


def _check_pair(folder_or_id: str, model: Any, processor: Any) -> None:
    """Refuse other models, and parts that do not belong together."""
    _require_kind(folder_or_id, model, WorldVLAForCausalLM)
    wanted = processor.model_config()
    different = [
        f"{name} {getattr(model.config, name)} (processor: {value})"
        for name, value in wanted.items()
        if getattr(model.config, name) != value
    ]
    if different:
        raise ValueError(
            f"Model and processor of `{folder_or_id}` do not belong together: {'; '.join(different)}. Save the "
            "processor that the model was trained with beside it."
        )


def check_simulator_fit(model: Any, processor: Any, dataset_name: str | None) -> None:
    """Refuse checkpoints whose commands the simulator does not understand.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        dataset_name (`str`, *optional*): whose action limits; may be left out when there is one data set.

    Raises:
        ValueError: if actions have another width, the data set is unknown, or its commands leave the simulator's
            range.
    """
    if model.config.action_dim != ACTION_DIM:
        raise ValueError(
            f"The checkpoint predicts actions of {model.config.action_dim} numbers; the simulator takes {ACTION_DIM} "
            "(position deltas, rotation deltas, gripper). Evaluate a checkpoint that was trained on LIBERO's actions."
        )
    tokenizer = processor.action_tokenizer
    name = tokenizer.choose_dataset(dataset_name)
    low, high = min(tokenizer.limits[name]["low"]), max(tokenizer.limits[name]["high"])
    if low < -1 - TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(
            f"Commands of data set `{name}` run from {low:g} to {high:g}; the simulator takes [-1, 1], so they are "
            f"another robot's. The checkpoint knows the data sets: {', '.join(tokenizer.limits)}. Choose with "
            "`--dataset_name`."
        )


def choose_cameras(folder_or_id: str, camera: str | None) -> tuple[str, ...]:
    """Say which cameras a checkpoint shall be shown, in the order of its prompts.

    Args:
        folder_or_id (`str`): the checkpoint. A repository on the Hub is not asked what it was trained on.
        camera (`str`, *optional*): what it shall be shown; by default what it was trained on, as far as its data card
            says, else agentview.

    Returns:
        `tuple[str, ...]`: names of cameras.

    Raises:
        ValueError: if the data card beside the checkpoint names other cameras, or cannot be read.
    """
    trained_on = _read_cameras(folder_or_id)
    if trained_on is None:
        return (camera or "agentview",)
    if camera not in (None, *trained_on) or (camera is not None and len(trained_on) > 1):
        raise ValueError(
            f"The checkpoint was trained on {_list_cameras(trained_on)} (`{Path(folder_or_id, DATA_CARD)}`), not on "
            f"`{camera}` alone. Leave `--camera` out."
        )
    return trained_on


def check_imagined_camera(folder_or_id: str, camera: str) -> None:
    """Refuse frames of a camera that the world model does not imagine: of several, it imagines the first alone.

    Args:
        folder_or_id (`str`): the checkpoint. One without a data card, as on the Hub, is taken at its word.
        camera (`str`): whose frames shall be given.

    Raises:
        ValueError: if the data card beside the checkpoint names another camera first, or cannot be read.
    """
    trained_on = _read_cameras(folder_or_id)
    if trained_on is not None and camera != trained_on[0]:
        raise ValueError(
            f"The checkpoint was trained on {_list_cameras(trained_on)} (`{Path(folder_or_id, DATA_CARD)}`), and its "
            f"world model imagines `{trained_on[0]}`, not `{camera}`. Choose `--camera {trained_on[0]}`."
        )


def check_policy_in_imagination(folder_or_id: str) -> None:
    """Refuse to let a policy act on imagined frames where it is shown cameras that nobody imagines.

    Args:
        folder_or_id (`str`): the checkpoint. One without a data card, as on the Hub, is taken at its word.

    Raises:
        ValueError: if the data card beside the checkpoint names several cameras, or cannot be read.
    """
    trained_on = _read_cameras(folder_or_id) or ("agentview",)
    if len(trained_on) > 1:
        raise ValueError(
            f"The policy of `{folder_or_id}` is shown {_list_cameras(trained_on)}, and the world model imagines "
            f"`{trained_on[0]}` alone, so the policy cannot act inside the imagination. Give commands instead of "
            "`--instruction`: a recorded episode, a run (`--rollouts`) or `--actions`."
        )


def check_world_model(folder_or_id: str, model: Any) -> None:
    """Refuse to imagine with a checkpoint that was not trained to.

    Args:
        folder_or_id (`str`): the checkpoint. One that does not say how it was trained is taken at its word.
        model (`WorldVLAForCausalLM`): the loaded model.

    Raises:
        ValueError: if it was trained as a policy only.
    """
    path = Path(folder_or_id, TRAINING_ARGS)
    options = json.loads(path.read_text("utf-8")).get("data", {}) if path.is_file() else {}
    if not model.config.world_model_loss_weight or not options.get("world_model_samples", True):
        raise ValueError(
            f"`{folder_or_id}` was trained as a policy only: its world model has learned nothing, so it cannot rank "
            "what it imagines. Leave `--best_of` out, or give a checkpoint that was trained with "
            "`--world_model_samples true` and a `--world_model_loss_weight` above 0."
        )


def _read_cameras(folder_or_id: str) -> tuple[str, ...] | None:
    """The cameras of the data card, in the order of the prompts; None where there is no card."""
    path = Path(folder_or_id, DATA_CARD)
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text("utf-8"))
        return tuple(map(str, card.get("cameras") or [card["camera"]]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"`{path}` does not say which camera the checkpoint was trained on. Repair it.") from error


def _list_cameras(names: Sequence[str]) -> str:
    return ("camera " if len(names) == 1 else "cameras ") + ", ".join(f"`{name}`" for name in names)


def fingerprint_checkpoint(folder_or_id: str, model: Any) -> str:
    """Name the weights, so that results of different weights are never mixed.

    Args:
        folder_or_id (`str`): what the model was loaded from.
        model (`WorldVLAForCausalLM`): the loaded model, which knows its commit on the Hub.

    Returns:
        `str`: SHA-256 over weights and configs of a local folder; the commit of a Hub repository.
    """
    folder = Path(folder_or_id)
    if not folder.is_dir():
        return str(model.config._commit_hash)
    digest = hashlib.sha256()
    for path in sorted(
        [*folder.glob("*.safetensors"), *folder.glob("vq_model/*.safetensors"), *folder.glob("*.json")]
    ):
        if path.name in LOGS:
            continue
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
