"""The three training commands at tiny size, as a user types them: HDF5 to VQ-GAN to tokens to a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

import tokenization
import tokenization.demonstrations
import train.run
import train.run_vqgan
import train.token_shards
from train.episodes import TokenizedEpisodes
from train.pretokenize import main as pretokenize

from .made_up_demonstrations import SIZE, STEPS, TINY_VQ_MODEL, write_demonstrations

ROOT = Path(__file__).resolve().parents[2]
TINY_MODEL = ["--hidden_size", "32", "--intermediate_size", "48", "--num_hidden_layers", "1", "--use_cpu", "true"]
TINY_MODEL += ["--num_attention_heads", "2", "--disable_tqdm", "true", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations") / "square_demo.hdf5")


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    patch = pytest.MonkeyPatch()
    patch.setitem(tokenization.VQ_MODEL_PRESETS, "tiny-128", TINY_VQ_MODEL)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def vqgan(demonstrations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqgan")
    train.run_vqgan.main(["--demonstrations", demonstrations, "--output_dir", str(folder), "--max_steps", "2"])
    return folder


@pytest.fixture(scope="module")
def tokens(demonstrations, vqgan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tokens"
    arguments = ["--demonstrations", demonstrations, "--vq_model", str(vqgan), "--output_dir", str(folder)]
    pretokenize([*arguments, "--num_text_tokens", "300", "--validation_fraction", "0.34"])
    return folder


def test_data_card_and_episodes(tokens, demonstrations):
    data = TokenizedEpisodes.load(tokens)
    assert data.card["splits"] == {"train": 2, "val_ind": 1}
    assert (data.card["grid"], data.card["steps"], data.card["camera"]) == ([2, 2], 3 * STEPS, "agentview")
    row = data.splits["train"][0]
    processor = tokenization.WorldVLAProcessor.from_pretrained(tokens / "processor")
    demonstration = tokenization.demonstrations.read_demonstrations(demonstrations)[int(row["episode"][-1])]
    expected = processor.encode_images(list(demonstration.frames()))
    np.testing.assert_array_equal(np.array(row["image_token_ids"]), expected.reshape(-1))
    np.testing.assert_array_equal(np.array(row["actions"], np.float32), demonstration.actions.reshape(-1))


def test_limits_come_from_the_training_split(tokens):
    data = TokenizedEpisodes.load(tokens)
    actions = np.concatenate([np.array(row["actions"]).reshape(-1, 7) for row in data.splits["train"]])
    limits = tokenization.WorldVLAProcessor.from_pretrained(tokens / "processor").action_tokenizer.limits["libero"]
    np.testing.assert_allclose(limits["low"], actions.min(0), rtol=1e-6)
    np.testing.assert_allclose(limits["high"], actions.max(0), rtol=1e-6)


def test_nothing_is_tokenized_twice(tokens, demonstrations, vqgan, monkeypatch):
    monkeypatch.setattr(train.token_shards, "iterate_rows", lambda *_: pytest.fail("tokenized again"))
    arguments = ["--demonstrations", demonstrations, "--vq_model", str(vqgan), "--output_dir", str(tokens)]
    pretokenize([*arguments, "--num_text_tokens", "300", "--validation_fraction", "0.34"])


def test_trained_folder_loads_acts_and_imagines(tokens, tmp_path):
    output = tmp_path / "run"
    metrics = train.run.main(["--tokens", str(tokens), "--output_dir", str(output), *TINY_MODEL, "--max_steps", "2"])
    assert metrics["eval_val_ind_loss"] > 0
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    processor = AutoProcessor.from_pretrained(output)
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    chunk = model.predict_action_chunk(**processor(images=[frame, frame], text="move the square"), chunk_size=3)
    actions = processor.decode_actions(chunk)
    assert actions.shape == (1, 3, 7)
    inputs = processor(images=[frame], actions=actions[0, :1], role="world_model")
    assert processor.decode_images(model.predict_next_frame(**inputs))[0].size == (SIZE, SIZE)
    assert {path.name for path in output.iterdir()} >= {"model.safetensors", "vq_model", "data_card.json"}
    card = (output / "README.md").read_text()
    for part in (
        "| episodes | train 2, val_ind 1 |",
        "2 optimizer steps",
        "| val_ind_loss_action |",
        "Not evaluated.",
    ):
        assert part in card


def test_tokens_of_another_vqgan_are_refused(tokens, tmp_path):
    card = json.loads((tokens / "data_card.json").read_text())
    broken = tmp_path / "tokens"
    broken.mkdir()
    for name in ("episodes", "processor"):
        (broken / name).symlink_to(tokens / name)
    (broken / "data_card.json").write_text(json.dumps(card | {"image_token_hash": "0" * 64}))
    with pytest.raises(ValueError, match="made by another VQ-GAN.*Run train/pretokenize.py again"):
        train.run.main(["--tokens", str(broken), "--output_dir", str(tmp_path / "run"), *TINY_MODEL])


def launch(script, *flags, port):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [script, *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-9000:]


def test_two_processes_equal_one(tokens, tmp_path):
    shared = ["--tokens", str(tokens), *TINY_MODEL, "--max_steps", "2", "--optim", "sgd", "--learning_rate", "0.01"]
    shared += ["--eval_strategy", "no", "--save_strategy", "no", "--max_grad_norm", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    train.run.main([*shared, "--output_dir", str(one), "--per_device_train_batch_size", "4"])
    launch("train/run.py", *shared, "--output_dir", two, "--per_device_train_batch_size", "2", port=29533)
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, two))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)
