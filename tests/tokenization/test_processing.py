import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM
from tokenization import LIBERO_ACTION_LIMITS, VocabularyLayout, WorldVLAProcessor

from .conftest import CORPUS, make_vq_model

TASK = CORPUS[0]
ACTIONS = np.linspace(-0.3, 0.3, 21).reshape(3, 7)


def test_policy_call(processor, layout, frames):
    inputs = processor(images=[Image.fromarray(frames[0]), frames[1]], text=TASK, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert inputs["input_ids"].dtype == torch.int64 and inputs["attention_mask"].min() == 1
    grids = processor.encode_images([frames[0], frames[1]]).numpy()
    prompt = "What action should the robot take to " + TASK + "?"
    first_image = ids.index(layout.boi_token_id)
    assert ids[0] == layout.bos_token_id and ids[-1] == layout.sep_token_id
    assert processor.decode(ids[1:first_image]) == prompt
    start = layout.grid_token_id_start
    assert ids[first_image : first_image + 3] == [layout.boi_token_id, start + 2, start + 1]
    assert ids[first_image + 3 : first_image + 5] == grids[0][0].tolist()
    assert ids.count(layout.boi_token_id) == 2 and len(ids) == first_image + 2 * (4 * 3 + 4) + 1


def test_world_model_call(processor, layout, frames):
    inputs = processor(images=[frames[0]], actions=ACTIONS[:1], role="world_model", return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids[-10:] == [
        *(layout.boa_token_id, *processor.encode_actions(ACTIONS[0]).tolist(), layout.eoa_token_id),
        layout.sep_token_id,
    ]
    with_ids = processor(images=[frames[0]], actions=processor.encode_actions(ACTIONS[:1]), role="world_model")
    assert torch.equal(with_ids["input_ids"], inputs["input_ids"])
    other = processor(images=[frames[0]], actions=ACTIONS[:1], role="world_model", prompt="paper")
    assert other["input_ids"].shape != inputs["input_ids"].shape


@pytest.mark.parametrize("role", ["policy", "world_model"])
def test_a_batch_is_its_samples_padded_on_the_left(processor, layout, frames, role):
    images = [[frames[0]], [frames[1], frames[2], frames[3]]]
    if role == "policy":
        arguments = [{"text": "a"}, {"text": TASK}]
        batch = processor(images=images, text=["a", TASK])
    else:
        arguments = [{"actions": ACTIONS[:1], "role": role}, {"actions": ACTIONS, "role": role}]
        batch = processor(images=images, actions=[ACTIONS[:1], ACTIONS], role=role)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for row, sample in enumerate(arguments):
        alone = processor(images=images[row], **sample)["input_ids"][0]
        padding = batch["input_ids"].shape[1] - len(alone)
        assert torch.equal(batch["input_ids"][row, padding:], alone)
        assert (batch["input_ids"][row, :padding] == layout.pad_token_id).all()
        assert batch["attention_mask"][row].tolist() == [0] * padding + [1] * len(alone)


def test_one_image_and_stacks_are_understood(processor, frames):
    expected = processor(images=[frames[0]], text=TASK)["input_ids"]
    assert torch.equal(processor(images=frames[0], text=TASK)["input_ids"], expected)
    assert torch.equal(processor(images=Image.fromarray(frames[0]), text=[TASK])["input_ids"], expected)
    stack = processor(images=frames[:2], text=TASK)["input_ids"]
    assert torch.equal(stack, processor(images=list(frames[:2]), text=TASK)["input_ids"])


def test_token_ids_stand_for_images(processor, frames):
    ids = processor.encode_images(list(frames[:2]))
    expected = processor(images=list(frames[:2]), text=TASK)["input_ids"]
    for images in (ids, list(ids), list(ids.numpy().astype(np.uint16)), [frames[0], ids[1]]):
        assert torch.equal(processor(images=images, text=TASK)["input_ids"], expected)


def test_lists_and_arrays_are_returned_on_request(processor, frames):
    as_lists = processor(images=[frames[0]], text=TASK, return_tensors=None)["input_ids"]
    as_arrays = processor(images=[frames[0]], text=TASK, return_tensors="np")["input_ids"]
    assert isinstance(as_lists[0], list) and as_lists == as_arrays.tolist()


def test_options_of_every_processor_are_read(processor, frames):
    expected = processor(images=[frames[0]], text=TASK)["input_ids"]
    for options in ({"padding": True, "text_kwargs": {}}, {"text_kwargs": {"padding": "longest"}, "role": "policy"}):
        assert torch.equal(processor(images=[frames[0]], text=TASK, **options)["input_ids"], expected)
    lists = processor(images=[frames[0]], text=TASK, common_kwargs={"return_tensors": None})["input_ids"]
    assert lists == expected.tolist()


def test_images_of_different_sizes_are_kept_apart(processor, layout, frames):
    grids = [np.full((4, 2), 5), np.full((2, 6), 6), np.full((4, 2), 7)]
    batch = processor(images=[grids[:1], grids[1:]], text=["a", "b"])
    parts = [part for row in processor.batch_parse(batch["input_ids"]) for part in row if hasattr(part, "grid")]
    assert [part.grid.tolist() for part in parts] == [grid.tolist() for grid in grids]
    encoded = processor.encode_images(grids)
    assert isinstance(encoded, list) and [tuple(grid.shape) for grid in encoded] == [(4, 2), (2, 6), (4, 2)]
    pictures = processor.decode_images(encoded)
    assert [picture.size for picture in pictures] == [(32, 64), (96, 32), (32, 64)]
    for picture, grid in zip(pictures, grids, strict=True):
        np.testing.assert_array_equal(picture, processor.decode_images(grid[None])[0])
    assert processor.encode_images([grids[0], grids[2]]).shape == (2, 4, 2)
    with pytest.raises(ValueError, match=r"Image token ids must lie in \[4, 68\), got 70"):
        processor.decode_images([grids[0], np.full((2, 2), 70)])


def test_every_image_may_keep_its_own_shape(tokenizer, layout, vq_model, tmp_path):
    settings = {"action_limits": {"libero": LIBERO_ACTION_LIMITS}, "vq_model": vq_model}
    processor = WorldVLAProcessor(tokenizer, layout, **settings, image_size=(64, 64), crop="variable")
    seed = np.random.default_rng(0)
    images = [seed.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (32, 128), (128, 32))]
    grids = processor.encode_images(images)
    assert [tuple(grid.shape) for grid in grids] == [(4, 4), (2, 8), (8, 2)]
    assert isinstance(processor.encode_images(images[:1]), list)  # whatever the images, one kind of answer
    ids = processor(images=images, text=TASK)["input_ids"][0]
    found = [part for part in processor.parse(ids) if hasattr(part, "grid")]
    assert [part.grid.tolist() for part in found] == [grid.tolist() for grid in grids]
    assert [picture.size for picture in processor.decode_images(grids)] == [(64, 64), (128, 32), (32, 128)]
    processor.save_pretrained(tmp_path)
    loaded = WorldVLAProcessor.from_pretrained(tmp_path)
    assert loaded.crop == "variable" and torch.equal(loaded(images=images, text=TASK)["input_ids"][0], ids)
    with pytest.raises(ValueError, match="Unknown crop `variabel`.*Did you mean `variable`?"):
        WorldVLAProcessor(tokenizer, layout, **settings, image_size=(64, 64), crop="variabel")


def test_build_sample_continues_the_prompt(processor, layout, frames):
    prompt = processor(images=list(frames[:2]), text=TASK, return_tensors=None)["input_ids"][0]
    sample = processor.build_sample(list(frames[:2]), text=TASK, actions=ACTIONS)
    assert sample["input_ids"][: len(prompt)] == prompt
    assert sample["labels"] == [-100] * len(prompt) + sample["input_ids"][len(prompt) :]
    assert len(sample["labels"]) == len(prompt) + 3 * 9 + 1 and sample["labels"][-1] == layout.sep_token_id
    prompt = processor(images=list(frames[:3]), actions=ACTIONS, role="world_model", return_tensors=None)["input_ids"][
        0
    ]
    sample = processor.build_sample(list(frames), actions=ACTIONS, role="world_model")
    assert sample["input_ids"][: len(prompt)] == prompt
    assert sample["labels"][len(prompt)] == layout.boi_token_id and set(sample["labels"][: len(prompt)]) == {-100}


def test_images_and_actions_come_back(processor, frames):
    ids = processor.encode_images(list(frames))
    pictures = processor.decode_images(ids)
    assert ids.shape == (4, 4, 2) and [picture.size for picture in pictures] == [(32, 64)] * 4
    actions = processor.decode_actions(torch.from_numpy(processor.encode_actions(ACTIONS))[None])
    assert isinstance(actions, np.ndarray) and actions.shape == (1, 3, 7)
    bins = (np.array(LIBERO_ACTION_LIMITS["high"]) - LIBERO_ACTION_LIMITS["low"]) / 256
    assert (np.abs(actions[0] - ACTIONS) <= bins / 2 + 1e-9).all()


def test_the_models_config_is_made_from_it(processor, layout):
    config = WorldVLAConfig(**processor.model_config())
    assert config.vocab_size == layout.vocab_size and config.action_dim == 7
    assert all(getattr(config, name) == value for name, value in layout.model_config().items())


def test_settings_are_attributes(processor, tokenizer, layout):
    assert processor.action_limits == processor.action_tokenizer.limits == {"libero": LIBERO_ACTION_LIMITS}
    bare = WorldVLAProcessor(tokenizer, layout, binning="official")
    assert bare.action_limits is None and bare.binning == bare.to_dict()["binning"] == "official"
    with pytest.raises(ValueError, match="Unknown binning `offical`.*Did you mean `official`?"):
        WorldVLAProcessor(tokenizer, layout, binning="offical")


def test_commands_in_half_precision_are_read(processor, frames):
    commands = torch.from_numpy(ACTIONS[:1]).bfloat16()
    ids = processor(images=[frames[0]], actions=commands, role="world_model")["input_ids"]
    assert torch.equal(ids, processor(images=[frames[0]], actions=commands.float(), role="world_model")["input_ids"])


@pytest.mark.parametrize("separator", ["after_history", "after_text"])
def test_a_model_answers_a_prompt_with_past_actions(processor, layout, frames, separator):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = WorldVLAConfig(**processor.model_config(), **sizes, num_key_value_heads=2, max_position_embeddings=512)
    model = WorldVLAForCausalLM(config).eval()
    grids = list(processor.encode_images(list(frames[:3])))
    past = {"history_actions": ACTIONS[:2], "separator": separator}
    inputs = processor(images=grids, text=TASK, **past)
    chunk = model.predict_action_chunk(**inputs, chunk_size=3)
    # Each bin is the likeliest given all before it, as in a training sample: what the model saw is what it learns.
    sample = processor.build_sample(grids, TASK, chunk[0].numpy(), **past)["input_ids"]
    logits = model(input_ids=torch.tensor([sample])).logits[0, :-1]
    start, end = layout.action_token_id_start, layout.action_token_id_start + layout.num_action_tokens
    likeliest = logits[:, start:end].argmax(dim=-1) + start
    answer = slice(inputs["input_ids"].shape[1] - 1, -1)
    assert torch.equal(likeliest[answer].reshape(3, 9)[:, 1:8], chunk[0])
    batch = processor(
        images=[grids[:1], grids], text=["a", TASK], history_actions=[None, ACTIONS[:2]], separator=separator
    )
    assert torch.equal(model.predict_action_chunk(**batch, chunk_size=3)[1], chunk[0])


def test_it_survives_pickle_and_copy(processor, frames):
    expected = processor(images=[frames[0]], text=TASK)["input_ids"]
    for clone in (pickle.loads(pickle.dumps(processor)), copy.deepcopy(processor)):
        assert torch.equal(clone(images=[frames[0]], text=TASK)["input_ids"], expected)


def test_prompts_longer_than_the_model_are_refused(processor, frames):
    length = len(processor.build_sample(list(frames[:2]), text=TASK, actions=ACTIONS)["input_ids"])
    processor.tokenizer.model_max_length = length - 1
    with pytest.raises(ValueError, match=f"training sample has {length} tokens, the model {length - 1} positions"):
        processor.build_sample(list(frames[:2]), text=TASK, actions=ACTIONS)
    processor.tokenizer.model_max_length = 20
    with pytest.raises(ValueError, match="prompt has .* tokens, the model 20 positions"):
        processor(images=list(frames[:2]), text=TASK)


FRAME = np.zeros((64, 32, 3), np.uint8)
TOKENS = np.full((4, 2), 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": TASK}, "at least one image, got none"),
        ({"images": [], "text": TASK}, "at least one image, got none"),
        ({"images": [[FRAME], []], "text": ["a", "b"]}, "at least one image, got none"),
        ({"images": ["x.png"], "text": TASK}, "must be convertible to RGB, got str"),
        ({"images": [np.zeros((8, 8, 5), np.uint8)], "text": TASK}, r"shape \(H, W, C\), got \(8, 8, 5\)"),
        ({"images": [FRAME, [FRAME]], "text": TASK}, "item 0 is an array of uint8 .*, item 1 a list"),
        ({"images": [FRAME]}, "Role `policy` needs the task as text, got None"),
        ({"images": [FRAME], "text": [TASK, TASK]}, "Got 2 of `text` for one sample"),
        ({"images": [[FRAME], [FRAME]], "text": TASK}, "2 samples of images but one `text`.*Pass a list of 2"),
        ({"images": [[FRAME], [FRAME]], "text": [TASK] * 3}, "2 samples of images but 3 of `text`"),
        (
            {"images": [FRAME], "text": TASK, "role": "planner"},
            "Unknown role `planner`. Choose one of: `policy`, `world",
        ),
        (
            {"images": [FRAME], "text": TASK, "prompt": "trainin"},
            "Unknown policy prompt `trainin`.*Did you mean `training`",
        ),
        (
            {"images": [FRAME], "text": TASK, "actions": ACTIONS},
            "Role `policy` predicts actions, but `actions` were given",
        ),
        ({"images": [FRAME], "text": TASK, "rol": "policy"}, "Unknown argument `rol`.*Did you mean `role`?"),
        ({"images": [FRAME], "text": TASK, "text_kwargs": {"truncation": True}}, "Unknown argument `truncation`"),
        ({"images": [FRAME], "text": TASK, "padding": "max_length"}, "must be True or 'longest', got 'max_length'"),
        (
            {"images": [[FRAME], [FRAME]], "text": ["a", "b"], "history_actions": ACTIONS},
            "2 samples of images but 3 of `history_actions`",
        ),
        ({"images": [FRAME], "role": "world_model"}, "Role `world_model` needs `actions` here, got none"),
        (
            {"images": [FRAME], "role": "world_model", "actions": ACTIONS},
            r"got 1 images and 3 actions.*`actions\[:1\]`",
        ),
        ({"images": [FRAME], "role": "world_model", "actions": ACTIONS[None, :1]}, r"got shape \(1, 1, 7\)"),
        ({"images": [FRAME], "role": "world_model", "actions": np.zeros((1, 6))}, r"actions of shape \(..., 7\)"),
        ({"images": [FRAME], "role": "world_model", "actions": np.full((1, 7), np.nan)}, "finite numbers, got nan"),
        ({"images": [FRAME], "role": "world_model", "actions": np.full((1, 7), np.inf)}, "finite numbers, got inf"),
        (
            {"images": [FRAME], "role": "world_model", "actions": np.ones((1, 7), int)},
            r"must lie in \[106, 362\), got 1",
        ),
        (
            {"images": [FRAME], "role": "world_model", "actions": ACTIONS[:1], "dataset_name": "bridge"},
            "Unknown data set",
        ),
        (
            {"images": [TOKENS, TOKENS + 63], "text": TASK},
            r"Token ids of image 1 must lie in \[4, 68\), got 68 at position \(0, 0\)",
        ),
        ({"images": [TOKENS[:3]], "text": TASK}, "multiples of 2 up to 64, got 3 x 2"),
    ],
)
def test_bad_calls_are_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": [FRAME], "text": TASK}, "Role `policy` needs `actions` here"),
        ({"images": [FRAME], "actions": ACTIONS}, "needs the task as text"),
        (
            {"images": [FRAME], "actions": ACTIONS, "role": "world_model"},
            "one image more .* got 1 images and 3 actions",
        ),
        ({"images": None, "text": TASK, "actions": ACTIONS}, "at least one image"),
        ({"images": [FRAME], "text": TASK, "actions": np.zeros((0, 7))}, r"shape \(rows, 7\), got shape \(0, 7\)"),
        ({"images": [FRAME], "text": TASK, "actions": ACTIONS, "role": "polic"}, "Did you mean `policy`"),
    ],
)
def test_bad_samples_are_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor.build_sample(**arguments)


def test_ids_that_cannot_be_read_are_refused(processor):
    with pytest.raises(ValueError, match=r"Image token ids must lie in \[4, 68\), got 70 at position \(1, 0, 1\)"):
        processor.decode_images(np.array([[[4, 5]], [[4, 70]]]))
    with pytest.raises(ValueError, match=r"Action token ids must lie in \[106, 362\), got 8 at position \(0, 0, 0\)"):
        processor.decode_actions(torch.full((1, 1, 7), 8))


def test_parts_that_do_not_fit_are_refused(tokenizer, layout):
    limits = {"libero": LIBERO_ACTION_LIMITS}
    with pytest.raises(ValueError, match=f"tokenizer has {layout.vocab_size} entries, the vocabulary layout 65536"):
        WorldVLAProcessor(tokenizer)
    with pytest.raises(ValueError, match="`pad_token_id` of the text tokenizer is 1, of the vocabulary layout 2"):
        swapped = {**layout.to_dict(), "pad_token_id": 2, "eos_token_id": 1}
        WorldVLAProcessor(tokenizer, VocabularyLayout.from_dict(swapped), limits)
    with pytest.raises(ValueError, match="The VQ-GAN has 32 codes, the vocabulary 64 image tokens"):
        WorldVLAProcessor(tokenizer, layout, limits, vq_model=make_vq_model(num_vq_embeddings=32))
    with pytest.raises(ValueError, match="Unknown world_model prompt `official`"):
        WorldVLAProcessor(tokenizer, layout, limits, world_model_prompt="official")
    bare = WorldVLAProcessor(tokenizer, layout)
    with pytest.raises(ValueError, match="has no VQ-GAN, so it cannot read or draw images. Build it with `vq_model=`"):
        bare(images=[FRAME], text=TASK)
    with pytest.raises(ValueError, match="has no action limits, so it cannot read or write actions"):
        bare.decode_actions(np.full((1, 7), 110))
