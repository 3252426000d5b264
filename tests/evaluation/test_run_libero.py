"""Whole runs in the real simulator: two processes, one of them killed, give what one process gives."""

import json
import threading
import time

import psutil
import pytest

from evaluation.arguments import RolloutArguments
from evaluation.run import run

pytestmark = pytest.mark.libero
WITHOUT = ("seconds", "attempts")


def play(output, **options):
    """Two states of one task; returns the summary and the records by state."""
    options = {"task_ids": [2], "episodes": 2, "first_state": 10, "videos": "none", **options}
    summary = run(RolloutArguments(output_dir=str(output), policy="expert", **options))
    records = [json.loads(line) for line in (output / "episodes.jsonl").read_text().splitlines()]
    return summary, {record["initial_state"]: record for record in records}


def kill_a_simulator(path):
    """Kill a simulator process some seconds after the run has begun."""
    known = set(psutil.Process().children())
    while not path.exists():
        time.sleep(0.1)
    while True:
        for child in set(psutil.Process().children()) - known:
            if child.num_threads() and child.cpu_times().user > 3 and "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                return
        time.sleep(0.1)


def test_a_killed_simulator_and_two_processes_change_nothing(tmp_path):
    _, alone = play(tmp_path / "alone")
    assert [(record["outcome"], record["num_frames"]) for record in alone.values()] == [("success", 0)] * 2
    assassin = threading.Thread(target=kill_a_simulator, args=[tmp_path / "two" / "settings.json"])
    assassin.start()
    summary, two = play(tmp_path / "two", num_envs=2)
    assassin.join(timeout=1)
    assert not assassin.is_alive() and summary["sessions"][0]["restarts"] == 1
    for state, record in alone.items():
        assert {key: value for key, value in two[state].items() if key not in WITHOUT} == {
            key: value for key, value in record.items() if key not in WITHOUT
        }
    assert summary["settings"]["renderer"] in ("egl", "osmesa")
    assert summary["settings"]["versions"]["mujoco"] and summary["settings"]["protocol"]["image_size"] == 128
