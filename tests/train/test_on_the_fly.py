"""Tokenized on the fly equals pretokenized: the same episodes, limits and samples."""

import json

import h5py
import numpy as np
import pytest

import train.on_the_fly
import train.run
from train.arguments import DataArguments
from train.episodes import SampleDataset
from train.on_the_fly import LiveEpisodes, LiveSplit, open_data
from train.pretokenize import main as pretokenize
from train.pretokenize_arguments import DemonstrationArguments
from train.windows import WindowOptions

from .made_up_demonstrations import STEPS, write_demonstrations

OPTIONS = {"n_obs_steps": 2, "chunk_size": 3, "world_model_history": 2, "world_model_rounds": 2, "tail": "pad"}
TINY_MODEL = ["--hidden_size", "32", "--intermediate_size", "48", "--num_hidden_layers", "1", "--use_cpu", "true"]
TINY_MODEL += ["--num_attention_heads", "2", "--disable_tqdm", "true", "--max_steps", "2", "--save_strategy", "no"]


@pytest.fixture(scope="module")
def arguments(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    processor.vq_model.save_pretrained(folder / "vqgan" / "vq_model")
    path = write_demonstrations(folder / "square_demo.hdf5", 4, cameras=("agentview", "wrist"))
    with h5py.File(path, "a") as file:  # a step to leave out of one episode
        file["data/demo_1/actions"][2, :6] = 0
        file["data/demo_1/actions"][:, 6] = -1
    return {
        "demonstrations": [path], "vq_model": str(folder / "vqgan"), "cameras": ["wrist", "agentview"],
        "num_text_tokens": 300, "validation_fraction": 0.25, "drop_noops": True, "split_seed": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tokens(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    flags = [
        text
        for name, value in arguments.items()
        for text in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]
    pretokenize([*flags, "--output_dir", str(folder)])
    return str(folder)


def samples_of(episodes, processor):
    return {
        name: [*SampleDataset(split, processor, WindowOptions(**OPTIONS), "libero")]
        for name, split in episodes.open_splits().items()
    }


def test_the_samples_are_the_same(arguments, tokens):
    before, of_before = open_data(DataArguments(tokens=tokens), DemonstrationArguments())
    live, of_live = open_data(DataArguments(), DemonstrationArguments(**arguments))
    assert of_live.action_limits == of_before.action_limits
    assert of_live.image_token_hash() == of_before.image_token_hash()
    one, other = samples_of(before, of_before), samples_of(live, of_live)
    assert set(one) == {"train", "val_ind"} and len(one["train"]) > 20
    assert one == other
    same = set(before.card) - {"made_with", "software"}
    assert {key: before.card[key] for key in same} == {key: live.card[key] for key in same}
    assert before.card["dropped_noops"] == 1


def test_a_frame_is_encoded_once_while_it_is_kept(arguments, monkeypatch):
    live = LiveEpisodes.open(DemonstrationArguments(**arguments), "libero")
    encoded = []

    class Counting:
        def encode_images(self, images):
            encoded.append(len(images))
            return live.processor.encode_images(images)

    split = LiveSplit(live.splits["train"], ["agentview"], Counting())
    first = split.frames(0, slice(0, 4))
    np.testing.assert_array_equal(split.frames(0, slice(2, 5))[:2], first[2:])
    assert encoded == [4, 1] and first.shape == (4, 1, 2, 2)
    monkeypatch.setattr(train.on_the_fly, "FRAMES_KEPT", 2)
    split.frames(0, slice(0, 4))
    np.testing.assert_array_equal(split.frames(0, slice(0, 4)), first)
    assert encoded == [4, 1, 2]


def test_training_reads_demonstrations(arguments, tmp_path):
    flags = [f"--demonstrations={arguments['demonstrations'][0]}", "--vq_model", arguments["vq_model"]]
    flags += ["--num_text_tokens", "300", "--output_dir", str(tmp_path / "run"), "--dataset_name", "squares"]
    flags += ["--cameras", "agentview", "wrist", "--tail", "pad", "--world_model_rounds", "2"]
    metrics = train.run.main([*flags, *TINY_MODEL])
    assert metrics["eval_val_ind_loss"] > 0
    card = json.loads((tmp_path / "run" / "data_card.json").read_text())
    assert card["dataset_name"] == "squares" and card["steps"] == 4 * STEPS
    assert card["cameras"] == ["agentview", "wrist"]
    used = json.loads((tmp_path / "run" / "training_args.json").read_text())
    assert used["demonstrations"]["num_text_tokens"] == 300


@pytest.mark.parametrize(
    ("data", "demonstrations", "message"),
    [
        ({}, {}, "exactly one of `--tokens`.*and `--demonstrations`"),
        ({"tokens": "t"}, {"demonstrations": ["d"], "vq_model": "v"}, "exactly one of `--tokens`"),
        ({"tokens": "t"}, {"cameras": ["wrist"]}, "`--cameras` says how demonstrations are read, but `--tokens` were"),
    ],
)
def test_data_that_cannot_be_meant_are_refused(data, demonstrations, message):
    with pytest.raises(ValueError, match=message):
        open_data(DataArguments(**data), DemonstrationArguments(**demonstrations))
