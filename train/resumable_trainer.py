"""A `transformers.Trainer` that goes on to the bit after any interruption.

Weights, optimizer, schedule, random numbers and the order of samples are restored by transformers; added here:
checkpoints that are complete or absent, an average of the weights, and signals that end a run with a checkpoint.
"""

import logging
import shutil
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from train.callbacks import EXIT_STOPPED, FollowWeights, StopOnSignal
from train.checkpoints import (
    UNFINISHED,
    checkpoint_name,
    drop_old_checkpoints,
    list_checkpoints,
    publish_checkpoint,
    sole_writer,
    what_is_missing,
)
from train.stopping import EarlyStop
from train.weight_average import WeightAverage

logger = logging.getLogger("worldvla.train")

WEIGHT_AVERAGE = "weight_average.safetensors"


def _restore_on_numbered_cpu(storage: Any, location: str) -> Any:
    """Take `cpu:0` for `cpu`: older transformers ask for it when several processes resume on a CPU."""
    return storage if location.startswith("cpu:") else None


torch.serialization.register_package(100, lambda storage: None, _restore_on_numbered_cpu)


class ResumableTrainer(Trainer):
    """Adds exact resuming, safe checkpoints and an average of weights to `transformers.Trainer`.

    Takes the arguments of `transformers.Trainer`; its training arguments have `ema_decay` (0: no average).

    Attributes:
        stop (`StopOnSignal`): says whether a signal ended the run.
        average (`WeightAverage` or None): what is evaluated and exported, when it is on.
    """

    args: Any  # WorldVLATrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop = StopOnSignal()
        self.add_callback(self.stop)
        self.average = self._make_average()
        if self.average is not None:
            self.add_callback(FollowWeights(self.average))
        self._writing_into: Path | None = None
        self._has_trained = False  # in this process

    def _make_average(self) -> WeightAverage | None:
        if not self.args.ema_decay:
            return None
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        in_parts = any(hasattr(weight, "to_local") for weight in self._whole_model.parameters())
        if in_parts or self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            raise ValueError(
                f"`--ema_decay {self.args.ema_decay}` needs whole weights in every process; FSDP, ZeRO-3 and tensor "
                "parallelism split them. Train with `--ema_decay 0`, or without splitting."
            )
        return WeightAverage(self._whole_model, self.args.ema_decay)

    @property
    def _whole_model(self) -> Any:
        return self.model

    def averaged_weights(self) -> AbstractContextManager[None]:
        """The model with its averaged weights, for the length of a `with` block.

        Returns:
            `AbstractContextManager`: does nothing when no average is kept.
        """
        return nullcontext() if self.average is None else self.average.in_place_of(self._whole_model)

    # Going on

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; interrupted by SIGTERM or SIGINT, `stop.received` is true afterwards.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint; True for the last complete one of the
                output folder, if it holds any.
            *args: as `transformers.Trainer.train`.
            **kwargs: likewise.

        Returns:
            `TrainOutput`: of this call.

        Raises:
            ValueError: if the named checkpoint is not complete.
            RuntimeError: if another process is training into the output folder.
            OSError: if a checkpoint cannot be written; the last one stays.
        """
        output = Path(str(self.args.output_dir))
        with ExitStack() as stack:
            if self.args.should_save:
                stack.enter_context(sole_writer(output))
            self.accelerator.wait_for_everyone()
            checkpoint: str | None = None
            if resume_from_checkpoint is True:
                checkpoint = next((str(path) for _, path in reversed(list_checkpoints(output))), None)
            elif resume_from_checkpoint:
                checkpoint = str(resume_from_checkpoint)
                if reason := what_is_missing(Path(checkpoint)):
                    raise ValueError(f"Checkpoint `{checkpoint}` is not complete: {reason}. Name another one.")
            stack.enter_context(self.stop.watching())
            return super().train(checkpoint, *args, **kwargs)

    def exit_if_stopped(self) -> None:
        """End the process after a run that a signal ended.

        Raises:
            SystemExit: with `EXIT_STOPPED`.
        """
        if self.stop.received:
            logger.info("Stopped after step %d. The same command goes on from there.", self.state.global_step)
            raise SystemExit(EXIT_STOPPED)

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Do an epoch; a run that was complete when it was resumed does no step more."""
        if self.state.global_step >= self.state.max_steps or self._has_stopped_early():
            self.control.should_training_stop = True
            return
        if kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            self._load_log_sums(Path(kwargs["resume_from_checkpoint"]))
        self._has_trained = True
        super()._run_epoch(**kwargs)

    def _has_stopped_early(self) -> bool:
        """Whether the checkpoint was written after early stopping had ended the run."""
        return bool(self.args.early_stopping_patience) and EarlyStop.is_over(self.args, self.state)

    # Writing

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside its place, then move it there; only then drop older ones."""
        output, step = Path(self._get_output_dir(trial)), self.state.global_step
        final, unfinished = output / checkpoint_name(step), output / UNFINISHED
        self._writing_into = unfinished
        try:
            super()._save_checkpoint(model, trial)
            self._note_best(unfinished / final.name, final)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish_checkpoint(unfinished / final.name, final, step)
                drop_old_checkpoints(output, self.args.save_total_limit, self.state.best_model_checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(self._what_is_left(final, error)) from error
        finally:
            self._writing_into = None
            if self.args.should_save:
                shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _note_best(self, written: Path, final: Path) -> None:
        """If this is the best checkpoint so far, remember it by the name that it will have."""
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))

    def _what_is_left(self, failed: Path, error: Exception) -> str:
        checkpoints = list_checkpoints(failed.parent)
        left = f"The last good one is `{checkpoints[-1][1]}`" if checkpoints else "There is no earlier one"
        return (
            f"Checkpoint `{failed}` could not be written: {error}. {left}. Free space on the disk and start the same "
            "command again."
        )

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._writing_into is None else str(self._writing_into)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload a checkpoint once it has its final name: the upload goes on while the run does."""
        if self._writing_into is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model for use, with averaged weights when they are kept; a checkpoint holds both kinds apart.

        Args:
            output_dir (`str`, *optional*): where to; by default the run's folder.
            _internal_call (`bool`): as `transformers.Trainer.save_model`.
        """
        with nullcontext() if _internal_call else self.averaged_weights():
            super().save_model(output_dir, _internal_call)

    # The log

    def log_sums(self) -> dict[str, torch.Tensor]:
        """What this process has added up since the last log line: a line begun before an interruption goes on.

        Returns:
            `dict[str, torch.Tensor]`: by name; they are restored in place.
        """
        return {"loss": self._tr_loss}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line, unless it sums up a training of no steps: the run was complete when it was resumed.

        Args:
            logs (`dict[str, float]`): numbers by name.
            start_time (`float`, *optional*): as `transformers.Trainer.log`.
        """
        if self._has_trained or "train_runtime" not in logs:
            super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        last_line = {"step": str(self._globalstep_last_logged)}
        save_file(
            {name: value.cpu() for name, value in self.log_sums().items()}, self._log_sums_in(output_dir), last_line
        )

    def _load_log_sums(self, checkpoint: Path) -> None:
        path = self._log_sums_in(checkpoint)
        if path.is_file():  # another number of processes has other sums
            for name, value in load_file(path).items():
                self.log_sums()[name].copy_(value)
            with safe_open(path, framework="pt") as file:
                self._globalstep_last_logged = int(file.metadata()["step"])

    def _log_sums_in(self, checkpoint: str | Path) -> Path:
        return Path(checkpoint) / f"log_sums_{self.args.process_index}_of_{self.args.world_size}.safetensors"

    # The average

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, with averaged weights when they are kept."""
        with self.averaged_weights():
            return super().evaluation_loop(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None and self.args.should_save:
            weights = {name: value.contiguous() for name, value in self.average.weights.items()}
            save_file(weights, Path(output_dir) / WEIGHT_AVERAGE, {"updates": str(self.average.updates)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_average(Path(checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_average(Path(str(self.state.best_model_checkpoint)))

    def _load_average(self, checkpoint: Path) -> None:
        if self.average is not None:
            path = checkpoint / WEIGHT_AVERAGE
            with safe_open(path, framework="pt") as file:
                updates = int(file.metadata()["updates"])
            self.average.load_state_dict({"updates": updates, "weights": load_file(path)})
