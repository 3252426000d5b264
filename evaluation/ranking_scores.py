"""What an imagined frame is worth: nearness to a goal picture, or the share of the episode that has gone by.

Both compare frames by the codebook vectors of their image tokens: nothing is drawn. A higher score is better. Shapes:
`R` frames, `G` goals of a task, `P` tasks, `h, w` image tokens, `C` numbers of a codebook vector.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from evaluation.imagination_sources import read_pictures
from evaluation.reconstruction_frames import find_images
from tokenization.choices_worldvla import require_choice
from tokenization.demonstrations import LEROBOT_INFO, find_demonstration_files, read_demonstrations

PROGRESS_WEIGHTS = "progress.safetensors"
PROGRESS_CARD = "progress.json"
CARD_KEYS = ("instructions", "image_token_hash", "camera")


class Score(Protocol):
    """Says how good imagined frames are for a task."""

    def check_instruction(self, instruction: str) -> None:
        """Refuse a task that the score knows nothing of."""

    def rate(self, image_ids: torch.Tensor, instruction: str) -> np.ndarray:
        """Scores `(R,)` of frames `(R, h, w)` of image token ids; the same frame has the same score in any batch."""

    def describe(self) -> dict[str, Any]:
        """What decides the scores, as JSON values."""


class GoalScore:
    """Minus the mean squared distance of codebook vectors to the goal picture; of several, the nearest counts.

    Args:
        image_tokenizer (`WorldVLAImageTokenizer`): holds the codebook.
        goals (`Mapping[str, torch.LongTensor]`): by instruction, image token ids `(G, h, w)`.
    """

    def __init__(self, image_tokenizer: Any, goals: Mapping[str, torch.Tensor]) -> None:
        self.image_tokenizer = image_tokenizer
        self.goals = dict(goals)

    @classmethod
    def from_paths(cls, processor: Any, paths: Sequence[str], camera: str) -> "GoalScore":
        """Read and encode goal pictures.

        Args:
            processor (`WorldVLAProcessor`): encodes them.
            paths (`Sequence[str]`): see `read_goals`.
            camera (`str`): whose frames of demonstrations are meant.

        Returns:
            `GoalScore`.

        Raises:
            FileNotFoundError: if there is nothing at a path.
            ValueError: if a picture or a file cannot be read, or a picture is not square.
        """
        goals = {}
        for instruction, pictures in read_goals(paths, camera).items():
            grids = processor.encode_images(pictures)
            goals[instruction] = torch.stack(list(grids))
        return cls(processor.image_tokenizer, goals)

    def check_instruction(self, instruction: str) -> None:
        """Refuse a task without a goal.

        Args:
            instruction (`str`): of the task.

        Raises:
            ValueError: names the tasks that have one.
        """
        require_choice("task of `--goal`", instruction, list(self.goals))

    def rate(self, image_ids: torch.Tensor, instruction: str) -> np.ndarray:
        """Score frames.

        Args:
            image_ids (`torch.LongTensor` of shape `(R, h, w)`): image token ids.
            instruction (`str`): of the task.

        Returns:
            `np.ndarray` of shape `(R,)`: at most 0.

        Raises:
            ValueError: if the goals have another number of tokens than the frames.
        """
        goals = self.goals[instruction]
        if goals.shape[1:] != image_ids.shape[1:]:
            came, expected = (" x ".join(map(str, grid.shape[1:])) for grid in (goals, image_ids))
            raise ValueError(
                f"Goal pictures of `{instruction}` have {came} tokens, the camera's frames {expected}. Give pictures "
                "of the camera's shape."
            )
        vectors = self.image_tokenizer.embed_ids(image_ids)
        nearest = torch.full((len(vectors),), torch.inf, dtype=vectors.dtype, device=vectors.device)
        for goal in self.image_tokenizer.embed_ids(goals):
            nearest = torch.minimum(nearest, ((vectors - goal) ** 2).flatten(1).mean(dim=1))
        return -nearest.double().cpu().numpy()

    def describe(self) -> dict[str, Any]:
        """What decides the scores.

        Returns:
            `dict`: JSON values: how many goals, and the SHA-256 of their tokens.
        """
        digest = hashlib.sha256()
        for instruction, goals in sorted(self.goals.items()):
            digest.update(f"{instruction} {tuple(goals.shape)}".encode() + goals.numpy().tobytes())
        return {"kind": "goal", "goals": sum(map(len, self.goals.values())), "sha256": digest.hexdigest()}


def read_goals(paths: Sequence[str], camera: str) -> dict[str, list[np.ndarray]]:
    """Read goal pictures.

    Args:
        paths (`Sequence[str]`): demonstrations (HDF5 files, folders of them, LeRobot data sets), of which the last
            frame of every episode is taken; or folders of pictures. A picture, or a sub-folder of pictures, is named
            after the instruction, with `_` for blanks.
        camera (`str`): whose frames of demonstrations are meant.

    Returns:
        `dict[str, list[np.ndarray]]`: by instruction, uint8 pictures `(H, W, 3)`.

    Raises:
        FileNotFoundError: if there is nothing at a path.
        ValueError: if a picture or a file cannot be read, or a picture is not square.
    """
    goals: dict[str, list[np.ndarray]] = {}
    for path in map(Path, paths):
        if path.is_dir() and not any(path.glob("*.hdf5")) and not (path / LEROBOT_INFO).is_file():
            for file in find_images([str(path)]):
                name = file.stem if file.parent == path else file.relative_to(path).parts[0]
                goals.setdefault(name.replace("_", " "), []).append(_require_square(read_pictures([file])[0], file))
            continue
        for file in find_demonstration_files([path]):
            for episode in read_demonstrations(file):
                (frame,) = episode.frames(camera, slice(len(episode) - 1, len(episode)))
                goals.setdefault(episode.instruction, []).append(_require_square(frame, file))
    return goals


def _require_square(picture: np.ndarray, path: Path) -> np.ndarray:
    """Refuse a picture that would lose other parts than the simulator's frames when it is cropped."""
    height, width = picture.shape[:2]
    if height != width:
        raise ValueError(
            f"The goal picture `{path}` has {height} x {width} pixels (height x width), but the simulator's frames "
            "are square: it would be cropped to another part of the scene. Give a square picture of the same camera."
        )
    return picture


class ProgressScore:
    """The share of its episode that seems to have gone by at a frame: 0 at the start, 1 at success.

    Linear in the codebook vectors of all h x w tokens, with weights for every task; `evaluation/fit_progress.py` fits
    them.

    Args:
        image_tokenizer (`WorldVLAImageTokenizer`): holds the codebook.
        instructions (`Sequence[str]`): of the P tasks.
        weights (`torch.FloatTensor` of shape `(P, h, w, C)`): of the vectors.
        biases (`torch.FloatTensor` of shape `(P,)`): what is added.
    """

    def __init__(
        self, image_tokenizer: Any, instructions: Sequence[str], weights: torch.Tensor, biases: torch.Tensor
    ) -> None:
        self.image_tokenizer = image_tokenizer
        self.instructions = list(instructions)
        self.weights, self.biases = weights, biases

    @classmethod
    def from_folder(cls, folder: str, processor: Any, camera: str) -> "ProgressScore":
        """Load what `evaluation/fit_progress.py` has written.

        Args:
            folder (`str`): with `progress.safetensors` and `progress.json`.
            processor (`WorldVLAProcessor`): the checkpoint's, whose tokens shall be scored.
            camera (`str`): whose frames shall be scored.

        Returns:
            `ProgressScore`.

        Raises:
            ValueError: if a file is missing or damaged, or it was fitted to other tokens or another camera.
        """
        card, tensors = _read_progress(Path(folder))
        score = cls(processor.image_tokenizer, card["instructions"], tensors["weights"], tensors["biases"])
        if card["image_token_hash"] != processor.image_token_hash():
            raise ValueError(
                f"`{folder}` was fitted to the tokens of another VQ-GAN than the checkpoint's. Fit one with "
                "`evaluation/fit_progress.py --checkpoint`, giving this checkpoint."
            )
        if card["camera"] != camera:
            raise ValueError(
                f"`{folder}` was fitted to frames of camera `{card['camera']}`, and the world model imagines "
                f"`{camera}`. Fit one to demonstrations that show `{camera}`."
            )
        score._check_shapes(folder, processor.vq_model.quantize.embedding.weight.shape[1])
        return score

    def check_instruction(self, instruction: str) -> None:
        """Refuse a task that nothing was fitted to.

        Args:
            instruction (`str`): of the task.

        Raises:
            ValueError: names the tasks that there are.
        """
        require_choice("task of `--progress`", instruction, self.instructions)

    def rate(self, image_ids: torch.Tensor, instruction: str) -> np.ndarray:
        """Score frames.

        Args:
            image_ids (`torch.LongTensor` of shape `(R, h, w)`): image token ids.
            instruction (`str`): of the task.

        Returns:
            `np.ndarray` of shape `(R,)`: about 0 at the start of an episode, 1 at its end.

        Raises:
            ValueError: if the frames have another number of tokens than those that were fitted to.
        """
        task = self.instructions.index(instruction)
        weights = self.weights[task]
        if weights.shape[:2] != image_ids.shape[1:]:
            came, expected = (" x ".join(map(str, shape)) for shape in (image_ids.shape[1:], weights.shape[:2]))
            raise ValueError(f"Frames have {came} tokens, the score was fitted to {expected}. Fit one to such frames.")
        vectors = self.image_tokenizer.embed_ids(image_ids).double().cpu()
        # Products and sums row by row: a matrix product may round equal rows differently.
        return ((vectors * weights).flatten(1).sum(dim=1) + self.biases[task]).numpy()

    def describe(self) -> dict[str, Any]:
        """What decides the scores.

        Returns:
            `dict`: JSON values: tasks, and the SHA-256 of the weights.
        """
        digest = hashlib.sha256(json.dumps(self.instructions).encode())
        for part in (self.weights, self.biases):
            digest.update(part.numpy().tobytes())
        return {"kind": "progress", "tasks": len(self.instructions), "sha256": digest.hexdigest()}

    def _check_shapes(self, folder: str, width: int) -> None:
        """Refuse weights of another shape than card and codebook say."""
        shape, count = tuple(self.weights.shape), len(self.instructions)
        fits = len(shape) == 4 and shape[0] == count and shape[3] == width and tuple(self.biases.shape) == (count,)
        if not fits or not all(bool(part.isfinite().all()) for part in (self.weights, self.biases)):
            raise ValueError(
                f"`{Path(folder, PROGRESS_WEIGHTS)}` must hold finite `weights` ({count}, h, w, {width}) and `biases` "
                f"({count},), got shapes {shape} and {tuple(self.biases.shape)}. Fit it again."
            )


def _read_progress(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Card and tensors of a fitted score, complete."""
    again = "Fit it again with `evaluation/fit_progress.py`."
    for name in (PROGRESS_CARD, PROGRESS_WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"`{folder}` holds no progress score: `{name}` is missing. {again}")
    try:
        card = json.loads((folder / PROGRESS_CARD).read_text("utf-8"))
        tensors = load_file(folder / PROGRESS_WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"The progress score in `{folder}` cannot be read: {error}. {again}") from error
    known = {PROGRESS_CARD: card if isinstance(card, dict) else {}, PROGRESS_WEIGHTS: tensors}
    for name, keys in ((PROGRESS_CARD, CARD_KEYS), (PROGRESS_WEIGHTS, ("weights", "biases"))):
        missing = [key for key in keys if key not in known[name]]
        if missing:
            raise ValueError(f"`{folder / name}` lacks `{missing[0]}`. {again}")
    return card, tensors
