import pytest

from train.ablation import AblationArguments
from train.argument_parsing import parse_arguments
from train.arguments import DataArguments, ModelArguments, WorldVLATrainingArguments
from train.pretokenize_arguments import PretokenizeArguments
from train.run import RUN_OPTIONS
from train.run_perceptual import PerceptualArguments
from train.vqgan_arguments import VQGANArguments

CLASSES = [ModelArguments, DataArguments, WorldVLATrainingArguments]


def write_recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_flags_beat_the_recipe_and_the_recipe_beats_defaults(tmp_path):
    recipe = write_recipe(tmp_path, "hidden_size: 64\nnum_hidden_layers: 3\nlearning_rate: 1e-3\nswin_norm: true\n")
    model, data, training = parse_arguments(CLASSES, [recipe, "--tokens", "t", "--hidden_size", "32"])
    assert (model.hidden_size, model.num_hidden_layers, model.swin_norm) == (32, 3, True)
    assert model.intermediate_size == ModelArguments().intermediate_size
    assert data.tokens == "t"
    assert training.learning_rate == pytest.approx(1e-3)


def test_recipe_lists_become_several_values(tmp_path):
    recipe = write_recipe(tmp_path, "demonstrations: [a.hdf5, b.hdf5]\noutput_dir: out\n")
    (arguments,) = parse_arguments([VQGANArguments], [recipe])
    assert arguments.demonstrations == ["a.hdf5", "b.hdf5"]


def test_shipped_recipes_parse():
    from pathlib import Path

    import train

    recipes = sorted(Path(train.__file__).parent.glob("recipes/*.yaml"))
    suites = {f"libero_{suite}_{size}" for suite in ("spatial", "object", "goal", "10") for size in (256, 512)}
    others = {"demo", "debug", "lora_24gb", "vqgan_tiny", "vqgan_small", "vqgan_chameleon"}
    assert {recipe.stem for recipe in recipes} >= suites | others
    for recipe in recipes:
        if recipe.stem.startswith("vqgan"):
            parse_arguments([VQGANArguments], [str(recipe), "--output_dir", "o"])
        else:
            parse_arguments(CLASSES, [str(recipe), "--tokens", "t", "--bf16", "false"])  # which not every machine has


def test_a_recipe_extends_the_one_beside_it(tmp_path):
    (tmp_path / "base.yaml").write_text("hidden_size: 64\nchunk_size: 7\n")
    recipe = write_recipe(tmp_path, "extends: base.yaml\nchunk_size: 9\n")
    model, data, _ = parse_arguments(CLASSES, [recipe, "--tokens", "t"])
    assert (model.hidden_size, data.chunk_size) == (64, 9)


def test_recipes_that_extend_nothing_or_each_other_are_refused(tmp_path):
    recipe = write_recipe(tmp_path, "extends: base.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"No recipe at .*base.yaml` \(`extends` in .*recipe.yaml`\)"):
        parse_arguments(CLASSES, [recipe])
    (tmp_path / "base.yaml").write_text("extends: recipe.yaml\n")
    with pytest.raises(ValueError, match="extends itself, by way of .*recipe.yaml, .*base.yaml. Take one out"):
        parse_arguments(CLASSES, [recipe])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden_size: 3\n", r"Unknown key in recipe .*`hiden_size`.*Did you mean `hidden_size`\?"),
        ("- 3\n", "must be a mapping of option: value, got list"),
    ],
)
def test_bad_recipes_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(CLASSES, [write_recipe(tmp_path, text)])


def test_missing_recipe_is_named():
    with pytest.raises(FileNotFoundError, match="No recipe at `nowhere.yaml`"):
        parse_arguments(CLASSES, ["nowhere.yaml"])


def test_unknown_flag_names_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown flag `chunk_sise`.*Did you mean `chunk_size`\?"):
        parse_arguments(CLASSES, ["--tokens", "t", "--chunk_sise", "3"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DataArguments(tokens="t", chunk_size=0), "`--chunk_size` must be larger than 0, got 0"),
        (lambda: DataArguments(tokens="t", tail="cut"), "Unknown tail `cut`"),
        (
            lambda: DataArguments(tokens="t", policy_samples=False, world_model_samples=False),
            "Nothing to train",
        ),
        (lambda: ModelArguments(world_model_loss_weight=-0.1), "must not be negative, got -0.1"),
        (lambda: ModelArguments(world_model_loss_weight=float("nan")), "must not be negative, got nan"),
        (lambda: ModelArguments(lora_rank=4), "`--lora_rank` adapts an existing model: give one as"),
        (lambda: ModelArguments("c", dtype="bfloat16"), "would round small updates .* or train adapters"),
        (lambda: ModelArguments("c", dtype="float16"), "Unknown dtype `float16`.*Did you mean `bfloat16`"),
        (lambda: VQGANArguments("o", ["d"], preset="tiny"), "Unknown VQ-GAN preset `tiny`.*Did you mean `tiny-128`"),
        (lambda: VQGANArguments("o", ["d"], max_steps=0), "`--max_steps` must be larger than 0"),
        (lambda: VQGANArguments("o", ["d"], l2_weight=-1), "`--l2_weight` must not be negative, got -1"),
        (lambda: VQGANArguments("o", ["d"], ema_decay=1.0), r"`--ema_decay` must lie in \[0, 1\), got 1.0"),
        (lambda: VQGANArguments("o", ["d"], regions=["face"]), "Unknown region provider `face`.*Did you mean `faces`"),
        (
            lambda: VQGANArguments("o", ["d"], regions=["faces:-1"]),
            "`--regions faces:-1`: expected each provider once",
        ),
        (lambda: VQGANArguments("o", ["d"], regions=["faces", "faces:2"]), "`--regions faces:2`: expected each"),
        (lambda: VQGANArguments("o", ["d"], regions=["faces:much"]), "with a weight above 0"),
        (lambda: PretokenizeArguments(["d"]), "exactly one of `--vq_model`"),
        (lambda: PretokenizeArguments(["d"], vq_model="v", processor="p"), "exactly one of `--vq_model`"),
        (lambda: PretokenizeArguments(["d"], vq_model="v", split="offical"), "Did you mean `official`"),
        (lambda: PretokenizeArguments(["d"], vq_model="v", validation_fraction=1.0), r"must lie in \[0, 1\)"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_trainers_own_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor 0.1` would replace the two-role loss"):
        WorldVLATrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1, use_cpu=True)


def test_the_form_of_the_loss_is_checked():
    with pytest.raises(ValueError, match="Unknown form of the loss `offical`.*Did you mean `official`"):
        ModelArguments(loss_form="offical")


@pytest.mark.parametrize(
    "classes", [RUN_OPTIONS, [PretokenizeArguments], [VQGANArguments], [PerceptualArguments], [AblationArguments]]
)
def test_every_command_can_say_its_options(classes, capsys):
    with pytest.raises(SystemExit) as leaving:
        parse_arguments(classes, ["--help"])
    assert leaving.value.code == 0
    assert "show this help message" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--action_dead_band", "0.1", "-0.1"], "at least 0"),
        (["--attn_implementation", "eagre"], "Did you mean `eager`"),
        (["--image_embeddings_from_codebook", "true", "--model_name_or_path", "m"], "brings its own"),
        (["--num_action_bins", "1"], "at least 2"),
    ],
)
def test_options_of_a_new_model_are_checked(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(RUN_OPTIONS, ["--tokens", "t", *flags])
