"""Episodes in several simulator processes: the same numbers for any number of them, and whatever goes wrong."""

import logging
from functools import partial

import av
import numpy as np
import pytest

from evaluation.policies import PolicyError
from evaluation.protocol import EpisodeKey
from evaluation.rollout import HopelessRunError, PoolOptions, Rollout, chunk_problem
from evaluation.rollout_accounting import covered_seconds
from evaluation.simulator_process import EpisodeJob, SimulatorSettings
from tests.evaluation.fake_simulator import (
    SUITE,
    FakeEnv,
    FakePolicy,
    StepPolicy,
    TellsModules,
    ask_for,
    goal_by_state,
    notes,
)


def make_jobs(tasks=2, states=4, step_limit=12, **changes):
    return [
        EpisodeJob(EpisodeKey(SUITE, task, state), f"lift cup {task}", 10 + state, step_limit, **changes)
        for task in range(tasks)
        for state in range(states)
    ]


def play(folder, jobs, policy=None, num_envs=1, timeout=60.0, env_options=None, **settings):
    """Run the jobs; returns records by episode and the accounting."""
    folder.mkdir(exist_ok=True)
    open_environment = partial(FakeEnv, folder=str(folder), **(env_options or {}))
    settings = SimulatorSettings(open_environment=open_environment, image_size=8, **settings)
    records = []
    rollout = Rollout(jobs, settings, PoolOptions(num_envs, timeout), records.append, policy)
    accounting = rollout.run()
    assert len(records) == len(jobs)
    return {EpisodeKey(r["suite"], r["task_id"], r["initial_state"]): r for r in records}, accounting


def outcomes(records):
    return {key: (record["outcome"], record["num_steps"], record["num_chunks"]) for key, record in records.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """All episodes in one process, undisturbed."""
    policy = FakePolicy()
    folder = tmp_path_factory.mktemp("alone")
    records, accounting = play(folder, make_jobs(), policy, n_obs_steps=2)
    return records, accounting, policy, folder


def test_episodes_end_with_success_or_at_the_limit(alone):
    records, _, _, _ = alone
    assert {record["outcome"] for record in records.values()} == {"success", "step_limit"}
    for key, record in records.items():
        assert record["success"] == (record["outcome"] == "success")
        assert record["num_steps"] == 12 if not record["success"] else 0 < record["num_steps"] <= 12
        assert record["num_chunks"] == -(-record["num_steps"] // 3)
        assert (record["seed"], record["instruction"]) == (10 + key.initial_state, f"lift cup {key.task_id}")
        assert (record["error"], record["attempts"], record["video"]) == (None, 1, None)
        assert set(record["seconds"]) == {"simulator", "policy", "total"}


def test_only_wanted_frames_are_rendered(alone):
    records, _, policy, _ = alone
    # One frame after the reset, and the last two of every chunk; the last step of an episode is never rendered.
    for record in records.values():
        chunks, rest = divmod(record["num_steps"] - 1, 3)
        assert record["num_frames"] == 1 + 2 * chunks + max(0, rest - 1)
    assert {len(seen) for seen in policy.seen} == {1, 2}


def test_one_environment_stays_open_for_a_task(alone):
    _, _, _, folder = alone
    deeds = [(task, deed.split()[0]) for _, task, deed in notes(folder)]
    assert deeds == [
        *[("0", "open"), *[("0", "reset")] * 4, ("0", "close")],
        *[("1", "open"), *[("1", "reset")] * 4, ("1", "close")],
    ]


def test_the_policy_learns_of_every_beginning_and_end(alone):
    _, accounting, policy, _ = alone
    assert (
        [name for name, _ in policy.begun] == policy.ended == [f"{job.episode.name} attempt 1" for job in make_jobs()]
    )
    assert accounting["policy_calls"] == len(policy.batches) and accounting["mean_batch_size"] == 1
    assert accounting["restarts"] == 0


def test_three_processes_give_the_same_and_ask_together(alone, tmp_path):
    policy = FakePolicy()
    together = {"seconds_per_step": 0.02, "together": 3}
    records, accounting = play(tmp_path, make_jobs(), policy, num_envs=3, n_obs_steps=2, env_options=together)
    assert outcomes(records) == outcomes(alone[0])
    assert max(policy.batches) > 1
    assert sum(policy.batches) == sum(record["num_chunks"] for record in records.values())
    assert accounting["mean_batch_size"] == pytest.approx(np.mean(policy.batches))
    assert accounting["mean_running"] >= accounting["mean_batch_size"]
    assert len({process for process, _, _ in notes(tmp_path)}) == 3


def test_a_killed_a_broken_and_a_hung_simulator_change_no_outcome(alone, tmp_path, caplog):
    ask_for(tmp_path, "kill", 0, 1, times=2)
    ask_for(tmp_path, "raise", 0, 3)
    ask_for(tmp_path, "hang", 1, 2)
    with caplog.at_level(logging.WARNING):
        records, accounting = play(tmp_path, make_jobs(), FakePolicy(), num_envs=2, timeout=6.0, n_obs_steps=2)
    assert outcomes(records) == outcomes(alone[0])
    repeated = {tuple(key[1:]): record["attempts"] for key, record in records.items() if record["attempts"] > 1}
    assert repeated == {(0, 1): 3, (0, 3): 2, (1, 2): 2}
    assert accounting["restarts"] == 4
    for words in ("code -9", "Simulated instability", "gave no sign of life for 6 seconds and was killed"):
        assert any(words in message and "Once more" in message for message in caplog.messages), words


def test_an_episode_that_never_works_is_an_error_and_the_others_go_on(alone, tmp_path):
    ask_for(tmp_path, "kill", 0, 0, times=9)
    ask_for(tmp_path, "refuse", 0, 2, times=9)
    records, _ = play(tmp_path, make_jobs(), FakePolicy(), n_obs_steps=2)
    killed, refused = records[EpisodeKey(SUITE, 0, 0)], records[EpisodeKey(SUITE, 0, 2)]
    assert (killed["outcome"], killed["success"], killed["num_steps"], killed["attempts"]) == ("error", False, None, 3)
    assert "ended with code -9" in killed["error"]
    assert (refused["outcome"], refused["attempts"]) == ("error", 1)  # a second attempt would say the same
    assert refused["error"] == "There is no such demonstration."
    others = {key: value for key, value in outcomes(alone[0]).items() if key[1:] not in ((0, 0), (0, 2))}
    assert {key: value for key, value in outcomes(records).items() if value[0] != "error"} == others


def test_a_simulator_that_cannot_start_ends_the_run(tmp_path):
    ask_for(tmp_path, "import", 0, 0)
    with pytest.raises(HopelessRunError, match="The headless renderer does not start"):
        play(tmp_path, make_jobs(), FakePolicy())


def test_ten_errors_in_a_row_end_the_run(tmp_path):
    for state in range(12):
        ask_for(tmp_path, "refuse", 0, state)
    with pytest.raises(
        HopelessRunError, match="The last 10 episodes ended in errors, so the run was stopped.*no such"
    ):
        play(tmp_path, make_jobs(tasks=1, states=12), FakePolicy())


class BrokenPolicy(FakePolicy):
    """Answers some episodes with nonsense, and gives up on others."""

    def begin(self, episode_id, instruction):
        if "state4" in episode_id:
            raise PolicyError("The server takes no more episodes.", [episode_id])
        super().begin(episode_id, instruction)

    def predict_chunks(self, requests):
        lost = [request.episode_id for request in requests if "state2" in request.episode_id]
        if lost:
            raise PolicyError("The server is gone.", lost)
        return super().predict_chunks(requests)

    def chunk(self, request):
        if "state1" in request.episode_id:
            return np.zeros((3, 6))
        return np.full((3, 7), np.nan) if "state3" in request.episode_id else super().chunk(request)


def test_a_policy_that_fails_costs_its_episodes_only(alone, tmp_path):
    records, accounting = play(tmp_path, make_jobs(tasks=1, states=5), BrokenPolicy(), num_envs=2, n_obs_steps=2)
    errors = {key.initial_state: record["error"] for key, record in records.items() if record["error"]}
    assert errors == {
        1: "The policy shall answer with commands of shape (n, 7), but it answered with (3, 6).",
        2: "The server is gone.",
        3: "The policy answered with commands that hold NaN or infinity.",
        4: "The server takes no more episodes.",
    }
    key = EpisodeKey(SUITE, 0, 0)
    assert outcomes(records)[key] == outcomes(alone[0])[key]
    assert accounting["restarts"] == 0


def test_a_policy_in_the_simulator_acts_and_then_stands_still(tmp_path):
    goals = {"goal": goal_by_state}
    records, accounting = play(
        tmp_path, make_jobs(tasks=1, states=3), num_envs=1, make_policy=partial(StepPolicy, 4), env_options=goals
    )
    found = [(record["outcome"], record["num_steps"]) for record in records.values()]
    assert found == [("success", 2), ("success", 4), ("step_limit", 12)]  # the goals lie at 1, 2 and 3; it walks to 2
    assert accounting["policy_calls"] == 0 and all(record["num_chunks"] == 0 for record in records.values())


def test_videos_are_rendered_afterwards_and_only_where_they_are_wanted(tmp_path):
    jobs = make_jobs(tasks=1, states=3, video="failure")
    jobs[0] = make_jobs(tasks=1, states=1, video="always")[0]
    videos = tmp_path / "videos"
    records, _ = play(
        tmp_path,
        jobs,
        make_policy=partial(StepPolicy, 4),
        env_options={"goal": goal_by_state},
        videos=videos,
        traces=True,
    )
    names = [record["video"] for record in records.values()]
    assert names == ["libero_object_task0_state0.mp4", None, "libero_object_task0_state2.mp4"]
    assert sorted(path.name for path in videos.glob("*.mp4")) == [name for name in names if name]
    assert [record["num_frames"] for record in records.values()] == [3, 0, 13]
    with av.open(str(videos / names[0])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3 + 20  # the initial state, two steps, a second to read the outcome
    assert [round(float(frame[-100:].mean()) / 10) for frame in frames[:4]] == [0, 1, 2, 2]
    assert len(list(videos.glob("*.npz"))) == 2
    with np.load(videos / names[2].replace(".mp4", ".npz")) as trace:
        assert trace["frames"].shape == (13, 8, 8, 3) and trace["frames"].dtype == np.uint8
        assert trace["frames"][:6, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 40]
        assert trace["actions"].tolist()[3:5] == [[0.5, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]]
        assert len(trace["actions"]) == 12
        told = {key: str(trace[key]) for key in ("instruction", "camera", "outcome")}
    assert told == {"instruction": "lift cup 0", "camera": "agentview", "outcome": "step_limit"}


def test_simulator_processes_load_no_torch(tmp_path):
    records, _ = play(
        tmp_path, make_jobs(tasks=1, states=1), make_policy=TellsModules, env_options={"goal": goal_by_state}
    )
    assert [record["error"] for record in records.values()] == ["['evaluation.simulator_process']"]


def test_exactly_one_side_holds_the_policy():
    with pytest.raises(ValueError, match="give one of both"):
        Rollout([], SimulatorSettings(), PoolOptions(), lambda record: None)


@pytest.mark.parametrize(
    ("intervals", "covered"),
    [
        ([], 0),
        ([(0, 1)], 1),
        ([(2, 3), (0, 1)], 2),
        ([(0, 3), (1, 2)], 3),
        ([(1, 3), (2, 4)], 3),
        ([(-5, 1), (9, 20)], 2),
    ],
)
def test_covered_time(intervals, covered):
    assert covered_seconds(intervals, 0, 10) == pytest.approx(covered)


@pytest.mark.parametrize("shape", [(7,), (0, 7), (3, 8), (1, 3, 7)])
def test_chunks_of_other_shapes_are_named(shape):
    assert f"answered with {shape}" in chunk_problem(np.zeros(shape))
    assert chunk_problem(np.zeros((1, 7))) is None
