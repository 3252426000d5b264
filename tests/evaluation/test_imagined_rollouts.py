"""Traces of a run, and what a model imagines from them."""

import json

import av
import numpy as np
import pytest

import evaluation.imagine
from evaluation.checkpoints import fingerprint_checkpoint
from evaluation.imagination_episodes import measure
from evaluation.imagine import imagine
from evaluation.imagine_arguments import ImagineArguments
from evaluation.imagined_rollouts import read_trace
from evaluation.world_model import imagine_episode, reconstruct
from modeling_worldvla.card_results_worldvla import read_results

STEPS = {"libero_goal_task0_state1": 4, "libero_goal_task1_state0": 3}


def trace_of(steps, seed=0, **changes):
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, 256, (steps + 1, 32, 32, 3), dtype=np.uint8)
    actions = generator.uniform(-1, 1, (steps, 7)).astype(np.float32)
    texts = {"instruction": "lift the cup", "camera": "agentview", "outcome": "step_limit"}
    return {"frames": frames, "actions": actions, **texts, **changes}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "videos").mkdir()
    for seed, (name, steps) in enumerate(STEPS.items()):
        np.savez_compressed(tmp_path / "videos" / f"{name}.npz", **trace_of(steps, seed))
    return tmp_path


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.5).eval()


@pytest.fixture
def loaded(model, processor, monkeypatch):
    monkeypatch.setattr(evaluation.imagine, "load_checkpoint", lambda folder, device: (model, processor))
    return model, processor


@pytest.fixture
def unloadable(monkeypatch):
    def refuse(folder, device):
        raise AssertionError("the model was loaded before the traces were checked")

    monkeypatch.setattr(evaluation.imagine, "load_checkpoint", refuse)


def options(run, **changes):
    return ImagineArguments(**{"checkpoint": "c", "rollouts": str(run), **changes})


def test_episodes_of_a_run_are_imagined_from_their_first_frame_and_actions(run, loaded, tmp_path):
    loaded[0].save_pretrained(tmp_path / "checkpoint")
    summary = imagine(options(run, checkpoint=str(tmp_path / "checkpoint")))
    fingerprint = fingerprint_checkpoint(str(tmp_path / "checkpoint"), loaded[0])
    assert summary["settings"]["checkpoint_fingerprint"] == fingerprint and summary["settings"]["commit"]
    assert json.loads((run / "imagined.json").read_text()) == json.loads(json.dumps(summary))
    assert list(summary["episodes"]) == list(STEPS)
    assert (summary["num_frames"], summary["num_episodes"]) == (7, 2)
    curves = []
    for seed, (name, steps) in enumerate(STEPS.items()):
        trace = trace_of(steps, seed)
        imagined = imagine_episode(*loaded, trace["frames"][0], trace["actions"])
        expected = measure(trace["frames"], imagined, reconstruct(loaded[1], trace["frames"]))
        assert summary["episodes"][name]["curves_db"] == expected["curves_db"]
        curves += expected["curves_db"]["imagined"]
        with av.open(str(run / "videos" / f"{name}_imagined.mp4")) as container:
            assert len(list(container.decode(video=0))) == steps + 1
    assert summary["psnr_db"]["imagined"] == pytest.approx(np.mean(curves), abs=1e-3)  # curves are rounded
    low, high = summary["psnr_db_interval_95"]["imagined"]
    assert low <= summary["psnr_db"]["imagined"] <= high
    text = (run / "imagined.md").read_text()
    assert "[libero_goal_task1_state0_imagined.mp4](videos/libero_goal_task1_state0_imagined.mp4)" in text
    assert "| libero_goal_task0_state1 | lift the cup | step_limit | 4 |" in text
    assert fingerprint[:12] in read_results(run / "imagined.json", "c").text  # on the model card


def test_episodes_and_parts_of_them_are_chosen(run, loaded, tmp_path):
    summary = imagine(
        options(run, checkpoint=str(tmp_path), names=["libero_goal_task1_state0"], start=1, num_frames=2)
    )
    assert list(summary["episodes"]) == ["libero_goal_task1_state0"] and summary["num_frames"] == 2
    assert summary["psnr_db_interval_95"]["imagined"] is None
    trace = trace_of(3, seed=1)
    imagined = imagine_episode(*loaded, trace["frames"][1], trace["actions"][1:3])
    expected = measure(trace["frames"][1:4], imagined, reconstruct(loaded[1], trace["frames"][1:4]))
    assert summary["psnr_db"] == pytest.approx(expected["psnr_db"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["libero_goal_task1_state9"]}, r"Unknown episode `libero_goal_task1_state9`.*Did you mean"),
        ({"num_frames": 4}, r"The episode has 3 frames after step 0; 4 were asked for"),
        ({"camera": "wrist"}, r"shows camera `agentview`, and `wrist` is asked for\. Choose `--camera agentview`"),
    ],
)
def test_what_the_run_does_not_hold_is_refused_before_the_model_is_loaded(run, unloadable, changes, message):
    with pytest.raises(ValueError, match=message):
        imagine(options(run, **changes))


def test_a_run_without_traces_is_refused(tmp_path, unloadable):
    with pytest.raises(ValueError, match=r"holds no traces \(videos/\*\.npz\)\. Run .* with `--traces true`"):
        imagine(options(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"frames": np.zeros((3, 8, 8, 3), np.uint8)},
            r"frames uint8\[3, 8, 8, 3\] and actions float32\[3, 7\]; uint8",
        ),
        ({"frames": np.zeros((4, 8, 8, 3), np.float32)}, r"frames float32\[4, 8, 8, 3\]"),
        ({"actions": np.full((3, 7), np.nan, np.float32)}, r"holds actions that are NaN or infinite"),
        ({"actions": np.array([{"a": 1}], dtype=object)}, r"trace\.npz` is no trace of an episode: Object arrays"),
    ],
)
def test_bad_traces_are_refused_by_name(tmp_path, changes, message):
    np.savez(tmp_path / "trace.npz", **trace_of(3, **changes))
    with pytest.raises(ValueError, match=message):
        read_trace(tmp_path / "trace.npz", "agentview")


def test_cut_and_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "trace.npz"
    np.savez(path, **trace_of(3))
    for content in (path.read_bytes()[:2000], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"trace\.npz` is no trace of an episode: .* run the evaluation again"):
            read_trace(path, "agentview")
    np.savez(path, frames=np.zeros(3))
    with pytest.raises(ValueError, match=r"is no trace of an episode: .*actions is not a file in the archive"):
        read_trace(path, "agentview")
