"""Everything the model reads and writes: text, images and actions <-> token ids, in the layouts of the two roles."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature

from .action_tokenization_worldvla import WorldVLAActionTokenizer
from .bpe_worldvla import encode_text, require_same_vocabulary
from .choices_worldvla import require_choice
from .image_processing_worldvla import WorldVLAImageTokenizer, check_image_size
from .inputs_worldvla import SampleInputs, is_tokenized, list_images, pad_left, require_range, split_batch
from .processor_folder_worldvla import ProcessorFolder
from .prompt_worldvla import (
    PROMPTS,
    ROLES,
    Role,
    label_answer,
    policy_answer,
    policy_prompt,
    render_prompt,
    world_model_answer,
    world_model_prompt,
)
from .vocabulary_worldvla import VocabularyLayout

_TEXT_CACHE_SIZE = 4096  # texts; a data set has some dozens of instructions


class WorldVLAProcessor(ProcessorFolder):
    """Prepare inputs for both roles and read the model's answers.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): the text tokenizer; its `model_max_length` bounds every prompt.
        vocabulary (`VocabularyLayout` or `dict`, *optional*): which id means what; the official layout by default.
        action_limits (`dict`, *optional*): data set name to `{"low": [...], "high": [...]}`, in its own units.
        binning (`str`): `uniform` (the paper) or `official` (official weights), see `WorldVLAActionTokenizer`.
        image_size (`tuple[int, int]`): height and width that images are brought to, in pixels.
        code_to_offset (`list[int]`, *optional*): position of each VQ code among the image tokens.
        policy_prompt (`str`): wording of the policy's prompt.
        world_model_prompt (`str`): wording of the world model's prompt: `training`, `paper` or `evaluation`.
        vq_model (`diffusers.VQModel`, *optional*): the VQ-GAN; saved next to the rest, loaded when first needed.

    Raises:
        ValueError: if the parts do not fit together or a name is unknown.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        vocabulary: VocabularyLayout | dict[str, int] | None = None,
        action_limits: dict[str, dict[str, list[float]]] | None = None,
        binning: str = "uniform",
        image_size: Sequence[int] = (256, 256),
        code_to_offset: Sequence[int] | None = None,
        policy_prompt: str = "training",
        world_model_prompt: str = "training",
        vq_model: Any = None,
        chat_template: Any = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        if not isinstance(vocabulary, VocabularyLayout):
            vocabulary = VocabularyLayout.from_dict(vocabulary or {})
        require_same_vocabulary(tokenizer, vocabulary)
        require_choice("policy prompt", policy_prompt, PROMPTS["policy"])
        require_choice("world_model prompt", world_model_prompt, PROMPTS["world_model"])
        self.vocabulary = vocabulary
        self.image_size = check_image_size(image_size)
        self.code_to_offset = None if code_to_offset is None else [int(offset) for offset in code_to_offset]
        self.policy_prompt = policy_prompt
        self.world_model_prompt = world_model_prompt
        self.action_tokenizer: WorldVLAActionTokenizer | None = None
        if action_limits:
            self.action_tokenizer = WorldVLAActionTokenizer(
                vocabulary.action_token_id_start, vocabulary.num_action_tokens, binning, action_limits
            )
        self.image_tokenizer: WorldVLAImageTokenizer | None = None
        if vq_model is not None:
            self._attach_vq_model(vq_model)
        self._text_cache: dict[str, list[int]] = {}

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        actions: Any = None,
        role: Role = "policy",
        prompt: str | None = None,
        dataset_name: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Build the prompts that the model continues.

        Args:
            images (list of images, or list of lists for a batch): the frames, oldest first. An image is whatever
                `convert_to_rgb` reads, or an integer array `(h, w)` of image token ids.
            text (`str` or `list[str]`): the instruction, for the policy. The world model is not told it.
            actions (float array of shape `(n, D)`, for a batch `(B, n, D)` or a list): for the world model, the
                command given after each of the n images, in the data set's units; integer arrays are action token ids.
            role (`str`): `policy` (which commands now?) or `world_model` (which frame next?).
            prompt (`str`, *optional*): wording of the prompt for this call.
            dataset_name (`str`, *optional*): whose action limits; may be left out when there is one data set.
            return_tensors (`str`, *optional*): `pt`, `np`, or None for lists.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` of shape `(B, L)`, padded on the left.

        Raises:
            ValueError: if something is missing, malformed or too long; the message says what to do.
        """
        samples = split_batch(images, text, actions)
        grids = self._tokenize_images([sample.images for sample in samples])
        prompts = []
        for sample, grid in zip(samples, grids, strict=True):
            rows = self._check_actions(sample, role, len(grid), dataset_name)
            prompts.append(self._check_length(self._build_prompt(grid, sample.text, rows, role, prompt), "prompt"))
        return BatchFeature(pad_left(prompts, self.vocabulary.pad_token_id), tensor_type=return_tensors)

    def build_sample(
        self,
        images: Any,
        text: str | None = None,
        actions: Any = None,
        role: Role = "policy",
        prompt: str | None = None,
        dataset_name: str | None = None,
    ) -> dict[str, list[int]]:
        """Build one training sample: the prompt, its answer, and labels on the answer only.

        Args:
            images (list of images): policy: the M observed frames; world_model: n known frames and the next one.
                Pixels or integer arrays `(h, w)` of image token ids.
            text (`str`, *optional*): the instruction, for the policy.
            actions (array of shape `(K, D)` or `(n, D)`): the chunk to predict, or the command after each known frame;
                floats in the data set's units, or integers: action token ids.
            role (`str`): `policy` or `world_model`.
            prompt (`str`, *optional*): wording of the prompt.
            dataset_name (`str`, *optional*): whose action limits.

        Returns:
            `dict`: `input_ids` and `labels`, lists of one length; -100 stands where nothing is learned.

        Raises:
            ValueError: if something is missing, malformed or too long.
        """
        require_choice("role", role, ROLES)
        (grid,) = self._tokenize_images([list_images(images)])
        rows = self._tokenize_actions(actions, role, dataset_name)
        if role == "policy":
            tokens = self._build_prompt(grid, text, None, role, prompt)
            sample = label_answer(tokens, policy_answer(rows, self.vocabulary))
        else:
            if len(grid) != len(rows) + 1:
                raise ValueError(
                    f"A world_model sample needs one image more than actions (the next frame comes last), got "
                    f"{len(grid)} images and {len(rows)} actions."
                )
            tokens = self._build_prompt(grid[:-1], text, rows, role, prompt)
            sample = label_answer(tokens, world_model_answer(grid[-1], self.vocabulary))
        self._check_length(sample["input_ids"], "training sample")
        return sample

    def encode_images(self, images: Any) -> torch.Tensor:
        """Turn images into image token ids.

        Args:
            images (list of images): see `__call__`.

        Returns:
            `torch.LongTensor` of shape `(B, h, w)`: image token ids.

        Raises:
            ValueError: if there is no image or one cannot be read as RGB.
        """
        (grids,) = self._tokenize_images([list_images(images)])
        return torch.from_numpy(np.stack(grids))

    def decode_images(self, token_ids: Any) -> list[Image.Image]:
        """Draw image token ids.

        Args:
            token_ids (integer tensor or array of shape `(B, h, w)`): ids inside the image range.

        Returns:
            `list[PIL.Image.Image]`: B pictures.

        Raises:
            ValueError: if an id lies outside the image range; names it and its position.
        """
        return self._require_images().decode_ids(token_ids)

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
        values = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else ids
        return self._require_actions().decode(values, dataset_name)

    def image_token_hash(self) -> str:
        """Fingerprint of what turns pixels into ids, so that stored tokens can be matched to it.

        Returns:
            `str`: 64 hexadecimal digits.
        """
        return self._require_images().hash()

    def model_config(self) -> dict[str, Any]:
        """What the model's config must agree with: every id, the vocabulary's size and the action width.

        Returns:
            `dict`: keyword arguments of `WorldVLAConfig`.
        """
        config = self.vocabulary.model_config()
        if self.action_tokenizer is not None:
            config["action_dim"] = self.action_tokenizer.action_dim
        return config

    @property
    def vq_model(self) -> Any:
        """The VQ-GAN; its weights are loaded when first asked for."""
        return self._require_images().vq_model

    def to(self, device: Any) -> "WorldVLAProcessor":
        """Move the VQ-GAN to a device.

        Args:
            device (`str` or `torch.device`): where to.

        Returns:
            `WorldVLAProcessor`: this one.
        """
        self._require_images().to(device)
        return self

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return ["input_ids", "attention_mask"]

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds.

        Returns:
            `dict`: JSON values.
        """
        actions = self.action_tokenizer.to_dict() if self.action_tokenizer is not None else {}
        values = {
            "processor_class": type(self).__name__,
            "vocabulary": self.vocabulary.to_dict(),
            "action_limits": actions.get("limits"),
            "binning": actions.get("binning", "uniform"),
            "image_size": list(self.image_size),
            "code_to_offset": self.code_to_offset,
            "policy_prompt": self.policy_prompt,
            "world_model_prompt": self.world_model_prompt,
        }
        if "auto_map" in vars(self):  # set while saving
            values["auto_map"] = vars(self)["auto_map"]
        return values

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(vocab_size={self.vocabulary.vocab_size}, image_size={self.image_size}, "
            f"num_image_tokens={self.vocabulary.num_image_tokens}, actions={self.action_tokenizer is not None})"
        )

    def _build_prompt(
        self, grid: list[np.ndarray], text: str | None, rows: np.ndarray | None, role: Role, prompt: str | None
    ) -> list[int]:
        """The prompt of one sample; `rows` are the actions in it, none for the policy."""
        wording = prompt if prompt is not None else getattr(self, f"{role}_prompt")
        text_ids = self._tokenize_text(render_prompt(role, wording, text))
        if rows is None:
            return policy_prompt(text_ids, grid, self.vocabulary)
        return world_model_prompt(text_ids, grid, rows, self.vocabulary)

    def _check_actions(
        self, sample: SampleInputs, role: Role, num_images: int, dataset_name: str | None
    ) -> np.ndarray | None:
        """Action ids that belong into a prompt, one row per image."""
        require_choice("role", role, ROLES)
        if role == "policy":
            if sample.actions is not None:
                raise ValueError(
                    "Role `policy` predicts actions, but `actions` were given. Leave them out, use "
                    '`role="world_model"`, or `build_sample` for training.'
                )
            return None
        rows = self._tokenize_actions(sample.actions, role, dataset_name)
        if len(rows) != num_images:
            raise ValueError(
                f"Role `world_model` needs one action per image (the command given after it), got {num_images} images "
                f"and {len(rows)} actions. Cut the actions: `actions[:{num_images}]`."
            )
        return rows

    def _tokenize_actions(self, actions: Any, role: Role, dataset_name: str | None) -> np.ndarray:
        """Action token ids of shape (rows, D), from commands or ids."""
        if actions is None:
            raise ValueError(f"Role `{role}` needs `actions` here, got none. Pass an array of shape (rows, D).")
        tokenizer = self._require_actions()
        values = actions.detach().cpu().numpy() if isinstance(actions, torch.Tensor) else np.asarray(actions)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2 or len(values) == 0:
            raise ValueError(
                f"Actions of one sample must have shape (rows, {tokenizer.action_dim}), got shape {values.shape}. For "
                "a batch pass a list of lists of images as well."
            )
        return tokenizer.check_ids(values) if values.dtype.kind in "iu" else tokenizer.encode(values, dataset_name)

    def _tokenize_images(self, samples: list[list[Any]]) -> list[list[np.ndarray]]:
        """Image token ids of every image of every sample; pixels go through the VQ-GAN together."""
        flat = [image for sample in samples for image in sample]
        pixels = [index for index, image in enumerate(flat) if not is_tokenized(image)]
        if pixels:
            encoded = self._require_images().encode_to_ids([flat[index] for index in pixels]).numpy()
            for index, ids in zip(pixels, encoded, strict=True):
                flat[index] = ids
        start = self.vocabulary.image_token_id_start
        end = start + self.vocabulary.num_image_tokens
        advice = "Pixels are uint8 or floats; integers are taken for token ids."
        for index, ids in enumerate(flat):
            array = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else ids
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

    def _check_length(self, tokens: list[int], what: str) -> list[int]:
        """Refuse what is longer than the model's positions."""
        if len(tokens) > self.tokenizer.model_max_length:
            raise ValueError(
                f"The {what} has {len(tokens)} tokens, the model {self.tokenizer.model_max_length} positions "
                "(`tokenizer.model_max_length`). Use fewer or smaller images, or a shorter text."
            )
        return tokens

    def _attach_vq_model(self, vq_model: Any) -> None:
        """Use a VQ-GAN, or a function that loads one."""
        self.image_tokenizer = WorldVLAImageTokenizer(
            vq_model,
            self.image_size,
            self.vocabulary.num_image_tokens,
            self.vocabulary.image_token_id_start,
            self.code_to_offset,
            self.vocabulary.codes_per_grid_unit,
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
