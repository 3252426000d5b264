"""What training reads of a data set stays on disk: the memory does not grow with its size."""

import tracemalloc

import datasets
import numpy as np
import pyarrow

from train.episodes import SampleDataset, TokenizedEpisodes
from train.token_shards import FEATURES
from train.windows import WindowOptions

from ..conftest import DATASET

EPISODES, STEPS, SIDE = 60, 2000, 8


def write_tokens(folder, first_token_id):
    """120,000 frames of 64 tokens: 15 MB, and 7 MB of commands."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(first_token_id, first_token_id + 16, (EPISODES, STEPS * SIDE * SIDE)).astype(np.uint16)
    actions = generator.uniform(-1, 1, (EPISODES, STEPS * 7)).astype(np.float32)
    rows = {
        "task": ["lift"] * EPISODES,
        "episode": [f"demo_{number}" for number in range(EPISODES)],
        "instruction": ["lift the cup"] * EPISODES,
        "num_steps": [STEPS] * EPISODES,
        "image_token_ids": list(tokens),
        "actions": list(actions),
        "expert_actions": list(actions),
        "leads_to_next_frame": [np.arange(STEPS) < STEPS - 1] * EPISODES,
    }
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, FEATURES)}).save_to_disk(folder)


def test_samples_leave_the_data_set_on_disk(processor, tmp_path):
    write_tokens(tmp_path / "episodes", processor.vocabulary.image_token_id_start)
    (tmp_path / "data_card.json").write_text(f'{{"grid": [{SIDE}, {SIDE}]}}')
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    split = TokenizedEpisodes.load(tmp_path).open_splits()["train"]
    samples = SampleDataset(split, processor, WindowOptions(n_obs_steps=2, chunk_size=10), DATASET)
    largest = 0
    for index in range(0, len(samples), len(samples) // 40):
        assert len(samples[index]["input_ids"]) > 2 * SIDE * SIDE
        largest = max(largest, pyarrow.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == 2 * EPISODES * STEPS
    assert largest + peak < 5e6, (largest, peak)  # of 22 MB; a list of the windows alone would be larger
