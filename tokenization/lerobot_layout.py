"""Where the episodes of a LeRobot data set lie: versions 2.0, 2.1 and 3.0. Does not travel to the Hub.

Version 2: `meta/episodes.jsonl`, `meta/tasks.jsonl`, one table and one video per camera and episode.
Version 3: `meta/episodes/*/*.parquet`, `meta/tasks.parquet`, many episodes per table and video.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .parquet_tables import read_column, read_table

READ_VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class EpisodeFiles:
    """Where one episode lies.

    Attributes:
        index (`int`): its number.
        table (`str`): the Parquet file, relative to the data set's folder.
        videos (`tuple[tuple[str, str, float], ...]`): feature, file and the episode's start in it, in seconds.
    """

    index: int
    table: str
    videos: tuple[tuple[str, str, float], ...]

    def video(self, feature: str) -> tuple[str, float]:
        """The video of a feature and the episode's start in it."""
        return next((file, start) for name, file, start in self.videos if name == feature)


def list_episodes(root: Path, info: dict[str, Any], videos: Sequence[str]) -> Iterator[tuple[EpisodeFiles, str, int]]:
    """List the episodes of a data set.

    Args:
        root (`Path`): its folder.
        info (`dict`): its `meta/info.json`.
        videos (`Sequence[str]`): features that are videos.

    Yields:
        `tuple`: where it lies, what the robot was told, and its number of steps, in the order of the numbers.

    Raises:
        FileNotFoundError: if a table or video that should be there is missing.
        ValueError: if the version is not read, the tables of episodes are damaged or an instruction is missing.
    """
    version = str(info["codebase_version"])
    if version not in READ_VERSIONS:
        raise ValueError(
            f"`{root}` has the layout `{version}`. Read are {', '.join(READ_VERSIONS)}: convert it with LeRobot's own "
            "scripts."
        )
    if videos and not info.get("video_path"):
        raise ValueError(f"`{root}` has videos, but `meta/info.json` lacks `video_path`. Download the data set again.")
    rows = _rows_of_version_3(root, videos) if version == "v3.0" else _json_lines(root / "meta" / "episodes.jsonl")
    locate = _locate_version_3 if version == "v3.0" else _locate_version_2
    known: set[Path] = set()
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        try:
            files, num_steps = locate(info, row, videos), int(row["length"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"`{root}`: what `meta` says about episode {row['episode_index']} is incomplete ({error!r}). Download "
                "the data set again."
            ) from error
        _require_files(root, files, known)
        yield files, _instruction(root, version, row, files), num_steps


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no `{path}`. Download the data set again.")
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is damaged ({error}). Download the data set again.") from error


def _rows_of_version_3(root: Path, videos: Sequence[str]) -> list[dict[str, Any]]:
    folder = root / "meta" / "episodes"
    tables = sorted(folder.glob("*/*.parquet"))
    if not tables:
        raise FileNotFoundError(f"There is no table of episodes in `{folder}`. Download the data set again.")
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    for feature in videos:
        columns += [f"videos/{feature}/{key}" for key in ("chunk_index", "file_index", "from_timestamp")]
    return [row for table in tables for row in read_table(table, columns).to_pylist()]


def _locate_version_2(info: dict[str, Any], row: dict[str, Any], videos: Sequence[str]) -> EpisodeFiles:
    index = int(row["episode_index"])
    place = {"episode_index": index, "episode_chunk": index // int(info.get("chunks_size", 1000))}
    shown = ((feature, info["video_path"].format(**place, video_key=feature), 0.0) for feature in videos)
    return EpisodeFiles(index, info["data_path"].format(**place), tuple(shown))


def _locate_version_3(info: dict[str, Any], row: dict[str, Any], videos: Sequence[str]) -> EpisodeFiles:
    table = {key: row[f"data/{key}"] for key in ("chunk_index", "file_index")}
    shown = []
    for feature in videos:
        place = {key: row[f"videos/{feature}/{key}"] for key in table}
        file = info["video_path"].format(**place, video_key=feature)
        shown.append((feature, file, float(row[f"videos/{feature}/from_timestamp"])))
    return EpisodeFiles(int(row["episode_index"]), info["data_path"].format(**table), tuple(shown))


def _require_files(root: Path, episode: EpisodeFiles, known: set[Path]) -> None:
    for kind, file in (("table", episode.table), *(("video", file) for _, file, _ in episode.videos)):
        path = root / file
        if path not in known and not path.is_file():
            raise FileNotFoundError(
                f"The {kind} `{path}` of episode {episode.index} is missing. Download the data set again."
            )
        known.add(path)


def _instruction(root: Path, version: str, row: dict[str, Any], files: EpisodeFiles) -> str:
    """What the robot was told: noted with the episode, else the task whose number its steps have."""
    told = list(row.get("tasks") or ())
    if not told:
        numbers = set(read_column(root / files.table, "task_index", files.index).to_pylist())
        tasks = _tasks(root, version)
        told = [tasks[number] for number in sorted(numbers, key=str) if number in tasks]
    if len(told) > 1:
        raise ValueError(
            f"`{root}`: episode {files.index} has {len(told)} instructions ({', '.join(map(repr, told))}). Episodes "
            "with one are read: split it."
        )
    if not told or not str(told[0]).strip():
        raise ValueError(
            f"`{root}`: episode {files.index} has no instruction, neither in `meta` under `tasks` nor by the "
            "`task_index` of its steps. Add it, or leave the episode out."
        )
    return str(told[0]).strip()


def _tasks(root: Path, version: str) -> dict[int, str]:
    """The instructions by their numbers."""
    rows: Iterable[dict[str, Any]]
    if version == "v3.0":
        rows = read_table(root / "meta" / "tasks.parquet").to_pylist()
    else:
        rows = _json_lines(root / "meta" / "tasks.jsonl")
    tasks = {}
    for row in rows:
        text = next((value for key, value in row.items() if key != "task_index" and isinstance(value, str)), "")
        tasks[row["task_index"]] = text
    return tasks
