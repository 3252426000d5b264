"""Text <-> tokens: a byte-level BPE that lives in the text range of the vocabulary.

No text can reach an id outside that range: the names of the other entries are in the table so that `tokenizer.json` is
complete, but no merge leads to them, and special tokens written out in a text are split like any other characters.
"""

import json
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .vocabulary_worldvla import VocabularyLayout

NUM_BYTES = 256


def byte_symbols() -> list[str]:
    """The printable character that byte-level BPE writes for each byte.

    Returns:
        `list[str]`: 256 characters, by byte.

    References:
        GPT-2: printable bytes stand for themselves, the others follow from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols, following = [], NUM_BYTES
    for byte in range(NUM_BYTES):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(following))
            following += 1
    return symbols


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
        `PreTrainedTokenizerFast`: pads on the left, splits special tokens in text.

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
    merges = _learn_merges(texts, num_text_tokens - NUM_BYTES, min_frequency)
    merges = _drop_merges_to_names(merges, set(names))
    text_entries = byte_symbols() + list(dict.fromkeys(left + right for left, right in merges))
    entries = names + text_entries
    entries += [f"<reserved_text{token_id}>" for token_id in range(len(entries), layout.vocab_size)]
    vocabulary = {name: token_id for token_id, name in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=names[layout.unk_token_id]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap_text_tokenizer(tokenizer, layout, model_max_length)


def wrap_text_tokenizer(
    tokenizer: Tokenizer, layout: VocabularyLayout, model_max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Give a table of ours, or the official `text_tokenizer.json`, the settings that this project needs.

    Args:
        tokenizer (`tokenizers.Tokenizer`): the table, with the specials of `layout`.
        layout (`VocabularyLayout`): says which entries are special.
        model_max_length (`int`, *optional*): positions of the model.

    Returns:
        `PreTrainedTokenizerFast`: pads on the left, splits special tokens in text.
    """
    length = {} if model_max_length is None else {"model_max_length": model_max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokenizer.id_to_token(layout.bos_token_id),
        pad_token=tokenizer.id_to_token(layout.pad_token_id),
        eos_token=tokenizer.id_to_token(layout.eos_token_id),
        unk_token=tokenizer.id_to_token(layout.unk_token_id),
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        **length,
    )


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


def _learn_merges(texts: Iterable[str], count: int, min_frequency: int) -> list[tuple[str, str]]:
    """The first `count` merges of a byte-level BPE over the corpus."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BYTES + count,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(_require_texts(texts), trainer=trainer)
    return _read_merges(learner)[:count]


def _read_merges(learner: Tokenizer) -> list[tuple[str, str]]:
    """Merges of a trained table, in order."""
    merges = json.loads(learner.to_str())["model"]["merges"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [(left, right) for left, right in pairs]


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


def _drop_merges_to_names(merges: list[tuple[str, str]], names: set[str]) -> list[tuple[str, str]]:
    """Leave out merges that spell the name of an entry that is no text, and merges that build on them."""
    kept, dropped = [], set()
    for left, right in merges:
        if left + right in names or left in dropped or right in dropped:
            dropped.add(left + right)
        else:
            kept.append((left, right))
    return kept
