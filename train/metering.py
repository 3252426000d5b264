"""How fast training goes: tokens per second, time lost to waiting for data, memory."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator


class StepMeter:
    """Adds up what the steps since the last log line took; evaluations and checkpoints do not count.

    Args:
        device (`torch.device`): whose memory is told.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self.tokens = torch.zeros((), dtype=torch.long, device=self.device)  # real ones
        self.places = 0  # padding as well
        self.waited, self.stepped = 0.0, 0.0
        self._started: float | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for the batches of a step; the step begins with it."""
        self._started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - self._started

    def count(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count the tokens of a micro-batch.

        Args:
            inputs (`dict`): `input_ids` `(B, L)`, and `attention_mask` or, in packed rows, `sequence_ids`.
        """
        real = inputs["sequence_ids"] if "sequence_ids" in inputs else inputs["attention_mask"]
        self.tokens += (real != 0).sum().to(self.device)
        self.places += inputs["input_ids"].numel()

    def end_step(self) -> None:
        """Say that the optimizer has stepped."""
        if self._started is not None:
            self.stepped += time.perf_counter() - self._started
            self._started = None

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Tell what the steps took, over all processes, and begin anew.

        Args:
            accelerator (`Accelerator`): joins the processes.

        Returns:
            `dict[str, float]`: `tokens_per_second` (real tokens), `padding_share` of all places, `data_wait_share` of
            the time, `peak_memory_gib` of the process that took most (device memory where there is a device); empty
            without a step.
        """
        if not self.stepped:
            return {}
        numbers = [float(self.tokens), self.places, self.waited, self.stepped, _peak_memory(self.device)]
        gathered = accelerator.gather(torch.tensor([numbers], dtype=torch.float32, device=self.device)).double().cpu()
        tokens, places, waited, stepped, _ = gathered.sum(0).tolist()
        self._clear()
        return {
            "tokens_per_second": tokens / (stepped / len(gathered)),
            "padding_share": 1 - tokens / places,
            "data_wait_share": waited / stepped,
            "peak_memory_gib": float(gathered[:, -1].max()) / 2**30,
        }


def _peak_memory(device: torch.device) -> float:
    """Bytes: of the device's allocator, or of the process where it runs on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
