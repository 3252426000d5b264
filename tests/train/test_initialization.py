"""What does not fit together is refused before the first step, by name."""

import json
from types import SimpleNamespace

import datasets
import pytest
import torch

from tests.conftest import DATASET
from tokenization import VocabularyLayout, WorldVLAProcessor, list_prompts, train_text_tokenizer
from train.arguments import DataArguments, ModelArguments
from train.initialization import (
    build_model,
    load_processor,
    require_checkpoint,
    require_positions,
    require_same_data,
    require_sharding,
    require_wanted_data,
)

CARD = {"dataset_name": DATASET, "camera": "agentview"}


@pytest.fixture
def data(processor, episodes, tmp_path):
    """A data set as `TokenizedEpisodes` holds it, with its processor on disk."""
    processor.save_pretrained(tmp_path / "tokens" / "processor")
    card = CARD | {"image_token_hash": processor.image_token_hash()}
    return SimpleNamespace(folder=tmp_path / "tokens", card=card, splits={"train": episodes})


@pytest.fixture
def checkpoint(make_model, processor, tmp_path):
    """A checkpoint of a run on the same data: model, processor and data card."""
    folder = tmp_path / "checkpoint"
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "data_card.json").write_text(json.dumps(CARD))
    return folder


def build(checkpoint, processor, **changes):
    return build_model(ModelArguments(str(checkpoint), **changes), DataArguments(tokens="t"), processor)


def test_what_fits_is_let_through(data, checkpoint, processor):
    assert load_processor(data).image_token_hash() == processor.image_token_hash()
    require_same_data(str(checkpoint), data, processor)
    require_wanted_data(DataArguments("t", dataset_name=DATASET, image_size=32), data, processor)


def test_a_checkpoint_keeps_its_sizes_and_takes_the_losses_of_this_run(checkpoint, processor, make_model):
    model = build(checkpoint, processor, hidden_size=999, world_model_loss_weight=0.5)
    assert (model.config.hidden_size, model.config.world_model_loss_weight) == (32, 0.5)
    assert torch.equal(model.lm_head.weight, make_model().lm_head.weight)
    assert model.dtype == torch.float32


def test_frozen_weights_may_be_bfloat16(checkpoint, processor):
    assert build(checkpoint, processor, lora_rank=2, dtype="bfloat16").dtype == torch.bfloat16


def test_weights_saved_in_bfloat16_are_trained_in_float32(make_model, processor, tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert build(tmp_path, processor).dtype == torch.float32


def test_another_action_width_is_refused(make_model, processor, tmp_path):
    make_model(action_dim=6).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives actions of 6 numbers, the data set has 7. Choose demonstrations"):
        build(tmp_path, processor)


def test_commands_wider_than_the_limits_are_refused(data):
    row = data.splits["train"][0]
    wide = row | {"actions": row["actions"] + row["actions"][: row["num_steps"]]}
    data.splits = {"train": datasets.Dataset.from_list([wide])}
    with pytest.raises(ValueError, match="commands in .* have 8 numbers, but the action limits of its processor 7"):
        load_processor(data)


def test_other_token_ids_are_refused(make_model, processor, tmp_path):
    model = make_model(boa_token_id=processor.vocabulary.eoa_token_id, eoa_token_id=processor.vocabulary.boa_token_id)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="other token ids .*boa_token_id: .*Tokenize the demonstrations again with"):
        build(tmp_path, processor)


@pytest.mark.parametrize("cameras", [["wrist"], ["agentview", "wrist"]])
def test_another_camera_set_is_refused(data, checkpoint, processor, cameras):
    data.card["cameras"] = cameras
    with pytest.raises(ValueError, match=f"trained on the camera set agentview; .* show {', '.join(cameras)}. Run"):
        require_same_data(str(checkpoint), data, processor)


def test_tokens_of_another_vqgan_than_the_checkpoints_are_refused(data, checkpoint, processor):
    with torch.no_grad():
        other = WorldVLAProcessor.from_pretrained(checkpoint)
        next(other.vq_model.parameters()).add_(1.0)
    other.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="by another VQ-GAN .* than the one that made the tokens .*`--processor`"):
        require_same_data(str(checkpoint), data, processor)


def test_other_action_bins_are_refused(data, checkpoint, processor):
    layout = VocabularyLayout.compact(num_image_tokens=16, num_text_tokens=300, max_grid_size=4)
    WorldVLAProcessor(
        train_text_tokenizer(list_prompts(), layout, min_frequency=1),
        vocabulary=layout,
        action_limits=processor.action_limits,
        image_size=(32, 32),
        vq_model=processor.vq_model,
        binning="official",
    ).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="has `official` action bins, the tokens `uniform` ones. Tokenize"):
        require_same_data(str(checkpoint), data, processor)


def test_a_checkpoint_of_a_step_has_nothing_to_compare(data, make_model, processor, tmp_path, caplog):
    make_model().save_pretrained(tmp_path / "step")
    require_same_data(str(tmp_path / "step"), data, processor)
    assert "holds no processor: whether its VQ-GAN is that of the tokens is not known" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset_name": "libero_goal"},
            "`--dataset_name libero_goal` asks for other tokens .* have made_up. Choose",
        ),
        ({"image_size": 512}, r"`--image_size 512` asks for other tokens .* have \[32, 32\]. Choose the recipe"),
    ],
)
def test_tokens_that_a_recipe_is_not_for_are_refused(data, processor, changes, message):
    with pytest.raises(ValueError, match=message):
        require_wanted_data(DataArguments("t", **changes), data, processor)


def test_samples_longer_than_the_positions_are_refused(samples, make_model):
    longest = max(len(samples[index]["input_ids"]) for index in range(len(samples)))
    require_positions({"train": samples}, make_model(max_position_embeddings=longest).config)
    with pytest.raises(ValueError, match=f"of split `train` have up to {longest} tokens, the model {longest - 1} pos"):
        require_positions({"train": samples}, make_model(max_position_embeddings=longest - 1).config)


def test_folders_that_hold_no_model_are_named(tmp_path):
    (tmp_path / "checkpoint-20").mkdir()
    with pytest.raises(FileNotFoundError, match="not finished; give one of its checkpoints: checkpoint-20"):
        require_checkpoint(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds adapters alone: give the folder above it"):
        require_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "chameleon"}')
    with pytest.raises(
        ValueError, match="is a Chameleon model in its own form. Convert it first: .*convert_chameleon"
    ):
        require_checkpoint(str(tmp_path))


def test_names_that_nobody_knows_lead_to_the_docs(monkeypatch):
    with pytest.raises(
        FileNotFoundError, match="neither a folder here nor a model that the Hub .* The Hub says: .*run"
    ):
        require_checkpoint("outputs/some/run")
    monkeypatch.setattr("train.initialization.cached_file", lambda *_, **__: None)
    with pytest.raises(FileNotFoundError, match="nowhere` is neither .*training.md#where-training-begins says how"):
        require_checkpoint("me/nowhere")


def test_fsdp_that_splits_nothing_is_refused(monkeypatch):
    require_sharding(sharded=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    require_sharding(sharded=True)
    with pytest.raises(
        ValueError, match="asked for FSDP, but each process would hold the whole model.*Launch on GPUs"
    ):
        require_sharding(sharded=False)


def test_image_embeddings_can_begin_as_the_codebook(processor):
    torch.manual_seed(0)
    options = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    arguments = ModelArguments(image_embeddings_from_codebook=True, **options)
    model = build_model(arguments, DataArguments(tokens="t"), processor)
    config = model.config
    first, count = config.image_token_id_start, config.num_image_tokens
    embedded = model.get_input_embeddings().weight.detach()[first : first + count]
    vectors = processor.image_tokenizer.embed_ids(torch.arange(count)[:, None, None] + first)[:, 0, 0]
    ratio = torch.pdist(embedded) / torch.pdist(vectors)
    assert ratio.std() / ratio.mean() < 1e-3  # every distance is kept, up to one scale
    assert embedded.std() == pytest.approx(config.initializer_range, rel=1e-3)
    plain = build_model(ModelArguments(**options), DataArguments(tokens="t"), processor)
    ratio = torch.pdist(plain.get_input_embeddings().weight.detach()[first : first + count]) / torch.pdist(vectors)
    assert ratio.std() / ratio.mean() > 0.05


def test_a_codebook_that_is_not_there_is_told(processor, monkeypatch):
    monkeypatch.setattr(processor, "image_tokenizer", None)
    options = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="has no VQ-GAN"):
        build_model(
            ModelArguments(image_embeddings_from_codebook=True, **options), DataArguments(tokens="t"), processor
        )


def test_attention_is_computed_as_asked(processor, checkpoint):
    options = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = build_model(ModelArguments(attn_implementation="eager", **options), DataArguments(tokens="t"), processor)
    assert model.config._attn_implementation == "eager"
    assert build(checkpoint, processor, attn_implementation="eager").config._attn_implementation == "eager"
    assert build(checkpoint, processor).config._attn_implementation == "sdpa"
