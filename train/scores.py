"""How well labelled tokens are predicted, role by role, with the true past given (teacher forcing).

Shapes: `B` samples, `L` tokens, `N` labelled tokens, `V` vocabulary.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_worldvla.loss_worldvla import predicted_labels, world_model_labels
from modeling_worldvla.token_losses_worldvla import score_tokens, split_rows

ROLES = ("action", "world_model")


class LabelScores(torch.nn.Module):
    """Sums over an evaluation: cross-entropy, hits and counts per role, and the distance of action bins.

    Args:
        config (`WorldVLAConfig`): token ids and the weight of the world model's loss.
    """

    sums: Tensor
    bins: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("sums", torch.zeros(len(ROLES), 3))  # cross-entropy, hits, count
        self.register_buffer("bins", torch.zeros(2))  # bin distance, count

    def update(self, model: Any, inputs: dict[str, Tensor]) -> None:
        """Add one batch.

        Args:
            model (`WorldVLAForCausalLM`): the model.
            inputs (`dict`): `input_ids`, `attention_mask` and `labels`, each `(B, L)`.
        """
        hidden = model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        labels = inputs["labels"][:, 1:]
        labelled = predicted_labels(inputs["labels"])
        targets = labels[labelled]
        first = self.config.action_token_id_start
        last = first + self.config.num_action_tokens
        rows = split_rows(len(targets), self.config.vocab_size, self.config.loss_chunk_size)
        scores = score_tokens(hidden[:, :-1][labelled], targets, model.lm_head, (first, last), rows)
        is_world = world_model_labels(inputs["labels"], self.config)[:, 1:][labelled]
        hits = (scores.best == targets).float()
        for role, selected in enumerate((~is_world, is_world)):
            self.sums[role] += torch.stack(
                [scores.cross_entropy[selected].sum(), hits[selected].sum(), selected.sum()]
            )
        asked = ~is_world & (targets >= first) & (targets < last)  # an action bin is asked for
        self.bins += torch.stack([(scores.best_in_range - targets)[asked].abs().sum(), asked.sum()])

    def reduce(self, accelerator: Accelerator) -> "LabelScores":
        """Sum over all processes, in place."""
        self.sums = accelerator.reduce(self.sums, "sum")
        self.bins = accelerator.reduce(self.bins, "sum")
        return self

    def metrics(self) -> dict[str, float]:
        """Means over what was added; a role without samples is left out.

        Returns:
            `dict[str, float]`: `loss_<role>` (nats per token), `accuracy_<role>`, `action_bin_error` (mean distance in
            bins) and `loss`, their weighted sum as in training.
        """
        metrics = {"loss": 0.0}
        for role, weight, (loss, hits, count) in zip(
            ROLES, (1.0, self.config.world_model_loss_weight), self.sums.tolist(), strict=True
        ):
            if count:
                metrics |= {f"loss_{role}": loss / count, f"accuracy_{role}": hits / count}
                metrics["loss"] += weight * loss / count
        distance, count = self.bins.tolist()
        if count:
            metrics["action_bin_error"] = distance / count
        return metrics
