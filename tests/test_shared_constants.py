"""The two packages that travel know nothing of each other; here is where they must agree."""

import pytest

from evaluation.demonstration_files import CAMERA_KEYS as WRITTEN_CAMERA_KEYS
from evaluation.libero_setup import choose
from modeling_worldvla import WorldVLAConfig
from modeling_worldvla.loss_worldvla import IGNORED_LABEL as LOSS_IGNORES
from tokenization import VocabularyLayout
from tokenization.choices_worldvla import require_choice
from tokenization.libero_files import CAMERA_KEYS as READ_CAMERA_KEYS
from tokenization.prompt_worldvla import IGNORE_INDEX


def test_official_ids_of_config_and_vocabulary_agree():
    config = WorldVLAConfig()
    ids = VocabularyLayout.official().model_config()
    assert "boa_token_id" in ids and "vocab_size" in ids
    assert {name: getattr(config, name) for name in ids} == ids


def test_every_id_of_the_config_comes_from_the_vocabulary():
    ids = VocabularyLayout.compact(num_image_tokens=32, num_text_tokens=300).model_config()
    of_config = {name for name in WorldVLAConfig().to_dict() if "token_id" in name}
    assert of_config <= set(ids)
    WorldVLAConfig(**ids)


def test_ignored_labels_agree():
    assert LOSS_IGNORES == IGNORE_INDEX == -100


def test_recorder_and_reader_agree_on_the_cameras():
    assert WRITTEN_CAMERA_KEYS == READ_CAMERA_KEYS


@pytest.mark.parametrize("name", ["agentveiw", "zzz"])
def test_both_refusals_of_an_unknown_name_say_the_same(name):
    texts = []
    for refuse in (choose, require_choice):
        with pytest.raises(ValueError) as error:
            refuse("camera", name, ["agentview", "wrist"])
        texts.append(str(error.value))
    assert texts[0] == texts[1]
