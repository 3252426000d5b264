"""An exponential moving average of weights: what is saved in the place of the last step's."""

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows a model's weights, slowly.

    Early averages would be dominated by the random start, so the decay grows with the number of updates:
    `min(decay, (1 + n) / (10 + n))`.

    Args:
        model (`nn.Module`): the model that is followed.
        decay (`float`): share of the old average that is kept in each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's present weights.

        Args:
            model (`nn.Module`): the model that is followed.
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value.to(self.weights[name]), 1 - decay)
            else:
                self.weights[name].copy_(value)

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
        model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint holds of this object."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take the average of a checkpoint."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        stored: dict[str, Tensor] = state["weights"]  # type: ignore[assignment]
        for name, value in self.weights.items():
            value.copy_(stored[name])
