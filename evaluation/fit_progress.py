"""Fit the score "how much of its episode has gone by at this frame?" to recorded episodes, for best-of-n.

    python evaluation/fit_progress.py --checkpoint outputs/run --demonstrations demos/ --output_dir progress/

Ridge regression of (step / last step) on the codebook vectors of all image tokens of a frame, one for each
instruction. Some episodes of every task are held out and judged. Writes `progress.safetensors` and `progress.json`,
for `evaluation/run.py --best_of 4 --progress progress/`. See docs/ranking.md. Shapes: `N` frames, `F` numbers of a
frame, `h, w` image tokens, `C` numbers of a codebook vector, `T` frames of an episode.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from evaluation.arguments import parse_arguments, require_positive
from evaluation.atomic_files import write_atomically, write_json
from evaluation.checkpoints import check_imagined_camera, load_processor
from evaluation.intervals import episode_interval
from evaluation.ranking_scores import PROGRESS_CARD, PROGRESS_WEIGHTS, ProgressScore
from evaluation.run_settings import current_commit
from tokenization.demonstrations import Demonstration, find_demonstration_files, read_demonstrations

logger = logging.getLogger("worldvla.fit_progress")

ENCODED_AT_ONCE = 64  # frames; bounds the memory, however long an episode is


@dataclass
class FitProgressArguments:
    """Options of `evaluation/fit_progress.py`."""

    checkpoint: str = field(metadata={"help": "Folder or Hub id of a checkpoint; its processor alone is read."})
    demonstrations: list[str] = field(
        metadata={"help": "Successful episodes: HDF5 files, folders of them, or LeRobot data sets."}
    )
    output_dir: str = field(metadata={"help": "Folder for progress.safetensors and progress.json."})
    camera: str = field(default="agentview", metadata={"help": "Camera that the checkpoint's world model imagines."})
    frames_per_episode: int = field(default=16, metadata={"help": "Frames of each episode that are fitted to."})
    held_out: float = field(default=0.1, metadata={"help": "Share of each task's episodes that are judged instead."})
    steps_apart: int = field(
        default=5, metadata={"help": "Judged is, too, which of two frames so far apart is later."}
    )
    ridge: float = field(default=1.0, metadata={"help": "Penalty, in units of a number's mean variance."})
    seed: int = field(default=0, metadata={"help": "Seed of the choice of held-out episodes."})
    device: str = field(default="cpu", metadata={"help": "torch device of the VQ-GAN."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_positive(self, "steps_apart", "ridge")
        if self.frames_per_episode < 2:
            raise ValueError(f"`--frames_per_episode` must be at least 2, got {self.frames_per_episode}.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"`--held_out` must lie in (0, 1), got {self.held_out}.")


def read_tasks(paths: Sequence[str]) -> dict[str, list[Demonstration]]:
    """Sort episodes by task.

    Args:
        paths (`Sequence[str]`): files and folders of demonstrations.

    Returns:
        `dict[str, list[Demonstration]]`: by instruction, at least two each.

    Raises:
        FileNotFoundError: if there is nothing at a path.
        ValueError: if a file is damaged, or a task has one episode only.
    """
    tasks: dict[str, list[Demonstration]] = {}
    for file in find_demonstration_files(paths):
        for episode in read_demonstrations(file):
            if len(episode) > 1:
                tasks.setdefault(episode.instruction, []).append(episode)
    for instruction, episodes in tasks.items():
        if len(episodes) < 2:
            raise ValueError(
                f"Task `{instruction}` has 1 episode of two frames or more, and one has to be held out. Give more."
            )
    return tasks


def fit_ridge(vectors: np.ndarray, targets: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Fit targets by a linear function of the vectors, in its dual form: frames are fewer than numbers.

    Args:
        vectors (`np.ndarray` of shape `(N, F)`): one row a frame.
        targets (`np.ndarray` of shape `(N,)`): what the function shall be there.
        ridge (`float`): penalty of the squared weights, in units of the mean variance of a number.

    Returns:
        `tuple[np.ndarray, float]`: weights `(F,)` and bias.
    """
    mean, level = vectors.mean(axis=0), float(targets.mean())
    centred = vectors - mean
    gram = centred @ centred.T
    # Where no number varies, the targets' mean is all that can be said; the penalty must not vanish with them.
    gram[np.diag_indices(len(gram))] += ridge * (np.trace(gram) / centred.shape[1] or 1.0)
    weights = centred.T @ np.linalg.solve(gram, targets - level)
    return weights, level - float(mean @ weights)


def judge_episode(scores: np.ndarray, steps_apart: int) -> dict[str, float | None]:
    """How well the scores of an episode's frames say what comes first.

    Args:
        scores (`np.ndarray` of shape `(T,)`): of its frames, in order.
        steps_apart (`int`): distance of the pairs of frames.

    Returns:
        `dict`: `rank_correlation` of score and step (Spearman; 0 for scores that are all the same), and
            `later_higher`, the share of pairs so far apart whose later frame has the higher score; None where there is
            no pair.
    """
    rank = 0.0 if np.ptp(scores) == 0 else float(spearmanr(scores, np.arange(len(scores))).statistic)
    earlier, later = scores[:-steps_apart], scores[steps_apart:]
    return {"rank_correlation": rank, "later_higher": float((later > earlier).mean()) if len(later) else None}


def fit_progress(arguments: FitProgressArguments) -> dict[str, Any]:
    """Fit, judge and write.

    Args:
        arguments (`FitProgressArguments`): all options.

    Returns:
        `dict`: what is written to `progress.json`.

    Raises:
        FileNotFoundError: if there are no demonstrations.
        ValueError: if a file is damaged, a task has one episode, or the checkpoint imagines another camera.
    """
    tasks = read_tasks(arguments.demonstrations)
    check_imagined_camera(arguments.checkpoint, arguments.camera)
    processor = load_processor(arguments.checkpoint, arguments.device)
    generator = np.random.default_rng(arguments.seed)
    parts, held_out = [], []
    with tqdm(total=sum(map(len, tasks.values())), desc="fit progress", unit="episode") as bar:
        for instruction, episodes in tasks.items():
            count = max(1, round(arguments.held_out * len(episodes)))
            order = [episodes[number] for number in generator.permutation(len(episodes))]
            part = _fit_task(processor, order[count:], arguments, bar)
            score = ProgressScore(processor.image_tokenizer, [instruction], *(row[None] for row in part))
            held_out += [_judge(processor, score, episode, arguments, bar) for episode in order[:count]]
            parts.append(part)
    weights, biases = (torch.stack(rows) for rows in zip(*parts, strict=True))
    card = {
        "instructions": list(tasks),
        "image_token_hash": processor.image_token_hash(),
        "camera": arguments.camera,
        "episodes": sum(map(len, tasks.values())) - len(held_out),
        "held_out": {"episodes": len(held_out), **_summarise(held_out)},
        "settings": {**asdict(arguments), "commit": current_commit()},
    }
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"weights": weights, "biases": biases}
    write_atomically(folder / PROGRESS_WEIGHTS, lambda temporary: save_file(tensors, temporary))
    write_json(folder / PROGRESS_CARD, card)
    return card


def _fit_task(
    processor: Any, episodes: Sequence[Demonstration], arguments: FitProgressArguments, bar: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `(h, w, C)` and bias of one task."""
    vectors, targets = [], []
    for episode in episodes:
        last = len(episode) - 1
        steps = np.unique(np.linspace(0, last, min(arguments.frames_per_episode, last + 1)).round().astype(int))
        vectors.append(processor.image_tokenizer.embed_ids(_encode(processor, episode, arguments.camera, steps)))
        targets.append(steps / last)
        bar.update()
    joined = torch.cat(vectors).cpu()
    weights, bias = fit_ridge(joined.flatten(1).numpy(), np.concatenate(targets).astype(np.float32), arguments.ridge)
    return torch.from_numpy(weights.astype(np.float32)).view(joined.shape[1:]), torch.tensor(bias)


def _judge(
    processor: Any, score: ProgressScore, episode: Demonstration, arguments: FitProgressArguments, bar: Any
) -> dict[str, float | None]:
    """Judge the score on every frame of an episode."""
    ids = _encode(processor, episode, arguments.camera, np.arange(len(episode)))
    bar.update()
    return judge_episode(score.rate(ids, episode.instruction), arguments.steps_apart)


def _encode(processor: Any, episode: Demonstration, camera: str, steps: np.ndarray) -> torch.Tensor:
    """Image token ids `(N, h, w)` of some steps of an episode."""
    frames = episode.frames(camera)[steps]
    starts = range(0, len(frames), ENCODED_AT_ONCE)
    grids = [processor.encode_images(list(frames[start : start + ENCODED_AT_ONCE])) for start in starts]
    return torch.cat([torch.stack(list(grid)) for grid in grids])


def _summarise(judged: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    """Means over episodes, with 95 % intervals by bootstrap."""
    summary: dict[str, Any] = {}
    for name in ("rank_correlation", "later_higher"):
        values = np.array([value for episode in judged if (value := episode[name]) is not None])
        if len(values):
            interval = episode_interval(values, np.arange(len(values)))
            summary[name] = {"value": float(values.mean()), "interval_95": None if interval is None else [*interval]}
    return summary


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    card = fit_progress(parse_arguments(FitProgressArguments, argv))
    held_out = card["held_out"]
    for name in ("rank_correlation", "later_higher"):
        if name in held_out:
            logger.info("%d held-out episodes: %s %.3f", held_out["episodes"], name, held_out[name]["value"])


if __name__ == "__main__":
    main(sys.argv[1:])
