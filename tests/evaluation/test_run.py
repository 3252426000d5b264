"""Whole runs on the fake simulator: known answers, going on after anything, ranks, bad input; and the options."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from evaluation.arguments import RolloutArguments, parse_arguments
from evaluation.checkpoints import fingerprint_checkpoint
from evaluation.imagine_arguments import ImagineArguments
from evaluation.run import Share, main
from tests.evaluation.fake_run import fake_run
from tests.evaluation.fake_simulator import FakePolicy, ask_for, notes

ROOT = Path(__file__).resolve().parents[2]
# Two tasks with four states each, of which a random walk solves some.
FLAGS = ["--task_ids", "0", "1", "--episodes", "4", "--max_steps", "30"]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "simulator"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The records of a run in one process that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    summary = fake_run(folder / "out", folder, FLAGS)
    assert 0 < summary["successes"] < summary["episodes"] == 8
    return read_lines(folder / "out"), summary


def read_lines(output, without=("seconds", "attempts")):
    records = [json.loads(line) for line in (output / "episodes.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in without} for record in records]


def resets(folder):
    return [(int(task), int(deed.split()[1])) for _, task, deed in notes(folder) if deed.startswith("reset")]


# Known answers


def solves_every(task_id, initial_state):
    """The first command of a `noop` policy reaches the goal in 1 of 5, 2 of 5 and 3 of 5 states of the three tasks."""
    return 0 if initial_state % 5 <= task_id else 1


def test_known_success_probabilities_give_the_right_table(folder, tmp_path):
    flags = ["--episodes", "10", "--first_state", "20", "--max_steps", "2", "--num_envs", "2", "--seed", "100"]
    summary = fake_run(tmp_path / "out", folder, flags, goal=solves_every, policy="noop")
    assert (summary["episodes"], summary["successes"], summary["suite"]) == (30, 12, "libero_object")
    assert summary["success_rate"] == pytest.approx(0.4)
    # Wilson: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964
    assert summary["interval_95"] == pytest.approx((0.24590, 0.57682), abs=1e-4)
    records = read_lines(tmp_path / "out")
    by_task = [[record["success"] for record in records if record["task_id"] == task] for task in range(3)]
    assert [sum(successes) for successes in by_task] == [2, 4, 6]
    assert [record["initial_state"] for record in records] == list(range(20, 30)) * 3
    assert all(record["seed"] == 100 + record["initial_state"] for record in records)
    assert all(record["num_steps"] == (1 if record["success"] else 2) for record in records)
    assert {record["instruction"] for record in records} == {f"lift cup {task}" for task in range(3)}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["successes"] == 12
    assert summary["settings"]["protocol"]["seed"] == 100 and summary["settings"]["policy"] == {"policy": "noop"}


def test_two_processes_give_the_numbers_of_one(undisturbed, folder, tmp_path):
    fake_run(tmp_path / "out", folder, [*FLAGS, "--num_envs", "2"])
    assert sorted(read_lines(tmp_path / "out"), key=str) == sorted(undisturbed[0], key=str)


def test_a_finished_run_does_nothing_more(folder, tmp_path):
    flags = ["--task_ids", "0", "--episodes", "1", "--max_steps", "3"]
    first = fake_run(tmp_path / "out", folder, flags)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert fake_run(tmp_path / "out", folder, flags) == first
    assert len(resets(folder)) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# Going on


def test_a_run_that_was_killed_goes_on_to_the_same_numbers(undisturbed, folder, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tests.evaluation.fake_run", str(output), str(folder), "0.02"]
    process = subprocess.Popen([*command, *FLAGS, "--num_envs", "2"], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output / "episodes.jsonl").exists() or len(read_lines(output)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    finished = {(record["task_id"], record["initial_state"]) for record in read_lines(output)}
    assert 2 <= len(finished) < 8
    simulators = [
        psutil.Process(int(pid)) for pid in {pid for pid, _, _ in notes(folder)} if psutil.pid_exists(int(pid))
    ]
    assert not psutil.wait_procs(simulators, timeout=30)[1]  # they end by themselves
    (folder / "notes.txt").unlink()
    summary = fake_run(output, folder, FLAGS)
    assert sorted(resets(folder)) == sorted({(task, state) for task in (0, 1) for state in range(4)} - finished)
    assert read_lines(output) == undisturbed[0]
    assert {key: summary[key] for key in ("episodes", "successes", "errors", "missing")} == {
        key: undisturbed[1][key] for key in ("episodes", "successes", "errors", "missing")
    }


def test_errors_are_tried_again_by_the_same_command(undisturbed, folder, tmp_path):
    ask_for(folder, "refuse", 0, 2)
    first = fake_run(tmp_path / "out", folder, FLAGS)
    assert (first["episodes"], first["errors"], first["missing"]) == (7, 1, 0)
    summary = fake_run(tmp_path / "out", folder, FLAGS)
    assert (summary["episodes"], summary["errors"]) == (8, 0)
    assert len(resets(folder)) == 9
    assert read_lines(tmp_path / "out") == undisturbed[0]


def test_more_episodes_and_tasks_go_on_and_other_settings_do_not(folder, tmp_path):
    flags = ["--max_steps", "3"]
    fake_run(tmp_path / "out", folder, [*flags, "--task_ids", "0", "--episodes", "1"])
    summary = fake_run(tmp_path / "out", folder, [*flags, "--task_ids", "0", "1", "--episodes", "2"])
    assert summary["episodes"] == 4 and len(resets(folder)) == 4
    with pytest.raises(ValueError, match=r"other settings \(protocol\.seed: 0 -> 1\)"):
        fake_run(tmp_path / "out", folder, [*flags, "--seed", "1"])
    with pytest.raises(ValueError, match=r"policy\.policy: random -> noop"):
        fake_run(tmp_path / "out", folder, flags, policy="noop")
    with pytest.raises(
        ValueError, match=r"step_limits\.libero_spatial: 3 -> 280.*chosen by hand -> huggingface/lerobot"
    ):
        fake_run(tmp_path / "out", folder, ["--step_limits", "lerobot"])
    assert len(resets(folder)) == 4


def test_ranks_share_the_episodes_and_another_number_of_them_goes_on(undisturbed, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert fake_run(tmp_path / "out", folder, FLAGS) is None
    assert len(resets(folder)) == 3 and (tmp_path / "out" / "episodes.rank1.jsonl").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fake_run(tmp_path / "out", folder, FLAGS) is None
    monkeypatch.setenv("RANK", "0")
    summary = fake_run(tmp_path / "out", folder, FLAGS)
    assert (summary["episodes"], summary["successes"]) == (8, undisturbed[1]["successes"])
    assert len(resets(folder)) == len(set(resets(folder))) == 8
    assert read_lines(tmp_path / "out") == undisturbed[0]
    assert not list((tmp_path / "out").glob("episodes.rank*"))


def test_shares_are_disjoint_and_whole(monkeypatch):
    episodes = list(range(11))
    shares = [Share(rank, 4).of(episodes) for rank in range(4)]
    assert sorted(sum(shares, [])) == episodes
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert Share.from_environment() == Share(5, 8, 1)


# Policies of the main process


@pytest.fixture
def policy(monkeypatch):
    """The policy that `--policy worldvla` makes; `made` are the options it was made from."""
    fake = FakePolicy()
    fake.made, fake.told = [], []

    def make(options, instructions):
        fake.made.append(options)
        fake.told.append(instructions)
        return fake

    monkeypatch.setattr("evaluation.policies.make_batched_policy", make)
    return fake


def test_a_checkpoint_acts_in_batches(policy, folder, tmp_path, monkeypatch):
    flags = ["--checkpoint", "c", "--device", "cuda", "--task_ids", "0", "1", "--episodes", "2", "--num_envs", "2"]
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert fake_run(tmp_path / "out", folder, [*flags, "--max_steps", "9"], policy="worldvla") is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    summary = fake_run(tmp_path / "out", folder, [*flags, "--max_steps", "9"], policy="worldvla")
    assert [options.device for options in policy.made] == ["cuda:0", "cuda:1"]
    assert policy.told == [["lift cup 0", "lift cup 1"]] * 2  # before anything starts, all of the run's tasks
    assert summary["episodes"] == 4 and len(policy.begun) == 4
    assert summary["settings"]["checkpoint_fingerprint"] == "abc"
    assert summary["settings"]["protocol"]["n_obs_steps"] == 2
    assert sum(session["policy_calls"] for session in summary["sessions"]) == len(policy.batches)


def test_a_camera_that_the_simulator_lacks_is_refused_before_it_starts(policy, folder, tmp_path):
    policy.cameras = ("agentview", "left_shoulder")
    with pytest.raises(ValueError, match=r"Unknown camera `left_shoulder`\. Choose one of: `agentview`, `wrist`"):
        fake_run(tmp_path / "out", folder, ["--checkpoint", "c"], policy="worldvla")
    assert not (tmp_path / "out").exists() and not (folder / "notes.txt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "libero_object", "libero_gaol"], r"Unknown suite `libero_gaol`.*Did you mean `libero_goal`"),
        (["--episodes", "51"], r"51 episodes per task are asked for\. Choose `--episodes` of at most 50\."),
        (["--first_state", "50"], r"Unknown initial state `50`"),
        (["--camera", "wrst"], r"Unknown camera `wrst`.*Did you mean `wrist`"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(folder, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        fake_run(tmp_path / "out", folder, flags)
    assert not (tmp_path / "out").exists() and not (folder / "notes.txt").exists()


# The command


@pytest.mark.parametrize(
    ("summary", "world_size", "code"),
    [
        ({"episodes": 5, "successes": 3, "errors": 0}, "1", 0),
        ({"episodes": 4, "successes": 3, "errors": 1}, "1", 1),
        ({"episodes": 0, "successes": 0, "errors": 1}, "1", 1),
        ({"episodes": 4, "successes": 3, "errors": 1}, "2", 0),  # a launcher would kill the other ranks
        (None, "2", 0),
    ],
)
def test_the_exit_code_tells_of_errors(monkeypatch, caplog, summary, world_size, code):
    monkeypatch.setattr("evaluation.run.run", lambda arguments: summary)
    monkeypatch.setattr("evaluation.report.format_summary", lambda summary: "the table")
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with caplog.at_level("INFO", logger="worldvla.rollout"):
        assert main(["--policy", "noop", "--output_dir", "o"]) == code
    told = " ".join(caplog.messages)
    assert ("the table" in told) == (summary is not None and summary["episodes"] > 0)
    assert ("3/5 (60 %, 95 % interval 23 to 88 %)" in told) == (summary is not None and summary["episodes"] == 5)


def test_an_interruption_says_how_to_go_on(monkeypatch, caplog):
    def interrupt(arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr("evaluation.run.run", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with `&`
    try:
        assert main(["--policy", "noop", "--output_dir", "o"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Run the same command again to go on." in caplog.text


def test_fingerprints_follow_the_weights(tmp_path, make_model):
    make_model().save_pretrained(tmp_path / "one")
    make_model().save_pretrained(tmp_path / "two")
    make_model(hidden_size=16).save_pretrained(tmp_path / "three")
    (tmp_path / "one" / "training_log.json").write_text("[]")
    one, two, three = (fingerprint_checkpoint(str(tmp_path / name), None) for name in ("one", "two", "three"))
    assert one == two != three


# Options

REQUIRED = {
    RolloutArguments: ["--checkpoint", "c", "--output_dir", "o"],
    ImagineArguments: ["--checkpoint", "c", "--demonstrations", "d", "--output", "o.mp4"],
}


def test_options_are_read():
    found = parse_arguments(
        RolloutArguments, [*REQUIRED[RolloutArguments], "--task_ids", "3", "5", "--max_steps", "9"]
    )
    assert found == RolloutArguments(checkpoint="c", output_dir="o", task_ids=[3, 5], max_steps=9)
    several = parse_arguments(RolloutArguments, [*REQUIRED[RolloutArguments], "--suite", "libero_goal", "libero_10"])
    assert several.suite == ["libero_goal", "libero_10"]
    assert parse_arguments(ImagineArguments, REQUIRED[ImagineArguments]) == ImagineArguments("c", "d", "o.mp4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsiodes", "3"], r"Unknown flag `epsiodes`\. Choose one of: .*`seed`.* Did you mean `episodes`\?"),
        (["--chunk_sise=3"], r"Unknown flag `chunk_sise`\. .* Did you mean `chunk_size`\?"),
        (["seed"], r"Unexpected argument `seed`\. Options are written `--name value`\."),
    ],
)
def test_unknown_flags_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(RolloutArguments, REQUIRED[RolloutArguments] + arguments)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--videos", "failed"], r"Unknown choice of videos `failed`.*Did you mean `failures`"),
        (["--step_limits", "openvl"], r"Unknown step limits `openvl`.*Did you mean `openvla`"),
        (["--settling_steps", "-1"], r"`--settling_steps` counts steps, at least 0, got -1\."),
        (["--num_envs", "0"], r"`--num_envs` must be larger than 0, got 0"),
    ],
)
def test_choices_of_a_rollout_are_checked(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(RolloutArguments, REQUIRED[RolloutArguments] + flags)


@pytest.mark.parametrize("name", ["episodes", "image_size", "chunk_size", "n_action_steps", "max_steps"])
@pytest.mark.parametrize("value", ["0", "-2"])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"`--{name}` must be larger than 0, got {value}"):
        parse_arguments(RolloutArguments, [*REQUIRED[RolloutArguments], f"--{name}", value])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_frames", "0"], r"`--num_frames` must be larger than 0, got 0\."),
        (["--episode", "-1"], r"`--episode` and `--start` count from 0, got -1 and 0\."),
        (["--start", "-3"], r"`--episode` and `--start` count from 0, got 0 and -3\."),
    ],
)
def test_ranges_of_imagining_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(ImagineArguments, REQUIRED[ImagineArguments] + arguments)
