import json

import numpy as np
import pytest
import torch
from PIL import Image

from tokenization.demonstrations import read_demonstrations
from train import frame_cache
from train.frame_cache import FrameSources
from train.frames import FrameArray

from .made_up_demonstrations import SIZE, STEPS, write_demonstrations


@pytest.fixture
def both_cameras(tmp_path):
    return write_demonstrations(tmp_path / "square_demo.hdf5", cameras=("agentview", "wrist"), masks=True)


def test_pictures_of_several_cameras_and_files(both_cameras, tmp_path):
    other = write_demonstrations(tmp_path / "other.hdf5", episodes=2, cameras=("agentview", "wrist"))
    array = FrameArray.from_sources(FrameSources([both_cameras, other], ("agentview", "wrist")), tmp_path)
    assert len(array) == 5 * 2 * STEPS
    demonstration = read_demonstrations(both_cameras)[1]
    start = 2 * STEPS  # one episode with two cameras goes before
    np.testing.assert_array_equal(array.frames[start : start + STEPS], demonstration.frames("agentview"))
    np.testing.assert_array_equal(array.frames[start + STEPS : start + 2 * STEPS], demonstration.frames("wrist"))
    assert array.episode_index.tolist() == [number for number in range(5) for _ in range(2 * STEPS)]
    batch = array.batch(np.array([0, STEPS]))
    assert batch.moving[0].sum() > 0 and batch.moving[1].sum() == 0  # the wrist camera has no still background
    assert float(batch.frames.min()) >= -1 and batch.frames.shape == (2, 3, SIZE, SIZE)


def test_files_with_a_picture_stride(tmp_path):
    path = write_demonstrations(tmp_path / "strided.hdf5", episodes=2, masks=True, stride=4)
    array = FrameArray.from_sources(FrameSources([path]), tmp_path, {"segmentation": 1.0})
    assert len(array) == 2 * 2  # steps 0 and 4 of 6
    assert len(array.batch(np.arange(4)).regions["segmentation"].boxes) == 8


def test_a_finished_cache_is_used_again_and_changes_with_its_sources(both_cameras, tmp_path, monkeypatch):
    sources = FrameSources([both_cameras])
    FrameArray.from_sources(sources, tmp_path)
    monkeypatch.setattr(frame_cache, "_clips", lambda *_: pytest.fail("gathered again"))
    FrameArray.from_sources(sources, tmp_path)
    assert FrameSources([both_cameras], ("wrist",)).key() != sources.key()
    assert FrameSources([both_cameras], image_size=(16, 16)).key() != sources.key()


def test_an_interrupted_cache_is_absent(both_cameras, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(frame_cache, "_clip_of", stop)
    with pytest.raises(KeyboardInterrupt):
        FrameArray.from_sources(FrameSources([both_cameras]), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_image_folders_of_any_size(tmp_path):
    folder = tmp_path / "images" / "deeper"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 20), (255, 0, 0)).save(folder / "a.png")
    Image.new("L", (64, 64), 255).save(folder.parent / "b.jpg")
    array = FrameArray.from_sources(FrameSources(images=[str(folder.parent)], image_size=(16, 16)), tmp_path)
    assert array.frames.shape == (2, 16, 16, 3)
    assert array.frames[:, 0, 0].tolist() == [[255, 255, 255], [255, 0, 0]]
    assert array.episode_index.tolist() == [0, 1]
    assert array.batch(np.array([0, 1])).moving.sum() == 0


def test_regions_of_demonstrations_beside_images_without_masks(both_cameras, tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (40, 20)).save(folder / "a.png")
    sources = FrameSources([both_cameras], ("agentview",), [str(folder)], (SIZE, SIZE))
    array = FrameArray.from_sources(sources, tmp_path, {"segmentation": 0.5})
    assert "no segmentation masks" in caplog.text
    batch = array.batch(np.array([STEPS + 1, 0, len(array) - 1]))
    regions = batch.regions["segmentation"]
    assert regions.picture.tolist() == [0, 0, 1, 1] and regions.scale == 0.5
    square = np.argwhere(array.frames[STEPS + 1][..., 0] == 250)
    top, left, bottom, right = regions.boxes[1].int().tolist()  # the gripper comes first
    assert (square.min(0) >= (top, left)).all() and (square.max(0) < (bottom, right)).all()
    assert (batch.attention[0, 0, top:bottom, left:right] == 0.5).all() and batch.attention[2].sum() == 0


def test_masks_are_resized_like_their_pictures(tmp_path):
    path = write_demonstrations(tmp_path / "large.hdf5", size=48, masks=True)
    array = FrameArray.from_sources(FrameSources([path], image_size=(SIZE, SIZE)), tmp_path)
    masks = np.load(next(tmp_path.glob("frames-*")) / "masks.npy")
    red = (array.frames[..., 0] > 200) & (array.frames[..., 1] < 90)
    for picture, mask in zip(red, masks == 3, strict=True):
        assert (picture & mask).sum() >= 0.8 * max(picture.sum(), mask.sum())  # edges are blurred in the picture


def test_whole_episodes_are_held_out(both_cameras, tmp_path):
    array = FrameArray.from_sources(FrameSources([both_cameras], ("agentview", "wrist")), tmp_path)
    learned, held_out = array.split(0.02, seed=1)
    assert len(learned) + len(held_out) == len(array) and len(held_out) == 2 * STEPS
    assert not set(array.episode_index[learned]) & set(array.episode_index[held_out])
    assert len(array.split(0.0, seed=1)[1]) == 0
    with pytest.raises(ValueError, match=r"`--held_out 0.9` leaves none of 3 episodes"):
        array.split(0.9, seed=1)


def test_sources_are_checked(tmp_path):
    with pytest.raises(ValueError, match="No pictures: give `--demonstrations`, `--images`, or both"):
        FrameSources()
    with pytest.raises(ValueError, match="Say with `--image_size`|say with `--image_size`"):
        FrameSources(images=["x"])
    with pytest.raises(FileNotFoundError, match="No images in"):
        FrameSources(images=[str(tmp_path)], image_size=(16, 16)).files()
    small = write_demonstrations(tmp_path / "a.hdf5")
    large = write_demonstrations(tmp_path / "b.hdf5", size=48)
    with pytest.raises(ValueError, match=r"has pictures of \(48, 48\) pixels, earlier ones of \(32, 32\). Say with"):
        FrameArray.from_sources(FrameSources([small, large]), tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png` cannot be read as an image"):
        FrameArray.from_sources(FrameSources(images=[str(tmp_path / "images")], image_size=(16, 16)), tmp_path)


def test_segmentation_regions_need_masks(tmp_path):
    path = write_demonstrations(tmp_path / "plain.hdf5")
    with pytest.raises(ValueError, match="need the masks that were recorded"):
        FrameArray.from_sources(FrameSources([path]), tmp_path, {"segmentation": 1.0})


def test_labels_are_kept_once(both_cameras, tmp_path):
    FrameArray.from_sources(FrameSources([both_cameras]), tmp_path)
    labels = json.loads((next(tmp_path.glob("frames-*")) / "labels.json").read_text())
    assert labels == [[["background", "robot", "gripper", "square_1"], ["square_1"]]]


def test_batches_are_float_pictures(both_cameras, tmp_path):
    array = FrameArray.from_sources(FrameSources([both_cameras]), tmp_path)
    batch = array.batch(np.array([3, 1]))
    expected = torch.from_numpy(array.frames[[3, 1]]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(batch.frames, expected.float())
