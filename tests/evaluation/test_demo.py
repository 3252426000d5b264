"""`evaluation/demo.py`: tries until a success, the same episode imagined, and an honest report."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import evaluation.demo_stages
import evaluation.protocol
from evaluation.arguments import RolloutArguments, parse_arguments
from evaluation.demo import DemoArguments, find_checkpoint, main
from evaluation.demo_stages import ROOT
from evaluation.imagine_arguments import ImagineArguments
from evaluation.protocol import EpisodeKey
from tests.evaluation.made_up_run import make_up_run

IMAGINED = {
    "num_frames": 10,
    "seconds_per_frame": 0.3456,
    "entropy_nats": 0.125,
    "psnr_db": {"imagined": 21.456, "copy_last_frame": 17.5, "copy_last_reconstruction": 16.25, "reconstruction": 28},
}


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "processor_config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    (folder / "data_card.json").write_text(json.dumps({"cameras": ["wrist", "agentview"]}))
    return folder


@pytest.fixture
def simulator(tmp_path, monkeypatch):
    """Instead of the stages' processes: how each initial state ends, and the options that the stages were given."""
    pretended = SimpleNamespace(outcomes={}, acted=[], imagined=[], failing=None)

    def run(command, cwd, check):
        assert (ROOT / command[1]).is_file() and cwd == ROOT
        if command[1] == pretended.failing:
            return SimpleNamespace(returncode=3)
        if command[1] == "evaluation/run.py":
            options = parse_arguments(RolloutArguments, command[2:])
            key = EpisodeKey(options.suite[0], options.task_ids[0], options.first_state)
            pretended.acted.append(options)
            folder = make_up_run(Path(options.output_dir), {key: pretended.outcomes[key.initial_state]})
            (folder / "videos").mkdir()
            (folder / "videos" / f"{key.name}.mp4").write_text(f"film of {key.name}")
        else:
            assert command[1] == "evaluation/imagine.py"
            options = parse_arguments(ImagineArguments, command[2:])
            pretended.imagined.append(options)
            (Path(options.rollouts) / "imagined.json").write_text(json.dumps(IMAGINED))
            (Path(options.rollouts) / "videos" / f"{options.names[0]}_imagined.mp4").write_text("imagined film")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(evaluation.demo_stages.subprocess, "run", run)
    monkeypatch.setattr(evaluation.protocol, "find_task", lambda suite, task_id: SimpleNamespace(task_id=task_id))
    return pretended


def run_demo(checkpoint, folder, *flags):
    """Exit code and report."""
    code = main(["--output_dir", str(folder), "--checkpoint", str(checkpoint), *flags])
    return code, (folder / "report.md").read_text()


def test_the_first_success_ends_the_tries(checkpoint, simulator, tmp_path):
    simulator.outcomes = {5: "step_limit", 6: "success"}
    flags = ["--suite", "libero_goal", "--task_id", "4", "--first_state", "5", "--temperature", "0.9"]
    code, text = run_demo(checkpoint, tmp_path / "out", *flags)
    assert code == 0
    acted = [(options.checkpoint, options.first_state, options.episodes) for options in simulator.acted]
    assert acted == [(str(checkpoint), 5, 1), (str(checkpoint), 6, 1)]
    assert all(options.traces and options.videos == "all" for options in simulator.acted)
    (imagined,) = simulator.imagined
    assert (imagined.rollouts, imagined.names) == (simulator.acted[1].output_dir, ["libero_goal_task4_state6"])
    assert (imagined.checkpoint, imagined.camera, imagined.temperature) == (str(checkpoint), "wrist", 0.9)
    assert (tmp_path / "out" / "rollout.mp4").read_text() == "film of libero_goal_task4_state6"
    assert (tmp_path / "out" / "imagined.mp4").read_text() == "imagined film"
    for piece in (
        f'Task 4 of libero_goal, "task 4 of libero_goal", by the checkpoint `{checkpoint}`',
        "**Success at try 2.**",
        "| 5 | step limit | 30 | 6.0 | 0.500 |",
        "| 6 | success | 10 | 2.0 | 0.500 |",
        "Video of initial state 6: rollout.mp4.",
        "given the first frame of initial state 6 and the 10 actions",
        "imagined from imagined ones, drawn at temperature 0.9: 0.35 s",
        "0.35 s a frame, mean token entropy 0.12 nats",
        "| imagined | 21.46 |",
        "| floor: first frame repeated | 17.50 |",
        "| ceiling: real frames through the tokenizer | 28.00 |",
        "| act_state5 | ",
        f"`python evaluation/run.py --checkpoint {checkpoint} --suite libero_goal --task_ids 4 --first_state 6 ",
        "All stages: ",
        f'AutoProcessor.from_pretrained("{checkpoint}")',
    ):
        assert piece in text, piece


def test_without_a_success_that_is_what_it_says(checkpoint, simulator, tmp_path, caplog):
    simulator.outcomes = dict.fromkeys(range(3), "step_limit")
    code, text = run_demo(checkpoint, tmp_path / "out")
    assert code == 1 and "No try succeeded; report.md names them." in caplog.text
    assert "**No success in 3 tries.**" in text and text.count("| step limit |") == 3
    assert (tmp_path / "out" / "rollout.mp4").read_text() == "film of libero_object_task0_state0"
    assert "**No success in the only try.**" in run_demo(checkpoint, tmp_path / "one", "--tries", "1")[1]


def test_finished_tries_are_kept_until_the_weights_change(checkpoint, simulator, tmp_path):
    simulator.outcomes = {0: "step_limit", 1: "success"}
    simulator.failing = "evaluation/imagine.py"
    with pytest.raises(SystemExit) as error:
        run_demo(checkpoint, tmp_path / "out")
    assert error.value.code == 3 and len(simulator.acted) == 2 and not (tmp_path / "out" / "report.md").exists()
    simulator.failing = None
    code, text = run_demo(checkpoint, tmp_path / "out")
    assert code == 0 and len(simulator.acted) == 2 and len(simulator.imagined) == 1
    assert run_demo(checkpoint, tmp_path / "out") == (code, text)
    assert len(simulator.acted) == 2 and len(simulator.imagined) == 1

    (checkpoint / "model.safetensors").write_text("trained on")
    simulator.outcomes = {0: "success"}
    code, text = run_demo(checkpoint, tmp_path / "out")
    assert len(simulator.acted) == 3 and len(simulator.imagined) == 2
    assert "**Success at try 1.**" in text and "act_state1" not in text


def test_a_checkpoint_that_is_not_there_is_refused(checkpoint, simulator, tmp_path):
    advice = r"Fetch the whole repository again, or train a checkpoint with `make demo-train` and give `--checkpoint o"
    with pytest.raises(
        ValueError, match=rf"`no/such` shall hold the checkpoint that acts, and does not exist\. {advice}"
    ):
        main(["--output_dir", str(tmp_path / "out"), "--checkpoint", "no/such"])
    (checkpoint / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint` shall .* and lacks `processor_config\.json`\. Fetch"):
        run_demo(checkpoint, tmp_path / "out")
    assert not simulator.acted
    assert list((tmp_path / "out").iterdir()) == []


def test_a_checkpoint_is_looked_for_here_and_in_the_checkout(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("checkpoint") == checkpoint  # stages run in the checkout: they need the whole path
    monkeypatch.setattr("evaluation.demo.ROOT", tmp_path)
    assert str(find_checkpoint("checkpoint")) == "checkpoint"
    monkeypatch.chdir(checkpoint)
    assert str(find_checkpoint("checkpoint")) == "checkpoint"


def test_tries_beyond_the_benchmark_are_refused():
    with pytest.raises(
        ValueError, match=r"has 50 benchmark initial states; 3 tries from state 48 on need more\. Lower"
    ):
        parse_arguments(DemoArguments, ["--first_state", "48"])
    with pytest.raises(ValueError, match=r"`--tries` must be larger than 0, got 0"):
        parse_arguments(DemoArguments, ["--tries", "0"])


def test_the_demo_says_what_it_does(tmp_path):
    """A script's own words reach the terminal, also where no test runner catches them."""
    program = (
        "import sys, evaluation.demo as demo\n"
        "demo.run_demo = lambda arguments, output: demo.logger.info('at work') is None\n"
        f"sys.exit(demo.main(['--output_dir', r'{tmp_path}']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "at work" in done.stderr
    assert "done: report.md, rollout.mp4 and imagined.mp4" in done.stderr
