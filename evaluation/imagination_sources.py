"""Where an imagined episode starts: recorded episodes, traces of a run, or pictures with an action file.

Shapes: `T` frames of a source, `n` frames that are given, `N` frames that are imagined, `H, W` pixels, `D` action
dimensions.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from evaluation.imagine_arguments import ImagineArguments
from evaluation.imagined_rollouts import choose_traces, read_trace
from tokenization.demonstrations import Demonstration, find_demonstration_files, read_demonstrations

VIDEO_KINDS = (".mp4", ".mov", ".mkv", ".webm", ".avi")


class Excerpt(NamedTuple):
    """What an imagined episode starts from, and what it is compared with.

    Attributes:
        name (`str`): of the episode, fit for a file name.
        frames (`np.ndarray` of shape `(n, H, W, 3)` or `(n + N, H, W, 3)`): uint8; the given ones first, then, where
            they are known, those that really followed.
        actions (`np.ndarray` of shape `(n - 1 + N, D)`, for the policy `(n - 1, D)`): commands; the i-th was given
            after frame i.
        num_given (`int`): n.
        num_frames (`int`): N.
        start (`int`): step of the last given frame.
        told (`str`): what the robot was or shall be told.
        outcome (`str`): how the episode ended, where that is known.
    """

    frames: np.ndarray
    actions: np.ndarray
    num_given: int
    num_frames: int
    name: str = "imagined"
    start: int = 0
    told: str = ""
    outcome: str = ""


def find_excerpts(arguments: ImagineArguments) -> list[Callable[[], Excerpt]]:
    """Find and check everything that shall be imagined.

    Args:
        arguments (`ImagineArguments`): all options.

    Returns:
        `list` of functions: each reads one excerpt; all have been tried.

    Raises:
        ValueError: if a source is damaged, does not exist or is shorter than what is asked for.
    """
    readers: list[Callable[[], Excerpt]]
    if arguments.rollouts is not None:
        paths = choose_traces(Path(arguments.rollouts), arguments.names)
        readers = [partial(_read_trace, path, arguments) for path in paths]
    elif arguments.image:
        readers = [partial(read_pictures_excerpt, arguments)]
    else:
        readers = [partial(_read_episode, episode, arguments) for episode in _choose_episodes(arguments)]
    for read in readers:
        read()
    return readers


def choose_excerpt(frames: np.ndarray, actions: np.ndarray, arguments: ImagineArguments, **texts: Any) -> Excerpt:
    """The part of an episode that is imagined.

    Args:
        frames (`np.ndarray` of shape `(T, H, W, 3)`): uint8.
        actions (`np.ndarray` of shape `(T - 1, D)`): each between two frames.
        arguments (`ImagineArguments`): first step, given frames and number of frames.
        **texts: `name`, `told` and `outcome` of the excerpt.

    Returns:
        `Excerpt`: without frames to compare with where the policy acts.

    Raises:
        ValueError: if the episode has no such steps.
    """
    start, first = arguments.start, arguments.start - arguments.given_frames + 1
    if first < 0:
        raise ValueError(
            f"`--given_frames {arguments.given_frames}` end at step {start}, before there are as many. Raise "
            f"`--start` to at least {arguments.given_frames - 1}."
        )
    available = len(frames) - 1 - start
    if arguments.instruction is not None:
        if available < 0:
            raise ValueError(f"The episode has {len(frames)} frames, none at step {start}. Lower `--start`.")
        texts |= {"told": arguments.instruction, "outcome": ""}
        num_frames, end = int(arguments.num_frames or 1), start
    else:
        num_frames = available if arguments.num_frames is None else arguments.num_frames
        if not 1 <= num_frames <= available:
            wanted = "at least 1 is needed" if arguments.num_frames is None else f"{num_frames} were asked for"
            raise ValueError(
                f"The episode has {max(0, available)} frames after step {start}; {wanted}. "
                "Lower `--start` or `--num_frames`."
            )
        end = start + num_frames
    chosen = frames[first : end + 1], actions[first:end]
    return Excerpt(*chosen, arguments.given_frames, num_frames, start=start, **texts)


def read_pictures_excerpt(arguments: ImagineArguments) -> Excerpt:
    """Read the excerpt that `--image`, `--actions` and `--instruction` name.

    Args:
        arguments (`ImagineArguments`): with pictures or a video.

    Returns:
        `Excerpt`: with frames to compare with where a video goes on while the actions are given.

    Raises:
        ValueError: if a file cannot be read, frames differ in size, or there are too few frames or actions.
    """
    name = Path(arguments.image[-1]).stem
    actions = None if arguments.actions is None else read_actions(Path(arguments.actions))
    if Path(arguments.image[0]).suffix.lower() not in VIDEO_KINDS:
        return _pictures_excerpt(arguments, actions, name)
    if len(arguments.image) > 1:
        raise ValueError(
            f"`--image` takes pictures or one video, got {len(arguments.image)} files with a video first."
        )
    frames = read_video(Path(arguments.image[0]))
    if actions is None:
        if arguments.given_frames > 1:
            raise ValueError("The commands between the given frames of a video are not known. Give one frame.")
        return choose_excerpt(frames, np.zeros((len(frames) - 1, 0), np.float32), arguments, name=name)
    if arguments.num_frames is not None:
        actions = actions[: arguments.start + arguments.num_frames]
    if len(frames) < len(actions) + 1:
        raise ValueError(
            f"`{arguments.image[0]}` has {len(frames)} frames, and {len(actions)} commands need {len(actions) + 1}. "
            "Give the whole video, a lower `--num_frames`, or a picture of the first frame: then nothing is compared."
        )
    return choose_excerpt(frames[: len(actions) + 1], actions, arguments, name=name)


def _pictures_excerpt(arguments: ImagineArguments, actions: np.ndarray | None, name: str) -> Excerpt:
    """All pictures are given frames; the commands between them are the first rows of the action file."""
    frames = read_pictures([Path(path) for path in arguments.image])
    count = len(frames)
    if arguments.start or arguments.given_frames != 1:
        raise ValueError(
            f"All {count} pictures of `--image` are given frames: leave out `--start` and `--given_frames`."
        )
    if actions is None:
        if count > 1:
            raise ValueError(
                f"`--image` gives {count} frames, but the commands between them are not known to the world model. "
                "Give one picture with `--instruction`."
            )
        told, num_frames = str(arguments.instruction), int(arguments.num_frames or 1)
        return Excerpt(frames, np.zeros((0, 0), np.float32), 1, num_frames, name=name, told=told)
    available = len(actions) - count + 1
    num_frames = available if arguments.num_frames is None else arguments.num_frames
    if not 1 <= num_frames <= available:
        raise ValueError(
            f"`{arguments.actions}` holds {len(actions)} commands: {max(0, available)} from the last of {count} given "
            f"frames on, and {num_frames if arguments.num_frames else 'at least 1'} are needed. Give more commands."
        )
    return Excerpt(frames, actions[: count - 1 + num_frames], count, num_frames, name=name, start=count - 1)


def read_pictures(paths: list[Path]) -> np.ndarray:
    """Read pictures of one size.

    Args:
        paths (`list[Path]`): files that Pillow reads.

    Returns:
        `np.ndarray` of shape `(n, H, W, 3)`: uint8.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if one is no picture, is damaged, or has another size than the first.
    """
    pictures: list[np.ndarray] = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"There is no picture `{path}`. `--image` takes files of pictures, or a video.")
        try:
            with Image.open(path) as opened:
                pictures.append(np.asarray(opened.convert("RGB")))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"`{path}` cannot be read as a picture: {error}. Save it again as PNG.") from error
        if pictures[-1].shape != pictures[0].shape:
            sizes = [f"{shape[0]} x {shape[1]}" for shape in (pictures[-1].shape, pictures[0].shape)]
            raise ValueError(
                f"`{path}` has {sizes[0]} pixels, `{paths[0]}` has {sizes[1]} (height x width). Given frames come "
                "from one camera: bring them to one size."
            )
    return np.stack(pictures)


def read_video(path: Path) -> np.ndarray:
    """Read all frames of a video.

    Args:
        path (`Path`): a file that FFmpeg reads.

    Returns:
        `np.ndarray` of shape `(T, H, W, 3)`: uint8.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, truncated, or has no frames.
    """
    import av

    if not path.is_file():
        raise FileNotFoundError(f"There is no video `{path}`. `--image` takes files of pictures, or a video.")
    advice = "Copy or record it again."
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"`{path}` has no video stream. {advice}")
            announced = container.streams.video[0].frames
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except av.FFmpegError as error:
        raise ValueError(f"`{path}` cannot be decoded: truncated or of another kind ({error}). {advice}") from error
    if not frames or len(frames) < announced:
        raise ValueError(f"`{path}` is truncated: it announces {announced} frames and holds {len(frames)}. {advice}")
    return np.stack(frames)


def read_actions(path: Path) -> np.ndarray:
    """Read commands; nothing in the file is executed.

    Args:
        path (`Path`): NPY file, or CSV without a header: a row per command.

    Returns:
        `np.ndarray` of shape `(T, D)`: float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, damaged, not a table, or holds NaN or infinity.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no action file `{path}`. Save the commands with `numpy.save`, or as CSV.")
    try:
        if path.suffix.lower() == ".npy":
            actions = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".csv":
            actions = np.loadtxt(path, delimiter=",", ndmin=2)
        else:
            raise ValueError("its name ends in neither .npy nor .csv")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"`{path}` cannot be read as commands: {error}. Save them with `numpy.save`.") from error
    if actions.ndim != 2 or not actions.size or actions.dtype.kind not in "fiu":
        raise ValueError(
            f"`{path}` must hold numbers of shape (commands, D), got {actions.dtype}{list(actions.shape)}. Save a row "
            "per command."
        )
    if not np.isfinite(actions).all():
        row = int((~np.isfinite(actions)).any(axis=1).argmax())
        raise ValueError(f"`{path}` holds NaN or infinity in row {row}. Leave no command out.")
    return actions.astype(np.float32)


def check_action_width(excerpts: list[Excerpt], arguments: ImagineArguments, action_dim: int) -> None:
    """Refuse an action file of another robot.

    Args:
        excerpts (`list[Excerpt]`): what is to be imagined.
        arguments (`ImagineArguments`): names the file.
        action_dim (`int`): D of the checkpoint.

    Raises:
        ValueError: if a command has another width.
    """
    for excerpt in excerpts:
        if excerpt.actions.size and excerpt.actions.shape[1] != action_dim:
            source = arguments.actions or arguments.demonstrations or arguments.rollouts
            raise ValueError(
                f"`{source}` holds commands of {excerpt.actions.shape[1]} numbers; the checkpoint was trained on "
                f"{action_dim}. Give commands of its robot, a column per number."
            )


def _choose_episodes(arguments: ImagineArguments) -> list[tuple[int, Demonstration]]:
    """The recorded episodes that are named, with their numbers."""
    found = [
        demonstration
        for file in find_demonstration_files([str(arguments.demonstrations)])
        for demonstration in read_demonstrations(file)
    ]
    for number in arguments.episode:
        if number >= len(found):
            raise ValueError(
                f"`{arguments.demonstrations}` holds {len(found)} episodes; `--episode {number}` does not exist. "
                f"Choose 0 … {len(found) - 1}."
            )
    return [(number, found[number]) for number in dict.fromkeys(arguments.episode)]


def _read_episode(chosen: tuple[int, Demonstration], arguments: ImagineArguments) -> Excerpt:
    number, episode = chosen
    frames = episode.frames(arguments.camera)
    texts = {"name": f"episode{number}", "told": episode.instruction}
    return choose_excerpt(frames, episode.actions[: len(frames) - 1], arguments, **texts)


def _read_trace(path: Path, arguments: ImagineArguments) -> Excerpt:
    trace = read_trace(path, arguments.camera)
    texts = {"name": path.stem, "told": trace.instruction, "outcome": trace.outcome}
    return choose_excerpt(trace.frames, trace.actions, arguments, **texts)
