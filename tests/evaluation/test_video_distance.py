import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from evaluation.video_distance import NETWORK, Fvd, frechet_distance


class MeanColours(torch.nn.Module):
    """Answers as the I3D network does: mean of each colour in the first and the last frame, scaled to -1 ... 1."""

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if rescale:
            x = x / 127.5 - 1
        return torch.cat([x[:, :, 0].mean(dim=(2, 3)), x[:, :, -1].mean(dim=(2, 3))], dim=1)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "network.pt"
    torch.jit.script(MeanColours()).save(str(path))
    return str(path)


@pytest.mark.parametrize("sizes", [(40, 30), (5, 4)])  # more clips than features, and fewer
def test_the_distance_is_that_of_the_formula(sizes):
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(8, 8))
    one, other = generator.normal(size=(sizes[0], 8)), generator.normal(size=(sizes[1], 8)) @ mixing + 1
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_the_distance_is_that_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    generator = np.random.default_rng(1)
    one, other = generator.normal(size=(50, 6)), 2 * generator.normal(size=(60, 6)) + 0.5
    moments = [torch.from_numpy(part) for x in (one, other) for part in (x.mean(0), np.cov(x, rowvar=False))]
    assert frechet_distance(one, other) == pytest.approx(float(fid._compute_fid(*moments)), rel=1e-6)


def test_known_gaussians():
    one = np.array([[-1.0], [1.0]])  # variance 2
    assert frechet_distance(one, one + 3) == pytest.approx(9)
    assert frechet_distance(one, 2 * one) == pytest.approx(2)  # (sqrt 8 - sqrt 2) squared


def test_features_are_those_of_the_network(network):
    clips = np.zeros((3, 9, 4, 4, 3), np.uint8)
    clips[:, -1, ..., 1] = 255
    features = Fvd(network, batch_size=2).features(clips)
    np.testing.assert_allclose(features, [[-1, -1, -1, -1, 1, -1]] * 3)


def test_what_cannot_be_compared_is_refused(network, tmp_path, monkeypatch):
    metric = Fvd(network)
    with pytest.raises(ValueError, match=r"at least 9 frames, got 8. Raise `--num_frames`"):
        metric.features(np.zeros((2, 8, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"uint8 clips of shape \(N, T, H, W, 3\), got float64"):
        metric.features(np.zeros((2, 9, 4, 4, 3)))
    with pytest.raises(ValueError, match="at least 2 clips on each side, got 1 and 5"):
        frechet_distance(np.zeros((1, 4)), np.zeros((5, 4)))
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no network")
    with pytest.raises(OSError, match="is no TorchScript network.*--fvd_network"):
        Fvd(str(broken))


def test_without_a_network_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=f"`{NETWORK}` is no file here and cannot be had.*--fvd_network.*`psnr` and"):
        Fvd()
