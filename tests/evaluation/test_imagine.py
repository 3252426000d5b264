"""`evaluation/imagine.py`: from recorded episodes, pictures with actions, or an instruction to films and numbers."""

import json
import math
import shutil
from dataclasses import replace

import av
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import evaluation.imagine
from evaluation.arguments import parse_arguments
from evaluation.imagination_episodes import imagine_excerpts, judge_excerpt, measure
from evaluation.imagination_sources import Excerpt, find_excerpts
from evaluation.imagination_streams import PolicyView, stream_policy
from evaluation.imagine import imagine
from evaluation.imagine_arguments import ImagineArguments
from evaluation.video import write_video
from evaluation.world_model import imagine_episode, reconstruct


@pytest.fixture(scope="module")
def demonstrations(stored, tmp_path_factory):
    path = tmp_path_factory.mktemp("demonstrations") / "cup_demo.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "lift the cup"})
        data.attrs["macros_image_convention"] = "opengl"
        for name, (frames, actions) in stored.items():
            data[f"{name}/actions"] = actions
            data[f"{name}/obs/agentview_rgb"] = frames[:, ::-1, ::-1]
    return str(path)


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.5, max_position_embeddings=256).eval()


@pytest.fixture
def loaded(model, processor, monkeypatch):
    monkeypatch.setattr(evaluation.imagine, "load_checkpoint", lambda folder, device: (model, processor))
    monkeypatch.setattr(evaluation.imagine, "fingerprint_checkpoint", lambda folder, model: "abc")
    return model, processor


@pytest.fixture
def pictures(stored, tmp_path):
    """Two frames, their commands and a video, as files."""
    frames, actions = stored["demo_0"]
    for number in range(2):
        Image.fromarray(frames[number]).save(tmp_path / f"frame{number}.png")
    np.save(tmp_path / "actions.npy", actions[:4])
    write_video(tmp_path / "episode.mp4", list(frames))
    return tmp_path


def from_file(demonstrations, **changes):
    return ImagineArguments(**{"checkpoint": "c", "demonstrations": demonstrations, "output": "o.mp4", **changes})


def from_pictures(folder, *images, **changes):
    given = [str(folder / name) for name in images]
    return ImagineArguments(**{"checkpoint": "c", "image": given, "output": str(folder / "o.png"), **changes})


def read_all(arguments):
    return [read() for read in find_excerpts(arguments)]


def test_measures_by_hand():
    real, imagined, reconstructed = (
        np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])
        for values in ([10, 20, 40], [90, 25, 40], [12, 22, 44])
    )
    found = measure(real, imagined, reconstructed)
    expected = {
        "imagined": [34.151, 100.0],  # off by 5; equal, shown as 100 dB. The given frame does not count.
        "reconstruction": [42.110, 36.090],  # off by 2 and 4
        "copy_last_frame": [28.131, 18.588],  # 10 against 20 and 40
        "copy_last_reconstruction": [30.069, 19.188],  # 12 against 20 and 40
    }
    assert found["num_frames"] == 2
    assert set(found["curves_db"]) == set(found["psnr_db"]) == set(expected)
    for name, curve in expected.items():
        assert found["curves_db"][name] == pytest.approx(curve, abs=2e-3), name
        assert found["psnr_db"][name] == pytest.approx(sum(curve) / 2, abs=2e-3), name


def test_a_part_of_a_recorded_episode(demonstrations, stored):
    (found,) = read_all(from_file(demonstrations, episode=[1]))
    np.testing.assert_array_equal(found.frames, stored["demo_1"][0])
    np.testing.assert_array_equal(found.actions, stored["demo_1"][1][:3])  # no frame was seen after the last command
    assert (found.num_given, found.num_frames, found.name, found.told) == (1, 3, "episode1", "lift the cup")

    (found,) = read_all(from_file(demonstrations, start=3, given_frames=2, num_frames=2))
    np.testing.assert_array_equal(found.frames, stored["demo_0"][0][2:6])
    np.testing.assert_array_equal(found.actions, stored["demo_0"][1][2:5])

    (found,) = read_all(from_file(demonstrations, start=5, given_frames=2, num_frames=9, instruction="drop the cup"))
    np.testing.assert_array_equal(found.frames, stored["demo_0"][0][4:6])
    np.testing.assert_array_equal(found.actions, stored["demo_0"][1][4:5])
    assert (found.num_frames, found.told) == (9, "drop the cup")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episode": [0, 2]}, r"holds 2 episodes; `--episode 2` does not exist\. Choose 0 … 1\."),
        ({"num_frames": 6}, r"has 5 frames after step 0; 6 were asked for\. Lower `--start` or `--num_frames`\."),
        ({"start": 3, "num_frames": 3}, r"has 2 frames after step 3; 3 were asked for\."),
        ({"start": 5}, r"has 0 frames after step 5; at least 1 is needed\."),
        ({"start": 9}, r"has 0 frames after step 9; at least 1 is needed\."),
        ({"given_frames": 3, "start": 1}, r"`--given_frames 3` end at step 1, .* Raise `--start` to at least 2"),
        ({"start": 6, "num_frames": 1, "instruction": "go"}, r"has 6 frames, none at step 6"),
    ],
)
def test_parts_outside_the_recording_are_refused(demonstrations, changes, message):
    with pytest.raises(ValueError, match=message):
        find_excerpts(from_file(demonstrations, **changes))


def test_clipped_commands_are_counted(demonstrations, loaded, tmp_path, caplog):
    copied = shutil.copy(demonstrations, tmp_path / "extreme_demo.hdf5")
    with h5py.File(copied, "a") as file:
        file["data/demo_0/actions"][0, :2] = 9.0
    arguments = from_file(str(copied), num_frames=2, output=str(tmp_path / "imagined.png"))
    assert imagine(arguments)["clipped_action_values"] >= 2
    assert "of 14 action values lie outside the checkpoint's limits: clipped." in caplog.text


def test_a_recorded_episode_becomes_a_film_and_numbers(demonstrations, loaded, stored, tmp_path):
    arguments = from_file(demonstrations, start=1, num_frames=3, output=str(tmp_path / "imagined.mp4"))
    result = imagine(arguments)

    real = stored["demo_0"][0][1:5]
    imagined = imagine_episode(*loaded, real[0], stored["demo_0"][1][1:4])
    expected = measure(real, imagined, reconstruct(loaded[1], real))
    assert {key: result[key] for key in expected} == expected
    assert len(result["entropy_curve_nats"]) == 3
    assert result["entropy_nats"] == pytest.approx(np.mean(result["entropy_curve_nats"]), abs=1e-4)
    assert 0 < result["entropy_nats"] < math.log(16)
    assert result["seconds_per_frame"] > 0 and result["settings"]["start"] == 1
    assert result["settings"]["checkpoint_fingerprint"] == "abc" and result["settings"]["commit"]
    assert json.loads((tmp_path / "imagined.json").read_text()) == result
    with av.open(arguments.output) as container:
        shapes = [(frame.height, frame.width) for frame in container.decode(video=0)]
    assert shapes == [(3 * 18 + 256 + 2 * 56, 4 * 256)] * 4
    assert {entry.name for entry in tmp_path.iterdir()} == {"imagined.mp4", "imagined.json"}


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_episodes_of_a_batch_are_those_imagined_alone(demonstrations, loaded, tmp_path, temperature):
    model, processor = loaded
    chosen = {"episode": [0, 1], "temperature": temperature}
    sampling = from_file(demonstrations, **chosen)
    excerpts = read_all(sampling)
    together = imagine_excerpts(model, processor, excerpts, sampling=sampling)
    for excerpt, episode in zip(excerpts, together, strict=True):
        (alone,) = imagine_excerpts(model, processor, [excerpt], sampling=sampling)
        assert torch.equal(episode.image_ids, alone.image_ids) and len(alone.image_ids) == excerpt.num_frames + 1
        assert torch.equal(episode.action_ids, alone.action_ids)
        np.testing.assert_allclose(episode.entropies, alone.entropies, atol=1e-4)
    output = str(tmp_path / "imagined.png")
    summary = imagine(from_file(demonstrations, batch_size=2, output=output, **chosen))
    assert (summary["num_frames"], summary["num_episodes"]) == (8, 2)
    for excerpt, episode in zip(excerpts, together, strict=True):
        numbers = summary["episodes"][excerpt.name]
        assert numbers["psnr_db"] == judge_excerpt(processor, excerpt, episode)[1]["psnr_db"]
    low, high = summary["entropy_nats_interval_95"]
    assert low <= summary["entropy_nats"] <= high
    found = {entry.name for entry in tmp_path.iterdir()}
    assert found == {"imagined_episode0.png", "imagined_episode1.png", "imagined.json"}


def test_pictures_and_an_action_file(pictures, stored, loaded):
    frames, actions = stored["demo_0"]
    result = imagine(from_pictures(pictures, "frame0.png", actions=str(pictures / "actions.npy")))
    (episode,) = imagine_excerpts(*loaded, [Excerpt(frames[:1], actions[:4], 1, 4)])
    assert result["num_frames"] == 4 and "psnr_db" not in result  # nothing real is known
    assert result["entropy_curve_nats"] == pytest.approx(episode.entropies, abs=1e-4)
    assert Image.open(pictures / "o.png").format == "PNG"

    np.savetxt(pictures / "actions.csv", actions[:4], delimiter=",")
    chosen = {"actions": str(pictures / "actions.csv"), "history": 2, "num_frames": 2}
    (excerpt,) = read_all(from_pictures(pictures, "frame0.png", "frame1.png", **chosen))
    np.testing.assert_array_equal(excerpt.frames, frames[:2])
    np.testing.assert_allclose(excerpt.actions, actions[:3], atol=1e-6)
    assert (excerpt.num_given, excerpt.num_frames, excerpt.start) == (2, 2, 1)


def test_a_video_goes_on_beside_the_imagination(pictures, stored, loaded):
    chosen = {"actions": str(pictures / "actions.npy"), "start": 1, "num_frames": 2}
    (excerpt,) = read_all(from_pictures(pictures, "episode.mp4", **chosen))
    assert excerpt.frames.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(excerpt.actions, stored["demo_0"][1][1:3])
    assert "psnr_db" in imagine(from_pictures(pictures, "episode.mp4", **chosen))


def test_an_instruction_lets_the_policy_act(pictures, stored, loaded, monkeypatch):
    model, processor = loaded
    monkeypatch.setattr(model.config, "chunk_size", 3)
    chosen = {"instruction": "lift the cup", "num_frames": 5, "n_action_steps": 2, "n_obs_steps": 1}
    chosen |= {"output": str(pictures / "o.gif"), "frame_folder": str(pictures / "frames")}
    result = imagine(from_pictures(pictures, "frame0.png", **chosen))
    tokens = processor.encode_images([stored["demo_0"][0][0]])[:, None]
    nothing, view = torch.empty((1, 0, 7), dtype=torch.long), PolicyView(n_action_steps=2, n_obs_steps=1)
    expected = list(stream_policy(model, processor, tokens, nothing, ["lift the cup"], 5, view))
    assert result["entropy_curve_nats"] == pytest.approx([float(f.mean_entropy) for f in expected], abs=1e-4)
    commands = processor.decode_actions(torch.cat([frame.action_ids for frame in expected]))
    np.testing.assert_allclose(np.load(pictures / result["actions"]), commands, atol=1e-6)
    again = Excerpt(stored["demo_0"][0][:1], np.load(pictures / result["actions"]), 1, 5)
    (given_back,) = imagine_excerpts(model, processor, [again])  # the same commands, now from a file
    assert torch.equal(given_back.image_ids[1:], torch.cat([frame.image_ids for frame in expected]))
    with Image.open(pictures / "o.gif") as film:
        assert film.n_frames == 6 and film.size == (256, 3 * 18 + 256 + 56)
    names = [f"frame0_{number:05d}.png" for number in range(1, 6)]
    assert sorted(entry.name for entry in (pictures / "frames").iterdir()) == names
    drawn = [np.asarray(picture) for picture in processor.decode_images(expected[-1].image_ids)]
    np.testing.assert_array_equal(np.asarray(Image.open(pictures / "frames" / names[-1])), drawn[0])


@pytest.fixture
def two_cameras(tmp_path):
    """A checkpoint's folder whose card names two cameras."""
    folder = tmp_path / "two_cameras"
    folder.mkdir()
    (folder / "data_card.json").write_text(json.dumps({"cameras": ["agentview", "wrist"]}))
    return str(folder)


def test_of_two_cameras_the_first_is_imagined(demonstrations, two_cameras, loaded, tmp_path):
    arguments = from_file(demonstrations, num_frames=2, output=str(tmp_path / "both.png"))
    expected = imagine(arguments)
    found = imagine(replace(arguments, checkpoint=two_cameras))
    assert found["curves_db"] == expected["curves_db"] and found["settings"]["camera"] == "agentview"
    with pytest.raises(ValueError, match=r"imagines `agentview`, not `wrist`\. Choose `--camera agentview`"):
        imagine(replace(arguments, checkpoint=two_cameras, camera="wrist"))


def test_a_policy_of_two_cameras_does_not_act_on_one(pictures, two_cameras, loaded):
    chosen = {"instruction": "lift the cup", "num_frames": 2}
    with pytest.raises(ValueError, match=r"shown cameras `agentview`, `wrist`, .* cannot act inside the imagination"):
        imagine(from_pictures(pictures, "frame0.png", checkpoint=two_cameras, **chosen))
    assert not (pictures / "o.png").exists()


def test_damaged_files_are_refused_by_name(pictures):
    actions = str(pictures / "actions.npy")
    whole = (pictures / "episode.mp4").read_bytes()
    for size, message in ((len(whole) // 2, "truncated"), (400, r"episode\.mp4` cannot be decoded: truncated")):
        (pictures / "episode.mp4").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=message):
            find_excerpts(from_pictures(pictures, "episode.mp4", actions=actions))
    (pictures / "frame0.png").write_bytes((pictures / "frame0.png").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"frame0\.png` cannot be read as a picture: .* Save it again as PNG"):
        find_excerpts(from_pictures(pictures, "frame0.png", actions=actions))
    with pytest.raises(FileNotFoundError, match=r"There is no picture `.*none\.png`"):
        find_excerpts(from_pictures(pictures, "none.png", actions=actions))


def test_a_video_that_ends_before_the_actions_is_refused(pictures):
    np.save(pictures / "actions.npy", np.zeros((6, 7)))
    arguments = from_pictures(pictures, "episode.mp4", actions=str(pictures / "actions.npy"))
    with pytest.raises(ValueError, match=r"episode\.mp4` has 6 frames, and 6 commands need 7\. Give the whole video"):
        find_excerpts(arguments)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(7), r"must hold numbers of shape \(commands, D\), got float64\[7\]"),
        (np.array([[0.0, np.nan]]), r"holds NaN or infinity in row 0"),
        (np.array([{"a": 1}], dtype=object), r"cannot be read as commands: Object arrays cannot be loaded"),
        (np.zeros((0, 7)), r"must hold numbers of shape \(commands, D\), got float64\[0, 7\]"),
    ],
)
def test_bad_action_files_are_refused_by_name(pictures, actions, message):
    np.save(pictures / "bad.npy", actions)
    with pytest.raises(ValueError, match=rf"bad\.npy` {message}"):
        find_excerpts(from_pictures(pictures, "frame0.png", actions=str(pictures / "bad.npy")))


def test_an_action_file_of_the_wrong_width_is_refused(pictures, loaded):
    np.save(pictures / "short.npy", np.zeros((3, 6)))
    arguments = from_pictures(pictures, "frame0.png", actions=str(pictures / "short.npy"))
    with pytest.raises(ValueError, match=r"short\.npy` holds commands of 6 numbers; the checkpoint was trained on 7"):
        imagine(arguments)
    assert not (pictures / "o.png").exists()


def test_action_files_of_other_kinds_are_refused(pictures):
    (pictures / "actions.txt").write_text("1 2")
    with pytest.raises(ValueError, match=r"actions\.txt` cannot be read .* neither \.npy nor \.csv"):
        find_excerpts(from_pictures(pictures, "frame0.png", actions=str(pictures / "actions.txt")))


def test_given_frames_of_another_size_are_refused(pictures):
    Image.new("RGB", (48, 32)).save(pictures / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png` has 32 x 48 pixels, `.*frame0\.png` has 32 x 32"):
        find_excerpts(from_pictures(pictures, "frame0.png", "wide.png", actions=str(pictures / "actions.npy")))


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        (["frame0.png"], {"start": 1}, r"All 1 pictures of `--image` are given frames: leave out `--start`"),
        (["episode.mp4", "frame0.png"], {}, r"takes pictures or one video, got 2 files with a video first"),
        (["frame0.png"], {"num_frames": 5}, r"holds 4 commands: 4 from the last of 1 given frames on, and 5 are"),
        (
            ["frame0.png", "frame1.png"],
            {"actions": None, "instruction": "go", "num_frames": 2},
            r"gives 2 frames, but the commands between them are not known",
        ),
        (
            ["episode.mp4"],
            {"actions": None, "instruction": "go", "num_frames": 2, "given_frames": 2, "start": 1},
            r"commands between the given frames of a video are not known",
        ),
    ],
)
def test_pictures_that_do_not_fit_the_options_are_refused(pictures, images, changes, message):
    changes = {"actions": str(pictures / "actions.npy"), **changes}
    with pytest.raises(ValueError, match=message):
        find_excerpts(from_pictures(pictures, *images, **changes))


RECORDED = ["--demonstrations", "d", "--output", "o.mp4"]
PICTURED = ["--image", "i.png", "--output", "o.mp4"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"Give one of `--demonstrations`, `--image` and `--rollouts`"),
        (["--demonstrations", "d", "--rollouts", "r"], r"Give one of `--demonstrations`"),
        (["--demonstrations", "d"], r"`--output` names what is drawn"),
        (["--rollouts", "r", "--output", "o.mp4"], r"`--output` names what is drawn"),
        (["--demonstrations", "d", "--output", "o.avi"], r"must end in \.mp4, \.gif, \.png, got `o\.avi`"),
        ([*RECORDED, "--names", "a"], r"`--names` chooses episodes of a run"),
        ([*RECORDED, "--actions", "a.npy"], r"`--actions` are given after the frames of `--image`"),
        (PICTURED, r"give either `--actions` or an `--instruction`"),
        ([*PICTURED, "--actions", "a.npy", "--instruction", "go"], r"give either `--actions` or an `--instruction`"),
        ([*RECORDED, "--instruction", "go"], r"acts as long as it is asked to: give `--num_frames`"),
        ([*RECORDED, "--instruction", " ", "--num_frames", "2"], r"`--instruction` is empty"),
        (["--rollouts", "r", "--instruction", "go"], r"leave out `--instruction`"),
        ([*RECORDED, "--chunk_size", "3"], r"`--chunk_size` is the policy's: it goes with `--instruction`"),
        ([*RECORDED, "--batch_size", "0"], r"`--batch_size` must be larger than 0, got 0"),
        ([*RECORDED, "--given_frames", "0"], r"`--given_frames` must be larger than 0, got 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(ImagineArguments, ["--checkpoint", "c", *flags])
