import pytest

from modeling_worldvla import WorldVLAConfig

from .sequences import tiny_config


def test_defaults_are_the_official_7b():
    config = WorldVLAConfig()
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.head_dim) == (65536, 4096, 32, 128)
    assert config.num_key_value_heads == 32
    assert (config.boi_token_id, config.eoi_token_id, config.boa_token_id, config.eoa_token_id) == (
        8197,
        8196,
        10004,
        15004,
    )
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}
    assert config.action_block_length == 9


def test_save_and_load(tmp_path):
    config = tiny_config(
        rope_theta=500.0, world_model_loss_weight=0.5, loss_weight_ranges=((60, 99, 0.04),), derived_from="a/b"
    )
    config.save_pretrained(tmp_path)
    loaded = WorldVLAConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.rope_parameters["rope_theta"] == 500.0
    assert set(loaded.auto_map) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "`hidden_size` must be a whole number of at least 1, got 0"),
        ({"chunk_size": 2.5}, "`chunk_size` must be a whole number of at least 1, got 2.5"),
        ({"num_attention_heads": 5}, "`num_attention_heads` must divide `hidden_size`, got 5 and 32"),
        ({"num_key_value_heads": 3}, "`num_key_value_heads` must divide `num_attention_heads`, got 3 and 4"),
        ({"model_parallel_size": 4}, "`model_parallel_size` must divide `num_key_value_heads`, got 4 and 2"),
        ({"hidden_size": 12}, "heads of even width, got 3"),
        ({"boa_token_id": 200}, "`boa_token_id` must lie inside the vocabulary of 200 entries, got 200"),
        ({"eoa_token_id": None}, "`eoa_token_id` must lie inside the vocabulary of 200 entries, got None"),
        ({"image_token_id_start": 161}, "`image_token_id_start` must lie inside .* got 161 … 200"),
        ({"boi_token_id": 4}, "`boi_token_id` takes 4 … 4 and `eoi_token_id` begins at 4"),
        (
            {"action_token_id_start": 45},
            "`action_token_id_start` takes 45 … 64 and `image_token_id_start` begins at 60",
        ),
        ({"loss_form": "offical"}, "`loss_form` must be one of paper, official, got 'offical'"),
        ({"z_loss_weight": -1.0}, "`z_loss_weight` must be a number and not be negative, got -1.0. Use 0 to turn"),
        ({"world_model_loss_weight": "0.1"}, "`world_model_loss_weight` must be a number .* got '0.1'"),
        ({"world_model_loss_weight": float("nan")}, "`world_model_loss_weight` must be a number .* got nan"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be a number and lie in \[0, 1\), got 1.0"),
        ({"attention_dropout": -0.1}, r"`attention_dropout` must be a number and lie in \[0, 1\), got -0.1"),
        ({"attention_dropout": 1.0}, r"`attention_dropout` must be a number and lie in \[0, 1\), got 1.0"),
        ({"initializer_range": -1}, "`initializer_range` must be a number and not be negative, got -1"),
        ({"rms_norm_eps": 0.0}, "`rms_norm_eps` must be a number above 0, got 0.0. Leave it out"),
        ({"rms_norm_eps": None}, "`rms_norm_eps` must be a number above 0, got None"),
        ({"rope_theta": -1.0}, "`rope_theta` must be a number above 0, got -1.0"),
        ({"tie_word_embeddings": "false"}, "`tie_word_embeddings` must be True or False, got 'false'"),
        ({"use_action_attention_mask": None}, "`use_action_attention_mask` must be True or False, got None"),
        ({"hidden_act": "sillu"}, "`hidden_act` must be an activation .* got 'sillu'. .* Did you mean 'silu'?"),
        ({"vocab_size": 90}, "`image_token_id_start` must lie inside .* 90 entries, got 60 … 99. .* `vocab_size`"),
        ({"num_key_value_heads": 0}, "`num_key_value_heads` must be a whole number of at least 1, got 0"),
        ({"loss_chunk_size": 0}, "`loss_chunk_size` must be a whole number of at least 1, got 0. Leave it out"),
        (
            {"loss_form": "official"},
            r"vocabulary of 200 .* got \[3, 8194, 0.04\]. \[\[60, 99, 0.04\]\] are",
        ),
        (
            {"loss_form": "official", "loss_weight_ranges": [[60, 99]]},
            r"must hold \[first id, last id, weight\] .* got \[60, 99\]",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "`rope_type` must be 'default', got 'yarn'"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)
