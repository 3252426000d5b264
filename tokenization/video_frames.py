"""Reads single frames of a video by their time. Does not travel to the Hub.

Shape legend: `T` frames, `H`, `W` pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def read_video_frames(path: Path, times: Sequence[float], tolerance: float) -> np.ndarray:
    """Decode the frames that are shown at certain times.

    Args:
        path (`Path`): a video file that FFmpeg reads, such as MP4 with H.264 or AV1.
        times (`Sequence[float]`): T times in seconds, rising.
        tolerance (`float`): seconds by which a frame's time may differ; less than half the time between two frames.

    Returns:
        `np.ndarray` of shape `(T, H, W, 3)`: `uint8`, red, green, blue. No more than these frames are in memory.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, ends too early or has no frame at one of the times.
        ImportError: if PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("Videos are read with PyAV. Install it with `pip install av`.") from error
    if not path.is_file():
        raise FileNotFoundError(f"There is no video `{path}`. Download the data set again.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"`{path}` has no video stream. Download the data set again.")
            return _decode(container, path, times, tolerance)
    except av.FFmpegError as error:
        raise ValueError(
            f"`{path}` cannot be decoded: truncated or of another kind ({error}). Download the data set again."
        ) from error


def _decode(container: Any, path: Path, times: Sequence[float], tolerance: float) -> np.ndarray:
    stream = container.streams.video[0]
    frames = np.empty((len(times), stream.height, stream.width, 3), np.uint8)
    if not len(times):
        return frames
    container.seek(max(0, int((times[0] - tolerance) / stream.time_base)), stream=stream)  # to the key frame before
    found, shown = 0, 0.0
    for frame in container.decode(stream):
        shown = float(frame.pts * stream.time_base)
        if shown < times[found] - tolerance:
            continue
        if shown > times[found] + tolerance:
            raise ValueError(
                f"`{path}` has no frame at {times[found]:.4f} s; the next is at {shown:.4f} s. Its table belongs to "
                "another video: download the data set again."
            )
        frames[found] = frame.to_ndarray(format="rgb24")
        found += 1
        if found == len(times):
            return frames
    raise ValueError(
        f"`{path}` is shorter than its table: it ends at {shown:.4f} s, but a frame at {times[found]:.4f} s is "
        "wanted. Download the data set again."
    )
