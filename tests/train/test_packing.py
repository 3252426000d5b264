"""Packed rows give what padded ones give: loss, gradients, counts, scores, trained weights."""

import copy

import pytest
import torch

from modeling_worldvla import count_labels
from train.arguments import DataArguments
from train.collation import WorldVLACollator
from train.packing import BlankPaddedDataset, PackingCollator, choose_collator, shortest_rows
from train.scores import LabelScores

from .test_trainer import assert_equal_weights, make_trainer

LENGTH = 260


def both_batches(config, samples):
    whole = [samples[index] for index in range(len(samples))]
    return PackingCollator(config, LENGTH)(whole), WorldVLACollator(config.pad_token_id)(whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed_loss_and_gradients_equal_padded_ones(make_model, samples, dtype):
    packed, padded = both_batches(make_model().config, samples)
    assert len(packed["input_ids"]) < len(padded["input_ids"]) / 2
    gradients, losses = [], []
    for batch in (packed, padded):
        model = make_model().to(dtype)
        output = model(**batch)
        output.loss.backward()
        losses.append([output.loss.item(), output.loss_action.item(), output.loss_world_model.item()])
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[1].norm()


@pytest.mark.parametrize(
    ("lengths", "most", "expected"), [([620] * 8, 4096, 2480), ([5, 4, 3], 100, 12), ([7, 3, 2], 7, 7), ([9], 20, 9)]
)
def test_rows_are_no_longer_than_they_need_to_be(lengths, most, expected):
    assert shortest_rows(lengths, most) == expected


def test_every_token_is_packed_once(make_model, samples):
    packed, _ = both_batches(make_model().config, samples)
    filled = packed["sequence_ids"].bool().sum(1)
    assert packed["input_ids"].shape[1] == int(filled.max()) <= LENGTH
    assert int(filled.sum()) == sum(len(samples[index]["input_ids"]) for index in range(len(samples)))
    alone = PackingCollator(make_model().config, LENGTH)([samples[0]])
    assert alone["input_ids"].tolist() == [samples[0]["input_ids"]]


def test_a_sample_longer_than_a_row_is_refused(make_model, samples):
    length = len(samples[0]["input_ids"])
    with pytest.raises(
        ValueError, match=f"{length} tokens, more than a packed row of {length - 1}. Raise `--packed_l"
    ):
        PackingCollator(make_model().config, length - 1)([samples[0]])


def test_collator_is_chosen_by_option(make_model):
    config = make_model().config
    assert isinstance(choose_collator(DataArguments("t"), config), WorldVLACollator)
    packing = choose_collator(DataArguments("t", packing=True, packed_length=99), config)
    assert isinstance(packing, PackingCollator) and packing.packed_length == 99


def test_scores_of_packed_rows_equal_those_of_padded_ones(make_model, samples):
    model = make_model().eval()
    values = torch.linspace(-1, 1, 16).expand(7, -1)
    metrics = []
    for batch in both_batches(model.config, samples):
        scores = LabelScores(model.config, values)
        scores.update(model, batch)
        metrics.append(scores.metrics())
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


def test_a_packed_run_equals_an_unpacked_one(make_model, samples, tmp_path):
    settings = {
        "max_steps": 3,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "optim": "sgd",
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 5,
    }
    models, logs = [], []
    for collator in (None, PackingCollator(make_model().config, LENGTH)):
        model = make_model()
        trainer = make_trainer(model, samples, tmp_path, **settings)
        if collator is not None:
            trainer.data_collator = collator
        trainer.train()
        models.append(model)
        logs.append(trainer.state.log_history[:3] + [trainer.evaluate()])
    assert_equal_weights(*models, rtol=1e-5, atol=1e-7)
    for padded, packed in zip(*logs, strict=True):
        for name in (name for name in padded if "loss" in name or "accuracy" in name):
            assert packed[name] == pytest.approx(padded[name], rel=1e-5), name
    assert logs[1][0]["padding_share"] < logs[0][0]["padding_share"]


def test_blank_samples_count_nothing(make_model, samples):
    model = make_model()
    config = model.config
    padded = BlankPaddedDataset(samples, len(samples) + 3, config.pad_token_id)
    assert len(padded) == len(samples) + 3 and len(BlankPaddedDataset(samples, 1, config.pad_token_id)) == len(samples)
    blanks = [copy.deepcopy(padded[len(samples) + number]) for number in range(3)]
    for collator in (WorldVLACollator(config.pad_token_id), PackingCollator(config, LENGTH)):
        scores = LabelScores(config)
        scores.update(model, collator(blanks))
        assert scores.metrics() == {"loss": 0.0}
        batch = collator([samples[0], *blanks])
        assert count_labels(batch["labels"], config, batch.get("sequence_ids")).tolist() == [
            sum(label != -100 for label in samples[0]["labels"]),
            0,
        ]
