"""The layout of the official release: a `config.json` of a Chameleon model, and files of weights.

Weights are mapped into memory, one file at a time, and come from disk where they are touched.
"""

import json
import pickle
import zipfile
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from .configuration_worldvla import WorldVLAConfig

OFFICIAL_REPOSITORY = "Alibaba-DAMO-Academy/WorldVLA"
WHERE_FROM = (
    "The official checkpoints are the folders model_256/ and model_512/, each with libero_spatial, libero_object, "
    f"libero_goal and libero_10, of {OFFICIAL_REPOSITORY} on the Hugging Face Hub: "
    f'`hf download {OFFICIAL_REPOSITORY} --include "model_256/libero_goal/*" --local-dir worldvla`'
)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MANY = 5  # names that an error shows
_SAME_NAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "swin_norm",
    "model_parallel_size",
    "z_loss_weight",
)
_ONLY = {"model_type": "chameleon", "rope_scaling": None, "rope_type": "default", "tie_word_embeddings": False}
# The VQ-GAN is read from its own files; the official training deletes it from the model, other savers keep half of it.
_IGNORED_PREFIX = "model.vqmodel."
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"  # a table that the model makes itself


class OfficialShard(NamedTuple):
    """One file of weights: where it is, and the names in it that the model needs."""

    path: Path
    names: list[str]


class OfficialWeights(NamedTuple):
    """All files of a checkpoint, checked by name, shape and dtype; `num_bytes` without what is left out."""

    shards: list[OfficialShard]
    dtype: torch.dtype
    num_bytes: int


def read_official_sizes(folder: Path) -> dict[str, Any]:
    """Read what a model needs to know from the official `config.json`.

    Token ids are not read: the official file holds Chameleon's, which the official data code does not use.

    Args:
        folder (`Path`): the checkpoint.

    Returns:
        `dict`: keyword arguments of `WorldVLAConfig`; what the file leaves out has Chameleon's default there.

    Raises:
        FileNotFoundError: if folder or file is missing; says where one gets it.
        ValueError: if the file is no JSON object or describes another architecture.
    """
    path = _require_file(folder, "config.json", "the sizes of the model")
    content = _read_json(path)
    rope = content.get("rope_parameters") or {}
    settings = {"rope_type": rope.get("rope_type", "default"), **content}
    other = [
        f"{name} = {settings.get(name)!r} (must be {value!r})"
        for name, value in _ONLY.items()
        if settings.get(name, value if name != "model_type" else None) != value
    ]
    if other:
        raise ValueError(
            f"`{path}` describes another architecture: {'; '.join(other)}. Only checkpoints of the official code, "
            f"which are Chameleon models, convert. {WHERE_FROM}."
        )
    sizes = {name: content[name] for name in _SAME_NAME if content.get(name) is not None}
    sizes["rope_theta"] = rope.get("rope_theta", content.get("rope_theta", 10000.0))
    if "time_horizon" in content:  # actions per chunk, in configs of later official code
        sizes["chunk_size"] = content["time_horizon"]
    return sizes


def build_config(sizes: dict[str, Any], folder: Path) -> WorldVLAConfig:
    """Make our config, and say which file is to blame where it refuses.

    Args:
        sizes (`dict`): keyword arguments of `WorldVLAConfig`.
        folder (`Path`): the checkpoint they come from, for the message.

    Returns:
        `WorldVLAConfig`: checked.

    Raises:
        ValueError: if a size has another type, or sizes do not fit together.
    """
    try:
        return WorldVLAConfig(**sizes, derived_from=OFFICIAL_REPOSITORY)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{folder / 'config.json'}` describes no model: {' '.join(str(error).split())} {WHERE_FROM}."
        ) from error


def find_shards(folder: Path) -> list[Path]:
    """List the files that hold the weights: the shards of an index, or the one file.

    Args:
        folder (`Path`): the checkpoint.

    Returns:
        `list[Path]`: in the order of their names; safetensors are preferred where both forms lie there.

    Raises:
        FileNotFoundError: if there are no weights, or shards of the index are missing; names them.
        ValueError: if the index is no index.
    """
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
                raise ValueError(f"`{index}` is no index of weights: it has no `weight_map`. {WHERE_FROM}.")
            files = sorted(set(weight_map.values()))
            strange = [file for file in files if Path(file).name != file or not file.endswith(Path(name).suffix)]
            if strange:
                raise ValueError(
                    f"`{index}` lists files that are no shards beside it: {show_names(strange)}. Expected names such "
                    f"as {name.replace('.', '-00001-of-00003.', 1)}. Download it again. {WHERE_FROM}."
                )
            missing = [file for file in files if not (folder / file).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"`{folder}` lacks {len(missing)} of {len(files)} shards that {index.name} lists: "
                    f"{show_names(missing)}. Download them. {WHERE_FROM}."
                )
            return [folder / file for file in files]
        if (folder / name).is_file():
            return [folder / name]
    indexes = " or ".join(f"{name}.index.json with its shards" for name in WEIGHT_FILES)
    raise FileNotFoundError(
        f"No weights in `{folder}`: expected {' or '.join(WEIGHT_FILES)}, or {indexes}. {WHERE_FROM}."
    )


def open_shard(path: Path) -> dict[str, torch.Tensor]:
    """Map the weights of one file into memory. Nothing that a file may bring along is run.

    Args:
        path (`Path`): a `.safetensors` file, or what `torch.save` wrote.

    Returns:
        `dict[str, torch.Tensor]`: by name. What is touched counts as memory in use until the last tensor is dropped.
        Files that `torch.save` wrote before PyTorch 1.6 are read at once.

    Raises:
        ValueError: if the file is damaged, or needs more than tensors to be read.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`{path}` cannot be read with `torch.load(weights_only=True)`: it is damaged, or it holds objects whose "
            f"loading would run code that the file brings along, which this converter refuses. {WHERE_FROM}."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"`{path}` is damaged: {' '.join(str(error).split())}. Download it again; was the download cut short? "
            f"{WHERE_FROM}."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"`{path}` holds no weights: expected a dict of tensors by name. {WHERE_FROM}.")
    return content


def check_weights(folder: Path, expected: dict[str, tuple[int, ...]], config: WorldVLAConfig) -> OfficialWeights:
    """Compare every name, shape and dtype with the model's, without reading a weight.

    Args:
        folder (`Path`): the checkpoint.
        expected (`dict`): name to shape of the model's weights.
        config (`WorldVLAConfig`): for the other shape that q/k-norms may have, `[heads, head_dim]`.

    Returns:
        `OfficialWeights`: where each weight lies. The dtype is one that holds them all exactly.

    Raises:
        FileNotFoundError: if a shard is missing.
        ValueError: if weights are missing, too many, twice there, or of another shape or dtype; names the first few.
    """
    shards, shapes, dtypes = [], {}, set()
    wrong: dict[str, list[str]] = {"missing": [], "unexpected": [], "twice": []}
    for path in find_shards(folder):
        names = []
        for name, weight in open_shard(path).items():
            if name.startswith(_IGNORED_PREFIX) or name.endswith(_IGNORED_SUFFIX):
                continue
            if name not in expected:
                wrong["unexpected"].append(name)
            elif name in shapes:
                wrong["twice"].append(name)
            shapes[name] = tuple(weight.shape)
            dtypes.add(weight.dtype)
            names.append(name)
        shards.append(OfficialShard(path, names))
    wrong["missing"] = [name for name in expected if name not in shapes]
    wrong["of another shape"] = [
        f"{name} {shapes[name]} instead of {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) not in (shape, _per_head_shape(name, config))
    ]
    wrong["of another dtype"] = [str(dtype) for dtype in dtypes if dtype not in DTYPES]
    found = [f"{len(names)} {what}: {show_names(names)}" for what, names in wrong.items() if names]
    if found:
        raise ValueError(
            f"The weights in `{folder}` are not those of the model that its config.json describes "
            f"({'; '.join(found)}). Only complete official checkpoints convert. {WHERE_FROM}."
        )
    dtype = reduce(torch.promote_types, dtypes)
    num_bytes = sum(torch.Size(shape).numel() for shape in expected.values()) * dtype.itemsize
    return OfficialWeights([shard for shard in shards if shard.names], dtype, num_bytes)


def fold_heads(name: str, weight: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Turn `[heads, head_dim]` q/k-norms, as transformers' Chameleon keeps them, into the official form.

    Args:
        name (`str`): of the weight, for the message.
        weight (`torch.Tensor`): any weight; q/k-norms may have one row per head.
        shape (`tuple[int, ...]`): what the model expects, for q/k-norms `(model_parallel_size, head_dim)`.

    Returns:
        `torch.Tensor` of that shape.

    Raises:
        ValueError: if heads of one training shard have different rows: no such model was trained.
    """
    if tuple(weight.shape) == shape:
        return weight
    rows = weight.view(shape[0], -1, shape[1])
    if not (rows == rows[:, :1]).all():
        raise ValueError(
            f"`{name}` has one row per head, {weight.shape[0]} in all, and the heads of a training shard differ; "
            f"config.json says that there were {shape[0]} (`model_parallel_size`). Correct it there if it is wrong."
        )
    return rows[:, 0]


def show_names(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more


def _per_head_shape(name: str, config: WorldVLAConfig) -> tuple[int, int] | None:
    """The shape of a q/k-norm with one row per head; None for other weights."""
    kind = name.rsplit(".", 2)[-2]
    heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}.get(kind)
    return None if heads is None else (heads, config.head_dim)


def _require_file(folder: Path, name: str, what: str) -> Path:
    """Refuse a folder that is none or lacks a file."""
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder `{folder}`; `--checkpoint` must name one. {WHERE_FROM}.")
    if not (folder / name).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{name}"))
        if inside:
            raise FileNotFoundError(
                f"No file `{folder / name}`, but there is one in {show_names(inside)}: give `--checkpoint` one of "
                "these folders."
            )
        raise FileNotFoundError(f"No file `{folder / name}`, which holds {what}. {WHERE_FROM}.")
    return folder / name


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"`{path}` is no JSON: {error}. Download it again. {WHERE_FROM}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold a JSON object, got a {type(content).__name__}. {WHERE_FROM}.")
    return content
