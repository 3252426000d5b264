"""What is refused when a table of text is opened, and what is cut out of it."""

import copy
import json
from dataclasses import replace

import pytest

from tokenization import VocabularyLayout, train_text_tokenizer
from tokenization.bpe_worldvla import load_text_tokenizer, train_text_table
from tokenization.text_table_worldvla import byte_symbols, drop_merges_to, image_token_offsets, isolate_text

COMPACT = VocabularyLayout.compact(num_image_tokens=12, num_text_tokens=300, num_action_tokens=4, max_grid_size=2)
# One entry between actions and text that means nothing.
LAYOUT = replace(COMPACT, text_token_id_start=COMPACT.text_token_id_start + 1, vocab_size=COMPACT.vocab_size + 1)
UNUSED = "<reserved00025>"


@pytest.fixture(scope="module")
def trained():
    return train_text_table(["put the bowl on the plate"] * 3, LAYOUT)


@pytest.fixture
def table(trained):
    return copy.deepcopy(trained)


def swap(table, first, second):
    vocabulary = table["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def test_merges_to_names_go_with_all_that_builds_on_them():
    merges = [("a", "b"), ("ab", "c"), ("abc", "d"), ("x", "abc"), ("b", "c"), ("a", "bc")]
    assert drop_merges_to({"abc"}, merges) == [("a", "b"), ("b", "c")]


def test_an_isolated_table_stays_as_it_is(table):
    assert isolate_text(copy.deepcopy(table), LAYOUT) == table


def test_added_tokens_and_merges_to_them_are_cut(table):
    vocabulary = table["model"]["vocab"]
    vocabulary["<extra>"] = vocabulary.pop(UNUSED)
    table["added_tokens"] = [{"id": vocabulary["<extra>"], "content": "<extra>", "special": False}]
    vocabulary["<e"] = vocabulary.pop(f"<reserved_text{LAYOUT.vocab_size - 1}>")
    table["model"]["merges"] += [["<", "e"], ["<e", "xtra>"]]
    isolated = isolate_text(table, LAYOUT)
    assert isolated["added_tokens"] == [] and isolated["model"]["merges"][-1] == ("<", "e")


def test_merges_to_image_tokens_are_cut(table):
    merges = list(table["model"]["merges"])
    table["model"]["vocab"]["IMGIMGA"] = table["model"]["vocab"].pop(f"<reserved_text{LAYOUT.vocab_size - 1}>")
    table["model"]["merges"] += [["IMGIMGA", "Z"], ["IMGIMGAZ", "Z"]]
    assert isolate_text(table, LAYOUT)["model"]["merges"] == merges


def test_older_files_write_merges_as_strings(table):
    expected = table["model"]["merges"]
    table["model"]["merges"] = [" ".join(merge) for merge in expected]
    assert isolate_text(table, LAYOUT)["model"]["merges"] == expected != []


def test_image_tokens_are_found_by_name():
    order = [3, 1, 0, 2, *range(4, 12)]
    assert image_token_offsets(train_text_tokenizer(["a"], LAYOUT, order).get_vocab(), LAYOUT) == order


def test_a_table_of_another_layout_is_refused(table):
    with pytest.raises(ValueError, match=r"has 330 entries, the vocabulary layout 65536. Use the layout"):
        isolate_text(table, VocabularyLayout.official())
    swap(table, "<racm3:break>", "IMGIMGAZ")
    message = r"layout has `<racm3:break>` \(boi_token_id\) at id 17, the text tokenizer has it at 4. Use the layout"
    with pytest.raises(ValueError, match=message):
        isolate_text(table, LAYOUT)


def test_names_that_are_missing_are_named(table):
    vocabulary = table["model"]["vocab"]
    vocabulary["other"] = vocabulary.pop("<pad>")
    with pytest.raises(ValueError, match=r"`<pad>` \(pad_token_id\) at id 1, the text tokenizer does not have it"):
        isolate_text(table, LAYOUT)
    vocabulary["<pad>"] = vocabulary.pop("other")
    vocabulary["IMGIMGBBBZ"] = vocabulary.pop("IMGIMGBBZ")
    with pytest.raises(
        ValueError, match="image token of code 11, `IMGIMGBBZ`, must have an id from 4 to 15, but it is m"
    ):
        isolate_text(table, LAYOUT)
    vocabulary["IMGIMGBBZ"] = vocabulary.pop("IMGIMGBBBZ")
    swap(table, "IMGIMGAZ", byte_symbols()[0])
    with pytest.raises(ValueError, match="image token of code 0, `IMGIMGAZ`, .* but its id is 30"):
        isolate_text(table, LAYOUT)


def test_text_outside_the_text_range_is_refused(table):
    swap(table, byte_symbols()[7], UNUSED)
    with pytest.raises(ValueError, match="Text begins at id 30 .* has the text entry `ć` at id 29. Use the layout"):
        isolate_text(table, LAYOUT)
    swap(table, byte_symbols()[7], UNUSED)
    left, right = table["model"]["merges"][0]
    swap(table, left + right, UNUSED)
    with pytest.raises(ValueError, match=f"has the text entry `{left + right}` at id 29"):
        isolate_text(table, LAYOUT)


def test_damaged_tables_are_refused(table):
    vocabulary = table["model"]["vocab"]
    with pytest.raises(ValueError, match="merges to `zz`, which has no entry"):
        isolate_text({**table, "model": {**table["model"], "merges": [("z", "z")]}}, LAYOUT)
    with pytest.raises(ValueError, match="gives `<s>` two ids, 0 and 5. The file is damaged"):
        isolate_text({**table, "added_tokens": [{"id": 5, "content": "<s>"}]}, LAYOUT)
    vocabulary[byte_symbols()[255]] += 1
    with pytest.raises(ValueError, match="ids of a text tokenizer must be 0 to 329, one entry each; 1 have no entry"):
        isolate_text(table, LAYOUT)
    vocabulary[byte_symbols()[255]] -= 1
    vocabulary["other"] = vocabulary.pop(byte_symbols()[65])
    with pytest.raises(ValueError, match="has an entry for each of the 256 bytes, .* has none for byte 65 \\(`A`\\)"):
        isolate_text(table, LAYOUT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", r"must be a JSON file, `.*text_tokenizer.json` is not \(Expecting value"),
        ("[]", r"needs the key `model.vocab`, `.*` lacks it. Pass a `tokenizer.json`"),
        ("{}", "needs the key `model.vocab`"),
        ('{"model": {"vocab": {}}}', "needs the key `model.merges`"),
        ('{"model": {"type": "WordLevel", "vocab": {}, "merges": []}}', "must be a BPE, .* of type WordLevel"),
        ('{"model": {"vocab": {}, "merges": []}}', "has 0 entries, the vocabulary layout 65536"),
    ],
)
def test_wrong_files_are_refused(tmp_path, content, message):
    file = tmp_path / "text_tokenizer.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_text_tokenizer(file)


def test_missing_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="No text tokenizer at `.*absent.json`. Give the path"):
        load_text_tokenizer(tmp_path / "absent.json")
    monkeypatch.setattr("tokenization.bpe_worldvla.SHIPPED_TEXT_TOKENIZER", tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match="belongs to the package `worldvla`, .* install the package"):
        load_text_tokenizer()


def test_a_saved_table_opens_with_its_layout(table, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(table), encoding="utf-8")
    assert len(load_text_tokenizer(file, LAYOUT)) == LAYOUT.vocab_size
