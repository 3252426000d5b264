"""The random VQ-GAN and the pictures behind the recorded image tokens, made again by their rules."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SEED, CODEBOOK_SEED = 21, 22
CODEBOOK = "quantize.embedding.weight"
SIZES = {
    "model": {
        "params": {
            "embed_dim": 16,
            "n_embed": 8192,
            "ddconfig": {
                "attn_resolutions": [],
                "ch": 32,
                "ch_mult": [1, 1, 1, 1, 1],
                "double_z": False,
                "dropout": 0.0,
                "in_channels": 3,
                "num_res_blocks": 1,
                "out_ch": 3,
                "resolution": 512,
                "z_channels": 16,
            },
        }
    }
}


def named_normal(seed, name, shape):
    """float32 N(0, 1) that depends only on (seed, name, shape)."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))
    return generator.standard_normal(size=tuple(shape), dtype=np.float32)


def official_weights(recorded):
    """All weights by official name, bit for bit those of the recording."""
    shapes = json.loads(recorded["vqgan_shapes"].tobytes())
    weights = {}
    for name, shape in shapes.items():
        mean, std = 0.0, 0.05
        if len(shape) > 1:
            std = 1 / math.sqrt(math.prod(shape[1:]))
        elif "norm" in name:
            mean, std = float(name.endswith("weight")), 0.1
        mean, std, seed = np.float32(mean), np.float32(std), SEED
        if name == CODEBOOK:
            mean, std, seed = recorded["codebook_mean"], recorded["codebook_std"], CODEBOOK_SEED
        weights[name] = torch.from_numpy(named_normal(seed, name, shape) * std + mean)
    return weights


def write_official_vqgan(folder, weights, sizes=SIZES):
    """`vqgan.ckpt` and `vqgan.yaml`, as the official files look."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights, "epoch": 0, "global_step": 1}, folder / "vqgan.ckpt")
    (folder / "vqgan.yaml").write_text(json.dumps(sizes))  # JSON is YAML
    return folder


def draw_picture(seed, height, width, cells, noise):
    """A picture of soft colours with noise."""
    draw = np.random.RandomState(seed)
    colours = Image.fromarray(draw.randint(0, 256, (cells, cells, 3)).astype(np.uint8))
    smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + draw.randint(-noise, noise + 1, smooth.shape)).clip(0, 255).astype(np.uint8)


def input_picture(number, height, width):
    """Input of the recorded case of that number."""
    return draw_picture(700 + number, height, width, cells=9, noise=20)


def vqgan_picture(number):
    """One of the two 256 x 256 pictures that went through the VQ-GAN itself."""
    return draw_picture(500 + number, 256, 256, cells=8, noise=25)


def code_to_offset():
    """The map from codes to image tokens in the recording."""
    return np.argsort(np.random.RandomState(20240607).permutation(8192)).tolist()
