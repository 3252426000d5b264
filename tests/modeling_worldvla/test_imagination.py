"""Rollouts equal a loop of single predictions on prompts made anew."""

import pytest
import torch

from modeling_worldvla.prompt_checks_worldvla import DRAFTS

from .sequences import Writer, pad_left, tiny_model

SIDE = 2


def image_block(codes):
    side = 9 + SIDE // 2
    return [3, side, side, *(token for row in codes for token in [*row, 5]), 4]


def start(seed, pairs, batch=2, num_actions=5):
    """Text and pairs of each row, and the actions that follow: lists, and the arguments of `imagine`."""
    writer = Writer(seed)
    texts = [[0, *writer.text(3 + 2 * row)] for row in range(batch)]
    shown = [[writer.image(SIDE, SIDE) + writer.action() for _ in range(pairs)] for _ in range(batch)]
    actions = [[writer.action() for _ in range(num_actions)] for _ in range(batch)]
    ids, mask = pad_left([text + sum(row, []) + [6] for text, row in zip(texts, shown, strict=True)])
    follow = torch.tensor([[block[1:-1] for block in row] for row in actions], dtype=torch.long).view(
        batch, num_actions, 3
    )
    return texts, shown, actions, {"input_ids": ids, "attention_mask": mask, "actions": follow}


def one_after_another(model, texts, shown, actions, history, **options):
    """Frames by `predict_next_frame` on whole prompts."""
    shown, frames = [list(row) for row in shown], []
    for step in range(len(actions[0]) + 1):
        rows = [text + sum(row[-history:], []) + [6] for text, row in zip(texts, shown, strict=True)]
        frames.append(model.predict_next_frame(*pad_left(rows), return_dict_in_generate=True, **options))
        if step < len(actions[0]):
            for row, codes in enumerate(frames[-1].image_ids.tolist()):
                shown[row].append(image_block(codes) + actions[row][step])
    return frames


@pytest.mark.parametrize("seed", range(20))
def test_a_rollout_is_one_prediction_after_another(seed):
    history, variant = 1 + seed % 3, {"use_action_attention_mask": False} if seed % 4 == 3 else {}
    model, pairs = tiny_model(seed, world_model_history=history, **variant), 1 + seed // 3 % history
    *blocks, arguments = start(seed, pairs)
    expected = one_after_another(model, *blocks, history, draft="none")
    ids = torch.stack([frame.image_ids for frame in expected], dim=1)
    assert ids.shape == (2, 6, SIDE, SIDE)
    for draft in DRAFTS:
        assert torch.equal(model.imagine(**arguments, draft=draft), ids)
    fixed = {"cache_implementation": "static", "pad_to_multiple_of": 16}
    assert torch.equal(model.imagine(**arguments, **fixed), ids)


@pytest.mark.parametrize("seed", range(20))
def test_drawn_rollouts_and_their_scores(seed):
    model, draft = tiny_model(seed, initializer_range=0.15), DRAFTS[seed % 3]
    *blocks, arguments = start(seed, 1 + seed % 2, num_actions=3)
    options = {"do_sample": True, "top_p": 0.9, "temperature": 1.2, "draft": draft}
    chance = [torch.Generator().manual_seed(seed) for _ in range(2)]
    expected = one_after_another(model, *blocks, 2, generator=chance[0], **options)
    out = model.imagine(**arguments, history=2, generator=chance[1], return_dict_in_generate=True, **options)
    for name in ("log_probs", "entropies", "mean_log_prob", "mean_entropy"):
        wanted = torch.stack([frame[name] for frame in expected], dim=1)
        torch.testing.assert_close(out[name], wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(out.image_ids, torch.stack([frame.image_ids for frame in expected], dim=1))
    assert out.num_forwards == [frame.num_forwards for frame in expected]
    assert out.tokens_per_forward == pytest.approx(4 * (4 + SIDE * (SIDE + 1)) / sum(out.num_forwards))
    if draft == "none":
        assert out.acceptance_rate is None
    else:
        rates = torch.stack([frame.acceptance_rate for frame in expected], dim=1)
        assert torch.equal(out.acceptance_rate, rates)


def test_a_batch_is_its_rows():
    model = tiny_model(4, world_model_history=2)
    *blocks, arguments = start(4, 1, batch=3)
    both = model.imagine(**arguments)
    for row in range(3):
        ids = torch.tensor([blocks[0][row] + blocks[1][row][0] + [6]])
        assert torch.equal(model.imagine(ids, arguments["actions"][row : row + 1])[0], both[row])


def test_only_what_changed_is_fed_again_and_memory_stays():
    """Prompts that grow are continued; when the window slides, what precedes the frames stays."""
    model, calls, sizes = tiny_model(1), [], []
    *_, arguments = start(1, 1, batch=1, num_actions=6)

    def record(module, args, kwargs):
        calls.append(args[0].shape[1])
        sizes.append(kwargs["past_key_values"].num_slots)

    model.model.register_forward_pre_hook(record, with_kwargs=True)
    model.imagine(**arguments, history=3, draft="none")
    text, pair, image = 4, 10 + 5, 3
    feeds = [calls[place] for place in range(0, len(calls), SIDE * SIDE)]
    grown, slid = pair + 1 + image, 3 * pair + 1 + image
    assert feeds == [text + pair + 1 + image, grown, grown, slid, slid, slid, slid]
    assert set(sizes) == {text + 3 * pair + 1 + 3 + SIDE * (SIDE + 1) + 1}


def test_frames_are_handed_out_as_they_come():
    model, calls = tiny_model(2), []
    *_, arguments = start(2, 1)
    expected = model.imagine(**arguments)
    model.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    frames = model.imagine_frames(**arguments, draft="none")
    assert not calls
    first = next(frames)
    assert len(calls) == SIDE * SIDE and torch.equal(first.image_ids, expected[:, 0])
    assert [torch.equal(frame.image_ids, expected[:, number]) for number, frame in enumerate(frames, 1)] == [True] * 5
    assert torch.is_grad_enabled()


def test_no_further_actions_give_one_frame():
    model = tiny_model(3)
    *_, arguments = start(3, 1, num_actions=0)
    frame = model.predict_next_frame(arguments["input_ids"], arguments["attention_mask"])
    assert torch.equal(model.imagine(**arguments)[:, 0], frame)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([1], {"history": 0}, "`history` must be a whole number of at least 1, got 0. Leave it out to show 1"),
        ([2], {"history": 1}, "at most `history` = 1 frames, got 2. .* or pass `history=2`"),
        ([1, 2], {"history": 2}, "must show equally many frames, got 1, 2. Call once per"),
        ([1], {"history": 40, "actions": torch.full((1, 40, 3), 30)}, "at most 400 tokens together"),
        ([1], {"actions": torch.full((1, 2, 4), 30)}, r"\(1, any, 3\), got torch.int64 of shape \(1, 2, 4\)"),
        ([1], {"actions": torch.full((1, 2, 3), 50)}, r"`actions` must lie in 30 … 49, got 50 at \(0, 0, 0\)"),
        ([1], {"actions": torch.full((1, 2, 3), 0.5)}, "must be whole numbers"),
        ([1], {"draft": "jacoby"}, "Did you mean `jacobi`"),
    ],
)
def test_rollouts_that_cannot_be_are_refused(rows, changes, message):
    ids, mask = pad_left([Writer().world_model(3, count, SIDE, SIDE)[0] for count in rows])
    arguments = {"actions": torch.full((len(rows), 2, 3), 30), **changes}
    with pytest.raises(ValueError, match=message):
        tiny_model().imagine_frames(ids, attention_mask=mask, **arguments)


@pytest.mark.parametrize("prompt", ["two_actions", "two_sizes", "no_action", "action_first"])
def test_other_layouts_are_refused(prompt):
    writer = Writer()
    image, action = writer.image(SIDE, SIDE), writer.action()
    body = {
        "two_actions": image + action + action,
        "two_sizes": writer.image(2, 4) + action + image + action,
        "no_action": image,
        "action_first": action + image + action,
    }[prompt]
    with pytest.raises(ValueError, match="frames of one size, each followed by one action of 3 bins"):
        tiny_model().imagine(torch.tensor([[0, 120, *body, 6]]), torch.full((1, 1, 3), 30), history=2)
