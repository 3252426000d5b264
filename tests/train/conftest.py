import datasets
import numpy as np
import pytest

from train.episodes import SampleDataset, TokenizedSplit
from train.windows import WindowOptions

from ..conftest import DATASET, GRID


@pytest.fixture(scope="session")
def episodes(processor):
    """Three made-up tokenized episodes of 6, 5 and 4 steps, in the form that train/pretokenize.py writes."""
    generator = np.random.default_rng(0)
    first = processor.vocabulary.image_token_id_start
    rows = [
        {
            "task": "task",
            "episode": f"demo_{number}",
            "instruction": "lift the cup",
            "num_steps": steps,
            "image_token_ids": generator.integers(first, first + 16, steps * 4).astype(np.uint16),
            "actions": generator.uniform(-1, 1, steps * 7).astype(np.float32),
            "expert_actions": generator.uniform(-1, 1, steps * 7).astype(np.float32),
        }
        for number, steps in enumerate([6, 5, 4])
    ]
    return datasets.Dataset.from_list(rows)


@pytest.fixture(scope="session")
def samples(episodes, processor):
    return SampleDataset(
        TokenizedSplit(episodes, GRID), processor, WindowOptions(n_obs_steps=2, chunk_size=2), DATASET
    )
