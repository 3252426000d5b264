"""The pictures that a VQ-GAN is measured on: chosen from demonstrations and image folders, at one size, with masks.

Shapes: `H, W` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tokenization.demonstrations import Demonstration, find_demonstration_files, read_demonstrations
from tokenization.pixels_worldvla import convert_to_rgb, resize_and_crop

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Frame:
    """One chosen picture; it is read when it is asked for.

    Attributes:
        source (`Demonstration` or `Path`): the episode, or the image file.
        index (`int`): number of the picture in its episode.
        camera (`str`): `agentview`, `wrist`, or `image`.
        episode (`int`): number of the episode among all that were given; every image file is one of its own.
    """

    source: Demonstration | Path
    index: int
    camera: str
    episode: int

    @property
    def path(self) -> Path:
        """The file that it comes from."""
        return self.source if isinstance(self.source, Path) else Path(self.source.path)

    @property
    def names(self) -> tuple[str, ...]:
        """What the values of its mask stand for."""
        return () if isinstance(self.source, Path) else self.source.segmentation_names

    @property
    def interest(self) -> tuple[str, ...]:
        """What its task is about."""
        return () if isinstance(self.source, Path) else self.source.objects_of_interest

    def picture(self) -> np.ndarray:
        """The picture in its own size, uint8 `(H, W, 3)`, upright."""
        if not isinstance(self.source, Path):
            return self.source.frames(self.camera, slice(self.index, self.index + 1))[0]
        try:
            with Image.open(self.source) as image:
                return convert_to_rgb(image)
        except OSError as error:
            raise ValueError(
                f"`{self.source}` is not a readable image ({error}). Remove it from the folder."
            ) from error

    def mask(self) -> np.ndarray:
        """Its segmentation, uint8 `(H, W)`.

        Raises:
            ValueError: if none was recorded.
        """
        if isinstance(self.source, Path):
            raise ValueError(
                f"`{self.source}` is an image without a segmentation mask. Choose the regions `saliency` or `faces`, "
                "or demonstrations that were recorded with masks."
            )
        return self.source.segmentation(self.camera, slice(self.index, self.index + 1))[0]


def choose_frames(
    demonstrations: Sequence[str], images: Sequence[str], cameras: Sequence[str], number: int, seed: int
) -> list[Frame]:
    """Draw frames that are spread over sources, episodes and time.

    Each camera of each episode, and each image file, is a strand; every strand gives as many frames as the others, up
    to one. Within a strand one frame is drawn from each of as many equal stretches of time.

    Args:
        demonstrations (`Sequence[str]`): HDF5 files, or folders of them, to any depth.
        images (`Sequence[str]`): folders of images, to any depth.
        cameras (`Sequence[str]`): cameras of the demonstrations.
        number (`int`): frames in all; fewer where there are not as many.
        seed (`int`): same seed, same frames.

    Returns:
        `list[Frame]`: in the order of episodes, cameras and time.

    Raises:
        FileNotFoundError: if a path does not exist or holds nothing.
        ValueError: if a camera was not recorded.
    """
    generator = np.random.default_rng(seed)
    strands = _strands_of_demonstrations(demonstrations, cameras)
    first = 1 + max((frame.episode for strand in strands for frame in strand[:1]), default=-1)
    strands += [[Frame(path, 0, "image", first + place)] for place, path in enumerate(find_images(images))]
    counts = share_out([len(strand) for strand in strands], number, generator)
    return [
        strand[index]
        for strand, count in zip(strands, counts, strict=True)
        for index in draw_spread(len(strand), count, generator)
    ]


def _strands_of_demonstrations(paths: Sequence[str], cameras: Sequence[str]) -> list[list[Frame]]:
    strands: list[list[Frame]] = []
    files = find_demonstration_files([deeper for path in paths for deeper in folders_with_demonstrations(Path(path))])
    episodes = (episode for file in files for episode in read_demonstrations(file, allow_picture_stride=True))
    for number, episode in enumerate(episodes):
        for camera in cameras:
            if camera not in episode.cameras:
                episode.frames(camera, slice(0))  # says what is missing
            pictures = -(-len(episode) // episode.picture_stride)
            strands.append([Frame(episode, index, camera, number) for index in range(pictures)])
    return strands


def folders_with_demonstrations(path: Path) -> list[Path]:
    """A folder without HDF5 files of its own stands for its sub-folders that have some, such as one a suite.

    Args:
        path (`Path`): file or folder.

    Returns:
        `list[Path]`: what to look for demonstrations in.
    """
    if not path.is_dir() or any(path.glob("*.hdf5")):
        return [path]
    return sorted({file.parent for file in path.glob("*/**/*.hdf5") if _is_visible(file, path)}) or [path]


def find_images(folders: Sequence[str]) -> list[Path]:
    """List the image files of folders, to any depth.

    Args:
        folders (`Sequence[str]`): folders, or single files.

    Returns:
        `list[Path]`: in the order given, the files of a folder by name.

    Raises:
        FileNotFoundError: if a folder does not exist or holds no image.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and _is_visible(p, folder))
        files = inside if folder.is_dir() else [folder]
        if not files or not files[0].exists():
            raise FileNotFoundError(f"No images at `{folder}`. Give folders that hold {', '.join(IMAGE_SUFFIXES)}.")
        found += files
    return found


def _is_visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def share_out(available: Sequence[int], number: int, generator: np.random.Generator) -> list[int]:
    """Share a number out as evenly as what is available allows.

    Args:
        available (`Sequence[int]`): how much each can give.
        number (`int`): how much is wanted in all.
        generator (`np.random.Generator`): decides who gives the last ones.

    Returns:
        `list[int]`: how much each gives.
    """
    counts, limits = np.zeros(len(available), np.int64), np.asarray(available)
    while (left := number - int(counts.sum())) > 0 and (open_ := np.flatnonzero(counts < limits)).size:
        if left < open_.size:
            counts[generator.permutation(open_)[:left]] += 1
        else:
            counts[open_] = np.minimum(counts[open_] + left // open_.size, limits[open_])
    return counts.tolist()


def draw_spread(length: int, count: int, generator: np.random.Generator) -> list[int]:
    """Draw one number from each of `count` equal stretches of 0 ... length - 1.

    Args:
        length (`int`): how many numbers there are.
        count (`int`): how many to draw, at most `length`.
        generator (`np.random.Generator`): draws.

    Returns:
        `list[int]`: rising, each once.
    """
    edges = np.linspace(0, length, count + 1).round().astype(int)
    return [int(generator.integers(low, high)) for low, high in zip(edges[:-1], edges[1:], strict=True)]


def read_pictures(frames: Sequence[Frame], size: tuple[int, int]) -> np.ndarray:
    """Read frames at one size.

    Args:
        frames (`Sequence[Frame]`): which.
        size (`tuple[int, int]`): height and width.

    Returns:
        `np.ndarray` of shape `(len(frames), *size, 3)`: uint8.
    """
    return np.stack([resize_and_crop(frame.picture(), size) for frame in frames])
