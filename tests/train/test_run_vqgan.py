"""train/run_vqgan.py at tiny size, as a user types it: it learns, resumes to the bit, and runs in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from diffusers import VQModel
from PIL import Image

import tokenization
import train.run_vqgan
from train import vqgan_reports
from train.run_settings import SETTINGS
from train.vqgan_checkpoints import last_checkpoint
from train.vqgan_objective import VQGANObjective
from train.vqgan_trainer import VQGANTrainer

from .made_up_demonstrations import SIZE, TINY_VQ_MODEL, write_demonstrations

ROOT = Path(__file__).resolve().parents[2]
EVERY_TERM = {"perceptual": "segmentation_features", "perceptual_weight": 0.5, "region_patch_size": 16}
EVERY_TERM |= {"adversarial_weight": 0.1, "adversarial_start": 2, "discriminator_warmup": 1}
EVERY_TERM |= {"discriminator_channels": 8, "discriminator_layers": 2}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    path = tmp_path_factory.mktemp("demonstrations") / "square_demo.hdf5"
    return write_demonstrations(path, cameras=("agentview", "wrist"), masks=True)


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    patch = pytest.MonkeyPatch()
    patch.setitem(tokenization.VQ_MODEL_PRESETS, "tiny-128", TINY_VQ_MODEL)
    yield
    patch.undo()


def flags_of(demonstrations, folder, steps, **options):
    settings = {"demonstrations": demonstrations, "output_dir": folder, "max_steps": steps, "batch_size": 4}
    settings |= {"save_every": 2, "revive_every": 2, "warmup_steps": 1, "log_every": 1, "eval_every": 3}
    settings |= {"cameras": ["agentview", "wrist"], "regions": "segmentation:0.5", "region_pixel_weight": 2.0}
    settings |= {"ema_decay": 0.9, "image_every": 3} | EVERY_TERM | options
    return [
        str(part)
        for key, value in settings.items()
        for part in (f"--{key}", *(value if isinstance(value, list) else [value]))
    ]


def train_vqgan(demonstrations, folder, steps, **options):
    train.run_vqgan.main(flags_of(demonstrations, folder, steps, **options))
    return folder / "vq_model"


def read_log(folder, key="psnr"):
    return [line for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if key in line]


@pytest.fixture(scope="module")
def whole_run(demonstrations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqgan")
    train_vqgan(demonstrations, folder, 6)
    return folder


def test_vqgan_learns(demonstrations, tmp_path):
    plain = {
        "perceptual": "none",
        "adversarial_weight": 0,
        "moving_region_weight": 0,
        "ema_decay": 0,
        "image_every": 0,
    }
    train_vqgan(demonstrations, tmp_path, 15, eval_every=5, **plain)
    log, judged = read_log(tmp_path), read_log(tmp_path, "held_out_psnr")
    assert log[-1]["reconstruction"] < 0.8 * log[0]["reconstruction"]
    assert [line["step"] for line in judged] == [5, 10, 15]
    assert judged[-1]["held_out_psnr"] > judged[0]["held_out_psnr"] + 1


def test_vqgan_says_how_it_does(whole_run):
    log, judged = read_log(whole_run), read_log(whole_run, "held_out_psnr")
    assert [line["step"] for line in log] == list(range(1, 7))
    assert all(0 < line["codes_used"] <= 1 <= line["perplexity"] <= 16 for line in log)
    assert [line["step"] for line in judged] == [3, 6]
    assert all(line["held_out_psnr_regions"] > 0 for line in judged)


def test_every_term_begins_when_it_should(whole_run):
    log = read_log(whole_run)
    assert all({"reconstruction", "codebook", "perceptual", "regions_segmentation"} <= set(line) for line in log)
    assert [line["step"] for line in log if "discriminator" in line] == [2, 3, 4, 5, 6]
    assert [line["step"] for line in log if "adversarial" in line] == [3, 4, 5, 6]


def test_reconstructions_are_drawn_beside_their_originals(whole_run):
    pictures = sorted((whole_run / "reconstructions").iterdir())
    assert [path.name for path in pictures] == ["step-0000003.png", "step-0000006.png"]
    assert Image.open(pictures[0]).size == (8 * SIZE, 2 * SIZE)


def test_a_tracker_that_is_not_there_is_named(demonstrations, tmp_path, monkeypatch):
    monkeypatch.setattr(vqgan_reports, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"`--report_to trackio` needs the package.*choose `--report_to none`"):
        train_vqgan(demonstrations, tmp_path, 1, report_to="trackio")


def test_a_tracker_gets_numbers_and_pictures(demonstrations, tmp_path, monkeypatch):
    class Recorder(GeneralTracker):
        name, requires_logging_directory, tracker = "tensorboard", False, None
        numbers, pictures, settings = [], [], {}

        def store_init_configuration(self, values):
            self.settings.update(values)

        def log(self, values, step, **_):
            self.numbers.append((step, values))

        def log_images(self, values, step, **_):
            self.pictures.append((step, values["reconstructions"].shape))

    def make(*args, log_with, **kwargs):
        return Accelerator(*args, log_with=Recorder(), **kwargs)

    monkeypatch.setattr(vqgan_reports, "find_spec", lambda _: True)
    monkeypatch.setattr(train.run_vqgan, "Accelerator", make)
    train_vqgan(demonstrations, tmp_path, 2, report_to="tensorboard", image_every=2)
    assert [step for step, values in Recorder.numbers if "psnr" in values] == [1, 2]
    assert Recorder.pictures == [(2, (1, 2 * SIZE, 8 * SIZE, 3))]
    assert Recorder.settings["cameras"] == '["agentview", "wrist"]'


def test_regions_without_a_perceptual_network_are_said_to_be_only_judged(demonstrations, tmp_path, caplog):
    train_vqgan(demonstrations, tmp_path, 1, perceptual="none")
    assert "No region loss with `--perceptual none`" in caplog.text
    assert "regions_segmentation" not in read_log(tmp_path)[0]
    assert "held_out_psnr_regions" in read_log(tmp_path, "held_out_psnr")[0]


def test_the_last_step_is_always_logged(demonstrations, tmp_path):
    train_vqgan(demonstrations, tmp_path, 3, log_every=2)
    assert [line["step"] for line in read_log(tmp_path)] == [2, 3]


def kill_in_step(monkeypatch, step):
    def die(self, batch, done):
        if done == step:
            raise KeyboardInterrupt
        return take_step(self, batch, done)

    take_step = VQGANTrainer.step
    monkeypatch.setattr(VQGANTrainer, "step", die)


def test_interrupted_vqgan_equals_uninterrupted(demonstrations, whole_run, tmp_path, monkeypatch):
    kill_in_step(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        train_vqgan(demonstrations, tmp_path, 6)
    assert last_checkpoint(tmp_path)[1] == 4
    assert read_log(tmp_path)[-1]["step"] == 5
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "recon')
    monkeypatch.undo()
    resumed = VQModel.from_pretrained(train_vqgan(demonstrations, tmp_path, 6)).state_dict()
    whole = VQModel.from_pretrained(whole_run / "vq_model").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # Steps that came after the checkpoint stand in the log once, and a line that was cut off is gone.
    assert (tmp_path / "log.jsonl").read_text() == (whole_run / "log.jsonl").read_text()


def test_vqgan_refuses_a_folder_of_other_settings(demonstrations, whole_run):
    with pytest.raises(ValueError, match="holds a run with other settings.*seed: 0 -> 7.*Choose another"):
        train_vqgan(demonstrations, whole_run, 6, seed=7)


def test_options_that_came_later_count_as_defaults(demonstrations, tmp_path, monkeypatch):
    kill_in_step(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train_vqgan(demonstrations, tmp_path, 4)
    monkeypatch.undo()
    settings = json.loads((tmp_path / SETTINGS).read_text())
    del settings["commitment_weight"]
    (tmp_path / SETTINGS).write_text(json.dumps(settings | {"an_option_of_old": 3}))
    with pytest.raises(ValueError, match=r"commitment_weight: 1.0 -> 0.25"):
        train_vqgan(demonstrations, tmp_path, 4, commitment_weight=0.25)
    train_vqgan(demonstrations, tmp_path, 4)


def test_a_finished_folder_is_not_overwritten(demonstrations, tmp_path):
    train_vqgan(demonstrations, tmp_path, 1)
    with pytest.raises(FileExistsError, match="already holds a finished VQ-GAN. Choose another folder"):
        train_vqgan(demonstrations, tmp_path, 1)


def test_training_goes_on_from_another_vqgan(demonstrations, whole_run, tmp_path):
    train_vqgan(demonstrations, tmp_path, 1, vq_model=whole_run, learning_rate=1e-5)
    assert read_log(tmp_path)[0]["psnr"] > read_log(whole_run)[0]["psnr"] + 0.5


def test_not_finite_gradients_stop_before_the_weights_are_spoilt(demonstrations, tmp_path, monkeypatch):
    def spoil(self, batch, result, done):
        loss, terms = compute_loss(self, batch, result, done)
        return (
            (loss * float("nan"), terms | {"codebook": float("nan") * loss.detach()}) if done == 3 else (loss, terms)
        )

    compute_loss = VQGANObjective.loss
    monkeypatch.setattr(VQGANObjective, "loss", spoil)
    message = (
        r"Step 3: gradients are not finite.*codebook nan.*The checkpoint of step 2 is kept. Lower `--learning_rate`"
    )
    with pytest.raises(FloatingPointError, match=message):
        train_vqgan(demonstrations, tmp_path, 6)
    assert last_checkpoint(tmp_path)[1] == 2


def test_pictures_that_do_not_divide_into_codes_are_refused(demonstrations, tmp_path):
    with pytest.raises(ValueError, match=r"Pictures of \(24, 24\) pixels do not divide into codes of 16 pixels"):
        train_vqgan(demonstrations, tmp_path, 1, image_size=24)


def launch(*flags, port):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += ["train/run_vqgan.py", *flags]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-9000:]


def test_two_processes_equal_one(demonstrations, tmp_path):
    """Each process takes half the batch: the same pictures, losses, revived codes and judgement."""
    one, two = tmp_path / "one", tmp_path / "two"
    tiny = VQModel(**tokenization.vq_model_config("tiny-128"))  # the subprocesses do not see the patched preset
    tiny.save_pretrained(tmp_path / "start" / "vq_model")
    options = {"learning_rate": 1e-4, "vq_model": tmp_path / "start"}
    train_vqgan(demonstrations, one, 3, batch_size=4, **options)
    launch(*flags_of(demonstrations, two, 3, batch_size=2, **options), port=29534)
    for first, second in zip(read_log(one, "step"), read_log(two, "step"), strict=True):
        assert second == pytest.approx(first, rel=2e-3)


def test_a_file_of_half_the_size_is_loaded_in_float32(tmp_path):
    model = VQModel(**tokenization.vq_model_config("tiny-128"))
    for dtype in ("float32", "float16"):
        train.run_vqgan.save_model(model, tmp_path / dtype / "vq_model", dtype)
    sizes = {
        dtype: (tmp_path / dtype / "vq_model" / "diffusion_pytorch_model.safetensors").stat().st_size
        for dtype in ("float32", "float16")
    }
    assert sizes["float16"] < 0.6 * sizes["float32"] and model.dtype == torch.float32
    loaded = tokenization.load_vq_model(str(tmp_path / "float16"))
    assert loaded.dtype == torch.float32
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half().float())


def test_the_codes_of_a_trained_vqgan_are_kept(demonstrations, tmp_path):
    first = train_vqgan(demonstrations, tmp_path / "first", 3)
    start = tokenization.load_vq_model(str(first.parent))
    options = {"vq_model": first.parent, "learning_rate": 1e-12, "ema_decay": 0.0, "revive_every": 50}
    second = train_vqgan(demonstrations, tmp_path / "second", 3, **options)
    codes = tokenization.load_vq_model(str(second.parent)).quantize.embedding.weight
    assert torch.allclose(codes, start.quantize.embedding.weight, atol=1e-9)
