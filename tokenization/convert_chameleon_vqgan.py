"""The official VQ-GAN (`vqgan.ckpt`, `vqgan.yaml`) as a diffusers `VQModel`."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel

from .vqgan_worldvla import vq_model_config

WHERE_FROM = (
    "The official files are part of Meta's Chameleon download (folder `tokenizer`: vqgan.ckpt, vqgan.yaml and "
    "text_tokenizer.json), https://ai.meta.com/resources/models-and-libraries/chameleon-downloads"
)
_MANY = 5  # names that an error shows
_NORM_GROUPS = 32  # the official code has no option for it
_RENAMED = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.conv\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def load_official_vq_model(vqgan: str | os.PathLike, config: str | os.PathLike | None = None) -> Any:
    """Read the official VQ-GAN.

    Args:
        vqgan (`str` or `os.PathLike`): folder that holds `vqgan.ckpt` and `vqgan.yaml`, or the `.ckpt` file.
        config (`str` or `os.PathLike`, *optional*): the `.yaml`; by default the one beside the `.ckpt`.

    Returns:
        `diffusers.VQModel`: in float32 and evaluation mode, without gradients.

    Raises:
        FileNotFoundError: if a file is missing; says which, and where one gets it.
        ValueError: if a file is damaged, unsafe, or of another architecture.
    """
    checkpoint = Path(vqgan, "vqgan.ckpt") if Path(vqgan).is_dir() else Path(vqgan)
    require_file(checkpoint, "the weights of the VQ-GAN")
    yaml_file = Path(config) if config is not None else checkpoint.with_suffix(".yaml")
    sizes = read_official_config(require_file(yaml_file, "the sizes of the VQ-GAN"))
    weights = rename_official_weights(read_official_weights(checkpoint), len(sizes["block_out_channels"]))
    with torch.device("meta"):
        vq_model: Any = VQModel(**sizes)
    _require_same_weights(weights, vq_model.state_dict(), checkpoint, yaml_file)
    vq_model.load_state_dict(weights, assign=True)
    return vq_model.eval().requires_grad_(False)


def read_official_config(path: Path) -> dict[str, Any]:
    """Sizes of the VQ-GAN, from the official `vqgan.yaml`.

    Args:
        path (`Path`): the file.

    Returns:
        `dict`: keyword arguments of diffusers' `VQModel`.

    Raises:
        ValueError: if the file is no such YAML, or describes something that `VQModel` is not.
    """
    import yaml

    try:
        params = yaml.safe_load(path.read_text("utf-8"))["model"]["params"]
        sizes = params["ddconfig"]
        channels = tuple(int(sizes["ch"]) * int(factor) for factor in sizes["ch_mult"])
        config = vq_model_config(
            "chameleon",
            block_out_channels=channels,
            layers_per_block=int(sizes["num_res_blocks"]),
            latent_channels=int(sizes["z_channels"]),
            vq_embed_dim=int(params["embed_dim"]),
            num_vq_embeddings=int(params["n_embed"]),
            norm_num_groups=_NORM_GROUPS,
            sample_size=int(sizes["resolution"]),
        )
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{path}` does not describe a VQ-GAN: expected YAML with model.params.ddconfig (ch, ch_mult, "
            f"num_res_blocks, z_channels, resolution), embed_dim and n_embed; got {error!r}. Pass the official "
            "vqgan.yaml."
        ) from error
    expected = {"attn_resolutions": [], "double_z": False, "in_channels": 3, "out_ch": 3}
    other = [f"{key} = {sizes[key]!r} (must be {value!r})" for key, value in expected.items() if sizes[key] != value]
    other += [f"{width} channels (must be multiples of {_NORM_GROUPS})" for width in channels if width % _NORM_GROUPS]
    if other:
        raise ValueError(
            f"`{path}` describes another architecture: {'; '.join(other)}. Only VQ-GANs like Chameleon's convert."
        )
    return config


def read_official_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of the official `vqgan.ckpt`, without running code that a file may bring along.

    Args:
        path (`Path`): the file.

    Returns:
        `dict[str, torch.Tensor]`: official name to float32 tensor, without those of the training loss.

    Raises:
        ValueError: if the file needs more than tensors to be read, is damaged, or holds no finite weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`{path}` cannot be read with `torch.load(weights_only=True)`: it is damaged, or it holds objects whose "
            "loading would run code that the file brings along, which this converter refuses. If you trust the file, "
            'open it yourself and save its weights alone: `torch.save({"state_dict": weights}, "vqgan.ckpt")`. '
            f"{WHERE_FROM}."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"`{path}` is damaged: {error}. Copy it again. {WHERE_FROM}.") from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"`{path}` holds no weights: expected a dict `state_dict` of tensors. {WHERE_FROM}.")
    weights = {name: value.float() for name, value in weights.items() if not name.startswith("loss.")}
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"`{path}` holds NaN or infinite weights in {_show(broken)}. The file is damaged or the training that "
            f"wrote it diverged. {WHERE_FROM}."
        )
    return weights


def rename_official_weights(weights: dict[str, torch.Tensor], num_blocks: int) -> dict[str, torch.Tensor]:
    """Official names and shapes to those of diffusers' `VQModel`.

    Args:
        weights (`dict[str, torch.Tensor]`): by official name.
        num_blocks (`int`): resolutions of the encoder; the decoder counts them the other way round.

    Returns:
        `dict[str, torch.Tensor]`: by diffusers' name.
    """
    renamed = {}
    for name, value in weights.items():
        new = name
        for pattern, replacement in _RENAMED:
            new = re.sub(pattern, replacement, new)
        new = re.sub(
            r"^decoder\.up_blocks\.(\d+)", lambda found: f"decoder.up_blocks.{num_blocks - 1 - int(found[1])}", new
        )
        if re.search(r"\.attentions\.0\.to_\w+(\.0)?\.weight$", new) and value.ndim == 4:
            value = value[:, :, 0, 0]  # a convolution of 1 x 1 there, a linear layer here
        renamed[new] = value
    return renamed


def require_file(path: Path, what: str) -> Path:
    """Refuse a path that is no file.

    Args:
        path (`Path`): the file.
        what (`str`): what it holds, for the message.

    Returns:
        `Path`: the same.

    Raises:
        FileNotFoundError: names it and says where one gets it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No file `{path}`, which holds {what}. {WHERE_FROM}.")
    return path


def _require_same_weights(
    weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], checkpoint: Path, config: Path
) -> None:
    """Refuse weights that are missing, too many, or of another shape."""
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
        for name, value in weights.items()
        if name in expected and value.shape != expected[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    wrong = [f"{what}: {_show(names)}" for what, names in found.items() if names]
    if wrong:
        raise ValueError(
            f"The weights in `{checkpoint}` are not those of the VQ-GAN that `{config}` describes (diffusers' names; "
            f"{'; '.join(wrong)}). Use files that belong together. {WHERE_FROM}."
        )


def _show(names: list[str]) -> str:
    """The first few of some names."""
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more
