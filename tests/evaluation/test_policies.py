import numpy as np
import pytest
import torch

from evaluation.policies import WorldVLAPolicy
from tokenization import WorldVLAProcessor

FRAMES = np.random.default_rng(3).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
TASK = "lift the cup"


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.5)  # wide weights: answers that depend on the prompt


@pytest.fixture
def encoded(processor, monkeypatch):
    """The images that go through the VQ-GAN, in order."""
    images, encode = [], processor.image_tokenizer.encode_each

    def record(batch, *options):
        images.extend(batch)
        return encode(batch, *options)

    monkeypatch.setattr(processor.image_tokenizer, "encode_each", record)
    return images


@pytest.fixture
def prompts(model, monkeypatch):
    """What the model is asked, in order."""
    calls, predict = [], model.predict_action_chunk

    def record(**inputs):
        calls.append(inputs)
        return predict(**inputs)

    monkeypatch.setattr(model, "predict_action_chunk", record)
    return calls


def image_tokens(prompt, layout):
    """The frames of one prompt as lists of ids."""
    ids, end = prompt["input_ids"][0], layout.image_token_id_start + layout.num_image_tokens
    return ids[(ids >= layout.image_token_id_start) & (ids < end)].reshape(-1, 4).tolist()


def numbers_of(images):
    """Which of FRAMES these are."""
    return [next(k for k, frame in enumerate(FRAMES) if np.array_equal(frame, image)) for image in images]


@pytest.mark.parametrize(
    ("n_obs_steps", "chunk_size", "n_action_steps", "shown"),
    [
        (2, 4, 3, [[0, 0], [2, 3], [5, 6]]),
        (1, 4, 3, [[0], [3], [6]]),
        (2, 2, 1, [[max(0, k - 1), k] for k in range(9)]),
        (3, 2, 2, [[0, 0, 0], [0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]),
        (2, 4, None, [[0, 0], [3, 4], [7, 8]]),
    ],
)
def test_prompts_show_the_last_frames_and_only_those_are_encoded(
    model, processor, prompts, encoded, n_obs_steps, chunk_size, n_action_steps, shown
):
    tokens = [processor.encode_images([frame])[0].flatten().tolist() for frame in FRAMES]
    assert len({tuple(ids) for ids in tokens}) == len(FRAMES), "frames must differ in tokens"
    encoded.clear()

    policy = WorldVLAPolicy(
        model, processor, n_obs_steps=n_obs_steps, chunk_size=chunk_size, n_action_steps=n_action_steps
    )
    policy.reset(TASK)
    for frame in FRAMES:
        policy.select_action({"agentview": frame})
    found = [image_tokens(prompt, processor.vocabulary) for prompt in prompts]
    assert found == [[tokens[k] for k in frames] for frames in shown]
    needed = sorted({k for frames in shown for k in frames})
    # After the last prompt the next one is prepared for: its frames are encoded too.
    later = [k for k in numbers_of(encoded) if k > max(needed)]
    assert numbers_of(encoded) == needed + later
    steps = n_action_steps or chunk_size
    assert later == [k for k in range(max(needed) + 1, len(FRAMES)) if k > len(shown) * steps - n_obs_steps]


def test_actions_are_those_of_the_chunks_in_order(model, processor, prompts):
    policy = WorldVLAPolicy(model, processor, n_obs_steps=2, chunk_size=4, n_action_steps=3)
    policy.reset(TASK)
    found = np.stack([policy.select_action({"agentview": frame}) for frame in FRAMES[:6]])

    chunks = []
    for number, pair in enumerate(([0, 0], [2, 3])):
        inputs = processor([FRAMES[k] for k in pair], text=TASK, return_tensors="pt")
        assert torch.equal(prompts[number]["input_ids"], inputs["input_ids"])
        chunk = model.predict_action_chunk(**inputs, chunk_size=4)
        assert chunk.shape == (1, 4, 7)
        chunks.append(processor.decode_actions(chunk)[0, :3])
    np.testing.assert_array_equal(found, np.concatenate(chunks))
    assert len(np.unique(found, axis=0)) >= 2, "the model's answers must differ for this to mean something"


def test_reset_forgets_the_episode(model, processor, prompts):
    policy = WorldVLAPolicy(model, processor, n_obs_steps=2, chunk_size=3)
    policy.reset(TASK)
    policy.select_action({"agentview": FRAMES[0]})
    policy.select_action({"agentview": FRAMES[1]})  # one action of the chunk is left
    policy.reset("open the drawer")
    action = policy.select_action({"agentview": FRAMES[2]})
    expected = processor([FRAMES[2], FRAMES[2]], text="open the drawer", return_tensors="pt")
    assert len(prompts) == 2
    assert torch.equal(prompts[1]["input_ids"], expected["input_ids"])
    fresh = WorldVLAPolicy(model, processor, n_obs_steps=2, chunk_size=3)
    fresh.reset("open the drawer")
    np.testing.assert_array_equal(action, fresh.select_action({"agentview": FRAMES[2]}))


def test_the_chosen_camera_is_looked_at(model, processor, encoded):
    policy = WorldVLAPolicy(model, processor, camera="wrist")
    policy.reset(TASK)
    policy.select_action({"agentview": FRAMES[0], "wrist": FRAMES[1]})
    assert numbers_of(encoded) == [1]


def test_sizes_come_from_the_checkpoint(make_model, processor):
    policy = WorldVLAPolicy(make_model(n_obs_steps=3, chunk_size=4).train(), processor)
    assert (policy.n_obs_steps, policy.chunk_size, policy.n_action_steps) == (3, 4, 4)
    assert not policy.model.training


@pytest.mark.parametrize("n_action_steps", [-1, 0, 5])
def test_more_actions_than_a_chunk_has_are_refused(model, processor, n_action_steps):
    with pytest.raises(ValueError, match=f"`n_action_steps` must lie in 1 … 4, got {n_action_steps}"):
        WorldVLAPolicy(model, processor, chunk_size=4, n_action_steps=n_action_steps)


def test_limits_of_several_data_sets(model, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    limits = processor.action_tokenizer.limits
    (known,) = limits
    twice = {key: [2 * value for value in values] for key, values in limits[known].items()}
    both = WorldVLAProcessor.from_pretrained(tmp_path, action_limits={**limits, "twice": twice})
    with pytest.raises(ValueError, match="several data sets: .*, twice. Say whose"):
        WorldVLAPolicy(model, both)
    with pytest.raises(ValueError, match="Unknown data set `twise`.*Did you mean `twice`"):
        WorldVLAPolicy(model, both, dataset_name="twise")
    found = [WorldVLAPolicy(model, both, dataset_name=name) for name in (known, "twice")]
    commands = []
    for policy in found:
        policy.reset(TASK)
        commands.append(policy.select_action({"agentview": FRAMES[0]}))
    np.testing.assert_allclose(commands[1], 2 * commands[0], atol=1e-9)
