"""Pixels <-> VQ codes <-> image token ids, on diffusers' `VQModel`.

Shapes: `B` images, `H, W` pixels, `h, w` rows and columns of codes (`h = H / stride`).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .inputs_worldvla import require_range
from .pixels_worldvla import convert_to_colours, convert_to_images, convert_to_rgb, resize_and_crop
from .vqgan_worldvla import stride_of


class WorldVLAImageTokenizer:
    """Turn images into VQ codes and back.

    Args:
        vq_model (`diffusers.VQModel` or a callable that returns one): the VQ-GAN; a callable is asked once, when the
            weights are first needed.
        image_size (`tuple[int, int]`): height and width that every image is brought to, in pixels.
        num_image_tokens (`int`): size of the codebook.
        image_token_id_start (`int`): id of the first image token.
        code_to_offset (`list[int]`, *optional*): position of each code among the image tokens, a permutation; without
            it the codes lie in order. Official weights need theirs.
        codes_per_grid_unit (`int`): the number of codes along a side must be a multiple of it.
        slice_size (`int`): images that the VQ-GAN sees at once; bounds the memory.

    Raises:
        ValueError: if sizes do not fit together or `code_to_offset` is no permutation.
    """

    def __init__(
        self,
        vq_model: Any,
        image_size: Sequence[int],
        num_image_tokens: int,
        image_token_id_start: int = 4,
        code_to_offset: Sequence[int] | None = None,
        codes_per_grid_unit: int = 2,
        slice_size: int = 16,
    ) -> None:
        self.image_size = check_image_size(image_size)
        self.num_image_tokens = num_image_tokens
        self.image_token_id_start = image_token_id_start
        self.codes_per_grid_unit = codes_per_grid_unit
        self.slice_size = slice_size
        self.code_to_offset = None if code_to_offset is None else [int(offset) for offset in code_to_offset]
        self._offset_to_code: np.ndarray | None = None
        if self.code_to_offset is not None:
            if sorted(self.code_to_offset) != list(range(num_image_tokens)):
                raise ValueError(
                    f"`code_to_offset` must hold each of 0 ... {num_image_tokens - 1} once, got "
                    f"{len(self.code_to_offset)} entries, {len(set(self.code_to_offset))} of them different."
                )
            self._offset_to_code = np.argsort(self.code_to_offset)
        self._load: Callable[[], Any] | None = None
        self._vq_model: Any = None
        if isinstance(vq_model, torch.nn.Module):
            self._adopt(vq_model)
        elif callable(vq_model):
            self._load = vq_model
        else:
            raise ValueError(f"`vq_model` must be a diffusers `VQModel`, got {type(vq_model).__name__}.")

    @property
    def vq_model(self) -> Any:
        """The VQ-GAN; its weights are loaded when first asked for."""
        if self._vq_model is None and self._load is not None:
            self._adopt(self._load())
        return self._vq_model

    def to(self, device: Any) -> "WorldVLAImageTokenizer":
        """Move the VQ-GAN to a device. It stays in its own precision.

        Args:
            device (`str` or `torch.device`): where to.

        Returns:
            `WorldVLAImageTokenizer`: this one.
        """
        self.vq_model.to(device)
        return self

    def preprocess(self, images: Sequence[Any]) -> torch.Tensor:
        """Bring images to the size and the value range that the VQ-GAN sees.

        Args:
            images (list of images): see `convert_to_rgb` for what an image may be.

        Returns:
            `torch.FloatTensor` of shape `(B, 3, H, W)`: colours in [-1, 1].

        Raises:
            ValueError: if there is no image or one cannot be read as RGB.
        """
        if len(images) == 0:
            raise ValueError("Expected at least one image, got an empty list. Pass `images=[image, ...]`.")
        return convert_to_colours(np.stack([resize_and_crop(convert_to_rgb(i), self.image_size) for i in images]))

    @torch.no_grad()
    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """Turn images into VQ codes.

        Args:
            images (list of images): see `convert_to_rgb` for what an image may be.

        Returns:
            `torch.LongTensor` of shape `(B, h, w)`, on the CPU: indices into the codebook.

        Raises:
            ValueError: as in `preprocess`.
        """
        if len(images) == 0:
            self.preprocess(images)
        slices = range(0, len(images), self.slice_size)
        return torch.cat([self._encode_slice(images[start : start + self.slice_size]) for start in slices])

    @torch.no_grad()
    def decode(self, codes: Any) -> list[Image.Image]:
        """Draw VQ codes.

        Args:
            codes (integer tensor or array of shape `(B, h, w)`): indices into the codebook.

        Returns:
            `list[PIL.Image.Image]`: B pictures of `h * stride` x `w * stride` pixels.

        Raises:
            ValueError: if the shape is another or a code lies outside the codebook; names it and its position.
        """
        values = _as_integers(codes, "codes")
        require_range(values, 0, self.num_image_tokens, "VQ codes")
        slices = range(0, len(values), self.slice_size)
        return [image for start in slices for image in self._decode_slice(values[start : start + self.slice_size])]

    def encode_to_ids(self, images: Sequence[Any]) -> torch.Tensor:
        """Turn images into image token ids.

        Args:
            images (list of images): see `convert_to_rgb` for what an image may be.

        Returns:
            `torch.LongTensor` of shape `(B, h, w)`, on the CPU: image token ids.

        Raises:
            ValueError: as in `preprocess`.
        """
        codes = self.encode(images)
        if self.code_to_offset is not None:
            codes = torch.tensor(self.code_to_offset)[codes]
        return codes + self.image_token_id_start

    def decode_ids(self, token_ids: Any) -> list[Image.Image]:
        """Draw image token ids.

        Args:
            token_ids (integer tensor or array of shape `(B, h, w)`): ids inside the image range.

        Returns:
            `list[PIL.Image.Image]`: B pictures.

        Raises:
            ValueError: if the shape is another or an id lies outside the image range; names it and its position.
        """
        offsets = self.check_ids(_as_integers(token_ids, "image token ids")) - self.image_token_id_start
        return self.decode(offsets if self._offset_to_code is None else self._offset_to_code[offsets])

    def check_ids(self, token_ids: np.ndarray) -> np.ndarray:
        """Refuse ids that are no image tokens.

        Args:
            token_ids (integer `np.ndarray`): ids.

        Returns:
            `np.ndarray` of int64: the same ids.

        Raises:
            ValueError: names the first bad id and its position.
        """
        start = self.image_token_id_start
        require_range(token_ids, start, start + self.num_image_tokens, "Image token ids")
        return token_ids.astype(np.int64, copy=False)

    def hash(self) -> str:
        """Fingerprint of what turns pixels into ids: the VQ-GAN's weights and the order of the image tokens.

        Returns:
            `str`: 64 hexadecimal digits; equal fingerprints make equal tokens.
        """
        digest = hashlib.sha256(repr((self.image_token_id_start, self.code_to_offset)).encode())
        for name, weight in sorted(self.vq_model.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _adopt(self, vq_model: Any) -> None:
        """Take a VQ-GAN, if it fits the vocabulary and the image size."""
        config, unit = vq_model.config, stride_of(vq_model) * self.codes_per_grid_unit
        if config.num_vq_embeddings != self.num_image_tokens:
            raise ValueError(
                f"The VQ-GAN has {config.num_vq_embeddings} codes, the vocabulary {self.num_image_tokens} image "
                "tokens. Use the layout that belongs to this VQ-GAN."
            )
        if not config.lookup_from_codebook:
            raise ValueError("The VQ-GAN must have `lookup_from_codebook=True`, else its codes cannot be drawn.")
        if self.image_size[0] % unit or self.image_size[1] % unit:
            raise ValueError(
                f"`image_size` must be multiples of {unit} pixels (stride {stride_of(vq_model)} x "
                f"{self.codes_per_grid_unit} codes), got {self.image_size}."
            )
        self._vq_model = vq_model

    def _encode_slice(self, images: Sequence[Any]) -> torch.Tensor:
        vq_model = self.vq_model
        colours = self.preprocess(images).to(device=vq_model.device, dtype=vq_model.dtype)
        with torch.autocast(vq_model.device.type, enabled=False):
            latents = vq_model.encode(colours).latents
            indices = vq_model.quantize(latents)[2][2]
        return indices.reshape(len(images), *latents.shape[-2:]).long().cpu()

    def _decode_slice(self, codes: np.ndarray) -> list[Image.Image]:
        vq_model = self.vq_model
        shape = (*codes.shape, vq_model.quantize.embedding.embedding_dim)
        flat = torch.from_numpy(codes.reshape(-1)).to(vq_model.device)
        with torch.autocast(vq_model.device.type, enabled=False):
            colours = vq_model.decode(flat, force_not_quantize=True, shape=shape).sample
        return convert_to_images(colours)


def check_image_size(image_size: Sequence[int]) -> tuple[int, int]:
    """Refuse an image size that is not two positive integers.

    Args:
        image_size (`tuple[int, int]`): height and width in pixels.

    Returns:
        `tuple[int, int]`: the same.

    Raises:
        ValueError: if it is something else.
    """
    values = list(image_size) if isinstance(image_size, Sequence) else [image_size]
    if len(values) != 2 or not all(isinstance(side, int) and side > 0 for side in values):
        raise ValueError(f"`image_size` must be (height, width) in pixels, got {image_size!r}.")
    return values[0], values[1]


def _as_integers(values: Any, what: str) -> np.ndarray:
    """A batch of grids as an int64 array of shape (B, h, w)."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise ValueError(
            f"Expected {what} as integers of shape (B, h, w), got {array.dtype} of shape {array.shape}. "
            "Add the batch dimension to a single image: `ids[None]`."
        )
    return array.astype(np.int64, copy=False)
