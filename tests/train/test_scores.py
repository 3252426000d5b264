"""Scores of predictions, against what is counted by hand."""

import numpy as np
import pytest
import torch

from tests.conftest import DATASET
from train.collation import WorldVLACollator
from train.scores import LabelScores, action_bin_values, greater_is_better, list_metrics

DIMENSIONS, BINS = 7, 16


class Answering(torch.nn.Module):
    """Gives the token that is named for each place a logit of 50."""

    def __init__(self, answers, width):
        super().__init__()
        shifted = torch.roll(answers, -1, dims=1).clamp(min=0)
        self.hidden = torch.nn.functional.one_hot(shifted, width).float() * 50
        self.lm_head = torch.nn.Identity()

    def model(self, **inputs):
        return type("Output", (), {"last_hidden_state": self.hidden})


@pytest.fixture
def batch(make_model, samples):
    return WorldVLACollator(make_model().config.pad_token_id)([samples[index] for index in range(len(samples))])


def scores_of(config, batch, answers, bin_values=None):
    scores = LabelScores(config, bin_values)
    scores.update(Answering(answers, config.vocab_size), batch)
    return scores.metrics()


def bins_of(config, labels):
    """(row, position, dimension) of every bin that a policy sample asks for, in order."""
    first = config.action_token_id_start
    for row, values in enumerate(labels.tolist()):
        bins = [place for place, label in enumerate(values) if first <= label < first + BINS]
        yield from ((row, place, number % DIMENSIONS) for number, place in enumerate(bins))


def test_a_model_that_knows_the_answer(make_model, batch):
    config = make_model().config
    metrics = scores_of(config, batch, batch["labels"], torch.linspace(-1, 1, BINS).expand(DIMENSIONS, -1))
    assert set(metrics) == set(list_metrics(config, with_units=True))
    for name, value in metrics.items():
        assert value == (1 if "accuracy" in name else pytest.approx(0, abs=1e-4)), name


def test_errors_of_bins_by_hand(make_model, batch):
    """Dimension 2 is three bins off at every other bin, dimension 5 one bin off everywhere."""
    config = make_model().config
    first, answers, off = config.action_token_id_start, batch["labels"].clone(), [[] for _ in range(DIMENSIONS)]
    values = torch.arange(DIMENSIONS * BINS).view(DIMENSIONS, BINS).float() ** 1.5
    units = [[] for _ in range(DIMENSIONS)]
    for number, (row, place, dimension) in enumerate(bins_of(config, batch["labels"])):
        wanted = int(answers[row, place]) - first
        got = {2: (wanted + 3 * (number // DIMENSIONS % 2)) % BINS, 5: (wanted + 1) % BINS}.get(dimension, wanted)
        answers[row, place] = got + first
        off[dimension].append(abs(got - wanted))
        units[dimension].append(abs(float(values[dimension, got] - values[dimension, wanted])))
    metrics = scores_of(config, batch, answers, values)
    for dimension in range(DIMENSIONS):
        assert metrics[f"accuracy_action_{dimension}"] == pytest.approx(np.mean(np.array(off[dimension]) == 0))
        assert metrics[f"action_bin_error_{dimension}"] == pytest.approx(np.mean(off[dimension]))
        assert metrics[f"action_l1_{dimension}"] == pytest.approx(np.mean(units[dimension]), rel=1e-5)
    assert metrics["action_bin_error"] == pytest.approx(np.mean(off))
    assert metrics["action_l1"] == pytest.approx(np.mean(units), rel=1e-5)
    assert 0 < metrics["accuracy_action_2"] < 1 and metrics["accuracy_action_5"] == 0
    assert metrics["grammar_violations_action"] == 0  # a wrong bin is a bin
    assert metrics["accuracy_world_model"] == metrics["accuracy_image"] == 1


def test_violations_by_hand(make_model, batch):
    config = make_model().config
    labels = batch["labels"]
    world = (labels == config.boi_token_id).any(1)
    counts = {False: int((labels[~world] != -100).sum()), True: int((labels[world] != -100).sum())}
    answers = labels.clone()
    # A code in place of the first begin of action, of every policy sample: a violation each.
    begins = (labels == config.boa_token_id).int().argmax(1)
    for row in (~world).nonzero()[:, 0].tolist():
        answers[row, begins[row]] = config.image_token_id_start
    # Begin of action in place of the separator at the end: the chunk goes on, which the grammar allows.
    ends = labels == config.sep_token_id
    answers[ends & ~world[:, None]] = config.boa_token_id
    # Another code where a code is asked for: wrong, and allowed. A code at the end of a row of codes: a violation.
    codes = (labels >= config.image_token_id_start) & (labels < config.image_token_id_start + config.num_image_tokens)
    answers[codes] = (labels[codes] - config.image_token_id_start + 1) % config.num_image_tokens
    answers[codes] += config.image_token_id_start
    eols = labels == config.eol_token_id
    answers[eols] = config.image_token_id_start
    metrics = scores_of(config, batch, answers)
    assert metrics["grammar_violations_action"] == pytest.approx(int((~world).sum()) / counts[False])
    assert metrics["grammar_violations_world_model"] == pytest.approx(int(eols.sum()) / counts[True])
    assert metrics["accuracy_image"] == 0
    assert metrics["accuracy_world_model"] == pytest.approx(1 - int((codes | eols).sum()) / counts[True])


def test_a_role_without_samples_is_left_out(make_model, batch):
    config = make_model().config
    world = (batch["labels"] == config.boi_token_id).any(1)
    policy = {name: values[~world] for name, values in batch.items()}
    metrics = scores_of(config, policy, policy["labels"])
    assert not any("world_model" in name or "image" in name or "l1" in name for name in metrics)
    assert {"loss", "loss_action", "action_bin_error_6"} <= set(metrics) <= set(list_metrics(config, with_units=False))


def test_bin_values_are_what_the_tokenizer_decodes(processor):
    values = action_bin_values(processor, DATASET)
    assert values.shape == (DIMENSIONS, BINS)
    first = processor.vocabulary.action_token_id_start
    for dimension, bin_number in ((0, 0), (3, 7), (6, 15)):
        ids = np.full((1, DIMENSIONS), first)
        ids[0, dimension] += bin_number
        assert values[dimension, bin_number] == pytest.approx(processor.decode_actions(ids)[0, dimension])
    with pytest.raises(ValueError, match="Unknown data set `other`"):
        action_bin_values(processor, "other")


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("eval_val_ind_action_l1", False), ("eval_val_ood_accuracy_image", True), ("eval_rollout_success", True)],
)
def test_which_way_a_metric_improves(metric, expected):
    assert greater_is_better(metric) is expected
