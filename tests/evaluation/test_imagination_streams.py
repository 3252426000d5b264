"""Imagined episodes are the single calls, one after another, on tokens that are handed over."""

import numpy as np
import pytest
import torch

from evaluation.imagination_streams import PolicyView, stream_actions, stream_policy

WAYS = [{}, {"n_action_steps": 1}, {"n_obs_steps": 1, "chunk_size": 3}, {"chunk_size": 4, "n_action_steps": 2}]
TASKS = ["lift the cup", "put the red bowl on the plate"]


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.5, chunk_size=3, max_position_embeddings=256).eval()


def draw_tokens(processor, given, actions, batch=2):
    generator = torch.Generator().manual_seed(3)
    layout = processor.vocabulary
    image_ids = torch.randint(0, layout.num_image_tokens, (batch, given, 2, 2), generator=generator)
    action_ids = torch.randint(0, layout.num_action_tokens, (batch, actions, 7), generator=generator)
    return image_ids + layout.image_token_id_start, action_ids + layout.action_token_id_start


def next_frame(model, processor, frames, actions, history):
    """One frame by `predict_next_frame`, from lists of `(h, w)` and `(D,)`."""
    count = min(history, len(frames))
    inputs = processor(frames[-count:], actions=np.stack(actions[-count:]), role="world_model", return_tensors="pt")
    found = model.predict_next_frame(**inputs, return_dict_in_generate=True)
    return found.image_ids[0].numpy(), float(found.mean_entropy)


def separate_calls(model, processor, image_ids, action_ids, task, num_frames, view, history):
    """One episode by `predict_action_chunk` and `predict_next_frame` alone; frames, actions and entropies."""
    frames, actions, entropies = list(image_ids.numpy()), list(action_ids.numpy()), []
    n_obs_steps, chunk_size, n_action_steps = view.complete(model.config)
    given = len(frames)
    while len(frames) - given < num_frames:
        seen = ([frames[0]] * n_obs_steps + frames)[-n_obs_steps:] if len(frames) < n_obs_steps else frames
        inputs = processor(images=seen[-n_obs_steps:], text=task, return_tensors="pt")
        chunk = model.predict_action_chunk(**inputs, chunk_size=chunk_size)[0, :n_action_steps]
        for action in chunk.numpy()[: num_frames - (len(frames) - given)]:
            actions.append(action)
            frame, entropy = next_frame(model, processor, frames, actions, history)
            frames.append(frame)
            entropies.append(entropy)
    return np.stack(frames[given:]), np.stack(actions[given - 1 :]), entropies


@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("given", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_the_policy_in_the_imagination_makes_the_tokens_of_the_separate_calls(model, processor, way, given, history):
    if given > history:
        history = given
    image_ids, action_ids = draw_tokens(processor, given, given - 1)
    view = PolicyView(**way)
    found = list(stream_policy(model, processor, image_ids, action_ids, TASKS, 5, view, history=history))
    assert len(found) == 5
    for row, task in enumerate(TASKS):
        alone = (image_ids[row], action_ids[row])
        frames, actions, entropies = separate_calls(model, processor, *alone, task, 5, view, history)
        np.testing.assert_array_equal(torch.stack([frame.image_ids[row] for frame in found]), frames)
        np.testing.assert_array_equal(torch.stack([frame.action_ids[row] for frame in found]), actions)
        assert [float(frame.mean_entropy[row]) for frame in found] == pytest.approx(entropies, abs=1e-4)
    # The comparison means something: the two instructions, and the frames, differ.
    assert any(not torch.equal(frame.action_ids[0], frame.action_ids[1]) for frame in found)
    assert any(not torch.equal(found[0].image_ids, frame.image_ids) for frame in found[1:])


def test_no_picture_is_drawn_or_encoded_unless_asked_for(model, processor, monkeypatch):
    image_ids, action_ids = draw_tokens(processor, 1, 0)
    arguments = (model, processor, image_ids, action_ids, TASKS, 4)
    through = list(stream_policy(*arguments, PolicyView(through_pixels=True)))
    tokens = image_ids[:, 0]
    seen = processor.encode_images(processor.decode_images(tokens)).numpy()
    inputs = processor(images=[[grid] * model.config.n_obs_steps for grid in seen], text=TASKS, return_tensors="pt")
    assert torch.equal(model.predict_action_chunk(**inputs)[:, 0], through[0].action_ids)

    def refuse(*_):
        raise AssertionError("a picture was drawn or encoded")

    monkeypatch.setattr(processor.image_tokenizer, "decode_ids", refuse)
    monkeypatch.setattr(processor.image_tokenizer, "encode_each_to_ids", refuse)
    plain = list(stream_policy(*arguments))
    assert any(not torch.equal(one.image_ids, other.image_ids) for one, other in zip(plain, through, strict=True))


@pytest.mark.parametrize("given", [1, 3])
def test_given_actions_make_one_frame_each(model, processor, given):
    image_ids, action_ids = draw_tokens(processor, given, given + 3)
    found = list(stream_actions(model, processor, image_ids, action_ids, history=3))
    assert len(found) == 4
    for row in range(2):
        frames, actions = list(image_ids[row].numpy()), list(action_ids[row].numpy())
        for number, frame in enumerate(found):
            expected, entropy = next_frame(model, processor, frames, actions[: given + number], 3)
            np.testing.assert_array_equal(frame.image_ids[row], expected)
            np.testing.assert_array_equal(frame.action_ids[row], actions[given - 1 + number])
            assert float(frame.mean_entropy[row]) == pytest.approx(entropy, abs=1e-4)
            frames.append(expected)


def test_frames_are_handed_out_as_they_come(model, processor):
    image_ids, action_ids = draw_tokens(processor, 1, 0)
    chunks = []
    predict = model.predict_action_chunk
    model.predict_action_chunk = lambda *args, **kwargs: chunks.append(1) or predict(*args, **kwargs)
    frames = stream_policy(model, processor, image_ids, action_ids, TASKS, 9)
    assert not chunks
    for _ in range(3):
        next(frames)
    assert len(chunks) == 1
    next(frames)
    assert len(chunks) == 2


@pytest.mark.parametrize(
    ("given", "actions", "message"),
    [
        (2, 1, r"must be followed by an action, got 2 frames and 1 actions"),
        (0, 1, r"image token ids \(B, n, h, w\), n at least 1, .* got shapes \(2, 0, 2, 2\) and \(2, 1, 7\)"),
        (2, 3, r"Prompts may show at most `history` = 1 frames, got 2"),
    ],
)
def test_starts_that_do_not_fit_are_refused(model, processor, given, actions, message):
    with pytest.raises(ValueError, match=message):
        stream_actions(model, processor, *draw_tokens(processor, given, actions))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instructions": TASKS[:1]}, r"got 1 frames, 0 commands, 1 instructions for 2 episodes and 3 frames"),
        ({"num_frames": 0}, r"for 2 episodes and 0 frames"),
        ({"view": PolicyView(n_action_steps=9)}, r"`n_action_steps` must lie in 1 … 3 \(`chunk_size`\), got 9"),
    ],
)
def test_policies_that_cannot_act_are_refused(model, processor, changes, message):
    arguments = {"instructions": TASKS, "num_frames": 3, **changes}
    with pytest.raises(ValueError, match=message):
        stream_policy(model, processor, *draw_tokens(processor, 1, 0), **arguments)


def test_numbers_of_a_view_must_be_positive():
    with pytest.raises(ValueError, match=r"`chunk_size` must be at least 1, got 0\. Leave it out"):
        PolicyView(chunk_size=0)
