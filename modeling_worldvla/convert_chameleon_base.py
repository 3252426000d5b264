"""Turn Chameleon, in the form of transformers, into a checkpoint that training begins with.

    hf download facebook/chameleon-7b --local-dir chameleon-7b
    python -m modeling_worldvla.convert_chameleon_base --checkpoint chameleon-7b \
        --tokenizer chameleon/tokenizer --vqgan chameleon/tokenizer --output chameleon-base

Chameleon was released without the ability to draw: its head's rows of image tokens are of no use. They are set to
zero, as at the official starting point: all image tokens begin equally likely and learn from there. Every other
weight stays as it is. Text tokenizer and VQ-GAN come from the files of Meta's own download (docs/official_weights.md),
because transformers keeps only the encoder of the VQ-GAN.

References:
    Chameleon (arXiv 2405.09818); WorldVLA (arXiv 2506.21539) section 3.1: initialised from Chameleon.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from .command_line import parse_command_line
from .configuration_worldvla import WorldVLAConfig
from .convert_worldvla_weights_to_hf import ConvertWeightsArguments, convert_checkpoint
from .hub_worldvla import upload_checkpoint

logger = logging.getLogger("worldvla.convert_base")

CHAMELEON_REPOSITORY = "facebook/chameleon-7b"
HEAD = "lm_head.weight"


@dataclass
class ConvertBaseArguments(ConvertWeightsArguments):
    """Options of `modeling_worldvla/convert_chameleon_base.py`: those of the converter of official checkpoints."""


def convert_base(arguments: ConvertBaseArguments) -> Path:
    """Write the starting point: Chameleon's weights, image rows of the head zero, with its processor.

    Args:
        arguments (`ConvertBaseArguments`): all options.

    Returns:
        `Path`: the folder, whole or not there at all.

    Raises:
        FileExistsError: if the folder is there already.
        FileNotFoundError: if a file is missing; says which.
        ValueError: if weights or tokenizers are not Chameleon's.
        OSError: if the disk is too small.
    """
    return convert_checkpoint(arguments, CHAMELEON_REPOSITORY, zero_image_rows)


def zero_image_rows(name: str, weight: torch.Tensor, config: WorldVLAConfig) -> torch.Tensor:
    """Forget what the head says of image tokens.

    Args:
        name (`str`): of the weight.
        weight (`torch.Tensor`): any weight; only the head `(V, H)` is changed, in a copy.
        config (`WorldVLAConfig`): says which rows are image tokens.

    Returns:
        `torch.Tensor`: the weight to begin with.
    """
    if name != HEAD:
        return weight
    weight = weight.clone()
    weight[config.image_token_id_start : config.image_token_id_start + config.num_image_tokens] = 0
    return weight


def main() -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_command_line(ConvertBaseArguments)
    output = convert_base(arguments)
    logger.info("starting point saved in %s; train with `--model_name_or_path %s`", output, output)
    if arguments.push_to_hub:
        upload_checkpoint(output, arguments.push_to_hub)
        logger.info("uploaded to %s", arguments.push_to_hub)


if __name__ == "__main__":
    main()
