import json

import numpy as np
import pytest

from tokenization import (
    LIBERO_ACTION_LIMITS,
    ActionPart,
    ImagePart,
    SeparatorPart,
    SpecialPart,
    TextPart,
    VocabularyLayout,
    WorldVLAProcessor,
    list_prompts,
    render_prompt,
)
from tokenization.prompt_worldvla import (
    action_block,
    history_blocks,
    image_block,
    label_answer,
    policy_answer,
    prompt_tokens,
    world_model_answer,
)

TASK = "open the middle drawer of the cabinet"


def read_blocks(tokens, layout):
    """Images and actions of a token list, read independently of the code under test."""
    images, actions, position = [], [], 0
    while position < len(tokens):
        if tokens[position] == layout.boi_token_id:
            height, width = ((tokens[position + i] - layout.grid_token_id_start) * 2 for i in (1, 2))
            rows = tokens[position + 3 : position + 3 + height * (width + 1)].reshape(height, width + 1)
            images.append(rows[:, :width].astype(np.int64))
            position += 4 + rows.size
        elif tokens[position] == layout.boa_token_id:
            actions.append(tokens[position + 1 : position + 8].astype(np.int64))
            position += 9
        else:
            position += 1
    return images, np.array(actions)


@pytest.fixture(scope="module")
def official_processor(official_tokenizer):
    limits = {"libero": LIBERO_ACTION_LIMITS}
    return WorldVLAProcessor(official_tokenizer, action_limits=limits, binning="official")


def test_blocks_by_hand():
    layout = VocabularyLayout.official()
    image = np.array([[10, 11, 12, 13], [20, 21, 22, 23]])
    assert image_block(image, layout) == [8197, 8805, 8806, 10, 11, 12, 13, 8803, 20, 21, 22, 23, 8803, 8196]
    assert action_block(np.array([10006, 10261]), layout) == [10004, 10006, 10261, 15004]


def test_roles_by_hand():
    layout = VocabularyLayout.official()
    image, actions = np.array([[10, 11], [12, 13]]), np.array([[10006], [10007]])
    block = [8197, 8805, 8805, 10, 11, 8803, 12, 13, 8803, 8196]
    assert prompt_tokens([16384], history_blocks([image, image], [], layout), layout) == [
        *(0, 16384, *block, *block, 8710)
    ]
    assert policy_answer(actions, layout) == [10004, 10006, 15004, 10004, 10007, 15004, 8710]
    first, second = [10004, 10006, 15004], [10004, 10007, 15004]
    assert history_blocks([image] * 2, actions, layout) == [*block, *first, *block, *second]
    assert history_blocks([image] * 3, actions, layout) == [*block, *first, *block, *second, *block]
    assert prompt_tokens([16384], [7, 8], layout, "after_text") == [0, 16384, 8710, 7, 8, 8710]
    assert world_model_answer(image, layout) == [*block, 8710]
    assert label_answer([1, 2], [3]) == {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}


POLICY = {"role": "policy", "text": TASK}
# How each recorded sample is asked for: arguments beside images and actions, and what its actions are.
SAMPLES = {
    "action_1img_k5": (POLICY, "actions"),
    "action_2img_k5": (POLICY, "actions"),
    "action_2img_k10": (POLICY, "actions"),
    "world_his1": ({"role": "world_model"}, "actions"),
    "world_his2": ({"role": "world_model"}, "actions"),
    "eval_4h_4a_layout_2": ({**POLICY, "separator": "after_text"}, "history_actions"),
}
PROMPTED = {
    "prompt_action_2img": (POLICY, None),
    "prompt_world_his1": ({"role": "world_model"}, "actions"),
    "prompt_world_eval_1a2i": ({"role": "world_model", "prompt": "evaluation"}, "actions"),
    "eval_4h_4a_layout_2": ({**POLICY, "separator": "after_text"}, "history_actions"),
}


def check_sample(processor, name, tokens, labels):
    arguments, actions_are = SAMPLES[name]
    images, actions = read_blocks(np.asarray(tokens), processor.vocabulary)
    sample = processor.build_sample(images, **{actions_are: actions}, **arguments)
    assert sample["input_ids"] == list(tokens)
    assert sample["labels"] == list(labels)
    commands = processor.decode_actions(actions)
    assert processor.build_sample(images, **{actions_are: commands}, **arguments) == sample


def check_prompt(processor, name, tokens):
    arguments, actions_are = PROMPTED[name]
    images, actions = read_blocks(np.asarray(tokens), processor.vocabulary)
    given = {actions_are: actions} if actions_are else {}
    assert processor(images, return_tensors=None, **given, **arguments)["input_ids"] == [list(tokens)]


@pytest.mark.parametrize("name", SAMPLES)
def test_training_samples_as_recorded(official_processor, recorded, name):
    sequences = recorded("sequences")
    check_sample(official_processor, name, sequences[f"{name}/tokens"].tolist(), sequences[f"{name}/labels"].tolist())


@pytest.mark.parametrize("name", PROMPTED)
def test_prompts_as_recorded(official_processor, recorded, name):
    check_prompt(official_processor, name, recorded("sequences")[f"{name}/tokens"].tolist())


def test_every_recorded_sequence(official_processor, recorded_behaviour):
    sequences = json.loads((recorded_behaviour / "sequences.json").read_text())
    lengths = {name[7:10]: sequences.pop(name) for name in list(sequences) if name.startswith("_target")}
    assert sequences.pop("_same_tokens_with_other_python_seed") is True
    assert set(sequences) == {*SAMPLES, *PROMPTED}
    for name, sequence in sequences.items():
        if sequence["labels"] is not None:
            check_sample(official_processor, name, sequence["tokens"], sequence["labels"])
        if name in PROMPTED:
            check_prompt(official_processor, name, sequence.get("tokens_inference", sequence["tokens"]))
        parts = official_processor.parse(sequence["tokens"])
        assert [describe(part) for part in parts] == [line.split(" (")[0] for line in sequence["layout"]]
    for size, codes in (("288", 18), ("512", 32)):  # two images and five actions, at other image sizes
        grid, actions = np.full((codes, codes), 4), np.full((5, 7), 10006)
        assert len(official_processor.build_sample([grid, grid], TASK, actions)["input_ids"]) == lengths[size]


def describe(part):
    """A part as the recorded layouts write it."""
    if isinstance(part, SpecialPart):
        return f"{part.name.upper()} {part.token_ids[0]} @{part.start}"
    if isinstance(part, SeparatorPart):
        return f"SEP {part.token_ids[0]} @{part.start}"
    name = {TextPart: "TEXT", ImagePart: "IMAGE", ActionPart: "ACTION"}[type(part)]
    return f"{name}[{part.start}:{part.stop}]" + (f" {list(part.token_ids)}" if name == "ACTION" else "")


def test_a_history_before_the_chunk(official_processor):
    layout = official_processor.vocabulary
    images, past = [np.full((2, 2), 4 + i) for i in range(3)], np.arange(14).reshape(2, 7) + 10006
    chunk = np.full((5, 7), 10100)
    arguments = {"text": TASK, "history_actions": past}
    for separator, separators in (("after_history", 1), ("after_text", 2)):
        prompt = official_processor(images, separator=separator, return_tensors=None, **arguments)["input_ids"][0]
        sample = official_processor.build_sample(images, actions=chunk, separator=separator, **arguments)
        assert prompt.count(layout.sep_token_id) == separators and prompt[-1] == layout.sep_token_id
        assert prompt[-11:-1] == image_block(images[2], layout)
        assert sample["input_ids"] == prompt + policy_answer(chunk, layout)
        assert sample["labels"] == [-100] * len(prompt) + policy_answer(chunk, layout)
    alone = official_processor(images[:1], text=TASK, history_actions=np.zeros((0, 7)), return_tensors=None)
    assert alone["input_ids"] == official_processor(images[:1], text=TASK, return_tensors=None)["input_ids"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_world_model_history_of_any_length(official_processor, count):
    layout = official_processor.vocabulary
    images, actions = [np.full((2, 2), 4 + i) for i in range(count + 1)], np.full((count, 7), 10006)
    sample = official_processor.build_sample(images, actions=actions, role="world_model")
    prompt = official_processor(images[:-1], actions=actions, role="world_model", return_tensors=None)["input_ids"][0]
    assert sample["input_ids"] == prompt + world_model_answer(images[-1], layout)
    assert prompt.count(layout.boi_token_id) == prompt.count(layout.boa_token_id) == count


def test_images_of_different_sizes_in_one_sample(official_processor):
    images = [np.full((2, 4), 4), np.full((4, 2), 5), np.full((2, 2), 6)]
    sample = official_processor.build_sample(images, actions=np.full((2, 7), 10006), role="world_model")
    grids = [part.grid for part in official_processor.parse(sample["input_ids"]) if isinstance(part, ImagePart)]
    assert all(np.array_equal(one, other) for one, other in zip(grids, images, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history_actions": 2}, "are the commands between the policy's images, got 2 images and 2 of them. Pass 1"),
        ({"history_actions": 0}, r"must have shape \(rows, 7\), got shape \(0, 7\)"),
        ({"history_actions": 1, "actions": 1}, "Leave them out, pass past ones as `history_actions`"),
        ({"role": "world_model", "actions": 2, "history_actions": 1}, "takes all its commands as `actions`, got"),
        ({"separator": "after_txt"}, "Unknown separator `after_txt`.*Did you mean `after_text`?"),
    ],
)
def test_histories_that_do_not_fit_are_refused(official_processor, arguments, message):
    given = {k: np.full((v, 7), 10006) if k.endswith("actions") else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=message):
        official_processor([np.full((2, 2), 4)] * 2, text=TASK, **given)
    with pytest.raises(ValueError, match="Every action of a history follows an image, got 0 images and 1 actions"):
        history_blocks([], np.zeros((1, 7), int), VocabularyLayout.official())


def test_wordings():
    assert render_prompt("policy", task="stack {task} {x}") == "What action should the robot take to stack {task} {x}?"
    assert render_prompt("world_model", "paper").startswith("Generate the next frame based on")
    assert len(set(list_prompts())) == 4 and len(list_prompts("world_model")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("polcy",), "Unknown role `polcy`. Choose one of: `policy`, `world_model`. Did you mean `policy`?"),
        ((None,), "Unknown role `None`"),
        (("world_model", "papr"), "Unknown world_model prompt `papr`.*Did you mean `paper`?"),
        (("policy", "paper", "x"), "Unknown policy prompt `paper`. Choose one of: `training`"),
        (("policy",), "Role `policy` needs the task as text, got None. Pass `text=`"),
        (("policy", "training", "  "), "needs the task as text, got '  '"),
        (("policy", "training", 3), "needs the task as text, got 3"),
    ],
)
def test_unknown_names_and_missing_tasks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_prompt(*arguments)


@pytest.mark.parametrize("shape", [(3, 4), (4, 0), (2, 130)])
def test_sizes_without_a_grid_token_are_refused(shape):
    with pytest.raises(ValueError, match=f"multiples of 2 up to 128, got {shape[0]} x {shape[1]}"):
        image_block(np.zeros(shape, int), VocabularyLayout.official())
