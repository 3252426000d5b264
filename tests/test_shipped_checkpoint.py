"""worldvla-tiny, the checkpoint that comes along: small, complete, current, and it acts and imagines."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

import modeling_worldvla
import tokenization
from evaluation.checkpoints import fingerprint_checkpoint
from modeling_worldvla.model_card_worldvla import build_model_card

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "checkpoints" / "worldvla-tiny"


@pytest.fixture(scope="module")
def pair():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval(), AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def example():
    """A step of an episode that was held out from training: pictures of both cameras, the expert's next commands."""
    folder = FOLDER / "example"
    pictures = {path.stem: Image.open(path) for path in folder.glob("*.png")}
    return pictures, json.loads((folder / "example.json").read_text())


def test_it_is_small_and_holds_no_pickle():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) <= 30 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".png", ".md", ".gif", ".jpg"}


def test_its_code_is_the_code_of_this_checkout(pair, tmp_path):
    for part in pair:
        part.save_pretrained(tmp_path)
    wanted = {path.name for path in tmp_path.glob("*.py")}
    links = {path.name: path for path in FOLDER.glob("*.py")}
    assert set(links) == wanted
    homes = [Path(package.__file__).parent for package in (modeling_worldvla, tokenization)]
    assert all(path.is_symlink() and path.resolve().parent in homes for path in links.values())


def test_its_results_are_of_these_weights_and_on_its_card(pair):
    weights = {
        "checkpoint_fingerprint": fingerprint_checkpoint(str(FOLDER), None),
        "vq_model_hash": pair[1].image_token_hash(),
    }
    files = sorted((FOLDER / "evaluation").glob("*.json"))
    assert len(files) == 4
    for file in files:
        settings = json.loads(file.read_text())["settings"]
        recorded = weights.keys() & settings.keys()
        assert len(recorded) == 1 and all(settings[name] == weights[name] for name in recorded), file.name
    card = build_model_card(FOLDER).text
    results = card[card.index("## Evaluation") : card.index("## Licence")]
    assert results.count("Not evaluated.") == 0 and results in (FOLDER / "README.md").read_text()


def test_it_was_trained_by_the_recipes():
    first, second = (
        yaml.safe_load((ROOT / "train" / "recipes" / f"worldvla_tiny{part}.yaml").read_text())
        for part in ("", "_world_model")
    )
    options = json.loads((FOLDER / "training_args.json").read_text())
    trained = {name: value for part in options.values() for name, value in part.items()}
    config = json.loads((FOLDER / "config.json").read_text())
    for name, value in second.items():
        assert (config if name == "action_choice" else trained)[name] == value, name
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert config[name] == first[name], name


def test_it_acts_as_the_expert_would(pair, example):
    model, processor = pair
    pictures, facts = example
    frames = [pictures["agentview"], pictures["wrist"]]
    inputs = processor(images=frames, text=facts["instruction"], return_tensors="pt")
    actions = np.asarray(processor.decode_actions(model.predict_action_chunk(**inputs))[0])
    expert = np.array(facts["expert_actions"])
    assert actions.shape == expert.shape == (5, 7)
    assert np.abs(actions - expert).mean() < np.abs(expert).mean() / 4
    assert (np.sign(actions[:, 6]) == np.sign(expert[:, 6])).all()


def test_it_imagines_better_than_nothing_happening(pair, example):
    model, processor = pair
    pictures, facts = example
    action = torch.tensor(facts["action"])[None]
    inputs = processor(images=[pictures["agentview"]], actions=action, role="world_model", return_tensors="pt")
    imagined = model.predict_next_frame(**inputs)
    now, after = (processor.encode_images([pictures[name]]) for name in ("agentview", "next_agentview"))
    assert (imagined == after).float().mean() > (now == after).float().mean()


def test_its_world_model_reads_the_command(pair, example):
    model, processor = pair
    pictures, facts = example
    given = np.array(facts["action"])
    opposite = np.concatenate([-given[:6], given[6:]])
    inputs = processor(
        images=[[pictures["agentview"]]] * 2,
        actions=np.stack([given, opposite])[:, None],
        role="world_model",
        return_tensors="pt",
    )
    after = processor.encode_images([pictures["next_agentview"]])
    nothing_more = torch.zeros(2, 0, 7, dtype=torch.long)
    scores = model.score_future(**inputs, image_ids=after.expand(2, 1, -1, -1), actions=nothing_more)
    told, contrary = scores.total_log_probs.flatten()
    assert told > contrary + 1


def test_the_readme_runs(monkeypatch):
    (snippet, *_) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["actions"].shape == (1, 5, 7) and names["picture"].size == (128, 128)
