"""`WorldVLATrainer`: the transformers Trainer with a loss that is exact over the whole optimizer step.

The loss is `sum ce_action / N_action + alpha * sum ce_world / N_world` (paper §3.3) with both counts taken over every
sample of the optimizer step: all accumulation steps, all processes. So one process equals many, and accumulation
equals one large batch.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers.trainer_utils import EvalLoopOutput

from modeling_worldvla import count_labels
from modeling_worldvla.hub_worldvla import choose_card, read_remote_card
from modeling_worldvla.model_card_worldvla import write_model_card
from tokenization.choices_worldvla import require_choice
from train.arguments import WorldVLATrainingArguments
from train.metering import StepMeter
from train.packing import BlankPaddedDataset
from train.resumable_trainer import ResumableTrainer
from train.scores import LabelScores, list_metrics
from train.stopping import EarlyStop, LossGuard, TrainingDivergedError, save_offending_batch

ROLE_LOSSES = ("loss_action", "loss_world_model")


def as_forward(model: torch.nn.Module, call: Callable[[], None]) -> None:
    """Run what uses parts of a model, with the weights that FSDP2 shards gathered as in the forward of the whole.

    Args:
        model (`torch.nn.Module`): the outermost module.
        call (`Callable`): what to run.
    """
    if not isinstance(model, FSDPModule):
        return call()
    object.__setattr__(model, "_call_inside", lambda: call())
    register_fsdp_forward_method(model, "_call_inside")
    return model._call_inside()  # type: ignore[operator]


class WorldVLATrainer(ResumableTrainer):
    """Trains both roles of a `WorldVLAForCausalLM`; the action attention mask is part of the model's forward.

    Logs `loss_action` and `loss_world_model`, nats per labelled token of the role, beside the weighted `loss`; what
    `StepMeter` measures; and on evaluation what `LabelScores` does. A loss that is no number, or explodes
    (`args.max_loss_ratio`), ends training before the optimizer steps.

    Args:
        *args: of `transformers.Trainer`.
        bin_values (`torch.FloatTensor` of shape `(D, A)`, *optional*): see `train.scores.action_bin_values`; for
            `action_l1`.
        clipped_by_split (`dict[str, list[float]]`, *optional*): for each split and action dimension the share of
            commands outside the limits, from the data card; logged with each evaluation of the split.
        **kwargs: of `transformers.Trainer`.

    Raises:
        ValueError: if `args.metric_for_best_model` is not among the metrics of the evaluation (names the nearest).

    References:
        docs/fidelity.md#loss: where this differs from the official code.
    """

    args: WorldVLATrainingArguments

    def __init__(
        self,
        *args: Any,
        bin_values: torch.Tensor | None = None,
        clipped_by_split: dict[str, list[float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} devices in one process: torch.nn.DataParallel cannot count labels exactly. "
                "Start one process per device: `accelerate launch train/run.py ...`."
            )
        self._bin_values = bin_values
        self._clipped_by_split = clipped_by_split or {}
        self._role_sums = torch.zeros(2, len(ROLE_LOSSES), device=self.args.device)  # loss, labels
        self._meter = StepMeter(self.args.device)
        self._step_batches: list[dict[str, torch.Tensor]] = []
        self._step_losses: list[torch.Tensor] = []
        self._check_metric()
        self.add_callback(LossGuard())
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStop())
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._without_repeats(split) for name, split in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = self._without_repeats(self.eval_dataset)

    @property
    def _worldvla(self) -> Any:
        """The model itself, out of what processes and adapters wrap around it."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _check_metric(self) -> None:
        """Refuse to look for the best checkpoint by a metric that no evaluation will have."""
        metric, splits = self.args.metric_for_best_model, self.eval_dataset
        if metric is None or splits is None:
            return
        prefixes = [f"eval_{name}" for name in splits] if isinstance(splits, dict) else ["eval"]
        names = list_metrics(self._worldvla.config, self._bin_values is not None)
        known = [f"{prefix}_{name}" for prefix in prefixes for name in names]
        require_choice("metric for `--metric_for_best_model`:", metric, known)

    def _without_repeats(self, dataset: Any) -> Any:
        """Fill a data set up with blanks, so that the processes need not fill their batches with what was counted."""
        multiple = self.args.eval_batch_size * self.args.world_size
        if self.args.world_size == 1 or len(dataset) % multiple == 0:
            return dataset
        return BlankPaddedDataset(dataset, multiple, self._worldvla.config.pad_token_id)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Take the micro-batches of a step, and begin the step."""
        with self._meter.waiting():
            batches, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_batches, self._step_losses = batches, []
        return batches, counts

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor | None:
        """Count labels per role over the optimizer step: LongTensor `(2,)`, policy first."""
        if not batch_samples:
            return None
        counts = torch.stack([self._count(batch) for batch in batch_samples]).sum(0).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(0)
        return counts

    def _count(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Labels of a micro-batch, per role."""
        return count_labels(inputs["labels"], self._worldvla.config, inputs.get("sequence_ids"))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as the Trainer does, and keep each role's sum for the log."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            counts = self._count(inputs).to(loss.device)
            means = torch.stack([outputs[name].detach() for name in ROLE_LOSSES])
            self._role_sums += torch.stack([means * counts, counts])
            self._meter.count(inputs)
            self._step_losses.append(loss.detach().float())
            if len(self._step_losses) == len(self._step_batches):
                self._check_loss()
        return (loss, outputs) if return_outputs else loss

    def _check_loss(self) -> None:
        """Look at the loss when all of the step is there, before the backward that a sharded optimizer may step in."""
        total = torch.stack(self._step_losses).sum()
        loss = float(self.accelerator.reduce(total, "mean"))  # each is scaled by the number of processes
        (guard,) = (callback for callback in self.callback_handler.callbacks if isinstance(callback, LossGuard))
        fault = guard.check(loss, self.args.max_loss_ratio)
        if fault is not None:
            self._stop_at(fault)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Look at the gradient before it is applied; a loss scale finds infinite ones itself, and skips the step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(float(norm)):
            self._stop_at(f"The norm of the gradient is {float(norm)}")
        return norm

    def _stop_at(self, fault: str) -> None:
        """Save this process's worst micro-batch of the step, and end training."""
        losses = torch.nan_to_num(torch.stack(self._step_losses), nan=float("inf"))
        worst, step, rank = int(losses.argmax()), self.state.global_step + 1, self.args.process_index
        path = save_offending_batch(
            self._step_batches[worst],
            Path(str(self.args.output_dir)) / f"offending_batch_step{step}_rank{rank}.safetensors",
            step=step,
            micro_batch=worst,
            loss=float(self._step_losses[worst]),
        )
        raise TrainingDivergedError(
            f"{fault}, at step {step} (epoch {self.state.epoch or 0:.3f}). The step was not applied. The batch "
            f"(process {rank}, micro-batch {worst} of {len(self._step_losses)}) is in `{path}`. Look at its samples, "
            "lower `--learning_rate` or lengthen `--warmup_steps`; the same command goes on from the last checkpoint."
        )

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """End the step before anything is logged, saved or evaluated: those do not count as training."""
        self._meter.end_step()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log_sums(self) -> dict[str, torch.Tensor]:
        """Add the sums of the roles to what is restored after an interruption.

        Returns:
            `dict[str, torch.Tensor]`: by name.
        """
        return super().log_sums() | {"roles": self._role_sums}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each role's mean loss and the speed since the last log line; a role without samples is left out."""
        if "loss" in logs:
            sums, counts = self.accelerator.reduce(self._role_sums, "sum")
            logs |= {name: float(sums[role] / counts[role]) for role, name in enumerate(ROLE_LOSSES) if counts[role]}
            logs |= self._meter.read(self.accelerator)
            self._role_sums.zero_()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate one split or all, each sample once, however many processes there are."""
        if eval_dataset is not None and not isinstance(eval_dataset, (str, dict)):
            eval_dataset = self._without_repeats(eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate a split: adds the scores of `train.scores.LabelScores` to the metrics."""
        self._scores = LabelScores(self._worldvla.config, self._bin_values)
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        scores = self._scores.reduce(self.accelerator).metrics()
        shares = self._clipped_by_split.get(prefix.removeprefix("eval_"), [])
        scores |= {f"clipped_actions_{dimension}": share for dimension, share in enumerate(shares)}
        metrics = (output.metrics or {}) | {f"{prefix}_{name}": value for name, value in scores.items()}
        return output._replace(metrics=metrics)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, None, None]:
        """Score one batch; nothing as wide as the vocabulary leaves it."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
            as_forward(self.accelerator.unwrap_model(self.model), partial(self._scores.update, self._worldvla, inputs))
        return None, None, None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of this project; what people wrote into the one of the repository is kept.

        Args:
            *args: what the Trainer would write into its own card is not used.
            **kwargs: likewise.
        """
        if not self.is_world_process_zero():
            return
        folder, repo_id = Path(str(self.args.output_dir)), self.hub_model_id
        remote = read_remote_card(repo_id, self.args.hub_revision, self.args.hub_token) if repo_id else None
        write_model_card(folder, repo_id=repo_id, existing=choose_card(folder, remote, repo_id or "no repository"))
