"""Turn an official checkpoint and its tokenizers into one folder that `AutoModelForCausalLM` and `AutoProcessor` load.

    python -m modeling_worldvla.convert_worldvla_weights_to_hf --checkpoint worldvla/model_256/libero_goal \
        --tokenizer worldvla/chameleon/tokenizer --vqgan worldvla/chameleon/tokenizer --output worldvla-goal/

The processor's half is written by `python -m tokenization.convert_chameleon_tokenizer_to_hf`, started as a process of
its own: this package may not import that one, and what both must agree on stands in the files they write. It goes
first, because it takes seconds and finds wrong folders before minutes of copying.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.dynamic_module_utils import custom_object_save

from .command_line import parse_command_line
from .configuration_worldvla import WorldVLAConfig
from .convert_official_checkpoint import (
    OFFICIAL_REPOSITORY,
    OfficialWeights,
    build_config,
    check_weights,
    fold_heads,
    open_shard,
    read_official_sizes,
)
from .convert_weight_files import write_weights
from .hub_worldvla import upload_checkpoint
from .model_card_worldvla import write_model_card
from .modeling_worldvla import WorldVLAForCausalLM

logger = logging.getLogger("worldvla.convert_weights")

TEXT_TOKENIZER_FILE = "text_tokenizer.json"
WHERE_TOKENIZERS_COME_FROM = (
    "text_tokenizer.json, vqgan.ckpt and vqgan.yaml are the folder chameleon/tokenizer of "
    "Alibaba-DAMO-Academy/WorldVLA on the Hugging Face Hub, and the folder `tokenizer` of Meta's Chameleon download"
)
# What the names of the official folders say and no file in them does.
IMAGE_SIZES = {"model_256": 256, "model_512": 512}
CHUNK_SIZES = {"libero_spatial": 5, "libero_object": 5, "libero_goal": 5, "libero_10": 10}
_ERROR = re.compile(r"^(?:\w+\.)*(\w*Error): ", re.MULTILINE)


@dataclass
class ConvertWeightsArguments:
    """Options of `modeling_worldvla/convert_worldvla_weights_to_hf.py`."""

    checkpoint: str = field(metadata={"help": "Folder of the official checkpoint: config.json and the weights."})
    tokenizer: str = field(metadata={"help": "Folder that holds text_tokenizer.json, or the file."})
    vqgan: str = field(metadata={"help": "Folder that holds vqgan.ckpt and vqgan.yaml, or the .ckpt file."})
    output: str = field(metadata={"help": "Folder of the converted checkpoint. It must not exist yet."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the images in pixels; by default 512 inside model_512/, else 256."}
    )
    chunk_size: int | None = field(
        default=None, metadata={"help": "K, actions per prediction; by default 10 for libero_10, else 5."}
    )
    push_to_hub: str | None = field(default=None, metadata={"help": "Hub repository to upload the folder to."})

    def __post_init__(self) -> None:
        """Check every option before anything is read."""
        for name in ("image_size", "chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name}` must be larger than 0, got {value}.")
        if self.push_to_hub is not None:
            _require_hub(self.push_to_hub)


def convert_checkpoint(
    arguments: ConvertWeightsArguments,
    derived_from: str = OFFICIAL_REPOSITORY,
    change: Callable[[str, torch.Tensor, WorldVLAConfig], torch.Tensor] | None = None,
) -> Path:
    """Read an official checkpoint and write one folder, whole or not at all.

    Args:
        arguments (`ConvertWeightsArguments`): all options.
        derived_from (`str`): Hub id that config and model card name as the origin.
        change (`Callable`, *optional*): gives what is written for a weight, from its name, itself and the config; it
            must not change the weight in place.

    Returns:
        `Path`: the folder.

    Raises:
        FileExistsError: if the folder is there already.
        FileNotFoundError: if a file is missing; says which, and where one gets it.
        ValueError: if a file is damaged or of another architecture, weights are missing, too many, of another shape or
            not finite, or model and tokenizers do not belong together.
        OSError: if the disk is too small.
    """
    output, checkpoint = Path(arguments.output), Path(arguments.checkpoint)
    if output.exists():
        raise FileExistsError(f"`{output}` exists already. Choose another `--output`, or delete it.")
    sizes = read_official_sizes(checkpoint)
    sizes["chunk_size"] = arguments.chunk_size or sizes.get("chunk_size") or _by_folder(checkpoint, CHUNK_SIZES, 5)
    config = build_config(sizes, checkpoint)
    config.derived_from = derived_from
    with torch.device("meta"):
        model = WorldVLAForCausalLM(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    weights = check_weights(checkpoint, shapes, config)
    temporary = _make_folder_beside(output, weights.num_bytes)
    try:
        image_size = arguments.image_size or _by_folder(checkpoint, IMAGE_SIZES, 256)
        write_processor(arguments, image_size, config, temporary)
        require_same_ids(config, temporary)
        write_model_code(model, weights.dtype, temporary)
        write_model_weights(weights, shapes, temporary, change and (lambda name, weight: change(name, weight, config)))
        write_model_card(temporary, name=output.name)
        temporary.chmod(0o755)  # mkdtemp makes folders for one user only
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def write_processor(arguments: ConvertWeightsArguments, image_size: int, config: WorldVLAConfig, folder: Path) -> None:
    """Let the other package write its half.

    Args:
        arguments (`ConvertWeightsArguments`): says where the tokenizers are.
        image_size (`int`): side of the images in pixels.
        config (`WorldVLAConfig`): for the model's positions.
        folder (`Path`): gets the files.

    Raises:
        FileNotFoundError: if a file is missing; says which, and where one gets it.
        ValueError: if the other command fails; with its message.
    """
    table = Path(arguments.tokenizer)
    if table.is_dir():
        table = table / TEXT_TOKENIZER_FILE
    if not table.is_file():
        raise FileNotFoundError(f"No file `{table}`, the text tokenizer. {WHERE_TOKENIZERS_COME_FROM}.")
    target = folder / "processor"
    command = [sys.executable, "-m", "tokenization.convert_chameleon_tokenizer_to_hf", "--output", str(target)]
    command += ["--vqgan", arguments.vqgan, "--text_tokenizer", str(table), "--image_size", str(image_size)]
    command += ["--max_length", str(config.max_position_embeddings)]
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = list(_ERROR.finditer(done.stderr))
        message = done.stderr[errors[-1].end() :] if errors else done.stderr or f"exit status {done.returncode}"
        missing = bool(errors) and errors[-1][1] == "FileNotFoundError"
        hint = f" {WHERE_TOKENIZERS_COME_FROM}." if missing else ""
        raise (FileNotFoundError if missing else ValueError)(
            f"The tokenizers in `{table.parent}` and `{arguments.vqgan}` do not convert: {message.strip()}{hint}"
        )
    for path in target.iterdir():
        path.rename(folder / path.name)
    target.rmdir()


def require_same_ids(config: WorldVLAConfig, folder: Path) -> None:
    """Refuse a model and a processor that give tokens different meanings.

    Args:
        config (`WorldVLAConfig`): of the model.
        folder (`Path`): holds `processor_config.json`.

    Raises:
        ValueError: names each value that differs.
    """
    settings = json.loads((folder / "processor_config.json").read_text("utf-8"))
    expected = {name: value for name, value in settings["vocabulary"].items() if hasattr(config, name)}
    expected["action_dim"] = len(next(iter(settings["action_limits"].values()))["low"])
    wrong = [f"{name} {getattr(config, name)} and {v}" for name, v in expected.items() if getattr(config, name) != v]
    if wrong:
        raise ValueError(
            f"Model and tokenizers do not belong together: they have {', '.join(wrong)}. Official checkpoints and "
            f"Chameleon's tokenizers do. {WHERE_TOKENIZERS_COME_FROM}."
        )


def write_model_code(model: WorldVLAForCausalLM, dtype: torch.dtype, folder: Path) -> None:
    """Write what `save_pretrained` writes, but no weights.

    Args:
        model (`WorldVLAForCausalLM`): may lie on the meta device.
        dtype (`torch.dtype`): of the weights, for `config.json`.
        folder (`Path`): gets `config.json`, `generation_config.json` and the code.
    """
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    custom_object_save(model, folder, config=model.config)  # type: ignore[arg-type]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def write_model_weights(
    weights: OfficialWeights,
    shapes: dict[str, tuple[int, ...]],
    folder: Path,
    change: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Copy the weights shard by shard into safetensors, with an index where there are several.

    Args:
        weights (`OfficialWeights`): where they lie.
        shapes (`dict`): name to shape of the model's weights.
        folder (`Path`): gets the files.
        change (`Callable`, *optional*): gives what is written for a weight, from its name and itself.

    Raises:
        ValueError: if a weight is not finite, or q/k-norms have another form.
        OSError: if the disk is full.
    """
    count, num_bytes = len(weights.shards), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(weights.shards, start=1):
        name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        logger.info("%s -> %s (%d of %d)", shard.path, name, number, count)
        tensors = open_shard(shard.path)
        folded = {key: fold_heads(key, tensors[key], shapes[key]) for key in shard.names}
        written = folded if change is None else {key: change(key, weight) for key, weight in folded.items()}
        num_bytes += write_weights(folder / name, written)
        weight_map |= dict.fromkeys(shard.names, name)
    if count > 1:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _require_hub(repo_id: str) -> None:
    """Refuse an upload that cannot succeed, before minutes of copying."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`--push_to_hub` must be a name such as `me/worldvla`, got `{repo_id}`: {error}") from error
    if get_token() is None:
        raise ValueError(
            f"`--push_to_hub {repo_id}` needs an account on the Hugging Face Hub, and this machine knows none. Log in "
            "with `hf auth login`, or set `HF_TOKEN`."
        )


def _by_folder(checkpoint: Path, values: dict[str, int], default: int) -> int:
    """What the name of an official folder, or of one above it, says."""
    names: Iterable[str] = reversed(checkpoint.resolve().parts)
    return next((values[name] for name in names if name in values), default)


def _make_folder_beside(output: Path, num_bytes: int) -> Path:
    """A hidden folder that becomes the output when it is whole; refuses a place without rights or room."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if free >= num_bytes:
            return Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    except OSError as error:
        raise OSError(
            f"`--output {output}` cannot be made: {error}. Choose a folder that you may write to."
        ) from error
    raise OSError(
        f"The weights take {num_bytes / 2**30:.1f} GiB, but `{output.parent}` has {free / 2**30:.1f} GiB free. Make "
        "room, or choose an `--output` elsewhere."
    )


def main() -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_command_line(ConvertWeightsArguments)
    output = convert_checkpoint(arguments)
    logger.info("model and processor saved in %s", output)
    if arguments.push_to_hub:
        upload_checkpoint(output, arguments.push_to_hub)
        logger.info("uploaded to %s", arguments.push_to_hub)


if __name__ == "__main__":
    main()
