"""A simulator without physics for the rollouts' tests: quick, decided by seed and commands, failing on request.

Lies in a module of its own, because simulator processes import it.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

SUITE = "libero_object"


class FakeEnv:
    """Stands in for `LiberoEnv`: a number that every command moves; the goal lies at 10.

    Args:
        folder: where mishaps are asked for (`ask_for`) and resets are noted.
        goal: by default drawn with the seed between 2 and 8.
        seconds_per_step: how long a step takes.
        together: the first reset waits until so many processes have opened an environment.
    """

    def __init__(
        self, suite, task_id, cameras, image_size, settling_steps, folder, goal=None, seconds_per_step=0.0, together=1
    ):
        self.task = SimpleNamespace(suite=suite, task_id=task_id)
        self.cameras, self.image_size, self.settling_steps = cameras, image_size, settling_steps
        self.folder, self.fixed_goal, self.seconds_per_step = Path(folder), goal, seconds_per_step
        self.together = together
        self._note("open")

    def reset(self, initial_state, seed):
        self.state, self.place = initial_state, 0.0
        while len({process for process, _, _ in notes(self.folder)}) < self.together:
            time.sleep(0.01)
        self._note(f"reset {initial_state} {seed}")
        self._mishap()
        drawn = float(np.random.default_rng([seed, self.task.task_id]).uniform(2, 8))
        self.goal = drawn if self.fixed_goal is None else self.fixed_goal(self.task.task_id, initial_state)
        return self._observation()

    def step(self, action):
        assert action.shape == (7,)
        time.sleep(self.seconds_per_step)
        self.place += float(action[0])
        return self._observation(), self.place >= self.goal, {}

    def render(self, camera):
        return np.full((self.image_size, self.image_size, 3), min(255, int(20 * abs(self.place))), np.uint8)

    def simulator_state(self):
        return np.array([self.place])

    def set_simulator_state(self, state):
        self.place = float(state[0])

    def close(self):
        self._note("close")

    def _observation(self):
        return {"state": np.full(8, self.place, np.float32)}

    def _note(self, text):
        with (self.folder / "notes.txt").open("a") as file:
            file.write(f"{os.getpid()} {self.task.task_id} {text}\n")

    def _mishap(self):
        for kind, act in MISHAPS.items():
            request = self.folder / f"{kind}-{self.task.task_id}-{self.state}"
            if request.exists() and (left := int(request.read_text())) > 0:
                request.write_text(str(left - 1))
                act()


def _raise():
    raise RuntimeError("Simulated instability.")


def _refuse():
    raise ValueError("There is no such demonstration.")


def _no_renderer():
    raise ImportError("The headless renderer does not start.")


MISHAPS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(1000),
    "raise": _raise,
    "refuse": _refuse,
    "import": _no_renderer,
}


def ask_for(folder, kind, task_id, state, times=1):
    """Let the next resets of an episode go wrong."""
    (Path(folder) / f"{kind}-{task_id}-{state}").write_text(str(times))


def notes(folder):
    """What the environments did: lists of process, task and deed."""
    return [line.split(" ", 2) for line in (Path(folder) / "notes.txt").read_text().splitlines()]


class FakePolicy:
    """A deterministic policy: the size of a step depends on what was seen since the last request."""

    cameras, n_obs_steps = ("agentview",), 2

    def __init__(self):
        self.begun, self.ended, self.batches, self.seen = [], [], [], []

    def begin(self, episode_id, instruction):
        self.begun.append((episode_id, instruction))

    def end(self, episode_id):
        self.ended.append(episode_id)

    def describe(self):
        return {"policy": "fake", "checkpoint_fingerprint": "abc"}

    def predict_chunks(self, requests):
        self.batches.append(len(requests))
        self.seen += [[int(observation["state"][0]) for observation in request.observations] for request in requests]
        return [self.chunk(request) for request in requests]

    def chunk(self, request):
        brightness = sum(float(observation["agentview"].mean()) for observation in request.observations)
        chunk = np.zeros((3, 7))
        chunk[:, 0] = 0.25 + brightness % 7 / 10
        return chunk


class StepPolicy:
    """Acts in the simulator's process: steps of one half, `count` of them."""

    def __init__(self, count):
        self.count = count

    def reset(self, env, initial_state, seed):
        return env.reset(initial_state=initial_state, seed=seed)

    def actions(self, env):
        for _ in range(self.count):
            yield np.array([0.5, 0, 0, 0, 0, 0, 1])


class TellsModules:
    """Refuses its episode with the names of telling modules that its process has loaded."""

    def reset(self, env, initial_state, seed):
        names = ("torch", "transformers", "evaluation.policies", "evaluation.simulator_process")
        raise ValueError(str([name for name in names if name in sys.modules]))


def goal_by_state(task_id, initial_state):
    return initial_state + 1
