"""Official files in, processor folder out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenization import LIBERO_ACTION_LIMITS, VocabularyLayout, WorldVLAProcessor
from tokenization.convert_chameleon_tokenizer_to_hf import (
    ConvertTokenizerArguments,
    build_official_processor,
    convert_tokenizer,
    read_code_to_offset,
)
from tokenization.convert_chameleon_vqgan import load_official_vq_model
from tokenization.text_table_worldvla import byte_symbols

from .recorded_vqgan import (
    SIZES,
    code_to_offset,
    input_picture,
    named_normal,
    official_weights,
    vqgan_picture,
    write_official_vqgan,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(recorded):
    return official_weights(recorded("images"))


@pytest.fixture(scope="module")
def official_folder(weights, tmp_path_factory):
    """A folder like the `tokenizer` folder of the official download."""
    folder = write_official_vqgan(tmp_path_factory.mktemp("chameleon"), weights)
    (folder / "text_tokenizer.json").write_text(json.dumps(official_table()))
    return folder


def official_table():
    """A table in the official form: names of image tokens in a permuted order, one text token per byte."""
    names = VocabularyLayout.official().token_names(code_to_offset())
    names += byte_symbols()
    names += [f"unused{token_id}" for token_id in range(len(names), 65536)]
    vocabulary = {name: token_id for token_id, name in enumerate(names)}
    added = [
        {"id": i, "content": names[i], "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for i in range(4)
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": []},
    }


def rewrite(folder, tmp_path, weights=None, sizes=None):
    """The same official files, some of them changed."""
    target = write_official_vqgan(
        tmp_path / "changed",
        weights if weights is not None else torch.load(folder / "vqgan.ckpt")["state_dict"],
        sizes if sizes is not None else SIZES,
    )
    (target / "text_tokenizer.json").write_bytes((folder / "text_tokenizer.json").read_bytes())
    return target


def change(path, value):
    """The official sizes with one value changed."""
    sizes = json.loads(json.dumps(SIZES))
    place = sizes
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return sizes


def test_a_converted_folder_gives_the_recorded_tokens(official_folder, recorded, tmp_path):
    output = tmp_path / "processor"
    command = [sys.executable, "-m", "tokenization.convert_chameleon_tokenizer_to_hf"]
    done = subprocess.run(
        [*command, "--vqgan", str(official_folder), "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"processor saved in {output}" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["processor"]
    processor = WorldVLAProcessor.from_pretrained(output)
    images = recorded("images")
    ids = processor.encode_images([input_picture(0, 256, 256)])[0]
    block = images[f"tokens/{images['cases'][0]}"].astype(int)
    np.testing.assert_array_equal(block[3:-1].reshape(16, 17)[:, :-1], ids)
    assert processor.vocabulary == VocabularyLayout.official()
    assert processor.policy_prompt == processor.world_model_prompt == "training"
    assert processor.action_tokenizer.to_dict()["binning"] == "official"
    np.testing.assert_array_equal(
        processor.encode_actions(np.array(LIBERO_ACTION_LIMITS["low"]), "libero"), [10006] * 7
    )
    assert processor.tokenizer.model_max_length == 4096


def test_a_converted_folder_loads_where_the_package_is_not_installed(official_folder, tmp_path):
    output = convert_tokenizer(ConvertTokenizerArguments(str(official_folder), str(tmp_path / "processor")))
    code = (
        "import sys, numpy as np; sys.path = [p for p in sys.path if p not in ('', sys.argv[2])]\n"
        "from transformers import AutoProcessor\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "picture = np.load(sys.argv[3])\n"
        "print(type(processor).__module__, processor.encode_images([picture]).sum().item())"
    )
    np.save(tmp_path / "picture.npy", vqgan_picture(0))
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(output), str(ROOT), str(tmp_path / "picture.npy")],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    module, total = done.stdout.split()[-2:]
    assert module.startswith("transformers_modules")
    expected = WorldVLAProcessor.from_pretrained(output).encode_images([vqgan_picture(0)]).sum().item()
    assert int(total) == expected


def test_options(official_folder, tmp_path):
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"low": [-2.0] * 3, "high": [2.0] * 3}))
    output = convert_tokenizer(
        ConvertTokenizerArguments(
            vqgan=str(official_folder / "vqgan.ckpt"),
            output=str(tmp_path / "a" / "processor"),
            vqgan_config=str(official_folder / "vqgan.yaml"),
            text_tokenizer=str(official_folder / "text_tokenizer.json"),
            image_size=[224, 288],
            dataset_name="arm",
            action_limits=str(limits),
        )
    )
    processor = WorldVLAProcessor.from_pretrained(output)
    assert tuple(processor.image_size) == (224, 288)
    assert processor.encode_actions(np.zeros(3), "arm").shape == (3,)
    with pytest.raises(FileExistsError, match="exists already. Choose another `--output`"):
        convert_tokenizer(ConvertTokenizerArguments(str(official_folder), str(output)))
    with pytest.raises(ValueError, match=r"`--image_size` takes one side, or height and width, got \[1, 2, 3\]"):
        ConvertTokenizerArguments("a", "b", image_size=[1, 2, 3])
    limits.write_text("[1]")
    with pytest.raises(ValueError, match=r'limits.json` must hold {"low": \[...\], "high": \[...\]}'):
        convert_tokenizer(
            ConvertTokenizerArguments(str(official_folder), str(tmp_path / "c"), action_limits=str(limits))
        )


@pytest.mark.parametrize("name", ["vqgan.ckpt", "vqgan.yaml", "text_tokenizer.json"])
def test_a_missing_file_is_named_with_where_one_gets_it(official_folder, tmp_path, name):
    folder = rewrite(official_folder, tmp_path)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"No file `.*{name}`, which holds .*Meta's Chameleon download"):
        convert_tokenizer(ConvertTokenizerArguments(str(folder), str(tmp_path / "processor")))
    assert not (tmp_path / "processor").exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model",), {}, "does not describe a VQ-GAN.*KeyError"),
        (("model", "params", "n_embed"), "many", "does not describe a VQ-GAN.*ValueError"),
        (("model", "params", "ddconfig", "attn_resolutions"), [16], r"architecture: attn_resolutions = \[16\] \(must"),
        (("model", "params", "ddconfig", "double_z"), True, "architecture: double_z = True"),
        (("model", "params", "ddconfig", "ch"), 40, "40 channels .must be multiples of 32"),
        (("model", "params", "ddconfig", "num_res_blocks"), 2, "missing: encoder.down_blocks.0.resnets.1"),
        (("model", "params", "ddconfig", "ch_mult"), [1, 1, 1, 1], r"unexpected: encoder.down_blocks.3.downsamplers"),
        (("model", "params", "embed_dim"), 8, r"of another shape: quant\w+.* instead of \("),
    ],
)
def test_another_architecture_is_refused(official_folder, tmp_path, path, value, message):
    with pytest.raises(ValueError, match=message):
        load_official_vq_model(rewrite(official_folder, tmp_path, sizes=change(path, value)))


def test_broken_yaml_is_refused(official_folder, tmp_path):
    folder = rewrite(official_folder, tmp_path)
    (folder / "vqgan.yaml").write_text("model: [1, 2")
    with pytest.raises(ValueError, match="does not describe a VQ-GAN"):
        load_official_vq_model(folder)
    (folder / "vqgan.yaml").write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="does not describe a VQ-GAN.*ConstructorError"):
        load_official_vq_model(folder)


def test_wrong_weights_are_named(official_folder, weights, tmp_path):
    def load(changed):
        return load_official_vq_model(rewrite(official_folder, tmp_path, weights=changed))

    assert load({**weights, "loss.discriminator.main.0.weight": torch.ones(1)}) is not None
    with pytest.raises(ValueError, match="missing: quant_conv.bias"):
        load({name: value for name, value in weights.items() if name != "quant_conv.bias"})
    with pytest.raises(ValueError, match="unexpected: encoder.down.0.attn.0.q.weight"):
        load({**weights, "encoder.down.0.attn.0.q.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="NaN or infinite weights in quant_conv.weight"):
        load({**weights, "quant_conv.weight": torch.full((16, 16, 1, 1), float("nan"))})
    with pytest.raises(ValueError, match="holds no weights"):
        load({})


class NotATensor:
    """What a training run may have pickled into its checkpoint."""


def test_files_that_would_run_code_are_refused(official_folder, weights, tmp_path):
    folder = rewrite(official_folder, tmp_path)
    torch.save({"state_dict": weights, "callbacks": NotATensor()}, folder / "vqgan.ckpt")
    with pytest.raises(ValueError, match=r"would run code that the file brings along, which this converter refuses"):
        load_official_vq_model(folder)
    whole = (official_folder / "vqgan.ckpt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (folder / "vqgan.ckpt").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            load_official_vq_model(folder)


def test_text_tokenizers_that_do_not_fit_are_refused(official_folder, tmp_path):
    layout, file = VocabularyLayout.official(), tmp_path / "text_tokenizer.json"
    assert read_code_to_offset(official_folder / "text_tokenizer.json", layout) == code_to_offset()
    table = official_table()
    del table["model"]["vocab"]["IMGIMGBCDZ"]
    file.write_text(json.dumps(table))
    with pytest.raises(ValueError, match="has 8191 image tokens, the VQ-GAN 8192 codes; missing: IMGIMGBCDZ. Use"):
        build_official_processor(official_folder, file)
    table["model"]["vocab"]["IMGIMGBCDZ"] = 20000
    file.write_text(json.dumps(table))
    with pytest.raises(ValueError, match="must have the ids from 4 to 8195, each once; not so: IMGIMGBCDZ"):
        read_code_to_offset(file, layout)
    file.write_text("{}")
    with pytest.raises(ValueError, match="needs the key `model.vocab`"):
        read_code_to_offset(file, layout)


def test_a_vqgan_with_another_codebook_needs_a_layout_of_its_own(official_folder, weights, tmp_path):
    codebook = torch.from_numpy(named_normal(0, "small", (64, 16)))
    folder = rewrite(
        official_folder,
        tmp_path,
        weights={**weights, "quantize.embedding.weight": codebook},
        sizes=change(("model", "params", "n_embed"), 64),
    )
    with pytest.raises(ValueError, match="has 64 codes, the official vocabulary 8192 image tokens"):
        build_official_processor(folder)


def test_the_recorded_files_convert(recorded_behaviour, tmp_path):
    output = convert_tokenizer(
        ConvertTokenizerArguments(
            str(recorded_behaviour / "vqgan_small"),
            str(tmp_path / "processor"),
            text_tokenizer=str(recorded_behaviour / "text_tokenizer.json"),
        )
    )
    processor = WorldVLAProcessor.from_pretrained(output)
    tokens = np.load(recorded_behaviour / "tokenize.npz")
    for size in ("256x256", "224x224"):
        block = tokens[f"img/T256_{size}/tokens"].astype(int)
        ids = processor.encode_images([tokens[f"img/T256_{size}/input"]])[0]
        np.testing.assert_array_equal(block[3:-1].reshape(16, 17)[:, :-1], ids)
