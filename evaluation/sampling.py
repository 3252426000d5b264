"""Chance in what is imagined or proposed: whether tokens are drawn, and the generators that they are drawn with."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from modeling_worldvla.sampling_worldvla import SamplingOptions


def seeded_generator(device: torch.device | str, seed: int, *names: Any) -> torch.Generator:
    """A generator that depends on the seed and on names alone.

    Args:
        device (`torch.device`): where is drawn.
        seed (`int`): of the run.
        *names: what is drawn for, such as an episode; their text counts.

    Returns:
        `torch.Generator`.
    """
    digest = hashlib.sha256("\n".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(kw_only=True)
class SamplingArguments:
    """Options of every command that imagines: are the codes of a frame drawn, or the likeliest ones?"""

    temperature: float | None = field(
        default=None, metadata={"help": "Draw the codes of frames, logits divided by this; by default the likeliest."}
    )
    top_p: float | None = field(
        default=None,
        metadata={"help": "temperature: draw among the fewest likeliest codes with this probability together."},
    )
    sampling_seed: int = field(default=0, metadata={"help": "temperature: seed of what is drawn."})

    def check_sampling(self) -> None:
        """Refuse options out of range, and those that would do nothing.

        Raises:
            ValueError: names the option.
        """
        if self.temperature is None:
            if self.top_p is not None or self.sampling_seed != 0:
                raise ValueError("`--top_p` and `--sampling_seed` are for drawing codes: add `--temperature 1`.")
            return
        SamplingOptions(do_sample=True, temperature=self.temperature, top_p=self.top_p)

    def sampling_options(self, names: Sequence[str], device: torch.device) -> dict[str, Any]:
        """The chance of a batch.

        Args:
            names (`Sequence[str]`): of its B rows; rows of one name draw the same numbers.
            device (`torch.device`): of the model.

        Returns:
            `dict`: arguments of `imagine_frames`; none where nothing is drawn.
        """
        if self.temperature is None:
            return {}
        generators = [seeded_generator(device, self.sampling_seed, name) for name in names]
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "generator": generators}


GREEDY = SamplingArguments()
