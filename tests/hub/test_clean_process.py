"""One folder, in a process where nothing of ours can be imported: it loads, acts, imagines, and is saved again."""

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM, WorldVLAModel
from tokenization import WorldVLAProcessor

TASK = "put the bowl on the stove"
# Run here with the installed classes, and there with those that lie in the folder.
ACT_AND_IMAGINE = """
def act_and_imagine(model, processor, frames):
    inputs = processor(images=list(frames), text="put the bowl on the stove", return_tensors="pt")
    chunk = model.predict_action_chunk(**inputs)
    actions = processor.decode_actions(chunk)
    inputs = processor(images=[frames[-1]], actions=actions[0, :1], role="world_model", return_tensors="pt")
    tokens = model.predict_next_frame(**inputs)
    return {
        "chunk": np.asarray(chunk),
        "actions": np.asarray(actions),
        "tokens": np.asarray(tokens),
        "picture": np.asarray(processor.decode_images(tokens)[0]),
    }
"""
SCRIPT = (
    """
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

kinds = (AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor)
folder, second, frames = sys.argv[1], sys.argv[2], np.load(sys.argv[3])
"""
    + ACT_AND_IMAGINE
    + """
for number, source in enumerate((folder, second)):
    config, decoder, model, processor = (kind.from_pretrained(source, trust_remote_code=True) for kind in kinds)
    names = [type(part).__name__ for part in (config, decoder, model, processor)]
    if names != ["WorldVLAConfig", "WorldVLAModel", "WorldVLAForCausalLM", "WorldVLAProcessor"]:
        sys.exit(f"wrong classes {names}")
    if not all(type(part).__module__.startswith("transformers_modules.") for part in (config, model, processor)):
        sys.exit("code from elsewhere")
    ids = torch.arange(12)[None]
    if not torch.equal(decoder.eval()(ids).last_hidden_state, model.eval().model(ids).last_hidden_state):
        sys.exit("the two models differ")
    words = AutoTokenizer.from_pretrained(source)("put the bowl on the stove")["input_ids"]
    np.savez(f"{number}.npz", words=words, **act_and_imagine(model, processor, frames))
    if number == 0:
        model.save_pretrained(second)
        processor.save_pretrained(second)
"""
)


def test_a_folder_loads_acts_imagines_and_is_saved_again(checkpoint, run_clean, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    run_clean(SCRIPT, checkpoint, tmp_path / "second", tmp_path / "frames.npy")
    namespace = {"np": np}
    exec(ACT_AND_IMAGINE, namespace)
    model, processor = AutoModelForCausalLM.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    expected = namespace["act_and_imagine"](model.eval(), processor, frames)
    expected["words"] = processor.tokenizer(TASK)["input_ids"]
    assert expected["picture"].shape == (32, 32, 3) and expected["chunk"].shape == (1, 5, 7)
    for number in range(2):
        found = np.load(tmp_path / "home" / f"{number}.npz")
        assert set(found.files) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (checkpoint, tmp_path / "second")]
    assert files[0] == files[1]


def test_auto_classes_when_installed(checkpoint):
    parts = {
        AutoConfig: WorldVLAConfig,
        AutoModel: WorldVLAModel,
        AutoModelForCausalLM: WorldVLAForCausalLM,
        AutoProcessor: WorldVLAProcessor,
    }
    for auto, expected in parts.items():
        assert type(auto.from_pretrained(checkpoint)) is expected
    tokenizer, processor = AutoTokenizer.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    assert tokenizer(TASK)["input_ids"] == processor.tokenizer(TASK)["input_ids"]


def test_a_decoder_saved_alone_knows_all_three_classes(make_model, tmp_path):
    model = make_model()
    model.model.save_pretrained(tmp_path)
    assert set(AutoConfig.from_pretrained(tmp_path).auto_map) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert (tmp_path / "modeling_worldvla.py").is_file() and (tmp_path / "masking_worldvla.py").is_file()
    state = AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in model.model.state_dict().items())
