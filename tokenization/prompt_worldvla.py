"""How the two roles are written as tokens. Pure functions on lists of ids.

    policy:       bos  text  image x M                       sep | action x K  sep
                  bos  text  (image action) x (M - 1) image  sep | action x K  sep
    world_model:  bos  text  (image action) x n              sep | image       sep

    image block:  boi  grid(h)  grid(w)  (w codes  eol) x h  eoi
    action block: boa  D bins  eoa

What stands after the bar is the answer: in a training sample it carries the labels. The history, which is all images
and actions before the bar, may stand behind a separator of its own: `bos text sep (image action) x n image sep |`.

Shapes: `M` observed frames, `K` commands of a chunk, `n` known (frame, command) pairs, `D` action dimensions, `h, w`
rows and columns of image tokens; every image may have its own.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .choices_worldvla import require_choice
from .vocabulary_worldvla import VocabularyLayout

Role = Literal["policy", "world_model"]
ROLES = ("policy", "world_model")
Separator = Literal["after_history", "after_text"]
SEPARATORS = ("after_history", "after_text")
IGNORE_INDEX = -100

# The wordings in use: `training` is what the official weights were trained with, `paper` what the paper prints,
# `evaluation` what the official evaluation helper asks.
PROMPTS: dict[str, dict[str, str]] = {
    "policy": {"training": "What action should the robot take to {task}?"},
    "world_model": {
        "training": "Generate the next image based on the provided sequence of historical images and corresponding "
        "actions.",
        "paper": "Generate the next frame based on the current image and the action.",
        "evaluation": "Generate the image based on the current image and the action.",
    },
}


def list_prompts(role: Role | None = None) -> list[str]:
    """Every selectable wording.

    Args:
        role (`str`, *optional*): of this role only.

    Returns:
        `list[str]`: the texts; `{task}` stands where the instruction goes.

    Raises:
        ValueError: if the role is unknown.
    """
    if role is not None:
        require_choice("role", role, ROLES)
    return [text for name in ROLES if role in (None, name) for text in PROMPTS[name].values()]


def render_prompt(role: Role, wording: str = "training", task: str | None = None) -> str:
    """Text of a prompt.

    Args:
        role (`str`): `policy` or `world_model`.
        wording (`str`): name of one of the role's wordings.
        task (`str`, *optional*): the instruction; the policy needs it, the world model is not told it.

    Returns:
        `str`: the text.

    Raises:
        ValueError: if role or wording is unknown, or the policy got no instruction.
    """
    require_choice("role", role, ROLES)
    require_choice(f"{role} prompt", wording, PROMPTS[role])
    template = PROMPTS[role][wording]
    if "{task}" not in template:
        return template
    if not isinstance(task, str) or not task.strip():
        raise ValueError(
            f"Role `{role}` needs the task as text, got {task!r}. Pass `text=`, for example "
            '`text="pick up the alphabet soup and place it in the basket"`.'
        )
    return template.replace("{task}", task)


def image_block(token_ids: np.ndarray, layout: VocabularyLayout) -> list[int]:
    """Tokens of one image: its size, its rows, its marks.

    Args:
        token_ids (integer `np.ndarray` of shape `(h, w)`): image token ids.
        layout (`VocabularyLayout`): the ids of the marks.

    Returns:
        `list[int]`: `h * (w + 1) + 4` ids.

    Raises:
        ValueError: if the size has no grid token.
    """
    height, width = token_ids.shape
    unit = layout.codes_per_grid_unit
    largest = layout.max_grid_size * unit
    if height % unit or width % unit or not (0 < height <= largest and 0 < width <= largest):
        raise ValueError(
            f"Height and width of an image in tokens must be multiples of {unit} up to {largest}, got "
            f"{height} x {width}. Choose another image size."
        )
    rows = np.full((height, width + 1), layout.eol_token_id, dtype=np.int64)
    rows[:, :width] = token_ids
    start = layout.grid_token_id_start
    head = [layout.boi_token_id, start + height // unit, start + width // unit]
    return head + rows.ravel().tolist() + [layout.eoi_token_id]


def action_block(token_ids: np.ndarray, layout: VocabularyLayout) -> list[int]:
    """Tokens of one command.

    Args:
        token_ids (integer `np.ndarray` of shape `(D,)`): action token ids.
        layout (`VocabularyLayout`): the ids of the marks.

    Returns:
        `list[int]`: `D + 2` ids.
    """
    return [layout.boa_token_id, *token_ids.tolist(), layout.eoa_token_id]


def history_blocks(
    images: Sequence[np.ndarray], actions: Sequence[np.ndarray] | np.ndarray, layout: VocabularyLayout
) -> list[int]:
    """Frames and the commands between them, in the order of time.

    Args:
        images (sequence of `(h, w)` arrays): image token ids, oldest first.
        actions (sequence of `(D,)` arrays): the command given after each of the first images; may be fewer, or none.
        layout (`VocabularyLayout`): the ids.

    Returns:
        `list[int]`: every image, followed by its action where it has one.

    Raises:
        ValueError: if there are more actions than images.
    """
    if len(actions) > len(images):
        raise ValueError(
            f"Every action of a history follows an image, got {len(images)} images and {len(actions)} actions. Give "
            "the image that was seen before each action."
        )
    tokens = []
    for index, image in enumerate(images):
        tokens += image_block(image, layout)
        if index < len(actions):
            tokens += action_block(actions[index], layout)
    return tokens


def prompt_tokens(
    text: list[int], history: list[int], layout: VocabularyLayout, separator: Separator = "after_history"
) -> list[int]:
    """What the model is shown, up to and with the separator that its answer follows.

    Args:
        text (`list[int]`): text ids.
        history (`list[int]`): see `history_blocks`.
        layout (`VocabularyLayout`): the ids.
        separator (`str`): `after_history`, one separator at the end, or `after_text`, one more between text and
            history, as the official evaluation writes prompts with past actions.

    Returns:
        `list[int]`: the prompt.

    Raises:
        ValueError: if the place of the separator is unknown.
    """
    require_choice("separator", separator, SEPARATORS)
    between = [layout.sep_token_id] if separator == "after_text" else []
    return [layout.bos_token_id, *text, *between, *history, layout.sep_token_id]


def policy_answer(actions: Sequence[np.ndarray] | np.ndarray, layout: VocabularyLayout) -> list[int]:
    """What the policy answers: the chunk and the separator.

    Args:
        actions (integer `np.ndarray` of shape `(K, D)`): action token ids.
        layout (`VocabularyLayout`): the ids.

    Returns:
        `list[int]`: the answer.
    """
    return [token for action in actions for token in action_block(action, layout)] + [layout.sep_token_id]


def world_model_answer(image: np.ndarray, layout: VocabularyLayout) -> list[int]:
    """What the world model answers: the next frame and the separator.

    Args:
        image (integer `np.ndarray` of shape `(h, w)`): image token ids.
        layout (`VocabularyLayout`): the ids.

    Returns:
        `list[int]`: the answer.
    """
    return [*image_block(image, layout), layout.sep_token_id]


def label_answer(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    """A training sample: prompt and answer, labels on the answer only.

    Args:
        prompt (`list[int]`): tokens up to and with the separator.
        answer (`list[int]`): tokens after it.

    Returns:
        `dict`: `input_ids` and `labels`, lists of one length.
    """
    return {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}
