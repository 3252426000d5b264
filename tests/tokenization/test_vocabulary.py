import pytest

from modeling_worldvla import WorldVLAConfig
from tokenization import VocabularyLayout
from tokenization.vocabulary_worldvla import image_token_name


def test_official_layout_is_the_models_default():
    config = WorldVLAConfig()
    for name, value in VocabularyLayout.official().model_config().items():
        assert getattr(config, name) == value, name


def test_compact_layout_has_no_gap():
    layout = VocabularyLayout.compact(num_image_tokens=10, num_text_tokens=300, num_action_tokens=20, max_grid_size=3)
    covered = sorted(token_id for start, end in layout.ranges().values() for token_id in range(start, end))
    assert covered == list(range(layout.vocab_size))
    assert layout.vocab_size == 4 + 10 + 4 + 4 + 1 + 20 + 1 + 300


def test_names_of_the_official_vocabulary():
    names = VocabularyLayout.official().token_names()
    assert len(names) == len(set(names)) == 16384
    assert names[:5] == ["<s>", "<pad>", "</s>", "<unk>", "IMGIMGAZ"]
    assert (names[8196], names[8197], names[8710], names[10004]) == (
        "<eoss>",
        "<racm3:break>",
        "<reserved08706>",
        "<reserved10000>",
    )


def test_image_token_names_follow_the_code_map():
    layout = VocabularyLayout.compact(num_image_tokens=3, num_text_tokens=256)
    assert layout.token_names([2, 0, 1])[4:7] == ["IMGIMGBZ", "IMGIMGCZ", "IMGIMGAZ"]
    assert image_token_name(8190) == "IMGIMGIBJAZ"


def test_layout_survives_json():
    layout = VocabularyLayout.compact(7, 300)
    assert VocabularyLayout.from_dict(layout.to_dict()) == layout
    with pytest.raises(ValueError, match=r"Unknown vocabulary fields \['colour'\]"):
        VocabularyLayout.from_dict({"colour": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boa_token_id": 10006}, "must be disjoint: (boa_token_id|action tokens)"),
        ({"eoi_token_id": 100}, "eoi_token_id .* begins inside image tokens"),
        ({"vocab_size": 16000}, r"text .* must lie inside the vocabulary of 16000"),
        ({"sep_token_id": -1}, "`sep_token_id` must be an integer >= 0, got -1"),
        ({"num_action_tokens": 0}, "`num_action_tokens` must be at least 1"),
    ],
)
def test_impossible_layouts_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VocabularyLayout(**fields)
