"""Image tokens, crops and pictures as the official code makes them, on a random VQ-GAN."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from tokenization import VocabularyLayout, WorldVLAImageTokenizer
from tokenization.convert_chameleon_vqgan import load_official_vq_model
from tokenization.pixels_worldvla import choose_crop_size, list_crop_sizes, resize_to_cover

from .recorded_vqgan import code_to_offset, input_picture, official_weights, vqgan_picture, write_official_vqgan

CASES = range(24)


@pytest.fixture(scope="module")
def images(recorded):
    return recorded("images")


@pytest.fixture(scope="module")
def vq_model(images, tmp_path_factory):
    return load_official_vq_model(write_official_vqgan(tmp_path_factory.mktemp("vqgan"), official_weights(images)))


def make(vq_model, image_size, **arguments):
    return WorldVLAImageTokenizer(vq_model, image_size, 8192, code_to_offset=code_to_offset(), **arguments)


class FixedDraws:
    """Stands for a generator that draws the recorded places."""

    def __init__(self, top, left):
        self.draws = [top, left]

    def integers(self, low, high, endpoint):
        return self.draws.pop(0)


def test_crop_sizes(images):
    for target in (256, 288, 512):
        assert list_crop_sizes((target, target), 32) == [tuple(size) for size in images[f"crop_sizes/{target}"]]


@pytest.mark.parametrize("number", CASES)
def test_every_image_gets_the_recorded_crop(images, number):
    target = int(images["cases"][number][1:4])
    height, width = images["input_hw"][number].tolist()
    size = choose_crop_size((height, width), list_crop_sizes((target, target), 32))
    assert size == tuple(images["crop_hw"][number])
    covering = resize_to_cover(np.zeros((height, width, 3), np.uint8), size)
    assert [covering.shape[1] - size[1], covering.shape[0] - size[0]] == images["largest_left_top"][number].tolist()


@pytest.mark.parametrize("number", CASES)
def test_every_image_gives_the_recorded_block(images, vq_model, number):
    name, layout = images["cases"][number], VocabularyLayout.official()
    picture = input_picture(number, *images["input_hw"][number].tolist())
    assert hashlib.md5(picture.tobytes()).digest() == images["input_md5"][number].tobytes()
    target, (left, top) = int(name[1:4]), images["drawn_left_top"][number]
    tokenizer = make(vq_model, (target, target), crop="variable")
    (ids,) = tokenizer.encode_each_to_ids([picture], FixedDraws(int(top), int(left)))
    block = images[f"tokens/{name}"].astype(int)
    rows, columns = (block[1:3] - layout.grid_token_id_start) * layout.codes_per_grid_unit
    assert ids.shape == (rows, columns)
    np.testing.assert_array_equal(block[3:-1].reshape(rows, columns + 1)[:, :-1], ids)


def test_codes_are_the_recorded_ones(images, vq_model):
    pictures = [vqgan_picture(0), vqgan_picture(1)]
    codes = make(vq_model, (256, 256)).encode(pictures)
    for number in (0, 1):
        np.testing.assert_array_equal(codes[number].flatten(), images[f"indices{number}"])


def test_codes_of_a_wide_picture_grey_and_transparent_ones(images, vq_model):
    picture = Image.fromarray(vqgan_picture(0))
    wide = picture.resize((288, 256), Image.Resampling.BICUBIC).resize((288, 224), Image.Resampling.BICUBIC)
    codes = make(vq_model, (224, 288)).encode([wide])
    assert codes.shape == (1, 14, 18)
    np.testing.assert_array_equal(codes.flatten(), images["wide_indices"])
    tokenizer = make(vq_model, (256, 256))
    grey = Image.fromarray(vqgan_picture(1)).convert("L")
    np.testing.assert_array_equal(tokenizer.encode([grey]).flatten(), images["gray_indices"])
    height, width, alpha = images["rgba_alpha_block"].tolist()
    transparent = np.dstack([vqgan_picture(1), np.full((256, 256), 255, np.uint8)])
    transparent[:height, :width, 3] = alpha
    for image in (transparent, Image.fromarray(transparent)):
        np.testing.assert_array_equal(tokenizer.encode([image]).flatten(), images["rgba_indices"])


def test_latents_and_decoded_colours_are_the_recorded_ones(images, vq_model):
    tokenizer = make(vq_model, (256, 256))
    for number in (0, 1):
        colours = tokenizer.preprocess([vqgan_picture(number)])
        codes = torch.from_numpy(images[f"indices{number}"].astype(np.int64))
        with torch.no_grad():
            latents = vq_model.encode(colours).latents[0]
            decoded = vq_model.decode(codes, force_not_quantize=True, shape=(1, 16, 16, 16)).sample[0]
        # The recording holds float16: half a unit in the last place on top of 1e-4.
        for ours, theirs in ((latents, images[f"z{number}"]), (decoded[:, ::8], images[f"decoded{number}"])):
            theirs = theirs.astype(np.float32)
            assert (np.abs(ours.numpy() - theirs) <= 1e-4 + np.abs(theirs) * 2.0**-11).all()
        # Theirs cuts colours off where ours rounds them, and 1e-4 of colour is 0.013 of a byte.
        exact = (decoded[:, ::8].clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
        theirs = images[f"decoded_u8_{number}"]
        assert (np.floor(exact - 0.02) <= theirs).all() and (theirs <= np.floor(exact + 0.02)).all()
        assert (np.floor(exact) == theirs).mean() > 0.999
        (ours,) = tokenizer.decode(codes.reshape(1, 16, 16))
        np.testing.assert_array_equal(np.asarray(ours)[::8], np.round(exact))


def test_pictures_of_token_ids_are_the_recorded_ones(images, vq_model):
    ids = images["decode_tokens"].astype(int)[3:-1].reshape(16, 17)[:, :-1]
    (picture,) = make(vq_model, (256, 256)).decode_ids(ids[None])
    difference = np.asarray(picture)[::8].astype(int) - images["decode_pixels"]
    assert set(np.unique(difference)) <= {0, 1}  # rounded, where theirs is cut off


def test_the_rules_make_what_was_recorded(recorded_behaviour, images):
    weights = torch.load(recorded_behaviour / "vqgan_small" / "vqgan.ckpt", weights_only=True)["state_dict"]
    made = official_weights(images)
    assert weights.keys() == made.keys()
    assert all(torch.equal(weights[name], made[name]) for name in weights)
    whole, pictures = np.load(recorded_behaviour / "tokenize.npz"), np.load(recorded_behaviour / "vqgan_small.npz")
    np.testing.assert_array_equal(whole["vocab/img2bpe_mapping_tensor"], np.array(code_to_offset()) + 4)
    np.testing.assert_array_equal(pictures["image1"], vqgan_picture(1))
    np.testing.assert_array_equal(whole["img/T256_640x480/input"], input_picture(3, 480, 640))


def test_whole_pictures_are_the_recorded_ones(recorded_behaviour, vq_model):
    pictures = np.load(recorded_behaviour / "vqgan_small.npz")
    tokenizer = make(vq_model, (256, 256))
    for number in (0, 1):
        codes = tokenizer.encode([pictures[f"image{number}"]])
        np.testing.assert_array_equal(codes.flatten(), pictures[f"indices{number}_fp64"])
        with torch.no_grad():
            decoded = vq_model.decode(codes.flatten(), force_not_quantize=True, shape=(1, 16, 16, 16)).sample[0]
        theirs = pictures[f"decoded{number}"].astype(np.float32)
        assert (np.abs(decoded.numpy() - theirs) <= 1e-4 + np.abs(theirs) * 2.0**-11).all()
    tokens = np.load(recorded_behaviour / "tokenize.npz")
    cropped = resize_to_cover(tokens["img/T256_640x480/input"], (224, 288))[:224, 6 : 6 + 288]
    np.testing.assert_array_equal(cropped, tokens["img/T256_640x480/cropped"])
