import numpy as np
import pytest

from tokenization import VocabularyLayout, WorldVLAProcessor, list_prompts, render_prompt
from tokenization.prompt_worldvla import (
    action_block,
    image_block,
    label_answer,
    policy_answer,
    policy_prompt,
    world_model_answer,
    world_model_prompt,
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
    limits = {"libero": {"low": [-1.0] * 7, "high": [1.0] * 7}}
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
    assert policy_prompt([16384], [image, image], layout) == [0, 16384, *block, *block, 8710]
    assert policy_answer(actions, layout) == [10004, 10006, 15004, 10004, 10007, 15004, 8710]
    assert world_model_prompt([16384], [image] * 2, actions, layout) == [
        *(0, 16384, *block, 10004, 10006, 15004, *block, 10004, 10007, 15004, 8710)
    ]
    assert world_model_answer(image, layout) == [*block, 8710]
    assert label_answer([1, 2], [3]) == {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}


@pytest.mark.parametrize("name", ["action_1img_k5", "action_2img_k5", "action_2img_k10", "world_his1", "world_his2"])
def test_training_samples_as_recorded(official_processor, recorded, name):
    sequences = recorded("sequences")
    tokens = sequences[f"{name}/tokens"]
    images, actions = read_blocks(tokens, official_processor.vocabulary)
    role, text = ("policy", TASK) if name.startswith("action") else ("world_model", None)
    sample = official_processor.build_sample(images, text=text, actions=actions, role=role)
    assert sample["input_ids"] == tokens.tolist()
    assert sample["labels"] == sequences[f"{name}/labels"].tolist()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("prompt_action_2img", {"text": TASK}),
        ("prompt_world_his1", {"role": "world_model"}),
        ("prompt_world_eval_1a2i", {"role": "world_model", "prompt": "evaluation"}),
    ],
)
def test_prompts_as_recorded(official_processor, recorded, name, arguments):
    tokens = recorded("sequences")[f"{name}/tokens"]
    images, actions = read_blocks(tokens, official_processor.vocabulary)
    inputs = official_processor(images, actions=actions if len(actions) else None, return_tensors=None, **arguments)
    assert inputs["input_ids"] == [tokens.tolist()]


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
