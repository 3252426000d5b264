"""The VQ-GAN that comes along: it fits its card, and reproduces a picture better than its mean colour does."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenization import WorldVLAImageTokenizer, load_vq_model
from tokenization.reconstruction_metrics import psnr

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints" / "vqgan-libero"


@pytest.fixture(scope="module")
def images():
    return WorldVLAImageTokenizer(load_vq_model(str(FOLDER)), image_size=(128, 128), num_image_tokens=1024)


def test_it_is_small_and_of_the_preset():
    files = list((FOLDER / "vq_model").iterdir())
    assert sum(file.stat().st_size for file in files) < 8_000_000
    assert {file.name for file in files} == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_it_draws_a_frame_of_the_simulator(images):
    frame = np.asarray(Image.open(FOLDER / "frame.png"))
    codes = images.encode([frame])
    assert codes.shape == (1, 8, 8)
    (picture,) = images.decode(codes)
    flat = np.broadcast_to(frame.mean((0, 1)), frame.shape).astype(np.uint8)
    assert psnr(np.asarray(picture)[None], frame[None])[0] > psnr(flat[None], frame[None])[0] + 8
