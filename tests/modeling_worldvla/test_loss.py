import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling_worldvla import WorldVLAConfig, count_labels
from modeling_worldvla.loss_worldvla import class_weights, role_losses

from .sequences import tiny_config, tiny_model, training_batch
from .test_modeling import FORWARD, recorded_model, recorded_tokens  # noqa: F401 (one is a fixture)


def loss_over_all_logits(model, ids, mask, labels):
    """The same loss from the logits of every position."""
    logits = model(ids, attention_mask=mask).logits[:, :-1]
    per_token = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    world = torch.tensor([bool((row == model.config.boi_token_id).any()) for row in labels])
    counts = (labels[:, 1:] != -100).sum(dim=1)
    action = per_token[~world].sum() / counts[~world].sum()
    image = per_token[world].sum() / counts[world].sum()
    squares = (logits.logsumexp(-1).square() * (labels[:, 1:] != -100)).sum() / counts.sum()
    total = action + model.config.world_model_loss_weight * image + model.config.z_loss_weight * squares
    return total, action, image


@pytest.mark.parametrize("z_loss_weight", [0.0, 0.01])
def test_loss_at_labels_is_the_loss_over_all_logits(z_loss_weight):
    model = tiny_model(world_model_loss_weight=0.3, z_loss_weight=z_loss_weight)
    ids, mask, labels = training_batch()
    outputs = model(ids, attention_mask=mask, labels=labels)
    total, action, image = loss_over_all_logits(model, ids, mask, labels)
    torch.testing.assert_close(outputs.loss, total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outputs.loss_action, action.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outputs.loss_world_model, image.detach(), rtol=1e-6, atol=1e-6)
    assert outputs.logits is None and outputs.past_key_values is None
    assert not outputs.loss_action.requires_grad
    gradients = torch.autograd.grad(outputs.loss, model.parameters())
    for got, expected in zip(gradients, torch.autograd.grad(total, model.parameters()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_count_labels_counts_what_is_predicted():
    config = tiny_config()
    labels = torch.full((3, 6), -100)
    labels[0, 0], labels[0, 3:] = 7, torch.tensor([30, 8, 6])
    labels[1, 2:] = torch.tensor([3, 60, 4, 6])
    assert count_labels(labels, config).tolist() == [3, 4]


@pytest.mark.parametrize("split", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 0, 1]])
def test_micro_batches_add_up_to_the_whole_batch(split):
    model = tiny_model(z_loss_weight=0.01)
    ids, mask, labels = training_batch(1)
    counts = count_labels(labels, model.config)
    whole = model(ids, attention_mask=mask, labels=labels).loss
    parts = 0.0
    for part in sorted(set(split)):
        rows = torch.tensor([number == part for number in split])
        parts += model(ids[rows], attention_mask=mask[rows], labels=labels[rows], num_items_in_batch=counts).loss
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rows", "role"), [([0, 2], "loss_world_model"), ([1, 3], "loss_action")])
def test_a_role_without_rows_counts_nothing(rows, role):
    model = tiny_model()
    ids, mask, labels = training_batch()
    outputs = model(ids[rows], attention_mask=mask[rows], labels=labels[rows])
    assert torch.isfinite(outputs.loss) and outputs.loss > 0
    assert outputs[role] == 0
    outputs.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_no_label_at_all_gives_zero():
    model = tiny_model()
    ids, mask, labels = training_batch()
    outputs = model(ids, attention_mask=mask, labels=torch.full_like(labels, -100))
    outputs.loss.backward()
    assert outputs.loss == 0


def test_alpha_weighs_the_world_model():
    ids, mask, labels = training_batch()
    losses = [
        tiny_model(world_model_loss_weight=alpha)(ids, attention_mask=mask, labels=labels) for alpha in (0.0, 2.0)
    ]
    torch.testing.assert_close(losses[1].loss - losses[0].loss, 2.0 * losses[0].loss_world_model)


def test_wrong_shapes_are_refused():
    model = tiny_model()
    ids, mask, labels = training_batch()
    with pytest.raises(ValueError, match=r"tensor of two counts \[N_action, N_world\], got \(\)"):
        model(ids, attention_mask=mask, labels=labels, num_items_in_batch=torch.tensor(5))
    with pytest.raises(ValueError, match="`labels` must have the shape of the tokens"):
        model(ids, attention_mask=mask, labels=labels[:, 1:])


def test_logits_with_labels_on_request():
    model = tiny_model()
    ids, mask, labels = training_batch()
    outputs = model(ids, attention_mask=mask, labels=labels, logits_to_keep=2)
    assert outputs.logits.shape == (4, 2, 200)


MALFORMED = ("stray_end_tail", "stray_end_head", "unclosed_then_closed", "stray_eoi")
OFFICIAL = {"loss_form": "official", "loss_weight_ranges": [[59, 98, 0.04]]}  # one id early, as in the official code


def official_loss(model, ids, mask, labels):
    """The official form from the logits of every position."""
    weights = torch.ones(model.config.vocab_size)
    weights[59:99] = 0.04
    logits, targets = model(ids, attention_mask=mask).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    squares = logits[targets >= 0].logsumexp(-1).square().mean()
    return F.cross_entropy(logits, targets, weight=weights) + model.config.z_loss_weight * squares


def test_official_form_is_the_class_weighted_mean():
    model = tiny_model(z_loss_weight=0.01, **OFFICIAL)
    ids, mask, labels = training_batch()
    loss, expected = model(ids, attention_mask=mask, labels=labels).loss, official_loss(model, ids, mask, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(loss, model.parameters())
    for got, wanted in zip(gradients, torch.autograd.grad(expected, model.parameters()), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_official_batches_of_a_step_count_by_their_labels():
    model = tiny_model(z_loss_weight=0.01, **OFFICIAL)
    ids, mask, labels = training_batch()
    counts, parts = count_labels(labels, model.config), []
    for rows in (slice(0, 1), slice(1, 4)):
        part = {"input_ids": ids[rows], "attention_mask": mask[rows], "labels": labels[rows]}
        share = count_labels(labels[rows], model.config).sum() / counts.sum()
        loss = model(**part, num_items_in_batch=counts).loss
        torch.testing.assert_close(loss, share * model(**part).loss, rtol=1e-5, atol=0)
        parts.append(share)
    assert sum(parts) == 1


def test_official_weights_are_off_by_one_as_recorded():
    ids = torch.tensor([2, 3, 4, 8194, 8195, 8196, 8710])
    weights = class_weights(ids, WorldVLAConfig(loss_form="official"))
    torch.testing.assert_close(weights, torch.tensor([1, 0.04, 0.04, 0.04, 1, 1, 1]))


def test_recorded_losses(recorded_model, recorded_behaviour, monkeypatch):  # noqa: F811
    """All parts of the official loss; with the mask where the markers are well formed (else its mask is arbitrary)."""
    records = json.loads((recorded_behaviour / "forward.json").read_text())
    tokens = np.load(recorded_behaviour / "masks.npz")
    recorded_model.set_attn_implementation("sdpa")
    cases = [name for name, record in records.items() if isinstance(record, dict) and "label_start" in record]
    assert len(cases) >= 33
    for case in cases:
        record, ids = records[case], torch.from_numpy(np.atleast_2d(tokens[f"{case}/tokens"]).astype(np.int64))
        labels = torch.full_like(ids, -100)
        for row, (start, end) in enumerate(zip(record["label_start"], record["len"], strict=True)):
            labels[row, start:end] = ids[row, start:end]
        for kind in ("nomask", *["mask"] * (case not in MALFORMED)):
            monkeypatch.setattr(recorded_model.config, "use_action_attention_mask", kind == "mask")
            hidden = recorded_model.model(ids).last_hidden_state.detach()
            expected = record[kind]
            for name, changes in {
                "c_loss": {"loss_form": "official"},
                "c_loss_unweighted": {"loss_form": "official", "loss_weight_ranges": []},
                "z_loss": {"world_model_loss_weight": 0.0, "z_loss_weight": 1.0},
                "total": {"loss_form": "official", "z_loss_weight": expected["z_weight"]},
            }.items():
                config = WorldVLAConfig(**changes)
                loss = role_losses(hidden, labels, recorded_model.lm_head, config)
                value = loss.loss - loss.loss_action if name == "z_loss" else loss.loss
                assert value.item() == pytest.approx(expected[name], rel=2e-5), (case, kind, name)


def test_recorded_gradients_of_the_official_form(recorded_model, monkeypatch):  # noqa: F811
    for name, value in {"loss_form": "official", "z_loss_weight": 1e-5, "loss_chunk_size": 7}.items():
        monkeypatch.setattr(recorded_model.config, name, value)
    tokens = recorded_tokens("batch_pad_mixed")
    labels = torch.full_like(tokens, -100)
    for row, (start, end) in enumerate([(34, 80), (30, 41), (24, 43)]):
        labels[row, start:end] = tokens[row, start:end]
    recorded_model.zero_grad()
    loss = recorded_model(tokens, labels=labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(12.47290325164795, abs=2e-5)
    norms = {name: parameter.grad.norm().item() for name, parameter in recorded_model.named_parameters()}
    names = FORWARD["grad_norms/names"].tolist()
    np.testing.assert_allclose([norms[name] for name in names], FORWARD["grad_norms/values"], rtol=1e-4)
