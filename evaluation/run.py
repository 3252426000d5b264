"""Let a policy act in LIBERO, on benchmark initial states, by the field's protocol.

    python evaluation/run.py --checkpoint outputs/run --suite libero_object --num_envs 2 --output_dir out/
    python evaluation/run.py --checkpoint outputs/run --best_of 4 --goal demos/ --output_dir out/
    python evaluation/run.py --policy expert --suite libero_object --episodes 5 --output_dir out/
    accelerate launch evaluation/run.py --checkpoint outputs/run --episodes 50 --device cuda --output_dir out/

Every finished episode is on disk at once; the same command goes on after an interruption, also with another number of
processes or ranks. See docs/evaluation.md.
"""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

# Simulator processes import this file: nothing here may load torch. What does is imported where it is needed.
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from evaluation.libero_env import LiberoEnv
from evaluation.libero_rendering import CAMERAS
from evaluation.libero_setup import choose, find_task
from evaluation.policy_arguments import PolicyArguments
from evaluation.protocol import EpisodeKey, Protocol, plan_episodes
from evaluation.run_ledger import RunLedger
from evaluation.run_settings import collect_settings
from evaluation.simulator_policies import SIMULATOR_POLICIES, describe_simulator_policy, make_simulator_policy
from evaluation.simulator_process import EpisodeJob, SimulatorSettings

if TYPE_CHECKING:
    from evaluation.arguments import RolloutArguments
    from evaluation.policies import BatchedPolicy

logger = logging.getLogger("worldvla.rollout")

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class Share:
    """Which part of a run this process does: `accelerate launch` and `torchrun` start several."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "Share":
        """Read what the launcher has set."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return cls(*(int(os.environ.get(name, default)) for name, default in zip(names, "010", strict=True)))

    def of(self, episodes: list[EpisodeKey]) -> list[EpisodeKey]:
        """This process' episodes; those of the others are disjoint, whatever is finished already."""
        return episodes[self.rank :: self.world_size]


@dataclass(frozen=True)
class Actor:
    """Who acts: a policy in this process, or the options of one in the simulator processes."""

    batched: "BatchedPolicy | None"
    make_policy: Callable[[], Any] | None
    cameras: tuple[str, ...]
    n_obs_steps: int
    description: dict[str, Any]


def make_actor(arguments: "RolloutArguments", share: Share, episodes: list[EpisodeKey]) -> Actor:
    """Make the policy that the options name.

    Args:
        arguments (`RolloutArguments`): all options.
        share (`Share`): with `--device cuda`, each process takes the device of its local rank.
        episodes (`list[EpisodeKey]`): those that it shall play; it may refuse their tasks.

    Returns:
        `Actor`: ready to act.

    Raises:
        ValueError: if an option, a checkpoint or a task does not fit, or the policy needs a camera that is not there.
    """
    chosen = PolicyArguments(**{entry.name: getattr(arguments, entry.name) for entry in fields(PolicyArguments)})
    if chosen.policy in SIMULATOR_POLICIES:
        description = describe_simulator_policy(chosen)
        camera = choose("camera", chosen.camera or "agentview", tuple(CAMERAS))  # it is only filmed with
        return Actor(None, partial(make_simulator_policy, chosen), (camera,), 1, description)
    from evaluation.policies import make_batched_policy

    if chosen.device == "cuda" and share.world_size > 1:
        chosen = replace(chosen, device=f"cuda:{share.local_rank}")
    tasks = dict.fromkeys((episode.suite, episode.task_id) for episode in episodes)
    policy = make_batched_policy(chosen, [find_task(*task).instruction for task in tasks])
    for camera in policy.cameras:
        choose("camera", camera, tuple(CAMERAS))
    return Actor(policy, None, tuple(policy.cameras), policy.n_obs_steps, policy.describe())


def make_jobs(arguments: "RolloutArguments", protocol: Protocol, episodes: list[EpisodeKey]) -> list[EpisodeJob]:
    """What the simulators are to do.

    Args:
        arguments (`RolloutArguments`): all options.
        protocol (`Protocol`): step limits and seeds.
        episodes (`list[EpisodeKey]`): those that are not finished.

    Returns:
        `list[EpisodeJob]`: one per episode.
    """

    def video(episode: EpisodeKey) -> Any:
        if arguments.videos.isdecimal():
            filmed = episode.initial_state - arguments.first_state < int(arguments.videos)
            return "always" if filmed else "never"
        return {"none": "never", "failures": "failure", "all": "always"}[arguments.videos]

    return [
        EpisodeJob(
            episode,
            find_task(episode.suite, episode.task_id).instruction,
            seed=protocol.seed + episode.initial_state,
            step_limit=protocol.step_limit(episode.suite),
            video=video(episode),
        )
        for episode in episodes
    ]


def run(arguments: "RolloutArguments", open_environment: Callable[..., Any] = LiberoEnv) -> dict[str, Any] | None:
    """Run every episode that is not on disk yet; errors are tried again.

    Args:
        arguments (`RolloutArguments`): all options.
        open_environment (`Callable`): opens an environment in a simulator process; at the top of a module.

    Returns:
        `dict`: the summary that is also written to `summary.json` (docs/reports.md); None when other ranks are still
            at work.

    Raises:
        ValueError: if suite, task, states, checkpoint or camera do not fit, or the folder belongs to another run.
        HopelessRunError: if the simulator does not start, or episode after episode ends in an error.
    """
    share, output = Share.from_environment(), Path(arguments.output_dir)
    wanted = plan_episodes(arguments.suite, arguments.task_ids, arguments.first_state, arguments.episodes)
    actor = make_actor(arguments, share, wanted)
    protocol = Protocol(
        step_limits=arguments.step_limits,
        max_steps=arguments.max_steps,
        settling_steps=arguments.settling_steps,
        image_size=arguments.image_size,
        cameras=actor.cameras,
        n_obs_steps=actor.n_obs_steps,
        seed=arguments.seed,
    )
    settings = collect_settings(protocol.describe(), actor.description)
    with RunLedger(output, settings, share.rank, share.world_size) as ledger:
        run_missing(arguments, protocol, actor, ledger, share.of(wanted), open_environment)
        if len(ledger.finished(wanted)) < len(wanted):
            logger.info("Rank %d is done; the last rank writes the summary.", share.rank)
            return None
        ledger.merge()
        from evaluation.report import write_report

        return write_report(output, wanted, asdict(arguments))


def run_missing(
    arguments: "RolloutArguments",
    protocol: Protocol,
    actor: Actor,
    ledger: RunLedger,
    episodes: list[EpisodeKey],
    open_environment: Callable[..., Any],
) -> None:
    """Run what is not in the books.

    Args:
        arguments (`RolloutArguments`): all options.
        protocol (`Protocol`): how.
        actor (`Actor`): who acts.
        ledger (`RunLedger`): the books.
        episodes (`list[EpisodeKey]`): this process' episodes.
        open_environment (`Callable`): see `run`.
    """
    from evaluation.rollout import PoolOptions, Rollout

    records = ledger.finished(episodes)
    done = {key: record for key, record in records.items() if record["outcome"] != "error"}
    jobs = make_jobs(arguments, protocol, [key for key in episodes if key not in done])
    if not jobs:
        return
    successes = sum(record["success"] for record in done.values())
    with tqdm(total=len(episodes), initial=len(done), desc="rollout", unit="episode", smoothing=0.1) as bar:

        def book(record: dict[str, Any]) -> None:
            nonlocal successes
            ledger.append(record)
            successes += record["success"]
            bar.update()
            bar.set_postfix_str(f"success {successes}/{bar.n}")

        settings = SimulatorSettings(
            cameras=actor.cameras,
            n_obs_steps=actor.n_obs_steps,
            image_size=protocol.image_size,
            settling_steps=protocol.settling_steps,
            videos=ledger.folder / "videos",
            traces=arguments.traces,
            make_policy=actor.make_policy,
            open_environment=open_environment,
        )
        options = PoolOptions(arguments.num_envs, arguments.simulator_timeout, arguments.max_attempts)
        session = Rollout(jobs, settings, options, book, actor.batched).run()
    ledger.append_session({"num_envs": arguments.num_envs, "num_episodes": len(jobs), **session})


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        argv (`list[str]`, *optional*): the options; by default those of the process.

    Returns:
        `int`: exit code; 1 when an episode ended in an error and this process is the only one.
    """
    from evaluation.arguments import RolloutArguments, parse_arguments  # loads torch, which simulators do not need
    from evaluation.report import format_success, format_summary

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("worldvla").setLevel(logging.INFO)
    arguments = parse_arguments(RolloutArguments, sys.argv[1:] if argv is None else argv)
    try:
        with logging_redirect_tqdm([logging.getLogger()]):
            summary = run(arguments)
    except KeyboardInterrupt:
        logger.warning("Interrupted; what is finished is kept. Run the same command again to go on.")
        return INTERRUPTED
    if summary is None:
        return 0
    if summary["episodes"]:
        logger.info("%s", format_summary(summary))
        logger.info("success: %s", format_success(summary["successes"], summary["episodes"]))
    if summary["errors"]:
        logger.warning("%d episodes ended in errors; the same command tries them again.", summary["errors"])
    return int(bool(summary["errors"]) and Share.from_environment().world_size == 1)


if __name__ == "__main__":
    sys.exit(main())
