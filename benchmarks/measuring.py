"""What the benchmarks share: clocks, turns, the machine they ran on, and their table."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# glibc keeps freed memory at will, differently in every process; so told, it gives blocks of tensors back at once.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass
class Row:
    """One line of the table."""

    what: str
    shape: str
    baseline: str
    result: str
    ratio: float
    target: str
    holds: bool


def fastest(repetitions: int, *calls: Callable[[], Any]) -> list[float]:
    """Shortest time of each call in seconds; the calls take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for repetition in range(repetitions):
        order = list(enumerate(calls))
        for place, call in order if repetition % 2 == 0 else reversed(order):
            start = now()
            call()
            times[place].append(now() - start)
    return [min(values) for values in times]


def describe_machine(device: str = "cpu") -> dict[str, str]:
    """Processor, versions and commit; the card as well, where one is measured."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = f"{models[0]} x {len(models)}" if models else cpu
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
        **({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
    }


def collect(rows: Sequence[Row], preset: str, dtype: str, repetitions: int, device: str = "cpu") -> dict[str, Any]:
    """What a benchmark found, as `report` prints and writes it: machine, commit, options, one entry per line."""
    return {
        "machine": describe_machine(device),
        "preset": preset,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "repetitions": repetitions,
        "rows": [asdict(row) for row in rows],
    }


def size_and_dtype(model: Any) -> tuple[str, str]:
    """A model in two words: its parameters, and what they are kept in."""
    parameters = sum(weight.numel() for weight in model.parameters())
    return f"{parameters / 1e6:.0f}M parameters", str(model.dtype).removeprefix("torch.")


def format_table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    lines = [
        f"{results['preset']}, {results['dtype']}, {results['threads']} thread(s); {machine}",
        "",
        "| what | shape | baseline | result | ratio | target | holds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        cells = [row["what"], row["shape"], row["baseline"], row["result"], f"{row['ratio']:.3f}", row["target"]]
        lines.append(f"| {' | '.join(cells)} | {'yes' if row['holds'] else 'no'} |")
    return "\n".join(lines) + "\n"


def now() -> float:
    """Seconds of a clock that stands still while other programs run, where one thread does the work."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def process_memory(name: str) -> int:
    """Bytes of this process, as the kernel counts them."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def report(results: dict[str, Any], output: str | None) -> None:
    """Print the table and, where a file is named, write the results as JSON."""
    sys.stdout.write(format_table(results))
    if output is not None:
        Path(output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
