"""Chunked losses equal those of all logits at once, whatever the head."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_worldvla.token_losses_worldvla import CHUNK_BYTES, score_tokens, split_rows, weighted_loss

from .sequences import tiny_model, training_batch

ROWS, WIDTH, VOCABULARY = 23, 16, 50


class CalledHead(nn.Linear):
    """Any head that is not a plain `nn.Linear`."""


def parts(seed=0, head_class=nn.Linear):
    torch.manual_seed(seed)
    head = head_class(WIDTH, VOCABULARY, bias=False)
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    return hidden, torch.randint(VOCABULARY, (ROWS,)), torch.rand(ROWS) / ROWS, torch.tensor(0.01), head


def plain_loss(hidden, targets, weights, z_weight, head, smoothing):
    logits = head(hidden).float()
    smoothed = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    loss = (weights * smoothed).sum() + z_weight * logits.logsumexp(-1).square().sum()
    return loss, F.cross_entropy(logits, targets, reduction="none").detach()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_size", [None, 1, 5, 23])
@pytest.mark.parametrize("head_class", [nn.Linear, CalledHead])
def test_chunks_equal_all_logits(head_class, chunk_size, smoothing, seed):
    *tensors, head = parts(seed, head_class)
    rows = split_rows(ROWS, VOCABULARY, chunk_size)
    loss, per_token = weighted_loss(*tensors, head, smoothing, rows)
    expected, expected_per_token = plain_loss(*tensors, head, smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(per_token, expected_per_token, rtol=1e-6, atol=1e-6)
    assert not per_token.requires_grad
    for target in (tensors[0], head.weight):
        (wanted,) = torch.autograd.grad(3 * expected, target, retain_graph=True)
        (got,) = torch.autograd.grad(3 * weighted_loss(*tensors, head, smoothing, rows)[0], target)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_class", [nn.Linear, CalledHead])
def test_autocast(head_class, dtype):
    *tensors, head = parts(0, head_class)
    losses = []
    for chunk_size in (None, 4):
        with torch.autocast("cpu", dtype=dtype):
            loss, _ = weighted_loss(*tensors, head, 0.0, split_rows(ROWS, VOCABULARY, chunk_size))
        losses.append((loss.detach(), *torch.autograd.grad(loss, [tensors[0], head.weight])))
    with torch.autocast("cpu", dtype=dtype):
        expected, _ = plain_loss(*tensors, head, 0.0)
    wanted = (expected.detach(), *torch.autograd.grad(expected, [tensors[0], head.weight]))
    for values in losses:
        assert [value.dtype for value in values] == [torch.float32] * 3
        torch.testing.assert_close(values[0], wanted[0], rtol=1e-5, atol=1e-5)
        for got, value in zip(values[1:], wanted[1:], strict=True):
            torch.testing.assert_close(got, value, rtol=0, atol=0.01 * value.abs().max().item())


def test_small_gradients_survive_float16():
    """A token among many has gradients below float16's smallest number; a loss scale must still reach them."""
    *tensors, head = parts()
    tensors[2], tensors[3] = torch.full((ROWS,), 1e-8), torch.tensor(0.0)
    expected = torch.autograd.grad(plain_loss(*tensors, head, 0.0)[0], tensors[0])[0]
    with torch.autocast("cpu", dtype=torch.float16):
        loss, _ = weighted_loss(*tensors, head, 0.0, split_rows(ROWS, VOCABULARY, None))
    (gradient,) = torch.autograd.grad(2.0**16 * loss, tensors[0])
    torch.testing.assert_close(gradient / 2.0**16, expected, rtol=0, atol=0.01 * expected.abs().max().item())


def test_a_frozen_head_gets_no_gradient():
    *tensors, head = parts()
    head.requires_grad_(False)
    weighted_loss(*tensors, head, 0.0, split_rows(ROWS, VOCABULARY, None))[0].backward()
    assert head.weight.grad is None and tensors[0].grad.any()


def test_without_gradients_none_are_computed():
    *tensors, head = parts()
    with torch.no_grad():
        loss, _ = weighted_loss(*tensors, head, 0.0, split_rows(ROWS, VOCABULARY, 4))
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_loss(*tensors, head, 0.0)[0].detach())


def test_a_second_backward_is_refused():
    *tensors, head = parts()
    loss, _ = weighted_loss(*tensors, head, 0.0, split_rows(ROWS, VOCABULARY, None))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already used, .* Compute the loss again"):
        loss.backward()


def test_hooks_of_the_head_run():
    """Sharded and offloaded heads gather their weights in hooks."""
    *tensors, head = parts()
    calls = []
    head.register_forward_pre_hook(lambda *_: calls.append(1))
    weighted_loss(*tensors, head, 0.0, split_rows(ROWS, VOCABULARY, 12))[0].backward()
    assert len(calls) == 4  # two chunks, forward and backward


@pytest.mark.parametrize("head_class", [nn.Linear, CalledHead])
def test_no_rows_give_zero_and_zero_gradients(head_class):
    *_, z_weight, head = parts(0, head_class)
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    nothing = (torch.zeros(0, dtype=torch.long), torch.zeros(0))
    loss, per_token = weighted_loss(hidden, *nothing, z_weight, head, 0.0, split_rows(0, VOCABULARY, None))
    loss.backward()
    assert loss == 0 and per_token.shape == (0,) and not head.weight.grad.any()


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_scores(chunk_size):
    hidden, targets, _, _, head = parts()
    scores = score_tokens(hidden, targets, head, (10, 20), split_rows(ROWS, VOCABULARY, chunk_size))
    logits = head(hidden).detach()
    torch.testing.assert_close(scores.cross_entropy, F.cross_entropy(logits, targets, reduction="none"))
    assert torch.equal(scores.best, logits.argmax(-1))
    assert torch.equal(scores.best_in_range, logits[:, 10:20].argmax(-1) + 10)


def test_rows_are_split_evenly_within_a_bound_of_memory():
    assert split_rows(7, 50, 3) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert split_rows(0, 50, 3) == [slice(0, 0)]
    for rows, vocabulary in ((5000, 65536), (3, CHUNK_BYTES), (1024, 65536)):
        chunks = split_rows(rows, vocabulary, None)
        assert sum(part.stop - part.start for part in chunks) == rows
        assert all(4 * vocabulary * (part.stop - part.start) <= max(CHUNK_BYTES, 4 * vocabulary) for part in chunks)
    assert len(split_rows(1024, 65536, None)) == 1 and len(split_rows(1025, 65536, None)) == 2


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_chunks_of_a_whole_model(changes, checkpointing):
    ids, mask, labels = training_batch()
    gradients = []
    for chunk_size in (None, 3):
        model = tiny_model(loss_chunk_size=chunk_size, z_loss_weight=0.01, **changes).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        gradients.append({"loss": loss.detach()} | {name: value.grad for name, value in model.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text)
