"""Parts that the reports of the demos share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.imagined_rollouts import NAMES
from evaluation.report import markdown_table


def psnr_table(psnr: Mapping[str, float]) -> str:
    """The imagination between its floor and its ceiling.

    Args:
        psnr (`Mapping`): dB by name, see `measure` in imagination_episodes.py.

    Returns:
        `str`: Markdown.
    """
    rows = [[title, f"{psnr[name]:.2f}"] for name, title in NAMES.items()]
    return markdown_table(["mean PSNR over the imagined frames", "dB"], rows)


def time_section(record: Mapping[str, Mapping[str, Any]]) -> str:
    """Time, memory and command of every stage, and of all.

    Args:
        record (`Mapping`): see `Road`.

    Returns:
        `str`: Markdown.
    """
    rows = [
        [name, f"{entry['seconds']:.0f}", f"{entry['peak_gib']:.1f}", f"`python {' '.join(entry['command'])}`"]
        for name, entry in record.items()
    ]
    return (
        f"## Time\n\n{markdown_table(['stage', 'seconds', 'GiB', 'command'], rows)}\n\n"
        f"All stages: {sum(entry['seconds'] for entry in record.values()) / 60:.1f} minutes; "
        f"most memory at once, all processes: {max(entry['peak_gib'] for entry in record.values()):.1f} GiB."
    )


def loading_section(checkpoint: Path) -> str:
    """How the checkpoint is loaded in Python.

    Args:
        checkpoint (`Path`): its folder.

    Returns:
        `str`: Markdown.
    """
    return (
        "## Use the checkpoint\n\n```python\nimport modeling_worldvla, tokenization\n"
        "from transformers import AutoModelForCausalLM, AutoProcessor\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{checkpoint}")\n'
        f'processor = AutoProcessor.from_pretrained("{checkpoint}")\n```'
    )
