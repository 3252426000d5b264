"""The three codecs of the processor: text, images and actions <-> token ids, and mixed sequences back to parts.

Shapes: `B` images or sequences, `L` ids, `h, w` rows and columns of image tokens, `D` action dimensions.
"""

from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from .action_tokenization_worldvla import WorldVLAActionTokenizer
from .bpe_worldvla import encode_text
from .choices_worldvla import require_choice
from .image_processing_worldvla import WorldVLAImageTokenizer
from .inputs_worldvla import as_array, describe, is_tokenized, list_images, require_range
from .parsing_worldvla import Part, SequenceParser
from .processor_folder_worldvla import ProcessorFolder
from .vocabulary_worldvla import VocabularyLayout

_TEXT_CACHE_SIZE = 4096  # texts; a data set has some dozens of instructions

_Codecs = TypeVar("_Codecs", bound="ProcessorCodecs")


class ProcessorCodecs(ProcessorFolder):
    """What `WorldVLAProcessor` encodes and decodes with."""

    tokenizer: PreTrainedTokenizerFast
    vocabulary: VocabularyLayout
    image_size: tuple[int, int]
    crop: str
    code_to_offset: list[int] | None
    image_tokenizer: WorldVLAImageTokenizer | None
    action_tokenizer: WorldVLAActionTokenizer | None
    _text_cache: dict[str, list[int]]

    def encode_images(self, images: Any) -> torch.Tensor | list[torch.Tensor]:
        """Turn images into image token ids.

        Args:
            images (list of images): see `__call__`.

        Returns:
            `torch.LongTensor` of shape `(B, h, w)`: image token ids; with `crop="variable"`, or token ids of different
            sizes, a list of B tensors of shape `(h, w)`.

        Raises:
            ValueError: if there is no image or one cannot be read as RGB.
        """
        (grids,) = self._tokenize_images([list_images(images)])
        if self.crop == "variable" or len({grid.shape for grid in grids}) > 1:
            return [torch.from_numpy(grid) for grid in grids]
        return torch.from_numpy(np.stack(grids))

    def decode_images(self, token_ids: Any) -> list[Image.Image]:
        """Draw image token ids.

        Args:
            token_ids (integer tensor or array of shape `(B, h, w)`, or a list of B of shape `(h, w)`): ids inside the
                image range.

        Returns:
            `list[PIL.Image.Image]`: B pictures.

        Raises:
            ValueError: if an id lies outside the image range; names it and its position.
        """
        draw = self._require_images().decode_ids
        if not isinstance(token_ids, (list, tuple)):
            return draw(token_ids)
        grids = [as_array(grid) for grid in token_ids]
        pictures: dict[int, Image.Image] = {}
        for shape in {grid.shape for grid in grids}:
            alike = [index for index, grid in enumerate(grids) if grid.shape == shape]
            pictures.update(zip(alike, draw(np.stack([grids[index] for index in alike])), strict=True))
        return [pictures[index] for index in range(len(grids))]

    def encode_actions(self, actions: Any, dataset_name: str | None = None) -> Any:
        """Turn commands into action token ids, see `WorldVLAActionTokenizer.encode`.

        Args:
            actions (`np.ndarray` or `torch.Tensor` of shape `(..., D)`): commands in the data set's units.
            dataset_name (`str`, *optional*): whose limits; may be left out when there is one data set.

        Returns:
            integers of the same kind and shape: action token ids.

        Raises:
            ValueError: if the width is not `D` or a value is not finite.
        """
        return self._require_actions().encode(actions, dataset_name)

    def decode_actions(self, ids: Any, dataset_name: str | None = None) -> np.ndarray:
        """Turn action token ids into commands.

        Args:
            ids (integer array or tensor of shape `(..., D)`): ids inside the action range.
            dataset_name (`str`, *optional*): whose limits; may be left out when there is one data set.

        Returns:
            `np.ndarray` of floats, same shape: commands in the data set's units.

        Raises:
            ValueError: if an id lies outside the action range; names it and its position.
        """
        return self._require_actions().decode(as_array(ids), dataset_name)

    def parse(self, token_ids: Any, dataset_name: str | None = None) -> list[Part]:
        """Read a sequence of text, images and actions, whole or damaged.

        Args:
            token_ids (list of `int`, array or tensor of shape `(L,)`): ids of the vocabulary, in any order: a prompt,
                a training sample, what the model wrote, padded or not.
            dataset_name (`str`, *optional*): whose action limits; may be left out when there is one data set.

        Returns:
            `list[Part]`: `TextPart`, `ImagePart`, `ActionPart`, `SeparatorPart`, `SpecialPart` and `MalformedPart`,
            each with `start`, `stop` and `token_ids`; together they are the sequence.

        Raises:
            ValueError: if it is not one row of ids of the vocabulary, or the data set is unknown.
        """
        return self._make_parser(dataset_name).parse(token_ids)

    def batch_parse(self, token_ids: Any, dataset_name: str | None = None) -> list[list[Part]]:
        """Read several sequences, see `parse`.

        Args:
            token_ids (array or tensor of shape `(B, L)`, or a list of B sequences): ids of the vocabulary.
            dataset_name (`str`, *optional*): whose action limits.

        Returns:
            `list[list[Part]]`: the parts of each sequence.

        Raises:
            ValueError: if one of them is not a row of ids of the vocabulary; names the row.
        """
        if getattr(token_ids, "ndim", 2) != 2 or any(isinstance(row, (int, np.integer)) for row in token_ids):
            raise ValueError(
                f"`batch_parse` reads rows of token ids (B, L), got {describe(token_ids)}. Use `parse` for one row."
            )
        parser = self._make_parser(dataset_name)
        parsed = []
        for index, row in enumerate(token_ids):
            try:
                parsed.append(parser.parse(row))
            except ValueError as error:
                raise ValueError(f"Row {index} cannot be parsed. {error}") from error
        return parsed

    def _make_parser(self, dataset_name: str | None) -> SequenceParser:
        """A parser that decodes actions where it is known whose they are."""
        actions = self.action_tokenizer
        if dataset_name is not None:
            require_choice("data set", dataset_name, self._require_actions().limits)
        known = actions is not None and (dataset_name is not None or len(actions.limits) == 1)
        return SequenceParser(
            self.vocabulary,
            read_text=self._read_text,
            draw_image=self.decode_images,
            read_action=partial(self.decode_actions, dataset_name=dataset_name) if known else lambda _: None,
            action_dim=None if actions is None else actions.action_dim,
        )

    def image_token_hash(self) -> str:
        """Fingerprint of what turns pixels into ids, so that stored tokens can be matched to it.

        Returns:
            `str`: 64 hexadecimal digits.
        """
        return self._require_images().hash()

    def _read_text(self, ids: list[int]) -> str:
        """Text of text ids, to the letter."""
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    @property
    def vq_model(self) -> Any:
        """The VQ-GAN; its weights are loaded when first asked for."""
        return self._require_images().vq_model

    def to(self: _Codecs, device: Any = None, dtype: torch.dtype | None = None) -> _Codecs:
        """Move the VQ-GAN to a device.

        Args:
            device (`str` or `torch.device`, *optional*): where to.
            dtype (`torch.dtype`, *optional*): float32 or float64.

        Returns:
            the processor itself.

        Raises:
            ValueError: if there is no VQ-GAN, or the precision is lower than float32: it changes codes.
        """
        self._require_images().to(device, dtype)
        return self

    def _tokenize_actions(self, actions: Any, role: str, dataset_name: str | None) -> np.ndarray:
        """Action token ids of shape (rows, D), from commands or ids."""
        if actions is None:
            raise ValueError(f"Role `{role}` needs `actions` here, got none. Pass an array of shape (rows, D).")
        tokenizer = self._require_actions()
        values = as_array(actions)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2 or len(values) == 0:
            raise ValueError(
                f"Actions of one sample must have shape (rows, {tokenizer.action_dim}), got shape {values.shape}. For "
                "a batch pass a list of lists of images as well."
            )
        return tokenizer.check_ids(values) if values.dtype.kind in "iu" else tokenizer.encode(values, dataset_name)

    def _tokenize_images(self, samples: list[list[Any]]) -> list[list[np.ndarray]]:
        """Image token ids (h, w) of every image of every sample; pixels go through the VQ-GAN together."""
        flat = [image for sample in samples for image in sample]
        pixels = [index for index, image in enumerate(flat) if not is_tokenized(image)]
        if pixels:
            encoded = self._require_images().encode_each_to_ids([flat[index] for index in pixels])
            for index, ids in zip(pixels, encoded, strict=True):
                flat[index] = ids
        start = self.vocabulary.image_token_id_start
        end = start + self.vocabulary.num_image_tokens
        advice = "Pixels are uint8 or floats; integers are taken for token ids."
        for index, ids in enumerate(flat):
            array = as_array(ids)
            require_range(array, start, end, f"Token ids of image {index}", advice)
            flat[index] = array.astype(np.int64, copy=False)
        rest = iter(flat)
        return [[next(rest) for _ in sample] for sample in samples]

    def _tokenize_text(self, text: str) -> list[int]:
        """Text ids, remembered: training asks for the same few texts again and again."""
        ids = self._text_cache.get(text)
        if ids is None:
            if len(self._text_cache) >= _TEXT_CACHE_SIZE:
                self._text_cache.clear()
            ids = self._text_cache[text] = encode_text(self.tokenizer, text, self.vocabulary)
        return ids

    def _attach_vq_model(self, vq_model: Any) -> None:
        """Use a VQ-GAN, or a function that loads one."""
        self.image_tokenizer = WorldVLAImageTokenizer(
            vq_model,
            self.image_size,
            self.vocabulary.num_image_tokens,
            self.vocabulary.image_token_id_start,
            self.code_to_offset,
            self.vocabulary.codes_per_grid_unit,
            crop=self.crop,
        )

    def _require_images(self) -> WorldVLAImageTokenizer:
        if self.image_tokenizer is None:
            raise ValueError(
                "This processor has no VQ-GAN, so it cannot read or draw images. Build it with `vq_model=`."
            )
        return self.image_tokenizer

    def _require_actions(self) -> WorldVLAActionTokenizer:
        if self.action_tokenizer is None:
            raise ValueError(
                "This processor has no action limits, so it cannot read or write actions. Build it with "
                '`action_limits={"name": {"low": [...], "high": [...]}}`.'
            )
        return self.action_tokenizer
