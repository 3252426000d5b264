"""Rollouts during training: the command that is run, what is logged of it, and that training survives its failure."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoProcessor

from evaluation.arguments import RolloutArguments, parse_arguments
from evaluation.checkpoints import choose_cameras
from tests.conftest import DATASET
from train import simulator_rollouts
from train.arguments import WorldVLATrainingArguments
from train.simulator_rollouts import FOLDER, RolloutPlan, SimulatorRollouts, run_rollouts

from .test_trainer import assert_equal_weights, make_trainer

PLAN = RolloutPlan("libero_object", (0, 3), episodes=2, num_envs=2, image_size=32, dataset_name=DATASET)
CARD = {"dataset_name": DATASET, "cameras": ["agentview", "wrist"]}
SUMMARY = {"episodes": 4, "successes": 3, "success_rate": 0.75, "interval_95": [0.3, 0.95]}


def test_the_evaluation_understands_the_command():
    script, *flags = PLAN.flags(Path("run/checkpoint"), Path("run"))
    arguments = parse_arguments(RolloutArguments, flags)
    assert (simulator_rollouts.ROOT / script).is_file()
    assert (arguments.suite, arguments.task_ids, arguments.episodes) == (["libero_object"], [0, 3], 2)
    assert (arguments.checkpoint, arguments.output_dir, arguments.dataset_name) == ("run/checkpoint", "run", DATASET)
    assert (arguments.camera, arguments.image_size, arguments.num_envs) == (None, 32, 2)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Lets a script be run in the place of evaluation/run.py."""

    def put(code):
        (tmp_path / "evaluation").mkdir(exist_ok=True)
        (tmp_path / "evaluation" / "run.py").write_text(code)
        monkeypatch.setattr(simulator_rollouts, "ROOT", tmp_path)

    return put


def test_the_evaluation_is_no_rank_of_the_training(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    stand_in(
        "import json, os, sys\n"
        "output = sys.argv[sys.argv.index('--output_dir') + 1]\n"
        "json.dump(dict(os.environ), open(output + '/summary.json', 'w'))\n"
    )
    seen = run_rollouts(PLAN, tmp_path, tmp_path / "out")
    assert "HOME" in seen and not {"RANK", "ACCELERATE_USE_FSDP"} & set(seen)


def test_a_failed_evaluation_is_told_and_does_not_end_training(stand_in, tmp_path, caplog):
    stand_in("raise SystemExit('no renderer here')")
    assert run_rollouts(PLAN, tmp_path, tmp_path / "out") is None
    assert "Rollouts failed with exit code 1; training goes on without them.\nno renderer here" in caplog.text


def test_success_is_logged_and_training_is_as_without(make_model, samples, processor, tmp_path, monkeypatch):
    tried = []

    def run(command, **_):
        folder = Path(command[command.index("--checkpoint") + 1])
        assert AutoProcessor.from_pretrained(folder).model_config()
        assert choose_cameras(str(folder), None) == ("agentview", "wrist")
        tried.append((folder.parent.name, AutoModelForCausalLM.from_pretrained(folder)))
        (folder.parent / "summary.json").write_text(json.dumps(SUMMARY))
        return subprocess.CompletedProcess(command, 1, "", "one episode ended in an error")

    plain, model = make_model(), make_model()
    settings = {"max_steps": 4, "save_strategy": "no"}
    make_trainer(plain, samples, tmp_path / "plain", **settings).train()
    monkeypatch.setattr(simulator_rollouts.subprocess, "run", run)
    trainer = make_trainer(model, samples, tmp_path / "tried", **settings)
    trainer.add_callback(SimulatorRollouts(trainer, processor, CARD, PLAN, every=2))
    trainer.train()
    assert [name for name, _ in tried] == ["step-2", "step-4"]
    assert_equal_weights(tried[1][1], model)
    assert_equal_weights(plain, model)
    lines = [line for line in trainer.state.log_history if "eval_rollout_success" in line]
    assert [(line["step"], line["eval_rollout_success"]) for line in lines] == [(2, 0.75), (4, 0.75)]
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [1, 2, 3, 4]
    assert lines[0]["eval_rollout_success_low"] == 0.3 and lines[0]["eval_rollout_episodes"] == 4
    assert not list((tmp_path / "tried" / FOLDER).rglob("checkpoint"))


def plan_for(processor, **changes):
    arguments = SimpleNamespace(
        rollout_suite="libero_goal",
        rollout_task_ids=[1],
        rollout_episodes=3,
        rollout_num_envs=1,
        device=SimpleNamespace(type="cpu"),
        **changes,
    )
    return RolloutPlan.for_training(arguments, CARD, processor)


def test_the_plan_follows_data_and_options(processor, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert plan_for(processor) == RolloutPlan("libero_goal", (1,), 3, 1, 32, DATASET, "cpu")
    monkeypatch.setattr(processor, "image_size", (32, 64))
    with pytest.raises(ValueError, match="square images, but the tokens show 32 x 64"):
        plan_for(processor)


def test_a_missing_simulator_is_told_before_the_first_step(processor, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the simulator: `pip install worldvla\[libero,eval\]`"):
        plan_for(processor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_every": 5}, "`--rollout_every` and `--rollout_suite` go together"),
        ({"rollout_suite": "libero_goal"}, "`--rollout_every` and `--rollout_suite` go together"),
        (
            {"rollout_every": 5, "rollout_suite": "libero_gaol"},
            "Unknown suite `libero_gaol`.*Did you mean `libero_goal",
        ),
        ({"rollout_episodes": 0}, "`--rollout_episodes` must be larger than 0"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        WorldVLATrainingArguments(output_dir=str(tmp_path), use_cpu=True, **changes)


@pytest.mark.slow
@pytest.mark.libero
def test_a_real_simulator_tries_a_checkpoint(make_model, processor, tmp_path):
    pytest.importorskip("libero", reason="needs the simulator")
    make_model(max_position_embeddings=512).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    plan = RolloutPlan("libero_object", (0,), image_size=32, dataset_name=DATASET)
    flags = [*plan.flags(tmp_path / "checkpoint", tmp_path / "out"), "--max_steps", "3"]
    done = subprocess.run([sys.executable, *flags], cwd=simulator_rollouts.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["episodes"], summary["successes"]) == (1, 0)
