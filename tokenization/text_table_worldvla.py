"""The table of a text tokenizer, in the form of `tokenizer.json`, made so that no text leads out of the text range.

A byte-level BPE begins with one token per byte and then merges neighbours: what a text can become is decided by the
merges, and by entries that are looked for in the text as a whole ("added tokens"). `isolate_text` keeps neither an
added token nor a merge that leads to an image, action, structural or reserved entry. That holds for our own tables and
for the official `text_tokenizer.json` alike; everything else of a table stays as it is.
"""

import json
from typing import Any

from .vocabulary_worldvla import VocabularyLayout, image_token_name

NUM_BYTES = 256
Table = dict[str, Any]
Merge = tuple[str, str]


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


def read_table(text: str, source: str) -> Table:
    """Read a `tokenizer.json` and see that it is a BPE.

    Args:
        text (`str`): the file's content.
        source (`str`): where it comes from, for the messages.

    Returns:
        `dict`: the parsed content.

    Raises:
        ValueError: if it is no JSON, a key is missing, or it holds another kind of model.
    """
    advice = "Pass a `tokenizer.json` of this project or the official `text_tokenizer.json`."
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"A text tokenizer must be a JSON file, {source} is not ({error}). {advice}") from error
    model = table.get("model") if isinstance(table, dict) else None
    model = model if isinstance(model, dict) else {}
    for name in ("vocab", "merges"):
        if name not in model:
            raise ValueError(f"A text tokenizer needs the key `model.{name}`, {source} lacks it. {advice}")
    if model.get("type", "BPE") != "BPE" or not isinstance(model["vocab"], dict):
        raise ValueError(
            f"A text tokenizer must be a BPE, {source} holds a model of type {model.get('type')}. {advice}"
        )
    return table


def isolate_text(table: Table, layout: VocabularyLayout) -> Table:
    """Close every way from text to an entry that is no text.

    Args:
        table (`dict`): content of a `tokenizer.json`.
        layout (`VocabularyLayout`): what the table's ids mean.

    Returns:
        `dict`: the same table with all entries in `model.vocab`, without added tokens, without merges to them or to
        names of the layout, and without a post-processor, which would add special tokens to every text.

    Raises:
        ValueError: if the table's size, or an entry's id, is not what the layout says.
    """
    model = dict(table["model"])
    vocabulary = _all_entries(table)
    _check_size(vocabulary, layout)
    _check_names(vocabulary, layout)
    model["vocab"] = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    not_text = {*layout.token_names(), *(token["content"] for token in table.get("added_tokens") or [])}
    model["merges"] = _merges_to_text(drop_merges_to(not_text, read_merges(model)), vocabulary, layout)
    model["ignore_merges"] = False  # would look whole words up in the table, names of entries among them
    model["dropout"] = None
    keep = {key: table.get(key) for key in ("version", "normalizer", "pre_tokenizer", "decoder")}
    return {**keep, "truncation": None, "padding": None, "added_tokens": [], "post_processor": None, "model": model}


def read_merges(model: Table) -> list[Merge]:
    """Merges of a BPE model, in order; older files write a pair as one string.

    Args:
        model (`dict`): the entry `model` of a table.

    Returns:
        `list[tuple[str, str]]`: left and right part of every merge.
    """
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(left, right) for left, right in pairs]


def drop_merges_to(names: set[str], merges: list[Merge]) -> list[Merge]:
    """Leave out merges that spell one of the names, and merges that build on them.

    Args:
        names (`set[str]`): what no text may become.
        merges (`list[tuple[str, str]]`): in order.

    Returns:
        `list[tuple[str, str]]`: the others, in order.
    """
    kept, dropped = [], set()
    for left, right in merges:
        if left + right in names or left in dropped or right in dropped:
            dropped.add(left + right)
        else:
            kept.append((left, right))
    return kept


def image_token_offsets(vocabulary: dict[str, int], layout: VocabularyLayout) -> list[int]:
    """Where the image token of each VQ code lies, read by name: the order of a table is not the codebook's.

    Args:
        vocabulary (`dict[str, int]`): name to id, for example of `tokenizer.get_vocab()`.
        layout (`VocabularyLayout`): where the image tokens lie.

    Returns:
        `list[int]`: for each code the position of its token among the image tokens: `code_to_offset` of
        `WorldVLAProcessor`.

    Raises:
        ValueError: if the name of a code is missing or lies outside the image range.
    """
    start, count = layout.image_token_id_start, layout.num_image_tokens
    offsets = []
    for code in range(count):
        name = image_token_name(code)
        token_id = vocabulary.get(name)
        if token_id is None or not start <= token_id < start + count:
            came = "it is missing" if token_id is None else f"its id is {token_id}"
            raise ValueError(
                f"The image token of code {code}, `{name}`, must have an id from {start} to {start + count - 1}, but "
                f"{came}. Use the text tokenizer that belongs to this vocabulary layout."
            )
        offsets.append(token_id - start)
    return offsets


def _all_entries(table: Table) -> dict[str, int]:
    """Name to id of the model's entries and of the added tokens together."""
    vocabulary = dict(table["model"]["vocab"])
    for token in table.get("added_tokens") or []:
        known = vocabulary.setdefault(token["content"], token["id"])
        if known != token["id"]:
            raise ValueError(
                f"The text tokenizer gives `{token['content']}` two ids, {known} and {token['id']}. The file is "
                "damaged: get it again."
            )
    return vocabulary


def _check_size(vocabulary: dict[str, int], layout: VocabularyLayout) -> None:
    """Every id of the layout stands for exactly one entry."""
    if len(vocabulary) != layout.vocab_size:
        raise ValueError(
            f"The text tokenizer has {len(vocabulary)} entries, the vocabulary layout {layout.vocab_size}. Use the "
            "layout that it was trained with."
        )
    missing = sorted(set(range(layout.vocab_size)) - set(vocabulary.values()))
    if missing:
        raise ValueError(
            f"The ids of a text tokenizer must be 0 to {layout.vocab_size - 1}, one entry each; {len(missing)} have "
            f"no entry, the first is {missing[0]}. The file is damaged: get it again."
        )


def _check_names(vocabulary: dict[str, int], layout: VocabularyLayout) -> None:
    """Entries that the layout gives a meaning have its ids, and every byte is text."""
    names = layout.token_names()
    for kind, (start, end) in layout.ranges().items():
        if kind in ("image tokens", "text"):
            continue
        for token_id in range(start, end):
            known = vocabulary.get(names[token_id])
            if known != token_id:
                came = "does not have it" if known is None else f"has it at {known}"
                raise ValueError(
                    f"The vocabulary layout has `{names[token_id]}` ({kind}) at id {token_id}, the text tokenizer "
                    f"{came}. Use the layout that it belongs to."
                )
    image_token_offsets(vocabulary, layout)
    for byte, symbol in enumerate(byte_symbols()):
        if vocabulary.get(symbol, layout.text_token_id_start) < layout.text_token_id_start:
            raise ValueError(_below_text(symbol, vocabulary[symbol], layout))
        if symbol not in vocabulary:
            raise ValueError(
                f"A byte-level BPE has an entry for each of the {NUM_BYTES} bytes, the text tokenizer has none for "
                f"byte {byte} (`{symbol}`). Use one of this project or the official one."
            )


def _merges_to_text(merges: list[Merge], vocabulary: dict[str, int], layout: VocabularyLayout) -> list[Merge]:
    """The merges, all of which must lead to text entries."""
    for left, right in merges:
        product = left + right
        if product not in vocabulary:
            raise ValueError(f"The text tokenizer merges to `{product}`, which has no entry. Get the file again.")
        if vocabulary[product] < layout.text_token_id_start:
            raise ValueError(_below_text(product, vocabulary[product], layout))
    return merges


def _below_text(entry: str, token_id: int, layout: VocabularyLayout) -> str:
    """Message for a text entry outside the text range."""
    return (
        f"Text begins at id {layout.text_token_id_start} in the vocabulary layout, but the text tokenizer has the "
        f"text entry `{entry}` at id {token_id}. Use the layout that it belongs to (`text_token_id_start`)."
    )
