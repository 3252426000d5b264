"""Sorts out what a caller may pass to the processor: one sample or a batch, pixels or token ids.

A flat list of images is one sample; a list of lists is a batch. An integer array of shape `(h, w)` is an image that is
tokenized already, unless it is uint8: bytes are grey pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .choices_worldvla import require_choice


@dataclass
class SampleInputs:
    """What belongs to one sample.

    Args:
        images (`list`): its images, oldest first.
        text (`str`, *optional*): the instruction.
        actions (*optional*): its commands or action token ids, one row each.
        history_actions (*optional*): those given between its images, for the policy.
    """

    images: list[Any]
    text: str | None = None
    actions: Any = None
    history_actions: Any = None


def as_array(values: Any) -> np.ndarray:
    """An array of what came, wherever it lies.

    Args:
        values: a tensor on any device, an array, or nested lists.

    Returns:
        `np.ndarray`: the same values.
    """
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    tensor = values.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16


def as_grids(values: Any, what: str) -> np.ndarray:
    """A batch of grids of integers as one array.

    Args:
        values (integer tensor or array of shape `(B, h, w)`): the grids.
        what (`str`): what they are, for the message.

    Returns:
        `np.ndarray` of shape `(B, h, w)`: int64.

    Raises:
        ValueError: if the shape is another, or they are no integers.
    """
    array = as_array(values)
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise ValueError(
            f"Expected {what} as integers of shape (B, h, w), got {array.dtype} of shape {array.shape}. "
            "Add the batch dimension to a single image: `ids[None]`."
        )
    return array.astype(np.int64, copy=False)


def is_tokenized(value: Any, ndim: int = 2) -> bool:
    """Whether an image came as token ids.

    Args:
        value: anything.
        ndim (`int`): 2 for one image, 3 for several in one array.

    Returns:
        `bool`: true for an integer array or tensor with that many dimensions that does not hold bytes.
    """
    if isinstance(value, torch.Tensor):
        integer = not (value.is_floating_point() or value.is_complex()) and value.dtype not in (
            torch.uint8,
            torch.bool,
        )
        return integer and value.ndim == ndim
    return (
        isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.dtype != np.uint8 and value.ndim == ndim
    )


def require_range(values: np.ndarray, start: int, end: int, what: str, advice: str = "") -> None:
    """Refuse integers outside a range.

    Args:
        values (integer `np.ndarray`): the integers.
        start (`int`): smallest value allowed.
        end (`int`): first value beyond.
        what (`str`): what they are, for the message.
        advice (`str`): what to do, for the message.

    Raises:
        ValueError: names the first bad value and its position.
    """
    if values.size and (values.min() < start or values.max() >= end):
        position = tuple(int(i) for i in np.argwhere((values < start) | (values >= end))[0])
        raise ValueError(
            f"{what} must lie in [{start}, {end}), got {values[position]} at position {position}. {advice}".rstrip()
        )


def pad_left(prompts: list[list[int]], pad_token_id: int) -> dict[str, list[list[int]]]:
    """Bring prompts to one length.

    Args:
        prompts (`list[list[int]]`): B prompts.
        pad_token_id (`int`): fills them up on the left.

    Returns:
        `dict`: `input_ids` and `attention_mask`, B lists of one length.
    """
    longest = max(map(len, prompts))
    return {
        "input_ids": [[pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts],
        "attention_mask": [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts],
    }


def split_batch(images: Any, text: Any = None, actions: Any = None, history_actions: Any = None) -> list[SampleInputs]:
    """Sort the arguments of a call into samples.

    Args:
        images: one image, a list of images (one sample), or a list of lists of images (a batch).
        text (`str` or `list[str]`, *optional*): one per sample.
        actions (*optional*): rows of commands or ids; for a batch one set of rows per sample.
        history_actions (*optional*): the same.

    Returns:
        `list[SampleInputs]`: the samples.

    Raises:
        ValueError: if there is no image, samples and flat images are mixed, or the numbers of images, texts and
            actions disagree.
    """
    images, batched = _sort_images(images)
    if not batched:
        if isinstance(text, (list, tuple)):
            text = _only(text, "text")
        return [SampleInputs(images[0], text, actions, history_actions)]
    texts = _one_per_sample(text, len(images), "text")
    rows = _one_per_sample(actions, len(images), "actions")
    history = _one_per_sample(history_actions, len(images), "history_actions")
    return [SampleInputs(*sample) for sample in zip(images, texts, rows, history, strict=True)]


def list_images(images: Any) -> list[Any]:
    """The images of one sample as a list.

    Args:
        images: one image, a list of images, or an array of several.

    Returns:
        `list`: the images.

    Raises:
        ValueError: if there is none.
    """
    if images is None or (isinstance(images, (list, tuple)) and len(images) == 0):
        raise ValueError(
            "Expected at least one image, got none. Pass `images=[image, ...]`, for the policy the past and the "
            "current frame, for the world model the frame to go on from."
        )
    if isinstance(images, (list, tuple)):
        return list(images)
    if _is_stack(images):
        return list_images(list(images))
    return [images]


def read_call_options(options: dict[str, Any], arguments: Iterable[str]) -> str | None:
    """Those arguments of a call that every processor of transformers takes.

    Args:
        options (`dict`): `return_tensors`; `padding`, which is always to the longest; both may also stand in
            `text_kwargs`, `images_kwargs` or `common_kwargs`.
        arguments (iterable of `str`): the other arguments of the call, for the message.

    Returns:
        `str` or None: what to return, `pt` by default.

    Raises:
        ValueError: if there is another option, or padding of another kind is asked for.
    """
    nested = ("common_kwargs", "text_kwargs", "images_kwargs")
    flat = {name: value for name, value in options.items() if name not in nested}
    for name in nested:
        flat.update(options.get(name) or {})
    for name in flat:
        require_choice("argument", name, [*arguments, "padding", "return_tensors"])
    if flat.get("padding", True) not in (True, "longest"):
        raise ValueError(
            f"`padding` must be True or 'longest', got {flat['padding']!r}. Prompts of a batch are padded on the left "
            "to the longest of them; call once per sample for prompts without padding."
        )
    return flat.get("return_tensors", "pt")


def _is_stack(value: Any) -> bool:
    """Whether one array or tensor holds several images."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 4 or is_tokenized(value, ndim=3)
    return False


def _sort_images(images: Any) -> tuple[list[list[Any]], bool]:
    """Samples of images, and whether the caller passed a batch."""
    outer = list_images(images)
    nested = [isinstance(item, (list, tuple)) or _is_stack(item) for item in outer]
    if isinstance(images, (list, tuple)) and any(nested):
        if not all(nested):
            raise ValueError(
                "Pass either a flat list of images (one sample) or a list of lists (a batch), got a mixture: item "
                f"{nested.index(False)} is {describe(outer[nested.index(False)])}, item {nested.index(True)} a list."
            )
        return [list_images(item) for item in outer], True
    return [outer], False


def _only(values: Any, what: str) -> Any:
    """The one element of a list given for one sample."""
    if len(values) != 1:
        raise ValueError(
            f"Got {len(values)} of `{what}` for one sample. A flat list of images is one sample; pass a list of lists "
            "of images for a batch."
        )
    return values[0]


def _one_per_sample(values: Any, count: int, what: str) -> list[Any]:
    """One value per sample of a batch, or None for each."""
    if values is None:
        return [None] * count
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise ValueError(
            f"Got {count} samples of images but one `{what}` ({describe(values)}). Pass a list of {count}."
        )
    if len(values) != count:
        raise ValueError(f"Got {count} samples of images but {len(values)} of `{what}`. Pass one per sample.")
    return list(values)


def describe(value: Any) -> str:
    """A value in few words, for messages.

    Args:
        value: anything.

    Returns:
        `str`: for example `an array of uint8 and shape (4, 4, 3)`.
    """
    if isinstance(value, Image.Image):
        return f"a PIL image of mode {value.mode}"
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"an array of {value.dtype} and shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
