"""Turn the official image and text tokenizer into a processor folder.

    python -m tokenization.convert_chameleon_tokenizer_to_hf --vqgan chameleon/tokenizer --output processor/

`chameleon/tokenizer` is the folder of Meta's Chameleon download that holds `vqgan.ckpt`, `vqgan.yaml` and
`text_tokenizer.json`. The result is what `AutoProcessor.from_pretrained` reads: official vocabulary, official action
bins, LIBERO's action limits, the wordings that the official weights were trained with.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "tokenization"

from transformers import HfArgumentParser

from .action_tokenization_worldvla import LIBERO_ACTION_LIMITS
from .bpe_worldvla import load_text_tokenizer
from .convert_chameleon_vqgan import load_official_vq_model, require_file
from .processing_worldvla import WorldVLAProcessor
from .text_table_worldvla import read_table
from .vocabulary_worldvla import VocabularyLayout, image_token_name

logger = logging.getLogger("worldvla.convert_tokenizer")

TEXT_TOKENIZER_FILE = "text_tokenizer.json"


@dataclass
class ConvertTokenizerArguments:
    """Options of `tokenization/convert_chameleon_tokenizer_to_hf.py`."""

    vqgan: str = field(metadata={"help": "Folder that holds vqgan.ckpt and vqgan.yaml, or the .ckpt file."})
    output: str = field(metadata={"help": "Folder of the processor. It must not exist yet."})
    text_tokenizer: str | None = field(
        default=None, metadata={"help": "The official text_tokenizer.json; by default the one beside the VQ-GAN."}
    )
    vqgan_config: str | None = field(
        default=None, metadata={"help": "The VQ-GAN's .yaml; by default the one beside the .ckpt, of the same name."}
    )
    image_size: list[int] = field(
        default_factory=lambda: [256], metadata={"help": "Side of the images in pixels, or height and width."}
    )
    dataset_name: str = field(default="libero", metadata={"help": "Name of the data set that the limits belong to."})
    action_limits: str | None = field(
        default=None,
        metadata={"help": 'JSON file {"low": [...], "high": [...]}; by default the limits of the official code.'},
    )
    max_length: int | None = field(default=4096, metadata={"help": "Positions of the model; longer prompts fail."})

    def __post_init__(self) -> None:
        """Check every option before anything is read."""
        if len(self.image_size) not in (1, 2) or min(self.image_size) < 1:
            raise ValueError(f"`--image_size` takes one side, or height and width, got {self.image_size}.")


def read_code_to_offset(text_tokenizer: str | os.PathLike, layout: VocabularyLayout) -> list[int]:
    """Where each VQ code stands among the image tokens, by the names in the text tokenizer's table.

    Args:
        text_tokenizer (`str` or `os.PathLike`): the official `text_tokenizer.json`.
        layout (`VocabularyLayout`): says where image tokens lie.

    Returns:
        `list[int]`: `layout.num_image_tokens` positions, a permutation.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no BPE table, or image tokens are missing or lie elsewhere.
    """
    path = require_file(Path(text_tokenizer), "the official text tokenizer")
    table = read_table(path.read_text("utf-8"), f"`{path}`")
    ids = table["model"]["vocab"] | {entry["content"]: entry["id"] for entry in table.get("added_tokens") or []}
    names = [image_token_name(code) for code in range(layout.num_image_tokens)]
    missing = [name for name in names if name not in ids]
    if missing:
        raise ValueError(
            f"The text tokenizer `{path}` has {len(names) - len(missing)} image tokens, the VQ-GAN {len(names)} "
            f"codes; missing: {', '.join(missing[:5])}. Use the tokenizer that belongs to this VQ-GAN."
        )
    offsets = [ids[name] - layout.image_token_id_start for name in names]
    wrong = [name for name, offset in zip(names, offsets, strict=True) if not 0 <= offset < len(names)]
    if wrong or len(set(offsets)) < len(offsets):
        raise ValueError(
            f"Image tokens of `{path}` must have the ids from {layout.image_token_id_start} to "
            f"{layout.image_token_id_start + len(names) - 1}, each once; not so: {', '.join(wrong[:5]) or 'doubles'}. "
            "Use the official vocabulary."
        )
    return offsets


def build_official_processor(
    vqgan: str | os.PathLike,
    text_tokenizer: str | os.PathLike | None = None,
    vqgan_config: str | os.PathLike | None = None,
    action_limits: dict[str, dict[str, list[float]]] | None = None,
    **settings: Any,
) -> WorldVLAProcessor:
    """Read the official tokenizers.

    Args:
        vqgan (`str` or `os.PathLike`): folder that holds `vqgan.ckpt` and `vqgan.yaml`, or the `.ckpt` file.
        text_tokenizer (`str` or `os.PathLike`, *optional*): the official `text_tokenizer.json`; by default the one
            beside the VQ-GAN.
        vqgan_config (`str` or `os.PathLike`, *optional*): the `.yaml`; by default the one beside the `.ckpt`.
        action_limits (`dict`, *optional*): see `WorldVLAProcessor`; by default LIBERO's of the official code.
        **settings: `image_size` and other arguments of `WorldVLAProcessor`; `max_length`, positions of the model.

    Returns:
        `WorldVLAProcessor`: with official vocabulary, bins and training wordings.

    Raises:
        FileNotFoundError: if a file is missing; says which, and where one gets it.
        ValueError: if a file is damaged, of another architecture, or the files do not belong together.
    """
    folder = Path(vqgan) if Path(vqgan).is_dir() else Path(vqgan).parent
    table = require_file(Path(text_tokenizer or folder / TEXT_TOKENIZER_FILE), "the official text tokenizer")
    vq_model = load_official_vq_model(vqgan, vqgan_config)
    num_codes, layout = vq_model.config.num_vq_embeddings, VocabularyLayout.official()
    if num_codes != layout.num_image_tokens:
        raise ValueError(
            f"The VQ-GAN in `{vqgan}` has {num_codes} codes, the official vocabulary {layout.num_image_tokens} image "
            "tokens. Build a processor for another VQ-GAN with `WorldVLAProcessor` and a layout of its own."
        )
    code_to_offset = read_code_to_offset(table, layout)
    return WorldVLAProcessor(
        load_text_tokenizer(table, layout, settings.pop("max_length", None)),
        layout,
        action_limits={"libero": LIBERO_ACTION_LIMITS} if action_limits is None else action_limits,
        binning="official",
        code_to_offset=code_to_offset,
        vq_model=vq_model,
        **settings,
    )


def convert_tokenizer(arguments: ConvertTokenizerArguments) -> Path:
    """Read the official tokenizers and write a processor folder, whole or not at all.

    Args:
        arguments (`ConvertTokenizerArguments`): all options.

    Returns:
        `Path`: the folder.

    Raises:
        FileExistsError: if the folder is there already.
        FileNotFoundError: if a file is missing; says which, and where one gets it.
        ValueError: if a file is damaged, of another architecture, or the files do not belong together.
    """
    output = Path(arguments.output)
    if output.exists():
        raise FileExistsError(f"`{output}` exists already. Choose another `--output`, or delete it.")
    limits = LIBERO_ACTION_LIMITS if arguments.action_limits is None else _read_limits(Path(arguments.action_limits))
    processor = build_official_processor(
        arguments.vqgan,
        arguments.text_tokenizer,
        arguments.vqgan_config,
        action_limits={arguments.dataset_name: limits},
        image_size=(arguments.image_size[0], arguments.image_size[-1]),
        max_length=arguments.max_length,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    try:
        processor.save_pretrained(temporary)
        temporary.chmod(0o755)  # mkdtemp makes folders for one user only
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def _read_limits(path: Path) -> dict[str, list[float]]:
    """Action limits from a JSON file; the processor checks the numbers."""
    try:
        content = json.loads(require_file(path, "the action limits").read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'`{path}` must be JSON {{"low": [...], "high": [...]}}, got {error}.') from error
    if not isinstance(content, dict) or set(content) != {"low", "high"}:
        raise ValueError(f'`{path}` must hold {{"low": [...], "high": [...]}}, one number per action dimension.')
    return content


def main() -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (arguments,) = HfArgumentParser(ConvertTokenizerArguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    logger.info("processor saved in %s", convert_tokenizer(arguments))


if __name__ == "__main__":
    main()
