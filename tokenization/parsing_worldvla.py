"""Token ids back to what they mean: a sequence of text, images, actions and marks, and of what is wrong.

Parts tile the sequence: every id stands in exactly one part, in order. Nothing that the ids say can make parsing fail;
what does not fit becomes a `MalformedPart` that says where and why. An error is only what is no row of ids of the
vocabulary.

Shapes: `L` ids, `h, w` rows and columns of image tokens, `D` action dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from .inputs_worldvla import as_array, require_range
from .vocabulary_worldvla import VocabularyLayout


@dataclass(frozen=True)
class Part:
    """A stretch of a sequence.

    Args:
        start (`int`): position of its first id.
        stop (`int`): position after its last id.
        token_ids (`tuple[int, ...]`): its ids, marks and all.
    """

    start: int
    stop: int
    token_ids: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class TextPart(Part):
    """Text.

    Args:
        text (`str`): what it says.
    """

    text: str


@dataclass(frozen=True)
class ImagePart(Part):
    """A whole image.

    Args:
        size (`tuple[int, int]`): rows and columns of image tokens, `(h, w)`.
        draw (callable): turns ids of shape `(1, h, w)` into a list of one picture.
    """

    size: tuple[int, int]
    draw: Callable[[np.ndarray], list[Image.Image]] = field(repr=False, compare=False)

    @property
    def grid(self) -> np.ndarray:
        """Image token ids, int64 of shape `(h, w)`."""
        height, width = self.size
        return np.array(self.token_ids[3:-1], dtype=np.int64).reshape(height, width + 1)[:, :width]

    def to_image(self) -> Image.Image:
        """Draw it. The VQ-GAN is needed only now.

        Returns:
            `PIL.Image.Image`: the picture.

        Raises:
            ValueError: if the processor has no VQ-GAN.
        """
        return self.draw(self.grid[None])[0]


@dataclass(frozen=True)
class ActionPart(Part):
    """A whole action.

    Args:
        command (`np.ndarray` of shape `(D,)`, *optional*): the command in the data set's units; None where the
            processor has no limits, or those of several data sets and it was not said whose.
    """

    command: np.ndarray | None = field(compare=False)

    @property
    def action_token_ids(self) -> np.ndarray:
        """Action token ids, int64 of shape `(D,)`."""
        return np.array(self.token_ids[1:-1], dtype=np.int64)


@dataclass(frozen=True)
class SeparatorPart(Part):
    """The end of a prompt, or of an answer."""


@dataclass(frozen=True)
class SpecialPart(Part):
    """Begin or end of a sequence, an unknown token, or padding of any length.

    Args:
        name (`str`): `bos`, `eos`, `unk` or `pad`.
    """

    name: str


@dataclass(frozen=True)
class MalformedPart(Part):
    """Ids that make no sense where they stand: a damaged or cut block, or ids outside of any block.

    Args:
        position (`int`): position of the first id that does not fit; the length of the sequence where one is missing.
        reason (`str`): what was expected there and what came.
    """

    position: int
    reason: str


class _Kind(IntEnum):
    """What an id is; the value stands in the lookup table."""

    RESERVED = 0
    TEXT = 1
    IMAGE = 2
    ACTION = 3
    GRID = 4
    BOS = 5
    PAD = 6
    EOS = 7
    UNK = 8
    BOI = 9
    EOI = 10
    EOL = 11
    SEP = 12
    BOA = 13
    EOA = 14


_RANGES = {"text": _Kind.TEXT, "image tokens": _Kind.IMAGE, "action tokens": _Kind.ACTION, "grid sizes": _Kind.GRID}
_NAMES = {
    _Kind.RESERVED: "a reserved id",
    _Kind.TEXT: "text",
    _Kind.IMAGE: "an image token",
    _Kind.ACTION: "an action token",
    _Kind.GRID: "a grid size",
    _Kind.BOS: "the begin of the sequence",
    _Kind.PAD: "padding",
    _Kind.EOS: "the end of the sequence",
    _Kind.UNK: "the unknown token",
    _Kind.BOI: "a begin of image",
    _Kind.EOI: "an end of image",
    _Kind.EOL: "an end of row",
    _Kind.SEP: "a separator",
    _Kind.BOA: "a begin of action",
    _Kind.EOA: "an end of action",
}
# What a damaged block takes with it; its end mark, the last, closes it.
_INSIDE_IMAGE = (_Kind.IMAGE, _Kind.EOL, _Kind.GRID, _Kind.EOI)
_INSIDE_ACTION = (_Kind.ACTION, _Kind.EOA)


@lru_cache(maxsize=8)
def _kind_table(layout: VocabularyLayout) -> np.ndarray:
    """What every id of the vocabulary is, by id."""
    kinds = np.zeros(layout.vocab_size, dtype=np.int8)
    for name, (start, end) in layout.ranges().items():
        kinds[start:end] = _RANGES[name] if name in _RANGES else _Kind[name.split("_")[0].upper()]
    return kinds


def check_token_ids(token_ids: Any, vocab_size: int) -> np.ndarray:
    """Refuse what is no sequence of ids.

    Args:
        token_ids (list of `int`, array or tensor of shape `(L,)`): the ids.
        vocab_size (`int`): entries of the vocabulary.

    Returns:
        `np.ndarray` of int64, shape `(L,)`: the ids.

    Raises:
        ValueError: if they are not one row of integers, or one lies outside the vocabulary.
    """
    try:
        ids = as_array(token_ids)
    except (TypeError, ValueError, OverflowError) as error:  # ragged lists, bfloat16
        raise ValueError(f"Token ids must be one row of integers, got {type(token_ids).__name__}: {error}.") from error
    if ids.ndim != 1:
        advice = " Use `batch_parse` for several rows." if ids.ndim == 2 else ""
        raise ValueError(f"Token ids must be one row of shape (L,), got shape {ids.shape}.{advice}")
    if ids.size == 0:
        return np.zeros(0, dtype=np.int64)
    if ids.dtype.kind not in "iu":
        raise ValueError(
            f"Token ids must be integers, got {ids.dtype}. Pass what `generate` or the processor returned."
        )
    advice = "Pass `input_ids` of this processor, or what its model wrote; labels hold -100."
    require_range(ids, 0, vocab_size, "Token ids", advice)
    return ids.astype(np.int64)


class SequenceParser:
    """Cut sequences of one vocabulary into parts.

    Args:
        layout (`VocabularyLayout`): which id means what.
        read_text (callable): turns a list of text ids into `str`.
        draw_image (callable): turns image ids `(1, h, w)` into a list of one picture; called when asked for a picture.
        read_action (callable): turns action ids `(D,)` into a command, or None.
        action_dim (`int`, *optional*): bins of an action; without it, any number but none.
    """

    def __init__(
        self,
        layout: VocabularyLayout,
        read_text: Callable[[list[int]], str],
        draw_image: Callable[[np.ndarray], list[Image.Image]],
        read_action: Callable[[np.ndarray], np.ndarray | None],
        action_dim: int | None = None,
    ) -> None:
        self.layout = layout
        self.read_text = read_text
        self.draw_image = draw_image
        self.read_action = read_action
        self.action_dim = action_dim

    def parse(self, token_ids: Any) -> list[Part]:
        """Cut one sequence into parts.

        Args:
            token_ids (list of `int`, array or tensor of shape `(L,)`): ids of the vocabulary, in any order.

        Returns:
            `list[Part]`: parts that tile the sequence.

        Raises:
            ValueError: if it is not one row of ids of the vocabulary.
        """
        ids = check_token_ids(token_ids, self.layout.vocab_size)
        sequence = _Sequence(ids.tolist(), _kind_table(self.layout)[ids].tobytes(), self.layout.grid_token_id_start)
        parts: list[Part] = []
        position = 0
        while position < len(ids):
            parts.append(self._read_part(sequence, position))
            position = parts[-1].stop
        return parts

    def _read_part(self, sequence: "_Sequence", start: int) -> Part:
        """The part that begins at `start`."""
        kind = _Kind(sequence.kinds[start])
        if kind == _Kind.BOI:
            return self._read_image(sequence, start)
        if kind == _Kind.BOA:
            return self._read_action(sequence, start)
        if kind == _Kind.TEXT:
            stop = sequence.end_of_run(start, (kind,))
            return TextPart(*sequence.cut(start, stop), self.read_text(sequence.ids[start:stop]))
        if kind == _Kind.SEP:
            return SeparatorPart(*sequence.cut(start, start + 1))
        if kind in (_Kind.BOS, _Kind.EOS, _Kind.UNK, _Kind.PAD):
            stop = sequence.end_of_run(start, (kind,)) if kind == _Kind.PAD else start + 1
            return SpecialPart(*sequence.cut(start, stop), kind.name.lower())
        return sequence.stray(start, kind)

    def _read_image(self, sequence: "_Sequence", start: int) -> Part:
        """The image that begins at `start`, or what is wrong with it."""
        size = []
        for position, side in ((start + 1, "height"), (start + 2, "width")):
            units = sequence.grid_size(position)
            if not units:
                return sequence.damaged(start, position, f"the {side} of the image", _INSIDE_IMAGE)
            size.append(units * self.layout.codes_per_grid_unit)
        height, width = size
        row = bytes([_Kind.IMAGE] * width + [_Kind.EOL])
        expected = row * height + bytes([_Kind.EOI])
        stop = start + 3 + len(expected)
        body = sequence.kinds[start + 3 : stop]
        if body != expected:
            fits = [one == other for one, other in zip(body, expected, strict=False)]
            offset = fits.index(False) if False in fits else len(body)
            what = f"{_NAMES[_Kind(expected[offset])]} of an image of {height} x {width} tokens"
            return sequence.damaged(start, start + 3 + offset, what, _INSIDE_IMAGE)
        return ImagePart(*sequence.cut(start, stop), (height, width), self.draw_image)

    def _read_action(self, sequence: "_Sequence", start: int) -> Part:
        """The action that begins at `start`, or what is wrong with it."""
        end = sequence.end_of_run(start + 1, (_Kind.ACTION,))
        bins = end - start - 1
        wanted = self.action_dim or max(bins, 1)
        if bins < wanted:
            return sequence.damaged(start, end, f"action token {bins + 1} of {wanted}", _INSIDE_ACTION)
        end = start + 1 + wanted
        if sequence.kinds[end : end + 1] != bytes([_Kind.EOA]):
            what = f"an end of action after {wanted} action tokens"
            return sequence.damaged(start, end, what, _INSIDE_ACTION)
        command = self.read_action(np.array(sequence.ids[start + 1 : end], dtype=np.int64))
        return ActionPart(*sequence.cut(start, end + 1), command)


@dataclass(frozen=True)
class _Sequence:
    """The ids of a sequence, and the kind of each as one byte."""

    ids: list[int]
    kinds: bytes
    grid_token_id_start: int

    def cut(self, start: int, stop: int) -> tuple[int, int, tuple[int, ...]]:
        """What every part begins with."""
        return start, stop, tuple(self.ids[start:stop])

    def grid_size(self, position: int) -> int:
        """The grid size at a position, 0 if there is none."""
        is_size = position < len(self.ids) and self.kinds[position] == _Kind.GRID
        return self.ids[position] - self.grid_token_id_start if is_size else 0

    def end_of_run(self, start: int, wanted: tuple[_Kind, ...]) -> int:
        """First position from `start` on that holds no id of the wanted kinds."""
        stop = start
        while stop < len(self.kinds) and self.kinds[stop] in wanted:
            stop += 1
        return stop

    def end_of_damage(self, start: int, inside: tuple[_Kind, ...]) -> int:
        """Where the rest of a damaged block ends: after its end mark, or where something else begins."""
        stop = self.end_of_run(start, inside[:-1])
        return stop + 1 if stop < len(self.kinds) and self.kinds[stop] == inside[-1] else stop

    def damaged(self, start: int, position: int, expected: str, inside: tuple[_Kind, ...]) -> MalformedPart:
        """A block that begins at `start` and goes wrong at `position`, with what is left of it."""
        if position == len(self.ids):
            return MalformedPart(
                *self.cut(start, position), position, f"the sequence ends where {expected} was expected"
            )
        reason = f"expected {expected}, got {_NAMES[_Kind(self.kinds[position])]} (id {self.ids[position]})"
        return MalformedPart(*self.cut(start, self.end_of_damage(position, inside)), position, reason)

    def stray(self, start: int, kind: _Kind) -> MalformedPart:
        """Ids that stand outside of any block."""
        if kind == _Kind.RESERVED:
            reason = f"id {self.ids[start]} is reserved and means nothing"
            return MalformedPart(*self.cut(start, self.end_of_run(start, (kind,))), start, reason)
        inside, block = (_INSIDE_IMAGE, "image") if kind in _INSIDE_IMAGE else (_INSIDE_ACTION, "action")
        reason = f"{_NAMES[kind]} (id {self.ids[start]}) outside of any {block}"
        return MalformedPart(*self.cut(start, self.end_of_damage(start, inside)), start, reason)
