"""Low-rank adapters (LoRA) by PEFT: small matrices are trained, the weights of the checkpoint stay as they are.

References:
    Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenization.choices_worldvla import require_choice
from train.arguments import ModelArguments

ALL_LINEAR = "all-linear"
_PREFIX = "base_model.model."  # of names in a PeftModel


def add_adapters(model: PreTrainedModel, arguments: ModelArguments) -> Any:
    """Put adapters beside linear layers and freeze everything else.

    Args:
        model (`PreTrainedModel`): the model to adapt.
        arguments (`ModelArguments`): rank, scale, dropout and which layers.

    Returns:
        `peft.PeftModel`: its adapters are float32 and begin as nothing.

    Raises:
        ImportError: if PEFT is not installed.
        ValueError: if a layer that should be adapted does not exist (names the nearest).
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("`--lora_rank` needs the package peft: `pip install worldvla[lora]`.") from error
    layers = sorted({name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)})
    for target in arguments.lora_targets:
        require_choice("layer of `--lora_targets`:", target, [ALL_LINEAR, *layers])
    targets: Any = arguments.lora_targets
    if ALL_LINEAR in targets:
        targets = ALL_LINEAR if targets == [ALL_LINEAR] else layers
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=arguments.lora_rank,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        ),
    )


def base_of(model: Any) -> PreTrainedModel:
    """The model below the adapters, or the model itself where there are none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def merge_adapters(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add adapters to the weights that they stand beside. The model is not touched.

    Args:
        model (`peft.PeftModel`): says which layers are adapted, and by how much adapters count.
        weights (`dict[str, Tensor]`): its whole state dict, gathered from all processes.

    Returns:
        `dict[str, Tensor]`: the state dict of the model below; adapted weights on the CPU, in their own dtype.
    """
    from peft.tuners.lora import LoraLayer

    merged = {
        name.removeprefix(_PREFIX).replace(".base_layer.", "."): weight
        for name, weight in weights.items()
        if ".lora_" not in name
    }
    for name, layer in base_of(model).named_modules():
        for adapter, scaling in layer.scaling.items() if isinstance(layer, LoraLayer) else ():
            low, high = (weights[f"{_PREFIX}{name}.lora_{part}.{adapter}.weight"].cpu().float() for part in "AB")
            weight = merged[f"{name}.weight"].cpu()
            merged[f"{name}.weight"] = torch.addmm(weight.float(), high, low, alpha=scaling).to(weight.dtype)
    return merged
