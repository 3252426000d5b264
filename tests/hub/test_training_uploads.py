"""With `--push_to_hub true` training uploads the whole folder, and the card in it is ours."""

import json

import pytest
from huggingface_hub import HfApi

from modeling_worldvla import WorldVLAForCausalLM
from modeling_worldvla.model_card_worldvla import BEGIN, build_model_card
from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments
from train.exporting import save_everything
from train.initialization import build_model
from train.trainer import WorldVLATrainer

from .test_push_to_hub import HANDWRITTEN

CARD = {
    "dataset_name": "made_up",
    "camera": "agentview",
    "grid": [2, 2],
    "sources": [{"file": "a_demo.hdf5", "episodes": 1}],
    "splits": {"train": 1},
    "steps": 3,
    "clipped_action_values": 0,
}


def test_training_uploads_everything_with_our_card(make_model, processor, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: HfApi())
    hub.files["README.md"] = HANDWRITTEN.encode()
    arguments = WorldVLATrainingArguments(
        output_dir=str(tmp_path / "run"), push_to_hub=True, hub_model_id="me/tiny", use_cpu=True, report_to=[]
    )
    trainer = WorldVLATrainer(model=make_model(), args=arguments, train_dataset=[{}])
    longest = processor.tokenizer.model_max_length
    save_everything(trainer, processor, CARD, {"data": DataArguments("tokens")}, {"eval_loss": 1.0})
    assert processor.tokenizer.model_max_length == longest != 128  # the folder has the model's, ours is as it was
    ((repo_id, files, _),) = hub.commits
    assert repo_id == "me/tiny"
    assert {"model.safetensors", "vq_model/config.json", "processor_config.json", "data_card.json"} <= set(files)
    assert not any(name.endswith((".bin", ".pt")) for name in files)
    options = json.loads(files["training_args.json"])
    assert options["data"]["tokens"] == "tokens" and options["training"]["hub_model_id"] == "me/tiny"
    assert json.loads(files["metrics.json"]) == {"eval_loss": 1.0}
    card = files["README.md"].decode()
    assert "It lives in the cellar." in card and BEGIN in card and "| data set | made_up |" in card
    assert 'checkpoint = "me/tiny"' in card


@pytest.mark.parametrize(("start", "derived_from"), [("me/base", "me/base"), (None, None)])
def test_training_on_from_a_hub_checkpoint_names_it(make_model, processor, monkeypatch, start, derived_from, tmp_path):
    make_model().save_pretrained(tmp_path)
    load = WorldVLAForCausalLM.from_pretrained
    monkeypatch.setattr(WorldVLAForCausalLM, "from_pretrained", lambda path, **changes: load(tmp_path, **changes))
    monkeypatch.setattr("train.initialization.cached_file", lambda path, name, **_: str(tmp_path / name))
    model_arguments = ModelArguments(model_name_or_path=start or str(tmp_path))
    model = build_model(model_arguments, DataArguments(tokens="tokens"), processor)
    assert model.config.derived_from == derived_from
    model.save_pretrained(tmp_path / "trained")
    card = build_model_card(tmp_path / "trained")
    assert (card.data.base_model, card.data.license) == (derived_from, "other" if start else "apache-2.0")
