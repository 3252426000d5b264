"""`WorldVLATrainer`: the transformers Trainer with a loss that is exact over the whole optimizer step.

The loss is `sum ce_action / N_action + alpha * sum ce_world / N_world` (paper §3.3) with both counts taken over every
sample of the optimizer step: all accumulation steps, all processes. So one process equals many, and accumulation
equals one large batch.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from modeling_worldvla import count_labels
from modeling_worldvla.hub_worldvla import choose_card, read_remote_card
from modeling_worldvla.model_card_worldvla import write_model_card
from train.scores import LabelScores

ROLE_LOSSES = ("loss_action", "loss_world_model")


class WorldVLATrainer(Trainer):
    """Trains both roles of a `WorldVLAForCausalLM`; the action attention mask is part of the model's forward.

    Takes the arguments of `transformers.Trainer`. Logs `loss_action` and `loss_world_model`, nats per labelled token
    of the role, beside the weighted `loss`.

    References:
        docs/fidelity.md#loss: where this differs from the official code.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} devices in one process: torch.nn.DataParallel cannot count labels exactly. "
                "Start one process per device: `accelerate launch train/run.py ...`."
            )
        self._role_sums = torch.zeros(2, len(ROLE_LOSSES), device=self.args.device)  # loss, labels

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor | None:
        """Count labels per role over the optimizer step: LongTensor `(2,)`, policy first."""
        if not batch_samples:
            return None
        counts = torch.stack([count_labels(batch["labels"], self._model_config) for batch in batch_samples]).sum(0)
        counts = counts.to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(0)
        return counts

    @property
    def _model_config(self) -> Any:
        return self.accelerator.unwrap_model(self.model).config

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
            counts = count_labels(inputs["labels"], self._model_config).to(loss.device)
            means = torch.stack([outputs[name].detach() for name in ROLE_LOSSES])
            self._role_sums += torch.stack([means * counts, counts])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each role's mean loss since the last log line; a role without samples is left out."""
        if "loss" in logs:
            sums, counts = self.accelerator.reduce(self._role_sums, "sum")
            logs |= {name: float(sums[role] / counts[role]) for role, name in enumerate(ROLE_LOSSES) if counts[role]}
            self._role_sums.zero_()
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate a split: adds the scores of `train.scores.LabelScores` to the metrics."""
        self._scores = LabelScores(self._model_config).to(self.args.device)
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        scores = self._scores.reduce(self.accelerator).metrics()
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
        with torch.no_grad(), self.compute_loss_context_manager():
            self._scores.update(self.accelerator.unwrap_model(model), inputs)
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
