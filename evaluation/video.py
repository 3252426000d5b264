"""Videos that browsers play: H.264, yuv420p, written under a temporary name and renamed.

Shapes: `T` frames, `H, W` pixels.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.atomic_files import write_atomically

CAPTION_HEIGHT = 18


def label(frame: np.ndarray, text: str) -> np.ndarray:
    """Put a line of text above a frame.

    Args:
        frame (`np.ndarray` of shape `(H, W, 3)`): uint8.
        text (`str`): the line; cut at the frame's width.

    Returns:
        `np.ndarray` of shape `(H + 18, W, 3)`: uint8.
    """
    picture = Image.new("RGB", (frame.shape[1], frame.shape[0] + CAPTION_HEIGHT), (24, 24, 24))
    picture.paste(Image.fromarray(frame), (0, CAPTION_HEIGHT))
    ImageDraw.Draw(picture).text((4, 3), text, fill=(255, 255, 255), font=ImageFont.load_default(11))
    return np.asarray(picture)


def enlarge(frame: np.ndarray, height: int) -> np.ndarray:
    """Scale a frame up by the whole factor that comes nearest to `height`; pixels stay square.

    Args:
        frame (`np.ndarray` of shape `(H, W, 3)`): uint8.
        height (`int`): wanted height in pixels.

    Returns:
        `np.ndarray`: uint8; never smaller than the frame.
    """
    factor = max(1, round(height / frame.shape[0]))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def side_by_side(columns: dict[str, np.ndarray], height: int = 256) -> list[np.ndarray]:
    """Join several videos of one length into one, each under its name.

    Args:
        columns (`dict[str, np.ndarray]`): name to uint8 frames `(T, H, W, 3)`, all of one shape.
        height (`int`): wanted height of a column in pixels.

    Returns:
        `list[np.ndarray]`: `T` uint8 frames.
    """
    names, videos = list(columns), list(columns.values())
    return [
        np.concatenate([label(enlarge(frame, height), name) for name, frame in zip(names, row, strict=True)], axis=1)
        for row in zip(*videos, strict=True)
    ]


def write_video(path: str | Path, frames: Sequence[np.ndarray], frames_per_second: int = 20) -> Path:
    """Write an MP4 file.

    Args:
        path (`str` or `Path`): final name; an older file is replaced when the new one is complete.
        frames (`Sequence[np.ndarray]`): uint8 frames `(H, W, 3)` of one size.
        frames_per_second (`int`): LIBERO's control runs at 20 Hz.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: if there is no frame, or a frame has another size than the first.
    """
    path = Path(path)
    if not len(frames):
        raise ValueError(f"No frames to write to `{path}`. A video needs at least one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: _encode(temporary, frames, frames_per_second))
    return path


def write_episode_video(path: Path, frames: Sequence[np.ndarray], instruction: str, outcome: str) -> Path:
    """Write an episode's video: instruction, step and outcome above every frame, and a second to read the outcome.

    Args:
        path (`Path`): final name.
        frames (`Sequence[np.ndarray]`): T + 1 uint8 frames `(H, W, 3)`; the first shows the initial state.
        instruction (`str`): what the robot was told.
        outcome (`str`): how it ended.

    Returns:
        `Path`: the file.
    """
    last = len(frames) - 1
    captions = [f"step {step}/{last}" + (f": {outcome}" if step == last else "") for step in range(len(frames))]
    shown = [
        label(label(enlarge(frame, 384), caption), instruction)
        for frame, caption in zip(frames, captions, strict=True)
    ]
    return write_video(path, shown + shown[-1:] * 20)


def _encode(path: Path, frames: Sequence[np.ndarray], frames_per_second: int) -> None:
    """Encode the frames into one H.264 stream; odd sizes are padded, yuv420p needs even ones."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for index, frame in enumerate(frames):
            if frame.shape != frames[0].shape:
                raise ValueError(f"Frame {index} has shape {frame.shape}, the first has {frames[0].shape}.")
            padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            for packet in stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
