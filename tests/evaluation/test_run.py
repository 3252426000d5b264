import json

import av
import numpy as np
import pytest

import evaluation.run
from evaluation.arguments import ImagineArguments, RolloutArguments, parse_arguments
from evaluation.checkpoints import fingerprint_checkpoint
from evaluation.report import format_success, markdown_table, success_interval
from evaluation.run import append_line, read_finished, run

RECORD = {"task_id": 0, "initial_state": 0, "success": True, "num_steps": 2}


def rollout(folder, **changes):
    return RolloutArguments(checkpoint="c", output_dir=str(folder), **changes)


class PretendEnv:
    """Stands in for `LiberoEnv`: even initial states succeed at step 2; some resets may fail."""

    opened, resets, broken = [], [], set()

    def __init__(self, suite, task_id, cameras, image_size):
        self.task_id, self.image_size, self.closed = task_id, image_size, False
        self.instruction = f"lift cup {task_id}"
        (self.camera,) = cameras
        self.opened.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def observe(self):
        return {self.camera: np.full((self.image_size, self.image_size, 3), 40 * self.steps, np.uint8)}

    def reset(self, initial_state, seed):
        if (self.task_id, initial_state) in self.broken:
            raise RuntimeError("The simulator stopped.")
        self.resets.append((self.task_id, initial_state, seed))
        self.initial_state, self.steps = initial_state, 0
        return self.observe()

    def step(self, action):
        assert action.shape == (7,)
        self.steps += 1
        return self.observe(), self.initial_state % 2 == 0 and self.steps == 2, {}


@pytest.fixture
def simulator(make_model, processor, monkeypatch):
    """The rollout with a pretended simulator and a tiny checkpoint; the class records what happens to it."""
    monkeypatch.setattr(PretendEnv, "opened", [])
    monkeypatch.setattr(PretendEnv, "resets", [])
    monkeypatch.setattr(PretendEnv, "broken", set())
    monkeypatch.setattr(evaluation.run, "LiberoEnv", PretendEnv)
    monkeypatch.setattr(evaluation.run, "load_checkpoint", lambda folder, device: (make_model(), processor))
    monkeypatch.setattr(evaluation.run, "fingerprint_checkpoint", lambda folder, model: "abc")
    return PretendEnv


def read_lines(folder):
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


# A whole run


def test_a_run_writes_episodes_videos_and_the_summary(simulator, tmp_path):
    arguments = rollout(tmp_path, task_ids=[4], episodes=3, max_steps=3, seed=10, image_size=32, camera="wrist")
    summary = run(arguments)
    assert simulator.resets == [(4, 0, 10), (4, 1, 11), (4, 2, 12)]
    assert [(env.camera, env.image_size, env.closed) for env in simulator.opened] == [("wrist", 32, True)]
    common = {"task_id": 4, "instruction": "lift cup 4"}
    assert read_lines(tmp_path) == [
        {**common, "initial_state": 0, "seed": 10, "success": True, "num_steps": 2},
        {**common, "initial_state": 1, "seed": 11, "success": False, "num_steps": 3},
        {**common, "initial_state": 2, "seed": 12, "success": True, "num_steps": 2},
    ]
    assert (summary["episodes"], summary["successes"], summary["suite"]) == (3, 2, "libero_object")
    assert summary["success_rate"] == pytest.approx(2 / 3)
    assert summary["interval_95"] == success_interval(2, 3)
    assert summary["settings"]["seed"] == 10
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == {**summary, "interval_95": list(summary["interval_95"])}
    names = [f"task4_state{state}.mp4" for state in range(3)]
    assert {path.name for path in tmp_path.iterdir()} == {*names, "episodes.jsonl", "summary.json", "settings.json"}
    with av.open(str(tmp_path / names[0])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3 + 20  # the initial state, two steps, one second of the last frame
    assert frames[0].shape == (384 + 2 * 18, 384, 3)
    assert [round(float(frame[-100:].mean()) / 40) for frame in frames[:4]] == [0, 1, 2, 2]


def test_a_finished_run_does_nothing_more(simulator, tmp_path):
    arguments = rollout(tmp_path, task_ids=[0], episodes=2, max_steps=2, image_size=32)
    first = run(arguments)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    simulator.opened.clear()
    assert run(arguments) == first
    assert simulator.opened == [] and len(simulator.resets) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_run_goes_on_where_it_stopped(simulator, tmp_path):
    arguments = rollout(tmp_path / "cut", task_ids=[0, 1], episodes=2, max_steps=2, image_size=32)
    simulator.broken.add((0, 1))
    with pytest.raises(RuntimeError, match=r"The simulator stopped\."):
        run(arguments)
    assert [record["initial_state"] for record in read_lines(tmp_path / "cut")] == [0]
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert simulator.opened[0].closed

    simulator.broken.clear()
    simulator.resets.clear()
    summary = run(arguments)
    assert simulator.resets == [(0, 1, 1), (1, 0, 0), (1, 1, 1)]
    whole = run(rollout(tmp_path / "whole", task_ids=[0, 1], episodes=2, max_steps=2, image_size=32))
    assert read_lines(tmp_path / "cut") == read_lines(tmp_path / "whole")
    differing = {key for key in summary if summary[key] != whole[key]}
    assert differing == {"settings"}  # only the folder


def test_all_tasks_by_default_and_the_step_limit_of_the_suite(simulator, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.run, "list_tasks", lambda suite: [f"{suite} a", f"{suite} b"])
    monkeypatch.setattr(evaluation.run, "max_steps", {"libero_goal": 4}.__getitem__)
    run(rollout(tmp_path, suite="libero_goal", episodes=2, image_size=32))
    found = [(record["task_id"], record["initial_state"], record["num_steps"]) for record in read_lines(tmp_path)]
    assert found == [(0, 0, 2), (0, 1, 4), (1, 0, 2), (1, 1, 4)]


def test_more_episodes_than_initial_states_are_refused(simulator, tmp_path):
    with pytest.raises(ValueError, match=r"`--episodes` is at most 50, the benchmark's states; got 51\."):
        run(rollout(tmp_path, task_ids=[0], episodes=51))
    assert list(tmp_path.iterdir()) == []


# What an earlier run left


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    arguments = rollout(tmp_path)
    assert read_finished(tmp_path, arguments, "abc") == []
    append_line(tmp_path / "episodes.jsonl", RECORD)
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"task_id": 0, "initial_state": 1, "succ')
    assert read_finished(tmp_path, arguments, "abc") == [RECORD]
    append_line(tmp_path / "episodes.jsonl", RECORD | {"initial_state": 1})
    assert read_finished(tmp_path, arguments, "abc") == [RECORD, RECORD | {"initial_state": 1}]


def test_other_settings_are_refused_by_name(tmp_path):
    read_finished(tmp_path, rollout(tmp_path, seed=1), "abc")
    append_line(tmp_path / "episodes.jsonl", RECORD)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    message = (
        r"holds results of other settings \(max_steps: None -> 9; seed: 1 -> 2\)\. Choose another `--output_dir`\."
    )
    with pytest.raises(ValueError, match=message):
        read_finished(tmp_path, rollout(tmp_path, seed=2, max_steps=9), "abc")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_device_or_a_moved_folder_goes_on(tmp_path):
    read_finished(tmp_path, rollout(tmp_path), "abc")
    append_line(tmp_path / "episodes.jsonl", RECORD)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert read_finished(moved, rollout(moved, device="cuda"), "abc") == [RECORD]


def test_another_checkpoint_at_the_same_place_is_refused(tmp_path):
    read_finished(tmp_path, rollout(tmp_path), "abc")
    with pytest.raises(ValueError, match=r"checkpoint_fingerprint: abc -> def"):
        read_finished(tmp_path, rollout(tmp_path), "def")


def test_more_episodes_of_the_same_run_go_on(tmp_path):
    read_finished(tmp_path, rollout(tmp_path, episodes=1), "abc")
    append_line(tmp_path / "episodes.jsonl", RECORD)
    assert read_finished(tmp_path, rollout(tmp_path, episodes=5), "abc") == [RECORD]


def test_fingerprints_follow_the_weights(tmp_path, make_model):
    make_model().save_pretrained(tmp_path / "one")
    make_model().save_pretrained(tmp_path / "two")
    make_model(hidden_size=16).save_pretrained(tmp_path / "three")
    (tmp_path / "one" / "training_log.json").write_text("[]")
    one, two, three = (fingerprint_checkpoint(str(tmp_path / name), None) for name in ("one", "two", "three"))
    assert one == two != three


# Numbers and tables


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(3, 5, 0.2307, 0.8824), (0, 5, 0.0, 0.4345), (5, 5, 0.5655, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_interval_by_hand(successes, episodes, low, high):
    # (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.96
    assert success_interval(successes, episodes) == pytest.approx((low, high), abs=1e-4)


def test_success_is_told_with_its_interval():
    assert format_success(3, 5) == "3/5 (60 %, 95 % interval 23 to 88 %)"


def test_markdown_table():
    assert markdown_table(["a", "b"], [[1, "x"], [2.5, None]]) == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2.5 | None |"


# Options

REQUIRED = {
    RolloutArguments: ["--checkpoint", "c", "--output_dir", "o"],
    ImagineArguments: ["--checkpoint", "c", "--demonstrations", "d", "--output", "o.mp4"],
}


def test_options_are_read():
    found = parse_arguments(
        RolloutArguments, [*REQUIRED[RolloutArguments], "--task_ids", "3", "5", "--max_steps", "9"]
    )
    assert found == RolloutArguments("c", "o", task_ids=[3, 5], max_steps=9)
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
