import numpy as np
import pytest
import torch

from evaluation.libero_env import OPEN_HAND_STILL
from evaluation.policies import ChunkRequest
from evaluation.worldvla_policy import WorldVLAPolicy
from tokenization import WorldVLAProcessor

FRAMES = np.random.default_rng(3).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
TASK = "lift the cup"


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.5)  # wide weights: answers that depend on the prompt


@pytest.fixture
def encoded(processor, monkeypatch):
    """The batches of images that go through the VQ-GAN, in order, as numbers of FRAMES."""
    batches, encode = [], processor.image_tokenizer.encode_each

    def record(images, *options):
        batches.append([next(k for k, frame in enumerate(FRAMES) if np.array_equal(frame, i)) for i in images])
        return encode(images, *options)

    monkeypatch.setattr(processor.image_tokenizer, "encode_each", record)
    return batches


@pytest.fixture
def prompts(model, monkeypatch):
    """What the model is asked, in order."""
    calls, predict = [], model.predict_action_chunk

    def record(**inputs):
        calls.append(inputs)
        return predict(**inputs)

    monkeypatch.setattr(model, "predict_action_chunk", record)
    return calls


def ask(policy, **episodes):
    """One batch of requests: episode name -> numbers of the new frames."""
    return policy.predict_chunks(
        [ChunkRequest(name, [{"agentview": FRAMES[k]} for k in numbers]) for name, numbers in episodes.items()]
    )


def expected(model, processor, numbers, task=TASK, chunk_size=4, **options):
    inputs = processor([FRAMES[k] for k in numbers], text=task, return_tensors="pt", **options)
    return processor.decode_actions(model.predict_action_chunk(**inputs, chunk_size=chunk_size))[0]


def test_frames_of_all_requests_are_encoded_in_one_batch_and_only_once(model, processor, encoded, prompts):
    policy = WorldVLAPolicy(model, processor, n_obs_steps=2, chunk_size=3)
    for name in "ab":
        policy.begin(name, TASK)
    ask(policy, a=[0], b=[5])
    ask(policy, a=[1, 2], b=[6, 7])
    ask(policy, b=[8])
    assert encoded == [[0, 5], [1, 2, 6, 7], [8]]
    assert [len(prompt["input_ids"]) for prompt in prompts] == [2, 2, 1]


def test_frames_that_no_prompt_shows_are_not_encoded(model, processor, encoded):
    policy = WorldVLAPolicy(model, processor, n_obs_steps=2, chunk_size=4)
    policy.begin("a", TASK)
    ask(policy, a=[0])
    ask(policy, a=[1, 2, 3, 4])
    assert encoded == [[0], [3, 4]]


@pytest.mark.parametrize(
    ("n_obs_steps", "asked", "shown"),
    [
        (1, [[0], [3], [6]], [[0], [3], [6]]),
        (2, [[0], [2, 3], [5, 6]], [[0, 0], [2, 3], [5, 6]]),
        (2, [[0], [1], [2]], [[0, 0], [0, 1], [1, 2]]),
        (3, [[0], [1, 2], [3, 4]], [[0, 0, 0], [0, 1, 2], [2, 3, 4]]),
    ],
)
def test_the_prompt_shows_the_last_frames_the_first_repeated(model, processor, n_obs_steps, asked, shown):
    policy = WorldVLAPolicy(model, processor, n_obs_steps=n_obs_steps, chunk_size=4)
    policy.begin("a", TASK)
    answers = [ask(policy, a=numbers)[0] for numbers in asked]
    for answer, numbers in zip(answers, shown, strict=True):
        np.testing.assert_array_equal(answer, expected(model, processor, numbers))
    assert len({answer.tobytes() for answer in answers}) > 1, "the model's answers must differ"


def test_a_batch_answers_as_single_requests_do(model, processor):
    tasks = {"a": TASK, "b": "open the top drawer of the cabinet", "c": "push the plate"}  # prompts of three lengths
    steps = [{"a": [0], "b": [4], "c": [8]}, {"a": [1, 2], "b": [5, 6], "c": [9, 10]}]
    together, alone = (WorldVLAPolicy(model, processor, n_obs_steps=2, chunk_size=4) for _ in range(2))
    for policy in (together, alone):
        for name, task in tasks.items():
            policy.begin(name, task)
    for step in steps:
        batch = ask(together, **step)
        singles = [ask(alone, **{name: numbers})[0] for name, numbers in step.items()]
        np.testing.assert_array_equal(np.array(batch), np.array(singles))
        assert len({chunk.tobytes() for chunk in batch}) == 3, "the episodes' answers must differ"


def test_only_the_first_actions_of_a_chunk_are_given(model, processor):
    policy = WorldVLAPolicy(model, processor, n_obs_steps=2, chunk_size=4, n_action_steps=3)
    policy.begin("a", TASK)
    np.testing.assert_array_equal(ask(policy, a=[0])[0], expected(model, processor, [0, 0])[:3])


def test_an_episode_is_forgotten_when_it_ends_or_begins_anew(model, processor):
    policy = WorldVLAPolicy(model, processor, n_obs_steps=2, chunk_size=4)
    policy.begin("a", TASK)
    ask(policy, a=[0])
    policy.begin("a", "push the plate")
    np.testing.assert_array_equal(ask(policy, a=[1])[0], expected(model, processor, [1, 1], "push the plate"))
    policy.end("a")
    policy.end("never begun")
    with pytest.raises(ValueError, match="Episode `a` asks for actions but has not begun"):
        ask(policy, a=[2])


def test_history_actions_are_the_commands_between_the_frames(model, processor, prompts):
    policy = WorldVLAPolicy(model, processor, n_obs_steps=3, chunk_size=4, n_action_steps=1, history_actions=True)
    policy.begin("a", TASK)
    first = ask(policy, a=[0])[0]
    second = ask(policy, a=[1])[0]
    ask(policy, a=[2])
    still = OPEN_HAND_STILL
    for prompt, numbers, between in zip(
        prompts, ([0, 0, 0], [0, 0, 1], [0, 1, 2]), ([still, still], [still, *first], [*first, *second]), strict=True
    ):
        images = [FRAMES[k] for k in numbers]
        wanted = processor(images, text=TASK, history_actions=np.array(between), return_tensors="pt")
        assert torch.equal(prompt["input_ids"], wanted["input_ids"])


def test_the_chosen_camera_is_looked_at(model, processor, encoded):
    policy = WorldVLAPolicy(model, processor, cameras=["wrist"])
    assert policy.cameras == ("wrist",)
    policy.begin("a", TASK)
    policy.predict_chunks([ChunkRequest("a", [{"agentview": FRAMES[0], "wrist": FRAMES[1]}])])
    assert encoded == [[1]]
    with pytest.raises(ValueError, match=r"Episode `a` shows no camera `wrist`, only: agentview\. Open the simulator"):
        ask(policy, a=[0])


def test_several_cameras_are_shown_step_by_step(model, processor, encoded):
    policy = WorldVLAPolicy(model, processor, cameras=["agentview", "wrist"], n_obs_steps=2, chunk_size=4)
    policy.begin("a", TASK)
    for asked, shown in (([(0, 1)], [0, 1, 0, 1]), ([(2, 3)], [0, 1, 2, 3]), ([(4, 5), (6, 7)], [4, 5, 6, 7])):
        observations = [{"agentview": FRAMES[a], "wrist": FRAMES[b]} for a, b in asked]
        (answer,) = policy.predict_chunks([ChunkRequest("a", observations)])
        np.testing.assert_array_equal(answer, expected(model, processor, shown))
    assert policy.describe()["cameras"] == ["agentview", "wrist"]
    with pytest.raises(ValueError, match="shows one camera. Leave `--history_actions` out"):
        WorldVLAPolicy(model, processor, cameras=["agentview", "wrist"], history_actions=True)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([ChunkRequest("a", [{"agentview": FRAMES[0]}])] * 2, "Episode `a` asks twice in one batch"),
        ([ChunkRequest("a", [])], "Episode `a` asks without a new observation"),
        ([ChunkRequest("z", [{"agentview": FRAMES[0]}])], "Episode `z` asks for actions but has not begun"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(model, processor, requests, message):
    policy = WorldVLAPolicy(model, processor)
    policy.begin("a", TASK)
    with pytest.raises(ValueError, match=message):
        policy.predict_chunks(requests)


def test_no_request_no_answer(model, processor, prompts):
    assert WorldVLAPolicy(model, processor).predict_chunks([]) == []
    assert prompts == []


def test_sizes_come_from_the_checkpoint(make_model, processor):
    policy = WorldVLAPolicy(make_model(n_obs_steps=3, chunk_size=4).train(), processor, fingerprint="abc")
    assert not policy.model.training
    assert policy.describe() == {
        "policy": "worldvla",
        "checkpoint_fingerprint": "abc",
        "cameras": ["agentview"],
        "n_obs_steps": 3,
        "chunk_size": 4,
        "n_action_steps": 4,
        "dataset_name": "made_up",
        "history_actions": False,
        "dtype": "float32",
    }


@pytest.mark.parametrize("n_action_steps", [-1, 0, 5])
def test_more_actions_than_a_chunk_has_are_refused(model, processor, n_action_steps):
    with pytest.raises(ValueError, match=f"`n_action_steps` must lie in 1 … 4, got {n_action_steps}"):
        WorldVLAPolicy(model, processor, chunk_size=4, n_action_steps=n_action_steps)


def test_limits_of_several_data_sets(model, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    limits = processor.action_tokenizer.limits
    (known,) = limits
    half = {key: [value / 2 for value in values] for key, values in limits[known].items()}
    both = WorldVLAProcessor.from_pretrained(tmp_path, action_limits={**limits, "half": half})
    with pytest.raises(ValueError, match="several data sets: .*, half. Say whose"):
        WorldVLAPolicy(model, both)
    with pytest.raises(ValueError, match="Unknown data set `halt`.*Did you mean `half`"):
        WorldVLAPolicy(model, both, dataset_name="halt")
    answers = []
    for name in (known, "half"):
        policy = WorldVLAPolicy(model, both, dataset_name=name)
        policy.begin("a", TASK)
        answers += ask(policy, a=[0])
    np.testing.assert_allclose(answers[1], answers[0] / 2, atol=1e-9)
