"""The protocol as data: step limits and their variants, the episodes that are wanted."""

from types import SimpleNamespace

import pytest

import evaluation.protocol
from evaluation.protocol import STEP_LIMITS, EpisodeKey, Protocol, max_steps, plan_episodes


@pytest.fixture(autouse=True)
def two_tasks(monkeypatch):
    tasks = [SimpleNamespace(task_id=task_id) for task_id in range(2)]

    def find_task(suite, task_id):
        if task_id not in (0, 1):
            raise ValueError(f"Unknown task `{task_id}` of suite `{suite}`.")
        return tasks[task_id]

    monkeypatch.setattr(evaluation.protocol, "list_tasks", lambda suite: tasks)
    monkeypatch.setattr(evaluation.protocol, "find_task", find_task)


def test_step_limits_of_the_field():
    suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
    assert [max_steps(suite) for suite in suites] == [220, 280, 300, 520, 400]
    assert [max_steps(suite, "lerobot") for suite in suites] == [280, 280, 300, 520, 400]
    assert {max_steps(suite, "libero") for suite in suites} == {600}
    assert all(tuple(entry.limits) == suites and entry.source for entry in STEP_LIMITS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("libero_gaol",), r"Unknown suite `libero_gaol`\. .*Did you mean `libero_goal`\?"),
        (("libero_goal", "lerobto"), r"Unknown step limits `lerobto`\. .*Did you mean `lerobot`\?"),
    ],
)
def test_unknown_limits_name_the_nearest(arguments, message):
    with pytest.raises(ValueError, match=message):
        max_steps(*arguments)


def test_the_protocol_describes_itself():
    found = Protocol(step_limits="lerobot", cameras=("agentview", "wrist"), n_obs_steps=2, seed=3).describe()
    assert found["step_limits"]["libero_spatial"] == 280 and "lerobot" in found["step_limits_source"]
    assert (found["seed"], found["n_obs_steps"], found["settling_steps"], found["image_size"]) == (3, 2, 10, 128)
    assert found["cameras"] == ["agentview", "wrist"] and found["num_initial_states"] == 50
    by_hand = Protocol(max_steps=7)
    assert by_hand.step_limit("libero_10") == 7
    assert set(by_hand.describe()["step_limits"].values()) == {7}
    assert by_hand.describe()["step_limits_source"] == "chosen by hand"


def test_episodes_are_planned_suite_by_suite_and_task_by_task():
    found = plan_episodes(["libero_goal", "libero_10", "libero_goal"], [], first_state=48, episodes=2)
    assert found == [
        EpisodeKey(suite, task, state)
        for suite in ("libero_goal", "libero_10")
        for task in (0, 1)
        for state in (48, 49)
    ]
    assert plan_episodes(["libero_goal"], [1, 1], 0, 1) == [EpisodeKey("libero_goal", 1, 0)]
    assert found[0].name == "libero_goal_task0_state48"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["libero_goal", "libero_obejct"], [], 0, 1), r"Unknown suite `libero_obejct`.*Did you mean `libero_object`"),
        (([], [], 0, 1), r"No suite was given\. Choose any of: libero_spatial, "),
        ((["libero_goal"], [5], 0, 1), r"Unknown task `5` of suite `libero_goal`"),
        ((["libero_goal"], [], 50, 1), r"Unknown initial state `50`\. Choose `--first_state` from 0 to 49\."),
        ((["libero_goal"], [], -1, 1), r"Unknown initial state `-1`"),
        ((["libero_goal"], [], 0, 51), r"from state 0 on there are 50, but 51 episodes per task are asked for"),
        ((["libero_goal"], [], 45, 6), r"from state 45 on there are 5, .* Choose `--episodes` of at most 5\."),
    ],
)
def test_episodes_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_episodes(*arguments)
