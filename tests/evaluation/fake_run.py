"""A whole run on the fake simulator: as a process of its own, so that tests can kill it, and for tests in theirs.

python -m tests.evaluation.fake_run OUTPUT FOLDER SECONDS_PER_STEP [--flags]
"""

import sys
from functools import partial
from types import SimpleNamespace
from unittest import mock

import evaluation.protocol
import evaluation.run
from tests.evaluation.fake_simulator import FakeEnv, goal_by_state

TASKS = [SimpleNamespace(task_id=task_id, instruction=f"lift cup {task_id}") for task_id in range(3)]


def fake_run(output, folder, flags=(), seconds_per_step=0.0, goal=goal_by_state, policy="random"):
    """Call `run` with a command line; returns the summary."""
    from evaluation.arguments import RolloutArguments, parse_arguments

    flags = ["--output_dir", str(output), "--policy", policy, "--image_size", "8", "--videos", "none", *flags]
    open_environment = partial(FakeEnv, folder=str(folder), goal=goal, seconds_per_step=seconds_per_step)
    with (
        mock.patch.object(evaluation.protocol, "list_tasks", lambda suite: TASKS),
        mock.patch.object(evaluation.protocol, "find_task", lambda suite, task_id: TASKS[task_id]),
        mock.patch.object(evaluation.run, "find_task", lambda suite, task_id: TASKS[task_id]),
        mock.patch("evaluation.run_settings.choose_renderer", lambda requested: "egl"),
    ):
        return evaluation.run.run(parse_arguments(RolloutArguments, flags), open_environment)


if __name__ == "__main__":
    fake_run(*sys.argv[1:3], sys.argv[4:], float(sys.argv[3]))
