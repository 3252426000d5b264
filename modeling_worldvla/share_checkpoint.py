"""Write the model card of a folder that holds a checkpoint, from its files and from evaluations; upload it if asked.

    python -m modeling_worldvla.share_checkpoint --folder outputs/run \
        --evaluation_files results/summary.json imagined.json --push_to_hub me/worldvla-goal

What the card says is listed in docs/sharing.md.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from .command_line import parse_command_line
from .hub_worldvla import upload_checkpoint
from .model_card_worldvla import write_model_card

logger = logging.getLogger("worldvla.share_checkpoint")


@dataclass
class ShareArguments:
    """Options of `modeling_worldvla/share_checkpoint.py`."""

    folder: str = field(metadata={"help": "Folder that holds model and processor."})
    evaluation_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "summary.json of evaluation/run.py, the JSON of evaluation/imagine.py, results.json of "
            "evaluation/reconstruct.py; by default those in the folder's sub-folder `evaluation/`."
        },
    )
    datasets: list[str] = field(default_factory=list, metadata={"help": "Hub ids of the training data."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Hub repository to upload the folder to."})
    private: bool | None = field(default=None, metadata={"help": "Whether a new repository is private."})
    revision: str | None = field(default=None, metadata={"help": "Branch of the repository."})


def share(arguments: ShareArguments) -> Path:
    """Write the card, and upload the folder where that is asked for.

    Args:
        arguments (`ShareArguments`): all options.

    Returns:
        `Path`: the card.

    Raises:
        FileNotFoundError: if the folder holds no model, or a file of results is missing.
        ValueError: if a file of results cannot be read, or people wrote different texts into both cards.
        OSError: if the Hub cannot be reached.
    """
    files = arguments.evaluation_files or None
    if arguments.push_to_hub is None:
        return write_model_card(arguments.folder, evaluation_files=files, datasets=arguments.datasets)
    upload_checkpoint(
        arguments.folder,
        arguments.push_to_hub,
        evaluation_files=files,
        datasets=arguments.datasets,
        private=arguments.private,
        revision=arguments.revision,
    )
    return Path(arguments.folder, "README.md")


def main() -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_command_line(ShareArguments)
    logger.info("model card in %s", share(arguments))
    if arguments.push_to_hub:
        logger.info("uploaded to %s", arguments.push_to_hub)


if __name__ == "__main__":
    main()
