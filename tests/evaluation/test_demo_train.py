"""`evaluation/demo_train.py`: the commands of the whole road, and what it leaves."""

import json

import pytest

import evaluation.demo_train
from evaluation.arguments import RolloutArguments
from evaluation.arguments import parse_arguments as parse_evaluation
from evaluation.demo_stages import ROOT
from evaluation.demo_train import DemoTrainArguments, choose_rollout_video, list_stages, main, write_report
from evaluation.imagine_arguments import ImagineArguments
from evaluation.record_demonstrations import RecordingArguments
from train.argument_parsing import parse_arguments as parse_training
from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments
from train.pretokenize_arguments import PretokenizeArguments
from train.vqgan_arguments import VQGANArguments


def test_every_stage_is_a_command_that_its_script_takes(tmp_path):
    arguments = DemoTrainArguments(
        task_id=4, episodes=5, train_vqgan=True, vqgan_steps=6, training_steps=7, rollouts=8, num_workers=3
    )
    commands = {stage.name: stage.command for stage in list_stages(arguments, tmp_path)}
    assert all((ROOT / command[0]).is_file() for command in commands.values())
    options = {name: command[1:] for name, command in commands.items()}

    recorded = parse_evaluation(RecordingArguments, options["record"])
    assert (recorded.task_ids, recorded.episodes, recorded.num_workers) == ([4], 5, 3)
    held_out = parse_evaluation(RecordingArguments, options["record_held_out"])
    assert (held_out.task_ids, held_out.episodes, held_out.placements) == ([4], 1, "random")
    assert held_out.first_seed > recorded.first_seed + 1000 and held_out.out != recorded.out
    (vqgan,) = parse_training([VQGANArguments], options["vqgan"])
    assert (vqgan.demonstrations, vqgan.max_steps) == ([recorded.out], 6)
    (tokens,) = parse_training([PretokenizeArguments], options["pretokenize"])
    assert (tokens.demonstrations, tokens.vq_model) == ([recorded.out], vqgan.output_dir)
    recipe = str(ROOT / options["train"][0])
    classes = [ModelArguments, DataArguments, WorldVLATrainingArguments]
    without_bf16 = options["train"][1:] + ["--bf16", "false", "--use_cpu", "true"]
    _, data, training = parse_training(classes, [recipe, *without_bf16])
    assert (data.tokens, training.max_steps) == (tokens.output_dir, 7)
    acted = parse_evaluation(RolloutArguments, options["rollout"])
    assert (acted.checkpoint, acted.task_ids, acted.episodes) == (training.output_dir, [4], 8)
    imagined = parse_evaluation(ImagineArguments, options["imagine"])
    assert (imagined.checkpoint, imagined.demonstrations) == (training.output_dir, held_out.out)


def test_the_vqgan_that_comes_along_saves_a_stage(tmp_path):
    stages = list_stages(DemoTrainArguments(), tmp_path)
    assert [stage.name for stage in stages][:4] == ["record", "record_held_out", "pretokenize", "train"]
    (tokens,) = parse_training([PretokenizeArguments], stages[2].command[1:])
    assert (ROOT / tokens.vq_model / "vq_model" / "config.json").is_file()
    write_outputs(tmp_path)
    text = write_report(DemoTrainArguments(), tmp_path, RECORD).read_text()
    assert f"VQ-GAN: `{tokens.vq_model}`" in text and "VQ-GAN reconstruction" not in text


@pytest.mark.parametrize("name", ["episodes", "vqgan_steps", "training_steps", "rollouts", "num_workers"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"`--{name}` must be larger than 0, got 0"):
        parse_evaluation(DemoTrainArguments, [f"--{name}", "0"])


# What the demo leaves

RECORD = {
    "record": {"command": ["evaluation/record.py", "--a", "1"], "seconds": 90.4, "done": True, "peak_gib": 1.25},
    "train": {"command": ["train/run.py"], "seconds": 209.6, "done": True, "peak_gib": 3.14},
}
ROLLOUTS = [
    {"task_id": 2, "initial_state": state, "success": state > 0, "video": f"libero_object_task2_state{state}.mp4"}
    for state in range(3)
]


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_outputs(folder):
    """What the stages write, made up."""
    write_lines(folder / "rollouts" / "episodes.jsonl", ROLLOUTS)
    for record in ROLLOUTS:
        (folder / "rollouts" / "videos").mkdir(exist_ok=True)
        (folder / "rollouts" / "videos" / record["video"]).write_text(record["video"])
    (folder / "rollouts" / "summary.json").write_text(json.dumps({"successes": 3, "episodes": 5}))
    psnr = {"imagined": 21.456, "copy_last_frame": 17.5, "copy_last_reconstruction": 16.25, "reconstruction": 28.0}
    imagined = {"num_frames": 123, "seconds_per_frame": 0.3456, "psnr_db": psnr}
    (folder / "imagined.json").write_text(json.dumps(imagined))
    losses = [{"reconstruction": 0.5, "perplexity": 3.0}, {"reconstruction": 0.25, "perplexity": 40.0}]
    write_lines(folder / "vqgan" / "log.jsonl", losses)
    training = [
        {"loss_action": 5.5, "loss_world_model": 6.5, "step": 1},
        {"eval_val_ind_loss_action": 4.0, "eval_val_ind_accuracy_action": 0.1},
        {"loss_action": 1.5, "loss_world_model": 2.5, "step": 9},
        {"eval_val_ind_loss_action": 2.0, "eval_val_ind_accuracy_action": 0.75},
        {"train_runtime": 12.0},
    ]
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "training_log.json").write_text(json.dumps(training))


def test_the_report_holds_the_numbers(tmp_path):
    write_outputs(tmp_path)
    path = write_report(
        DemoTrainArguments(task_id=2, suite="libero_goal", episodes=16, train_vqgan=True), tmp_path, RECORD
    )
    assert path == tmp_path / "report.md"
    text = path.read_text()
    for piece in (
        "Task 2 of libero_goal; 16 expert episodes",
        "**3/5 (60 %, 95 % interval 23 to 88 %)**",
        "123 frames from one real frame",
        "0.35 s a frame",
        "| imagined | 21.46 |",
        "| floor: first frame repeated | 17.50 |",
        "| the same through the tokenizer | 16.25 |",
        "| ceiling: real frames through the tokenizer | 28.00 |",
        "| VQ-GAN reconstruction | 0.500 | 0.250 |",
        "| VQ-GAN codes in use (perplexity) | 3.000 | 40.000 |",
        "| actions, nats per token | 5.500 | 1.500 |",
        "| next frame, nats per token | 6.500 | 2.500 |",
        "| held-out trajectories: loss_action |  | 2.000 |",
        "| held-out trajectories: accuracy_action |  | 0.750 |",
        "| record | 90 | 1.2 | `python evaluation/record.py --a 1` |",
        "| train | 210 | 3.1 | `python train/run.py` |",
        "All stages: 5.0 minutes; most memory at once, all processes: 3.1 GiB.",
        f'AutoProcessor.from_pretrained("{tmp_path / "checkpoint"}")',
    ):
        assert piece in text, piece
    assert "loss_world_model |" not in text  # the held-out log has none


@pytest.mark.parametrize(
    ("successes", "chosen"),
    [([False, True, True], 1), ([False] * 3, 0), ([True] * 3, 0)],
)
def test_the_first_success_is_shown(tmp_path, successes, chosen):
    records = [record | {"success": success} for record, success in zip(ROLLOUTS, successes, strict=True)]
    write_lines(tmp_path / "rollouts" / "episodes.jsonl", records)
    assert choose_rollout_video(tmp_path) == tmp_path / "rollouts" / "videos" / ROLLOUTS[chosen]["video"]


def test_the_demo_lands_where_it_was_started(tmp_path, monkeypatch):
    class Pretended:
        record = RECORD

        def __init__(self, output, num_stages):
            # The stages run in the checkout: a relative folder would be another one there.
            assert output == tmp_path / "out" and output.is_dir()
            assert num_stages == 6
            self.output = output

        def take(self, stage):
            if stage.name == "imagine":
                assert stage.command[-1] == str(tmp_path / "out" / "imagined.mp4")
                write_outputs(self.output)

    monkeypatch.setattr(evaluation.demo_train, "Road", Pretended)
    monkeypatch.chdir(tmp_path)
    main(["--output_dir", "out"])
    assert (tmp_path / "out" / "rollout.mp4").read_text() == "libero_object_task2_state1.mp4"
    assert "3/5" in (tmp_path / "out" / "report.md").read_text()
