"""The one vocabulary: which id means what, as data.

Text, images and actions share one table of token ids. A `VocabularyLayout` says where each kind lies; everything else
in this folder, and the model's config, takes its ids from there.

    | specials | image tokens | marks, grid sizes, action bins, reserved | text (byte-level BPE) |
"""

from dataclasses import asdict, dataclass
from typing import Any

_DIGITS_AS_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
_RESERVED_OFFSET = 4  # the entry `<reserved00000>` would have this id: names of the official vocabulary

_SINGLE_IDS = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "unk_token_id",
    "boi_token_id",
    "eoi_token_id",
    "eol_token_id",
    "sep_token_id",
    "boa_token_id",
    "eoa_token_id",
)


def image_token_name(code: int) -> str:
    """Name of the vocabulary entry of a VQ code: its decimal digits written as the letters A to J.

    Args:
        code (`int`): index into the codebook.

    Returns:
        `str`: for example `IMGIMGBAZ` for code 10.
    """
    return f"IMGIMG{str(code).translate(_DIGITS_AS_LETTERS)}Z"


@dataclass(frozen=True)
class VocabularyLayout:
    """Where every kind of token lies in the vocabulary. The defaults are the official layout.

    Args:
        vocab_size (`int`): entries of the whole vocabulary.
        bos_token_id, pad_token_id, eos_token_id, unk_token_id (`int`): the usual specials.
        image_token_id_start (`int`): first image token.
        num_image_tokens (`int`): size of the VQ codebook.
        eoi_token_id, boi_token_id (`int`): end and begin of an image.
        eol_token_id (`int`): end of a row of image tokens.
        sep_token_id (`int`): ends the prompt, and again the answer.
        grid_token_id_start (`int`): the token of grid size `n` is `grid_token_id_start + n`.
        max_grid_size (`int`): largest grid size that has a token.
        codes_per_grid_unit (`int`): image tokens along one grid unit.
        boa_token_id, eoa_token_id (`int`): begin and end of an action.
        action_token_id_start (`int`): first action bin.
        num_action_tokens (`int`): action bins.
        text_token_id_start (`int`): first text token; text reaches to the end of the vocabulary.

    Raises:
        ValueError: if two kinds overlap or an id lies outside the vocabulary.
    """

    vocab_size: int = 65536
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    unk_token_id: int = 3
    image_token_id_start: int = 4
    num_image_tokens: int = 8192
    eoi_token_id: int = 8196
    boi_token_id: int = 8197
    sep_token_id: int = 8710
    eol_token_id: int = 8803
    grid_token_id_start: int = 8804
    max_grid_size: int = 64
    codes_per_grid_unit: int = 2
    boa_token_id: int = 10004
    eoa_token_id: int = 15004
    action_token_id_start: int = 10006
    num_action_tokens: int = 256
    text_token_id_start: int = 16384

    def __post_init__(self) -> None:
        """Refuse a layout in which an id could mean two things."""
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"`{name}` must be an integer >= 0, got {value!r}. Correct the vocabulary layout.")
        for name in ("num_image_tokens", "num_action_tokens", "max_grid_size", "codes_per_grid_unit"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got 0. Correct the vocabulary layout.")
        previous_name, previous_end = "", 0
        for start, end, name in sorted((start, end, name) for name, (start, end) in self.ranges().items()):
            if start < previous_end:
                raise ValueError(
                    f"Vocabulary ranges must be disjoint: {name} [{start}, {end}) begins inside {previous_name}, "
                    f"which ends at {previous_end}. Move one of them."
                )
            if end > self.vocab_size:
                raise ValueError(
                    f"{name} [{start}, {end}) must lie inside the vocabulary of {self.vocab_size} entries. "
                    "Raise `vocab_size` or move it."
                )
            previous_name, previous_end = name, end

    @classmethod
    def official(cls) -> "VocabularyLayout":
        """Layout of the official checkpoints: 65,536 entries.

        Returns:
            `VocabularyLayout`: the layout.
        """
        return cls()

    @classmethod
    def compact(
        cls,
        num_image_tokens: int,
        num_text_tokens: int,
        num_action_tokens: int = 256,
        max_grid_size: int = 32,
        codes_per_grid_unit: int = 2,
    ) -> "VocabularyLayout":
        """Layout without gaps, for small models.

        Args:
            num_image_tokens (`int`): size of the VQ codebook.
            num_text_tokens (`int`): text entries, at least the 256 bytes.
            num_action_tokens (`int`): action bins.
            max_grid_size (`int`): largest image side, in grid units.
            codes_per_grid_unit (`int`): image tokens along one grid unit.

        Returns:
            `VocabularyLayout`: the layout.
        """
        marks = 4 + num_image_tokens
        grid = marks + 4  # eoi, boi, sep and eol come before it
        boa = grid + max_grid_size + 1
        actions = boa + 1
        eoa = actions + num_action_tokens
        return cls(
            vocab_size=eoa + 1 + num_text_tokens,
            num_image_tokens=num_image_tokens,
            eoi_token_id=marks,
            boi_token_id=marks + 1,
            sep_token_id=marks + 2,
            eol_token_id=marks + 3,
            grid_token_id_start=grid,
            max_grid_size=max_grid_size,
            codes_per_grid_unit=codes_per_grid_unit,
            boa_token_id=boa,
            eoa_token_id=eoa,
            action_token_id_start=actions,
            num_action_tokens=num_action_tokens,
            text_token_id_start=eoa + 1,
        )

    @classmethod
    def from_dict(cls, values: dict[str, int]) -> "VocabularyLayout":
        """Read a layout that `to_dict` wrote.

        Args:
            values (`dict`): field name to value; fields left out take the official value.

        Returns:
            `VocabularyLayout`: the layout.

        Raises:
            ValueError: if a name is no field of a layout.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"Unknown vocabulary fields {unknown}. A layout has: {', '.join(cls.__dataclass_fields__)}."
            )
        return cls(**values)

    def to_dict(self) -> dict[str, int]:
        """Every field, for `processor_config.json`.

        Returns:
            `dict`: field name to value.
        """
        return asdict(self)

    def model_config(self) -> dict[str, Any]:
        """What the model's config must agree with.

        Returns:
            `dict`: keyword arguments of `WorldVLAConfig`.
        """
        model_knows_not = ("unk_token_id", "text_token_id_start", "max_grid_size")
        return {name: value for name, value in self.to_dict().items() if name not in model_knows_not}

    def ranges(self) -> dict[str, tuple[int, int]]:
        """The half-open range of ids of every kind of token.

        Returns:
            `dict`: name to `(start, end)`; the specials and marks are ranges of one id.
        """
        spans = {name: (getattr(self, name), getattr(self, name) + 1) for name in _SINGLE_IDS}
        spans["image tokens"] = (self.image_token_id_start, self.image_token_id_start + self.num_image_tokens)
        spans["grid sizes"] = (self.grid_token_id_start, self.grid_token_id_start + self.max_grid_size + 1)
        spans["action tokens"] = (self.action_token_id_start, self.action_token_id_start + self.num_action_tokens)
        spans["text"] = (self.text_token_id_start, max(self.vocab_size, self.text_token_id_start + 1))
        return spans

    def token_names(self, code_to_offset: list[int] | None = None) -> list[str]:
        """Names of all entries below the text, by id.

        Args:
            code_to_offset (`list[int]`, *optional*): position of each code among the image tokens; without it, the
                codes lie in order.

        Returns:
            `list[str]`: `text_token_id_start` names, all different.

        References:
            Names of the official `text_tokenizer.json`.
        """
        names = [f"<reserved{token_id - _RESERVED_OFFSET:05d}>" for token_id in range(self.text_token_id_start)]
        for code in range(self.num_image_tokens):
            offset = code if code_to_offset is None else int(code_to_offset[code])
            names[self.image_token_id_start + offset] = image_token_name(code)
        special = {
            self.bos_token_id: "<s>",
            self.pad_token_id: "<pad>",
            self.eos_token_id: "</s>",
            self.unk_token_id: "<unk>",
            self.eoi_token_id: "<eoss>",
            self.boi_token_id: "<racm3:break>",
        }
        for token_id, name in special.items():
            names[token_id] = name
        return names
