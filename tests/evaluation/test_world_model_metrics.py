import json

import h5py
import numpy as np
import pytest
import torch

from evaluation.arguments import parse_arguments
from evaluation.measure_world_model import main, measure_world_model
from evaluation.reconstruction import OBJECTS, WHOLE
from evaluation.sampling import GREEDY, SamplingArguments
from evaluation.world_model import imagine_episode, reconstruct
from evaluation.world_model_arguments import WorldModelArguments
from evaluation.world_model_metrics import (
    CEILING,
    CHANGED,
    FLOOR,
    IMAGINED,
    TOKEN_FLOOR,
    TOKENS,
    Instruments,
    Measurements,
    compare_tokens,
    compare_videos,
    measure_windows,
)
from evaluation.world_model_summary import compare_results, mean_with_interval, summarise
from evaluation.world_model_windows import choose_windows, possible_starts
from tokenization.reconstruction_metrics import Psnr, make_metric, psnr
from tokenization.regions import SegmentationRegions

NAMES = ["background", "robot", "gripper", "cup_1"]


def write_file(path, lengths, masks=True):
    """Episodes of random pictures; the gripper in the upper left, the cup in the lower right."""
    generator = np.random.default_rng(len(lengths))
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "lift the cup"})
        for number, length in enumerate(lengths):
            group = data.create_group(f"demo_{number}")
            group["actions"] = generator.uniform(-1, 1, (length, 7)).astype(np.float32)
            group["obs/agentview_rgb"] = generator.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)
            if masks:
                mask = np.zeros((length, 32, 32), np.uint8)
                mask[:, 2:8, 2:8], mask[:, 20:30, 18:28] = 2, 3
                group["obs/agentview_segmentation"] = mask[:, ::-1, ::-1]  # as the simulator renders
                group.attrs["segmentation_names"] = json.dumps(NAMES)
                group.attrs["objects_of_interest"] = json.dumps(["cup_1"])
    return str(path)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return write_file(tmp_path_factory.mktemp("demonstrations") / "cup_demo.hdf5", [6, 3, 8])


@pytest.fixture
def checkpoint(make_model, processor, tmp_path):
    make_model(initializer_range=0.5).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.5).eval()


def options(checkpoint, demonstrations, output, **changes):
    given = {"metrics": ["psnr"], "num_frames": [2, 4]} | changes
    return WorldModelArguments(checkpoint=checkpoint, demonstrations=[demonstrations], output_dir=str(output), **given)


def test_windows_are_spread_over_what_is_long_enough(episodes):
    windows = choose_windows([episodes], "agentview", 4, per_episode=2)
    assert [window.name for window in windows] == [
        "cup_demo/demo_0@0", "cup_demo/demo_0@1", "cup_demo/demo_2@0", "cup_demo/demo_2@3"
    ]  # fmt: skip
    assert [window.episode for window in windows] == [0, 0, 2, 2]
    assert [window.episode for window in choose_windows([episodes], "agentview", 2, 1, episodes=2)] == [0, 2]
    with pytest.raises(ValueError, match=r"None of the 3 episodes goes on for 8 frames .* has 7 after its first"):
        choose_windows([episodes], "agentview", 8)
    with pytest.raises(ValueError, match="Recorded were: `agentview`"):
        choose_windows([episodes], "wrist", 2)


def test_windows_do_not_reach_over_a_gap():
    class Gap:
        leads_to_next_frame = np.array([True, True, False, True, True, True, False])

    assert possible_starts(Gap(), 2).tolist() == [0, 3, 4]
    assert possible_starts(Gap(), 1).tolist() == [0, 1, 3, 4, 5]
    assert possible_starts(Gap(), 9).tolist() == []


def test_identical_videos_and_known_noise():
    generator = np.random.default_rng(0)
    real = generator.integers(20, 236, (2, 3, 32, 32, 3), dtype=np.uint8)
    shifted = real + np.uint8(10)  # an error of 10 everywhere: 10 log10(255^2 / 100)
    mask = np.zeros((3, 32, 32), bool)
    mask[:2, 4:8, 4:8] = True
    touched = real.copy()
    touched[0, :, 4:8, 4:8] += np.uint8(20)
    metrics = [Psnr(), make_metric("ssim")]
    scores = compare_videos(
        {"same": real, "noise": shifted, "inside": touched}, real, [{"gripper": mask}, {}], metrics
    )
    np.testing.assert_allclose(scores[WHOLE]["same"]["psnr"], 100)
    np.testing.assert_allclose(scores[WHOLE]["same"]["ssim"], 1)
    np.testing.assert_allclose(scores[WHOLE]["noise"]["psnr"], 20 * np.log10(25.5))
    inside = scores["gripper"]["inside"]["psnr"]
    np.testing.assert_allclose(inside[0, :2], 20 * np.log10(255 / 20))
    assert np.isnan(inside[0, 2]) and np.isnan(inside[1]).all()  # no gripper there
    np.testing.assert_allclose(
        scores[WHOLE]["inside"]["psnr"][0], 10 * np.log10(255**2 / (400 * 16 / 1024)), rtol=1e-12
    )


def test_ssim_is_that_of_the_library():
    functional = pytest.importorskip("torchmetrics.functional.image")
    generator = np.random.default_rng(0)
    real, other = generator.integers(0, 256, (2, 1, 2, 32, 32, 3), dtype=np.uint8)
    found = compare_videos({"x": other}, real, [{}], [make_metric("ssim")])[WHOLE]["x"]["ssim"][0]
    for number in range(2):
        pair = [torch.from_numpy(video[0, number]).permute(2, 0, 1)[None].float() for video in (other, real)]
        expected = functional.structural_similarity_index_measure(*pair, data_range=255.0)
        assert found[number] == pytest.approx(float(expected), abs=2e-3)  # borders are counted here


def test_token_accuracy_by_hand():
    real = torch.tensor([[[[1, 2], [3, 4]], [[1, 2], [3, 5]], [[1, 2], [3, 4]]]])
    imagined = torch.tensor([[[[1, 2], [0, 5]], [[1, 0], [3, 4]]]])
    found = compare_tokens(imagined, real)
    np.testing.assert_allclose(found[IMAGINED][TOKENS], [[0.75, 0.75]])
    np.testing.assert_allclose(found[IMAGINED][CHANGED], [[1.0, np.nan]])  # the second frame is the given one again
    np.testing.assert_allclose(found[TOKEN_FLOOR][TOKENS], [[0.75, 1.0]])
    np.testing.assert_allclose(found[TOKEN_FLOOR][CHANGED], [[0.0, np.nan]])


def test_measured_windows_are_episodes_imagined_one_by_one(model, processor, episodes):
    windows = choose_windows([episodes], "agentview", 4, per_episode=2)
    instruments = Instruments([Psnr()], providers=[SegmentationRegions()], horizons=(2, 4))
    counted = []
    measured = measure_windows(model, processor, windows, instruments, batch_size=3, on_frames=counted.append)
    assert counted == [3] * 4 + [1] * 4
    for row, window in enumerate(windows):
        stretch = slice(window.start, window.start + 5)
        real = window.demonstration.frames("agentview", stretch)
        imagined = imagine_episode(model, processor, real[0], window.demonstration.actions[stretch][:4])
        reconstructed = reconstruct(processor, real)
        expected = {
            IMAGINED: psnr(imagined, real)[1:],
            CEILING: psnr(reconstructed, real)[1:],
            FLOOR: psnr(np.repeat(real[:1], 4, axis=0), real[1:]),
        }
        for source, curve in expected.items():
            np.testing.assert_allclose(measured.scores[WHOLE][source]["psnr"][row], curve)
        mask = np.zeros((4, 32, 32), bool)
        mask[:, 20:30, 18:28] = True
        inside = psnr(imagined[1:], real[1:], mask)
        np.testing.assert_allclose(measured.scores[OBJECTS][IMAGINED]["psnr"][row], inside)


def test_drawn_frames_do_not_depend_on_the_batch_size(model, processor, episodes):
    windows, instruments = choose_windows([episodes], "agentview", 3), Instruments([Psnr()], horizons=(3,))
    drawn = SamplingArguments(temperature=1.0)
    one, two, greedy = (
        measure_windows(model, processor, windows, instruments, batch_size=size, sampling=sampling).scores
        for size, sampling in ((1, drawn), (2, drawn), (2, GREEDY))
    )
    np.testing.assert_array_equal(one[WHOLE][IMAGINED]["psnr"], two[WHOLE][IMAGINED]["psnr"])
    assert (one[WHOLE][IMAGINED]["psnr"] != greedy[WHOLE][IMAGINED]["psnr"]).any()


def test_a_mean_belongs_to_windows_and_its_interval_to_episodes():
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    found = mean_with_interval(values, np.array([0, 1, 2]))
    assert found["mean"] == 2.5 and found["windows"] == 2 and found["interval"] == [1.0, 4.0]
    assert mean_with_interval(values, np.zeros(3, int))["interval"] is None
    assert mean_with_interval(values[2:], np.zeros(1, int)) is None


def test_runs_are_compared_window_by_window(episodes):
    windows = choose_windows([episodes], "agentview", 2)
    noise = np.random.default_rng(0).normal(size=(3, 2))

    def run(shift):
        rows = {source: {"psnr": 20 + 9 * noise} for source in (FLOOR, CEILING, TOKEN_FLOOR)}
        return summarise(Measurements(windows, {WHOLE: {IMAGINED: {"psnr": 20 + 9 * noise + shift}} | rows}), [1, 2])

    found = compare_results(run(1.5), run(0.0))
    assert found["2"]["psnr"]["mean"] == pytest.approx(1.5, abs=1e-4)
    assert found["2"]["psnr"]["interval"] == pytest.approx([1.5, 1.5], abs=1e-4)  # the pairs differ by no more
    other = run(0.0)
    other["windows"] = other["windows"][:2]
    with pytest.raises(ValueError, match=r"other windows \(3 and 2; `cup_demo/demo_2@0` is not in both\)"):
        compare_results(run(0.0), other)
    other = run(0.0) | {"horizons": {"3": {}}}
    with pytest.raises(ValueError, match="measured over 3 and 1, 2 frames"):
        compare_results(run(0.0), other)


def test_the_command_writes_numbers_table_and_picture(checkpoint, episodes, tmp_path):
    pytest.importorskip("matplotlib")
    first = measure_world_model(options(checkpoint, episodes, tmp_path / "one", regions=["segmentation"]))
    main(
        ["--checkpoint", checkpoint, "--demonstrations", episodes, "--output_dir", str(tmp_path / "two")]
        + ["--num_frames", "2", "4", "--metrics", "psnr", "--compare_with", str(tmp_path / "one" / "results.json")]
    )
    stored = json.loads((tmp_path / "two" / "results.json").read_text())
    assert stored["horizons"]["4"][WHOLE] == first["horizons"]["4"][WHOLE]
    assert stored["difference"]["4"]["psnr"]["mean"] == 0
    assert first["num_windows"] == 2 and set(first["horizons"]["2"]) == {WHOLE, "gripper", OBJECTS}
    curve = first["curves"][WHOLE][IMAGINED]["psnr"]
    assert first["horizons"]["2"][WHOLE][IMAGINED]["psnr"]["mean"] == pytest.approx(np.mean(curve[:2]), abs=1e-4)
    report = (tmp_path / "one" / "report.md").read_text()
    assert "## 2 frames" in report and "| ceiling: real frames through the tokenizer |" in report
    assert "Objects of interest:" in report and "minus `" not in report
    assert "results.json` on the same windows: PSNR (dB) 0.00" in (tmp_path / "two" / "report.md").read_text()
    assert (tmp_path / "one" / "curves.png").stat().st_size > 10_000
    assert "codes are the likeliest. Means" in report
    measure_world_model(options(checkpoint, episodes, tmp_path / "drawn", temperature=0.7))
    assert "codes are drawn at temperature 0.7. Means" in (tmp_path / "drawn" / "report.md").read_text()
    measure_world_model(options(checkpoint, episodes, tmp_path / "few", temperature=0.7, top_p=0.9))
    assert "codes are drawn at temperature 0.7, top_p 0.9. Means" in (tmp_path / "few" / "report.md").read_text()


def test_fvd_is_reported_for_every_source(checkpoint, episodes, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("evaluation.video_distance.LEAST_FRAMES", 2)
    monkeypatch.setattr("evaluation.world_model_arguments.LEAST_FRAMES", 2)
    network = torch.jit.script(LastFrame())
    network.save(str(tmp_path / "network.pt"))
    made = options(
        checkpoint, episodes, tmp_path / "out", metrics=["psnr", "fvd"], fvd_network=str(tmp_path / "network.pt")
    )
    found = measure_world_model(made)["fvd"]
    assert set(found) == {"2", "4"} and set(found["4"]) == {IMAGINED, FLOOR, TOKEN_FLOOR, CEILING}
    assert found["2"] != found["4"] and min(found["4"].values()) > 0
    assert "FVD has no interval" in (tmp_path / "out" / "report.md").read_text()


class LastFrame(torch.nn.Module):
    """Mean colours of the last frame."""

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        return x[:, :, -1].mean(dim=(2, 3))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_frames": [0]}, "`--num_frames` takes numbers of frames"),
        ({"metrics": ["psmr"]}, "Did you mean `psnr`"),
        ({"metrics": ["fvd"], "num_frames": [10]}, "needs one that compares frame by frame"),
        ({"metrics": ["psnr", "fvd"], "num_frames": [5]}, "clips of at least 9 frames, got `--num_frames 5`"),
        ({"episodes": 0}, "`--episodes` must be larger than 0"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(changes, message):
    with pytest.raises(ValueError, match=message):
        options("c", "d", "o", **changes)


def test_what_is_missing_is_told_before_the_model_is_loaded(tmp_path, episodes):
    plain = write_file(tmp_path / "plain_demo.hdf5", [10], masks=False)
    with pytest.raises(ValueError, match="has no segmentation masks"):
        measure_world_model(options("c", plain, tmp_path, regions=["segmentation"]))
    with pytest.raises(ValueError, match="there is one window"):
        measure_world_model(options("c", plain, tmp_path, metrics=["psnr", "fvd"], num_frames=[9]))
    with pytest.raises(ValueError, match="holds no results of evaluation/measure_world_model.py"):
        measure_world_model(options("c", episodes, tmp_path, compare_with=str(tmp_path / "none.json")))
    card = tmp_path / "data_card.json"
    card.write_text(json.dumps({"cameras": ["wrist", "agentview"]}))
    with pytest.raises(ValueError, match="imagines `wrist`, not `agentview`"):
        measure_world_model(options(str(tmp_path), episodes, tmp_path / "out"))
    card.write_text(json.dumps({"cameras": ["agentview", "wrist"]}))  # the first is imagined: nothing wrong with it
    with pytest.raises(ValueError, match="holds no model"):
        measure_world_model(options(str(tmp_path), episodes, tmp_path / "out"))
    with pytest.raises(ValueError, match="Did you mean `episodes`"):
        parse_arguments(WorldModelArguments, "--checkpoint c --demonstrations d --output_dir o --epizodes 3".split())
