"""The grid of the ablation: what is trained, kept and refused, and the numbers of its table."""

import json
from types import SimpleNamespace

import pytest

from train import ablation
from train.ablation import AblationArguments, Cell, list_cells, list_flags, run_ablation
from train.ablation_report import format_table, mean_over_seeds, success_rate, summarise
from train.argument_parsing import parse_arguments
from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments

METRIC = "val_ind_loss_action"


def arguments(tmp_path, **changes):
    (tmp_path / "recipe.yaml").write_text("hidden_size: 32\n")
    settings = {"max_steps": 7, "metrics": [METRIC], "overrides": ["learning_rate=1e-3", "lora_targets=q_proj k_proj"]}
    folders = {"recipe": str(tmp_path / "recipe.yaml"), "tokens": "tokens", "output_dir": str(tmp_path / "out")}
    return AblationArguments(**(folders | settings | changes))


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Stands in for the scripts: writes the scores that a run would; returns what was run."""
    pytest.importorskip("matplotlib", reason="optional: the picture")
    commands = []

    def run(command):
        options = {name: value for name, value in zip(command, command[1:], strict=False) if name.startswith("--")}
        if options.get("--seed") == "13":
            return 3
        folder = tmp_path / options["--output_dir"]
        folder.mkdir(parents=True)
        score = 1.0 + int(options["--seed"]) / 10 + (options["--world_model_samples"] == "true")
        (folder / "metrics.json").write_text(json.dumps({f"eval_{METRIC}": score, "step": 7}))
        (folder / "data_card.json").write_text(json.dumps({"dataset_name": "made_up", "cameras": ["wrist"]}))
        commands.append(command)
        return 0

    monkeypatch.setattr(ablation, "run_command", run)
    tokens = SimpleNamespace(card={"splits": {"train": 3, "val_ind": 1}})
    monkeypatch.setattr(ablation.TokenizedEpisodes, "load", lambda folder: tokens)
    return commands


def test_the_grid_is_the_papers_without_doubles(tmp_path):
    cells = [cell.name for cell in list_cells(arguments(tmp_path))]
    assert cells == ["policy-k1-mask", "policy-k5-mask", "policy-k5-causal", *cells[3:]]
    assert cells[3:] == ["joint-k1-mask", "joint-k5-mask", "joint-k5-causal"]


def test_cells_of_the_grid_can_be_chosen_by_name(tmp_path):
    chosen = arguments(tmp_path, cells=["joint-k5-causal", "policy-k1-mask"])
    assert list_cells(chosen) == [Cell(False, 1, "mask"), Cell(True, 5, "causal")]
    with pytest.raises(ValueError, match="combination in `--cells`: `joint-k5-mark`.*Did you mean `joint-k5-mask`"):
        arguments(tmp_path, cells=["joint-k5-mark"])


def test_every_switch_reaches_the_training(tmp_path):
    flags = list_flags(arguments(tmp_path), Cell(False, 5, "causal"), seed=4)
    classes = [ModelArguments, DataArguments, WorldVLATrainingArguments]
    model, data, training = parse_arguments(classes, ["--tokens", "t", *flags])
    assert (data.world_model_samples, data.chunk_size, model.use_action_attention_mask) == (False, 5, False)
    assert (training.seed, training.max_steps, training.learning_rate) == (4, 7, 1e-3)
    assert model.lora_targets == ["q_proj", "k_proj"]


def test_finished_runs_are_kept_and_more_seeds_add_to_them(trained, tmp_path):
    run_ablation(arguments(tmp_path, seeds=[0]))
    assert len(trained) == 6
    rows = run_ablation(arguments(tmp_path, seeds=[0, 1]))
    assert len(trained) == 12
    assert [row["estimates"][METRIC]["value"] for row in rows] == pytest.approx([1.05] * 3 + [2.05] * 3)
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert f"| world model | K | attention | seeds | {METRIC} |" in table and "7 steps of recipe.yaml" in table
    assert "| off | 5 | causal | 2 | 1.05 [0.4147, 1.685] |" in table  # t(0.975, 1) = 12.706
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 5000
    stored = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert stored["settings"]["seeds"] == [0, 1] and stored["cells"] == json.loads(json.dumps(rows))


def test_a_run_with_other_options_is_refused(trained, tmp_path):
    run_ablation(arguments(tmp_path, seeds=[0]))
    with pytest.raises(ValueError, match=r"policy-k1-mask/seed-0` was trained with other options \(flags\). Choose"):
        run_ablation(arguments(tmp_path, seeds=[0], max_steps=8))
    changed = arguments(tmp_path, seeds=[0])
    (tmp_path / "recipe.yaml").write_text("hidden_size: 64\n")
    with pytest.raises(ValueError, match=r"was trained with other options \(recipe\)"):
        run_ablation(changed)


def test_a_failed_run_is_named_and_the_others_stay(trained, tmp_path):
    with pytest.raises(RuntimeError, match="policy-k1-mask with seed 13 ended with exit code 3. What is finished is"):
        run_ablation(arguments(tmp_path, seeds=[0, 13]))
    assert len(trained) == 6 and (tmp_path / "out" / "ablation.md").is_file()


def test_unknown_columns_are_refused_before_training(trained, tmp_path):
    with pytest.raises(ValueError, match="Unknown metric of `--metrics`: `val_ood_loss`.*Did you mean `val_ind_loss`"):
        run_ablation(arguments(tmp_path, metrics=["val_ood_loss"]))
    assert not trained


@pytest.mark.parametrize("missing", ["scipy", "matplotlib"])
def test_missing_packages_are_told_before_training(trained, tmp_path, monkeypatch, missing):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ImportError, match=rf"need the package {missing}: `pip install worldvla\[eval\]`"):
        run_ablation(arguments(tmp_path))
    assert not trained


def test_rollouts_become_a_column(trained, tmp_path, monkeypatch, processor):
    plans = []

    def roll(plan, checkpoint, output):
        plans.append(plan)
        return {"successes": 3, "episodes": 4, "errors": 0}

    monkeypatch.setattr(ablation, "run_rollouts", roll)
    monkeypatch.setattr(ablation.WorldVLAProcessor, "from_pretrained", lambda folder: processor)
    chosen = {"seeds": [0, 1], "chunk_sizes": [5], "attention": ["mask"], "world_model": ["on"]}
    (row,) = run_ablation(arguments(tmp_path, suite="libero_goal", task_ids=[2], episodes=4, **chosen))
    assert row["estimates"]["success"]["episodes"] == 8 and row["estimates"]["success"]["value"] == 0.75
    assert (plans[0].suite, plans[0].image_size, plans[0].task_ids) == ("libero_goal", 32, (2,))
    assert "| on | 5 | mask | 2 | 0.75 [0.4093, 0.9285] of 8 |" in (tmp_path / "out" / "ablation.md").read_text()


def test_intervals_by_hand():
    assert mean_over_seeds([2.0]) == (2.0, None, None)
    mean = mean_over_seeds([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.3027, standard error 1 / sqrt(3)
    assert mean == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert success_rate(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert success_rate(0, 10) == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)


def test_scores_that_a_row_lacks_are_said_to_be_missing():
    with_world = {"seed": 0, "metrics": {"eval_a": 1.0, "eval_b": 2.0}, "rollouts": None}
    without = {"seed": 0, "metrics": {"eval_a": 1.0}, "rollouts": None}
    cells = [Cell(True, 1, "mask")._asdict() | {"runs": [with_world]}]
    cells += [Cell(False, 1, "mask")._asdict() | {"runs": [without]}]
    assert "| off | 1 | mask | 1 | 1 | not measured |" in format_table(summarise(cells, ["a", "b"]), ["a", "b"], "T")
    with pytest.raises(ValueError, match="Unknown metric of `--metrics`: `c`. Choose one of: `a`, `b`"):
        summarise(cells, ["c"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": ["masc"]}, "Unknown value of `--attention`: `masc`.*Did you mean `mask`"),
        ({"world_model": []}, "`--world_model` needs values that differ, got"),
        ({"seeds": [1, 1]}, r"`--seeds` needs values that differ, got \[1, 1\]"),
        ({"chunk_sizes": [0]}, "`--chunk_sizes` must be larger than 0, got 0"),
        ({"overrides": ["learning_rate"]}, "expected name=value"),
        ({"overrides": ["learning_rat=1"]}, "Unknown option in `--overrides`:.*Did you mean `learning_rate`"),
        ({"overrides": ["seed=1"]}, "Unknown option in `--overrides`: `seed`"),
        ({"suite": "libero_gaol"}, "Did you mean `libero_goal`"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)
