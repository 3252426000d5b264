"""What a sample shows and what of it is learned: histories, rounds, tails, cameras, gaps."""

import datasets
import numpy as np
import pytest

from train.collation import IGNORED_LABEL
from train.episodes import SampleDataset, TokenizedEpisodes, TokenizedSplit
from train.windows import WindowOptions

from ..conftest import DATASET, GRID


def make_samples(episodes, processor, num_cameras=1, **options):
    options = {"n_obs_steps": 1, "chunk_size": 1} | options
    return SampleDataset(TokenizedSplit(episodes, GRID, num_cameras), processor, WindowOptions(**options), DATASET)


def learned(sample):
    return [token for token in sample["labels"] if token != IGNORED_LABEL]


def codes_of(tokens, layout):
    return [t for t in tokens if 0 <= t - layout.image_token_id_start < layout.num_image_tokens]


def bins_of(tokens, layout):
    return [t for t in tokens if 0 <= t - layout.action_token_id_start < layout.num_action_tokens]


def frames_of(episodes, episode=0, column="image_token_ids"):
    return np.array(episodes[episode][column]).reshape(-1, 4)


def test_samples_of_both_roles(samples, episodes, processor):
    layout = processor.vocabulary
    assert {role for role, _, _ in samples.windows} == {"policy", "world_model"}
    for index, (role, episode, step) in enumerate(samples.windows):
        sample = samples[index]
        answer = learned(sample)
        assert answer == sample["input_ids"][-len(answer) :]
        assert answer[-1] == layout.sep_token_id
        if role == "world_model":
            assert codes_of(answer, layout) == frames_of(episodes, episode)[step + 1].tolist()
        else:
            wanted = np.array(episodes[episode]["expert_actions"]).reshape(-1, 7)[step : step + 2]
            assert bins_of(answer, layout) == processor.encode_actions(wanted).reshape(-1).tolist()


def test_world_model_samples_show_the_last_pairs_and_fewer_at_the_start(episodes, processor):
    samples = make_samples(episodes, processor, world_model_history=3, policy_samples=False)
    layout, frames = processor.vocabulary, frames_of(episodes)
    for step, pairs in ((0, 1), (1, 2), (2, 3), (4, 3)):
        tokens = samples[samples.windows.index(("world_model", 0, step))]["input_ids"]
        assert tokens.count(layout.boa_token_id) == pairs
        assert codes_of(tokens, layout) == frames[step + 1 - pairs : step + 2].reshape(-1).tolist()


@pytest.mark.parametrize("history", [1, 2])
def test_rounds_learn_every_frame_that_an_action_led_to(episodes, processor, history):
    options = {"world_model_history": history, "world_model_rounds": 3, "policy_samples": False}
    samples = make_samples(episodes, processor, **options)
    layout, frames = processor.vocabulary, frames_of(episodes)
    step = 1
    sample = samples[samples.windows.index(("world_model", 0, step))]
    first = step + 1 - history
    assert codes_of(sample["input_ids"], layout) == frames[first : step + 4].reshape(-1).tolist()
    assert sample["input_ids"].count(layout.boa_token_id) == history + 2
    assert codes_of(learned(sample), layout) == frames[step + 1 : step + 4].reshape(-1).tolist()
    # Of each frame in between all but the token that begins it; of the last one all, and the separator.
    assert learned(sample).count(layout.boi_token_id) == 1
    assert learned(sample).count(layout.eoi_token_id) == learned(sample).count(layout.eol_token_id) / 2 == 3
    assert not bins_of(learned(sample), layout)
    one = make_samples(episodes, processor, world_model_history=history + 2, policy_samples=False)
    assert one[one.windows.index(("world_model", 0, step + 2))]["input_ids"] == sample["input_ids"]


def test_padded_tails_have_whole_chunks_of_which_the_real_part_is_learned(episodes, processor):
    layout = processor.vocabulary
    padded, short = (
        make_samples(episodes, processor, chunk_size=3, tail=tail, world_model_samples=False)
        for tail in ("pad", "shorten")
    )
    for index, (_, episode, step) in enumerate(padded.windows):
        actions = processor.encode_actions(np.array(episodes[episode]["expert_actions"]).reshape(-1, 7))
        real, last = actions[step : step + 3], actions[-1]
        ids, labels = padded[index]["input_ids"], padded[index]["labels"]
        assert bins_of(ids, layout) == [*real.reshape(-1), *(3 - len(real)) * last.tolist()]
        assert bins_of(labels, layout) == real.reshape(-1).tolist() and labels[-1] == layout.sep_token_id
        assert learned(padded[index]) == learned(short[index])
        assert all(label in (token, IGNORED_LABEL) for token, label in zip(ids, labels, strict=True))


def test_several_cameras_are_shown_step_by_step(episodes, processor):
    other = [np.flip(row).astype(np.uint16) for row in episodes.with_format("numpy")[:]["image_token_ids"]]
    column = datasets.Dataset.from_dict({"image_token_ids_1": other})
    both = datasets.concatenate_datasets([episodes, column], axis=1)
    samples = make_samples(both, processor, 2, n_obs_steps=2, world_model_history=2)
    layout, frames = processor.vocabulary, [frames_of(both), frames_of(both, column="image_token_ids_1")]
    for step, shown in ((3, (2, 3)), (0, (0, 0))):
        tokens = samples[samples.windows.index(("policy", 0, step))]["input_ids"]
        expected = [code for t in shown for camera in frames for code in camera[t]]
        assert codes_of(tokens, layout) == expected
    index = next(i for i, (role, episode, step) in enumerate(samples.windows) if role == "world_model" and step == 1)
    _, episode, step = samples.windows[index]
    assert codes_of(samples[index]["input_ids"], layout) == frames_of(both, episode)[:3].reshape(-1).tolist()


def test_no_world_model_sample_reaches_across_a_gap():
    leading = [True, True, False, True, True, False]
    rows = {
        "instruction": ["lift"],
        "num_steps": [6],
        "image_token_ids": [list(range(6))],
        "actions": [[float(step) for step in range(6) for _ in range(7)]],
        "expert_actions": [[0.0] * 42],
    }
    shown = []

    class Recorder:
        def build_sample(self, frames, actions, **_):
            shown.append((np.concatenate(frames).ravel().tolist(), actions[:, 0].tolist()))

    options = WindowOptions(n_obs_steps=1, chunk_size=1, world_model_history=3, policy_samples=False)
    for columns in (rows | {"leads_to_next_frame": [leading]}, rows):  # without: written before gaps were noted
        split = TokenizedSplit(datasets.Dataset.from_dict(columns), (1, 1))
        samples = SampleDataset(split, Recorder(), options, "libero")
        for index in range(len(samples)):
            samples[index]
    assert shown[:4] == [([0, 1], [0]), ([0, 1, 2], [0, 1]), ([3, 4], [3]), ([3, 4, 5], [3, 4])]
    assert shown[4:] == [
        ([0, 1], [0]), ([0, 1, 2], [0, 1]), ([0, 1, 2, 3], [0, 1, 2]), ([1, 2, 3, 4], [1, 2, 3]),
        ([2, 3, 4, 5], [2, 3, 4]),
    ]  # fmt: skip


def test_rows_without_a_camera_of_the_card_are_refused(episodes, tmp_path):
    data = TokenizedEpisodes({"train": episodes}, {"grid": GRID, "cameras": ["agentview", "wrist"]}, tmp_path)
    with pytest.raises(ValueError, match="names 2 cameras, but the rows lack `image_token_ids_1`. Run train/pretok"):
        data.open_splits()


def test_commands_inside_the_dead_band_are_learned_as_zero(episodes, processor):
    band = [0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0]
    samples = make_samples(episodes, processor, world_model_samples=False, action_dead_band=band)
    wanted = np.array(episodes[0]["expert_actions"]).reshape(-1, 7)
    assert (np.abs(wanted[:, 3:6]) < 0.5).any() and (np.abs(wanted[:, 3:6]) > 0.5).any()
    quiet = wanted.copy()
    quiet[:, 3:6][np.abs(wanted[:, 3:6]) < 0.5] = 0
    for step in range(len(wanted)):
        answer = learned(samples[samples.windows.index(("policy", 0, step))])
        assert bins_of(answer, processor.vocabulary) == processor.encode_actions(quiet[step : step + 1])[0].tolist()


def test_a_dead_band_of_another_width_is_refused(episodes, processor):
    with pytest.raises(ValueError, match="7 numbers, one per action dimension, got 2"):
        make_samples(episodes, processor, action_dead_band=[0.1, 0.1])
