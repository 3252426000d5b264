"""Everything the model reads and writes: text, images and actions <-> token ids, in the layouts of the two roles."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature

from .action_tokenization_worldvla import BINNINGS, WorldVLAActionTokenizer
from .bpe_worldvla import require_same_vocabulary
from .choices_worldvla import require_choice
from .image_processing_worldvla import WorldVLAImageTokenizer
from .inputs_worldvla import SampleInputs, list_images, pad_left, read_call_options, split_batch
from .pixels_worldvla import check_image_size
from .processor_codecs_worldvla import ProcessorCodecs
from .prompt_worldvla import (
    PROMPTS,
    ROLES,
    SEPARATORS,
    Role,
    Separator,
    history_blocks,
    label_answer,
    policy_answer,
    prompt_tokens,
    render_prompt,
    world_model_answer,
)
from .vocabulary_worldvla import VocabularyLayout

_CALL_ARGUMENTS = (
    *("images", "text", "actions", "history_actions"),
    *("role", "prompt", "dataset_name", "separator"),
)


class WorldVLAProcessor(ProcessorCodecs):
    """Prepare inputs for both roles and read the model's answers.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): the text tokenizer; its `model_max_length` bounds every prompt.
        vocabulary (`VocabularyLayout` or `dict`, *optional*): which id means what; the official layout by default.
        action_limits (`dict`, *optional*): data set name to `{"low": [...], "high": [...]}`, in its own units.
        binning (`str`): `uniform` (the paper) or `official` (official weights), see `WorldVLAActionTokenizer`.
        image_size (`tuple[int, int]`): height and width that images are brought to, in pixels.
        crop (`str`): `fixed` brings every image to `image_size`; `variable` keeps each one's own shape, at about that
            area, as official weights were trained.
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
        crop: str = "fixed",
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
        self.crop = crop
        self.code_to_offset = None if code_to_offset is None else [int(offset) for offset in code_to_offset]
        self.policy_prompt = policy_prompt
        self.world_model_prompt = world_model_prompt
        require_choice("binning", binning, BINNINGS)
        self.binning = binning
        self.action_limits: dict[str, dict[str, list[float]]] | None = None
        self.action_tokenizer: WorldVLAActionTokenizer | None = None
        if action_limits:
            self.action_tokenizer = WorldVLAActionTokenizer(
                vocabulary.action_token_id_start, vocabulary.num_action_tokens, binning, action_limits
            )
            self.action_limits = self.action_tokenizer.limits
        self.image_tokenizer: WorldVLAImageTokenizer | None = None
        if vq_model is not None:
            self._attach_vq_model(vq_model)
        self._text_cache: dict[str, list[int]] = {}

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        actions: Any = None,
        role: Role | None = None,
        prompt: str | None = None,
        dataset_name: str | None = None,
        history_actions: Any = None,
        separator: Separator | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Build the prompts that the model continues.

        Args:
            images (list of images, or list of lists for a batch): the frames, oldest first. An image is whatever
                `convert_to_rgb` reads, or an integer array `(h, w)` of image token ids.
            text (`str` or `list[str]`): the instruction, for the policy. The world model is not told it.
            actions (float array of shape `(n, D)`, for a batch `(B, n, D)` or a list): for the world model, the
                command given after each of the n images, in the data set's units; integer arrays are action token ids.
            role (`str`, *optional*): `policy` (which commands now? the default) or `world_model` (which frame next?).
            prompt (`str`, *optional*): wording of the prompt for this call.
            dataset_name (`str`, *optional*): whose action limits; may be left out when there is one data set.
            history_actions (like `actions`, *optional*): for the policy, the command given between each two images:
                one fewer than images. Each is written after its image.
            separator (`str`, *optional*): `after_history` (the default), or `after_text`: one more right after the
                text, as the official evaluation writes histories.
            **kwargs: `return_tensors`: `pt` (the default), `np`, or None for lists.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` of shape `(B, L)`, padded on the left.

        Raises:
            ValueError: if something is missing, malformed or too long; the message says what to do.
        """
        return_tensors = read_call_options(kwargs, _CALL_ARGUMENTS)
        role = _check_layout(role, separator)
        samples = split_batch(images, text, actions, history_actions)
        grids = self._tokenize_images([sample.images for sample in samples])
        prompts = []
        for sample, grid in zip(samples, grids, strict=True):
            tokens = self._build_prompt(replace(sample, images=grid), role, prompt, dataset_name, separator)
            prompts.append(self._check_length(tokens, "prompt"))
        return BatchFeature(pad_left(prompts, self.vocabulary.pad_token_id), tensor_type=return_tensors)

    def build_sample(
        self,
        images: Any,
        text: str | None = None,
        actions: Any = None,
        role: Role = "policy",
        prompt: str | None = None,
        dataset_name: str | None = None,
        history_actions: Any = None,
        separator: Separator | None = None,
    ) -> dict[str, list[int]]:
        """Build one training sample: the prompt, its answer, and labels on the answer only.

        Args:
            images (list of images): policy: the M observed frames; world_model: n known frames and the next one.
                Pixels or integer arrays `(h, w)` of image token ids.
            text (`str`, *optional*): the instruction, for the policy.
            actions (array of shape `(K, D)` or `(n, D)`): the chunk to predict, or the command after each known frame;
                floats in the data set's units, or integers: action token ids. A policy sample whose separator stands
                after the text may do without: then its history is the answer, as in the official layout.
            role (`str`): `policy` or `world_model`.
            prompt (`str`, *optional*): wording of the prompt.
            dataset_name (`str`, *optional*): whose action limits.
            history_actions (array of shape `(M - 1, D)`, *optional*): policy: the commands between the frames.
            separator (`str`, *optional*): see `__call__`.

        Returns:
            `dict`: `input_ids` and `labels`, lists of one length; -100 stands where nothing is learned.

        Raises:
            ValueError: if something is missing, malformed or too long.
        """
        role = _check_layout(role, separator)
        (grid,) = self._tokenize_images([list_images(images)])
        answer = None
        if role == "world_model":
            rows = self._tokenize_actions(actions, role, dataset_name)
            if len(grid) != len(rows) + 1:
                raise ValueError(
                    f"A world_model sample needs one image more than actions (the next frame comes last), got "
                    f"{len(grid)} images and {len(rows)} actions."
                )
            answer = world_model_answer(grid[-1], self.vocabulary)
            sample = SampleInputs(grid[:-1], text, rows, history_actions)
        else:
            if actions is not None or separator != "after_text":
                answer = policy_answer(self._tokenize_actions(actions, role, dataset_name), self.vocabulary)
            sample = SampleInputs(grid, text, None, history_actions)
        tokens = self._build_prompt(sample, role, prompt, dataset_name, separator)
        if answer is None:
            bar = tokens.index(self.vocabulary.sep_token_id) + 1
            tokens, answer = tokens[:bar], tokens[bar:]
        self._check_length(tokens + answer, "training sample")
        return label_answer(tokens, answer)

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
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return ["input_ids", "attention_mask"]

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds.

        Returns:
            `dict`: JSON values.
        """
        values = {
            "processor_class": type(self).__name__,
            "vocabulary": self.vocabulary.to_dict(),
            "action_limits": copy.deepcopy(self.action_limits),
            "binning": self.binning,
            "image_size": list(self.image_size),
            "crop": self.crop,
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
        self,
        sample: SampleInputs,
        role: Role,
        prompt: str | None,
        dataset_name: str | None,
        separator: Separator | None,
    ) -> list[int]:
        """The prompt of one sample whose images are token ids."""
        wording = prompt if prompt is not None else getattr(self, f"{role}_prompt")
        text_ids = self._tokenize_text(render_prompt(role, wording, sample.text))
        if role == "policy":
            actions = self._policy_history(sample, dataset_name)
        else:
            actions = self._world_model_history(sample, dataset_name)
        history = history_blocks(sample.images, actions, self.vocabulary)
        return prompt_tokens(text_ids, history, self.vocabulary, separator or "after_history")

    def _policy_history(self, sample: SampleInputs, dataset_name: str | None) -> Sequence[np.ndarray] | np.ndarray:
        """Ids of the actions between the images of a policy's prompt; none where only images are shown."""
        if sample.actions is not None:
            raise ValueError(
                "Role `policy` predicts actions, but `actions` were given. Leave them out, pass past ones as "
                '`history_actions`, use `role="world_model"`, or `build_sample` for training.'
            )
        count = len(sample.images)
        if sample.history_actions is None or (count == 1 and len(sample.history_actions) == 0):
            return []
        actions = self._tokenize_actions(sample.history_actions, "policy", dataset_name)
        if len(actions) != count - 1:
            raise ValueError(
                f"`history_actions` are the commands between the policy's images, got {count} images and "
                f"{len(actions)} of them. Pass {count - 1}, or none at all."
            )
        return actions

    def _world_model_history(self, sample: SampleInputs, dataset_name: str | None) -> np.ndarray:
        """Ids of the actions of a world model's prompt, one per image."""
        if sample.history_actions is not None:
            raise ValueError(
                "Role `world_model` takes all its commands as `actions`, got `history_actions`. Pass one command per "
                "image as `actions`."
            )
        actions = self._tokenize_actions(sample.actions, "world_model", dataset_name)
        count = len(sample.images)
        if len(actions) != count:
            raise ValueError(
                f"Role `world_model` needs one action per image (the command given after it), got {count} images "
                f"and {len(actions)} actions. Cut the actions: `actions[:{count}]`."
            )
        return actions

    def _check_length(self, tokens: list[int], what: str) -> list[int]:
        """Refuse what is longer than the model's positions."""
        if len(tokens) > self.tokenizer.model_max_length:
            raise ValueError(
                f"The {what} has {len(tokens)} tokens, the model {self.tokenizer.model_max_length} positions "
                "(`tokenizer.model_max_length`). Use fewer or smaller images, or a shorter text."
            )
        return tokens


def _check_layout(role: str | None, separator: str | None) -> Role:
    """Refuse an unknown role or place of the separator; the role is `policy` where it is left out."""
    require_choice("role", role or "policy", ROLES)
    require_choice("separator", separator or "after_history", SEPARATORS)
    return "world_model" if role == "world_model" else "policy"
