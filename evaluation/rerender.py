"""Render recorded demonstrations anew: at another size, from other cameras, with segmentation, without no-ops.

    python evaluation/rerender.py --demonstrations in/ --out out/ --image_size 256 --drop_noops --replay

Reads LIBERO's own HDF5 files and our recorder's. Stop it at any moment; the same command goes on. See docs/data.md.
"""

import logging
import multiprocessing
import sys
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm.auto import tqdm

from evaluation.atomic_files import write_json
from evaluation.libero_rendering import CAMERAS
from evaluation.libero_setup import choose
from evaluation.recorded_actions import list_files
from evaluation.rerender_ledger import FileLedger, open_file_ledgers
from evaluation.rerendering import RerenderSettings, close_environment_at_exit, rerender_job

logger = logging.getLogger(__name__)


@dataclass
class RerenderArguments:
    """Options of `evaluation/rerender.py`."""

    demonstrations: list[str] = field(metadata={"help": "HDF5 files in LIBERO's layout, or folders that hold them."})
    out: str = field(metadata={"help": "Folder for the new files, which have the names of the old ones."})
    image_size: int = field(default=256, metadata={"help": "Pixels, height and width."})
    cameras: list[str] = field(
        default_factory=lambda: list(CAMERAS), metadata={"help": f"Cameras to render: {', '.join(CAMERAS)}."}
    )
    segmentation: bool = field(default=False, metadata={"help": "Also render what is seen in each pixel."})
    replay: bool = field(
        default=False,
        metadata={
            "help": "Carry the actions out again and keep the successes; else the recorded states are rendered."
        },
    )
    drop_noops: bool = field(
        default=False, metadata={"help": "Leave out steps in which nothing is commanded; with `--replay` only."}
    )
    num_workers: int = field(default=1, metadata={"help": "Processes; each needs about a core and 2.5 GB."})

    def __post_init__(self) -> None:
        """Check every option before the simulator is loaded."""
        for camera in self.cameras:
            choose("camera", camera, tuple(CAMERAS))
        if not self.cameras:
            raise ValueError(f"`--cameras` needs at least one of: {', '.join(CAMERAS)}.")
        for name in ("image_size", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")
        if self.drop_noops and not self.replay:
            raise ValueError(
                "`--drop_noops` needs `--replay`: between the recorded states of the steps that are left, the arm "
                "moved on. To leave frames out without a simulator: `train/pretokenize.py --drop_noops`."
            )

    @property
    def settings(self) -> RerenderSettings:
        """What decides the contents of the files."""
        return RerenderSettings(tuple(self.cameras), self.image_size, self.segmentation, self.drop_noops, self.replay)


def rerender(ledgers: list[FileLedger], settings: RerenderSettings, num_workers: int) -> None:
    """Render every episode that is not finished, in processes of their own, and write the files that are complete.

    Args:
        ledgers (`list[FileLedger]`): the files.
        settings (`RerenderSettings`): how.
        num_workers (`int`): processes at a time.

    Raises:
        RuntimeError: if a process dies; what was finished is kept.
        ValueError: if an episode cannot be rendered; names the file.
    """
    jobs = [(ledger, job) for ledger in ledgers for job in ledger.open_jobs()]
    total = sum(len(ledger.kept) for ledger in ledgers)
    for ledger in ledgers:
        ledger.write_if_complete()
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    with (
        tqdm(total=total, initial=total - len(jobs), desc="render", unit="episode", smoothing=0.1) as bar,
        ProcessPoolExecutor(min(num_workers, len(jobs)), context, close_environment_at_exit) as pool,
    ):
        waiting: dict[Future[int | None], tuple[FileLedger, int]] = {
            pool.submit(rerender_job, job, settings): (ledger, job.number) for ledger, job in jobs
        }
        try:
            for done in as_completed(waiting):
                ledger, number = waiting[done]
                ledger.finish(number, done.result())
                ledger.write_if_complete()
                bar.update()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A process that renders has died, most likely because memory ran out (about 2.5 GB a process): lower "
                "`--num_workers`. The same command goes on where it stopped."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def format_table(rows: list[dict[str, Any]]) -> str:
    """Lay the summaries of the files out as a table.

    Args:
        rows (`list[dict]`): one per file, as `FileLedger.summary` gives them.

    Returns:
        `str`: a Markdown table with a last row of sums.
    """
    lines = ["| file | episodes | kept | rate | no-ops left out | steps |", "|:---|---:|---:|---:|---:|---:|"]
    keys = ("episodes", "kept", "dropped_noops", "steps")
    for row in [*rows, {"source": "all", **{key: sum(row[key] for row in rows) for key in keys}}]:
        rate = f"{100 * row['kept'] / row['episodes']:.0f} %" if row["episodes"] else "-"
        cells = row["source"], row["episodes"], row["kept"], rate, row["dropped_noops"], row["steps"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Render what the command line asks for.

    Args:
        argv (`list[str]`, *optional*): the options; by default those of the process.

    Returns:
        `int`: exit code, 0 when every file was written; 1 where none of a file's replays succeeded.
    """
    from evaluation.arguments import parse_arguments  # loads transformers, which the rendering processes do not need
    from tokenization.noops import find_noops

    arguments = parse_arguments(RerenderArguments, sys.argv[1:] if argv is None else argv)
    out = Path(arguments.out)
    ledgers = open_file_ledgers(list_files(arguments.demonstrations), arguments.settings, out, find_noops)
    rerender(ledgers, arguments.settings, arguments.num_workers)
    rows = [ledger.summary() for ledger in ledgers]
    write_json(out / "rerendering.json", rows)
    tqdm.write(format_table(rows))
    empty = [row["source"] for row in rows if row["file"] is None]
    for name in empty:
        logger.warning("No replay of `%s` reached the goal: no file was written.", name)
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
