"""Rolling the world model out over a recorded episode, and how close it stays.

Shapes: `B` episodes, `N` imagined frames, `H, W` pixels, `h, w` image tokens, `D` action dimensions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from evaluation.imagination_streams import stream_actions


@torch.inference_mode()
def imagine_episode(
    model: Any,
    processor: Any,
    first_frame: np.ndarray,
    actions: np.ndarray,
    dataset_name: str | None = None,
    on_frame: Callable[[int], None] = lambda frame: None,
) -> np.ndarray:
    """Predict frame after frame from one real frame and the recorded actions.

    Every predicted frame is handed on as tokens; it is decoded to pixels only to be looked at. Prompts show the last
    `config.world_model_history` frame-action pairs, fewer at the start, as in training.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        first_frame (`np.ndarray` of shape `(H, W, 3)`): uint8, upright.
        actions (`np.ndarray` of shape `(N, D)`): commands in the data set's units.
        dataset_name (`str`, *optional*): whose action limits; may be left out when the processor has one data set.
        on_frame (`Callable[[int], None]`): called after every frame with its number, for progress.

    Returns:
        `np.ndarray` of shape `(N + 1, H, W, 3)`: uint8; the first is the reconstruction of `first_frame`.
    """
    action_ids = processor.encode_actions(actions, dataset_name)
    frame = processor.encode_images([first_frame])
    imagined = imagine_tokens(model, processor, frame, torch.as_tensor(action_ids)[None], on_frame)
    return decode_frames(processor, torch.cat([frame, imagined[0]]))


@torch.inference_mode()
def imagine_tokens(
    model: Any,
    processor: Any,
    first_frames: torch.Tensor,
    action_ids: torch.Tensor,
    on_frame: Callable[[int], None] = lambda frame: None,
    **options: Any,
) -> torch.Tensor:
    """Predict frame after frame of several episodes at once, as tokens.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        first_frames (`torch.LongTensor` of shape `(B, h, w)`): image token ids of one real frame an episode.
        action_ids (`torch.LongTensor` of shape `(B, N, D)`): action token ids, N at least 1.
        on_frame (`Callable[[int], None]`): called after every frame with its number, for progress.
        **options: further arguments of `imagine_frames`: `do_sample`, `generator` and so on.

    Returns:
        `torch.LongTensor` of shape `(B, N, h, w)`: image token ids of the frames that follow, on the device of
        `first_frames`.
    """
    frames = []
    stream = stream_actions(model, processor, first_frames[:, None], action_ids, **options)
    for number, imagined in enumerate(stream, start=1):
        frames.append(imagined.image_ids.to(first_frames.device))
        on_frame(number)
    return torch.stack(frames, dim=1)


def reconstruct(processor: Any, frames: np.ndarray) -> np.ndarray:
    """Encode and decode frames: the best that the world model's pictures can be.

    Args:
        processor (`WorldVLAProcessor`): holds the VQ-GAN.
        frames (`np.ndarray` of shape `(N, H, W, 3)`): uint8.

    Returns:
        `np.ndarray` of shape `(N, H, W, 3)`: uint8.
    """
    return decode_frames(processor, processor.encode_images(list(frames)))


def fit_frames(processor: Any, frames: np.ndarray) -> np.ndarray:
    """Bring real frames to the size that the model works at, as the image tokenizer does.

    Args:
        processor (`WorldVLAProcessor`): holds the image tokenizer.
        frames (`np.ndarray` of shape `(N, H, W, 3)`): uint8, of any size.

    Returns:
        `np.ndarray`: uint8, of the processor's image size.
    """
    pixels = processor.image_tokenizer.preprocess(list(frames)).cpu().numpy()
    return np.round((pixels.transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255).astype(np.uint8)


def decode_frames(processor: Any, token_ids: torch.Tensor) -> np.ndarray:
    """Image token ids `(N, h, w)` to uint8 frames `(N, H, W, 3)`."""
    return np.stack([np.asarray(picture) for picture in processor.decode_images(token_ids)])
