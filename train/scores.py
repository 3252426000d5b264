"""How well labelled tokens are predicted, role by role, with the true past given (teacher forcing).

Shapes: `B` rows, `L` tokens, `N` labelled tokens, `D` action dimensions, `A` action bins.
"""

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_worldvla.loss_worldvla import predicted_labels, world_model_labels
from modeling_worldvla.token_losses_worldvla import TokenScores, score_tokens, split_rows

ROLES = ("action", "world_model")
BY_DIMENSION = ("accuracy_action", "action_bin_error", "action_l1")


class Asked(NamedTuple):
    """What is asked for at each labelled token, tensors of shape `(N,)`: label, token before it, place, role."""

    targets: Tensor
    previous: Tensor
    dimension: Tensor  # of the action bin that is asked for; -1 where it is no bin of an action
    is_world: Tensor


def decoder_inputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the decoder reads of a training batch: all but the labels."""
    return {name: values for name, values in inputs.items() if name != "labels"}


def action_bin_values(processor: Any, dataset_name: str) -> Tensor:
    """Look up the command that each action bin stands for.

    Args:
        processor (`WorldVLAProcessor`): holds the action tokenizer.
        dataset_name (`str`): whose limits.

    Returns:
        `torch.FloatTensor` of shape `(D, A)`: commands in the data set's units.

    Raises:
        ValueError: if the data set is unknown.
    """
    tokenizer = processor.action_tokenizer
    first = tokenizer.action_token_id_start
    ids = torch.arange(first, first + tokenizer.num_bins)[:, None].expand(-1, tokenizer.action_dim)
    return tokenizer.decode(ids, dataset_name).T.contiguous()


def _columns(*values: Tensor) -> Tensor:
    """Numbers of each token side by side, and a last column of ones that counts: float64, on the CPU."""
    return torch.stack([column.cpu().double() for column in (*values, torch.ones_like(values[0]))], dim=1)


def list_metrics(config: Any, with_units: bool) -> list[str]:
    """Name every metric that `LabelScores` may give.

    Args:
        config (`WorldVLAConfig`): for the action width.
        with_units (`bool`): whether the values of the bins are known.

    Returns:
        `list[str]`: without the prefix of the split.
    """
    names = ["loss"]
    for role in ROLES:
        names += [f"loss_{role}", f"accuracy_{role}", f"grammar_violations_{role}"]
    names.append("accuracy_image")
    for name in BY_DIMENSION[: 3 if with_units else 2]:
        names += [name] * (name not in names) + [f"{name}_{dimension}" for dimension in range(config.action_dim)]
    return names


def greater_is_better(metric: str) -> bool:
    """Say which way a metric improves.

    Args:
        metric (`str`): its name, with or without prefixes.

    Returns:
        `bool`: `True` for accuracies and success rates; `False` for losses, errors and violations.
    """
    return "accuracy" in metric or "success" in metric


class LabelScores:
    """Sums over an evaluation, in float64 on the CPU: nothing as wide as the vocabulary is kept or sent.

    Args:
        config (`WorldVLAConfig`): token ids and the weight of the world model's loss.
        bin_values (`torch.FloatTensor` of shape `(D, A)`, *optional*): see `action_bin_values`; without them there is
            no `action_l1`.
    """

    def __init__(self, config: Any, bin_values: Tensor | None = None) -> None:
        self.config = config
        self.bin_values = bin_values
        self.roles = torch.zeros(len(ROLES), 4, dtype=torch.float64)  # cross-entropy, hits, violations, count
        self.images = torch.zeros(2, dtype=torch.float64)  # hits, count
        self.dimensions = torch.zeros(config.action_dim, 4, dtype=torch.float64)  # hits, bins off, units off, count

    @torch.no_grad()
    def update(self, model: Any, inputs: dict[str, Tensor]) -> None:
        """Add one batch.

        Args:
            model (`WorldVLAForCausalLM`): the model.
            inputs (`dict`): what its forward takes, `labels` of shape `(B, L)` among it; rows may be packed.
        """
        hidden = model.model(**decoder_inputs(inputs), use_cache=False).last_hidden_state
        labelled = predicted_labels(inputs["labels"], inputs.get("sequence_ids"))
        asked = self._asked(inputs, labelled)
        first = self.config.action_token_id_start
        rows = split_rows(len(asked.targets), self.config.vocab_size, self.config.loss_chunk_size)
        bins = (first, first + self.config.num_action_tokens)
        self._add(score_tokens(hidden[:, :-1][labelled], asked.targets, model.lm_head, bins, rows), asked)

    def _asked(self, inputs: dict[str, Tensor], labelled: Tensor) -> Asked:
        """Say of every labelled token what it is."""
        ids, labels = inputs["input_ids"], inputs["labels"]
        positions = torch.arange(ids.shape[1], device=ids.device)
        begins = torch.where(ids == self.config.boa_token_id, positions, -1).cummax(dim=1).values
        is_world = world_model_labels(labels, self.config, inputs.get("sequence_ids"))[:, 1:][labelled]
        targets, places = labels[:, 1:][labelled], (positions - begins - 1)[:, 1:][labelled]
        is_bin = self._is_bin(targets) & ~is_world & (places < self.config.action_dim)
        return Asked(targets, ids[:, :-1][labelled], torch.where(is_bin, places, -1), is_world)

    def _add(self, scores: TokenScores, asked: Asked) -> None:
        """Add the scores of the labelled tokens of a batch."""
        hits, wrong = scores.best == asked.targets, ~self._is_grammatical(scores.best, asked)
        self.roles.index_add_(0, asked.is_world.long().cpu(), _columns(scores.cross_entropy, hits, wrong))
        is_code = asked.is_world & self._is_code(asked.targets)
        self.images += _columns(hits[is_code]).sum(0)
        of_bins = asked.dimension >= 0
        dimension, first = asked.dimension[of_bins], self.config.action_token_id_start
        best, targets = scores.best_in_range[of_bins] - first, asked.targets[of_bins] - first
        units = torch.zeros_like(best)
        if self.bin_values is not None:
            values = self.bin_values.to(best.device)
            units = (values[dimension, best] - values[dimension, targets]).abs()
        columns = _columns(best == targets, (best - targets).abs(), units)
        self.dimensions.index_add_(0, dimension.cpu(), columns)

    def _is_bin(self, ids: Tensor) -> Tensor:
        first = self.config.action_token_id_start
        return (ids >= first) & (ids < first + self.config.num_action_tokens)

    def _is_code(self, ids: Tensor) -> Tensor:
        first = self.config.image_token_id_start
        return (ids >= first) & (ids < first + self.config.num_image_tokens)

    def _is_grammatical(self, best: Tensor, asked: Asked) -> Tensor:
        """Whether a token may stand where the label stands: any bin for a bin, any code for a code, else the label.

        After an action another one may begin, or the answer end: how many there are is not the grammar's business.
        """
        config = self.config
        goes_on = (best == config.boa_token_id) | (best == config.sep_token_id)
        allowed = (best == asked.targets) | (goes_on & (asked.previous == config.eoa_token_id))
        allowed |= self._is_bin(asked.targets) & self._is_bin(best)
        return allowed | (self._is_code(asked.targets) & self._is_code(best))

    def reduce(self, accelerator: Accelerator) -> "LabelScores":
        """Sum over all processes, in place."""
        if accelerator.num_processes > 1:
            for name in ("roles", "images", "dimensions"):
                total = accelerator.reduce(getattr(self, name).to(accelerator.device), "sum")
                setattr(self, name, total.cpu())
        return self

    def metrics(self) -> dict[str, float]:
        """Means over what was added; what there was no sample of is left out.

        Returns:
            `dict[str, float]`: by role `loss_<role>` (nats per token), `accuracy_<role>` (of the likeliest token of
            the vocabulary, all labels) and `grammar_violations_<role>` (share of labels where that token may not
            stand); `accuracy_image` (codes alone); over all dimensions `action_bin_error` (mean distance in bins) and
            `action_l1` (in the data set's units, between the centres of the likeliest and the true bin), and with
            `_<dimension>` these two and `accuracy_action` of the likeliest bin; and `loss`, the roles' losses weighted
            as in training.
        """
        metrics = {"loss": 0.0}
        for role, weight, (loss, hits, violations, count) in zip(
            ROLES, (1.0, self.config.world_model_loss_weight), self.roles.tolist(), strict=True
        ):
            if count:
                metrics |= {f"loss_{role}": loss / count, f"accuracy_{role}": hits / count}
                metrics[f"grammar_violations_{role}"] = violations / count
                metrics["loss"] += weight * loss / count
        hits, count = self.images.tolist()
        if count:
            metrics["accuracy_image"] = hits / count
        return metrics | self._dimension_metrics()

    def _dimension_metrics(self) -> dict[str, float]:
        """The metrics of action bins."""
        metrics = {}
        for column, name in enumerate(BY_DIMENSION[: 2 if self.bin_values is None else 3]):
            sums, counts = self.dimensions[:, column], self.dimensions[:, 3]
            if column and counts.sum():
                metrics[name] = float(sums.sum() / counts.sum())
            for dimension in counts.nonzero()[:, 0].tolist():
                metrics[f"{name}_{dimension}"] = float(sums[dimension] / counts[dimension])
        return metrics
