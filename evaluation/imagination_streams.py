"""Imagined episodes as streams of tokens: under actions that are given, or under the policy's own.

Nothing here touches a simulator, and no frame is decoded to pixels unless that is asked for. Shapes: `B` episodes, `n`
frames that are given, `N` frames that are imagined, `h, w` image tokens, `D` action dimensions, `M` frames that the
policy is shown, `K` actions of a chunk, `H` frame-action pairs that the world model is shown at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch


class ImaginedFrame(NamedTuple):
    """One frame of B episodes, what led to it, and how unsure the model was.

    Attributes:
        image_ids (`torch.LongTensor` of shape `(B, h, w)`): image token ids.
        action_ids (`torch.LongTensor` of shape `(B, D)`): token ids of the command that was given before it.
        mean_entropy (`torch.FloatTensor` of shape `(B,)`): nats per code, between 0 and the logarithm of the number
            of image tokens.
    """

    image_ids: torch.Tensor
    action_ids: torch.Tensor
    mean_entropy: torch.Tensor


@dataclass(frozen=True)
class PolicyView:
    """How the policy acts inside the imagination.

    Attributes:
        n_obs_steps (`int`, *optional*): M; by default the checkpoint's. Before there are as many frames, the first is
            repeated, as in the simulator.
        chunk_size (`int`, *optional*): K; by default the checkpoint's.
        n_action_steps (`int`, *optional*): actions of a chunk that are carried out; by default all.
        through_pixels (`bool`): draw the frames and encode them again before the policy is shown them, as a camera
            would. The world model goes on from the tokens themselves.

    Raises:
        ValueError: if a number is below 1, or more actions shall be carried out than are predicted.
    """

    n_obs_steps: int | None = None
    chunk_size: int | None = None
    n_action_steps: int | None = None
    through_pixels: bool = False

    def __post_init__(self) -> None:
        for name in ("n_obs_steps", "chunk_size", "n_action_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}. Leave it out for the checkpoint's own.")

    def complete(self, config: Any) -> tuple[int, int, int]:
        """Fill in what the checkpoint decides.

        Args:
            config (`WorldVLAConfig`): of the model.

        Returns:
            `tuple[int, int, int]`: `n_obs_steps`, `chunk_size`, `n_action_steps`.

        Raises:
            ValueError: if more actions shall be carried out than are predicted.
        """
        chunk_size = self.chunk_size or config.chunk_size
        n_action_steps = self.n_action_steps or chunk_size
        if n_action_steps > chunk_size:
            raise ValueError(f"`n_action_steps` must lie in 1 … {chunk_size} (`chunk_size`), got {n_action_steps}.")
        return self.n_obs_steps or config.n_obs_steps, chunk_size, n_action_steps


def stream_actions(
    model: Any,
    processor: Any,
    image_ids: torch.Tensor,
    action_ids: torch.Tensor,
    history: int | None = None,
    **options: Any,
) -> Iterator[ImaginedFrame]:
    """Imagine one frame after each action from the n-th on, and hand every one out as soon as it is there.

    Memory does not grow with the number of frames.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        image_ids (`torch.LongTensor` of shape `(B, n, h, w)`): image token ids of the given frames, oldest first.
        action_ids (`torch.LongTensor` of shape `(B, n - 1 + N, D)`): action token ids; action i follows frame i.
        history (`int`, *optional*): H; by default `config.world_model_history`.
        **options: further arguments of `imagine_frames`: `draft`, `do_sample` and so on.

    Returns:
        iterator over N `ImaginedFrame`, on the model's device.

    Raises:
        ValueError: if shapes do not fit each other, or as `imagine_frames`; before anything is imagined.
    """
    given = _check_start(image_ids, action_ids)
    if action_ids.shape[1] < given:
        raise ValueError(
            f"The last given frame must be followed by an action, got {given} frames and {action_ids.shape[1]} "
            "actions. Give one action per given frame, and one more for each further frame."
        )
    inputs = processor(
        images=[list(row) for row in image_ids.cpu().numpy()],
        actions=[row[:given] for row in action_ids.cpu().numpy()],
        role="world_model",
        return_tensors="pt",
    )
    options |= {"history": history, "return_dict_in_generate": True}
    frames = model.imagine_frames(**inputs.to(model.device), actions=action_ids[:, given:], **options)
    moved = action_ids.to(model.device)
    return (
        ImaginedFrame(frame["image_ids"], moved[:, number], frame["mean_entropy"])
        for number, frame in enumerate(frames, start=given - 1)
    )


def stream_policy(
    model: Any,
    processor: Any,
    image_ids: torch.Tensor,
    action_ids: torch.Tensor,
    instructions: Sequence[str],
    num_frames: int,
    view: PolicyView | None = None,
    history: int | None = None,
    **options: Any,
) -> Iterator[ImaginedFrame]:
    """Let the policy act in what the world model imagines of its actions, and hand out frame after frame.

    The policy is shown the last M frames and predicts a chunk; the world model imagines a frame after each of its
    actions, from the last H frames with theirs; then the policy is asked again. Both are one model, and what passes
    between them is token ids: exactly those that `predict_action_chunk` and `imagine_frames` return.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        image_ids (`torch.LongTensor` of shape `(B, n, h, w)`): image token ids of the given frames, oldest first.
        action_ids (`torch.LongTensor` of shape `(B, n - 1, D)`): action token ids of the commands between them.
        instructions (`Sequence[str]`): B texts.
        num_frames (`int`): N, at least 1.
        view (`PolicyView`, *optional*): how the policy acts; by default as the checkpoint was trained.
        history (`int`, *optional*): H; by default `config.world_model_history`.
        **options: further arguments of `imagine_frames`: `draft`, `do_sample` and so on.

    Returns:
        iterator over N `ImaginedFrame`, on the model's device.

    Raises:
        ValueError: if shapes or numbers do not fit, before anything is imagined; or as `predict_action_chunk` and
            `imagine_frames`.
    """
    given, view = _check_start(image_ids, action_ids), view or PolicyView()
    if action_ids.shape[1] != given - 1 or len(instructions) != len(image_ids) or num_frames < 1:
        raise ValueError(
            f"The policy goes on from n frames, the n - 1 commands between them and one instruction per episode, for "
            f"at least 1 frame; got {given} frames, {action_ids.shape[1]} commands, {len(instructions)} instructions "
            f"for {len(image_ids)} episodes and {num_frames} frames."
        )
    sizes = view.complete(model.config)
    history = model.config.world_model_history if history is None else history
    options |= {"history": history}
    return _act_and_imagine(model, processor, image_ids, action_ids, instructions, num_frames, view, sizes, options)


def _act_and_imagine(
    model: Any,
    processor: Any,
    image_ids: torch.Tensor,
    action_ids: torch.Tensor,
    instructions: Sequence[str],
    num_frames: int,
    view: PolicyView,
    sizes: tuple[int, int, int],
    options: dict[str, Any],
) -> Iterator[ImaginedFrame]:
    """The loop of `stream_policy`; keeps the last frames and actions that a prompt can still show."""
    n_obs_steps, chunk_size, n_action_steps = sizes
    history, device = options["history"], model.device
    shown = list(image_ids.to(device).unbind(dim=1))
    commands = list(action_ids.to(device).unbind(dim=1))  # one fewer than frames
    while num_frames > 0:
        seen = ([shown[0]] * (n_obs_steps - len(shown)) + shown)[-n_obs_steps:]
        inputs = processor(images=_show(processor, seen, view), text=list(instructions), return_tensors="pt")
        chunk = model.predict_action_chunk(**inputs.to(device), chunk_size=chunk_size)
        carried_out = chunk[:, : min(n_action_steps, num_frames)]
        known = torch.stack(shown[-history:], dim=1)
        past = commands[len(commands) - known.shape[1] + 1 :]
        actions = torch.cat([torch.stack(past, dim=1), carried_out], dim=1) if past else carried_out
        for frame in stream_actions(model, processor, known, actions, **options):
            yield frame
            shown.append(frame.image_ids)
            commands.append(frame.action_ids)
        num_frames -= carried_out.shape[1]
        kept = max(n_obs_steps, history)
        shown, commands = shown[-kept:], commands[len(commands) - min(len(commands), kept - 1) :]


def _show(processor: Any, frames: list[torch.Tensor], view: PolicyView) -> list[list[np.ndarray]]:
    """Frames `(B, h, w)` as the processor takes them: a list per episode, drawn and encoded again where asked for."""
    stacked = torch.stack(frames, dim=1).cpu()
    if view.through_pixels:
        pictures = processor.decode_images(stacked.flatten(0, 1))
        stacked = processor.encode_images(pictures).cpu().view(stacked.shape)
    return [list(row) for row in stacked.numpy()]


def _check_start(image_ids: torch.Tensor, action_ids: torch.Tensor) -> int:
    """Refuse tokens that are not laid out as said; returns n."""
    if image_ids.ndim != 4 or action_ids.ndim != 3 or len(image_ids) != len(action_ids) or not image_ids.shape[1]:
        raise ValueError(
            "An imagined episode starts from image token ids (B, n, h, w), n at least 1, and action token ids "
            f"(B, actions, D), got shapes {tuple(image_ids.shape)} and {tuple(action_ids.shape)}. Encode frames and "
            "commands with the processor, and add the batch axis."
        )
    return int(image_ids.shape[1])
