"""Regions of many pictures as arrays, found once and kept in a file.

Shapes: `F` pictures, `H, W` pixels, `N` regions.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from tqdm.auto import tqdm

from .region_boxes import Region, RegionProvider

SAVE_EVERY = 50  # batches between two saves of an unfinished table


class RegionTable(Sequence[list[Region]]):
    """The regions of F pictures: `table[i]` is the list of regions of picture i.

    Args:
        boxes (`np.ndarray` of shape `(N, 5)`): int32: picture, top, left, bottom, right; pictures in rising order.
        weights (`np.ndarray` of shape `(N,)`): float32.
        name_index (`np.ndarray` of shape `(N,)`): int32, an index into `names`.
        names (`Sequence[str]`): each name once.
        num_pictures (`int`): F; pictures may have no region.
        made_by (`str`): what found them, see `describe_provider`.
    """

    def __init__(
        self,
        boxes: np.ndarray,
        weights: np.ndarray,
        name_index: np.ndarray,
        names: Sequence[str],
        num_pictures: int,
        made_by: str = "",
    ) -> None:
        self.boxes, self.weights, self.name_index = boxes, weights, name_index
        self.names, self.num_pictures, self.made_by = tuple(names), num_pictures, made_by
        self._first = np.searchsorted(boxes[:, 0], np.arange(num_pictures + 1))

    @classmethod
    def from_lists(cls, regions: Iterable[Sequence[Region]], made_by: str = "") -> "RegionTable":
        """Put lists of regions, one a picture, into arrays.

        Args:
            regions (iterable of `Sequence[Region]`): one entry a picture.
            made_by (`str`): what found them.

        Returns:
            `RegionTable`.
        """
        boxes, weights, name_index, number = [], [], [], 0
        names: dict[str, int] = {}
        for number, found in enumerate(regions, start=1):
            for region in found:
                boxes.append((number - 1, region.top, region.left, region.bottom, region.right))
                weights.append(region.weight)
                name_index.append(names.setdefault(region.name, len(names)))
        return cls(
            np.array(boxes, np.int32).reshape(-1, 5),
            np.array(weights, np.float32),
            np.array(name_index, np.int32),
            tuple(names),
            number,
            made_by,
        )

    def __len__(self) -> int:
        return self.num_pictures

    @overload
    def __getitem__(self, index: int) -> list[Region]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[Region]]: ...

    def __getitem__(self, index: int | slice) -> list[Region] | list[list[Region]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(self.num_pictures)[index]
        rows = range(int(self._first[number]), int(self._first[number + 1]))
        return [
            Region(top, left, bottom, right, self.names[self.name_index[row]], float(self.weights[row]))
            for row, (top, left, bottom, right) in zip(
                rows, self.boxes[rows.start : rows.stop, 1:].tolist(), strict=True
            )
        ]


def save_regions(path: str | Path, regions: Iterable[Sequence[Region]], made_by: str = "") -> None:
    """Write regions to one `.npz` file, which is complete or absent.

    Args:
        path (`str` or `Path`): the file.
        regions (`RegionTable` or iterable of `Sequence[Region]`): one entry a picture.
        made_by (`str`): what found them; a table knows it already.
    """
    table = regions if isinstance(regions, RegionTable) else RegionTable.from_lists(regions, made_by)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                boxes=table.boxes,
                weights=table.weights,
                name_index=table.name_index,
                names=np.array(table.names, dtype=np.str_),
                num_pictures=np.int64(table.num_pictures),
                made_by=np.str_(table.made_by),
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_regions(path: str | Path) -> RegionTable:
    """Read what `save_regions` wrote.

    Args:
        path (`str` or `Path`): the file.

    Returns:
        `RegionTable`: `table[i]` is the list of regions of picture i.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {key: file[key] for key in file.files}
        boxes, weights, name_index = (stored[key] for key in ("boxes", "weights", "name_index"))
        names = [str(name) for name in stored["names"]]
        return RegionTable(boxes, weights, name_index, names, int(stored["num_pictures"]), str(stored["made_by"]))
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, pickle, key and shape errors alike
        raise ValueError(
            f"`{path}` holds no precomputed regions ({type(error).__name__}: {error}). Delete it; they are found anew."
        ) from error


def precompute_regions(
    path: str | Path,
    provider: RegionProvider,
    pictures: np.ndarray,
    masks: np.ndarray | None = None,
    episode_index: np.ndarray | None = None,
    names: Sequence[Sequence[str]] = (),
    interest: Sequence[Sequence[str]] = (),
    batch_size: int = 64,
) -> RegionTable:
    """Find the regions of a whole array of pictures once, and keep them in a file.

    The arrays may be memory maps: one batch at a time is read. A finished file is used again; an interrupted search
    goes on from its last save, in `<path>.part`. Both only when provider, options and number of pictures agree.

    Args:
        path (`str` or `Path`): the `.npz` file.
        provider (`RegionProvider`): finds the regions.
        pictures (`np.ndarray` of shape `(F, H, W, 3)`): uint8.
        masks (`np.ndarray` of shape `(F, H, W)`, *optional*): uint8, for each pixel an index into its episode's names.
        episode_index (`np.ndarray` of shape `(F,)`, *optional*): episode of each picture, an index into `names` and
            `interest`; pictures of an episode stand together. Without it all belong to episode 0.
        names (`Sequence[Sequence[str]]`): for each episode what the values of its masks stand for.
        interest (`Sequence[Sequence[str]]`): for each episode the names that its task is about.
        batch_size (`int`): pictures at once.

    Returns:
        `RegionTable`: `table[i]` is the list of regions of picture i.
    """
    path, made_by = Path(path), f"{describe_provider(provider)} on {len(pictures)} pictures"
    if (table := _load_if_made_by(path, made_by)) is not None:
        return table
    part = path.with_name(f"{path.name}.part")
    begun = _load_if_made_by(part, made_by)
    found: list[Sequence[Region]] = [] if begun is None else list(begun)
    episodes = np.zeros(len(pictures), np.int64) if episode_index is None else np.asarray(episode_index)
    progress = tqdm(total=len(pictures), initial=len(found), desc=f"regions: {provider.name}", unit="picture")
    for number, batch in enumerate(_batches(episodes, len(found), batch_size)):
        episode = int(episodes[batch.start])
        found += provider.find(
            np.asarray(pictures[batch]),
            None if masks is None else np.asarray(masks[batch]),
            names[episode] if len(names) else (),
            interest[episode] if len(interest) else (),
        )
        if number % SAVE_EVERY == SAVE_EVERY - 1:
            save_regions(part, found, made_by)
        progress.update(batch.stop - batch.start)
    progress.close()
    save_regions(path, found, made_by)
    part.unlink(missing_ok=True)
    return load_regions(path)


def describe_provider(provider: Any) -> str:
    """Name a provider with its options, so that regions of others are not taken for its own.

    Args:
        provider (`RegionProvider`): its options are known when it is a dataclass.

    Returns:
        `str`: such as `faces(margin=0.15, ...)`.
    """
    options = fields(provider) if is_dataclass(provider) else ()
    listed = ", ".join(f"{option.name}={getattr(provider, option.name)!r}" for option in options)
    return f"{provider.name}({listed})"


def _load_if_made_by(path: Path, made_by: str) -> RegionTable | None:
    """A table on disk, if there is one and it was made the same way."""
    table = load_regions(path) if path.exists() else None
    return table if table is not None and table.made_by == made_by else None


def _batches(episodes: np.ndarray, first: int, batch_size: int) -> Iterator[slice]:
    """Runs of at most `batch_size` pictures of one episode, from picture `first` on."""
    while first < len(episodes):
        window = episodes[first : first + batch_size]
        other = np.flatnonzero(window != window[0])
        stop = first + (int(other[0]) if len(other) else len(window))
        yield slice(first, stop)
        first = stop
