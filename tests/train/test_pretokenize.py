"""What becomes of commands that lie outside the limits: measured, counted, reported."""

import json
import logging

import numpy as np
import pytest

import train.pretokenize
from tokenization.demonstrations import Demonstration
from train.demonstration_tasks import DemonstrationTask
from train.pretokenize import build_processor, describe, main
from train.pretokenize_arguments import PretokenizeArguments

from ..conftest import DATASET

ARGUMENTS = {"demonstrations": ["demos"], "output_dir": "tokens", "dataset_name": DATASET}


class MadeUpEpisode(Demonstration):
    """Commands alone, and black pictures."""

    @property
    def actions(self):
        return np.arange(11.0)[:, None] * np.ones(7)

    @property
    def proprioception(self):
        return np.zeros((11, 8))

    def frames(self, camera="agentview", steps=slice(None)):
        return np.zeros((11, 32, 32, 3), np.uint8)[steps]

    def files(self, camera):
        return ()


@pytest.mark.parametrize("quantile", [0.0, 0.1])
def test_limits_are_measured_at_the_quantile(processor, monkeypatch, quantile):
    monkeypatch.setattr(train.pretokenize, "load_vq_model", lambda _: processor.vq_model)
    episodes = [MadeUpEpisode("a.hdf5", "demo_0", "lift", 11, ("agentview",))]
    arguments = PretokenizeArguments(**ARGUMENTS, vq_model="vqgan", action_quantile=quantile, num_text_tokens=300)
    built = build_processor(arguments, [episodes], [["train"]])
    limits = built.action_tokenizer.limits[DATASET]
    assert limits == {"low": [10.0 * quantile] * 7, "high": [10 - 10.0 * quantile] * 7}
    card = describe(arguments, [DemonstrationTask("a", "a.hdf5", episodes)], built, {"train": np.arange(1)})
    assert card["action_values"] == 77 and card["clipped_action_values"] == (0 if quantile == 0 else 14)
    assert card["clipped_action_values_by_dimension"] == [0 if quantile == 0 else 2] * 7
    assert card["sources"] == [{"file": "a.hdf5", "tasks": 1, "episodes": 1}]


def test_the_share_of_clipped_values_is_said(tmp_path, monkeypatch, caplog):
    card = {"steps": 10, "splits": {"train": 1}, "action_values": 70, "clipped_action_values": 7}
    (tmp_path / "data_card.json").write_text(json.dumps(card))
    monkeypatch.setattr(train.pretokenize, "pretokenize", lambda _: tmp_path)
    with caplog.at_level(logging.INFO, logger="worldvla.pretokenize"):
        main(["--demonstrations", "demos", "--output_dir", str(tmp_path), "--vq_model", "vqgan"])
    assert "7 of 70 action values (10 %) lie outside the limits" in caplog.text


def test_a_data_set_without_limits_is_refused_before_anything_is_encoded(processor, monkeypatch):
    monkeypatch.setattr(train.pretokenize.WorldVLAProcessor, "from_pretrained", lambda _: processor)
    arguments = PretokenizeArguments(**{**ARGUMENTS, "dataset_name": "made_upp"}, processor="processor")
    with pytest.raises(ValueError, match="Unknown data set `made_upp`.*Did you mean `made_up`?"):
        build_processor(arguments, [], [])


def test_images_of_several_sizes_are_refused_before_anything_is_encoded(processor, monkeypatch):
    monkeypatch.setattr(train.pretokenize.WorldVLAProcessor, "from_pretrained", lambda _: processor)
    monkeypatch.setattr(processor, "crop", "variable")
    with pytest.raises(ValueError, match="images of one size, but the processor has `crop='variable'`. Load it with"):
        build_processor(PretokenizeArguments(**ARGUMENTS, processor="processor"), [], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vq_model": "v", "action_quantile": 0.5}, r"`--action_quantile` must lie in \[0, 0.5\), got 0.5"),
        ({"processor": "p", "action_quantile": 0.1}, "`--processor` brings its own. Leave one of them out"),
        ({"vq_model": "v", "binning": "offical"}, "Unknown binning `offical`.*Did you mean `official`?"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PretokenizeArguments(**ARGUMENTS, **options)
