"""Text <-> tokens: a byte-level BPE that lives in the text range of the vocabulary.

No text can reach an id outside that range: the names of the other entries are in the table so that `tokenizer.json` is
complete, but nothing leads to them (see `text_table_worldvla`).

The package ships a table of the official layout, trained by `train_bpe.py`; `load_text_tokenizer()` opens it. Saved
processors carry the table that they were made with.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .text_table_worldvla import (
    NUM_BYTES,
    Merge,
    Table,
    byte_symbols,
    drop_merges_to,
    isolate_text,
    read_merges,
    read_table,
)
from .vocabulary_worldvla import VocabularyLayout

SHIPPED_TEXT_TOKENIZER = Path(__file__).parent / "text_tokenizer" / "tokenizer.json"


def load_text_tokenizer(
    file: str | os.PathLike | None = None,
    layout: VocabularyLayout | None = None,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Open the text tokenizer that the package ships, or the official `text_tokenizer.json`.

    Args:
        file (`str` or `os.PathLike`, *optional*): a `tokenizer.json`; by default the one that the package ships.
        layout (`VocabularyLayout`, *optional*): what its ids mean; the official layout by default.
        model_max_length (`int`, *optional*): positions of the model, for the length check of prompts.

    Returns:
        `PreTrainedTokenizerFast`: pads on the left; names of entries written in a text are split like any text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no BPE, or does not fit the layout.
    """
    path = SHIPPED_TEXT_TOKENIZER if file is None else Path(file)
    if not path.is_file():
        advice = (
            "The file belongs to the package `worldvla`, code that was loaded from the Hub lacks it: install the "
            "package, or use the tokenizer that the processor was saved with."
            if file is None
            else "Give the path of a `tokenizer.json` or of the official `text_tokenizer.json`."
        )
        raise FileNotFoundError(f"No text tokenizer at `{path}`. {advice}")
    layout = layout or VocabularyLayout.official()
    table = read_table(path.read_text(encoding="utf-8"), f"`{path}`")
    return _wrap_table(isolate_text(table, layout), layout, model_max_length)


def train_text_tokenizer(
    texts: Iterable[str],
    layout: VocabularyLayout,
    code_to_offset: list[int] | None = None,
    min_frequency: int = 2,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose table has exactly `layout.vocab_size` entries.

    A corpus too small for all merges leaves the last entries reserved.

    Args:
        texts (iterable of `str`): the corpus.
        layout (`VocabularyLayout`): where text lies in the vocabulary.
        code_to_offset (`list[int]`, *optional*): position of each VQ code among the image tokens; names them.
        min_frequency (`int`): a pair must occur as often to be merged.
        model_max_length (`int`, *optional*): positions of the model, for the length check of prompts.

    Returns:
        `PreTrainedTokenizerFast`: pads on the left; names of entries written in a text are split like any text.

    Raises:
        ValueError: if the text range cannot hold the 256 bytes, or no text came.
    """
    table = train_text_table(texts, layout, code_to_offset, min_frequency)
    return _wrap_table(table, layout, model_max_length)


def train_text_table(
    texts: Iterable[str],
    layout: VocabularyLayout,
    code_to_offset: list[int] | None = None,
    min_frequency: int = 2,
) -> Table:
    """Train the table of a text tokenizer: the content of its `tokenizer.json`.

    Args:
        texts (iterable of `str`): the corpus.
        layout (`VocabularyLayout`): where text lies in the vocabulary.
        code_to_offset (`list[int]`, *optional*): position of each VQ code among the image tokens; names them.
        min_frequency (`int`): a pair must occur as often to be merged.

    Returns:
        `dict`: JSON values; the same ones for the same texts.

    Raises:
        ValueError: if the text range cannot hold the 256 bytes, or no text came.
    """
    num_text_tokens = layout.vocab_size - layout.text_token_id_start
    if num_text_tokens < NUM_BYTES:
        raise ValueError(
            f"A byte-level vocabulary needs at least {NUM_BYTES} text entries, the layout leaves {num_text_tokens}. "
            "Raise `num_text_tokens`."
        )
    names = layout.token_names(code_to_offset)
    merges = _learn_merges(texts, num_text_tokens, min_frequency)
    merges = drop_merges_to(set(names), merges)
    entries = names + list(dict.fromkeys([*byte_symbols(), *(left + right for left, right in merges)]))
    entries += [f"<reserved_text{token_id}>" for token_id in range(len(entries), layout.vocab_size)]
    vocabulary = {name: token_id for token_id, name in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=names[layout.unk_token_id]))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return isolate_text(json.loads(tokenizer.to_str()), layout)


def wrap_text_tokenizer(
    tokenizer: Tokenizer, layout: VocabularyLayout, model_max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Give a table the settings that this project needs, and close every way from text to other entries.

    Args:
        tokenizer (`tokenizers.Tokenizer`): the table, with the entries of `layout`.
        layout (`VocabularyLayout`): what its ids mean.
        model_max_length (`int`, *optional*): positions of the model.

    Returns:
        `PreTrainedTokenizerFast`: pads on the left; names of entries written in a text are split like any text.

    Raises:
        ValueError: if the table does not fit the layout.
    """
    table = read_table(tokenizer.to_str(), "the tokenizer")
    return _wrap_table(isolate_text(table, layout), layout, model_max_length)


def require_same_vocabulary(tokenizer: PreTrainedTokenizerFast, layout: VocabularyLayout) -> None:
    """Refuse a text tokenizer that belongs to another layout.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): the table.
        layout (`VocabularyLayout`): the layout.

    Raises:
        ValueError: if size or specials differ.
    """
    if len(tokenizer) != layout.vocab_size:
        raise ValueError(
            f"The text tokenizer has {len(tokenizer)} entries, the vocabulary layout {layout.vocab_size}. Use the "
            "layout that it was trained with."
        )
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name) != getattr(layout, name):
            raise ValueError(
                f"`{name}` of the text tokenizer is {getattr(tokenizer, name)}, of the vocabulary layout "
                f"{getattr(layout, name)}. Use the layout that it was trained with."
            )


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str, layout: VocabularyLayout) -> list[int]:
    """Tokenize plain text: whatever it says, the ids are text.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): the table.
        text (`str`): any text.
        layout (`VocabularyLayout`): where text lies.

    Returns:
        `list[int]`: ids in the text range.

    Raises:
        ValueError: if the text is not valid Unicode, or the table does not keep text apart from the other tokens.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Text must be valid Unicode, got a lone surrogate at position {error.start} of {text!r}. Remove it."
        ) from error
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if ids and min(ids) < layout.text_token_id_start:
        raise ValueError(
            f"Text must give ids from {layout.text_token_id_start} on, got id {min(ids)} for {text!r}. "
            "This tokenizer does not fit the vocabulary layout; use the one that was saved with the processor."
        )
    return ids


def _wrap_table(table: Table, layout: VocabularyLayout, model_max_length: int | None) -> PreTrainedTokenizerFast:
    """A tokenizer with an isolated table."""
    names = layout.token_names()
    length = {} if model_max_length is None else {"model_max_length": model_max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(table)),
        bos_token=names[layout.bos_token_id],
        pad_token=names[layout.pad_token_id],
        eos_token=names[layout.eos_token_id],
        unk_token=names[layout.unk_token_id],
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        **length,
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Where text is cut before merging: words with the space before them, runs of other signs, digits one by one.

    Every digit is a token of its own, so that numbers are spelled alike whatever the corpus held.
    """
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _learn_merges(texts: Iterable[str], num_entries: int, min_frequency: int) -> list[Merge]:
    """Merges of a byte-level BPE of at most `num_entries` entries over the corpus."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=num_entries,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(_require_texts(texts), trainer=trainer)
    return read_merges(json.loads(learner.to_str())["model"])


def _require_texts(texts: Iterable[str]) -> Iterator[str]:
    """Pass the texts on; a single string or an empty corpus is a mistake."""
    if isinstance(texts, str):
        raise ValueError("`texts` must be an iterable of texts, got one string. Wrap it in a list.")
    empty = True
    for text in texts:
        empty = False
        yield text
    if empty:
        raise ValueError("A text tokenizer is trained on at least one text, got none. Pass the instructions.")
