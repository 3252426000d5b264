"""An exponential moving average of weights: what is saved in the place of the last step's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows a model's weights, slowly.

    Early averages would be dominated by the random start, so the decay grows with the number of updates:
    `min(decay, (1 + n) / (10 + n))`. The average is kept in float32 at least, or steps would be lost in rounding.
    Frozen parameters have no average: they are what they were.

    Args:
        model (`nn.Module`): the model that is followed.
        decay (`float`): share of the old average that is kept in each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        frozen = {name for name, weight in model.named_parameters(remove_duplicate=False) if not weight.requires_grad}
        self.weights = {name: _copy(value) for name, value in model.state_dict().items() if name not in frozen}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's present weights.

        Args:
            model (`nn.Module`): the model that is followed.
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        present = model.state_dict()
        for name, average in self.weights.items():
            if average.is_floating_point():
                average.lerp_(present[name].to(average), 1 - decay)
            else:
                average.copy_(present[name])

    def replace_rows(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Forget the past of some rows: what is placed anew must not be blended with what was there.

        Args:
            name (`str`): which weight, as in the model's `state_dict`.
            rows (`torch.LongTensor` of shape `(N,)`): which rows.
            values (`torch.Tensor`): the model's present weight; its rows are taken.
        """
        self.weights[name][rows] = values[rows].to(self.weights[name])

    def copy_to(self, model: nn.Module) -> None:
        """Give the average to a model.

        Args:
            model (`nn.Module`): of the same form.
        """
        _fill(model, self.weights)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Let a model use the average for the length of a block; then it has its own weights again.

        Args:
            model (`nn.Module`): of the same form.
        """
        own = {name: value.clone() for name, value in model.state_dict().items() if name in self.weights}
        self.copy_to(model)
        try:
            yield
        finally:
            _fill(model, own)

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint holds of this object."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take the average of a checkpoint."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        stored: dict[str, Tensor] = state["weights"]  # type: ignore[assignment]
        for name, value in self.weights.items():
            value.copy_(stored[name])


def _fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Write weights into a model, in its own dtype."""
    present = model.state_dict()
    for name, value in weights.items():
        present[name].copy_(value)


def _copy(value: Tensor) -> Tensor:
    """A copy that small steps are not lost in."""
    wide = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
    return value.detach().to(wide, copy=True)
