"""The first minutes: the checkpoint that comes along acts in real LIBERO, then imagines the same episode.

    make demo                      # or: python evaluation/demo.py --output_dir outputs/demo

It starts from a benchmark initial state, and from the next one as long as it fails; every try is reported. Each stage
is a command that a user could type. Finished stages are kept; run it again and it goes on. All results lie in
`output_dir`: rollout.mp4, imagined.mp4 and report.md. The demo that trains its own model is demo_train.py.
"""

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evaluation.arguments import parse_arguments, require_positive
from evaluation.atomic_files import write_atomically, write_text
from evaluation.checkpoints import choose_cameras, fingerprint_checkpoint
from evaluation.demo_report import loading_section, psnr_table, time_section
from evaluation.demo_stages import ROOT, Road, Stage, kept_when_interrupted, open_folder
from evaluation.protocol import NUM_INITIAL_STATES, EpisodeKey, plan_episodes
from evaluation.report import markdown_table
from evaluation.run_ledger import read_results
from modeling_worldvla.sampling_worldvla import describe_sampling

logger = logging.getLogger("worldvla.demo")

NO_SUCCESS = 1  # exit code


@dataclass
class DemoArguments:
    """Options of `evaluation/demo.py`."""

    output_dir: str = field(default="outputs/demo", metadata={"help": "Folder that everything lands in."})
    checkpoint: str = field(
        default="checkpoints/worldvla-tiny",
        metadata={"help": "Folder of a checkpoint, here or in the checkout; this one comes along."},
    )
    suite: str = field(default="libero_object", metadata={"help": "LIBERO suite that it was trained on."})
    task_id: int = field(default=0, metadata={"help": "Task of the suite."})
    first_state: int = field(default=0, metadata={"help": "Benchmark initial state of the first try."})
    tries: int = field(default=3, metadata={"help": "Initial states that are tried at most, until a success."})
    temperature: float = field(
        default=0.7, metadata={"help": "Temperature that the codes of imagined frames are drawn at."}
    )

    def __post_init__(self) -> None:
        """Check every option before anything is started."""
        require_positive(self, "tries", "temperature")
        if self.first_state + self.tries > NUM_INITIAL_STATES:
            raise ValueError(
                f"A task has {NUM_INITIAL_STATES} benchmark initial states; {self.tries} tries from state "
                f"{self.first_state} on need more. Lower `--tries` or `--first_state`."
            )


class Try(NamedTuple):
    """One episode of the demo.

    Attributes:
        episode (`EpisodeKey`): suite, task and initial state.
        folder (`Path`): its results folder.
        record (`dict`): its line in `episodes.jsonl`, see docs/evaluation.md.
    """

    episode: EpisodeKey
    folder: Path
    record: dict[str, Any]

    def video(self, ending: str = "") -> Path:
        """The film of the episode, or another of its name."""
        return self.folder / "videos" / f"{self.episode.name}{ending}.mp4"


def find_checkpoint(folder: str) -> Path:
    """Find the checkpoint before anything is started.

    Args:
        folder (`str`): as the user names it: where the command was started, or in the checkout.

    Returns:
        `Path`: as the stages, which run in the checkout, find it.

    Raises:
        ValueError: if there is no checkpoint, or a part of it is missing.
    """
    here = Path(folder) if Path.cwd() == ROOT else Path(folder).resolve()
    path = here if here.is_dir() else Path(folder)
    needed = ("config.json", "processor_config.json")
    missing = [name for name in needed if not (ROOT / path / name).is_file()]
    if missing:
        state = f"lacks `{missing[0]}`" if (ROOT / path).is_dir() else "does not exist"
        raise ValueError(
            f"`{folder}` shall hold the checkpoint that acts, and {state}. Fetch the whole repository again, or train "
            "a checkpoint with `make demo-train` and give `--checkpoint outputs/demo-train/checkpoint`."
        )
    return path


def act(episode: EpisodeKey, checkpoint: Path, output: Path, fingerprint: str) -> Stage:
    """The model acts from one initial state.

    Args:
        episode (`EpisodeKey`): suite, task and initial state.
        checkpoint (`Path`): of the model.
        output (`Path`): folder of the demo.
        fingerprint (`str`): of the checkpoint.

    Returns:
        `Stage`: its result is a results folder with a film and a trace.
    """
    folder = output / "rollouts" / f"state{episode.initial_state}"
    scene = ["--suite", episode.suite, "--task_ids", str(episode.task_id), "--first_state", str(episode.initial_state)]
    return Stage(
        f"act_state{episode.initial_state}",
        f"the model acts, from benchmark initial state {episode.initial_state}",
        ["evaluation/run.py", "--checkpoint", str(checkpoint), *scene, "--episodes", "1"]
        + ["--videos", "all", "--traces", "true", "--output_dir", str(folder)],
        folder,
        reads=fingerprint,
    )


def imagine(shown: Try, checkpoint: Path, temperature: float) -> Stage:
    """The world model imagines the episode, from its first frame and the actions that were carried out.

    Args:
        shown (`Try`): the episode.
        checkpoint (`Path`): of the model.
        temperature (`float`): that frames are drawn at.

    Returns:
        `Stage`: its result is `imagined.json` in the results folder, with a film beside that of the episode.
    """
    camera = choose_cameras(str(ROOT / checkpoint), None)[0]
    return Stage(
        "imagine",
        "the model imagines the same episode",
        ["evaluation/imagine.py", "--checkpoint", str(checkpoint), "--rollouts", str(shown.folder)]
        + ["--names", shown.episode.name, "--camera", camera, "--temperature", str(temperature)],
        shown.folder / "imagined.json",
    )


def run_demo(arguments: DemoArguments, output: Path) -> bool:
    """Act until a success, imagine that episode, and gather what came out.

    Args:
        arguments (`DemoArguments`): all options.
        output (`Path`): folder of the demo.

    Returns:
        `bool`: whether a try succeeded; without a success the first try is shown.

    Raises:
        ValueError: if checkpoint, suite, task or states do not exist, before anything is started.
        SystemExit: with a stage's exit code when it fails.
    """
    checkpoint = find_checkpoint(arguments.checkpoint)
    episodes = plan_episodes([arguments.suite], [arguments.task_id], arguments.first_state, arguments.tries)
    fingerprint = fingerprint_checkpoint(str(ROOT / checkpoint), None)
    road = Road(output)
    tries: list[Try] = []
    for episode in episodes:
        stage = act(episode, checkpoint, output, fingerprint)
        road.take(stage)
        tries.append(Try(episode, stage.result, read_results(stage.result).records[episode]))
        logger.info("      %s", describe_try(tries[-1]))
        if tries[-1].record["success"]:
            break
    shown = tries[-1] if tries[-1].record["success"] else tries[0]
    road.take(imagine(shown, checkpoint, arguments.temperature))
    for name, video in (("rollout.mp4", shown.video()), ("imagined.mp4", shown.video("_imagined"))):
        write_atomically(output / name, partial(shutil.copyfile, video))
    write_text(output / "report.md", format_report(arguments, checkpoint, fingerprint, tries, shown, road.record))
    return bool(shown.record["success"])


def describe_try(made: Try) -> str:
    """How a try ended, in a line."""
    outcome = made.record["outcome"].replace("_", " ")
    return f"initial state {made.episode.initial_state}: {outcome} after {made.record['num_steps']} steps"


def format_report(
    arguments: DemoArguments,
    checkpoint: Path,
    fingerprint: str,
    tries: Sequence[Try],
    shown: Try,
    record: dict[str, dict[str, Any]],
) -> str:
    """What came out, as Markdown.

    Args:
        arguments (`DemoArguments`): what was asked for.
        checkpoint (`Path`): of the model.
        fingerprint (`str`): of the checkpoint.
        tries (`Sequence[Try]`): all, in order.
        shown (`Try`): whose films are shown.
        record (`dict`): see `Road`.

    Returns:
        `str`: the report.
    """
    imagined = json.loads((shown.folder / "imagined.json").read_text("utf-8"))
    state = shown.episode.initial_state
    parts = [
        "# worldvla demo",
        f'Task {arguments.task_id} of {arguments.suite}, "{shown.record["instruction"]}", by the checkpoint '
        f"`{checkpoint}` (SHA-256 of weights and configs: {fingerprint[:16]}…).",
        "## The robot",
        f"{format_outcome(tries)} The initial states are the benchmark's, in order; demonstrations that are recorded "
        "here start from random placements. The tries end with the first success, so they are no success rate: for "
        f"one, run `python evaluation/run.py --checkpoint {checkpoint} --suite {arguments.suite} --episodes 50 "
        "--output_dir results/`.",
        tries_table(tries),
        f"Video of initial state {state}: rollout.mp4.",
        "## The imagination",
        f"The world model was given the first frame of initial state {state} and the {imagined['num_frames']} actions "
        "that were carried out. Each frame was imagined from imagined ones, "
        f"{describe_sampling(arguments.temperature)}: {imagined['seconds_per_frame']:.2f} s a frame, mean token "
        f"entropy {imagined['entropy_nats']:.2f} nats. Video: imagined.mp4 (real | reconstructed | "
        "imagined | difference).",
        psnr_table(imagined["psnr_db"]),
        time_section(record),
        loading_section(checkpoint),
    ]
    return "\n\n".join(parts) + "\n"


def format_outcome(tries: Sequence[Try]) -> str:
    """The outcome of the demo in a sentence."""
    if tries[-1].record["success"]:
        return f"**Success at try {len(tries)}.**"
    return f"**No success in {len(tries)} tries.**" if len(tries) > 1 else "**No success in the only try.**"


def tries_table(tries: Sequence[Try]) -> str:
    """Every try as a row.

    Args:
        tries (`Sequence[Try]`): in order.

    Returns:
        `str`: Markdown; seconds are those of the episode with its film, and of waiting for an action chunk.
    """
    rows = [
        [made.episode.initial_state, made.record["outcome"].replace("_", " "), made.record["num_steps"]]
        + [f"{made.record['seconds']['total']:.1f}"]
        + [f"{made.record['seconds']['policy'] / made.record['num_chunks']:.3f}"]
        for made in tries
    ]
    header = ["initial state", "outcome", "steps", "seconds, with film", "seconds per action chunk"]
    return markdown_table(header, rows)


def main(argv: list[str]) -> int:
    """Command line entry; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # LIBERO's libraries chat
    logging.getLogger("worldvla").setLevel(logging.INFO)
    arguments = parse_arguments(DemoArguments, argv)
    output = open_folder(arguments.output_dir)
    with kept_when_interrupted():
        success = run_demo(arguments, output)
    logger.info("done: report.md, rollout.mp4 and imagined.mp4 in %s", output)
    if success:
        return 0
    logger.warning("No try succeeded; report.md names them. `--first_state` and `--tries` choose others.")
    return NO_SUCCESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
