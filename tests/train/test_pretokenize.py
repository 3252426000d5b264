"""What becomes of commands that lie outside the limits: measured, counted, reported; options that cannot be."""

import json
import logging

import datasets
import numpy as np
import pytest

import train.data_processor
import train.pretokenize
from tokenization.demonstrations import Demonstration
from train.data_cards import describe_data
from train.data_processor import build_processor, commands_of_episodes, commands_of_rows, measure_limits
from train.demonstration_tasks import DemonstrationTask
from train.pretokenize import main
from train.pretokenize_arguments import DemonstrationArguments, PretokenizeArguments

from ..conftest import DATASET

ARGUMENTS = {"demonstrations": ["demos"], "output_dir": "tokens", "dataset_name": DATASET}


class MadeUpEpisode(Demonstration):
    """Commands alone, and black pictures."""

    @property
    def actions(self):
        return np.arange(11.0, dtype=np.float32)[:, None] * np.ones(7, np.float32)

    @property
    def proprioception(self):
        return np.zeros((11, 8))

    def frames(self, camera="agentview", steps=slice(None)):
        return np.zeros((11, 32, 32, 3), np.uint8)[steps]

    def files(self, camera):
        return ()


@pytest.mark.parametrize("quantile", [0.0, 0.1])
def test_limits_are_measured_at_the_quantile(processor, monkeypatch, quantile):
    monkeypatch.setattr(train.data_processor, "load_vq_model", lambda _: processor.vq_model)
    tasks = [DemonstrationTask("a", "a.hdf5", [MadeUpEpisode("a.hdf5", "demo_0", "lift", 11, ("agentview",))])]
    arguments = PretokenizeArguments(**ARGUMENTS, vq_model="vqgan", action_quantile=quantile, num_text_tokens=300)
    limits = measure_limits(commands_of_episodes(tasks[0].episodes), quantile)
    built = build_processor(arguments, tasks, DATASET, limits)
    assert built.action_tokenizer.limits[DATASET] == limits
    assert limits == {"low": [10.0 * quantile] * 7, "high": [10 - 10.0 * quantile] * 7}
    splits = {"train": tasks[0].episodes}
    commands = {name: commands_of_episodes(episodes) for name, episodes in splits.items()}
    card = describe_data(arguments, tasks, built, DATASET, splits, commands)
    assert card["action_values"] == 77 and card["clipped_action_values"] == (0 if quantile == 0 else 14)
    assert card["clipped_action_values_by_dimension"] == [0 if quantile == 0 else 2] * 7
    assert card["clipped_by_split"] == {"train": [0 if quantile == 0 else 2 / 11] * 7}
    assert card["action_limits"] == limits and card["splits"] == {"train": 1}
    assert card["sources"] == [{"file": "a.hdf5", "tasks": 1, "episodes": 1}]


@pytest.mark.parametrize("bins", [256, 64])
def test_a_vocabulary_has_as_many_bins_as_asked(processor, monkeypatch, bins):
    monkeypatch.setattr(train.data_processor, "load_vq_model", lambda _: processor.vq_model)
    tasks = [DemonstrationTask("a", "a.hdf5", [MadeUpEpisode("a.hdf5", "demo_0", "lift", 11, ("agentview",))])]
    arguments = PretokenizeArguments(**ARGUMENTS, vq_model="vqgan", num_text_tokens=300, num_action_bins=bins)
    built = build_processor(arguments, tasks, DATASET, {"low": [-1.0] * 7, "high": [1.0] * 7})
    assert built.model_config()["num_action_tokens"] == built.action_tokenizer.num_bins == bins
    ids = built.encode_actions(np.linspace(-1, 1, 1001)[:, None] * np.ones(7))
    assert len(np.unique(ids)) == bins


@pytest.mark.parametrize("quantile", [0.0, 0.2])
def test_limits_do_not_depend_on_how_many_rows_are_read_at_once(monkeypatch, quantile):
    actions = np.random.default_rng(0).normal(size=(5, 4 * 7)).astype(np.float32)
    rows = datasets.Dataset.from_dict({"actions": actions, "expert_actions": 2 * actions})
    expected = np.concatenate([actions, 2 * actions]).reshape(-1, 7)
    for at_once in (2, 1000):
        monkeypatch.setattr(train.data_processor, "EPISODES_READ_AT_ONCE", at_once)
        limits = measure_limits(commands_of_rows(rows), quantile)
        np.testing.assert_allclose(limits["low"], np.quantile(expected, quantile, axis=0), rtol=1e-6)
        np.testing.assert_allclose(limits["high"], np.quantile(expected, 1 - quantile, axis=0), rtol=1e-6)


def test_the_share_of_clipped_values_is_said(tmp_path, monkeypatch, caplog):
    card = {"steps": 10, "splits": {"train": 1}, "action_values": 70, "clipped_action_values": 7}
    (tmp_path / "data_card.json").write_text(json.dumps(card))
    monkeypatch.setattr(train.pretokenize, "pretokenize", lambda _: tmp_path)
    with caplog.at_level(logging.INFO, logger="worldvla.pretokenize"):
        main(["--demonstrations", "demos", "--output_dir", str(tmp_path), "--vq_model", "vqgan"])
    assert "7 of 70 action values (10 %) lie outside the limits" in caplog.text


def test_a_data_set_without_limits_is_refused_before_anything_is_encoded(processor, monkeypatch):
    monkeypatch.setattr(train.data_processor.WorldVLAProcessor, "from_pretrained", lambda _: processor)
    arguments = PretokenizeArguments(**ARGUMENTS, processor="processor")
    with pytest.raises(ValueError, match="Unknown data set `made_upp`.*Did you mean `made_up`?"):
        build_processor(arguments, [], "made_upp")


def test_images_of_several_sizes_are_refused_before_anything_is_encoded(processor, monkeypatch):
    monkeypatch.setattr(train.data_processor.WorldVLAProcessor, "from_pretrained", lambda _: processor)
    monkeypatch.setattr(processor, "crop", "variable")
    with pytest.raises(ValueError, match="images of one size, but the processor has `crop='variable'`. Load it with"):
        build_processor(PretokenizeArguments(**ARGUMENTS, processor="processor"), [], DATASET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vq_model": "v", "action_quantile": 0.5}, r"`--action_quantile` must lie in \[0, 0.5\), got 0.5"),
        ({"processor": "p", "action_quantile": 0.1}, "`--processor` brings its own. Leave one of them out"),
        ({"vq_model": "v", "binning": "offical"}, "Unknown binning `offical`.*Did you mean `official`?"),
        ({"vq_model": "v", "cameras": ["wrist", "wrist"]}, "`--cameras` must name cameras, each of them once, got"),
        ({"vq_model": "v", "cameras": []}, r"each of them once, got \[\]"),
        ({"vq_model": "v", "demonstrations": []}, "Nothing to tokenize: give files, folders or data sets"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PretokenizeArguments(**ARGUMENTS | options)


def test_changed_options_are_named():
    assert DemonstrationArguments().changed() == []
    assert DemonstrationArguments(cameras=["wrist"], split_seed=3).changed() == ["cameras", "split_seed"]
