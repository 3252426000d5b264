"""A folder of results belongs to one run: the settings that results depend on lie in it, and others are refused."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments
from train.atomic_files import write_json

SETTINGS = "settings.json"

# Options of `transformers.TrainingArguments` that no weight depends on, by the beginning of their name.
FREE_PREFIXES = (
    *("logging_", "log_", "eval_", "save_", "hub_", "push_", "trackio_", "ddp_", "do_", "include_", "rollout_"),
    *("torch_compile", "activation_checkpointing", "gradient_checkpointing", "fsdp", "dataloader_p"),
)
# The same by name. Samples per step are compared in the place of what they are made of.
FREE_OPTIONS = {"output_dir", "run_name", "project", "report_to", "disable_tqdm", "use_cpu", "deepspeed", "debug"}
FREE_OPTIONS |= {"dataloader_num_workers", "dataloader_multiprocessing_context", "dataloader_in_order", "local_rank"}
FREE_OPTIONS |= {"per_device_eval_batch_size", "prediction_loss_only", "batch_eval_metrics", "bf16_full_eval"}
FREE_OPTIONS |= {"fp16_full_eval", "skip_memory_metrics", "resume_from_checkpoint", "enable_jit_checkpoint"}
FREE_OPTIONS |= {"restore_callback_states_from_checkpoint", "torch_empty_cache_steps", "max_loss_ratio"}
FREE_OPTIONS |= {"per_device_train_batch_size", "gradient_accumulation_steps", "accelerator_config"}
FREE_OPTIONS |= {"tokens"}  # the data card is compared: a folder may have moved
LENGTHS = {"max_steps", "num_train_epochs"}


def collect_settings(
    model: ModelArguments, data: DataArguments, training: WorldVLATrainingArguments, card: Mapping[str, Any]
) -> dict[str, Any]:
    """What the weights of a run depend on.

    The length of a run is free where the learning rate does not depend on it, so that a run can be made longer.

    Args:
        model (`ModelArguments`): options of the model.
        data (`DataArguments`): options of the samples.
        training (`WorldVLATrainingArguments`): options of the steps.
        card (`Mapping`): the data card of the tokens.

    Returns:
        `dict[str, Any]`: by name, as JSON can hold them.
    """
    options = asdict(model) | asdict(data) | training.to_dict()
    free = LENGTHS if length_is_free(training) else set()
    settings = {
        name: value
        for name, value in options.items()
        if name not in FREE_OPTIONS | free and not name.startswith(FREE_PREFIXES)
    }
    settings["samples_per_step"] = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    settings["data_card"] = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:16]
    return json.loads(json.dumps(settings, default=str))


def length_is_free(training: WorldVLATrainingArguments) -> bool:
    """Whether a longer run begins exactly as a shorter one.

    Args:
        training (`WorldVLATrainingArguments`): options of the steps.

    Returns:
        `bool`: true for a constant learning rate, also with a warm-up of a number of steps.
    """
    return training.lr_scheduler_type in ("constant", "constant_with_warmup") and not 0 < training.warmup_steps < 1


def default_options(*classes: Any) -> dict[str, Any]:
    """The defaults of all options that have one.

    Args:
        *classes (`type`): dataclasses.

    Returns:
        `dict[str, Any]`: by name.
    """
    defaults = {}
    for option in (option for options in classes for option in fields(options)):
        if option.default_factory is not MISSING:
            defaults[option.name] = option.default_factory()
        elif option.default is not MISSING:
            defaults[option.name] = option.default
    return defaults


def check_settings(settings: Mapping[str, Any], defaults: Mapping[str, Any], output: Path) -> None:
    """Refuse to continue a run that was started with other settings.

    An option that did not exist when the run was started counts as left at its default.

    Args:
        settings (`Mapping[str, Any]`): options by name, as JSON can hold them.
        defaults (`Mapping[str, Any]`): their defaults.
        output (`Path`): the run's folder.

    Raises:
        ValueError: names the settings that changed.
    """
    path = output / SETTINGS
    if path.exists():
        before = {**defaults, **json.loads(path.read_text("utf-8"))}
        changed = [
            f"{key}: {before.get(key)} -> {value}" for key, value in settings.items() if before.get(key) != value
        ]
        if changed:
            raise ValueError(
                f"`{output}` holds a run with other settings ({'; '.join(changed)}). "
                "Choose another `--output_dir`, or delete this one."
            )


def claim_folder(settings: Mapping[str, Any], output: Path, is_main_process: bool) -> None:
    """Make a folder that of this run, unless it is that of another. Every process may call this.

    A run that left neither checkpoint nor model does not hold its folder.

    Args:
        settings (`Mapping[str, Any]`): see `collect_settings`.
        output (`Path`): the run's folder; made when missing.
        is_main_process (`bool`): whether this process writes.

    Raises:
        ValueError: names the settings in which the run there differs.
        FileExistsError: if nobody knows how the model there was made.
    """
    results = [*output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), *output.glob("*.safetensors")]
    if results:
        if not (output / SETTINGS).exists():
            raise FileExistsError(
                f"`{output}` holds `{results[0].name}` without {SETTINGS}: it is not a run that could go on. Choose "
                "another `--output_dir`."
            )
        check_settings(settings, default_options(ModelArguments, DataArguments, WorldVLATrainingArguments), output)
    if is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / SETTINGS, settings)
