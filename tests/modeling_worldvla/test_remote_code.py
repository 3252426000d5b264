"""A saved folder loads with its own code, in a process where our packages do not exist."""

import os
import subprocess
import sys

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM, WorldVLAModel

from .sequences import Writer, tiny_model

SCRIPT = """
import importlib.util, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

folder, prompt = sys.argv[1], torch.tensor([[int(token) for token in sys.argv[2].split()]])
if any(importlib.util.find_spec(name) for name in ("modeling_worldvla", "tokenization")):
    sys.exit("our packages can be imported here, so this shows nothing")
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
decoder = AutoModel.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
names = [type(thing).__name__ for thing in (config, decoder, model)]
if names != ["WorldVLAConfig", "WorldVLAModel", "WorldVLAForCausalLM"]:
    sys.exit(f"wrong classes {names}")
if not torch.equal(decoder(prompt).last_hidden_state, model.model(prompt).last_hidden_state):
    sys.exit("the two models differ")
model.save_pretrained(sys.argv[3])
sys.stdout.write("RESULT " + " ".join(map(str, model.predict_action_chunk(prompt).flatten().tolist())))
"""


def run_elsewhere(folder, prompt, target, home):
    # The checkout is taken off the path and the finder of an editable install is hidden; the script itself fails if
    # one of our packages can still be found.
    hidden = "import sys; sys.meta_path = [f for f in sys.meta_path if '__editable__' not in str(f)]; "
    hidden += f"sys.path = [p for p in sys.path if p != {str(os.getcwd())!r}]\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    keep = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and not has_our_packages(path)]
    environment |= {
        "PYTHONPATH": os.pathsep.join(keep),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", hidden + SCRIPT, str(folder), " ".join(map(str, prompt)), str(target)]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120)


def has_our_packages(path):
    return os.path.isdir(os.path.join(path, "modeling_worldvla"))


def test_remote_code_in_a_clean_process(tmp_path):
    model, prompt = tiny_model(3), Writer(3).policy()[0]
    first, second, home = tmp_path / "first", tmp_path / "second", tmp_path / "home"
    home.mkdir()
    model.save_pretrained(first)
    expected = model.predict_action_chunk(torch.tensor([prompt])).flatten().tolist()
    for folder, target in ((first, second), (second, tmp_path / "third")):
        finished = run_elsewhere(folder, prompt, target, home)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert finished.stdout.split("RESULT ")[1].split() == [str(token) for token in expected]


def test_auto_classes_when_installed(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is WorldVLAConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is WorldVLAModel
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is WorldVLAForCausalLM


def test_a_decoder_saved_alone_knows_all_three_classes(tmp_path):
    tiny_model().model.save_pretrained(tmp_path)
    assert set(AutoConfig.from_pretrained(tmp_path).auto_map) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert (tmp_path / "modeling_worldvla.py").is_file() and (tmp_path / "masking_worldvla.py").is_file()
