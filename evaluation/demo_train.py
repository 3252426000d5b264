"""The whole road on one laptop: real LIBERO, demonstrations, tokens, training, a robot that moves, an imagined future.

    make demo-train                # or: python evaluation/demo_train.py --output_dir outputs/demo-train

Each stage is a command that a user could type. Finished stages are kept; run it again and it goes on. All results lie
in `output_dir`: rollout.mp4, imagined.mp4, report.md and the checkpoint. The demo that needs no training is demo.py.
"""

import json
import logging
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from evaluation.arguments import parse_arguments, require_positive
from evaluation.atomic_files import write_atomically, write_text
from evaluation.demo_report import loading_section, psnr_table, time_section
from evaluation.demo_stages import Road, Stage, kept_when_interrupted, open_folder
from evaluation.report import format_success, markdown_table

logger = logging.getLogger("worldvla.demo")

HELD_OUT_SEED = 900_000  # far from the seeds of the training episodes


@dataclass
class DemoTrainArguments:
    """Options of `evaluation/demo_train.py`."""

    output_dir: str = field(default="outputs/demo-train", metadata={"help": "Folder that everything lands in."})
    suite: str = field(default="libero_object", metadata={"help": "LIBERO suite."})
    task_id: int = field(default=0, metadata={"help": "Task of the suite."})
    episodes: int = field(default=24, metadata={"help": "Expert episodes to learn from."})
    vq_model: str = field(
        default="checkpoints/vqgan-libero", metadata={"help": "Folder of a trained VQ-GAN; this one comes along."}
    )
    train_vqgan: bool = field(
        default=False, metadata={"help": "Train a VQ-GAN on the demo's own frames instead of taking --vq_model."}
    )
    vqgan_steps: int = field(default=500, metadata={"help": "Optimizer steps of that VQ-GAN."})
    training_steps: int = field(default=800, metadata={"help": "Optimizer steps of the model."})
    rollouts: int = field(default=3, metadata={"help": "Benchmark initial states that the model is tried on."})
    num_workers: int = field(default=2, metadata={"help": "Simulator processes while recording."})

    def __post_init__(self) -> None:
        """Check every option before anything is started."""
        require_positive(self, "episodes", "vqgan_steps", "training_steps", "rollouts", "num_workers")


def has_bfloat16_units() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; elsewhere float32 is faster."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def list_stages(arguments: DemoTrainArguments, output: Path) -> list[Stage]:
    """The road, command by command.

    Args:
        arguments (`DemoTrainArguments`): sizes.
        output (`Path`): where everything lands.

    Returns:
        `list[Stage]`: in order.
    """
    scene = ["--suite", arguments.suite, "--task_ids", str(arguments.task_id)]
    record = ["evaluation/record_demonstrations.py", *scene, "--placements", "random", "--cameras", "agentview"]
    demonstrations, held_out = output / "demonstrations", output / "held_out"
    recording = [
        Stage(
            "record",
            "expert demonstrations in the simulator",
            [*record, "--episodes", str(arguments.episodes), "--num_workers", str(arguments.num_workers)]
            + ["--out", str(demonstrations)],
            demonstrations,
        ),
        Stage(
            "record_held_out",
            "one more episode, for the world model's test",
            [*record, "--episodes", "1", "--first_seed", str(HELD_OUT_SEED), "--out", str(held_out)],
            held_out,
        ),
    ]
    return recording + list_learning_stages(arguments, output) + list_judging_stages(arguments, output, scene)


def list_learning_stages(arguments: DemoTrainArguments, output: Path) -> list[Stage]:
    """From the recorded episodes to the checkpoint."""
    bfloat16 = has_bfloat16_units()
    demonstrations, vqgan = output / "demonstrations", output / "vqgan"
    tokens, checkpoint = output / "tokens", output / "checkpoint"
    vqgan_stage = Stage(
        "vqgan",
        "VQ-GAN on the recorded frames",
        ["train/run_vqgan.py", "--demonstrations", str(demonstrations), "--output_dir", str(vqgan)]
        + ["--max_steps", str(arguments.vqgan_steps), "--mixed_precision", "bf16" if bfloat16 else "no"],
        vqgan,
    )
    vq_model = str(vqgan) if arguments.train_vqgan else arguments.vq_model
    return [
        *([vqgan_stage] if arguments.train_vqgan else []),
        Stage(
            "pretokenize",
            "demonstrations to tokens",
            ["train/pretokenize.py", "--demonstrations", str(demonstrations), "--vq_model", vq_model]
            + ["--output_dir", str(tokens), "--dataset_name", arguments.suite],
            tokens,
        ),
        Stage(
            "train",
            "policy and world model together",
            ["train/run.py", "train/recipes/demo.yaml", "--tokens", str(tokens), "--output_dir", str(checkpoint)]
            + ["--max_steps", str(arguments.training_steps), "--bf16", str(bfloat16).lower()],
            checkpoint,
        ),
    ]


def list_judging_stages(arguments: DemoTrainArguments, output: Path, scene: list[str]) -> list[Stage]:
    """What the checkpoint is tried on."""
    checkpoint, held_out = output / "checkpoint", output / "held_out"
    return [
        Stage(
            "rollout",
            "the model acts, from benchmark initial states",
            ["evaluation/run.py", "--checkpoint", str(checkpoint), *scene, "--episodes", str(arguments.rollouts)]
            + ["--videos", "all", "--output_dir", str(output / "rollouts")],
            output / "rollouts",
        ),
        Stage(
            "imagine",
            "the model imagines the held-out episode",
            ["evaluation/imagine.py", "--checkpoint", str(checkpoint), "--demonstrations", str(held_out)]
            + ["--output", str(output / "imagined.mp4")],
            output / "imagined.mp4",
        ),
    ]


def write_report(arguments: DemoTrainArguments, output: Path, record: dict[str, dict[str, Any]]) -> Path:
    """Gather what the stages wrote into `report.md`.

    Args:
        arguments (`DemoTrainArguments`): what was asked for.
        output (`Path`): the demo's folder.
        record (`dict`): see `Road`.

    Returns:
        `Path`: the report.
    """
    rollouts = json.loads((output / "rollouts" / "summary.json").read_text("utf-8"))
    imagined = json.loads((output / "imagined.json").read_text("utf-8"))
    vqgan_log = output / "vqgan" / "log.jsonl"
    lines_of_vqgan = vqgan_log.read_text("utf-8").splitlines() if arguments.train_vqgan else []
    vqgan = [json.loads(line) for line in lines_of_vqgan]
    training = json.loads((output / "checkpoint" / "training_log.json").read_text("utf-8"))
    lines = [
        "# worldvla demo",
        f"Task {arguments.task_id} of {arguments.suite}; {arguments.episodes} expert episodes from random placements. "
        "This is one small model trained in minutes: it shows that every part works, not how good the method is. "
        + ("The VQ-GAN was trained here, too." if arguments.train_vqgan else f"VQ-GAN: `{arguments.vq_model}`."),
        "## The robot",
        f"Success from benchmark initial states, none of them trained on: "
        f"**{format_success(rollouts['successes'], rollouts['episodes'])}**. Video: rollout.mp4.",
        "## The imagination",
        f"{imagined['num_frames']} frames from one real frame and the recorded actions of an episode that was not "
        f"trained on; {imagined['seconds_per_frame']:.2f} s a frame. Video: "
        "imagined.mp4 (real | reconstructed | imagined | difference).",
        psnr_table(imagined["psnr_db"]),
        "## Losses",
        markdown_table(["", "first logged", "last logged"], [*loss_rows(vqgan, training), *held_out_rows(training)]),
        time_section(record),
        loading_section(output / "checkpoint"),
    ]
    write_text(output / "report.md", "\n\n".join(lines) + "\n")
    return output / "report.md"


def loss_rows(vqgan: list[dict[str, Any]], training: list[dict[str, Any]]) -> list[list[str]]:
    """First and last logged value of each training loss."""
    rows = []
    for title, log, key in (
        ("VQ-GAN reconstruction", vqgan, "reconstruction"),
        ("VQ-GAN codes in use (perplexity)", vqgan, "perplexity"),
        ("actions, nats per token", training, "loss_action"),
        ("next frame, nats per token", training, "loss_world_model"),
    ):
        values = [line[key] for line in log if key in line]
        if values:
            rows.append([title, f"{values[0]:.3f}", f"{values[-1]:.3f}"])
    return rows


def held_out_rows(training: list[dict[str, Any]]) -> list[list[str]]:
    """What the last evaluation on held-out trajectories found."""
    values = {key: value for line in training for key, value in line.items() if key.startswith("eval_val_ind_")}
    shown = ("loss_action", "loss_world_model", "accuracy_action", "accuracy_world_model")
    return [
        [f"held-out trajectories: {name}", "", f"{values[f'eval_val_ind_{name}']:.3f}"]
        for name in shown
        if f"eval_val_ind_{name}" in values
    ]


def choose_rollout_video(output: Path) -> Path:
    """The video of the first success, or of the first episode where there was none."""
    records = [json.loads(line) for line in (output / "rollouts" / "episodes.jsonl").read_text("utf-8").splitlines()]
    chosen = next((record for record in records if record["success"]), records[0])
    return output / "rollouts" / "videos" / chosen["video"]


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(DemoTrainArguments, argv)
    output = open_folder(arguments.output_dir)
    stages = list_stages(arguments, output)
    road = Road(output, len(stages))
    with kept_when_interrupted():
        for stage in stages:
            road.take(stage)
    video = choose_rollout_video(output)
    write_atomically(output / "rollout.mp4", lambda temporary: shutil.copyfile(video, temporary))
    report = write_report(arguments, output, road.record)
    logger.info("done: %s, rollout.mp4, imagined.mp4 and checkpoint/ in %s", report.name, output)


if __name__ == "__main__":
    main(sys.argv[1:])
