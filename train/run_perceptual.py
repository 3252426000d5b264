"""Train the network `segmentation_features`: recorded pictures to what the simulator says each pixel shows.

    python train/run_perceptual.py --demonstrations demos/ --output_dir outputs/perceptual

The demonstrations need segmentation masks (`evaluation/record_demonstrations.py --segmentation`). The result is
`<output_dir>/segmentation_features.safetensors` and `segmentation_features.json`, which says how it was made. Killed
at any moment, the same command goes on from the last checkpoint.

Shapes: `B` pictures, `H, W` pixels, `K` classes.
"""

import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from train.argument_parsing import parse_arguments, require_positive, require_share
from train.atomic_files import write_json
from train.frame_cache import LABELS, FrameSources, gather
from train.frames import FrameArray, draw_batches
from train.perceptual import CHANNELS, SEGMENTATION_FEATURES, SegmentationFeatures, class_logits
from train.vqgan_losses import crop_regions

logger = logging.getLogger("worldvla.perceptual")

CHECKPOINT = "checkpoint.pt"


@dataclass
class PerceptualArguments:
    """Options of `train/run_perceptual.py`."""

    demonstrations: list[str] = field(metadata={"help": "HDF5 files of demonstrations with masks, or their folders."})
    output_dir: str = field(metadata={"help": "Folder for the weights, their card and the checkpoint."})
    cameras: list[str] = field(
        default_factory=lambda: ["agentview", "wrist"], metadata={"help": "Cameras whose pictures are learned."}
    )
    max_steps: int = field(default=2000, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=8, metadata={"help": "Pictures a step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate (AdamW, linear to zero)."})
    crop_size: int = field(default=64, metadata={"help": "Every second step sees crops, brought to this size."})
    held_out: float = field(default=0.1, metadata={"help": "Share of episodes that the accuracy is measured on."})
    save_every: int = field(default=200, metadata={"help": "Steps between checkpoints."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order, crops and of what is held out."})

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        require_positive(self, "max_steps", "batch_size", "learning_rate", "crop_size", "save_every", "held_out")
        require_share(self, "held_out")


def class_of(name: str) -> str:
    """The class of an instance: its name without the number, so that `plate_1` and `plate_2` are one.

    Args:
        name (`str`): as recorded.

    Returns:
        `str`: the class.
    """
    return re.sub(r"_\d+$", "", name)


class LabelledFrames:
    """Pictures with the class of each pixel.

    Args:
        arguments (`PerceptualArguments`): which demonstrations.

    Raises:
        ValueError: if no masks were recorded.
    """

    def __init__(self, arguments: PerceptualArguments) -> None:
        folder = gather(FrameSources(arguments.demonstrations, arguments.cameras), Path(arguments.output_dir))
        if not (folder / "masks.npy").exists():
            raise ValueError(
                f"No segmentation masks in {', '.join(arguments.demonstrations)}. Record the demonstrations with "
                "`evaluation/record_demonstrations.py --segmentation`."
            )
        self.array = FrameArray.from_sources(
            FrameSources(arguments.demonstrations, arguments.cameras), Path(arguments.output_dir)
        )
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")
        labels = json.loads((folder / LABELS).read_text("utf-8"))
        self.classes = sorted({class_of(name) for names, _ in labels for name in names})
        tables = np.zeros((len(labels), 256), np.int64)
        for row, (names, _) in enumerate(labels):
            tables[row, : len(names)] = [self.classes.index(class_of(name)) for name in names]
        with np.load(folder / "clips.npz", allow_pickle=False) as clips:
            self.label_of_frame = clips["label"][clips["clip_of_frame"]]
        self.tables = tables

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Read pictures `(B, 3, H, W)` in [−1, 1] and classes `(B, H, W)`."""
        tables = self.tables[self.label_of_frame[indices]]
        masks = np.asarray(self.masks[indices])
        classes = np.take_along_axis(tables[:, None], masks.reshape(len(masks), 1, -1).astype(np.int64), axis=2)
        return self.array.batch(indices).frames, torch.from_numpy(classes.reshape(masks.shape))

    def class_weights(self, indices: np.ndarray) -> Tensor:
        """Weights of the classes `(K,)`, mean 1 over pixels: the rarer, the more, by the root of the share."""
        counts: Counter[int] = Counter()
        for index in indices[:: max(1, len(indices) // 500)]:
            counts.update(self.batch(np.array([index]))[1].flatten().tolist())
        seen = torch.tensor([float(counts[number]) for number in range(len(self.classes))])
        share = seen / seen.sum()
        weights = share.clamp(min=1e-5).rsqrt()
        return weights / (weights * share).sum()


def cut_randomly(
    pictures: Tensor, classes: Tensor, size: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Cut a random square out of every picture, so that the network knows objects at the scale of regions.

    Args:
        pictures (`torch.FloatTensor` of shape `(B, 3, H, W)`): in [−1, 1].
        classes (`torch.LongTensor` of shape `(B, H, W)`): class of each pixel.
        size (`int`): side of the result in pixels.
        generator (`np.random.Generator`): draws the squares; their sides are a fifth to all of the picture.

    Returns:
        `tuple`: pictures `(B, 3, size, size)` and classes `(B, size, size)`.
    """
    count, _, height, width = pictures.shape
    side = generator.uniform(0.2, 1.0, count) * min(height, width)
    top, left = (generator.uniform(0, 1, count) * (limit - side) for limit in (height, width))
    boxes = torch.from_numpy(np.stack([top, left, top + side, left + side], 1)).float()
    steps = (torch.arange(size) + 0.5) / size
    rows = (boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])).long().clamp(max=height - 1)
    columns = (boxes[:, 1:2] + steps * (boxes[:, 3:] - boxes[:, 1:2])).long().clamp(max=width - 1)
    picture = torch.arange(count)
    return crop_regions(pictures, boxes, picture, size), classes[
        picture[:, None, None], rows[:, :, None], columns[:, None, :]
    ]


class PerceptualTrainer:
    """One run, from its checkpoint or from the start.

    Args:
        data (`LabelledFrames`): what is learned.
        arguments (`PerceptualArguments`): all options.
    """

    def __init__(self, data: LabelledFrames, arguments: PerceptualArguments) -> None:
        torch.manual_seed(arguments.seed)
        self.data, self.arguments = data, arguments
        self.network = SegmentationFeatures(CHANNELS)
        self.heads = nn.ModuleList([nn.Conv2d(width, len(data.classes), 1) for width in CHANNELS])
        self.parameters = [*self.network.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=arguments.learning_rate, weight_decay=1e-4)
        self.learned, self.held_out = data.array.split(arguments.held_out, arguments.seed)
        self.checkpoint = Path(arguments.output_dir) / CHECKPOINT

    def run(self) -> None:
        """Do the steps that are left."""
        arguments, first_step = self.arguments, self._resume()
        weights = self.data.class_weights(self.learned)
        batches = draw_batches(len(self.learned), arguments.batch_size, arguments.seed, first_step)
        progress = tqdm(range(first_step, arguments.max_steps), initial=first_step, total=arguments.max_steps)
        for step in progress:
            pictures, classes = self.data.batch(self.learned[next(batches)])
            generator = np.random.default_rng([arguments.seed, step])
            if step % 2:
                pictures, classes = cut_randomly(pictures, classes, arguments.crop_size, generator)
            if generator.random() < 0.5:
                pictures, classes = pictures.flip(-1), classes.flip(-1)
            loss = F.cross_entropy(self.predict(pictures), classes, weights)
            for group in self.optimizer.param_groups:
                group["lr"] = arguments.learning_rate * min((step + 1) / 50, 1 - step / arguments.max_steps)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            progress.set_postfix(loss=f"{loss.item():.3f}")
            if (step + 1) % arguments.save_every == 0:
                self._save(step + 1)

    def predict(self, pictures: Tensor) -> Tensor:
        """Logits `(B, K, H, W)` of pictures `(B, 3, H, W)`."""
        return class_logits(self.network(pictures), list(self.heads), (pictures.shape[-2], pictures.shape[-1]))

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Judge held-out episodes.

        Returns:
            `dict`: pixel accuracy, intersection over union by class (of classes that occur) and its mean.
        """
        count = len(self.data.classes)
        confusion = torch.zeros(count, count, dtype=torch.int64)
        for start in range(0, len(self.held_out), self.arguments.batch_size):
            pictures, classes = self.data.batch(self.held_out[start : start + self.arguments.batch_size])
            predicted = self.predict(pictures).argmax(1)
            confusion += torch.bincount((classes * count + predicted).flatten(), minlength=count**2).view(count, count)
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        share = {
            name: round(float(hits[number] / union[number]), 3)
            for number, name in enumerate(self.data.classes)
            if confusion[number].sum()
        }
        return {
            "pixel_accuracy": round(float(hits.sum() / confusion.sum()), 4),
            "mean_iou": round(sum(share.values()) / len(share), 4),
            "iou": share,
        }

    def _resume(self) -> int:
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, weights_only=True)
        if state["settings"] != settings_of(self.arguments):
            raise ValueError(
                f"`{self.checkpoint}` belongs to a run with other options ({state['settings']}). Choose another "
                "`--output_dir`, or delete it."
            )
        for name in ("network", "heads", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        return state["step"]

    def _save(self, step: int) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("network", "heads", "optimizer")}
        temporary = self.checkpoint.with_suffix(".new")
        torch.save({"step": step, "settings": settings_of(self.arguments), **state}, temporary)
        temporary.replace(self.checkpoint)


def settings_of(arguments: PerceptualArguments) -> dict[str, Any]:
    """What a run must not change on the way."""
    return {key: value for key, value in asdict(arguments).items() if key not in ("output_dir", "save_every")}


def make_card(trainer: PerceptualTrainer) -> dict[str, Any]:
    """Say how the weights were made, without the names of folders."""
    arguments = trainer.arguments
    kept = ("cameras", "max_steps", "batch_size", "learning_rate", "crop_size", "held_out", "seed")
    return {
        "what": "SegmentationFeatures of train/perceptual.py: per-pixel classes of LIBERO's simulator from pictures",
        "made_by": "train/run_perceptual.py",
        "options": {name: getattr(arguments, name) for name in kept},
        "demonstrations": [Path(path).name for path in arguments.demonstrations],
        "pictures": {"learned": len(trainer.learned), "held_out": len(trainer.held_out)},
        "size": list(trainer.data.array.size),
        "parameters": sum(value.numel() for value in trainer.network.parameters()),
        "held_out": trainer.evaluate(),
    }


def train(arguments: PerceptualArguments) -> Path:
    """Train, or go on training, and write the weights and their card.

    Args:
        arguments (`PerceptualArguments`): all options.

    Returns:
        `Path`: the safetensors file.
    """
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    trainer = PerceptualTrainer(LabelledFrames(arguments), arguments)
    trainer.run()
    card = make_card(trainer)
    trainer.network.save(output / SEGMENTATION_FEATURES.name)
    write_json(output / SEGMENTATION_FEATURES.with_suffix(".json").name, card)
    logger.info("pixel accuracy %.3f, mean IoU %.3f", card["held_out"]["pixel_accuracy"], card["held_out"]["mean_iou"])
    return output / SEGMENTATION_FEATURES.name


def main(argv: Sequence[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (arguments,) = parse_arguments([PerceptualArguments], argv)
    logger.info("weights saved in %s", train(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
