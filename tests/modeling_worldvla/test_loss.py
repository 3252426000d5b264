import pytest
import torch
from torch.nn import functional as F

from modeling_worldvla import count_labels

from .sequences import tiny_config, tiny_model, training_batch


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
