import builtins
import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
import torch

from tokenization.reconstruction_metrics import Lpips, codebook_perplexity, make_metric, psnr, ssim


@pytest.fixture(scope="module")
def pair():
    generator = np.random.default_rng(0)
    reference = generator.integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    noise = generator.integers(-20, 21, reference.shape)
    return (reference + noise).clip(0, 255).astype(np.uint8), reference


def test_psnr_by_hand():
    reference = np.full((3, 2, 2, 3), 100, np.uint8)
    frames = reference.copy()
    frames[0] += 10  # squared error 100 everywhere: 10 log10(65025 / 100)
    frames[1, 0, 0, 0] = 88  # 144 in one of 12 values: 12 on average
    found = psnr(frames, reference)
    assert found.shape == (3,)
    assert found[0] == pytest.approx(28.1308, abs=1e-3)
    assert found[1] == pytest.approx(37.3389, abs=1e-3)
    assert found[2] == np.inf


def test_psnr_of_bytes_does_not_wrap_around():
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert psnr(black, white)[0] == psnr(white, black)[0] == 0


def test_psnr_of_other_shapes_is_refused():
    message = r"Cannot compare frames of shape \(2, 2, 2, 3\) with frames of shape \(3, 2, 2, 3\)\."
    with pytest.raises(ValueError, match=message):
        psnr(np.zeros((2, 2, 2, 3), np.uint8), np.zeros((3, 2, 2, 3), np.uint8))


def test_psnr_inside_a_mask_by_hand():
    reference = np.full((2, 4, 4, 3), 100, np.uint8)
    pictures = reference.copy()
    pictures[0, :2] += 10
    pictures[0, 2:] += 50
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 1, 1:3] = True
    found = psnr(pictures, reference, masks)
    assert found[0] == pytest.approx(28.1308, abs=1e-3)  # 10 everywhere in the mask
    assert np.isnan(found[1])  # an empty mask


def test_psnr_is_that_of_torchmetrics(pair):
    functional = pytest.importorskip("torchmetrics.functional.image")
    pictures, reference = (torch.from_numpy(array).double() for array in pair)
    expected = [
        functional.peak_signal_noise_ratio(p, r, data_range=255.0) for p, r in zip(pictures, reference, strict=True)
    ]
    np.testing.assert_allclose(psnr(*pair), expected, rtol=1e-6)


def test_ssim_by_its_formula(pair):
    """Against scipy's Gaussian filter."""
    pytest.importorskip("torchmetrics")
    filters = pytest.importorskip("scipy.ndimage")

    def blurred(values):
        return filters.gaussian_filter(values, sigma=(1.5, 1.5, 0), radius=(5, 5, 0), mode="mirror")

    similarity = []
    for x, y in zip(*(array.astype(np.float64) for array in pair), strict=True):
        mean_x, mean_y = blurred(x), blurred(y)
        spread_x, spread_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
        shared = blurred(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        parts = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
        similarity.append(parts / ((mean_x**2 + mean_y**2 + c1) * (spread_x + spread_y + c2)))
    np.testing.assert_allclose(ssim(*pair), np.array(similarity).mean(axis=(1, 2, 3)), rtol=1e-5)

    masks = np.zeros(pair[0].shape[:3], bool)
    masks[0, 7:12, 8:20] = True
    masks[2, 10, 10] = True
    found = ssim(*pair, masks)
    np.testing.assert_allclose(found[0], np.array(similarity)[0, 7:12, 8:20].mean(), rtol=1e-5)
    np.testing.assert_allclose(found[2], np.array(similarity)[2, 10, 10].mean(), rtol=1e-5)
    assert np.isnan(found[1])


def test_equal_pictures_are_alike(pair):
    pytest.importorskip("torchmetrics")
    np.testing.assert_allclose(ssim(pair[1], pair[1]), 1.0)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_shapes_that_do_not_fit_are_refused(pair, measure):
    with pytest.raises(ValueError, match=r"Cannot compare frames of shape \(2, 24, 32, 3\) with frames of shape"):
        measure(pair[0][:2], pair[1])
    for masks in (np.ones((3, 24, 24), bool), np.ones((3, 24, 32), np.uint8)):
        with pytest.raises(ValueError, match=r"Masks must be bool of shape \(3, 24, 32\), one a picture, got"):
            measure(*pair, masks)


def test_codebook_perplexity_by_hand():
    assert codebook_perplexity(np.array([5, 5, 5, 5, 0])) == pytest.approx(4.0)
    assert codebook_perplexity(np.array([0, 7, 0])) == pytest.approx(1.0)
    assert codebook_perplexity(np.array([3, 1])) == pytest.approx(4 / 27**0.25)


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match=r"Unknown metric `psrn`\. Choose one of: .* Did you mean `psnr`\?"):
        make_metric("psrn")


@pytest.mark.parametrize("name", ["ssim", "lpips", "rfid"])
def test_missing_torchmetrics_is_said(name, monkeypatch):
    real_import = builtins.__import__

    def refuse(module, *args, **kwargs):
        if module.split(".")[0] == "torchmetrics":
            raise ImportError("No module named 'torchmetrics'")
        return real_import(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=rf"The metric `{name}` needs torchmetrics .*worldvla\[eval\]"):
        make_metric(name)


def stand_in(monkeypatch, module, name, made):
    """Let torchmetrics' module hold another class."""
    pytest.importorskip("torchmetrics")
    replaced = types.ModuleType(module)
    setattr(replaced, name, made)
    monkeypatch.setitem(sys.modules, module, replaced)


@pytest.mark.parametrize(
    ("name", "module", "class_name", "package"),
    [
        ("lpips", "torchmetrics.image.lpip", "LearnedPerceptualImagePatchSimilarity", "torchvision"),
        ("rfid", "torchmetrics.image.fid", "FrechetInceptionDistance", "torch-fidelity"),
    ],
)
def test_metrics_that_cannot_run_say_what_is_missing(name, module, class_name, package, monkeypatch):
    def no_package(**options):
        raise ModuleNotFoundError(f"needs {package}")

    def no_weights(**options):
        raise URLError("no route")

    stand_in(monkeypatch, module, class_name, no_package)
    with pytest.raises(ImportError, match=rf"`{name}` cannot run here \(needs {package}\)\. Install .*{package}"):
        make_metric(name)
    stand_in(monkeypatch, module, class_name, no_weights)
    with pytest.raises(
        OSError, match=rf"`{name}` lacks the weights .*no route.*checkpoints`, or leave the metric out"
    ):
        make_metric(name)


class MeanDistance(torch.nn.Module):
    """Stands in for the network: mean absolute difference; notes what it is shown."""

    def __init__(self, **options):
        super().__init__()
        self.shown = []

    def forward(self, one, other):
        self.shown.append(tuple(one.shape))
        assert one.min() >= -1 and one.max() <= 1
        return (one - other).abs().mean()


def test_lpips_compares_pictures_one_by_one_and_regions_as_crops(monkeypatch):
    stand_in(monkeypatch, "torchmetrics.image.lpip", "LearnedPerceptualImagePatchSimilarity", MeanDistance)
    metric = Lpips()
    reference = np.zeros((2, 48, 64, 3), np.uint8)
    pictures = reference.copy()
    pictures[0] = 255
    pictures[1, :40, :40] = 51
    np.testing.assert_allclose(metric(pictures, reference), [2.0, 0.4 * 40 * 40 / (48 * 64)], rtol=1e-5)
    assert metric._network.shown == [(1, 3, 48, 64)] * 2

    masks = np.zeros((2, 48, 64), bool)
    masks[1, 2:6, 2:6] = True  # a box of 32 x 32 around it lies within the changed part
    found = metric(pictures, reference, masks)
    assert np.isnan(found[0]) and found[1] == pytest.approx(0.4)
    assert metric._network.shown[2:] == [(1, 3, 64, 64)]


def test_rfid_adds_pictures_to_the_right_sets(monkeypatch):
    class Sets(torch.nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.sums = {True: 0.0, False: 0.0}

        def update(self, pictures, real):
            assert pictures.dtype == torch.uint8 and pictures.shape[1] == 3
            self.sums[real] += float(pictures.sum())

        def compute(self):
            return torch.tensor(self.sums[False] - self.sums[True])

    stand_in(monkeypatch, "torchmetrics.image.fid", "FrechetInceptionDistance", Sets)
    metric = make_metric("rfid")
    for value in (1, 2):
        metric.update(np.full((1, 2, 2, 3), 3 * value, np.uint8), np.full((1, 2, 2, 3), value, np.uint8))
    assert metric.compute() == 2 * 12 * (1 + 2)
