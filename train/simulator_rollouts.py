"""Rollouts in the simulator: how often a checkpoint succeeds, measured by `evaluation/run.py` in a process of its own.

Training and evaluation never import each other: a checkpoint folder goes in, `summary.json` comes out.
"""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tokenization import WorldVLAProcessor
from train.atomic_files import write_json
from train.episodes import DATA_CARD
from train.exporting import save_model, save_processor

logger = logging.getLogger("worldvla.rollouts")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "rollouts"  # in the output folder
# Set by launchers for the processes of training; the evaluation is none of them.
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_")
_LINES_SHOWN = 15


@dataclass(frozen=True)
class RolloutPlan:
    """What is tried, and with what; see the options of `evaluation/run.py`.

    Attributes:
        suite (`str`): LIBERO suite.
        task_ids (`tuple[int, ...]`): its tasks; all where there are none.
        episodes (`int`): per task.
        num_envs (`int`): simulators at once.
        image_size (`int`): pixels, height and width, that are rendered.
        dataset_name (`str`): whose action limits.
        device (`str`): torch device of the model.
    """

    suite: str
    task_ids: tuple[int, ...] = ()
    episodes: int = 1
    num_envs: int = 1
    image_size: int = 128
    dataset_name: str | None = None
    device: str = "cpu"

    @classmethod
    def for_training(cls, arguments: Any, card: dict[str, Any], processor: WorldVLAProcessor) -> "RolloutPlan":
        """The plan that training options ask for.

        Args:
            arguments (`WorldVLATrainingArguments`): the options `--rollout_…`.
            card (`dict`): the data card, for the action limits.
            processor (`WorldVLAProcessor`): for the size of the images.

        Returns:
            `RolloutPlan`: on the kind of device that training runs on.

        Raises:
            ImportError: if the simulator is not installed.
            ValueError: if the data set shows images that are not square.
        """
        if importlib.util.find_spec("libero") is None:
            raise ImportError("`--rollout_every` needs the simulator: `pip install worldvla[libero,eval]`.")
        height, width = processor.image_size
        if height != width:
            raise ValueError(
                f"`--rollout_every` needs square images, but the tokens show {height} x {width} pixels. Leave it out, "
                "and evaluate when training is done."
            )
        return cls(
            arguments.rollout_suite,
            tuple(arguments.rollout_task_ids),
            arguments.rollout_episodes,
            arguments.rollout_num_envs,
            height,
            card["dataset_name"],
            arguments.device.type,
        )

    def flags(self, checkpoint: Path, output: Path) -> list[str]:
        """The command line of `evaluation/run.py`.

        Args:
            checkpoint (`Path`): folder with model and processor.
            output (`Path`): results folder.

        Returns:
            `list[str]`: script and flags.
        """
        options = {
            "checkpoint": checkpoint,
            "output_dir": output,
            "suite": self.suite,
            "episodes": self.episodes,
            "num_envs": self.num_envs,
            "image_size": self.image_size,
            "device": self.device,
            "videos": "none",
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        if self.task_ids:
            flags += ["--task_ids", *map(str, self.task_ids)]
        if self.dataset_name is not None:
            flags += ["--dataset_name", self.dataset_name]
        return ["evaluation/run.py", *flags]


def run_rollouts(plan: RolloutPlan, checkpoint: Path, output: Path) -> dict[str, Any] | None:
    """Try a checkpoint in the simulator; the same call goes on where an earlier one was cut off.

    Args:
        plan (`RolloutPlan`): what is tried.
        checkpoint (`Path`): folder with model, processor and data card.
        output (`Path`): results folder.

    Returns:
        `dict`: `summary.json`; None where the evaluation failed, which is logged with the end of what it said.
    """
    output.mkdir(parents=True, exist_ok=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER_NAMES and not name.startswith(_LAUNCHER_PREFIXES)
    }
    command = [sys.executable, *plan.flags(checkpoint.resolve(), output.resolve())]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    summary = output / "summary.json"
    if done.returncode and not summary.is_file():
        last = "\n".join(done.stderr.strip().splitlines()[-_LINES_SHOWN:])
        logger.warning("Rollouts failed with exit code %d; training goes on without them.\n%s", done.returncode, last)
        return None
    return json.loads(summary.read_text("utf-8"))


class SimulatorRollouts(TrainerCallback):
    """Tries the model in the simulator every so many steps and logs `eval_rollout_success`.

    Args:
        trainer (`WorldVLATrainer`): whose model it is, and who logs.
        processor (`WorldVLAProcessor`): that of the data set.
        card (`dict`): the data card; tells the evaluation which cameras to show.
        plan (`RolloutPlan`): what is tried.
        every (`int`): optimizer steps between two tries.
    """

    def __init__(
        self, trainer: Any, processor: WorldVLAProcessor, card: dict[str, Any], plan: RolloutPlan, every: int
    ) -> None:
        self.trainer = trainer
        self.processor = processor
        self.card = card
        self.plan = plan
        self.every = every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the model beside the checkpoints, try it, log, and delete it again."""
        if state.global_step % self.every:
            return
        folder = Path(str(args.output_dir), FOLDER, f"step-{state.global_step}")
        checkpoint = folder / "checkpoint"
        with self.trainer.averaged_weights():
            save_model(self.trainer, checkpoint)
        logs: dict[str, float] = {}
        if self.trainer.is_world_process_zero():
            save_processor(self.trainer, self.processor, checkpoint)
            write_json(checkpoint / DATA_CARD, self.card)
            summary = run_rollouts(self.plan, checkpoint, folder)
            shutil.rmtree(checkpoint)
            if summary is not None and summary["episodes"]:
                low, high = summary["interval_95"]
                logs = {
                    "eval_rollout_success": summary["success_rate"],
                    "eval_rollout_success_low": low,
                    "eval_rollout_success_high": high,
                    "eval_rollout_episodes": summary["episodes"],
                }
        self.trainer.accelerator.wait_for_everyone()
        if logs:
            due = control.should_log  # which logging takes back, here on one process alone
            self.trainer.log(logs)
            control.should_log = due
