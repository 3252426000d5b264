import json
import shutil

import av
import h5py
import numpy as np
import pytest
import torch

import evaluation.imagine
from evaluation.arguments import ImagineArguments
from evaluation.imagine import imagine, measure, read_window
from evaluation.world_model import fit_frames, imagine_episode, imagine_tokens, reconstruct

EPISODES = {"demo_0": 6, "demo_1": 4}  # steps


@pytest.fixture(scope="module")
def stored():
    """Pixels and commands by episode, as they lie in the file."""
    generator = np.random.default_rng(0)
    return {
        name: (
            generator.integers(0, 256, (steps, 32, 32, 3), dtype=np.uint8),
            generator.uniform(-1, 1, (steps, 7)).astype(np.float32),
        )
        for name, steps in EPISODES.items()
    }


@pytest.fixture(scope="module")
def demonstrations(stored, tmp_path_factory):
    path = tmp_path_factory.mktemp("demonstrations") / "cup_demo.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "lift the cup"})
        data.attrs["macros_image_convention"] = "opengl"
        for name, (frames, actions) in stored.items():
            data[f"{name}/actions"] = actions
            data[f"{name}/obs/agentview_rgb"] = frames
    return str(path)


def window(demonstrations, **changes):
    return ImagineArguments(checkpoint="c", demonstrations=demonstrations, output="o.mp4", **changes)


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.5).eval()  # wide weights: answers that depend on the prompt


def test_episodes_imagined_together_are_those_imagined_alone(model, processor, stored):
    frames, actions = (np.stack([stored[name][part][:3] for name in EPISODES]) for part in (0, 1))
    first, action_ids = processor.encode_images(list(frames[:, 0])), torch.as_tensor(processor.encode_actions(actions))
    numbers = []
    together = imagine_tokens(model, processor, first, action_ids, numbers.append)
    assert together.shape == (2, 3, 2, 2) and numbers == [1, 2, 3]
    alone = [imagine_tokens(model, processor, first[[row]], action_ids[[row]])[0] for row in range(2)]
    assert torch.equal(together, torch.stack(alone)) and not torch.equal(together[0], together[1])


@pytest.mark.parametrize("history", [1, 2, 3])
def test_an_imagined_episode_is_one_prediction_after_another(model, processor, stored, history, monkeypatch):
    monkeypatch.setattr(model.config, "world_model_history", history)
    frames, actions = stored["demo_1"]
    numbers = []
    found = imagine_episode(model, processor, frames[0], actions, on_frame=numbers.append)

    tokens = [processor.encode_images([frames[0]])]
    for step in range(len(actions)):
        shown, known = [grid[0].numpy() for grid in tokens][-history:], actions[: step + 1][-history:]
        inputs = processor(shown, actions=known, role="world_model", return_tensors="pt")
        tokens.append(model.predict_next_frame(**inputs))
    expected = np.stack([np.asarray(picture) for picture in processor.decode_images(torch.cat(tokens))])
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (5, 32, 32, 3) and found.dtype == np.uint8
    assert numbers == [1, 2, 3, 4]
    # The comparison means something: frames change from step to step, and with the commands.
    assert len(np.unique(found.reshape(5, -1), axis=0)) >= 3
    assert (imagine_episode(model, processor, frames[0], actions[::-1]) != found).any()


def test_the_first_imagined_frame_is_the_reconstruction(model, processor, stored):
    frames, actions = stored["demo_0"]
    found = imagine_episode(model, processor, frames[0], actions[:1])
    np.testing.assert_array_equal(found[:1], reconstruct(processor, frames[:1]))
    assert (reconstruct(processor, frames[:1]) != reconstruct(processor, frames[1:2])).any()


def test_frames_of_the_right_size_stay_as_they_are(processor, stored):
    np.testing.assert_array_equal(fit_frames(processor, stored["demo_0"][0]), stored["demo_0"][0])


def test_other_frames_are_cropped_and_scaled(processor):
    wide = np.random.default_rng(1).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_frames(processor, wide), wide[:, :, 16:48])
    large = np.empty((1, 64, 64, 3), np.uint8)
    large[:] = (10, 100, 200)
    found = fit_frames(processor, large)
    assert found.shape == (1, 32, 32, 3) and found.dtype == np.uint8
    assert (found == (10, 100, 200)).all()


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


def test_a_window_of_a_recorded_episode(demonstrations, stored):
    frames, actions = read_window(window(demonstrations, episode=1))
    np.testing.assert_array_equal(frames, stored["demo_1"][0][:, ::-1, ::-1])  # upright
    np.testing.assert_array_equal(actions, stored["demo_1"][1][:3])  # no frame was seen after the last command

    frames, actions = read_window(window(demonstrations, start=2, num_frames=2))
    np.testing.assert_array_equal(frames, stored["demo_0"][0][2:5, ::-1, ::-1])
    np.testing.assert_array_equal(actions, stored["demo_0"][1][2:4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episode": 2}, r"holds 2 episodes; `--episode 2` does not exist\. Choose 0 … 1\."),
        ({"num_frames": 6}, r"has 5 frames after step 0; 6 were asked for\. Lower `--start` or `--num_frames`\."),
        ({"start": 3, "num_frames": 3}, r"has 2 frames after step 3; 3 were asked for\."),
        ({"start": 5}, r"has 0 frames after step 5; at least 1 is needed\."),
        ({"start": 9}, r"has 0 frames after step 9; at least 1 is needed\."),
    ],
)
def test_windows_outside_the_recording_are_refused(demonstrations, changes, message):
    with pytest.raises(ValueError, match=message):
        read_window(window(demonstrations, **changes))


def test_clipped_commands_are_counted(demonstrations, model, processor, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(evaluation.imagine, "load_checkpoint", lambda folder, device: (model, processor))
    monkeypatch.setattr(evaluation.imagine, "fingerprint_checkpoint", lambda folder, model: "abc")
    copied = shutil.copy(demonstrations, tmp_path / "extreme_demo.hdf5")
    with h5py.File(copied, "a") as file:
        file["data/demo_0/actions"][0, :2] = 9.0
    arguments = window(str(copied), num_frames=2)
    arguments.output = str(tmp_path / "imagined.mp4")
    assert imagine(arguments)["clipped_action_values"] >= 2
    assert "of 14 action values lie outside the checkpoint's limits: clipped." in caplog.text


def test_imagining_writes_the_video_and_the_numbers(demonstrations, model, processor, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.imagine, "load_checkpoint", lambda folder, device: (model, processor))
    monkeypatch.setattr(evaluation.imagine, "fingerprint_checkpoint", lambda folder, model: "abc")
    arguments = window(demonstrations, start=1, num_frames=3)
    arguments.output = str(tmp_path / "imagined.mp4")
    result = imagine(arguments)

    real = stored["demo_0"][0][1:5, ::-1, ::-1]
    imagined = imagine_episode(model, processor, real[0], stored["demo_0"][1][1:4])
    expected = measure(real, imagined, reconstruct(processor, real))
    assert {key: result[key] for key in expected} == expected
    assert result["seconds_per_frame"] > 0 and result["settings"]["start"] == 1
    assert result["settings"]["checkpoint_fingerprint"] == "abc" and result["settings"]["commit"]
    assert json.loads((tmp_path / "imagined.json").read_text()) == result
    with av.open(arguments.output) as container:
        shapes = [(frame.height, frame.width) for frame in container.decode(video=0)]
    assert shapes == [(256 + 18, 512)] * 4
    assert {entry.name for entry in tmp_path.iterdir()} == {"imagined.mp4", "imagined.json"}
