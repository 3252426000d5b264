"""The VQ-GAN: sizes as recipes, and where a checkpoint keeps it. Weights and layers are diffusers' `VQModel`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .choices_worldvla import require_choice

VQ_MODEL_FOLDER = "vq_model"
_VQ_MODEL_CONFIG = "config.json"
_VQ_MODEL_WEIGHTS = "diffusion_pytorch_model.safetensors"

VQ_MODEL_PRESETS: dict[str, dict[str, Any]] = {
    # The official VQ-GAN: 68.7M parameters, stride 16, 8192 codes of 256 dimensions.
    "chameleon": {
        "block_out_channels": (128, 128, 256, 256, 512),
        "layers_per_block": 2,
        "latent_channels": 256,
        "vq_embed_dim": 256,
        "num_vq_embeddings": 8192,
        "norm_num_groups": 32,
        "mid_block_add_attention": True,
        "sample_size": 512,
    },
    # For 128 x 128 frames of many scenes of a simulator: 4.0M parameters, stride 16, 1024 codes, hours on a laptop.
    "small-128": {
        "block_out_channels": (16, 32, 64, 128, 128),
        "layers_per_block": 1,
        "latent_channels": 64,
        "vq_embed_dim": 64,
        "num_vq_embeddings": 1024,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "sample_size": 128,
    },
    # For 128 x 128 frames of one task: 2.8M parameters, stride 16, 512 codes, minutes on a laptop.
    "tiny-128": {
        "block_out_channels": (8, 16, 32, 64, 128),
        "layers_per_block": 1,
        "latent_channels": 64,
        "vq_embed_dim": 64,
        "num_vq_embeddings": 512,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "sample_size": 128,
    },
}


def vq_model_config(preset: str, **overrides: Any) -> dict[str, Any]:
    """Keyword arguments of diffusers' `VQModel`.

    Args:
        preset (`str`): one of `VQ_MODEL_PRESETS`.
        **overrides: arguments of `VQModel` that differ from the preset.

    Returns:
        `dict`: `VQModel(**vq_model_config("tiny-128"))` builds it.

    Raises:
        ValueError: if the preset is unknown.

    References:
        `chameleon` is the VQ-GAN of the official weights, as diffusers writes it.
    """
    require_choice("VQ-GAN preset", preset, VQ_MODEL_PRESETS)
    config = {**VQ_MODEL_PRESETS[preset], "lookup_from_codebook": True, **overrides}
    blocks = len(config["block_out_channels"])
    config.setdefault("down_block_types", ("DownEncoderBlock2D",) * blocks)
    config.setdefault("up_block_types", ("UpDecoderBlock2D",) * blocks)
    return config


def stride_of(vq_model: Any) -> int:
    """Pixels along one side of the square that a code stands for.

    Args:
        vq_model (`diffusers.VQModel`): the VQ-GAN.

    Returns:
        `int`: 16 for the presets.
    """
    return 2 ** (len(vq_model.config.block_out_channels) - 1)


def require_full_precision(dtype: torch.dtype) -> None:
    """Refuse half precision: with bfloat16 an eighth of the codes of a picture are others.

    Args:
        dtype (`torch.dtype`): precision of the VQ-GAN, or the one it is to be brought to.

    Raises:
        ValueError: if it is neither float32 nor float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"The VQ-GAN stays in float32, because half precision changes the codes of images; got {dtype}. Move only "
            'the model to it (`model.to(dtype)`), and the processor to the device: `processor.to("cuda")`.'
        )


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Compute float32 as float32: no autocast, no TF32 or bfloat16 inside convolutions and matrix products.

    Args:
        device_type (`str`): where the VQ-GAN is, such as `cuda`.

    Yields:
        nothing; the settings are put back at the end.
    """
    backends: Any = torch.backends
    switches = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def require_vq_model(folder_or_id: str, **hub_options: Any) -> None:
    """Refuse a checkpoint that lacks its VQ-GAN, before anything needs it.

    Args:
        folder_or_id (`str`): local folder or Hub id.
        **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Raises:
        OSError: names the missing file and says what to do.
    """
    from transformers.utils import cached_file

    subfolder = str(Path(hub_options.get("subfolder") or "", VQ_MODEL_FOLDER))
    if Path(folder_or_id).is_dir():
        folder = Path(folder_or_id, subfolder)
        missing = [name for name in (_VQ_MODEL_CONFIG, _VQ_MODEL_WEIGHTS) if not (folder / name).is_file()]
        if (folder / f"{_VQ_MODEL_WEIGHTS}.index.json").is_file():
            missing = [name for name in missing if name != _VQ_MODEL_WEIGHTS]
    else:
        options = {**hub_options, "subfolder": subfolder}
        found = cached_file(folder_or_id, _VQ_MODEL_CONFIG, _raise_exceptions_for_missing_entries=False, **options)
        missing = [] if found else [_VQ_MODEL_CONFIG]
    if missing:
        raise OSError(
            f"The checkpoint `{folder_or_id}` lacks its VQ-GAN: {', '.join(f'{subfolder}/{name}' for name in missing)}"
            " not found. Without it images cannot be read or drawn. Save the checkpoint with "
            "`WorldVLAProcessor.save_pretrained`, or copy the folder of the VQ-GAN it was trained with there."
        )


def load_vq_model(folder_or_id: str, **hub_options: Any) -> Any:
    """Load the VQ-GAN that lies in a checkpoint, in float32: half precision changes the codes.

    Args:
        folder_or_id (`str`): local folder or Hub id.
        **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Returns:
        `diffusers.VQModel`: in evaluation mode, without gradients.

    Raises:
        OSError: if the checkpoint lacks its VQ-GAN.
    """
    from diffusers import VQModel

    require_vq_model(folder_or_id, **hub_options)
    options = {**hub_options, "subfolder": str(Path(hub_options.get("subfolder") or "", VQ_MODEL_FOLDER))}
    vq_model = VQModel.from_pretrained(folder_or_id, torch_dtype=torch.float32, use_safetensors=True, **options)
    vq_model.register_to_config(_name_or_path=VQ_MODEL_FOLDER)  # where it lay on this machine is nobody's business
    return vq_model.eval().requires_grad_(False)
