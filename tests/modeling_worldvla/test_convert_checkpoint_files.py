"""The weights' half of the converter: every form they come in, everything that can be wrong, and its memory."""

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from modeling_worldvla import WorldVLAForCausalLM, convert_worldvla_weights_to_hf
from modeling_worldvla.convert_weight_files import write_weights
from modeling_worldvla.convert_worldvla_weights_to_hf import ConvertWeightsArguments, convert_checkpoint, main
from tokenization import LIBERO_ACTION_LIMITS, VocabularyLayout

from .official_checkpoint import OFFICIAL_CONFIG, official_shapes, small_weights, write_checkpoint

ROOT = Path(__file__).parents[2]
Q_NORM, K_NORM = (f"model.layers.1.self_attn.{part}_norm.weight" for part in "qk")


@pytest.fixture
def convert(monkeypatch, tmp_path):
    """Convert `checkpoint`; the processor's half is a stand-in of one file."""

    def write_settings(arguments, image_size, config, folder):
        settings = {"vocabulary": VocabularyLayout.official().to_dict(), "image_size": [image_size] * 2}
        settings["action_limits"] = {"libero": LIBERO_ACTION_LIMITS}
        (folder / "processor_config.json").write_text(json.dumps(settings))

    monkeypatch.setattr(convert_worldvla_weights_to_hf, "write_processor", write_settings)

    def run(checkpoint, **options):
        output = tmp_path / "out" / "converted"
        return convert_checkpoint(
            ConvertWeightsArguments(str(checkpoint), "tokenizer", "vqgan", output=str(output), **options)
        )

    yield run
    left = {path.name for path in (tmp_path / "out").glob("*")}
    assert left <= {"converted"}, "something half-written was left"


def refused(convert, tmp_path, checkpoint, message, kind=ValueError):
    with pytest.raises(kind, match=message):
        convert(checkpoint)
    assert not (tmp_path / "out" / "converted").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "shards"), [("safetensors", 1), ("safetensors", 4), ("bin", 1), ("bin", 3)])
def test_every_form_gives_the_same_weights(convert, tmp_path, form, shards, dtype):
    config, weights = small_weights()
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    output = convert(write_checkpoint(tmp_path / "checkpoint", weights, config, form, shards))
    model, report = WorldVLAForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == dtype
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    assert len(list(output.glob("model*.safetensors"))) == shards
    assert (output / "model.safetensors.index.json").exists() == (shards > 1)
    assert output.stat().st_mode & 0o777 == 0o755


def test_files_of_old_torch_and_of_several_dtypes(convert, tmp_path):
    config, weights = small_weights()
    weights[Q_NORM] = weights[Q_NORM].double().to(torch.bfloat16)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", weights, config, "bin")
    torch.save(weights, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    output = convert(checkpoint)
    assert json.loads((output / "config.json").read_text())["dtype"] == "float32"
    with safe_open(output / "model.safetensors", framework="pt") as file:
        assert file.get_tensor(Q_NORM).dtype == torch.bfloat16
        assert all(torch.equal(file.get_tensor(name), weight) for name, weight in weights.items())


def test_what_the_model_makes_itself_and_an_old_vqgan_are_left_out(convert, tmp_path):
    config, weights = small_weights()
    extra = {"model.vqmodel.encoder.conv_in.weight": torch.full((2,), float("nan"))}
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    output = convert(write_checkpoint(tmp_path / "checkpoint", weights | extra, config))
    with safe_open(output / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(weights)


@pytest.mark.parametrize("shards", [1, 2])
def test_norms_with_one_row_per_head(convert, tmp_path, shards):
    """transformers' Chameleon repeats the rows of a training shard; they are folded where they are equal."""
    config, weights = small_weights(model_parallel_size=shards)
    per_head = {name: w.repeat_interleave(4 // shards, 0) for name, w in weights.items() if "_norm." in name}
    output = convert(write_checkpoint(tmp_path / "checkpoint", weights | per_head, config))
    state = WorldVLAForCausalLM.from_pretrained(output).state_dict()
    assert len(per_head) == 8 and all(torch.equal(state[name], weight) for name, weight in weights.items())
    per_head[K_NORM] = per_head[K_NORM] + torch.arange(4.0)[:, None]
    checkpoint = write_checkpoint(tmp_path / "other", weights | per_head, config)
    (tmp_path / "out" / "converted").rename(tmp_path / "first")
    refused(convert, tmp_path, checkpoint, rf"`{K_NORM}` has one row per head, 4 in all.*there were {shards}")


def test_options_and_what_the_names_of_folders_say(convert, tmp_path):
    config, weights = small_weights()

    def settings(place, **options):
        output = convert(write_checkpoint(tmp_path / place, weights, config), **options)
        values = [json.loads((output / f"{name}.json").read_text()) for name in ("processor_config", "config")]
        output.rename(tmp_path / f"done {place.replace('/', ' ')}")
        return values[0]["image_size"][0], values[1]["chunk_size"]

    assert settings("model_512/libero_10") == (512, 10)
    assert settings("model_256/libero_goal") == (256, 5)
    assert settings("mine") == (256, 5)
    assert settings("a/model_512/libero_10", image_size=256, chunk_size=3) == (256, 3)
    config["time_horizon"] = 8
    assert settings("later") == (256, 8)
    with pytest.raises(ValueError, match="`--chunk_size` must be larger than 0, got 0"):
        settings("bad", chunk_size=0)
    (tmp_path / "out" / "converted").mkdir()
    with pytest.raises(FileExistsError, match="exists already. Choose another `--output`"):
        convert(tmp_path / "mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, r"another architecture: model_type = 'llama' \(must be 'chameleon'\)"),
        ({"model_type": None}, r"another architecture: model_type = None"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"another architecture: rope_scaling = \{'type'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"another architecture: rope_type = 'yarn'"),
        ({"tie_word_embeddings": True}, r"another architecture: tie_word_embeddings = True \(must be False\)"),
        ({"num_attention_heads": 3}, r"config.json` describes no model: `num_attention_heads` must divide"),
        ({"hidden_size": "many"}, r"config.json` describes no model: .*hidden_size"),
        ({"hidden_size": 16}, r"29 of another shape: model.embed_tokens.weight \(65536, 8\) instead of \(65536, 16\)"),
        ({"num_hidden_layers": 3}, r"13 missing: model.layers.2.*, .* and \d+ more"),
        ({"num_hidden_layers": 1}, r"13 unexpected: model.layers.1.*Alibaba-DAMO-Academy/WorldVLA"),
    ],
)
def test_another_architecture_is_refused(convert, tmp_path, changes, message):
    config, weights = small_weights()
    refused(convert, tmp_path, write_checkpoint(tmp_path / "checkpoint", weights, config | changes), message)


def test_another_vocabulary_is_refused(convert, tmp_path):
    config, weights = small_weights(vocab_size=65600)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", weights, config)
    refused(convert, tmp_path, checkpoint, "do not belong together: they have vocab_size 65600 and 65536. Official")


def test_missing_files_are_named_with_where_one_gets_them(convert, tmp_path):
    config, weights = small_weights()
    where = ".*Alibaba-DAMO-Academy/WorldVLA on the Hugging Face Hub"
    refused(convert, tmp_path, tmp_path / "none", f"No folder `.*none`{where}", FileNotFoundError)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", weights, config, shards=3)
    (checkpoint / "model-00002-of-00003.safetensors").unlink()
    message = f"lacks 1 of 3 shards that model.safetensors.index.json lists: model-00002-of-00003.safetensors{where}"
    refused(convert, tmp_path, checkpoint, message, FileNotFoundError)
    (checkpoint / "model.safetensors.index.json").write_text("{}")
    refused(convert, tmp_path, checkpoint, "is no index of weights: it has no `weight_map`")
    (checkpoint / "model.safetensors.index.json").unlink()
    message = f"No weights in `.*`: expected model.safetensors or pytorch_model.bin, or model.*index.json with{where}"
    refused(convert, tmp_path, checkpoint, message, FileNotFoundError)
    (checkpoint / "config.json").write_text("[]")
    refused(convert, tmp_path, checkpoint, "config.json` must hold a JSON object, got a list")
    (checkpoint / "config.json").write_text("{")
    refused(convert, tmp_path, checkpoint, "config.json` is no JSON: .*Download it again")
    (checkpoint / "config.json").unlink()
    message = f"No file `.*config.json`, which holds the sizes of the model{where}"
    refused(convert, tmp_path, checkpoint, message, FileNotFoundError)


def test_what_strangers_do(convert, tmp_path, monkeypatch):
    """The folder above is given, an index points elsewhere, nobody may write to the output, a flag is misspelt."""
    config, weights = small_weights()
    checkpoint = write_checkpoint(tmp_path / "model_256" / "libero_goal", weights, config, shards=2)
    message = r"No file `.*model_256/config.json`, but there is one in libero_goal: give `--checkpoint` one of these"
    refused(convert, tmp_path, checkpoint.parent, message, FileNotFoundError)
    index = checkpoint / "model.safetensors.index.json"
    whole = index.read_text()
    for strange in ("../libero_10/model-00001-of-00002.safetensors", "model-00001-of-00002.bin", "/etc/hostname"):
        index.write_text(whole.replace("model-00001-of-00002.safetensors", strange))
        message = rf"lists files that are no shards beside it: {strange}. Expected .* model-00001-of-00003.safetensors"
        refused(convert, tmp_path, checkpoint, message)
    index.write_text(whole)
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(
        OSError, match="`--output .*converted` cannot be made: .*Choose a folder that you may write to"
    ):
        convert(checkpoint)
    (tmp_path / "out").unlink()
    monkeypatch.setattr(sys, "argv", ["convert", *"--checkpoint a --tokenizer b --vqgan c --ouput d".split()])
    with pytest.raises(SystemExit):
        main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--output", "e"])
    with pytest.raises(
        ValueError, match="Unknown argument `--ouput`. Choose from: --checkpoint, .* Did you mean `--output`"
    ):
        main()


def test_wrong_weights_are_named(convert, tmp_path):
    config, weights = small_weights()

    def refuse(message, **changes):
        changed = {name: weight for name, weight in (weights | changes).items() if weight is not None}
        number = len(list(tmp_path.iterdir()))
        refused(convert, tmp_path, write_checkpoint(tmp_path / str(number), changed, config), message)

    refuse("1 missing: model.norm.weight", **{"model.norm.weight": None})
    refuse("1 unexpected: action_head.weight", **{"action_head.weight": torch.ones(1)})
    refuse(r"model.norm.weight \(9,\) instead of \(8,\)", **{"model.norm.weight": torch.ones(9)})
    refuse("1 of another dtype: torch.int8", **{"model.norm.weight": torch.ones(8, dtype=torch.int8)})
    for value in ("nan", "inf"):
        bad = weights["lm_head.weight"].clone()
        bad[-1, -1] = float(value)
        refuse("The weight `lm_head.weight` holds NaN or infinities", **{"lm_head.weight": bad})
    checkpoint = write_checkpoint(tmp_path / "twice", weights, config, shards=2)
    (checkpoint / "model-00002-of-00002.safetensors").write_bytes(
        (checkpoint / "model-00001-of-00002.safetensors").read_bytes()
    )
    refused(convert, tmp_path, checkpoint, "14 missing: .*; 15 twice: ")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_cut_and_foreign_files_are_refused(convert, tmp_path, form):
    config, weights = small_weights()
    checkpoint = write_checkpoint(tmp_path / "checkpoint", weights, config, form)
    (file,) = (path for path in checkpoint.iterdir() if path.suffix != ".json")
    whole = file.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:4],
        b"",
        b"version https://git-lfs.github.com/spec/v1",
    ):
        file.write_bytes(content)
        refused(convert, tmp_path, checkpoint, rf"`.*{file.name}` (is damaged|cannot be read with|holds no weights)")


class NotATensor:
    """What a training run may have pickled into its checkpoint."""


def test_files_that_would_run_code_are_refused(convert, tmp_path):
    config, weights = small_weights()
    checkpoint = write_checkpoint(tmp_path / "checkpoint", weights, config, "bin")
    torch.save(weights | {"trainer": NotATensor()}, checkpoint / "pytorch_model.bin")
    refused(convert, tmp_path, checkpoint, "would run code that the file brings along, which this converter refuses")
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(NotATensor()))
    refused(convert, tmp_path, checkpoint, "pytorch_model.bin` cannot be read with")
    torch.save({"step": 3}, checkpoint / "pytorch_model.bin")
    refused(convert, tmp_path, checkpoint, "holds no weights: expected a dict of tensors by name")


def test_a_full_disk_leaves_nothing(convert, tmp_path, monkeypatch):
    config, weights = small_weights()
    checkpoint = write_checkpoint(tmp_path / "checkpoint", weights, config, shards=2)
    usage = type("Usage", (), {"free": 2**20})
    with monkeypatch.context() as patch:
        patch.setattr(convert_worldvla_weights_to_hf.shutil, "disk_usage", lambda folder: usage)
        refused(convert, tmp_path, checkpoint, "The weights take 0.0 GiB, but `.*out` has 0.0 GiB free. Make", OSError)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # no file of the process may grow beyond 1 MiB
    try:
        refused(convert, tmp_path, checkpoint, "File too large", OSError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


RUN = """
import json, re, sys
from modeling_worldvla import convert_worldvla_weights_to_hf as command
def write_settings(arguments, image_size, config, folder):
    (folder / "processor_config.json").write_text(sys.argv[3])
command.write_processor = write_settings
def peak():  # not ru_maxrss: that one starts with what the parent process had
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
command.convert_checkpoint(command.ConvertWeightsArguments(sys.argv[1], "tokenizer", "vqgan", sys.argv[2]))
print(before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_peak_memory_is_that_of_one_shard(tmp_path):
    """The peak grows by the largest shard and a little, not by twice as much and not by all of them."""
    config = OFFICIAL_CONFIG | {"hidden_size": 256, "intermediate_size": 16384, "num_hidden_layers": 2}
    weights = {name: torch.ones(shape) for name, shape in official_shapes(config).items()}
    checkpoint = write_checkpoint(tmp_path / "checkpoint", weights, config, shards=6)
    settings = {"vocabulary": VocabularyLayout.official().to_dict(), "action_limits": {"libero": LIBERO_ACTION_LIMITS}}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(checkpoint), str(tmp_path / "converted"), json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, peak = (int(number) / 2**10 for number in done.stdout.split())
    sizes = [path.stat().st_size / 2**20 for path in checkpoint.glob("*.safetensors")]
    assert peak - before < max(sizes) + 64 < min(2 * max(sizes), 0.8 * sum(sizes))


def test_writer_aligns_and_keeps_every_kind_of_weight(tmp_path):
    weights = {
        "odd": torch.arange(3.0).to(torch.bfloat16),
        "wide": torch.tensor([1.5, -2.0]),
        "one": torch.tensor(7.0),
    }
    weights["turned"] = torch.arange(6.0).view(2, 3).T
    assert write_weights(tmp_path / "file.safetensors", weights) == 6 + 8 + 4 + 24
    with safe_open(tmp_path / "file.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"} and set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(name), weight) for name, weight in weights.items())


def test_the_command_writes_a_card_and_uploads_it(convert, tmp_path, monkeypatch):
    uploaded = []
    monkeypatch.setattr(convert_worldvla_weights_to_hf, "upload_checkpoint", lambda *given: uploaded.append(given))
    monkeypatch.setattr(convert_worldvla_weights_to_hf, "get_token", lambda: "token")
    config, weights = small_weights()
    checkpoint, output = write_checkpoint(tmp_path / "checkpoint", weights, config), tmp_path / "out" / "converted"
    options = {
        "checkpoint": checkpoint,
        "tokenizer": "t",
        "vqgan": "v",
        "output": output,
        "push-to-hub": "me/worldvla",
    }
    monkeypatch.setattr(sys, "argv", ["convert", *(f"--{name}={value}" for name, value in options.items())])
    main()
    assert uploaded == [(output, "me/worldvla")]
    card = ModelCard.load(str(output / "README.md"))
    assert (card.data.license, card.data.base_model) == ("other", "Alibaba-DAMO-Academy/WorldVLA")
    assert "# converted\n" in card.text and "The weights are not ours to license" in card.text
    assert WorldVLAForCausalLM.from_pretrained(output).config.derived_from == "Alibaba-DAMO-Academy/WorldVLA"


def test_an_upload_that_cannot_succeed_is_refused_first(convert, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`--push_to_hub` must be a name such as `me/worldvla`, got `a/b/c`"):
        convert(tmp_path / "none", push_to_hub="a/b/c")
    monkeypatch.setattr(convert_worldvla_weights_to_hf, "get_token", lambda: None)
    with pytest.raises(
        ValueError, match="needs an account on the Hugging Face Hub, and this machine knows none. Log in"
    ):
        convert(tmp_path / "none", push_to_hub="me/worldvla")
