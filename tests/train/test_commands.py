"""The three training commands at tiny size, as a user types them: HDF5 to VQ-GAN to tokens to a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from diffusers import VQModel
from transformers import AutoModelForCausalLM, AutoProcessor

import tokenization
import tokenization.demonstrations
import train.pretokenize
import train.run
import train.run_vqgan
from train.episodes import TokenizedEpisodes
from train.pretokenize import main as pretokenize

ROOT = Path(__file__).resolve().parents[2]
SIZE, STEPS = 32, 6
TINY_VQ_MODEL = {**tokenization.VQ_MODEL_PRESETS["tiny-128"], "block_out_channels": (8,) * 5, "num_vq_embeddings": 16}
TINY_MODEL = ["--hidden_size", "32", "--intermediate_size", "48", "--num_hidden_layers", "1", "--use_cpu", "true"]
TINY_MODEL += ["--num_attention_heads", "2", "--disable_tqdm", "true", "--logging_steps", "1"]


def write_demonstrations(path, episodes=3):
    """A square wanders over a grey table; in LIBERO's own layout."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "move the square"})
        data.attrs["macros_image_convention"] = "opengl"
        for number in range(episodes):
            group = data.create_group(f"demo_{number}")
            frames = np.full((STEPS, SIZE, SIZE, 3), 120, np.uint8)
            for step in range(STEPS):
                frames[step, 4 * step : 4 * step + 8, 3 * number : 3 * number + 8] = (250, 40, 30)
            group["actions"] = generator.uniform(-1, 1, (STEPS, 7))
            group["states"] = generator.normal(size=(STEPS, 5))
            group["rewards"] = group["dones"] = np.zeros(STEPS, np.uint8)
            group["obs/agentview_rgb"] = frames
            group["obs/ee_states"] = generator.normal(size=(STEPS, 6))
            group["obs/gripper_states"] = generator.normal(size=(STEPS, 2))
    return str(path)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations") / "square_demo.hdf5")


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    patch = pytest.MonkeyPatch()
    patch.setitem(tokenization.VQ_MODEL_PRESETS, "tiny-128", TINY_VQ_MODEL)
    yield
    patch.undo()


def train_vqgan(demonstrations, folder, steps, **flags):
    settings = {"demonstrations": demonstrations, "output_dir": folder, "max_steps": steps} | flags
    defaults = {"batch_size": 4, "save_every": 2, "revive_every": 2, "warmup_steps": 1, "log_every": 1}
    train.run_vqgan.main([str(part) for key, value in (defaults | settings).items() for part in (f"--{key}", value)])
    return folder / "vq_model"


@pytest.fixture(scope="module")
def vqgan(demonstrations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqgan")
    train_vqgan(demonstrations, folder, 6)
    return folder


@pytest.fixture(scope="module")
def tokens(demonstrations, vqgan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tokens"
    arguments = ["--demonstrations", demonstrations, "--vq_model", str(vqgan), "--output_dir", str(folder)]
    pretokenize([*arguments, "--num_text_tokens", "300", "--validation_fraction", "0.34"])
    return folder


def test_vqgan_learns(vqgan):
    log = [json.loads(line) for line in (vqgan / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 7))
    assert log[-1]["reconstruction"] < log[0]["reconstruction"]


def test_the_last_step_is_always_logged(demonstrations, tmp_path):
    train_vqgan(demonstrations, tmp_path, 3, log_every=2)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [2, 3]


def test_interrupted_vqgan_equals_uninterrupted(demonstrations, vqgan, tmp_path, monkeypatch):
    def die(*arguments):
        if arguments[2] == 5:
            raise KeyboardInterrupt
        return log_step(*arguments)

    log_step = train.run_vqgan.log_step
    monkeypatch.setattr(train.run_vqgan, "log_step", die)
    with pytest.raises(KeyboardInterrupt):
        train_vqgan(demonstrations, tmp_path, 6)
    assert train.run_vqgan.last_checkpoint(tmp_path)[1] == 4
    monkeypatch.undo()
    resumed = VQModel.from_pretrained(train_vqgan(demonstrations, tmp_path, 6)).state_dict()
    whole = VQModel.from_pretrained(vqgan / "vq_model").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_vqgan_refuses_a_folder_of_other_settings(demonstrations, vqgan):
    with pytest.raises(ValueError, match="holds a run with other settings.*seed: 0 -> 7.*Choose another"):
        train_vqgan(demonstrations, vqgan, 6, seed=7)


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
    monkeypatch.setattr(train.pretokenize, "iterate_rows", lambda *_: pytest.fail("tokenized again"))
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


def test_two_processes_train_one_vqgan(demonstrations, tmp_path):
    flags = ["--demonstrations", demonstrations, "--output_dir", tmp_path, "--max_steps", "3", "--batch_size", "2"]
    launch("train/run_vqgan.py", *flags, "--log_every", "1", "--save_every", "2", port=29534)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]  # one run of two processes, not two runs
    VQModel.from_pretrained(tmp_path / "vq_model")


def test_two_processes_equal_one(tokens, tmp_path):
    shared = ["--tokens", str(tokens), *TINY_MODEL, "--max_steps", "2", "--optim", "sgd", "--learning_rate", "0.01"]
    shared += ["--eval_strategy", "no", "--save_strategy", "no", "--max_grad_norm", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    train.run.main([*shared, "--output_dir", str(one), "--per_device_train_batch_size", "4"])
    launch("train/run.py", *shared, "--output_dir", two, "--per_device_train_batch_size", "2", port=29533)
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, two))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)
