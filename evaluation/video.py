"""Videos that browsers play: H.264, yuv420p, written under a temporary name and renamed.

Shapes: `T` frames, `H, W` pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.atomic_files import write_atomically

CAPTION_HEIGHT = 18
EPISODE_HEIGHT = 384
OUTCOME_FRAMES = 20  # a second to read how it ended
_MARGIN, _FONT_SIZE = 4, 11
_BACKGROUND, _INK, _FAINT = (24, 24, 24), (255, 255, 255), (110, 110, 110)


def label(frame: np.ndarray, text: str) -> np.ndarray:
    """Put text above a frame.

    Args:
        frame (`np.ndarray` of shape `(H, W, 3)`): uint8.
        text (`str`): lines; each is cut at the frame's width, see `wrap`.

    Returns:
        `np.ndarray` of shape `(H + 18 * lines, W, 3)`: uint8.
    """
    lines = text.split("\n")
    height = CAPTION_HEIGHT * len(lines)
    picture = Image.new("RGB", (frame.shape[1], frame.shape[0] + height), _BACKGROUND)
    picture.paste(Image.fromarray(frame), (0, height))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_SIZE)
    for number, line in enumerate(lines):
        if line:
            draw.text((_MARGIN, CAPTION_HEIGHT * number + 3), line, fill=_INK, font=font)
    return np.asarray(picture)


def wrap(text: str, width: int) -> str:
    """Break text into lines that `label` does not cut.

    Args:
        text (`str`): words; those that are too long for a line are broken, too.
        width (`int`): of the frame, pixels.

    Returns:
        `str`: the lines, joined by newlines.
    """
    font, room = ImageFont.load_default(_FONT_SIZE), width - 2 * _MARGIN
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > room:
                lines.append("")
            lines[-1] += letter
    return "\n".join(lines)


def draw_curve(values: np.ndarray, shown: int, width: int, title: str, height: int = 56) -> np.ndarray:
    """A curve that grows with a video.

    Args:
        values (`np.ndarray` of shape `(N,)`): the whole curve; it decides the scale.
        shown (`int`): how many of the values are drawn.
        width (`int`): of the picture, pixels.
        title (`str`): what is drawn, in front of smallest and largest value.
        height (`int`): of the picture, pixels.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: uint8.
    """
    low, high = float(values.min()), float(values.max())
    picture = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 2), f"{title}: {low:.3g} to {high:.3g}", fill=_FAINT, font=ImageFont.load_default(_FONT_SIZE))
    top, bottom = CAPTION_HEIGHT, height - _MARGIN
    across = np.linspace(_MARGIN, width - 1 - _MARGIN, len(values))
    down = bottom - (values - low) / max(high - low, 1e-9) * (bottom - top)
    points = [(float(x), float(y)) for x, y in zip(across[:shown], down[:shown], strict=True)]
    if len(points) > 1:
        draw.line(points, fill=(90, 200, 120), width=2)
    if points:
        x, y = points[-1]
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_INK)
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


def write_video(path: str | Path, frames: Iterable[np.ndarray], frames_per_second: int = 20) -> Path:
    """Write an MP4 file.

    Args:
        path (`str` or `Path`): final name; an older file is replaced when the new one is complete.
        frames (`Iterable[np.ndarray]`): uint8 frames `(H, W, 3)` of one size; taken one by one, so that a generator
            keeps memory low.
        frames_per_second (`int`): LIBERO's control runs at 20 Hz.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: if there is no frame, or a frame has another size than the first.
    """
    path, source = Path(path), iter(frames)
    first = next(source, None)
    if first is None:
        raise ValueError(f"No frames to write to `{path}`. A video needs at least one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: _encode(temporary, first, source, frames_per_second))
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

    Raises:
        ValueError: as `write_video` does.
    """
    last = len(frames) - 1

    def shown() -> Iterator[np.ndarray]:
        for step, frame in enumerate(frames):
            large = enlarge(frame, EPISODE_HEIGHT)
            caption = f"step {step}/{last}" + (f": {outcome}" if step == last else "")
            pictured = label(large, f"{wrap(instruction, large.shape[1])}\n{caption}")
            yield pictured
        for _ in range(OUTCOME_FRAMES if len(frames) else 0):
            yield pictured

    return write_video(path, shown())


def _encode(path: Path, first: np.ndarray, others: Iterable[np.ndarray], frames_per_second: int) -> None:
    """Encode the frames into one H.264 stream; odd sizes are padded, yuv420p needs even ones."""
    height, width = first.shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for index, frame in enumerate(chain([first], others)):
            if frame.shape != first.shape:
                raise ValueError(f"Frame {index} has shape {frame.shape}, the first has {first.shape}.")
            padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            for packet in stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
