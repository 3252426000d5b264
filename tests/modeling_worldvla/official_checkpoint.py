"""Folders in the official format: the recorded random model, and the tokenizers beside it."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ..tokenization.recorded_vqgan import official_weights as official_vqgan_weights
from ..tokenization.recorded_vqgan import write_official_vqgan
from ..tokenization.test_convert_tokenizer import official_table
from .test_modeling import FIXTURES, recorded_parameter

# Keys and values as the official code writes them; the vocabulary map is cut short, nothing reads it.
OFFICIAL_CONFIG = {
    "architectures": ["ChameleonXLLMXForConditionalGeneration"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dropout": 0.05,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 160,
    "mask_image_logits": False,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_parallel_size": 1,
    "model_type": "chameleon",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "swin_norm": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.2",
    "use_cache": True,
    "vocab_size": 65536,
    "vocabulary_map": {"<s>": 0, "<pad>": 1, "</s>": 2},
    "vq_config": {"model_type": "chameleon_vqgan", "num_embeddings": 8192},
    "z_loss_weight": 1e-05,
}


def official_shapes(config=OFFICIAL_CONFIG):
    """Official names and shapes, written out by hand."""
    hidden, inner, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    norm = (config["model_parallel_size"], hidden // config["num_attention_heads"])
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        for part in "qk":
            shapes |= {f"{layer}.self_attn.{part}_norm.{kind}": norm for kind in ("weight", "bias")}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{layer}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def recorded_weights():
    """The weights behind the recorded forward passes, by official name."""
    return {name: recorded_parameter(name, shape) for name, shape in official_shapes().items()}


def small_weights(**changes):
    """A config and random weights of a model so small that many can be written."""
    config = OFFICIAL_CONFIG | {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2} | changes
    return config, {name: recorded_parameter(name, shape) for name, shape in official_shapes(config).items()}


def write_checkpoint(folder, weights, config=OFFICIAL_CONFIG, form="safetensors", shards=1):
    """Write `config.json` and the weights, in one file or in shards with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem, suffix = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}[form]
    names, weight_map = list(weights), {}
    for number in range(shards):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"
        part = {name: weights[name] for name in names[number::shards]}
        if form == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def write_tokenizers(folder):
    """`text_tokenizer.json`, `vqgan.ckpt` and `vqgan.yaml`, as in the folder `chameleon/tokenizer` of the release."""
    write_official_vqgan(folder, official_vqgan_weights(np.load(FIXTURES / "recorded_images.npz")))
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    table = official_table() | {"pre_tokenizer": by_bytes, "decoder": by_bytes}
    (folder / "text_tokenizer.json").write_text(json.dumps(table))
    return Path(folder)
