"""Reading mixed sequences: what went in comes back, and no row of ids can make it fail."""

import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization import (
    LIBERO_ACTION_LIMITS,
    ActionPart,
    ImagePart,
    MalformedPart,
    SeparatorPart,
    SpecialPart,
    TextPart,
    VocabularyLayout,
    WorldVLAProcessor,
)
from tokenization.parsing_worldvla import SequenceParser
from tokenization.prompt_worldvla import action_block, image_block

LAYOUT = VocabularyLayout.compact(num_image_tokens=8, num_text_tokens=256, num_action_tokens=4, max_grid_size=3)
# The same with gaps, so that there are reserved ids.
GAPS = VocabularyLayout.from_dict({**LAYOUT.to_dict(), "vocab_size": 400, "text_token_id_start": 100})
IMAGE = np.array([[4, 5, 6, 7], [8, 9, 10, 11]])
ACTION = np.array([LAYOUT.action_token_id_start + bin for bin in (0, 3, 1)])


def parser(layout=LAYOUT, action_dim=3):
    return SequenceParser(
        layout,
        read_text=lambda ids: bytes(i - layout.text_token_id_start & 255 for i in ids).decode("latin-1"),
        draw_image=lambda grids: [("picture", *grid.shape) for grid in grids],
        read_action=lambda ids: (ids - layout.action_token_id_start) / 10,
        action_dim=action_dim,
    )


def text(words):
    return [LAYOUT.text_token_id_start + byte for byte in words.encode("latin-1")]


def check_tiling(parts, ids):
    assert [token_id for part in parts for token_id in part.token_ids] == list(ids)
    assert [part.start for part in parts] == [0, *[part.stop for part in parts[:-1]]][: len(parts)]
    assert all(part.stop - part.start == len(part.token_ids) > 0 for part in parts)
    for part in parts:
        if isinstance(part, MalformedPart):
            assert part.start <= part.position <= part.stop and part.reason


def whole_sample():
    pad, bos, sep = [LAYOUT.pad_token_id] * 3, [LAYOUT.bos_token_id], [LAYOUT.sep_token_id]
    image, action = image_block(IMAGE, LAYOUT), action_block(ACTION, LAYOUT)
    return [*pad, *bos, *text("go"), *image, *action, *sep, *image_block(IMAGE[:, :2], LAYOUT), *sep]


def test_a_whole_sample_by_hand():
    ids = whole_sample()
    parts = parser().parse(ids)
    kinds = [SpecialPart, SpecialPart, TextPart, ImagePart, ActionPart, SeparatorPart, ImagePart, SeparatorPart]
    assert [type(part) for part in parts] == kinds
    padding, bos, words, image, action, _, small, last = parts
    assert (padding.name, padding.stop, bos.name) == ("pad", 3, "bos")
    assert (words.text, words.start, words.stop) == ("go", 4, 6)
    np.testing.assert_array_equal(image.grid, IMAGE)
    assert image.size == (2, 4) and image.to_image() == ("picture", 2, 4)
    np.testing.assert_array_equal(small.grid, IMAGE[:, :2])
    np.testing.assert_array_equal(action.action_token_ids, ACTION)
    np.testing.assert_allclose(action.command, [0, 0.3, 0.1])
    assert last.stop == len(ids) and "token_ids" not in repr(last)
    check_tiling(parts, ids)


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.uint16, torch.tensor, torch.IntTensor])
def test_every_row_of_integers_is_read(kind):
    assert parser().parse(kind(whole_sample())) == parser().parse(whole_sample())
    assert parser().parse([]) == parser().parse(torch.zeros(0)) == []


def damage(change):
    ids = [*image_block(IMAGE, LAYOUT), LAYOUT.sep_token_id, *action_block(ACTION, LAYOUT), LAYOUT.sep_token_id]
    change(ids)
    return ids


EOL, EOI, BOI, SEP = (getattr(LAYOUT, f"{name}_token_id") for name in ("eol", "eoi", "boi", "sep"))
BOA, EOA, GRID = LAYOUT.boa_token_id, LAYOUT.eoa_token_id, LAYOUT.grid_token_id_start


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (
            damage(lambda ids: ids.pop(7)),  # the first end of row
            (0, 13, 7, f"expected an end of row of an image of 2 x 4 tokens, got an image token .id {IMAGE[1, 0]}"),
        ),
        (damage(lambda ids: ids.pop(4)), (0, 13, 6, f"expected an image token .*, got an end of row .id {EOL}")),
        (damage(lambda ids: ids.pop(13)), (0, 13, 13, f"expected an end of image .*, got a separator .id {SEP}")),
        (damage(lambda ids: ids.pop(0)), (0, 13, 0, "a grid size .id .* outside of any image")),
        (
            damage(lambda ids: ids.__setitem__(1, GRID)),
            (0, 14, 1, f"expected the height of the image, got a grid size .id {GRID}"),
        ),
        (damage(lambda ids: ids.__setitem__(2, 5)), (0, 14, 2, "expected the width of the image, got an image token")),
        (damage(lambda ids: ids.insert(5, BOI)), (0, 5, 5, "expected an image token .*, got a begin of image")),
        (
            damage(lambda ids: ids.insert(17, ACTION[0])),
            (15, 21, 19, "expected an end of action after 3 .*an action"),
        ),
        (damage(lambda ids: ids.pop(17)), (15, 19, 18, "expected action token 3 of 3, got an end of action")),
        (damage(lambda ids: ids.pop(15)), (15, 19, 15, "an action token .id .* outside of any action")),
        (damage(lambda ids: ids.pop(19)), (15, 19, 19, "expected an end of action after 3 .*, got a separator")),
        (damage(lambda ids: ids.insert(14, EOA)), (14, 15, 14, f"an end of action .id {EOA}. outside of any action")),
        (damage(lambda ids: ids.insert(14, EOI)), (14, 15, 14, f"an end of image .id {EOI}. outside of any image")),
        (
            image_block(IMAGE, LAYOUT)[:9],
            (0, 9, 9, "ends where an image token of an image of 2 x 4 tokens"),
        ),
        (image_block(IMAGE, LAYOUT)[:1], (0, 1, 1, "the sequence ends where the height of the image was expected")),
        (image_block(IMAGE, LAYOUT)[:-1], (0, 13, 13, "the sequence ends where an end of image of an image")),
        ([BOA], (0, 1, 1, "the sequence ends where action token 1 of 3 was expected")),
        ([BOA, *ACTION], (0, 4, 4, "the sequence ends where an end of action after 3 action tokens was expected")),
    ],
)
def test_damage_is_reported_where_it_is(ids, expected):
    parts = parser().parse(ids)
    check_tiling(parts, ids)
    found, *others = [part for part in parts if isinstance(part, MalformedPart)]
    assert not others or "got a begin of image" in found.reason  # which begins another one
    assert (found.start, found.stop, found.position) == expected[:3]
    with pytest.raises(ValueError, match=expected[3]):
        raise ValueError(found.reason)
    whole = {SeparatorPart, ImagePart, ActionPart}
    assert all(type(part) in whole for part in parts if part not in [found, *others])


def test_reserved_ids_are_reported_together():
    ids = [GAPS.bos_token_id, 90, 91, 90, 120]
    found = parser(GAPS).parse(ids)[1]
    assert (found.start, found.stop, found.reason) == (1, 4, "id 90 is reserved and means nothing")


@pytest.mark.parametrize("width", [1, 3, 9])
def test_without_limits_actions_may_have_any_width(width):
    (part,) = parser(action_dim=None).parse(action_block(ACTION[np.zeros(width, int)], LAYOUT))
    assert len(part.action_token_ids) == width
    (part,) = parser(action_dim=None).parse([BOA, EOA])
    assert part.reason == f"expected action token 1 of 1, got an end of action (id {EOA})"


any_ids = st.lists(st.integers(0, GAPS.vocab_size - 1), max_size=80)
marks = st.lists(st.sampled_from([BOI, EOI, EOL, SEP, BOA, EOA, GRID, GRID + 1, GRID + 2, 4, 5, *ACTION]), max_size=80)


@settings(max_examples=400, deadline=None)
@given(any_ids | marks, st.sampled_from([None, 1, 3]))
def test_any_row_of_ids_is_tiled(ids, action_dim):
    check_tiling(parser(GAPS, action_dim).parse(ids), ids)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_sample_is_tiled_and_the_rest_of_it_is_read(data):
    ids = whole_sample()
    before = parser().parse(ids)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(ids) - 1))
        change = data.draw(st.sampled_from(["replace", "insert", "drop", "cut"]))
        if change == "drop":
            del ids[position : position + 1]
        elif change == "cut":
            del ids[position:]
        else:
            ids[position : position + (change == "replace")] = [data.draw(st.integers(0, LAYOUT.vocab_size - 1))]
        if not ids:
            break
    parts = parser().parse(ids)
    check_tiling(parts, ids)
    intact = 0
    while intact < min(len(ids), before[-1].stop) and ids[intact] == whole_sample()[intact]:
        intact += 1
    # What ends before the first change is read as before; text and padding may go on.
    whole = [part for part in before if part.stop <= intact and not isinstance(part, (TextPart, SpecialPart))]
    assert [part for part in parts if part in whole] == whole


@st.composite
def samples(draw):
    """Arguments of `build_sample`, and what shall be read: text, grids, ids, in order."""
    role = draw(st.sampled_from(["policy", "world_model"]))
    sides = st.sampled_from([2, 4, 6])
    count = draw(st.integers(1, 3))
    seed = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = [seed.integers(4, 68, (draw(sides), draw(sides))) for _ in range(count + (role == "world_model"))]
    actions = seed.integers(106, 362, (draw(st.integers(1, 4)) if role == "policy" else count, 7))
    arguments = {"images": images, "actions": actions, "role": role}
    arguments["separator"] = draw(st.sampled_from(["after_history", "after_text"]))
    if role == "policy":
        arguments["text"] = draw(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip))
        if count > 1 and draw(st.booleans()):
            arguments["history_actions"] = seed.integers(106, 362, (count - 1, 7))
    return arguments


@pytest.fixture(scope="module")
def processor(tokenizer, layout):
    return WorldVLAProcessor(tokenizer, layout, action_limits={"libero": LIBERO_ACTION_LIMITS})


@settings(max_examples=100, deadline=None)
@given(samples(), st.integers(0, 5))
def test_what_goes_in_comes_back(processor, arguments, padding):
    sample = processor.build_sample(**arguments)
    ids = [processor.vocabulary.pad_token_id] * padding + sample["input_ids"]
    parts = processor.parse(ids)
    check_tiling(parts, ids)
    assert not [part for part in parts if isinstance(part, MalformedPart)]
    grids = [part.grid for part in parts if isinstance(part, ImagePart)]
    assert [grid.tolist() for grid in grids] == [image.tolist() for image in arguments["images"]]
    past = arguments.get("history_actions", np.zeros((0, 7), int))
    actions = np.array([part.action_token_ids for part in parts if isinstance(part, ActionPart)])
    np.testing.assert_array_equal(actions, np.concatenate([past, arguments["actions"]]))
    commands = np.array([part.command for part in parts if isinstance(part, ActionPart)])
    np.testing.assert_allclose(commands, processor.decode_actions(actions))
    (words,) = [part.text for part in parts if isinstance(part, TextPart)]
    assert arguments["role"] == "world_model" or words == f"What action should the robot take to {arguments['text']}?"
    separators = [part for part in parts if isinstance(part, SeparatorPart)]
    assert len(separators) == (3 if arguments["separator"] == "after_text" else 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 762), max_size=40), max_size=3))
def test_a_processor_reads_any_batch(processor, rows):
    assert processor.vocabulary.vocab_size == 763
    for parts, ids in zip(processor.batch_parse(rows), rows, strict=True):
        check_tiling(parts, ids)


def test_a_padded_batch_is_read_row_by_row(processor):
    images = [[np.full((2, 2), 4)], [np.full((4, 2), 5)] * 2]
    batch = processor(images=images, text=["a", "b"])["input_ids"]
    parsed = processor.batch_parse(batch)
    assert isinstance(parsed[0][0], SpecialPart) and parsed[0][0].name == "pad"
    assert [len([part for part in parts if isinstance(part, ImagePart)]) for parts in parsed] == [1, 2]
    assert parsed == [processor.parse(row) for row in batch] == processor.batch_parse(batch.tolist())


def test_parts_survive_pickle(processor):
    parts = processor.parse(processor.build_sample([np.full((2, 2), 4)], "a", np.zeros((1, 7)))["input_ids"])
    assert pickle.loads(pickle.dumps(parts)) == parts


def test_commands_are_decoded_where_it_is_known_whose_they_are(processor, tokenizer, layout):
    ids = [layout.boa_token_id, *[106] * 7, layout.eoa_token_id]
    wide = {"low": [-2.0] * 7, "high": [2.0] * 7}
    several = WorldVLAProcessor(tokenizer, layout, action_limits={"libero": LIBERO_ACTION_LIMITS, "wide": wide})
    assert several.parse(ids)[0].command is None
    np.testing.assert_allclose(several.parse(ids, dataset_name="wide")[0].command, -2 + 2 / 256)
    with pytest.raises(ValueError, match="Unknown data set `wid`.*Did you mean `wide`?"):
        several.parse(ids, dataset_name="wid")
    bare = WorldVLAProcessor(tokenizer, layout)
    assert bare.parse(ids)[0].command is None and bare.parse([*ids[:3], ids[-1]])[0].action_token_ids.shape == (2,)
    with pytest.raises(ValueError, match="has no VQ-GAN"):
        bare.parse(image_block(np.full((2, 2), 4), layout))[0].to_image()
    with pytest.raises(ValueError, match="has no action limits"):
        bare.parse(ids, dataset_name="libero")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            [0, 763],
            r"Token ids must lie in \[0, 763\), got 763 at position \(1,\). Pass `input_ids` of this processor",
        ),
        ([5, -100], r"got -100 at position \(1,\).*labels hold -100"),
        ([2**70], "must be integers, got object"),
        ([0.0, 1.0], "must be integers, got float64"),
        (torch.tensor([True]), "must be integers, got bool"),
        (torch.zeros(2, dtype=torch.bfloat16), "must be integers, got float32"),
        ("text", r"one row of shape \(L,\), got shape \(\)"),
        (["a"], "must be integers, got <U1"),
        ([1, None], "must be integers, got object"),
        (3, r"one row of shape \(L,\), got shape \(\)"),
        ([[1, 2]], r"got shape \(1, 2\). Use `batch_parse` for several rows"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"got shape \(1, 2, 3\)"),
        ([[1], [1, 2]], "must be one row of integers, got list"),
    ],
)
def test_what_is_no_row_of_ids_is_refused(processor, ids, message):
    with pytest.raises(ValueError, match=message):
        processor.parse(ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2], r"reads rows of token ids \(B, L\), got a list. Use `parse` for one row"),
        (torch.zeros(3, dtype=torch.long), r"got an array of torch.int64 and shape \(3,\)"),
        (np.zeros((1, 2, 3), int), r"got an array of int64 and shape \(1, 2, 3\)"),
        ([[1], [763]], "Row 1 cannot be parsed. Token ids must lie in"),
    ],
)
def test_what_is_no_batch_of_ids_is_refused(processor, ids, message):
    with pytest.raises(ValueError, match=message):
        processor.batch_parse(ids)


def test_parsing_takes_time_in_proportion_to_the_length():
    ids = [BOI, EOL, BOA, EOA, SEP] * 40_000
    start = time.process_time()
    assert len(parser().parse(ids)) == 120_000
    assert time.process_time() - start < 10


def test_decode_reads_text_and_names_the_rest(processor, layout):
    batch = processor(images=[[np.full((2, 2), 4)], [np.full((4, 2), 5)]], text=["é ü", "b"])["input_ids"]
    rows = processor.batch_decode(batch, skip_special_tokens=True)
    assert rows == processor.tokenizer.batch_decode(batch, skip_special_tokens=True)
    assert [row.split("<racm3:break>")[0] for row in rows] == [
        "What action should the robot take to é ü?",
        "What action should the robot take to b?",
    ]
    assert "IMGIMGAZ" * 2 in rows[0] and "<pad>" not in rows[0] and "<pad>" in processor.decode(batch[0])
    assert isinstance(processor.decode(list(range(layout.vocab_size))), str)
