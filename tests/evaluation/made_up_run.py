"""A results folder with given outcomes, written through the books as a run does."""

from evaluation.run_ledger import RunLedger

PROTOCOL = {
    "step_limits": {"libero_object": 30, "libero_goal": 30},
    "step_limits_source": "chosen by hand",
    "settling_steps": 10,
    "image_size": 128,
    "cameras": ["agentview"],
    "n_obs_steps": 1,
    "seed": 0,
    "initial_states": "benchmark",
}
ERROR = "Traceback (most recent call last):\n  ...\nRuntimeError: the arm | fell off\n"


def make_up_run(folder, outcomes, protocol=None, policy="noop", **settings):
    """Write `outcomes`, by episode; None stands for one that was not run. Returns the folder."""
    settings = {
        "protocol": {**PROTOCOL, **(protocol or {})},
        "policy": {"policy": policy},
        "renderer": "egl",
        "versions": {"mujoco": "3.1"},
        "commits": ["abc"],
        **settings,
    }
    with RunLedger(folder, settings) as ledger:
        for key, outcome in outcomes.items():
            if outcome is not None:
                ledger.append(_record(key, outcome, settings["protocol"]["seed"]))
        ledger.append_session({"wall_seconds": 50.0, "overhead_seconds": 2.5, "restarts": 2})
    return folder


def _record(key, outcome, seed):
    steps = {"success": 10, "step_limit": 30, "error": None}[outcome]
    return {
        **key._asdict(),
        "instruction": f"task {key.task_id} of {key.suite}",
        "seed": seed + key.initial_state,
        "outcome": outcome,
        "success": outcome == "success",
        "num_steps": steps,
        "error": ERROR if outcome == "error" else None,
        "attempts": 3 if outcome == "error" else 1,
        "num_chunks": (steps or 0) // 5,
        "num_frames": steps,
        "seconds": {"simulator": 0.1 * (steps or 0), "policy": 0.1 * (steps or 0), "total": 0.2 * (steps or 0)},
        "video": f"{key.name}.mp4" if outcome == "step_limit" else None,
    }
