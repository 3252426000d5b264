"""Pixels <-> VQ codes <-> image token ids, on diffusers' `VQModel`.

Shapes: `B` images, `H, W` pixels, `h, w` rows and columns of codes (`h = H / stride`).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .choices_worldvla import require_choice
from .inputs_worldvla import as_grids, require_range
from .pixels_worldvla import (
    check_image_size,
    choose_crop_size,
    convert_to_colours,
    convert_to_images,
    convert_to_rgb,
    list_crop_sizes,
    resize_and_crop,
)
from .vqgan_worldvla import full_precision, require_full_precision, stride_of

# Pixels that the VQ-GAN sees at once unless `slice_size` says otherwise: one image of 256 x 256 on a CPU, where more
# at once are slower, and 16 of them elsewhere.
_PIXELS_ON_CPU = 2**16
_PIXELS_ELSEWHERE = 2**20
_CROPS = ("fixed", "variable")


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
        slice_size (`int`, *optional*): images that the VQ-GAN sees at once; bounds the memory. By default as many as
            have 2^16 pixels together on a CPU, 2^20 elsewhere, but at least one.
        crop (`str`): `fixed` brings every image to `image_size`; `variable` keeps most of each image, in one of the
            sizes of about that area (`list_crop_sizes`), so that sizes differ.

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
        slice_size: int | None = None,
        crop: str = "fixed",
    ) -> None:
        require_choice("crop", crop, _CROPS)
        if slice_size is not None and slice_size < 1:
            raise ValueError(f"`slice_size` must be at least 1, got {slice_size}. Leave it out for the default.")
        self.image_size = check_image_size(image_size)
        self.num_image_tokens = num_image_tokens
        self.image_token_id_start = image_token_id_start
        self.codes_per_grid_unit = codes_per_grid_unit
        self.slice_size = slice_size
        self.crop = crop
        self.code_to_offset = None if code_to_offset is None else [int(offset) for offset in code_to_offset]
        self._code_to_offset, self._offset_to_code = _invert(self.code_to_offset, num_image_tokens)
        self._load: Callable[[], Any] | None = None
        self._vq_model: Any = None
        self._device: Any = None
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

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> "WorldVLAImageTokenizer":
        """Move the VQ-GAN to a device; weights that are not loaded yet will be loaded there.

        Args:
            device (`str` or `torch.device`, *optional*): where to.
            dtype (`torch.dtype`, *optional*): float32 or float64.

        Returns:
            `WorldVLAImageTokenizer`: this one.

        Raises:
            ValueError: if the precision is lower than float32: it changes codes.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None:
            require_full_precision(dtype)
            self.vq_model.to(dtype=dtype)
        if device is not None:
            self._device = device
            if self._vq_model is not None:
                self._vq_model.to(device)
        return self

    def preprocess(self, images: Sequence[Any], generator: np.random.Generator | None = None) -> torch.Tensor:
        """Bring images to the size and the value range that the VQ-GAN sees.

        Args:
            images (list of images): see `convert_to_rgb` for what an image may be.
            generator (`np.random.Generator`, *optional*): draws where to crop, for training. Without it, crops are
                centred; evaluation never passes one.

        Returns:
            `torch.FloatTensor` of shape `(B, 3, H, W)`: colours in [-1, 1].

        Raises:
            ValueError: if there is no image, one cannot be read as RGB, or `crop="variable"` gave different sizes.
        """
        pixels = [self._crop_pixels(image, generator) for image in _require_some(images)]
        _require_one_size([array.shape[:2] for array in pixels], "encode_each")
        return convert_to_colours(np.stack(pixels))

    def encode(self, images: Sequence[Any], generator: np.random.Generator | None = None) -> torch.Tensor:
        """Turn images of one size into VQ codes.

        Args:
            images (list of images): see `convert_to_rgb` for what an image may be.
            generator (`np.random.Generator`, *optional*): see `preprocess`.

        Returns:
            `torch.LongTensor` of shape `(B, h, w)`, on the CPU: indices into the codebook.

        Raises:
            ValueError: as in `preprocess`.
        """
        codes = self.encode_each(images, generator)
        _require_one_size([grid.shape for grid in codes], "encode_each")
        return torch.stack(codes)

    @torch.no_grad()
    def encode_each(self, images: Sequence[Any], generator: np.random.Generator | None = None) -> list[torch.Tensor]:
        """Turn images into VQ codes, each in its own size; images of one size go through the VQ-GAN together.

        Args:
            images (list of images): see `convert_to_rgb` for what an image may be.
            generator (`np.random.Generator`, *optional*): see `preprocess`.

        Returns:
            `list[torch.LongTensor]`: B grids of shape `(h, w)`, on the CPU: indices into the codebook.

        Raises:
            ValueError: if there is no image or one cannot be read as RGB.
        """
        codes: dict[int, torch.Tensor] = {}
        waiting: dict[tuple[int, ...], dict[int, np.ndarray]] = {}
        for index, image in enumerate(_require_some(images)):
            pixels = self._crop_pixels(image, generator)
            alike = waiting.setdefault(pixels.shape[:2], {})
            alike[index] = pixels
            if len(alike) >= self.images_at_once(*pixels.shape[:2]):
                codes.update(zip(alike, self._encode_slice(list(alike.values())), strict=True))
                alike.clear()
        for alike in waiting.values():
            if alike:
                codes.update(zip(alike, self._encode_slice(list(alike.values())), strict=True))
        return [codes[index] for index in range(len(images))]

    def images_at_once(self, height: int, width: int) -> int:
        """How many images of a size the VQ-GAN sees at once.

        Args:
            height (`int`): pixels.
            width (`int`): pixels.

        Returns:
            `int`: `slice_size` where it was given.
        """
        if self.slice_size is not None:
            return self.slice_size
        pixels = _PIXELS_ON_CPU if self._codebook().device.type == "cpu" else _PIXELS_ELSEWHERE
        return max(1, pixels // (height * width))

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
        values = as_grids(codes, "codes")
        require_range(values, 0, self.num_image_tokens, "VQ codes")
        stride = stride_of(self.vq_model)
        at_once = self.images_at_once(values.shape[1] * stride, values.shape[2] * stride)
        starts = range(0, len(values), at_once)
        return [image for start in starts for image in self._decode_slice(values[start : start + at_once])]

    def encode_to_ids(self, images: Sequence[Any], generator: np.random.Generator | None = None) -> torch.Tensor:
        """Turn images of one size into image token ids.

        Args:
            images (list of images): see `convert_to_rgb` for what an image may be.
            generator (`np.random.Generator`, *optional*): see `preprocess`.

        Returns:
            `torch.LongTensor` of shape `(B, h, w)`, on the CPU: image token ids.

        Raises:
            ValueError: as in `preprocess`.
        """
        return self._to_ids(self.encode(images, generator))

    def encode_each_to_ids(
        self, images: Sequence[Any], generator: np.random.Generator | None = None
    ) -> list[torch.Tensor]:
        """Turn images into image token ids, each in its own size.

        Args:
            images (list of images): see `convert_to_rgb` for what an image may be.
            generator (`np.random.Generator`, *optional*): see `preprocess`.

        Returns:
            `list[torch.LongTensor]`: B grids of shape `(h, w)`, on the CPU: image token ids.

        Raises:
            ValueError: if there is no image or one cannot be read as RGB.
        """
        return [self._to_ids(codes) for codes in self.encode_each(images, generator)]

    def decode_ids(self, token_ids: Any) -> list[Image.Image]:
        """Draw image token ids.

        Args:
            token_ids (integer tensor or array of shape `(B, h, w)`): ids inside the image range.

        Returns:
            `list[PIL.Image.Image]`: B pictures.

        Raises:
            ValueError: if the shape is another or an id lies outside the image range; names it and its position.
        """
        return self.decode(self._to_codes(token_ids))

    def embed_ids(self, token_ids: Any) -> torch.Tensor:
        """Look up what the codebook holds for image token ids: pictures that can be compared without being drawn.

        Args:
            token_ids (integer tensor or array of shape `(B, h, w)`): ids inside the image range.

        Returns:
            `torch.FloatTensor` of shape `(B, h, w, C)`, on the VQ-GAN's device: vectors of C numbers.

        Raises:
            ValueError: as in `decode_ids`.
        """
        codebook = self._codebook().detach()
        return codebook[torch.from_numpy(self._to_codes(token_ids)).to(codebook.device)]

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
        require_full_precision(vq_model.quantize.embedding.weight.dtype)
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
        self._vq_model = vq_model if self._device is None else vq_model.to(self._device)

    def _crop_pixels(self, image: Any, generator: np.random.Generator | None) -> np.ndarray:
        """One image as bytes, in the size it is encoded in."""
        pixels, size = convert_to_rgb(image), self.image_size
        if self.crop == "variable":
            unit = stride_of(self.vq_model) * self.codes_per_grid_unit
            height, width = pixels.shape[:2]
            size = choose_crop_size((height, width), list_crop_sizes(self.image_size, unit))
        return resize_and_crop(pixels, size, generator)

    def _codebook(self) -> torch.Tensor:
        """The codes' vectors, in full precision. Asking them for device and dtype is quick, the VQ-GAN takes 2 ms."""
        codebook = self.vq_model.quantize.embedding.weight
        require_full_precision(codebook.dtype)
        return codebook

    def _to_ids(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes if self._code_to_offset is None else self._code_to_offset[codes]) + self.image_token_id_start

    def _to_codes(self, token_ids: Any) -> np.ndarray:
        """Codes (B, h, w) of image token ids, which are checked."""
        offsets = self.check_ids(as_grids(token_ids, "image token ids")) - self.image_token_id_start
        return offsets if self._offset_to_code is None else self._offset_to_code[offsets]

    def _encode_slice(self, pixels: list[np.ndarray]) -> torch.Tensor:
        """Codes (B, h, w) of pixels of one size."""
        vq_model, codebook = self.vq_model, self._codebook()
        colours = convert_to_colours(np.stack(pixels)).to(device=codebook.device, dtype=codebook.dtype)
        with full_precision(codebook.device.type):
            latents = vq_model.encode(colours).latents
            indices = vq_model.quantize(latents)[2][2]
        return indices.reshape(len(pixels), *latents.shape[-2:]).long().cpu()

    def _decode_slice(self, codes: np.ndarray) -> list[Image.Image]:
        vq_model, codebook = self.vq_model, self._codebook()
        shape = (*codes.shape, codebook.shape[1])
        flat = torch.from_numpy(codes.reshape(-1)).to(codebook.device)
        with full_precision(codebook.device.type):
            colours = vq_model.decode(flat, force_not_quantize=True, shape=shape).sample
        return convert_to_images(colours)


def _invert(order: list[int] | None, count: int) -> tuple[torch.Tensor | None, np.ndarray | None]:
    """A permutation as a tensor, and its inverse; neither where the codes lie in order."""
    if order is None:
        return None, None
    if sorted(order) != list(range(count)):
        raise ValueError(
            f"`code_to_offset` must hold each of 0 ... {count - 1} once, got {len(order)} entries, {len(set(order))} "
            "of them different."
        )
    return torch.tensor(order), np.argsort(order)


def _require_some(images: Sequence[Any]) -> Sequence[Any]:
    """Refuse an empty list."""
    if len(images) == 0:
        raise ValueError("Expected at least one image, got an empty list. Pass `images=[image, ...]`.")
    return images


def _require_one_size(sizes: list[Any], instead: str) -> None:
    """Refuse sizes that do not fit into one tensor."""
    if len(set(sizes)) > 1:
        raise ValueError(
            f"Images of different sizes do not fit into one tensor, got {sorted({tuple(size) for size in sizes})}. "
            f'Use `{instead}`, or `crop="fixed"`.'
        )
