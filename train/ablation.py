"""The paper's ablation (Table 3) as one command: world model on or off, chunk length, action mask or causal attention.

    python train/ablation.py --recipe train/recipes/demo.yaml --tokens tokens/ --max_steps 800 \
        --output_dir outputs/ablation --suite libero_object --task_ids 0 --episodes 10

Every combination is trained from the same recipe with the same number of steps, once per seed, by `train/run.py` in a
process of its own, and tried in the simulator where a suite is given. What is finished is kept: the same command goes
on after an interruption, and one with more seeds or combinations adds them. `output_dir` gets ablation.md,
ablation.json and ablation.png.
"""

import json
import logging
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from modeling_worldvla import WorldVLAConfig
from tokenization import WorldVLAProcessor
from tokenization.choices_worldvla import require_choice
from train.ablation_report import draw_table, format_table, require_packages, summarise
from train.argument_parsing import list_options, parse_arguments, read_recipe, require_positive
from train.arguments import LIBERO_SUITES
from train.atomic_files import write_json
from train.episodes import DATA_CARD, TokenizedEpisodes
from train.exporting import METRICS
from train.run import RUN_OPTIONS
from train.scores import list_metrics
from train.simulator_rollouts import FOLDER, RolloutPlan, run_rollouts

logger = logging.getLogger("worldvla.ablation")

ROOT = Path(__file__).resolve().parents[1]
FINISHED = "finished.json"  # in a run's folder: the options that it was trained with
SWITCHES = {"on": True, "off": False}
ATTENTION = {"mask": True, "causal": False}
# What the grid decides itself.
TAKEN = ("tokens", "output_dir", "max_steps", "seed", "chunk_size", "world_model_samples", "use_action_attention_mask")


@dataclass
class AblationArguments:
    """Options of `train/ablation.py`."""

    recipe: str = field(metadata={"help": "Recipe of train/run.py that every run begins with."})
    tokens: str = field(metadata={"help": "Folder written by train/pretokenize.py."})
    output_dir: str = field(metadata={"help": "Folder for the runs, the table and the picture."})
    max_steps: int = field(metadata={"help": "Optimizer steps of every run."})
    world_model: list[str] = field(default_factory=lambda: list(SWITCHES), metadata={"help": "Any of: on, off."})
    chunk_sizes: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Values of K."})
    attention: list[str] = field(
        default_factory=lambda: list(ATTENTION),
        metadata={"help": "Any of: mask (actions of a chunk do not see each other), causal. At K = 1 they are one."},
    )
    cells: list[str] = field(
        default_factory=list, metadata={"help": "Only these of the grid, by folder name, such as joint-k5-mask."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run of everything for each."})
    metrics: list[str] = field(
        default_factory=lambda: ["val_ind_loss_action", "val_ind_accuracy_action", "val_ind_action_bin_error"],
        metadata={"help": "Scores at the end of training that become columns."},
    )
    overrides: list[str] = field(
        default_factory=list, metadata={"help": "Other options of train/run.py for all runs, as name=value."}
    )
    suite: str | None = field(default=None, metadata={"help": "LIBERO suite to try every run in; none by default."})
    task_ids: list[int] = field(default_factory=list, metadata={"help": "Its tasks; all when not given."})
    episodes: int = field(default=10, metadata={"help": "Episodes per task and run."})
    num_envs: int = field(default=1, metadata={"help": "Simulators at once; each needs about a core."})
    device: str = field(default="cpu", metadata={"help": "torch device of the model in the simulator."})

    def __post_init__(self) -> None:
        """Check every option before anything is trained."""
        require_positive(self, "max_steps", "episodes", "num_envs")
        for name, choices in (("world_model", SWITCHES), ("attention", ATTENTION)):
            for value in getattr(self, name):
                require_choice(f"value of `--{name}`:", value, choices)
        for name in ("world_model", "attention", "chunk_sizes", "seeds", "metrics"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"`--{name}` needs values that differ, got {values}.")
        if min(self.chunk_sizes) < 1:
            raise ValueError(f"`--chunk_sizes` must be larger than 0, got {min(self.chunk_sizes)}.")
        grid = [cell.name for cell in _list_grid(self)]
        for value in self.cells:
            require_choice("combination in `--cells`:", value, grid)
        if self.suite is not None:
            require_choice("suite", self.suite, LIBERO_SUITES)
        known = set(list_options(RUN_OPTIONS))
        for text in self.overrides:
            name, equals, _ = text.partition("=")
            if not equals:
                raise ValueError(f"`--overrides {text}`: expected name=value, such as learning_rate=1e-4.")
            require_choice("option in `--overrides`:", name, sorted(known - set(TAKEN)))


class Cell(NamedTuple):
    """One combination of the grid."""

    world_model: bool
    chunk_size: int
    attention: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{'joint' if self.world_model else 'policy'}-k{self.chunk_size}-{self.attention}"


def list_cells(arguments: AblationArguments) -> list[Cell]:
    """The combinations, without those that are the same model twice.

    Args:
        arguments (`AblationArguments`): the values of each switch, and which cells are wanted.

    Returns:
        `list[Cell]`: at K = 1 no earlier action could be seen, so attention counts once there.
    """
    return [cell for cell in _list_grid(arguments) if not arguments.cells or cell.name in arguments.cells]


def _list_grid(arguments: AblationArguments) -> list[Cell]:
    """Every combination of the switches."""
    cells = [
        Cell(SWITCHES[switch], chunk_size, attention)
        for switch, chunk_size, attention in product(arguments.world_model, arguments.chunk_sizes, arguments.attention)
        if chunk_size > 1 or attention == arguments.attention[0]
    ]
    return sorted(cells, key=lambda cell: (cell.world_model, cell.chunk_size))


def list_flags(arguments: AblationArguments, cell: Cell, seed: int) -> list[str]:
    """The options of one run that its weights depend on.

    Args:
        arguments (`AblationArguments`): steps and overrides.
        cell (`Cell`): the combination.
        seed (`int`): of weights and order of samples.

    Returns:
        `list[str]`: flags of `train/run.py`, without folders.
    """
    options = {
        **dict(text.split("=", 1) for text in arguments.overrides),
        "max_steps": arguments.max_steps,
        "seed": seed,
        "chunk_size": cell.chunk_size,
        "world_model_samples": str(cell.world_model).lower(),
        "use_action_attention_mask": str(ATTENTION[cell.attention]).lower(),
    }
    return [text for name, value in options.items() for text in (f"--{name}", *str(value).split())]


def require_metrics(arguments: AblationArguments) -> None:
    """Refuse columns that no evaluation will have, before hours of training.

    Args:
        arguments (`AblationArguments`): tokens and metrics.

    Raises:
        FileNotFoundError: if the tokens are not there.
        ValueError: if a metric is unknown (names the nearest).
    """
    card = TokenizedEpisodes.load(arguments.tokens).card
    names = list_metrics(WorldVLAConfig(), with_units=True)
    known = [f"{split}_{name}" for split in card["splits"] if split != "train" for name in names]
    for metric in arguments.metrics:
        require_choice("metric of `--metrics`:", metric, known)


def run_command(command: list[str]) -> int:
    """Run one of the project's scripts; returns its exit code."""
    return subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode


def train_run(arguments: AblationArguments, cell: Cell, seed: int, folder: Path) -> dict[str, Any]:
    """Train one combination with one seed, unless that is done.

    Args:
        arguments (`AblationArguments`): all options.
        cell (`Cell`): the combination.
        seed (`int`): of this run.
        folder (`Path`): output folder of the run.

    Returns:
        `dict`: its scores at the end.

    Raises:
        ValueError: if the folder holds a finished run with other options.
        RuntimeError: if training fails; what is finished is kept.
    """
    flags, finished = list_flags(arguments, cell, seed), folder / FINISHED
    used = {"recipe": read_recipe(Path(arguments.recipe), list_options(RUN_OPTIONS)), "flags": flags}
    if finished.is_file():
        before = json.loads(finished.read_text("utf-8"))
        if before != used:
            what = "flags" if before["flags"] != flags else "recipe"
            raise ValueError(
                f"`{folder}` was trained with other options ({what}). Choose another `--output_dir`, or delete it."
            )
    else:
        command = ["train/run.py", arguments.recipe, "--tokens", arguments.tokens, "--output_dir", str(folder), *flags]
        logger.info("python %s", " ".join(command))
        if code := run_command(command):
            raise RuntimeError(
                f"Training of {cell.name} with seed {seed} ended with exit code {code}. What is finished is kept: run "
                "the same command again to go on."
            )
        write_json(finished, used)
    return json.loads((folder / METRICS).read_text("utf-8"))


def try_run(arguments: AblationArguments, folder: Path) -> dict[str, Any] | None:
    """Try a trained run in the simulator, where that is asked for.

    Args:
        arguments (`AblationArguments`): suite, tasks and episodes.
        folder (`Path`): output folder of the run.

    Returns:
        `dict`: `successes` and `episodes`; None without a suite.

    Raises:
        RuntimeError: if the evaluation fails.
    """
    if arguments.suite is None:
        return None
    card = json.loads((folder / DATA_CARD).read_text("utf-8"))
    plan = RolloutPlan(
        arguments.suite,
        tuple(arguments.task_ids),
        arguments.episodes,
        arguments.num_envs,
        WorldVLAProcessor.from_pretrained(folder).image_size[0],
        card["dataset_name"],
        arguments.device,
    )
    summary = run_rollouts(plan, folder, folder / FOLDER)
    if summary is None:
        raise RuntimeError(f"The evaluation of `{folder}` failed. Run the same command again to go on.")
    return {name: summary[name] for name in ("successes", "episodes")}


def run_ablation(arguments: AblationArguments) -> list[dict[str, Any]]:
    """Train and try the whole grid, seed by seed; the table is written anew after each seed.

    Args:
        arguments (`AblationArguments`): all options.

    Returns:
        `list[dict]`: see `train.ablation_report.summarise`.

    Raises:
        ImportError: if a package for intervals or picture is missing.
        FileNotFoundError: if there is no such recipe.
        ValueError: if a folder holds another run, or a metric does not exist.
        RuntimeError: if a run fails; what is finished is kept.
    """
    require_packages()
    require_metrics(arguments)
    output, cells, rows = Path(arguments.output_dir), list_cells(arguments), []
    found: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    for seed in arguments.seeds:
        for cell in cells:
            folder = output / cell.name / f"seed-{seed}"
            metrics = train_run(arguments, cell, seed, folder)
            found[cell].append({"seed": seed, "metrics": metrics, "rollouts": try_run(arguments, folder)})
        rows = summarise([{**cell._asdict(), "runs": runs} for cell, runs in found.items()], arguments.metrics)
        write_json(output / "ablation.json", {"settings": asdict(arguments), "cells": rows})
        title = f"Ablation: {arguments.max_steps} steps of {Path(arguments.recipe).name}"
        (output / "ablation.md").write_text(format_table(rows, arguments.metrics, title), "utf-8")
    draw_table(rows, arguments.metrics, output / "ablation.png")
    return rows


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (arguments,) = parse_arguments([AblationArguments], argv)
    run_ablation(arguments)
    logger.info("%s", Path(arguments.output_dir, "ablation.md").read_text("utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
