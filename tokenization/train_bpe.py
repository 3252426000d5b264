"""Train the text tokenizer that the package ships: 65,536 entries in the official layout.

    python tokenization/train_bpe.py --output tokenization/text_tokenizer [--corpus_root corpus/]

The corpora are Debian packages (see text_corpus.py). The same packages and the same version of `tokenizers` give the
same bytes. Next to `tokenizer.json` lies `training.json`: what it was trained on, and its fingerprint.
"""

import hashlib
import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "tokenization"

import tokenizers
from transformers import HfArgumentParser

from .bpe_worldvla import train_text_table
from .prompt_worldvla import list_prompts, render_prompt
from .text_corpus import CORPORA, read_corpus, read_libero_instructions
from .text_table_worldvla import NUM_BYTES, Table
from .vocabulary_worldvla import VocabularyLayout

logger = logging.getLogger("worldvla.train_bpe")


@dataclass
class TextTokenizerArguments:
    """Options of `tokenization/train_bpe.py`."""

    output: str = field(metadata={"help": "Folder for tokenizer.json and training.json."})
    corpus_root: str = field(
        default="/", metadata={"help": "Folder that holds `usr/` of the corpus packages: / when they are installed."}
    )
    min_frequency: int = field(default=2, metadata={"help": "A pair must occur as often to be merged."})
    prompt_repeats: int = field(
        default=50,
        metadata={"help": "How often the prompts with the LIBERO instructions count: so that their words are tokens."},
    )

    def __post_init__(self) -> None:
        """Check every option before anything is read."""
        for name in ("min_frequency", "prompt_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")


def train_bpe(arguments: TextTokenizerArguments) -> Path:
    """Read the corpora, train, and write the tokenizer and its record.

    Args:
        arguments (`TextTokenizerArguments`): all options.

    Returns:
        `Path`: the tokenizer's file.

    Raises:
        FileNotFoundError: if a corpus is missing; says which package holds it.
    """
    texts, corpora = _gather_texts(arguments)
    layout = VocabularyLayout.official()
    logger.info("Training on %d texts", len(texts))
    table = train_text_table(texts, layout, min_frequency=arguments.min_frequency)
    content = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    record = {
        "tokenizer.json": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)},
        "entries": _count_entries(table, layout),
        "min_frequency": arguments.min_frequency,
        "tokenizers": tokenizers.__version__,
        "corpora": corpora,
    }
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    _replace(output / "tokenizer.json", content)
    _replace(output / "training.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    logger.info("Entries: %s", record["entries"])
    return output / "tokenizer.json"


def _gather_texts(arguments: TextTokenizerArguments) -> tuple[list[str], dict[str, Any]]:
    """All texts, and what is known about them, by corpus."""
    texts, records = [], {}
    for name in CORPORA:
        found, records[name] = read_corpus(name, arguments.corpus_root)
        texts += found
        logger.info("%s: %d texts, %d bytes", name, records[name]["texts"], records[name]["bytes"])
    instructions = read_libero_instructions()
    prompts = instructions + [render_prompt("policy", task=instruction) for instruction in instructions]
    prompts += list_prompts("world_model")
    records["libero_instructions"] = {
        "title": "Instructions of the 130 tasks of LIBERO, alone and as prompts, and the world model's prompts",
        "licence": "MIT (LIBERO)",
        "texts": len(prompts),
        "bytes": sum(len(prompt.encode()) for prompt in prompts),
        "repeats": arguments.prompt_repeats,
    }
    return texts + prompts * arguments.prompt_repeats, records


def _count_entries(table: Table, layout: VocabularyLayout) -> dict[str, int]:
    """How many entries of each kind a trained table has."""
    vocabulary = table["model"]["vocab"]
    text = [name for name, token_id in vocabulary.items() if token_id >= layout.text_token_id_start]
    merged = {left + right for left, right in table["model"]["merges"]}
    return {
        "all": len(vocabulary),
        "not text": layout.text_token_id_start,
        "bytes": NUM_BYTES,
        "merged": len(merged),
        "reserved text": len(text) - NUM_BYTES - len(merged),
    }


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that it is there as a whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = HfArgumentParser([TextTokenizerArguments])  # type: ignore[list-item]
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    logger.info("Text tokenizer saved in %s", train_bpe(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
