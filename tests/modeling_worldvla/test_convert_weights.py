"""Official checkpoint and tokenizers in, one folder out: what it holds, and that it computes what was recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

import tokenization  # registers the processor with the Auto classes
from modeling_worldvla import WorldVLAConfig, convert_worldvla_weights_to_hf
from modeling_worldvla.convert_worldvla_weights_to_hf import (
    ConvertWeightsArguments,
    convert_checkpoint,
    write_processor,
)

from .official_checkpoint import recorded_weights, write_checkpoint, write_tokenizers
from .test_masking import MALFORMED
from .test_modeling import CASES, FIXTURES, FORWARD, recorded_tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights():
    return recorded_weights()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return write_tokenizers(tmp_path_factory.mktemp("release") / "chameleon" / "tokenizer")


@pytest.fixture(scope="module")
def converted(weights, tokenizers, tmp_path_factory):
    """What the command makes of a sharded checkpoint that still holds a part of the VQ-GAN."""
    folder = tmp_path_factory.mktemp("hub")
    left_over = {"model.vqmodel.quantize.embedding.weight": torch.zeros(8, 2)}
    checkpoint = write_checkpoint(folder / "model_256" / "libero_10", weights | left_over, shards=3)
    output = folder / "out" / "converted"
    command = [sys.executable, "-m", "modeling_worldvla.convert_worldvla_weights_to_hf", "--checkpoint", checkpoint]
    command += ["--tokenizer", tokenizers, "--vqgan", tokenizers, "--output", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"model and processor saved in {output}" in done.stderr
    assert [path.name for path in output.parent.iterdir()] == ["converted"]
    return output


@pytest.fixture(scope="module")
def model(converted):
    return AutoModelForCausalLM.from_pretrained(converted).eval()


def largest_differences(model, tokens, recorded, case, kind):
    """How far hidden states, log-partition and cross-entropy are from the recorded ones."""
    model.config.use_action_attention_mask = kind == "mask"
    with torch.no_grad():
        outputs = model(tokens, output_hidden_states=True)
    logits = outputs.logits
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    recorded_nll = recorded[f"{case}/{kind}/nll"][:, :-1].flatten()
    labelled = recorded_nll != 0
    return {
        "hidden": np.abs(outputs.hidden_states[-1].numpy() - recorded[f"{case}/{kind}/hidden"]).max(),
        "lse": np.abs(logits.logsumexp(-1).numpy() - recorded[f"{case}/{kind}/lse"]).max(),
        "nll": np.abs(nll.numpy() - recorded_nll)[labelled].max(initial=0),
    }


@pytest.mark.parametrize("kind", ["mask", "nomask"])
@pytest.mark.parametrize("case", CASES)
def test_a_converted_checkpoint_computes_what_was_recorded(model, case, kind):
    tokens = recorded_tokens(case)
    assert max(largest_differences(model, tokens, FORWARD, case, kind).values()) < 2e-4


def official_labels(tokens, record):
    """The labels behind the recorded losses: the answer of each row, without padding."""
    labels = torch.full_like(tokens, -100)
    for row, (start, end) in enumerate(zip(record["label_start"], record["len"], strict=True)):
        labels[row, start:end] = tokens[row, start:end]
    return labels


def loss_differences(model, tokens, record, kind, monkeypatch):
    """How far the official losses that `forward` gives are from the recorded ones; z_loss relative, it is a square."""
    labels, expected = official_labels(tokens, record), record[kind]
    weighted, found = model.config.loss_weight_ranges, {}
    monkeypatch.setattr(model.config, "loss_form", "official")
    monkeypatch.setattr(model.config, "use_action_attention_mask", kind == "mask")
    for name, ranges, z_weight in (
        ("c_loss", weighted, 0.0),
        ("c_loss_unweighted", [], 0.0),
        ("total", weighted, expected["z_weight"]),
        ("with_z", weighted, 1.0),
    ):
        monkeypatch.setattr(model.config, "loss_weight_ranges", ranges)
        monkeypatch.setattr(model.config, "z_loss_weight", z_weight)
        with torch.no_grad():
            found[name] = model(tokens, labels=labels).loss.item()
    monkeypatch.undo()
    differences = {name: abs(found[name] - expected[name]) for name in ("c_loss", "c_loss_unweighted", "total")}
    z_loss = found["with_z"] - found["c_loss"]
    return differences | {"z_loss": abs(z_loss - expected["z_loss"]) / expected["z_loss"]}


@pytest.mark.parametrize("kind", ["mask", "nomask"])
@pytest.mark.parametrize("case", CASES)
def test_a_converted_checkpoint_gives_the_official_losses(model, case, kind, monkeypatch):
    assert model.config.z_loss_weight == 1e-5 and model.config.loss_weight_ranges == [[3, 8194, 0.04]]
    record = json.loads((FIXTURES / "recorded_losses.json").read_text())[case]
    assert max(loss_differences(model, recorded_tokens(case), record, kind, monkeypatch).values()) < 2e-4


def test_whole_recorded_file(recorded_behaviour, model, record_property, monkeypatch):
    """Every recorded sequence and padded batch, with and without the mask: states, log-partition, nll, all losses."""
    recorded, masks = (np.load(recorded_behaviour / f"{name}.npz") for name in ("forward", "masks"))
    records = json.loads((recorded_behaviour / "forward.json").read_text())
    worst, off, compared = {}, {}, 0
    for case, record in records.items():
        if case.startswith("_"):  # remarks
            continue
        tokens = torch.from_numpy(np.atleast_2d(masks[f"{case}/tokens"]).astype(np.int64))
        for kind in ("nomask", *["mask"] * (case not in MALFORMED)):  # malformed: the official mask is arbitrary
            differences = loss_differences(model, tokens, record, kind, monkeypatch)
            if f"{case}/{kind}/hidden" in recorded.files:
                differences |= largest_differences(model, tokens, recorded, case, kind)
            worst = {key: max(worst.get(key, 0.0), float(differences.get(key, 0.0))) for key in {*worst, *differences}}
            off |= {f"{case}/{kind}": differences} if max(differences.values()) >= 2e-4 else {}
            compared += 1
    record_property("largest differences", worst)
    assert not off and compared > 60


def test_the_folder_is_what_the_official_weights_need(converted, model, weights):
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        n: w.shape for n, w in weights.items()
    }
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    config, processor = model.config, AutoProcessor.from_pretrained(converted)
    assert type(config) is WorldVLAConfig and type(AutoModel.from_pretrained(converted)).__name__ == "WorldVLAModel"
    assert config.dtype == torch.float32 and config.architectures == ["WorldVLAForCausalLM"]
    assert (config.max_position_embeddings, config.chunk_size, config.z_loss_weight) == (4096, 10, 1e-5)
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert {name: getattr(config, name) for name in processor.model_config()} == processor.model_config()
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    assert (processor.policy_prompt, processor.world_model_prompt) == ("training", "training")
    assert processor.binning == "official" and tuple(processor.image_size) == (256, 256)
    assert processor.action_limits == {"libero": tokenization.LIBERO_ACTION_LIMITS}
    assert processor.tokenizer.model_max_length == config.max_position_embeddings


CLEAN = """
import importlib.util, sys
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
sys.path = [path for path in sys.path if path not in ("", sys.argv[2])]
if any(importlib.util.find_spec(name) for name in ("modeling_worldvla", "tokenization")):
    sys.exit("our packages can be imported here, so this shows nothing")
import numpy as np
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
decoder = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
frames = list(np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8))
chunk = model.predict_action_chunk(**processor(images=frames, text="open the drawer", return_tensors="pt"))
actions = processor.decode_actions(chunk)
print(type(decoder).__name__, actions.shape, np.abs(actions).max() <= 1)
"""


def test_the_folder_acts_in_a_process_without_our_packages(converted, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN, str(converted), str(ROOT)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "WorldVLAModel (1, 10, 7) True"


@pytest.mark.parametrize(
    ("stderr", "kind", "message"),
    [
        (
            "Traceback\nOSError: first\nTraceback\nFileNotFoundError: No file `a/vqgan.yaml`.",
            FileNotFoundError,
            "do not convert: No file `a/vqgan.yaml`. text_tokenizer.json, vqgan.ckpt and vqgan.yaml are the folder",
        ),
        (
            "Traceback\npickle.UnpicklingError: x\n\nValueError: two\nlines\n",
            ValueError,
            "do not convert: two\nlines$",
        ),
        ("No module named tokenization", ValueError, "do not convert: No module named tokenization$"),
        ("", ValueError, "do not convert: exit status 3$"),
    ],
)
def test_what_the_tokenizers_command_says_is_passed_on(tmp_path, monkeypatch, stderr, kind, message):
    (tmp_path / "text_tokenizer.json").touch()
    failed = subprocess.CompletedProcess([], 3, "", stderr)
    monkeypatch.setattr(convert_worldvla_weights_to_hf.subprocess, "run", lambda *given, **options: failed)
    arguments = ConvertWeightsArguments("checkpoint", str(tmp_path), str(tmp_path), "out")
    with pytest.raises(kind, match=message):
        write_processor(arguments, 256, WorldVLAConfig(), tmp_path)


def test_missing_tokenizers_are_named_and_nothing_is_left(weights, tmp_path):
    checkpoint, tokenizer = write_checkpoint(tmp_path / "checkpoint", weights), tmp_path / "tokenizer"
    tokenizer.mkdir()
    arguments = ConvertWeightsArguments(str(checkpoint), str(tokenizer), str(tokenizer), str(tmp_path / "out" / "new"))
    for name in ("text_tokenizer.json", "vqgan.ckpt"):
        with pytest.raises(FileNotFoundError, match=f"No file `.*{name}`.* Alibaba-DAMO-Academy/WorldVLA.*Meta"):
            convert_checkpoint(arguments)
        assert not list((tmp_path / "out").iterdir())
        (tokenizer / name).touch()
