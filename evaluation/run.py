"""Let a checkpoint act in LIBERO, on benchmark initial states, by the field's protocol.

    python evaluation/run.py --checkpoint outputs/demo/checkpoint --suite libero_object --task_ids 0 --output_dir out/

One JSON line per finished episode is on disk before the next begins; the same command goes on after an interruption.
"""

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from tqdm.auto import tqdm

from evaluation.arguments import RolloutArguments, parse_arguments
from evaluation.atomic_files import write_json, write_text
from evaluation.checkpoints import fingerprint_checkpoint, load_checkpoint
from evaluation.libero_env import LiberoEnv
from evaluation.libero_setup import list_tasks
from evaluation.policies import WorldVLAPolicy
from evaluation.protocol import NUM_INITIAL_STATES, max_steps
from evaluation.report import format_success, success_interval
from evaluation.rollout import Episode, run_episode
from evaluation.video import enlarge, label, write_video

logger = logging.getLogger("worldvla.rollout")

EPISODES = "episodes.jsonl"
SUMMARY = "summary.json"
SETTINGS = "settings.json"


# Options that may change when a run goes on: where things lie, and how many episodes are wanted.
FREE_OPTIONS = ("output_dir", "device", "checkpoint", "task_ids", "episodes")


def read_finished(output: Path, arguments: RolloutArguments, fingerprint: str) -> list[dict[str, Any]]:
    """Read the episodes of an interrupted run; a last line that was cut off is dropped.

    Args:
        output (`Path`): the results folder.
        arguments (`RolloutArguments`): this run's options.
        fingerprint (`str`): see `fingerprint_checkpoint`.

    Returns:
        `list[dict]`: one record per finished episode.

    Raises:
        ValueError: if the folder holds a run with other settings; names what changed.
    """
    settings = {key: value for key, value in asdict(arguments).items() if key not in FREE_OPTIONS}
    settings["checkpoint_fingerprint"] = fingerprint
    path = output / SETTINGS
    before = json.loads(path.read_text("utf-8")) if path.exists() else settings
    changed = [f"{key}: {before.get(key)} -> {value}" for key, value in settings.items() if before.get(key) != value]
    if changed:
        raise ValueError(
            f"`{output}` holds results of other settings ({'; '.join(changed)}). Choose another `--output_dir`."
        )
    write_json(path, settings)
    lines = (output / EPISODES).read_text("utf-8").split("\n") if (output / EPISODES).exists() else []
    complete = lines[:-1]  # what follows the last line break was not finished
    write_text(output / EPISODES, "".join(line + "\n" for line in complete))
    return [json.loads(line) for line in complete]


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line and wait until it is on disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def save_rollout_video(path: Path, episode: Episode, instruction: str) -> None:
    """Write an episode's video: instruction, step and outcome above every frame."""
    last = len(episode.frames) - 1
    outcome = "success" if episode.success else "step limit"
    frames = [
        label(
            label(enlarge(frame, 384), f"step {step}/{last}" + (f": {outcome}" if step == last else "")), instruction
        )
        for step, frame in enumerate(episode.frames)
    ]
    write_video(path, frames + frames[-1:] * 20)  # one second to read the outcome


def run_task(
    task_id: int, policy: WorldVLAPolicy, arguments: RolloutArguments, finished: list[dict[str, Any]], bar: tqdm
) -> None:
    """Run the episodes of one task that are not in `finished`, and add them to it."""
    done = {(record["task_id"], record["initial_state"]) for record in finished}
    missing = [state for state in range(arguments.episodes) if (task_id, state) not in done]
    if not missing:
        return
    output = Path(arguments.output_dir)
    limit = arguments.max_steps or max_steps(arguments.suite)
    with LiberoEnv(arguments.suite, task_id, cameras=(arguments.camera,), image_size=arguments.image_size) as env:
        for state in missing:
            bar.set_description(f"task {task_id} state {state}")
            episode = run_episode(
                env,
                policy,
                initial_state=state,
                seed=arguments.seed + state,
                step_limit=limit,
                camera=arguments.camera,
                on_step=lambda step: bar.set_postfix_str(f"step {step}/{limit}"),
            )
            save_rollout_video(output / f"task{task_id}_state{state}.mp4", episode, env.instruction)
            record = {
                "task_id": task_id,
                "instruction": env.instruction,
                "initial_state": state,
                "seed": arguments.seed + state,
                "success": episode.success,
                "num_steps": episode.num_steps,
            }
            append_line(output / EPISODES, record)
            finished.append(record)
            bar.update()


def run(arguments: RolloutArguments) -> dict[str, Any]:
    """Run every episode that is not on disk yet.

    Args:
        arguments (`RolloutArguments`): all options.

    Returns:
        `dict`: the summary that is also written to `summary.json`.

    Raises:
        ValueError: for an unknown suite or task, more episodes than initial states, or a folder of another run.
    """
    if arguments.episodes > NUM_INITIAL_STATES:
        raise ValueError(
            f"`--episodes` is at most {NUM_INITIAL_STATES}, the benchmark's states; got {arguments.episodes}."
        )
    task_ids = list(dict.fromkeys(arguments.task_ids)) or list(range(len(list_tasks(arguments.suite))))
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    model, processor = load_checkpoint(arguments.checkpoint, arguments.device)
    fingerprint = fingerprint_checkpoint(arguments.checkpoint, model)
    wanted = {(task_id, state) for task_id in task_ids for state in range(arguments.episodes)}
    records = read_finished(output, arguments, fingerprint)
    finished = [record for record in records if (record["task_id"], record["initial_state"]) in wanted]
    torch.manual_seed(arguments.seed)
    policy = WorldVLAPolicy(
        model,
        processor,
        camera=arguments.camera,
        chunk_size=arguments.chunk_size,
        n_action_steps=arguments.n_action_steps,
        dataset_name=arguments.dataset_name,
    )
    with tqdm(total=len(wanted), initial=len(finished), desc="rollout", unit="episode") as bar:
        for task_id in task_ids:
            run_task(task_id, policy, arguments, finished, bar)
    successes = sum(record["success"] for record in finished)
    summary = {
        "suite": arguments.suite,
        "episodes": len(finished),
        "successes": successes,
        "success_rate": successes / len(finished),
        "interval_95": success_interval(successes, len(finished)),
        "settings": asdict(arguments) | {"checkpoint_fingerprint": fingerprint},
    }
    write_json(output / SUMMARY, summary)
    return summary


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    summary = run(parse_arguments(RolloutArguments, argv))
    logger.info("success: %s", format_success(summary["successes"], summary["episodes"]))


if __name__ == "__main__":
    main(sys.argv[1:])
