"""What imagined frames are worth: hand-made distances, goals from files, scores that belong to the checkpoint."""

import json
import re

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluation.ranking_scores import GoalScore, ProgressScore, read_goals

TASK = "lift the cup"
FRAMES = np.random.default_rng(5).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


class Codebook:
    """An image tokenizer whose ids 0, 1, 2 … stand for the vectors of a table."""

    def __init__(self, rows):
        self.rows = torch.tensor(rows, dtype=torch.float32)

    def embed_ids(self, ids):
        return self.rows[ids]


CODEBOOK = Codebook([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])


def write_pictures(folder, **pictures):
    for name, picture in pictures.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return str(folder)


def write_demonstrations(path, cameras=("agentview",)):
    """Two episodes, of three and of two steps."""
    keys = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": TASK})
        data.attrs["macros_image_convention"] = "opengl"
        for number, steps in enumerate(([0, 1, 2], [3, 4])):
            data[f"demo_{number}/actions"] = np.zeros((len(steps), 7))
            for camera in cameras:
                data[f"demo_{number}/obs/{keys[camera]}"] = FRAMES[steps][:, ::-1, ::-1]
    return str(path)


# Goals


def test_the_distance_is_that_of_codebook_vectors():
    score = GoalScore(CODEBOOK, {TASK: torch.tensor([[[0, 0]]])})
    frames = torch.tensor([[[0, 0]], [[1, 0]], [[1, 1]], [[2, 1]]])
    # (1 + 0) / 4, (1 + 1) / 4 and (9 + 1) / 4 over two tokens of two numbers
    assert score.rate(frames, TASK).tolist() == [0.0, -0.25, -0.5, -2.5]


def test_of_several_goals_the_nearest_counts():
    score = GoalScore(CODEBOOK, {TASK: torch.tensor([[[0, 0]], [[2, 1]]]), "other": torch.tensor([[[1, 1]]])})
    frames = torch.tensor([[[0, 0]], [[2, 2]], [[1, 1]]])
    assert score.rate(frames, TASK).tolist() == [0.0, -2.5, -0.5]
    assert score.rate(frames[:1], "other").tolist() == [-0.5]


def test_goals_of_another_grid_are_refused():
    score = GoalScore(CODEBOOK, {TASK: torch.zeros((1, 2, 3), dtype=torch.long)})
    with pytest.raises(ValueError, match="`lift the cup` have 2 x 3 tokens, the camera's frames 2 x 2"):
        score.rate(torch.zeros((1, 2, 2), dtype=torch.long), TASK)


def test_goal_pictures_are_named_after_the_task(tmp_path):
    folder = write_pictures(
        tmp_path, lift_the_cup=FRAMES[0], push_it__first=FRAMES[1], push_it__second=FRAMES[2], push_it=FRAMES[3]
    )
    goals = read_goals([folder], "agentview")
    assert {name: len(pictures) for name, pictures in goals.items()} == {TASK: 1, "push it": 3}
    np.testing.assert_array_equal(goals[TASK][0], FRAMES[0])
    np.testing.assert_array_equal(sorted(map(np.sum, goals["push it"])), sorted(map(np.sum, FRAMES[1:4])))


@pytest.mark.parametrize("whole", [True, False])
def test_of_demonstrations_the_last_frames_are_goals(tmp_path, whole):
    file = write_demonstrations(tmp_path / "cup_demo.hdf5")
    goals = read_goals([str(tmp_path) if whole else file], "agentview")
    np.testing.assert_array_equal(goals[TASK], FRAMES[[2, 4]])


def test_goals_are_encoded_by_the_checkpoints_tokenizer(processor, tmp_path):
    file = write_demonstrations(tmp_path / "cup_demo.hdf5")
    score = GoalScore.from_paths(processor, [file], "agentview")
    ids = processor.encode_images(FRAMES[[2, 4, 5]])
    assert torch.equal(score.goals[TASK], ids[:2])
    codebook = processor.vq_model.quantize.embedding.weight.detach()
    vectors = codebook[ids - processor.vocabulary.image_token_id_start]
    distance = ((vectors[2] - vectors[:2]) ** 2).mean(dim=(1, 2, 3)).min()
    assert score.rate(ids, TASK) == pytest.approx([0, 0, -float(distance)])
    assert score.rate(ids, TASK)[2] < 0


def test_settings_tell_which_goals(processor, tmp_path):
    described = [
        GoalScore.from_paths(
            processor, [write_pictures(tmp_path / str(number), lift_the_cup=FRAMES[number])], "agentview"
        ).describe()
        for number in (0, 1)
    ]
    assert all(one["kind"] == "goal" and one["goals"] == 1 for one in described)
    assert described[0]["sha256"] != described[1]["sha256"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: path / "nothing", FileNotFoundError, "No demonstrations at `.*nothing`"),
        (lambda path: path, FileNotFoundError, "No images at `.*`. Give folders that hold .png"),
        (
            lambda path: write_pictures(path, lift_the_cup=FRAMES[0][:, :24]),
            ValueError,
            "lift_the_cup.png` has 32 x 24",
        ),
        (lambda path: (path / "a.png").write_text("no") and path, ValueError, "a.png` cannot be read as a picture"),
        (lambda path: write_demonstrations(path / "a.hdf5", ["wrist"]), ValueError, "has no camera `agentview`"),
    ],
)
def test_goals_that_cannot_be_used_are_refused(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        read_goals([str(make(tmp_path))], "agentview")


def test_a_task_without_a_goal_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="Unknown task of `--goal` `lift the cub`.* Did you mean `lift the cup`"):
        GoalScore(CODEBOOK, {TASK: torch.zeros((1, 2, 2))}).check_instruction("lift the cub")


# Progress


@pytest.fixture
def card(processor):
    return {"instructions": [TASK, "push it"], "image_token_hash": processor.image_token_hash(), "camera": "agentview"}


@pytest.fixture
def tensors(processor):
    generator, width = torch.Generator().manual_seed(0), processor.vq_model.quantize.embedding.weight.shape[1]
    return {"weights": torch.randn(2, 2, 2, width, generator=generator), "biases": torch.tensor([0.5, -0.5])}


def write_progress(folder, card, tensors):
    (folder / "progress.json").write_text(json.dumps(card))
    save_file(tensors, folder / "progress.safetensors")
    return str(folder)


def test_progress_is_linear_in_the_codebook_vectors(processor, tmp_path, card, tensors):
    score = ProgressScore.from_folder(write_progress(tmp_path, card, tensors), processor, "agentview")
    ids = processor.encode_images(FRAMES)
    vectors = processor.image_tokenizer.embed_ids(ids)
    for task, instruction in enumerate(card["instructions"]):
        expected = torch.einsum("nhwc,hwc->n", vectors, tensors["weights"][task]) + tensors["biases"][task]
        np.testing.assert_allclose(score.rate(ids, instruction), expected, rtol=1e-4, atol=1e-4)
    twice = score.rate(torch.cat([ids, ids]), TASK)
    np.testing.assert_array_equal(twice[:6], twice[6:])  # the same frame, the same score, to the bit
    assert score.describe() == {"kind": "progress", "tasks": 2, "sha256": score.describe()["sha256"]}
    with pytest.raises(ValueError, match="Unknown task of `--progress` `push at`.* Did you mean `push it`"):
        score.check_instruction("push at")
    with pytest.raises(ValueError, match="Frames have 4 x 4 tokens, the score was fitted to 2 x 2"):
        score.rate(ids[:1].repeat(1, 2, 2), TASK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_token_hash": "0" * 64}, "was fitted to the tokens of another VQ-GAN than the checkpoint's. Fit one"),
        ({"camera": "wrist"}, "was fitted to frames of camera `wrist`, and the world model imagines `agentview`"),
        ({"instructions": [TASK]}, r"must hold finite `weights` \(1, h, w, 64\) .* got shapes \(2, 2, 2, 64\)"),
        ({"camera": None}, "progress.json` lacks `camera`. Fit it again"),
    ],
)
def test_a_score_of_something_else_is_refused(processor, tmp_path, card, tensors, changes, message):
    card = {key: value for key, value in (card | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        ProgressScore.from_folder(write_progress(tmp_path, card, tensors), processor, "agentview")


def test_damaged_scores_are_refused(processor, tmp_path, card, tensors):
    def load():
        return ProgressScore.from_folder(str(tmp_path), processor, "agentview")

    with pytest.raises(ValueError, match="holds no progress score: `progress.json` is missing. Fit it again with `ev"):
        load()
    write_progress(tmp_path, card, {"weights": tensors["weights"]})
    with pytest.raises(ValueError, match="progress.safetensors` lacks `biases`"):
        load()
    write_progress(tmp_path, card, {**tensors, "biases": torch.tensor([0.0, torch.nan])})
    with pytest.raises(ValueError, match="must hold finite `weights`"):
        load()
    whole = (tmp_path / "progress.safetensors").read_bytes()
    (tmp_path / "progress.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=f"The progress score in `{re.escape(str(tmp_path))}` cannot be read"):
        load()
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load()
