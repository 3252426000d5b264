import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image

from tokenization import WorldVLAImageTokenizer, load_vq_model, vq_model_config
from tokenization.pixels_worldvla import (
    choose_crop_size,
    convert_to_colours,
    convert_to_images,
    convert_to_rgb,
    list_crop_sizes,
    resize_and_crop,
)
from tokenization.vqgan_worldvla import full_precision, stride_of

from .conftest import make_vq_model

NUM_CHAMELEON_WEIGHTS = 68_718_467


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


def test_the_random_crop_needs_a_generator_and_follows_it(vq_model):
    pixels = np.repeat(np.arange(96, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    places = [resize_and_crop(pixels, (32, 32), np.random.default_rng(seed))[0, 0, 0] for seed in range(1000)]
    assert set(places) == set(range(65))
    assert resize_and_crop(pixels, (32, 32))[0, 0, 0] == 32
    tokenizer = make(vq_model, image_size=(32, 32))
    drawn = [tokenizer.preprocess([pixels] * 2, np.random.default_rng(3)) for _ in range(2)]
    assert torch.equal(*drawn) and not torch.equal(drawn[0][0], drawn[0][1])
    assert torch.equal(*tokenizer.preprocess([pixels] * 2))


def test_crop_sizes_fit_into_the_area_and_choose_the_shape():
    sizes = list_crop_sizes((128, 128), 32)
    assert (128, 128) in sizes and all(h * w <= 128**2 and max(h, w) <= 4 * min(h, w) for h, w in sizes)
    assert choose_crop_size((480, 480), sizes) == (128, 128)
    assert choose_crop_size((100, 400), sizes) == (64, 256)
    assert choose_crop_size((400, 100), sizes) == (256, 64)


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


@pytest.mark.parametrize("size", [(32, 96), (96, 32), (64, 160)])
def test_any_multiple_of_the_unit_is_a_size(vq_model, frames, size):
    tokenizer = make(vq_model, image_size=size)
    codes = tokenizer.encode(list(frames))
    assert codes.shape == (4, size[0] // 16, size[1] // 16)
    assert tokenizer.decode(codes)[0].size == size[::-1]


def test_images_of_different_shapes_keep_theirs(vq_model):
    draw = np.random.default_rng(5)
    images = [
        draw.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in [(64, 64), (40, 160), (64, 64), (120, 30)]
    ]
    variable = make(vq_model, image_size=(64, 64), crop="variable", slice_size=2)
    codes = variable.encode_each(images)
    assert [tuple(grid.shape) for grid in codes] == [(4, 4), (2, 8), (4, 4), (8, 2)]
    fixed = make(vq_model, image_size=(64, 64))
    assert torch.equal(torch.stack([codes[0], codes[2]]), fixed.encode([images[0], images[2]]))
    assert torch.equal(codes[1], make(vq_model, image_size=(32, 128)).encode([images[1]])[0])
    assert [ids.shape for ids in variable.encode_each_to_ids(images)] == [grid.shape for grid in codes]
    assert torch.equal(variable.encode(images[:1]), codes[0][None])
    with pytest.raises(ValueError, match=r"sizes do not fit .* \[\(2, 8\), \(4, 4\), \(8, 2\)\]. Use `encode_each`"):
        variable.encode(images)
    with pytest.raises(ValueError, match="different sizes do not fit into one tensor"):
        variable.preprocess(images)


def test_slices_bound_what_the_vqgan_sees(vq_model, frames, monkeypatch):
    seen, encode = [], vq_model.encode
    monkeypatch.setattr(vq_model, "encode", lambda colours: seen.append(tuple(colours.shape)) or encode(colours))
    make(vq_model, slice_size=3).encode(list(frames))
    assert seen == [(3, 3, 64, 32), (1, 3, 64, 32)]
    tokenizer = make(vq_model)
    assert [tokenizer.images_at_once(*size) for size in [(128, 128), (256, 256), (512, 512)]] == [4, 1, 1]


def test_half_precision_is_refused(frames):
    tokenizer = make(make_vq_model())
    for move in (lambda: tokenizer.to(torch.float16), lambda: tokenizer.to("cpu", dtype=torch.bfloat16)):
        with pytest.raises(
            ValueError, match=r"VQ-GAN stays in float32, .* changes the codes of images; got torch\.\w*"
        ):
            move()
    assert tokenizer.vq_model.dtype == torch.float32
    tokenizer.vq_model.half()
    for use in (lambda: tokenizer.encode(list(frames)), lambda: tokenizer.decode(np.zeros((1, 4, 2), int))):
        with pytest.raises(ValueError, match=r"got torch\.float16"):
            use()
    with pytest.raises(ValueError, match=r"got torch\.bfloat16"):
        make(make_vq_model().bfloat16())


def test_double_precision_gives_the_same_codes(frames):
    tokenizer = make(make_vq_model())
    codes = tokenizer.encode(list(frames))
    assert torch.equal(tokenizer.to(dtype=torch.float64).encode(list(frames)), codes)
    assert tokenizer.vq_model.dtype == torch.float64


def test_settings_of_torch_do_not_change_codes_and_are_put_back(vq_model, frames):
    expected, before = make(vq_model).encode(list(frames)), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        settings = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        with full_precision("cpu"):
            assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert settings == (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
        assert torch.equal(make(vq_model).encode(list(frames)), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


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


def test_ids_are_looked_up_in_the_codebook(vq_model):
    order = np.random.default_rng(0).permutation(64)
    tokenizer = make(vq_model, code_to_offset=order.tolist(), image_token_id_start=7)
    codes = torch.arange(8).view(1, 2, 4)
    vectors = tokenizer.embed_ids(torch.from_numpy(order)[codes] + 7)
    assert torch.equal(vectors, vq_model.quantize.embedding.weight[codes])
    assert not vectors.requires_grad
    with pytest.raises(ValueError, match="Image token ids"):
        tokenizer.embed_ids(torch.full((1, 2, 2), 6))
    with pytest.raises(ValueError, match=r"integers of shape \(B, h, w\)"):
        tokenizer.embed_ids(torch.full((2, 2), 7))


def test_hash_follows_the_weights():
    assert make(make_vq_model(0)).hash() == make(make_vq_model(0)).hash() != make(make_vq_model(1)).hash()


def test_presets():
    config = vq_model_config("chameleon")
    assert config["num_vq_embeddings"] == 8192 and len(config["down_block_types"]) == 5
    assert vq_model_config("tiny-128", layers_per_block=3)["layers_per_block"] == 3
    assert stride_of(make_vq_model()) == 16
    with pytest.raises(ValueError, match="Unknown VQ-GAN preset `tiny-12`.*Did you mean `tiny-128`?"):
        vq_model_config("tiny-12")


def test_the_chameleon_preset_is_the_official_vqgan():
    with torch.device("meta"):
        vq_model = VQModel(**vq_model_config("chameleon"))
    assert sum(weight.numel() for weight in vq_model.parameters()) == NUM_CHAMELEON_WEIGHTS
    assert stride_of(vq_model) == 16
    assert tuple(vq_model.quantize.embedding.weight.shape) == (8192, 256)


def test_a_move_before_loading_is_remembered(frames):
    calls = []
    tokenizer = make(lambda: calls.append(1) or make_vq_model()).to("meta")
    assert not calls
    assert tokenizer.vq_model.device.type == "meta" and calls == [1]
    with pytest.raises(ValueError, match="stays in float32"):
        tokenizer.to(torch.float16)


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
    with pytest.raises(ValueError, match="`slice_size` must be at least 1, got 0"):
        make(vq_model, slice_size=0)
    with pytest.raises(ValueError, match="Unknown crop `centred`. Choose one of: `fixed`, `variable`"):
        make(vq_model, crop="centred")
    with pytest.raises(ValueError, match="must be a diffusers `VQModel`, got str"):
        make("vq_model")
