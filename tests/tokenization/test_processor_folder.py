import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from tokenization import LIBERO_ACTION_LIMITS, WorldVLAProcessor

from .conftest import CORPUS, make_vq_model

TASK = CORPUS[0]


@pytest.fixture
def folder(processor, tmp_path):
    processor.tokenizer.model_max_length = 300
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def assert_alike(one, other, frames):
    assert one.to_dict() == other.to_dict()
    assert one.image_token_hash() == other.image_token_hash()
    for arguments in (
        {"images": list(frames[:2]), "text": TASK},
        {"images": list(frames[:1]), "actions": np.zeros((1, 7)), "role": "world_model"},
    ):
        assert torch.equal(one(**arguments)["input_ids"], other(**arguments)["input_ids"])


def test_saved_and_loaded_it_is_the_same(processor, folder, frames):
    loaded = WorldVLAProcessor.from_pretrained(folder)
    assert loaded.tokenizer.model_max_length == 300
    assert_alike(processor, loaded, frames)
    assert_alike(processor, AutoProcessor.from_pretrained(str(folder)), frames)
    assert {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "vq_model"} <= set(os.listdir(folder))


def test_every_setting_is_kept(tokenizer, layout, frames, tmp_path):
    processor = WorldVLAProcessor(
        tokenizer,
        layout,
        action_limits={"libero": LIBERO_ACTION_LIMITS, "other": {"low": [0.0] * 7, "high": [1.0] * 7}},
        binning="official",
        image_size=(32, 64),
        code_to_offset=np.random.default_rng(0).permutation(64),
        world_model_prompt="paper",
        vq_model=make_vq_model(3),
    )
    processor.save_pretrained(tmp_path)
    loaded = WorldVLAProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.image_size == (32, 64) and loaded.world_model_prompt == "paper" and loaded.code_to_offset[:3]
    assert torch.equal(loaded.encode_images(list(frames)), processor.encode_images(list(frames)))


def test_weights_are_read_when_first_needed(folder, frames):
    loaded = WorldVLAProcessor.from_pretrained(folder)
    (folder / "vq_model" / "diffusion_pytorch_model.safetensors").unlink()
    assert loaded.decode_actions(np.full((1, 7), loaded.vocabulary.action_token_id_start)).shape == (1, 7)
    with pytest.raises(OSError, match="lacks its VQ-GAN: vq_model/diffusion_pytorch_model.safetensors not found"):
        loaded(images=[frames[0]], text=TASK)


def test_it_can_be_saved_over_itself(processor, folder, frames):
    loaded = WorldVLAProcessor.from_pretrained(folder)
    loaded.save_pretrained(folder)
    loaded.save_pretrained(folder)
    assert_alike(processor, WorldVLAProcessor.from_pretrained(folder), frames)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_settings_can_be_overridden(folder):
    limits = {"mine": {"low": [0.0] * 7, "high": [2.0] * 7}}
    loaded = WorldVLAProcessor.from_pretrained(folder, action_limits=limits, world_model_prompt="paper")
    assert loaded.action_tokenizer.limits == limits and loaded.world_model_prompt == "paper"
    assert "action_limits" not in loaded.tokenizer.init_kwargs


def test_a_weightless_or_limitless_processor_is_not_saved(tokenizer, layout, vq_model, tmp_path):
    with pytest.raises(ValueError, match="has no VQ-GAN"):
        WorldVLAProcessor(tokenizer, layout, {"libero": LIBERO_ACTION_LIMITS}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no action limits"):
        WorldVLAProcessor(tokenizer, layout, image_size=(32, 32), vq_model=vq_model).save_pretrained(tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("load", [WorldVLAProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_incomplete_checkpoints_are_refused(folder, load):
    config = folder / "processor_config.json"
    settings = json.loads(config.read_text())
    shutil.move(folder / "vq_model", folder / "elsewhere")
    with pytest.raises(OSError, match=r"lacks its VQ-GAN: vq_model/config.json, .*Save the checkpoint with"):
        load(str(folder))
    shutil.move(folder / "elsewhere", folder / "vq_model")
    for missing in ({}, None):
        config.write_text(json.dumps({**settings, "action_limits": missing}))
        with pytest.raises(OSError, match="no action limits: `action_limits` is missing in processor_config.json"):
            load(str(folder))
    config.unlink()
    with pytest.raises(OSError, match="has no processor: processor_config.json is missing"):
        load(str(folder))


def test_missing_folders_and_text_tokenizers_are_refused(folder, tmp_path):
    with pytest.raises(OSError, match="no such folder"):
        WorldVLAProcessor.from_pretrained(tmp_path / "nowhere")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(OSError, match="lacks its text tokenizer: tokenizer.json"):
        WorldVLAProcessor.from_pretrained(folder)


REMOTE = """
import sys
import numpy as np
from transformers import AutoProcessor

folder, again = sys.argv[1:]
for _ in range(2):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    frame = np.load(folder + "/../frame.npy")
    ids = processor(images=[frame], text="put the bowl on the stove")["input_ids"]
    sample = processor.build_sample([frame] * 2, "go", np.zeros((2, 7)), history_actions=np.zeros((1, 7)))
    parts = processor.parse(sample["input_ids"])
    names = "Special Text Image Action Image Separator Action Action Separator".split()
    assert [type(part).__name__ for part in parts] == [name + "Part" for name in names], parts
    assert parts[2].to_image().size == (32, 64) and abs(parts[3].command).max() < 0.03
    assert "tokenization" not in sys.modules
    processor.save_pretrained(again)
    folder = again
np.save(folder + "/../ids.npy", ids.numpy())
"""


def test_the_folder_brings_its_own_code(processor, folder, frames, tmp_path):
    np.save(tmp_path / "frame.npy", frames[0])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONPATH")}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    if extra := os.environ.get("WORLDVLA_TEST_PYTHONPATH"):
        environment["PYTHONPATH"] = extra
    script = tmp_path / "script" / "load.py"
    script.parent.mkdir()
    script.write_text(REMOTE)
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", str(script)]
    done = subprocess.run(
        [*command, str(folder), str(tmp_path / "again")],
        cwd=script.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = processor(images=[frames[0]], text="put the bowl on the stove")["input_ids"].numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), expected)


def test_a_saved_folder_does_not_say_where_its_vqgan_lay(processor, tmp_path):
    processor.save_pretrained(tmp_path / "first")
    WorldVLAProcessor.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert str(tmp_path) not in (tmp_path / "second" / "vq_model" / "config.json").read_text()
