"""Best of n: the candidate with the best imagined future is chosen, and nothing else decides."""

import numpy as np
import pytest
import torch
from PIL import Image

import evaluation.ranking
from evaluation.imagination_streams import ImaginedFrame, stream_actions
from evaluation.policies import ChunkRequest
from evaluation.policy_arguments import PolicyArguments
from evaluation.ranking import ChunkRanker, Situation
from evaluation.ranking_scores import GoalScore
from evaluation.worldvla_policy import WorldVLAPolicy

TASKS = ["lift the cup", "open the top drawer of the cabinet", "push the plate"]
FRAMES = np.random.default_rng(3).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.5, chunk_size=4, world_model_history=2, max_position_embeddings=256).eval()


class Rated:
    """A score that is a function of the frame's tokens."""

    def __init__(self, rate=lambda frame: 0.0):
        self.frame_score = rate

    def check_instruction(self, instruction):
        if instruction not in TASKS:
            raise ValueError(f"unknown task {instruction}")

    def rate(self, image_ids, instruction):
        return np.array([self.frame_score(frame) for frame in image_ids])

    def describe(self):
        return {"kind": "made up"}


def mixed(frame):
    """A score that differs between most frames."""
    return float((frame.double() * torch.tensor([[1.0, 3.3], [7.1, 0.4]])).sum() % 5)


def make_situations(processor, counts=(1, 2, 2)):
    generator, layout = torch.Generator().manual_seed(3), processor.vocabulary
    situations = []
    for place, count in enumerate(counts):
        images = torch.randint(0, layout.num_image_tokens, (count, 2, 2), generator=generator)
        actions = torch.randint(0, layout.num_action_tokens, (count - 1, 7), generator=generator)
        images, actions = images + layout.image_token_id_start, actions + layout.action_token_id_start
        situations.append(Situation(images, actions, TASKS[place], f"decision {place}"))
    return situations


def decide(model, processor, situations, score, count=4, n_action_steps=4, **options):
    ranker = ChunkRanker(model, processor, score, count, n_action_steps, **options)
    inputs = processor(
        images=[list(situation.image_ids.numpy()) for situation in situations],
        text=[situation.instruction for situation in situations],
        return_tensors="pt",
    )
    greedy = model.predict_action_chunk(**inputs)
    return greedy, ranker.choose(inputs, greedy, situations)


def test_the_candidate_with_the_best_future_is_chosen(model, processor, monkeypatch):
    """A world model that shows the last command's first number, and a score that wants it to be a certain one."""

    def show_commands(model, processor, image_ids, action_ids):
        for step in range(image_ids.shape[1] - 1, action_ids.shape[1]):
            yield ImaginedFrame(action_ids[:, step, :1, None].expand(-1, 2, 2), action_ids[:, step], torch.zeros(1))

    monkeypatch.setattr(evaluation.ranking, "stream_actions", show_commands)
    situations = make_situations(processor)
    _, first = decide(model, processor, situations, Rated(), count=6)
    for wanted in range(6):
        for row in range(3):
            target = first.candidates[row, wanted, -1, 0]
            _, found = decide(
                model, processor, situations, Rated(lambda frame, t=target: -abs(int(frame[0, 0] - t))), count=6
            )
            assert torch.equal(found.candidates, first.candidates)
            firsts = first.candidates[row, :, -1, 0].tolist()
            assert found.chosen[row] == firsts.index(int(target))  # the first that shows it
            assert torch.equal(found.action_ids[row], found.candidates[row, found.chosen[row]])
    assert len({int(value) for value in first.candidates[:, :, -1, 0].flatten()}) > 3, "candidates must differ"


def test_scores_are_those_of_each_candidate_imagined_alone(model, processor):
    situations = make_situations(processor)
    greedy, found = decide(model, processor, situations, Rated(mixed), n_action_steps=3)
    assert torch.equal(found.candidates[:, 0], greedy)
    for row, situation in enumerate(situations):
        for number in range(4):
            actions = torch.cat([situation.action_ids, found.candidates[row, number, :3]])[None]
            *_, last = stream_actions(model, processor, situation.image_ids[None], actions)
            assert found.scores[row, number] == mixed(last.image_ids[0])
        assert found.chosen[row] == int(np.flatnonzero(found.scores[row] == found.scores[row].max())[0])
    assert found.chosen.any(), "another than the greedy chunk must win somewhere"


def test_equal_scores_leave_the_policys_own_chunk(model, processor):
    greedy, found = decide(model, processor, make_situations(processor), Rated())
    assert not found.chosen.any() and torch.equal(found.action_ids, greedy)


def test_what_is_drawn_does_not_depend_on_the_batch(model, processor):
    situations = make_situations(processor)
    _, together = decide(model, processor, situations, Rated(mixed))
    for order in ([0], [1], [2], [2, 0, 1]):
        _, found = decide(model, processor, [situations[row] for row in order], Rated(mixed))
        assert torch.equal(found.candidates, together.candidates[order])
        np.testing.assert_array_equal(found.scores, together.scores[order])


def test_more_candidates_keep_the_first_ones(model, processor):
    situations = make_situations(processor)
    _, few = decide(model, processor, situations, Rated(), count=3)
    _, many = decide(model, processor, situations, Rated(), count=6)
    assert torch.equal(many.candidates[:, :3], few.candidates)
    assert not torch.equal(many.candidates[:, 1], many.candidates[:, 2])


def test_seed_name_and_temperature_decide_what_is_drawn(model, processor):
    situations = make_situations(processor, counts=(2,))
    renamed = [Situation(s.image_ids, s.action_ids, s.instruction, "another") for s in situations]
    drawn = [
        decide(model, processor, which, Rated(), **options)[1].candidates
        for which, options in ((situations, {}), (situations, {"seed": 1}), (renamed, {}))
    ]
    assert torch.equal(decide(model, processor, situations, Rated())[1].candidates, drawn[0])
    assert not any(torch.equal(drawn[0][:, 1:], other[:, 1:]) for other in drawn[1:])
    cold = decide(model, processor, situations, Rated(), temperature=1e-4)[1].candidates
    assert torch.equal(cold, cold[:, :1].expand_as(cold))  # greedy, all of them


def test_only_what_fits_the_history_is_shown(model, processor):
    """A checkpoint with a history of 1 is shown the last frame alone."""
    (situation,) = make_situations(processor, counts=(2,))
    model.config.world_model_history = 1
    _, found = decide(model, processor, [situation], Rated(mixed))
    last = Situation(situation.image_ids[-1:], situation.action_ids[:0], situation.instruction, situation.name)
    for number in range(4):
        *_, frame = stream_actions(model, processor, last.image_ids[None], found.candidates[:, number])
        assert found.scores[0, number] == mixed(frame.image_ids[0])


def test_one_candidate_leaves_nothing_to_rank(model, processor):
    with pytest.raises(ValueError, match="`num_candidates` must be at least 2, got 1"):
        ChunkRanker(model, processor, Rated(), 1, 4)


# In the policy


def make_policy(model, processor, ranker_options=None, **options):
    policy = WorldVLAPolicy(model, processor, **{"n_obs_steps": 2, "chunk_size": 4, **options})
    if ranker_options is not None:
        score = ranker_options.pop("score", Rated(mixed))
        policy.ranker = ChunkRanker(model, processor, score, 4, policy.n_action_steps, **ranker_options)
    return policy


def ask(policy, **episodes):
    return policy.predict_chunks(
        [ChunkRequest(name, [{"agentview": FRAMES[k]} for k in numbers]) for name, numbers in episodes.items()]
    )


def play(policy, name, numbers):
    policy.begin(name, TASKS[0])
    return np.array([ask(policy, **{name: step})[0] for step in numbers])


STEPS = [[0], [1, 2], [3, 4], [5, 6]]


def test_a_policy_that_ranks_by_nothing_is_the_plain_policy(model, processor):
    plain = play(make_policy(model, processor), "a", STEPS)
    ranked = play(make_policy(model, processor, {"score": Rated()}), "a", STEPS)
    np.testing.assert_array_equal(plain, ranked)
    assert not np.array_equal(plain, play(make_policy(model, processor, {}), "a", STEPS)), "ranking must matter"


def test_answers_depend_neither_on_names_nor_on_other_episodes(model, processor):
    alone = play(make_policy(model, processor, {}), "state 1 attempt 1", STEPS)
    policy = make_policy(model, processor, {})
    play(policy, "b", STEPS[:2])  # is one decision ahead, and has other frames
    policy.begin("state 1 attempt 2", TASKS[0])
    together = [ask(policy, **{"state 1 attempt 2": step, "b": [8, 9]})[0] for step in STEPS]
    np.testing.assert_array_equal(np.array(together), alone)


def test_decisions_of_an_episode_draw_apart(model, processor):
    drawn = []
    policy = make_policy(model, processor, {}, n_obs_steps=1)
    choose = policy.ranker.choose
    policy.ranker.choose = lambda *arguments: drawn.append(choose(*arguments)) or drawn[-1]
    play(policy, "a", [[0], [0]])
    assert torch.equal(drawn[0].candidates[:, 0], drawn[1].candidates[:, 0])  # the same frame is shown
    assert not torch.equal(drawn[0].candidates[:, 1:], drawn[1].candidates[:, 1:])


@pytest.mark.parametrize(("n_obs_steps", "n_action_steps"), [(1, 4), (2, 4), (3, 1)])
def test_the_world_model_is_shown_what_was_really_seen(model, processor, n_obs_steps, n_action_steps):
    shown = []
    policy = make_policy(model, processor, {}, n_obs_steps=n_obs_steps, n_action_steps=n_action_steps)
    choose = policy.ranker.choose
    policy.ranker.choose = lambda inputs, ids, situations: shown.extend(situations) or choose(inputs, ids, situations)
    steps = [[0], [1], [2]] if n_action_steps == 1 else [[0], [1, 2][-n_obs_steps:], [3, 4][-n_obs_steps:]]
    answers = play(policy, "a", steps)
    carried_out = [row for answer in answers for row in answer]
    for decision, situation in enumerate(shown):
        known = [number for step in steps[: decision + 1] for number in step][-n_obs_steps:]
        assert torch.equal(situation.image_ids, processor.encode_images([FRAMES[k] for k in known]))
        done = carried_out[: decision * n_action_steps]
        past = done[len(done) - len(known) + 1 :]
        assert situation.action_ids.shape == (len(known) - 1, 7)
        if past:
            np.testing.assert_array_equal(situation.action_ids, processor.encode_actions(np.array(past)))
    assert len(shown) == 3


def test_of_several_cameras_the_first_is_imagined(model, processor):
    policy = WorldVLAPolicy(model, processor, cameras=["agentview", "wrist"], n_obs_steps=1, chunk_size=4)
    goals = {TASKS[0]: processor.encode_images([FRAMES[7]])}
    policy.ranker = ChunkRanker(model, processor, GoalScore(processor.image_tokenizer, goals), 4, 4)
    shown, choose = [], policy.ranker.choose
    policy.ranker.choose = lambda inputs, ids, situations: shown.extend(situations) or choose(inputs, ids, situations)
    policy.begin("a", TASKS[0])
    policy.predict_chunks([ChunkRequest("a", [{"agentview": FRAMES[0], "wrist": FRAMES[1]}])])
    assert torch.equal(shown[0].image_ids, processor.encode_images([FRAMES[0]]))


def test_settings_tell_of_the_ranking(model, processor):
    plain = make_policy(model, processor).describe()
    ranked = make_policy(model, processor, {"seed": 5, "temperature": 0.7}).describe()
    assert ranked.pop("best_of") == {
        "candidates": 4,
        "temperature": 0.7,
        "sampling_seed": 5,
        "score": {"kind": "made up"},
    }
    assert ranked == plain and "best_of" not in plain


def test_an_unknown_task_is_refused_when_it_begins(model, processor):
    with pytest.raises(ValueError, match="unknown task wash the car"):
        make_policy(model, processor, {}).begin("a", "wash the car")


# From options


@pytest.fixture
def checkpoint(make_model, processor, tmp_path):
    make_model(chunk_size=4).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.fixture
def goals(tmp_path):
    (tmp_path / "goals").mkdir()
    Image.fromarray(FRAMES[0]).save(tmp_path / "goals" / "lift_the_cup.png")
    return str(tmp_path / "goals")


def test_the_options_make_the_ranking(checkpoint, goals):
    options = PolicyArguments(
        checkpoint=checkpoint, best_of=3, goal=[goals], temperature=0.5, sampling_seed=7, n_action_steps=2
    )
    policy = WorldVLAPolicy.from_arguments(options, ["lift the cup"])
    ranker = policy.ranker
    assert (ranker.num_candidates, ranker.temperature, ranker.seed, ranker.n_action_steps) == (3, 0.5, 7, 2)
    assert policy.describe()["best_of"]["score"]["goals"] == 1
    policy.begin("a", "lift the cup")
    assert ask(policy, a=[0])[0].shape == (2, 7)
    assert WorldVLAPolicy.from_arguments(PolicyArguments(checkpoint=checkpoint)).ranker is None


def test_tasks_without_a_goal_are_refused_before_anything_starts(checkpoint, goals):
    options = PolicyArguments(checkpoint=checkpoint, best_of=3, goal=[goals])
    with pytest.raises(ValueError, match="Unknown task of `--goal` `lift the cap`.*Did you mean `lift the cup`"):
        WorldVLAPolicy.from_arguments(options, ["lift the cup", "lift the cap"])


def test_a_policy_without_a_world_model_cannot_rank(make_model, processor, tmp_path, goals):
    make_model(world_model_loss_weight=0.0).save_pretrained(tmp_path / "policy")
    processor.save_pretrained(tmp_path / "policy")
    options = PolicyArguments(checkpoint=str(tmp_path / "policy"), best_of=2, goal=[goals])
    with pytest.raises(ValueError, match="policy` was trained as a policy only: its world model has learned nothing"):
        WorldVLAPolicy.from_arguments(options)
