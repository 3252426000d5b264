"""The two packages that travel know nothing of each other; here is where they must agree."""

from modeling_worldvla import WorldVLAConfig
from modeling_worldvla.loss_worldvla import IGNORED_LABEL as LOSS_IGNORES
from tokenization import VocabularyLayout
from tokenization.prompt_worldvla import IGNORE_INDEX
from train.collation import IGNORED_LABEL


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
    assert LOSS_IGNORES == IGNORE_INDEX == IGNORED_LABEL == -100
