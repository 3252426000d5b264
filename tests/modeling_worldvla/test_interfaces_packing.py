"""Packed rows: several samples in one row give what each gives alone."""

import pytest
import torch

from modeling_worldvla import count_labels, pack_samples
from modeling_worldvla.attention_inputs_worldvla import default_position_ids
from modeling_worldvla.masking_worldvla import combine_masks, compute_action_block_ids, number_samples, sample_starts

from .sequences import Writer, tiny_config, tiny_model

LENGTH = 130


def samples_of(seed, count=6):
    """Policy and world-model samples by turns, some of them cut off inside an image or an action."""
    writer = Writer(seed)
    samples = []
    for number in range(count):
        prompt, answer = writer.policy(3 + number, 2) if number % 2 else writer.world_model(2 + number, 1 + number % 3)
        cut = (0, 0, 4, 0, 3, 2)[number % 6]
        ids = (prompt + answer)[: len(prompt) + len(answer) - cut]
        samples.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
    return samples


def places(packed):
    """(row, slice) of every sample, in the order of the rows."""
    for row, numbers in enumerate(packed["sequence_ids"]):
        for number in range(1, int(numbers.max()) + 1):
            where = (numbers == number).nonzero()[:, 0]
            yield row, slice(int(where[0]), int(where[-1]) + 1)


def test_packing_by_eye():
    samples = [{"input_ids": [0, 9, 6]}, {"input_ids": [0, 7, 30, 31, 8]}, {"input_ids": [0, 6]}]
    packed = pack_samples(samples, 7, tiny_config())
    assert packed["input_ids"].tolist() == [[0, 7, 30, 31, 8, 0, 6], [0, 9, 6, 1, 1, 1, 1]]
    assert packed["sequence_ids"].tolist() == [[1, 1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0, 0]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 0, 1, 2, 3]]
    assert packed["action_block_ids"].tolist() == [[0, 1, 1, 1, 1, 0, 0], [0] * 7]
    assert "labels" not in packed


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "Nothing to pack: got no sample"),
        ([{"input_ids": [0] * 9}], "must have 1 … 8 tokens to fit into a row, but sample 0 has 9. Leave it out"),
        ([{"input_ids": [0]}, {"input_ids": []}], "but sample 1 has 0"),
        ([{"input_ids": [0, 1], "labels": [1]}], "sample 0 has 2 tokens and 1 labels. Give -100 where"),
    ],
)
def test_what_cannot_be_packed_is_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        pack_samples(samples, 8, tiny_config())


def test_samples_are_runs_of_equal_numbers():
    numbers = torch.tensor([[5, 5, 2, 2, 2, 5], [0, 1, 1, 1, 0, 0]])
    samples = number_samples(numbers)
    assert samples.tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 2, 2]]
    assert sample_starts(samples).tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 1, 1, 4, 4]]


def test_mask_of_a_packed_row_by_eye():
    """An action and the separator of one sample, two actions of the next."""
    ids = torch.tensor([[0, 7, 30, 6, 0, 7, 31, 8, 7, 8]])
    numbers = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2]])
    blocks = compute_action_block_ids(ids, tiny_config(), numbers)
    assert blocks.tolist() == [[0, 1, 1, 1, 0, 2, 2, 2, 3, 3]]  # the block of the first sample was never closed
    mask = combine_masks(blocks, None, 10, 10, 0, ids.device, numbers)
    expected = """
        1 . . . . . . . . .
        1 1 . . . . . . . .
        1 1 1 . . . . . . .
        1 1 1 1 . . . . . .
        . . . . 1 . . . . .
        . . . . 1 1 . . . .
        . . . . 1 1 1 . . .
        . . . . 1 1 1 1 . .
        . . . . 1 . . . 1 .
        . . . . 1 . . . 1 1"""
    assert mask[0].int().tolist() == [[int(c == "1") for c in line.split()] for line in expected.strip().splitlines()]


@pytest.mark.parametrize("seed", range(20))
def test_block_ids_of_packed_samples_are_those_of_each_alone(seed):
    config = tiny_config()
    packed = pack_samples(samples_of(seed), LENGTH, config)
    for row, part in places(packed):
        alone = compute_action_block_ids(packed["input_ids"][row : row + 1, part], config)[0]
        together = packed["action_block_ids"][row, part]
        torch.testing.assert_close(together.sign(), alone.sign())
        torch.testing.assert_close(together[:, None] == together[None], alone[:, None] == alone[None])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("seed", range(20))
def test_packed_equals_separate(uncompiled_flex, seed, attention):
    model = tiny_model(seed, hidden_size=64)
    model.set_attn_implementation(attention)
    packed = pack_samples(samples_of(seed), LENGTH, model.config)
    labels = packed.pop("labels")
    assert int(packed["sequence_ids"].max()) > 1
    logits = model(**packed, use_cache=False).logits
    derived = model(packed["input_ids"], sequence_ids=packed["sequence_ids"], use_cache=False).logits
    for row, part in places(packed):
        alone = model(packed["input_ids"][row : row + 1, part], use_cache=False).logits[0]
        torch.testing.assert_close(logits[row, part], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(derived[row, part], alone, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(logits).all()
    assert labels.shape == packed["input_ids"].shape


@pytest.mark.parametrize("changes", [{}, {"loss_form": "official", "loss_weight_ranges": [[60, 99, 0.04]]}])
@pytest.mark.parametrize("seed", range(5))
def test_packed_loss_and_gradients_equal_those_of_separate_rows(seed, changes):
    """Two roles in one row: the role is that of the sample."""
    model = tiny_model(seed, world_model_loss_weight=0.3, z_loss_weight=0.01, **changes)
    samples = samples_of(seed)
    packed = pack_samples(samples, LENGTH, model.config)
    unpacked = [pack_samples([sample], LENGTH, model.config) for sample in samples]
    separate = {name: torch.cat([row[name] for row in unpacked]) for name in packed}
    assert len(packed["input_ids"]) < len(samples)
    outputs = []
    for batch in (packed, separate):
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        counts = count_labels(batch["labels"], model.config, batch["sequence_ids"])
        outputs.append([output.loss, output.loss_action, output.loss_world_model, counts, *gradients])
    assert (outputs[0][3] > 0).all()
    for got, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_label_at_the_start_of_a_sample_carries_no_loss():
    """What comes before it belongs to another sample."""
    model = tiny_model()
    samples = samples_of(0, 2)
    packed = pack_samples(samples, 200, model.config)
    counts = count_labels(packed["labels"], model.config, packed["sequence_ids"])
    loss = model(**packed).loss
    start = next(part.start for _, part in list(places(packed))[1:])
    packed["labels"][0, start] = packed["input_ids"][0, start]
    assert torch.equal(count_labels(packed["labels"], model.config, packed["sequence_ids"]), counts)
    torch.testing.assert_close(model(**packed).loss, loss)
    assert count_labels(packed["labels"], model.config).sum() == counts.sum() + 1


@torch.no_grad()
def test_packed_rows_in_a_cache():
    model = tiny_model()
    packed = pack_samples(samples_of(1), LENGTH, model.config)
    del packed["labels"]
    whole = model(**packed).logits
    cut = LENGTH - 11
    first = {name: values[:, :cut] for name, values in packed.items()}
    cache = model(**first, use_cache=True).past_key_values
    rest = {name: values[:, cut:] for name, values in packed.items() if name in ("input_ids", "position_ids")}
    known = {name: values for name, values in packed.items() if name not in rest}
    torch.testing.assert_close(
        model(**rest, **known, past_key_values=cache).logits, whole[:, cut:], rtol=1e-4, atol=1e-4
    )


def test_positions_of_packed_rows():
    numbers = torch.tensor([[1, 1, 1, 2, 2, 0]])
    got = default_position_ids(4, numbers.device, None, None, numbers)
    assert got.tolist() == [[2, 0, 1, 0]]


@torch.no_grad()
def test_a_packed_row_may_be_longer_than_a_sample():
    """Positions are those of the samples."""
    model = tiny_model(max_position_embeddings=64)
    samples = [sample for sample in samples_of(2) if len(sample["input_ids"]) <= 64]
    packed = pack_samples(samples, LENGTH, model.config)
    assert model(packed["input_ids"], sequence_ids=packed["sequence_ids"]).logits.shape[1] == LENGTH
