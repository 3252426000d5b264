import numpy as np
import pytest
import torch
from PIL import Image

from tokenization import WorldVLAImageTokenizer, load_vq_model, vq_model_config
from tokenization.pixels_worldvla import convert_to_colours, convert_to_images, convert_to_rgb, resize_and_crop
from tokenization.vqgan_worldvla import stride_of

from .conftest import make_vq_model


def make(vq_model, **arguments):
    return WorldVLAImageTokenizer(vq_model, **{"image_size": (64, 32), "num_image_tokens": 64, **arguments})


def test_every_kind_of_image_is_read_alike(frames):
    pixels = frames[0]
    variants = [
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("RGBA"),
        pixels,
        pixels / 255,
        (pixels / 255).astype(np.float32),
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1) / 255,
        np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
    ]
    for image in variants:
        np.testing.assert_array_equal(convert_to_rgb(image), pixels)


def test_grey_is_repeated(frames):
    grey = frames[0, :, :, 0]
    expected = np.stack([grey] * 3, axis=-1)
    for image in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(convert_to_rgb(image), expected)


def test_transparency_becomes_white_as_recorded(recorded):
    pixels = recorded("pixels")
    np.testing.assert_array_equal(convert_to_rgb(pixels["rgba"]), pixels["whitened"])
    np.testing.assert_array_equal(convert_to_rgb(Image.fromarray(pixels["rgba"])), pixels["whitened"])


def test_resizing_is_as_recorded(recorded):
    pixels = recorded("pixels")
    np.testing.assert_array_equal(resize_and_crop(pixels["small"], (256, 256))[::8], pixels["small_cropped_rows"])


def test_the_crop_is_centred():
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255
    assert resize_and_crop(pixels, (32, 32)).min() == 255


def test_shrinking_averages():
    board = np.indices((128, 128)).sum(axis=0) % 2 * np.uint8(255)
    shrunk = resize_and_crop(np.stack([board] * 3, axis=-1).astype(np.uint8), (32, 32))
    assert shrunk.shape == (32, 32, 3) and np.unique(shrunk).tolist() in ([127], [128])


def test_colours_and_bytes_are_inverse():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    colours = convert_to_colours(pixels)
    assert colours.min() == -1 and colours.max() == 1
    np.testing.assert_array_equal(np.asarray(convert_to_images(colours)[0]), pixels[0])


def test_codes_and_pictures_have_the_expected_shapes(vq_model, frames):
    tokenizer = make(vq_model)
    codes = tokenizer.encode(list(frames))
    assert codes.dtype == torch.int64 and codes.shape == (4, 4, 2)
    assert len(codes.unique()) > 3
    pictures = tokenizer.decode(codes)
    assert [picture.size for picture in pictures] == [(32, 64)] * 4


def test_decoding_is_the_vqgans_own(vq_model, frames):
    tokenizer = make(vq_model)
    with torch.no_grad():
        own = vq_model(tokenizer.preprocess(list(frames[:1]))).sample
    np.testing.assert_array_equal(
        np.asarray(tokenizer.decode(tokenizer.encode(list(frames[:1])))[0]), np.asarray(convert_to_images(own)[0])
    )


def test_slices_change_nothing(vq_model, frames):
    whole, sliced = make(vq_model, slice_size=4), make(vq_model, slice_size=3)
    codes = whole.encode(list(frames))
    assert torch.equal(codes, sliced.encode(list(frames)))
    for one, other in zip(whole.decode(codes), sliced.decode(codes), strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_half_precision_around_it_does_not_change_codes(vq_model, frames):
    tokenizer = make(vq_model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(list(frames)), make(vq_model).encode(list(frames)))


def test_code_map_is_applied_both_ways(vq_model, frames):
    order = np.random.default_rng(1).permutation(64).tolist()
    plain, mapped = make(vq_model), make(vq_model, code_to_offset=order)
    codes = plain.encode(list(frames))
    ids = mapped.encode_to_ids(list(frames))
    np.testing.assert_array_equal(ids, 4 + np.array(order)[codes.numpy()])
    assert torch.equal(plain.encode_to_ids(list(frames)), codes + 4)
    for one, other in zip(mapped.decode_ids(ids), plain.decode(codes), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert plain.hash() != mapped.hash()


def test_hash_follows_the_weights():
    assert make(make_vq_model(0)).hash() == make(make_vq_model(0)).hash() != make(make_vq_model(1)).hash()


def test_presets():
    config = vq_model_config("chameleon")
    assert config["num_vq_embeddings"] == 8192 and len(config["down_block_types"]) == 5
    assert vq_model_config("tiny-128", layers_per_block=3)["layers_per_block"] == 3
    assert stride_of(make_vq_model()) == 16
    with pytest.raises(ValueError, match="Unknown VQ-GAN preset `tiny-12`.*Did you mean `tiny-128`?"):
        vq_model_config("tiny-12")


def test_weights_load_when_first_needed(vq_model, frames, tmp_path):
    calls = []
    tokenizer = make(lambda: calls.append(1) or vq_model)
    assert not calls
    tokenizer.encode(list(frames[:1]))
    tokenizer.encode(list(frames[:1]))
    assert calls == [1]
    with pytest.raises(OSError, match="lacks its VQ-GAN: vq_model/config.json, vq_model/diffusion_pytorch_model"):
        load_vq_model(str(tmp_path))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("frame.png", "must be convertible to RGB, got str"),
        (None, "got NoneType"),
        (np.zeros((8, 8, 2), np.uint8), r"shape \(H, W, C\), got \(8, 8, 2\)"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(H, W, C\), got \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), "must have pixels"),
        (np.zeros((8, 8, 3), np.int64), "must hold uint8 or floats, got int64"),
        (np.zeros((8, 8, 3), bool), "must hold uint8 or floats, got bool"),
        (np.zeros((8, 8, 3), object), "must hold uint8 or floats, got object"),
        (np.full((8, 8, 3), 255.0), r"Float images must lie in \[0, 1\], got values from 255.0 to 255.0"),
        (np.full((8, 8, 3), np.nan), r"Float images must lie in \[0, 1\]"),
        (torch.zeros(8, 8, 3), r"shape \(C, H, W\), got \(8, 8, 3\)"),
        (Image.new("F", (8, 8)), "got mode 'F'"),
    ],
)
def test_what_is_no_image_is_refused(vq_model, image, message):
    with pytest.raises(ValueError, match=message):
        make(vq_model).encode([image])


def test_other_mistakes_are_refused(vq_model):
    tokenizer = make(vq_model)
    with pytest.raises(ValueError, match="at least one image"):
        tokenizer.encode([])
    with pytest.raises(ValueError, match=r"VQ codes must lie in \[0, 64\), got 64 at position \(0, 1, 0\)"):
        tokenizer.decode(np.array([[[0, 1], [64, 2]]]))
    with pytest.raises(ValueError, match=r"Image token ids must lie in \[4, 68\), got 3 at position \(0, 0, 0\)"):
        tokenizer.decode_ids(torch.full((1, 2, 2), 3))
    with pytest.raises(ValueError, match=r"integers of shape \(B, h, w\), got int64 of shape \(2, 2\)"):
        tokenizer.decode_ids(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="has 64 codes, the vocabulary 32 image tokens"):
        make(vq_model, num_image_tokens=32)
    with pytest.raises(ValueError, match=r"multiples of 32 pixels .* got \(48, 32\)"):
        make(vq_model, image_size=(48, 32))
    with pytest.raises(ValueError, match=r"must be \(height, width\) in pixels, got 64"):
        make(vq_model, image_size=64)
    with pytest.raises(ValueError, match="hold each of 0 ... 63 once, got 2 entries"):
        make(vq_model, code_to_offset=[1, 1])
    with pytest.raises(ValueError, match="must be a diffusers `VQModel`, got str"):
        make("vq_model")
