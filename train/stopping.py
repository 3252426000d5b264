"""What ends a training run before its last step: a loss that is no number or explodes, a metric that stays.

Nothing here is kept outside of a checkpoint, so that a resumed run stops where an uninterrupted one does.
"""

import math
import statistics
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class TrainingDivergedError(RuntimeError):
    """The loss or a gradient is no number, or the loss exploded; the step was not applied."""


class LossGuard(TrainerCallback, ExportableState):
    """Remembers the losses of the last steps and says whether the next one is out of all proportion.

    Attributes:
        recent (`list[float]`): losses of the last steps, oldest first; part of every checkpoint.
    """

    WINDOW = 100  # steps whose median is taken
    FEWEST = 10  # steps before a median means anything

    def __init__(self) -> None:
        self.recent: list[float] = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in the form that transformers asks for."""
        return {"args": {}, "attributes": {"recent": list(self.recent)}}

    def check(self, loss: float, max_ratio: float | None) -> str | None:
        """Judge the loss of a step; a good one is remembered.

        Args:
            loss (`float`): of the whole optimizer step.
            max_ratio (`float` or `None`): most that the loss may be, over the median of the last steps.

        Returns:
            `str` or `None`: what is wrong with it.
        """
        if not math.isfinite(loss):
            return f"The loss is {loss}"
        if max_ratio is not None and len(self.recent) >= self.FEWEST:
            median = statistics.median(self.recent)
            if loss > max_ratio * median:
                return (
                    f"The loss is {loss:.4g}, over {max_ratio:g} times (`--max_loss_ratio`) the {median:.4g} that is "
                    f"the median of the last {len(self.recent)} steps"
                )
        self.recent = [*self.recent, loss][-self.WINDOW :]
        return None


def save_offending_batch(batch: dict[str, torch.Tensor], path: Path, **facts: Any) -> Path:
    """Keep the micro-batch that a run stopped at.

    Args:
        batch (`dict[str, torch.Tensor]`): what the model was given.
        path (`Path`): a safetensors file; its folder is made.
        **facts: step, loss, and so on; into the file's metadata.

    Returns:
        `Path`: the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in batch.items() if torch.is_tensor(value)}
    save_file(tensors, path, metadata={name: str(value) for name, value in facts.items()})
    return path


class EarlyStop(TrainerCallback):
    """Ends training when `args.metric_for_best_model` has not improved for `args.early_stopping_patience` evaluations.

    It counts in the log, which every checkpoint holds.
    """

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the evaluations since the best one; those of other splits say nothing."""
        if args.metric_for_best_model in kwargs["metrics"] and self.is_over(args, state):
            control.should_training_stop = True

    @staticmethod
    def is_over(args: Any, state: Any) -> bool:
        """Whether the last evaluations of the log were all no better than one before.

        Args:
            args (`WorldVLATrainingArguments`): the metric and the patience.
            state (`TrainerState`): has the log.

        Returns:
            `bool`: false without evaluations.
        """
        sign = -1 if args.greater_is_better else 1
        metric = args.metric_for_best_model
        values = [sign * line[metric] for line in state.log_history if metric in line]
        return bool(values) and len(values) - 1 - values.index(min(values)) >= args.early_stopping_patience
