"""A folder of results belongs to one run."""

import json

import pytest

from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments
from train.checkpoints import checkpoint_name
from train.run_settings import SETTINGS, claim_folder, collect_settings


def settings_of(card=None, **changes):
    model = ModelArguments(hidden_size=changes.pop("hidden_size", 32))
    data = DataArguments(tokens=changes.pop("tokens", "t"), chunk_size=changes.pop("chunk_size", 5))
    training = WorldVLATrainingArguments(use_cpu=True, lr_scheduler_type=changes.pop("schedule", "cosine"), **changes)
    return collect_settings(model, data, training, card or {"episodes": 3})


@pytest.fixture
def taken(tmp_path):
    """The folder of a run that has written a checkpoint."""
    claim_folder(settings_of(), tmp_path, is_main_process=True)
    (tmp_path / checkpoint_name(3)).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 64}, "hidden_size: 32 -> 64"),
        ({"chunk_size": 7}, "chunk_size: 5 -> 7"),
        ({"learning_rate": 0.1}, "learning_rate: 0.0005 -> 0.1"),
        ({"seed": 7}, "seed: 42 -> 7"),
        ({"ema_decay": 0.9}, "ema_decay: 0.0 -> 0.9"),
        ({"gradient_accumulation_steps": 3}, "samples_per_step: 8 -> 24"),
        ({"max_steps": 9}, "max_steps: -1 -> 9"),
        ({"card": {"episodes": 4}}, "data_card: [0-9a-f]{16} -> [0-9a-f]{16}"),
    ],
)
def test_the_folder_of_another_run_is_refused(taken, changes, named):
    with pytest.raises(ValueError, match=rf"holds a run with other settings \({named}\)\. Choose another"):
        claim_folder(settings_of(**changes), taken, is_main_process=False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"logging_steps": 7, "save_steps": 9, "report_to": "tensorboard", "dataloader_num_workers": 2},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"tokens": "moved/t"},
    ],
)
def test_what_no_weight_depends_on_may_change(taken, changes):
    claim_folder(settings_of(**changes), taken, is_main_process=True)


def test_a_constant_learning_rate_allows_more_steps(tmp_path):
    short, longer = (settings_of(schedule="constant_with_warmup", warmup_steps=3, max_steps=n) for n in (4, 8))
    assert short == longer
    short, longer = (settings_of(schedule="constant_with_warmup", warmup_steps=0.5, max_steps=n) for n in (4, 8))
    assert short != longer


def test_an_option_of_later_counts_as_left_at_its_default(taken):
    before = json.loads((taken / SETTINGS).read_text())
    (taken / SETTINGS).write_text(json.dumps({key: value for key, value in before.items() if key != "tail"}))
    claim_folder(settings_of(), taken, is_main_process=True)


def test_a_run_that_left_nothing_does_not_hold_its_folder(tmp_path):
    for rate in (0.1, 0.2):
        claim_folder(settings_of(learning_rate=rate), tmp_path, is_main_process=True)
    assert json.loads((tmp_path / SETTINGS).read_text())["learning_rate"] == 0.2


def test_a_model_of_unknown_settings_is_not_overwritten(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileExistsError, match=r"`model.safetensors` without settings.json: it is not a run"):
        claim_folder(settings_of(), tmp_path, is_main_process=True)
