"""What happens beside the steps of a run: signals that end it, weights that are averaged."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.weight_average import WeightAverage

logger = logging.getLogger("worldvla.train")

# What the process answers after a signal, once its checkpoint is written: "temporary failure, try again".
EXIT_STOPPED = os.EX_TEMPFAIL
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGINT, ends the run after the step that is under way, with a checkpoint.

    All processes of a run stop after the same step, whichever of them was told. More signals change nothing; SIGKILL
    always works, and costs the steps since the last checkpoint.

    Attributes:
        received (`bool`): whether the run was told to stop.
    """

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take both signals for the length of a block; in another thread than the main one that is not possible."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.received = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint and the end, if any process was told to stop."""
        if args.world_size > 1:
            told = torch.tensor(float(self.received), device=args.device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            self.received = bool(told)
        if self.received:
            logger.info("Told to stop: writing a checkpoint after step %d.", state.global_step)
            control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Keep what is due at the end of an epoch from happening in the middle of one."""
        if self.received and state.epoch != round(state.epoch or 0):
            control.should_log = control.should_evaluate = control.should_save = False
        return control


class FollowWeights(TrainerCallback):
    """Moves an average towards the model after every optimizer step.

    Args:
        average (`WeightAverage`): of the model that is trained.
    """

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the average."""
        self.average.update(kwargs["model"])
