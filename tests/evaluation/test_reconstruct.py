import json

import h5py
import numpy as np
import pytest
from PIL import Image

from evaluation.arguments import ReconstructArguments, parse_arguments
from evaluation.intervals import episode_interval
from evaluation.reconstruct import choose_size, load_vq_gan, main, reconstruct
from evaluation.reconstruction import LARGEST, OBJECTS, WHOLE, measure_frames
from evaluation.reconstruction_frames import Frame, choose_frames, draw_spread, find_images, share_out
from evaluation.reconstruction_report import draw_rows
from tokenization import WorldVLAImageTokenizer
from tokenization.reconstruction_metrics import psnr
from tokenization.region_boxes import fit_mask
from tokenization.regions import Region, SegmentationRegions

NAMES = ["background", "robot", "gripper", "cup_1", "plate_1"]
CAMERAS = {"agentview": "agentview", "wrist": "eye_in_hand"}


def write_file(path, lengths, seed, masks=True, stride=1):
    """A demonstration file with both cameras; the gripper in the upper left, the cup in the lower right."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "lift the cup"})
        for number, length in enumerate(lengths):
            group = data.create_group(f"demo_{number}")
            group["actions"] = generator.uniform(-1, 1, (length, 7))
            pictures = -(-length // stride)
            group.attrs["picture_stride"] = stride
            for key in CAMERAS.values():
                group[f"obs/{key}_rgb"] = generator.integers(0, 256, (pictures, 32, 32, 3), dtype=np.uint8)
                if masks:
                    mask = np.zeros((pictures, 32, 32), np.uint8)
                    mask[:, 2:8, 2:8], mask[:, 20:30, 18:28] = 2, 3
                    group[f"obs/{key}_segmentation"] = mask[:, ::-1, ::-1]  # as the simulator renders
            if masks:
                group.attrs["segmentation_names"] = json.dumps(NAMES)
                group.attrs["objects_of_interest"] = json.dumps(["cup_1"])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two suites: 2 + 1 episodes."""
    root = tmp_path_factory.mktemp("demonstrations")
    write_file(root / "suite_a" / "cup_demo.hdf5", [9, 4], 0)
    write_file(root / "suite_b" / "plate_demo.hdf5", [17], 1, stride=8)
    write_file(root / "suite_b" / ".recording" / "half_demo.hdf5", [5], 2)
    return str(root)


@pytest.fixture(scope="module")
def vq_gan(processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("vqgan")
    processor.image_tokenizer.vq_model.save_pretrained(path / "vq_model")
    return str(path)


@pytest.fixture
def tokenizer(processor):
    vq_model = processor.image_tokenizer.vq_model
    return WorldVLAImageTokenizer(vq_model, (32, 32), vq_model.config.num_vq_embeddings)


def options(folder, vq_gan, output, **changes):
    return ReconstructArguments(
        **{"vq_model": vq_gan, "output_dir": str(output), "demonstrations": [folder], "metrics": ["psnr"]} | changes
    )


def test_shares_are_even():
    generator = np.random.default_rng(0)
    assert share_out([10, 2, 10], 12, generator) == [5, 2, 5]
    assert share_out([3, 1], 100, generator) == [3, 1]
    few = share_out([5] * 10, 4, generator)
    assert sorted(few) == [0] * 6 + [1] * 4
    assert few != [1] * 4 + [0] * 6  # not simply the first ones
    assert share_out([], 4, generator) == []


def test_draws_are_one_from_each_stretch():
    for seed in range(20):
        drawn = draw_spread(20, 4, np.random.default_rng(seed))
        assert [value // 5 for value in drawn] == [0, 1, 2, 3]
    assert draw_spread(3, 3, np.random.default_rng(0)) == [0, 1, 2]
    assert draw_spread(3, 0, np.random.default_rng(0)) == []


def test_frames_are_spread_over_episodes_and_cameras(folder):
    frames = choose_frames([folder], [], ["agentview", "wrist"], 12, seed=0)
    where = [(frame.path.parent.name, frame.episode, frame.camera) for frame in frames]
    assert {place: where.count(place) for place in where} == {
        ("suite_a", 0, "agentview"): 2,
        ("suite_a", 0, "wrist"): 2,
        ("suite_a", 1, "agentview"): 2,
        ("suite_a", 1, "wrist"): 2,
        ("suite_b", 2, "agentview"): 2,
        ("suite_b", 2, "wrist"): 2,
    }
    assert frames == choose_frames([folder], [], ["agentview", "wrist"], 12, seed=0)
    assert frames != choose_frames([folder], [], ["agentview", "wrist"], 12, seed=1)
    everything = choose_frames([folder], [], ["agentview"], 1000, seed=0)
    assert len(everything) == 9 + 4 + 3  # a stride of 8 leaves 3 of 17 pictures
    np.testing.assert_array_equal(everything[-1].picture(), everything[-1].source.frames("agentview")[2])
    np.testing.assert_array_equal(everything[-1].mask(), everything[-1].source.segmentation("agentview")[2])


def test_images_are_episodes_of_their_own(folder, tmp_path):
    for name in ("b.png", "deeper/a.JPG", ".hidden/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 33)).save(tmp_path / name, format="PNG")
    assert [path.name for path in find_images([str(tmp_path)])] == ["b.png", "a.JPG"]
    frames = choose_frames([folder], [str(tmp_path)], ["agentview"], 1000, seed=0)
    assert [(frame.camera, frame.episode) for frame in frames[-2:]] == [("image", 3), ("image", 4)]
    assert frames[-1].picture().shape == (33, 40, 3) and frames[-1].names == ()
    with pytest.raises(ValueError, match=r"a\.JPG` is an image without a segmentation mask\. Choose the regions"):
        frames[-1].mask()
    with pytest.raises(FileNotFoundError, match=r"No images at `.*nowhere`\. Give folders that hold \.png"):
        find_images([str(tmp_path / "nowhere")])
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png` is not a readable image .* Remove it from the folder\."):
        frames[-2].picture()


def test_masks_follow_the_crop_of_their_pictures():
    mask = np.zeros((64, 128), np.uint8)
    mask[:, 32:64] = 3
    fitted = fit_mask(mask, (32, 32))  # half the size, 16 columns cut on either side
    assert fitted.shape == (32, 32) and (fitted[:, :16] == 3).all() and (fitted[:, 16:] == 0).all()
    assert fit_mask(mask, (64, 128)) is mask


def test_regions_are_measured_on_the_pixels_of_their_masks(folder, tokenizer):
    frames = choose_frames([folder], [], ["agentview", "wrist"], 10, seed=3)
    provider = SegmentationRegions(margin=0.5, minimum_size=20)  # boxes far larger than the masks

    class Psnr:
        name = "psnr"

        def __call__(self, pictures, reference, masks=None):
            return psnr(pictures, reference, masks)

    measured = measure_frames(tokenizer, frames, [Psnr()], providers=[provider], batch_size=4)
    assert set(measured.scores) == {WHOLE, "gripper", OBJECTS}
    for number, frame in enumerate(frames):
        picture = frame.picture()
        found = np.asarray(tokenizer.decode(tokenizer.encode([picture]))[0])
        squared = np.square(found.astype(float) - picture).mean(-1)
        parts = {WHOLE: squared, "gripper": squared[2:8, 2:8], OBJECTS: squared[20:30, 18:28]}
        for part, values in parts.items():
            expected = 10 * np.log10(255**2 / values.mean())
            assert measured.scores[part]["psnr"][number] == pytest.approx(expected, abs=1e-3), part  # rounding
    codes = np.concatenate([tokenizer.encode([frame.picture()]).numpy() for frame in frames])
    np.testing.assert_array_equal(measured.code_counts, np.bincount(codes.reshape(-1), minlength=16))


class Corner:
    """Finds a corner in every other picture that it sees."""

    name = "corner"

    def __init__(self):
        self.seen = 0

    def find(self, pictures, masks=None, names=(), interest=()):
        self.seen += 1
        return [[Region(0, 0, 4, 6, "corner")] if self.seen % 2 else []]


def test_other_regions_are_measured_on_their_boxes(folder, tokenizer):
    frames = choose_frames([folder], [], ["agentview"], 4, seed=3)

    class Area:
        name = "area"

        def __call__(self, pictures, reference, masks=None):
            if masks is None:
                return np.full(len(pictures), np.inf)
            return np.where(masks.any((1, 2)), masks.sum((1, 2)), np.nan)

    measured = measure_frames(tokenizer, frames, [Area()], providers=[Corner()], batch_size=1)
    np.testing.assert_array_equal(measured.scores[OBJECTS]["area"], [24, np.nan, 24, np.nan])
    assert (measured.scores[WHOLE]["area"] == LARGEST).all()


def test_the_interval_is_over_episodes():
    generator = np.random.default_rng(0)
    episodes = np.repeat(np.arange(8), 50)
    values = np.repeat(generator.normal(20, 2, 8), 50) + generator.normal(0, 0.01, 400)
    low, high = episode_interval(values, episodes)
    means = values.reshape(8, 50).mean(1)
    half = 1.96 * means.std() / np.sqrt(8)  # as if there were 8 numbers, not 400
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert low < values.mean() < high
    assert episode_interval(values, episodes) == (low, high)
    assert episode_interval(values[:50], episodes[:50]) is None
    assert episode_interval(np.full(4, 3.0), np.array([5, 5, 9, 9])) == (3.0, 3.0)


def test_the_command_writes_report_numbers_and_pictures(folder, vq_gan, tmp_path):
    arguments = options(
        folder, vq_gan, tmp_path, cameras=["agentview", "wrist"], frames=10, regions=["segmentation"], shown=3
    )
    result = reconstruct(arguments)
    assert json.loads((tmp_path / "results.json").read_text()) == result
    assert {entry.name for entry in tmp_path.iterdir()} == {"results.json", "report.md", "pictures.png"}

    groups = result["groups"]
    assert list(groups) == [
        "all",
        "camera agentview",
        "camera wrist",
        "folder suite_a",
        "folder suite_b",
        "file suite_a/cup_demo",
        "file suite_b/plate_demo",
    ]
    assert list(groups["all"]) == [WHOLE, "gripper", OBJECTS]
    whole = groups["all"][WHOLE]
    assert (whole["frames"], whole["episodes"]) == (10, 3)
    low, high = whole["psnr"]["interval"]
    assert low <= whole["psnr"]["mean"] <= high
    assert groups["folder suite_b"][WHOLE]["psnr"]["interval"] is None  # one episode
    of_cameras = [groups[f"camera {name}"][WHOLE] for name in ("agentview", "wrist")]
    weighted = sum(row["psnr"]["mean"] * row["frames"] for row in of_cameras) / 10
    assert weighted == pytest.approx(whole["psnr"]["mean"])
    settings, codebook = result["settings"], result["codebook"]
    assert len(settings["vq_model_hash"]) == 64 and settings["image_size"] == [32, 32] and settings["seed"] == 0
    assert codebook["codes"] == 16 and 1 <= codebook["perplexity"] <= codebook["used"] <= 16

    report = (tmp_path / "report.md").read_text()
    assert f"| all | whole picture | 10 | 3 | {whole['psnr']['mean']:.2f} ({low:.2f} to {high:.2f}) |" in report
    assert f"| suite_a/cup_demo | {groups['file suite_a/cup_demo'][WHOLE]['frames']} |" in report
    with Image.open(tmp_path / "pictures.png") as picture:
        assert picture.size == (4 * 256, 3 * (256 + 18))


def test_the_command_line(folder, vq_gan, tmp_path, caplog):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (70, 50), (200, 100, 0)).save(images / "a.png")
    out = tmp_path / "out"
    with caplog.at_level("INFO"):
        main(f"--vq_model {vq_gan}/vq_model --images {images} --metrics psnr --output_dir {out}".split())
    result = json.loads((out / "results.json").read_text())
    assert result["settings"]["image_size"] == [48, 64]  # down to multiples of the stride
    assert list(result["groups"]) == ["all"] and result["groups"]["all"][WHOLE]["frames"] == 1
    assert "whole picture: psnr" in caplog.text
    with Image.open(out / "pictures.png") as picture:
        assert picture.width == 3 * 64 * 5  # no regions: three columns; 48 x 5 comes nearest to 256


def test_a_vq_gan_is_found_in_its_own_folder_or_beside(vq_gan, tmp_path, processor):
    moved = tmp_path / "elsewhere"
    processor.image_tokenizer.vq_model.save_pretrained(moved)
    weights = processor.image_tokenizer.vq_model.state_dict()["quantize.embedding.weight"]
    for place in (vq_gan, f"{vq_gan}/vq_model", str(moved)):
        model = load_vq_gan(place)
        assert (model.state_dict()["quantize.embedding.weight"] == weights).all()
        assert not model.training
    with pytest.raises(OSError, match="lacks its VQ-GAN"):
        load_vq_gan(str(tmp_path))


def test_what_cannot_be_measured_is_said_before_anything_is(folder, vq_gan, tmp_path):
    bare = write_file(tmp_path / "bare_demo.hdf5", [3], 0, masks=False)
    cases = [
        ({"demonstrations": [str(bare)], "regions": ["segmentation"]}, r"bare_demo\.hdf5` has no segmentation masks"),
        ({"regions": ["face"]}, r"Unknown region provider `face`\. .* Did you mean `faces`\?"),
        ({"metrics": ["psrn"]}, r"Unknown metric `psrn`\. .* Did you mean `psnr`\?"),
        ({"cameras": ["front"]}, r"has no camera `front`"),
        ({"image_size": [40]}, r"multiples of the VQ-GAN's stride 16, got 40 x 40 \(the first picture has 32 x 32\)"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            reconstruct(options(folder, vq_gan, tmp_path / "out", **changes))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--vq_model v --output_dir o", r"nothing to reconstruct\. Give `--demonstrations`, `--images` or both\."),
        ("--vq_model v --output_dir o --images i --frames 0", r"`--frames` must be larger than 0, got 0\."),
        ("--vq_model v --output_dir o --images i --image_size 1 2 3", r"one or two numbers larger than 0, got \[1, 2"),
        ("--vq_model v --output_dir o --images i --metrics rfid", r"needs one that compares picture by picture"),
        ("--vq_model v --output_dir o --images i --kameras wrist", r"Did you mean `cameras`\?"),
    ],
)
def test_options_are_checked_at_once(line, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(ReconstructArguments, line.split())


def test_sizes_are_what_was_asked_for(tmp_path):
    Image.new("RGB", (70, 50)).save(tmp_path / "a.png")
    frames = [Frame(tmp_path / "a.png", 0, "image", 0)]
    assert choose_size([], frames, 16) == (48, 64)
    assert choose_size([32], frames, 16) == (32, 32)
    assert choose_size([32, 64], frames, 16) == (32, 64)
    with pytest.raises(ValueError, match=r"stride 128, got 0 x 0"):
        choose_size([], frames, 128)


def test_rows_show_the_difference_fourfold():
    picture = np.full((1, 256, 256, 3), 100, np.uint8)
    rows = draw_rows(picture, picture + np.uint8(10), ["agentview"], [[Region(10, 20, 60, 90, "gripper")]])
    assert rows.shape == (256 + 18, 4 * 256, 3)
    cells = rows[18:].reshape(256, 4, 256, 3)
    assert [cells[200, column, 200].tolist() for column in range(4)] == [[100] * 3, [110] * 3, [40] * 3, [100] * 3]
    assert cells[10, 3, 50].tolist() == [255, 60, 60] and cells[59, 3, 89].tolist() == [255, 60, 60]
