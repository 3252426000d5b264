"""Exactly what is handed to the Hub, and that it loads from there by its name in a process without our packages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoProcessor

import modeling_worldvla
import tokenization
from modeling_worldvla.hub_worldvla import upload_checkpoint
from modeling_worldvla.model_card_worldvla import BEGIN, END

from .conftest import snippets

RESULTS = {
    "suite": "libero_goal",
    "episodes": 20,
    "successes": 15,
    "interval_95": [0.53, 0.89],
    "settings": {"suite": "libero_goal", "episodes": 2, "commit": "abcdef0123456789", "checkpoint": "/home/me/secret"},
}


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(RESULTS))
    return path


def code_of(package):
    return {path.name for path in Path(package.__file__).parent.glob("*_worldvla.py")}


def test_a_model_goes_with_weights_code_and_card(make_model, hub, results):
    model = make_model()
    model.push_to_hub("me/tiny", private=True, evaluation_files=[results], tags=["mine"], commit_message="first")
    ((repo_id, files, options),) = hub.commits
    assert repo_id == "me/tiny" and options["commit_message"] == "first" and hub.created[0][1]["private"] is True
    code = {name for name in files if name.endswith(".py")}
    assert code <= code_of(modeling_worldvla) and {"modeling_worldvla.py", "model_card_worldvla.py"} <= code
    assert set(files) - code == {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    card = ModelCard(hub.card)
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "robotics" and {"worldvla", "world-model", "mine"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert (result.dataset_config, result.metric_type, result.metric_value) == ("libero_goal", "success_rate", 0.75)
    assert "15/20 (75.0 %, 95 % interval 53.0 to 89.0 %)" in card.text and "`abcdef012345`" in card.text
    assert "me/tiny" in card.text and "secret" not in hub.card and "the processor's, which lies elsewhere" in card.text


def test_saving_with_push_to_hub_goes_the_same_way(make_model, hub, tmp_path):
    folder = tmp_path / "tiny"
    make_model().save_pretrained(folder, push_to_hub=True, commit_message="saved")
    ((repo_id, files, options),) = hub.commits
    assert repo_id == "someone/tiny" and options["commit_message"] == "saved" and BEGIN in files["README.md"].decode()
    assert {"README.md", "model.safetensors", "config.json", "modeling_worldvla.py"} <= set(files)
    assert (folder / "README.md").read_bytes() == files["README.md"]


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_a_processor_goes_whole_and_leaves_the_card_alone(processor, hub, tmp_path, way):
    if way == "push_to_hub":
        processor.push_to_hub("me/tiny", commit_message="first", private=True, revision="dev")
        assert hub.branches == ["dev"] and hub.created == [("me/tiny", {"private": True, "exist_ok": True})]
    else:
        processor.save_pretrained(tmp_path / "tiny", push_to_hub=True, repo_id="me/tiny", commit_message="first")
    ((repo_id, files, options),) = hub.commits
    assert repo_id == "me/tiny" and options["commit_message"] == "first"
    code = {name for name in files if name.endswith(".py")}
    assert code <= code_of(tokenization) and "processing_worldvla.py" in code
    assert set(files) - code == {
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("vq_model/config.json", "vq_model/diffusion_pytorch_model.safetensors"),
    }


def test_nothing_is_made_on_the_hub_for_what_cannot_be_uploaded(make_model, processor, hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="No file of results `.*none.json`"):
        make_model().push_to_hub("me/tiny", evaluation_files=[tmp_path / "none.json"])
    with pytest.raises(FileNotFoundError, match="No model in .*config.json is missing. Save one there with"):
        upload_checkpoint(tmp_path, "me/tiny")
    with pytest.raises(ValueError, match="has no VQ-GAN"):
        type(processor)(processor.tokenizer, processor.vocabulary, processor.action_limits).push_to_hub("me/tiny")
    assert not hub.created and not hub.commits


def test_what_training_leaves_behind_stays_at_home(checkpoint, hub):
    for name in (
        "training_args.bin",
        "trainer_state.json",
        "checkpoint-7/model.safetensors",
        ".hidden",
        "optimizer.pt",
        "rollouts/step-4/summary.json",
        "settings.json",
        "_unfinished/checkpoint-9/model.safetensors",
    ):
        path = checkpoint / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("x")
    upload_checkpoint(checkpoint, "me/tiny", revision="dev", create_pr=True)
    ((_, files, options),) = hub.commits
    assert not {"training_args.bin", "trainer_state.json", ".hidden", "optimizer.pt", "settings.json"} & set(files)
    assert (
        not any(name.startswith(("checkpoint-", "rollouts/", "_unfinished/")) for name in files)
        and "vq_model/config.json" in files
    )
    assert options["revision"] == "dev" and options["create_pr"] is True and hub.branches == ["dev"]


HANDWRITTEN = "---\nlicense: mit\nlanguage: en\ntags:\n- mine\n---\n# My robot\nIt lives in the cellar.\n"


def test_a_card_written_by_hand_is_kept(make_model, hub, results):
    hub.files["README.md"] = HANDWRITTEN.encode()
    for _ in range(2):
        make_model().push_to_hub("me/tiny", evaluation_files=[results])
        card = ModelCard(hub.card)
        assert card.data.license == "mit" and card.data.language == "en" and card.data.tags[:2] == ["mine", "worldvla"]
        assert hub.card.count("It lives in the cellar.") == 1 == hub.card.count(BEGIN) == hub.card.count(END)
        assert len(card.data.eval_results) == 1 and "# tiny" not in card.text
    below = hub.card + "\nBelow: more of mine.\n"
    hub.files["README.md"] = below.replace("- mine", "- ours").encode()
    make_model().push_to_hub("me/tiny")  # other weights, not evaluated: the numbers of the old ones go
    card = ModelCard(hub.card)
    assert "Below: more of mine." in card.text and card.data.tags[0] == "ours" and "15/20" not in hub.card
    assert not card.data.eval_results and card.text.count("Not evaluated.") == 3


def test_results_that_people_entered_are_kept(make_model, hub, results):
    index = """
model-index:
- name: robot
  results:
  - task: {type: robotics, name: My kitchen}
    dataset: {name: kitchen, type: kitchen}
    metrics: [{type: success_rate, value: 0.1}]
"""
    hub.files["README.md"] = f"---{index}---\n# My robot\n".encode()
    for _ in range(2):
        make_model().push_to_hub("me/tiny", evaluation_files=[results])
    names = [result.task_name for result in ModelCard(hub.card).data.eval_results]
    assert names == ["Policy in LIBERO", "My kitchen"]


def test_the_form_that_transformers_uploads_is_replaced(make_model, hub):
    from transformers import BertConfig, BertModel
    from transformers.utils import hub as transformers_hub

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    other = BertModel(BertConfig(vocab_size=8, max_position_embeddings=8, **sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transformers_hub.ModelCard,
            "load",
            lambda *_, **__: (_ for _ in ()).throw(transformers_hub.EntryNotFoundError("none")),
        )
        other.push_to_hub("me/tiny")
    assert "automatically generated" in hub.card
    make_model().push_to_hub("me/tiny")
    assert "automatically generated" not in hub.card and "[More Information Needed]" not in hub.card


def test_without_the_hub_nothing_is_overwritten(make_model, hub):
    hub.files["README.md"], hub.reachable = HANDWRITTEN.encode(), False
    with pytest.raises(OSError, match="card of `me/tiny` could not be read, so nothing was uploaded"):
        make_model().push_to_hub("me/tiny")
    assert not hub.commits


def test_two_hands_are_not_mixed(checkpoint, hub):
    hub.files["README.md"] = HANDWRITTEN.encode()
    (checkpoint / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="People wrote different texts into .* and into the card of `me/tiny`"):
        upload_checkpoint(checkpoint, "me/tiny")
    assert not hub.commits and (checkpoint / "README.md").read_text() == "# Mine\n"
    hub.files["README.md"] = b"---\nlicense: mit\n---\n"
    upload_checkpoint(checkpoint, "me/tiny")
    assert hub.card.count("# Mine") == 1 and BEGIN in hub.card


MORE = """
from transformers import AutoConfig, AutoModel
np.save("tokens.npy", tokens)
np.save("chunk.npy", chunk)
others = [kind.from_pretrained(checkpoint, trust_remote_code=True) for kind in (AutoConfig, AutoModel)]
print("RESULT", *(type(other).__name__ for other in others))
"""


def test_everything_loads_by_its_name_and_the_card_tells_how(make_model, processor, hub, run_clean, tmp_path):
    """Both are pushed; the snippet of the card is run against a cache that holds what was uploaded."""
    processor.push_to_hub("me/tiny")
    make_model().push_to_hub("me/tiny")
    home = hub.cache("me/tiny", tmp_path / "home")
    (snippet,) = snippets(hub.card)
    out = run_clean(snippet + MORE, home=home)
    assert out.splitlines()[-1] == "RESULT WorldVLAConfig WorldVLAModel"
    folder = home / "hub" / "models--me--tiny" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    model, loaded = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    frames = [np.zeros((256, 256, 3), np.uint8)] * 2
    text = "pick up the alphabet soup and place it in the basket"
    chunk = model.predict_action_chunk(**loaded(images=frames, text=text))
    actions = loaded.decode_actions(chunk)
    tokens = model.predict_next_frame(**loaded(images=frames[-1:], actions=actions[0, :1], role="world_model"))
    assert torch.equal(torch.from_numpy(np.load(home / "chunk.npy")), chunk)
    assert torch.equal(torch.from_numpy(np.load(home / "tokens.npy")), tokens)
