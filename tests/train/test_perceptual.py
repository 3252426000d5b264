import json
import sys
import types

import numpy as np
import pytest
import torch

import train.run_perceptual
from train.perceptual import (
    SEGMENTATION_FEATURES,
    FeatureDistance,
    SegmentationFeatures,
    make_perceptual_distance,
)
from train.run_perceptual import cut_randomly

from .made_up_demonstrations import SIZE, write_demonstrations


def test_shipped_weights_are_small_and_have_a_card():
    network = SegmentationFeatures.from_file()
    assert SEGMENTATION_FEATURES.stat().st_size < 1_000_000
    assert sum(value.numel() for value in network.parameters()) < 250_000
    card = json.loads(SEGMENTATION_FEATURES.with_suffix(".json").read_text("utf-8"))
    assert card["parameters"] == sum(value.numel() for value in network.parameters())
    assert card["held_out"]["pixel_accuracy"] > 0.85  # the background alone is 0.6


def test_features_halve_from_stage_to_stage():
    features = SegmentationFeatures((4, 6, 8))(torch.zeros(2, 3, 16, 8))
    assert [tuple(values.shape) for values in features] == [(2, 4, 16, 8), (2, 6, 8, 4), (2, 8, 4, 2)]


def test_weights_survive_saving(tmp_path):
    torch.manual_seed(0)
    network = SegmentationFeatures((4, 6, 8))
    network.save(tmp_path / "weights.safetensors")
    again = SegmentationFeatures.from_file(tmp_path / "weights.safetensors")
    pictures = torch.rand(1, 3, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(network(pictures), again(pictures), strict=True))
    with pytest.raises(FileNotFoundError, match="`train/run_perceptual.py` makes them"):
        SegmentationFeatures.from_file(tmp_path / "nowhere.safetensors")


def test_distance_by_hand():
    class TwoStages(torch.nn.Module):
        def forward(self, pictures):
            return [pictures[:, :2], pictures[:, 1:]]

    one = torch.tensor([[3.0, 4.0, 0.0]]).view(1, 3, 1, 1) * 1000  # unit length: (.6, .8) and (1, 0)
    other = torch.tensor([[1.0, 0.0, 0.0]]).view(1, 3, 1, 1) * 1000  # (1, 0) and (0, 0)
    expected = (((0.6 - 1) ** 2 + 0.8**2) + 1.0) / 2
    assert FeatureDistance(TwoStages())(one, other).tolist() == pytest.approx([expected], abs=1e-5)


def test_distance_grows_with_what_is_lost_and_gives_gradients_to_the_reconstruction_alone():
    distance = make_perceptual_distance("segmentation_features")
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    recorded = picture.clone().requires_grad_()
    blurred, gone = torch.nn.functional.avg_pool2d(picture, 3, 1, 1).requires_grad_(), torch.zeros_like(picture)
    near, far = distance(recorded, blurred), distance(recorded, gone)
    assert 0 < near < far and distance(picture, picture) == 0
    near.sum().backward()
    assert recorded.grad is None and blurred.grad.isfinite().all() and blurred.grad.abs().sum() > 0
    assert all(value.grad is None for value in distance.parameters())


def test_black_pictures_have_finite_gradients():
    distance = make_perceptual_distance("segmentation_features")
    black = torch.full((1, 3, 16, 16), -1.0, requires_grad=True)
    distance(torch.zeros(1, 3, 16, 16), black).sum().backward()
    assert black.grad.isfinite().all()


def test_choosing_a_network():
    assert make_perceptual_distance("none") is None
    with pytest.raises(ValueError, match="Unknown perceptual network `lpisp`.*Did you mean `lpips`"):
        make_perceptual_distance("lpisp")


def test_lpips_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    message = r"needs the packages `lpips` and `torchvision`.*or choose `--perceptual segmentation_features`"
    with pytest.raises(ImportError, match=message):
        make_perceptual_distance("lpips")


def test_lpips_without_weights_says_so(monkeypatch):
    def fail(**_):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=fail))
    with pytest.raises(OSError, match=r"could not get the weights of VGG \(no route to host\)"):
        make_perceptual_distance("lpips")


def test_lpips_is_called_as_its_package_wants(monkeypatch):
    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(2.0))
            assert (net, verbose) == ("vgg", False)

        def forward(self, first, second):
            return self.weight * (first - second).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    distance = make_perceptual_distance("lpips")
    assert not any(value.requires_grad for value in distance.parameters())
    assert distance(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).tolist() == [2.0, 2.0]


def test_crops_and_their_classes_stay_together():
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    pictures = torch.stack([rows, columns, rows])[None].float().expand(3, -1, -1, -1)
    crops, classes = cut_randomly(pictures, (rows * 16 + columns)[None].expand(3, -1, -1), 8, np.random.default_rng(0))
    assert (crops[:, 0] - classes // 16).abs().max() < 1.01 and (crops[:, 1] - classes % 16).abs().max() < 1.01
    assert crops.shape == (3, 3, 8, 8) and not torch.equal(classes[0], classes[1])


def test_classes_are_names_without_numbers():
    assert train.run_perceptual.class_of("alphabet_soup_1") == "alphabet_soup"
    assert train.run_perceptual.class_of("chefmate_8_frypan_12") == "chefmate_8_frypan"
    assert train.run_perceptual.class_of("robot") == "robot"


def flags(demonstrations, folder, steps=40):
    options = {"demonstrations": demonstrations, "output_dir": folder, "cameras": "agentview", "max_steps": steps}
    options |= {"batch_size": 4, "crop_size": 16, "save_every": 10, "held_out": 0.3}
    return [str(part) for key, value in options.items() for part in (f"--{key}", value)]


def test_training_learns_the_square_and_resumes_to_the_bit(tmp_path, monkeypatch):
    demonstrations = write_demonstrations(tmp_path / "square_demo.hdf5", masks=True)
    train.run_perceptual.main(flags(demonstrations, tmp_path / "whole"))
    card = json.loads((tmp_path / "whole" / "segmentation_features.json").read_text())
    assert card["held_out"]["iou"]["square"] > 0.5
    assert card["pictures"] == {"learned": 12, "held_out": 6} and card["size"] == [SIZE, SIZE]
    assert card["demonstrations"] == ["square_demo.hdf5"]

    def die(self, step):
        save(self, step)
        if step == 20:
            raise KeyboardInterrupt

    save = train.run_perceptual.PerceptualTrainer._save
    monkeypatch.setattr(train.run_perceptual.PerceptualTrainer, "_save", die)
    with pytest.raises(KeyboardInterrupt):
        train.run_perceptual.main(flags(demonstrations, tmp_path / "parts"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="belongs to a run with other options.*Choose another `--output_dir`"):
        train.run_perceptual.main(flags(demonstrations, tmp_path / "parts", steps=41))
    train.run_perceptual.main(flags(demonstrations, tmp_path / "parts"))
    whole, parts = (tmp_path / name / "segmentation_features.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_demonstrations_without_masks_are_refused(tmp_path):
    path = write_demonstrations(tmp_path / "plain.hdf5")
    with pytest.raises(ValueError, match=r"No segmentation masks in .*--segmentation"):
        train.run_perceptual.main(flags(path, tmp_path / "run"))
