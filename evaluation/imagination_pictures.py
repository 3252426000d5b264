"""How imagined episodes are shown: columns side by side with curves below, as a film or as a strip of frames.

Shapes: `N` imagined frames, `H, W` pixels. Columns have N + 1 frames: the last given one comes first.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.atomic_files import write_atomically
from evaluation.video import draw_curve, enlarge, label, wrap, write_video

HEIGHT = 256
DIFFERENCE_GAIN = 3
STRIP_FRAMES = 8
STRIP_HEIGHT = 128


def list_columns(
    imagined: np.ndarray, real: np.ndarray | None = None, reconstructed: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Name what is shown side by side.

    Args:
        imagined (`np.ndarray` of shape `(N + 1, H, W, 3)`): uint8.
        real (`np.ndarray` of shape `(N + 1, H, W, 3)`, *optional*): uint8.
        reconstructed (`np.ndarray` of shape `(N + 1, H, W, 3)`, *optional*): uint8; real frames through the tokenizer.

    Returns:
        `dict[str, np.ndarray]`: real | reconstructed | imagined | difference, or imagined alone. The difference is
        that of real and imagined frames, three times as large, so that it can be seen.
    """
    if real is None or reconstructed is None:
        return {"imagined": imagined}
    apart = np.abs(real.astype(np.int16) - imagined) * DIFFERENCE_GAIN
    return {
        "real": real,
        "reconstructed": reconstructed,
        "imagined": imagined,
        f"difference x {DIFFERENCE_GAIN}": apart.clip(0, 255).astype(np.uint8),
    }


def draw_film(
    columns: Mapping[str, np.ndarray], curves: Mapping[str, np.ndarray], text: str, captions: Sequence[str]
) -> Iterator[np.ndarray]:
    """Draw frame after frame: a text, a caption, the columns and the curves as far as they are.

    Args:
        columns (`Mapping[str, np.ndarray]`): see `list_columns`.
        curves (`Mapping[str, np.ndarray]`): title to N values, one per imagined frame.
        text (`str`): stands above every frame.
        captions (`Sequence[str]`): N + 1 texts below it.

    Returns:
        iterator over N + 1 uint8 frames of one size.
    """
    width = sum(enlarge(frames[0], HEIGHT).shape[1] for frames in columns.values())
    wrapped = [wrap(caption, width).split("\n") for caption in captions]
    lines = max(map(len, wrapped))  # all frames of a film have one size
    for number, caption in enumerate(wrapped):
        row = [label(enlarge(frames[number], HEIGHT), name) for name, frames in columns.items()]
        above = "\n".join([wrap(text, width), *caption, *[""] * (lines - len(caption))])
        below = [draw_curve(values, number, width, title) for title, values in curves.items()]
        yield np.concatenate([label(np.concatenate(row, axis=1), above), *below])


def draw_strip(
    columns: Mapping[str, np.ndarray], curves: Mapping[str, np.ndarray], text: str, captions: Sequence[str]
) -> np.ndarray:
    """Draw up to eight moments side by side, each column of a film as a row, with the whole curves below.

    Args:
        columns (`Mapping[str, np.ndarray]`): see `list_columns`.
        curves (`Mapping[str, np.ndarray]`): title to N values, one per imagined frame.
        text (`str`): stands above.
        captions (`Sequence[str]`): N + 1 texts; those of the moments shown stand above them.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: uint8.
    """
    count = len(captions)
    moments = np.unique(np.linspace(0, count - 1, min(STRIP_FRAMES, count)).round().astype(int))
    width = enlarge(next(iter(columns.values()))[0], STRIP_HEIGHT).shape[1]
    told = [wrap(captions[moment], width).split("\n") for moment in moments]
    lines = max(map(len, told))
    stacks = []
    for moment, caption in zip(moments, told, strict=True):
        tiles = [label(enlarge(frames[moment], STRIP_HEIGHT), name) for name, frames in columns.items()]
        stacks.append(label(np.concatenate(tiles), "\n".join([*caption, *[""] * (lines - len(caption))])))
    picture = np.concatenate(stacks, axis=1)
    width = picture.shape[1]
    below = [draw_curve(values, len(values), width, title) for title, values in curves.items()]
    return np.concatenate([label(picture, wrap(text, width)), *below])


def write_imagination(
    path: Path,
    columns: Mapping[str, np.ndarray],
    curves: Mapping[str, np.ndarray],
    text: str,
    captions: Sequence[str],
) -> Path:
    """Write what was imagined as the file's name says: MP4, GIF, or a strip as PNG.

    Args:
        path (`Path`): final name; an older file is replaced when the new one is complete.
        columns (`Mapping[str, np.ndarray]`): see `list_columns`.
        curves (`Mapping[str, np.ndarray]`): title to N values, one per imagined frame.
        text (`str`): stands above every frame.
        captions (`Sequence[str]`): N + 1 texts.

    Returns:
        `Path`: the file.
    """
    if path.suffix.lower() == ".png":
        write_picture(path, draw_strip(columns, curves, text, captions))
        return path
    film = draw_film(columns, curves, text, captions)
    return write_gif(path, film) if path.suffix.lower() == ".gif" else write_video(path, film)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a PNG file.

    Args:
        path (`Path`): final name; an older file is replaced when the new one is complete.
        picture (`np.ndarray` of shape `(H, W, 3)`): uint8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: Image.fromarray(picture).save(temporary, format="PNG"))


def write_gif(path: Path, frames: Iterable[np.ndarray], frames_per_second: int = 20) -> Path:
    """Write a GIF that repeats for ever.

    Args:
        path (`Path`): final name; an older file is replaced when the new one is complete.
        frames (`Iterable[np.ndarray]`): uint8 frames `(H, W, 3)` of one size; taken one by one.
        frames_per_second (`int`): a divisor of 100, the clock of the format.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: if there is no frame.
    """
    pictures = (Image.fromarray(frame) for frame in frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"No frames to write to `{path}`. A film needs at least one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    duration = 1000 // frames_per_second

    def write(temporary: Path) -> None:
        first.save(temporary, "GIF", save_all=True, append_images=pictures, duration=duration, loop=0)

    write_atomically(path, write)
    return path
