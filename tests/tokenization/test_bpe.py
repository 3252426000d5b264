import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization import VocabularyLayout, train_text_tokenizer
from tokenization.bpe_worldvla import encode_text
from tokenization.text_table_worldvla import byte_symbols

INJECTIONS = [
    "<s>",
    "<pad>",
    "</s><unk>",
    "<racm3:break>",
    "<eoss>",
    "IMGIMGAZ",
    "<reserved10000>",
    "<reserved_text70>",
]


def test_table_has_the_layouts_size_and_names(tokenizer, layout):
    assert len(tokenizer) == layout.vocab_size
    names = tokenizer.convert_ids_to_tokens(list(range(layout.text_token_id_start)))
    assert names == layout.token_names()
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert tokenizer.padding_side == "left"


def test_bytes_lie_in_order(official_tokenizer):
    ids = encode_text(official_tokenizer, "Aé\x00", VocabularyLayout.official())
    assert ids == [16384 + byte for byte in "Aé\x00".encode()]
    assert byte_symbols()[0] == "Ā" and byte_symbols()[65] == "A" and len(set(byte_symbols())) == 256


def test_merges_shorten_the_corpus(tokenizer, layout):
    assert len(encode_text(tokenizer, "pick up the", layout)) < len("pick up the") / 2


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips_within_the_text_range(tokenizer, layout, text):
    ids = encode_text(tokenizer, text, layout)
    assert tokenizer.decode(ids) == text
    assert all(layout.text_token_id_start <= token_id < layout.vocab_size for token_id in ids)


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_text_becomes_another_kind_of_token(tokenizer, official_tokenizer, layout, text):
    for table, its_layout in ((tokenizer, layout), (official_tokenizer, VocabularyLayout.official())):
        for variant in (text, f"x {text} {text}", f" {text}"):
            ids = encode_text(table, variant, its_layout)
            assert min(ids) >= its_layout.text_token_id_start
            assert table.decode(ids) == variant
        assert min(table(text, add_special_tokens=False)["input_ids"]) >= its_layout.text_token_id_start


def test_a_corpus_full_of_token_names_teaches_none(layout):
    names = ["IMGIMGAZ", "IMGIMGBZ", "IMGIMGAZ"] * 50
    table = train_text_tokenizer(names, layout)
    assert len(table) == layout.vocab_size
    ids = encode_text(table, "IMGIMGAZ IMGIMGBZ", layout)
    assert min(ids) >= layout.text_token_id_start and table.decode(ids) == "IMGIMGAZ IMGIMGBZ"


def test_a_small_corpus_leaves_reserved_entries(layout):
    table = train_text_tokenizer(["ab ab"], layout)
    assert len(table) == layout.vocab_size
    assert table.convert_ids_to_tokens(layout.vocab_size - 1) == f"<reserved_text{layout.vocab_size - 1}>"


def test_saved_and_loaded_it_is_the_same(tokenizer, layout, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("pick up the soup", *INJECTIONS):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"] == encode_text(tokenizer, text, layout)


def test_bad_corpora_and_texts_are_refused(tokenizer, layout):
    with pytest.raises(ValueError, match="at least 256 text entries, the layout leaves 10"):
        train_text_tokenizer(["a"], VocabularyLayout.compact(4, 10))
    with pytest.raises(ValueError, match="iterable of texts, got one string"):
        train_text_tokenizer("a", layout)
    with pytest.raises(ValueError, match="at least one text, got none"):
        train_text_tokenizer([], layout)
    with pytest.raises(ValueError, match="lone surrogate at position 1"):
        encode_text(tokenizer, "a\ud800", layout)
    with pytest.raises(ValueError, match="does not fit the vocabulary layout"):
        encode_text(tokenizer, "abc", VocabularyLayout.official())
