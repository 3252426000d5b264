"""The scripted expert: reads a task's goal from its BDDL and solves it with privileged knowledge of the scene.

It records the demonstrations. Nothing in it depends on a task's name: goals are predicates, and each predicate has a
skill. Perception is in `expert_perception`, grasps in `expert_grasp`, placing in `expert_placement`, what goes in from
the side in `expert_insertion`, pushing in `expert_pushing`, drawers, doors and knobs in `expert_articulation`, control
in `expert_motion`.
"""

from typing import Any

import numpy as np

from evaluation.expert_articulation import Joint, articulate, is_drawer
from evaluation.expert_grasp import pick, plan_grasp
from evaluation.expert_insertion import find_cavity, insert
from evaluation.expert_motion import OPEN, Arm, Motion
from evaluation.expert_perception import Goal, Scene
from evaluation.expert_placement import place
from evaluation.expert_pushing import make_room, push_from_inside

GOAL_ORDER = {"open": 0, "turnon": 1, "in": 2, "on": 2, "turnoff": 3, "close": 4}
ROUNDS = 3  # how often unsatisfied goals are taken up again
PICK_AND_PLACE_ATTEMPTS = 3
LONGEST_FALL = 20  # steps that objects may take to come to rest before anything is planned
SLIPPERY_SLANT = 0.4  # wall slant above which a pinch is expected to slip
SLIPPERY_SLANT_BESIDE_DRAWER = 0.35


def order_goals(goals: list[list[str]]) -> list[list[str]]:
    """Order goals so that none undoes another: open and turn on first, close last.

    Args:
        goals (`list[list[str]]`): BDDL predicates with their arguments.

    Returns:
        `list[list[str]]`: the same, in the order to work on them.
    """
    return sorted(goals, key=lambda goal: GOAL_ORDER.get(goal[0], 2))


class ScriptedExpert:
    """Solves a LIBERO task step by step.

    Args:
        domain (`libero.libero.envs.bddl_base_domain.BDDLBaseDomain`): the task's simulation (`LiberoEnv.domain`),
            after its reset and settling steps. Make a new expert for each episode.
        speed (`float`): share of full speed, in (0, 1].

    Example:
        ```python
        env.reset(initial_state=0)
        for action in ScriptedExpert(env.domain).actions():
            observation, success, _ = env.step(action)
            if success:
                break
        ```
    """

    def __init__(self, domain: Any, speed: float = 1.0):
        self.scene = Scene(domain)
        self.arm = Arm(self.scene, speed)

    def actions(self) -> Motion:
        """Actions one after another; each must be applied before the next is asked for.

        Yields:
            `np.ndarray` of shape `(7,)`: position deltas, rotation deltas, gripper (-1 open ... +1 close), in [-1, 1].
            Ends when the expert has nothing left to try; stop earlier when the environment reports success.
        """
        for _ in range(LONGEST_FALL):
            if not self.scene.is_falling():
                break
            yield from self.arm.stay(self.scene.grip_rotation, OPEN, 1)
        for _ in range(ROUNDS):
            for goal in order_goals(self.scene.goals):
                if not self.scene.satisfied(goal):
                    yield from self._solve(goal)
            yield from self.arm.stay(self.scene.grip_rotation, OPEN, 5)

    def _solve(self, goal: Goal) -> Motion:
        if goal[0] not in ("in", "on"):
            yield from articulate(self.arm, goal)
            return
        _, name, reference = goal
        in_drawer = goal[0] == "in" and is_drawer(self.scene, reference)
        if in_drawer:
            yield from self._open_drawer(name, reference)
        cavity = find_cavity(self.scene, reference) if goal[0] == "in" and not in_drawer else None
        if cavity is not None:
            yield from insert(self.arm, name, cavity, goal)
        elif self.scene.is_flat(name):
            yield from push_from_inside(self.arm, name, self.scene.target_position(reference, name), goal)
        else:
            yield from self._pick_and_place(name, reference, goal)

    def _open_drawer(self, name: str, region: str) -> Motion:
        """Open the drawer that an object shall go into; first drag the object clear of it where it would hinder."""
        goal = ("open", region)
        if self.scene.satisfied(goal):
            return
        swept = Joint.of(self.scene, region).swept_when_opened()
        grasp = plan_grasp(self.scene, name, obstacles=swept)
        if grasp is None or abs(grasp.wall_slant) > SLIPPERY_SLANT_BESIDE_DRAWER:
            yield from make_room(self.arm, name, obstacles=swept)
        yield from articulate(self.arm, goal)

    def _pick_and_place(self, name: str, reference: str, goal: Goal) -> Motion:
        grasp = plan_grasp(self.scene, name, destination=self._target(reference, name))
        if grasp is None or abs(grasp.wall_slant) > SLIPPERY_SLANT:
            yield from make_room(self.arm, name)
        for _ in range(PICK_AND_PLACE_ATTEMPTS):
            picked = yield from pick(self.arm, name, destination=self._target(reference, name))
            if picked:
                yield from place(self.arm, name, self._target(reference, name))
            if not picked or self.scene.satisfied(goal):
                return

    def _target(self, reference: str, name: str) -> np.ndarray:
        return self.scene.target_position(reference, name)
