"""One run begins with what another left: the debug recipe, adapters on it, the same folder again, a small ablation."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tokenization
import train.run
import train.run_vqgan
from train import ablation
from train.pretokenize import main as pretokenize

from .made_up_demonstrations import TINY_VQ_MODEL, write_demonstrations

DEBUG = str(Path(train.run.__file__).parent / "recipes" / "debug.yaml")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A data set of 32 x 32 frames, made by the commands."""
    folder = tmp_path_factory.mktemp("data")
    write_demonstrations(folder / "square_demo.hdf5")
    demonstrations = ["--demonstrations", str(folder / "square_demo.hdf5")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tokenization.VQ_MODEL_PRESETS, "tiny-128", TINY_VQ_MODEL)
        train.run_vqgan.main([*demonstrations, "--output_dir", str(folder / "vqgan"), "--max_steps", "1"])
    flags = ["--vq_model", str(folder / "vqgan"), "--num_text_tokens", "300", "--validation_fraction", "0.34"]
    pretokenize([*demonstrations, "--output_dir", str(folder / "tokens"), *flags])
    return str(folder / "tokens")


@pytest.fixture(scope="module")
def debugged(tokens, tmp_path_factory):
    """What the debug recipe leaves."""
    output = tmp_path_factory.mktemp("debug") / "run"
    train.run.main([DEBUG, "--tokens", tokens, "--output_dir", str(output), "--disable_tqdm", "true"])
    return output


def test_one_folder_holds_everything(debugged):
    names = {path.relative_to(debugged).as_posix() for path in debugged.rglob("*") if "checkpoint-" not in str(path)}
    assert names >= {
        *("config.json", "model.safetensors", "modeling_worldvla.py", "processor_config.json", "tokenizer.json"),
        *("vq_model/config.json", "processing_worldvla.py", "data_card.json", "training_args.json"),
        *("training_log.json", "metrics.json", "README.md"),
    }
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    options = json.loads((debugged / "training_args.json").read_text())
    assert (options["model"]["hidden_size"], options["data"]["chunk_size"]) == (32, 2)
    assert options["training"]["max_steps"] == 2
    metrics = json.loads((debugged / "metrics.json").read_text())
    assert metrics["step"] == 2 and metrics["eval_val_ind_loss_action"] > 0
    limits = json.loads((debugged / "processor_config.json").read_text())["action_limits"]
    assert len(limits["libero"]["low"]) == 7


def test_adapters_on_a_run_of_our_own(debugged, tokens, tmp_path):
    flags = ["--model_name_or_path", str(debugged), "--lora_rank", "2", "--dtype", "bfloat16", "--lora_alpha", "64"]
    flags += ["--learning_rate", "0.05", "--tokens", tokens, "--disable_tqdm", "true"]
    flags += ["--gradient_checkpointing", "true"]
    pytest.importorskip("peft", reason="optional: adapters")
    metrics = train.run.main([DEBUG, *flags, "--output_dir", str(tmp_path / "adapted")])
    assert metrics["eval_val_ind_loss_action"] > 0
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (debugged, tmp_path / "adapted")
    )
    assert before.keys() == after.keys()
    changed = {name for name, weight in before.items() if not torch.equal(weight.bfloat16(), after[name].bfloat16())}
    assert {name.split(".")[2] for name in changed} == {"0", "1"}  # of the first layer too: checkpointing cut nothing
    assert all(name.split(".")[-2].endswith("_proj") for name in changed)
    assert (tmp_path / "adapted" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_whole_model_goes_on_from_a_run_of_our_own(debugged, tokens, tmp_path):
    flags = [
        "--model_name_or_path",
        str(debugged),
        "--tokens",
        tokens,
        "--disable_tqdm",
        "true",
        "--learning_rate",
        "1e-9",
    ]
    train.run.main([DEBUG, *flags, "--output_dir", str(tmp_path / "on")])
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (debugged, tmp_path / "on"))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-5, atol=1e-6)


def test_an_ablation_of_real_runs(tokens, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="optional: the picture")

    def run(command):
        train.run.main([*command[1:], "--disable_tqdm", "true"])
        return 0

    monkeypatch.setattr(ablation, "run_command", run)
    flags = ["--recipe", DEBUG, "--tokens", tokens, "--output_dir", str(tmp_path), "--max_steps", "1"]
    flags += ["--world_model", "on", "--chunk_sizes", "1", "2", "--seeds", "0", "1", "--overrides", "save_strategy=no"]
    ablation.main(flags)
    cells = json.loads((tmp_path / "ablation.json").read_text())["cells"]
    assert [(cell["chunk_size"], cell["attention"]) for cell in cells] == [(1, "mask"), (2, "mask"), (2, "causal")]
    assert all(cell["estimates"]["val_ind_loss_action"]["value"] > 0 for cell in cells)
    masked, causal = (
        AutoModelForCausalLM.from_pretrained(tmp_path / f"joint-k2-{kind}" / "seed-1") for kind in ("mask", "causal")
    )
    assert (masked.config.use_action_attention_mask, causal.config.use_action_attention_mask) == (True, False)
    assert not torch.equal(masked.lm_head.weight, causal.lm_head.weight)
