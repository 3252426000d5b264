"""Record demonstrations of LIBERO tasks with the scripted expert, in LIBERO's own HDF5 layout.

    python evaluation/record_demonstrations.py --suite libero_object --episodes 50 --out demonstrations/libero_object

Interrupt it at any moment; the same command goes on. See docs/libero.md.
"""

import json
import logging
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm.auto import tqdm

from evaluation.atomic_files import write_json
from evaluation.expert_variation import Variation
from evaluation.libero_rendering import CAMERAS
from evaluation.libero_setup import SUITES, choose, list_tasks
from evaluation.protocol import NUM_INITIAL_STATES
from evaluation.recording import open_ledgers, record
from evaluation.recording_ledger import RecordingSettings, TaskLedger, summarise

PLACEMENTS = ("random", "benchmark")

logger = logging.getLogger(__name__)


@dataclass
class RecordingArguments:
    """Options of `evaluation/record_demonstrations.py`."""

    out: str = field(metadata={"help": "Folder for the demonstration files, one `<task name>_demo.hdf5` per task."})
    suite: str = field(default="libero_object", metadata={"help": f"LIBERO suite: {', '.join(SUITES)}."})
    task_ids: list[int] = field(default_factory=list, metadata={"help": "Tasks of the suite; all when not given."})
    episodes: int = field(default=50, metadata={"help": "Successful episodes per task."})
    image_size: int = field(default=128, metadata={"help": "Pixels, height and width. LIBERO's own files have 128."})
    cameras: list[str] = field(
        default_factory=lambda: list(CAMERAS), metadata={"help": f"Cameras to record: {', '.join(CAMERAS)}."}
    )
    segmentation: bool = field(
        default=False,
        metadata={"help": "Also record what is seen in each pixel (robot, gripper, each object), see docs/libero.md."},
    )
    picture_stride: int = field(
        default=1,
        metadata={"help": "Record pictures of every n-th step only: enough to train a VQ-GAN, not a policy."},
    )
    num_workers: int = field(default=1, metadata={"help": "Processes; each needs about a core and 2.5 GB."})
    placements: str = field(
        default="random",
        metadata={
            "help": "`random`: objects are placed as the task's definition allows. `benchmark`: seed k uses benchmark "
            "state k (0 to 49), on which policies are judged: not for training."
        },
    )
    action_noise: float = field(
        default=0.0,
        metadata={"help": "Standard deviation of a tremble of the motion commands (of 1), which the expert corrects."},
    )
    push_probability: float = field(
        default=0.0, metadata={"help": "Probability, per step, that the hand is pushed for up to six steps."}
    )
    start_offset: float = field(
        default=0.0, metadata={"help": "Metres by which the hand's start may lie elsewhere, along each axis."}
    )
    slowest_speed: float = field(
        default=1.0, metadata={"help": "The pace of an episode is drawn between this share of full speed and 1."}
    )
    first_seed: int = field(default=0, metadata={"help": "Attempt k is decided by seed first_seed + k."})
    max_attempts: int | None = field(
        default=None,
        metadata={"help": "Attempts per task before it is left with fewer episodes; by default 2 x episodes + 10."},
    )

    def __post_init__(self) -> None:
        """Check every option before the simulator is loaded."""
        choose("suite", self.suite, SUITES)
        choose("value of --placements", self.placements, PLACEMENTS)
        for camera in self.cameras:
            choose("camera", camera, tuple(CAMERAS))
        if not self.cameras:
            raise ValueError(f"`--cameras` needs at least one of: {', '.join(CAMERAS)}.")
        for name in ("episodes", "image_size", "picture_stride", "num_workers", "max_attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name}` must be at least 1, got {value}.")
        self._check_seeds()
        self._variation()

    def _check_seeds(self) -> None:
        if self.first_seed < 0:
            raise ValueError(f"`--first_seed` must not be negative, got {self.first_seed}.")
        last = NUM_INITIAL_STATES - self.first_seed
        if self.placements == "benchmark" and self.episodes > last:
            raise ValueError(
                f"A task has {NUM_INITIAL_STATES} benchmark states: from seed {self.first_seed} on there are "
                f"{max(0, last)}, but {self.episodes} episodes are asked for. Ask for fewer, or use "
                "`--placements random`."
            )

    def _variation(self) -> Variation:
        return Variation(**{entry.name: getattr(self, entry.name) for entry in fields(Variation)})

    @property
    def settings(self) -> RecordingSettings:
        """What decides the contents of the files."""
        attempts = self.max_attempts or 2 * self.episodes + 10
        if self.placements == "benchmark":
            attempts = min(attempts, NUM_INITIAL_STATES - self.first_seed)
        return RecordingSettings(
            suite=self.suite,
            episodes=self.episodes,
            placements=self.placements,
            first_seed=self.first_seed,
            max_attempts=attempts,
            cameras=tuple(self.cameras),
            image_size=self.image_size,
            picture_stride=self.picture_stride,
            segmentation=self.segmentation,
            variation=self._variation(),
        )


def format_table(rows: list[dict[str, Any]]) -> str:
    """Lay the numbers of `summarise` out as a table.

    Args:
        rows (`list[dict]`): one per task.

    Returns:
        `str`: a Markdown table with a last row of sums.
    """
    lines = ["| task | episodes | attempts | success | mean steps | instruction |", "|---:|---:|---:|---:|---:|:---|"]
    for row in rows:
        steps = "-" if row["mean_steps"] is None else f"{row['mean_steps']:.0f}"
        cells = row["task_id"], row["successes"], row["attempts"], _percent(row["successes"], row["attempts"]), steps
        lines.append("| " + " | ".join(map(str, cells)) + f" | {row['instruction']} |")
    successes, attempts = (sum(row[key] for row in rows) for key in ("successes", "attempts"))
    lines.append(f"| all | {successes} | {attempts} | {_percent(successes, attempts)} | | |")
    return "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def write_report(rows: list[dict[str, Any]], out: Path) -> None:
    """Write `recording.json` beside the files; rows of other tasks that it already holds are kept.

    Args:
        rows (`list[dict]`): as `summarise` gives them.
        out (`Path`): the folder.
    """
    path = out / "recording.json"
    known = {row["name"]: row for row in (json.loads(path.read_text()) if path.exists() else [])}
    known.update({row["name"]: row for row in rows})
    write_json(path, list(known.values()))


def record_with_progress(ledgers: list[TaskLedger], num_workers: int) -> None:
    """Record with a progress bar that counts successful episodes.

    Args:
        ledgers (`list[TaskLedger]`): the tasks.
        num_workers (`int`): processes at a time.
    """

    def count() -> int:
        return sum(min(len(ledger.successes), ledger.settings.episodes) for ledger in ledgers)

    total = sum(ledger.settings.episodes for ledger in ledgers)
    with tqdm(total=total, initial=count(), desc="demonstrations", unit="episode", smoothing=0.1) as bar:

        def on_tick() -> None:
            bar.n = count()
            bar.set_postfix_str(f"{sum(len(ledger.attempts) for ledger in ledgers)} attempts", refresh=True)

        record(ledgers, num_workers, on_tick)


def main(argv: list[str] | None = None) -> int:
    """Record what the command line asks for.

    Args:
        argv (`list[str]`, *optional*): the options; by default those of the process.

    Returns:
        `int`: exit code, 0 when every task has all its episodes.
    """
    from evaluation.arguments import parse_arguments  # loads transformers, which the recording processes do not need

    arguments = parse_arguments(RecordingArguments, sys.argv[1:] if argv is None else argv)
    out = Path(arguments.out)
    task_ids = arguments.task_ids or [task.task_id for task in list_tasks(arguments.suite)]
    ledgers = open_ledgers(arguments.settings, task_ids, out)
    record_with_progress(ledgers, arguments.num_workers)
    rows = summarise(ledgers)
    write_report(rows, out)
    tqdm.write(format_table(rows))
    short = [row for row in rows if row["successes"] < row["episodes"]]
    for row in short:
        logger.warning(
            "Task %d has %d of %d episodes after %d attempts.",
            row["task_id"], row["successes"], row["episodes"], row["attempts"],
        )  # fmt: skip
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
