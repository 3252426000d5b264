"""The books of an evaluation: settings, one JSON line per finished episode, and the parts that other ranks write.

    settings.json             what decides the numbers
    episodes.jsonl            one line per episode; the last line of an episode counts
    sessions.jsonl            how each process that came to its end spent its time
    episodes.rank3.jsonl      what rank 3 of a run over several processes has finished; merged at the end

A line is on disk before the next episode of its rank is booked. A line that was cut off is left out when the file is
read, so any of the processes may be killed at any moment.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from evaluation.atomic_files import write_atomically, write_json
from evaluation.protocol import EpisodeKey
from evaluation.run_settings import list_changes

EPISODES = "episodes.jsonl"
SETTINGS = "settings.json"
SESSIONS = "sessions.jsonl"
_LOCK = ".lock"


def key_of(record: dict[str, Any]) -> EpisodeKey:
    """Which episode a record is about."""
    return EpisodeKey(record["suite"], record["task_id"], record["initial_state"])


class Results(NamedTuple):
    """What a results folder holds.

    Attributes:
        settings (`dict`): what decides the numbers.
        records (`dict`): by episode, errors among them.
        sessions (`list[dict]`): how processes spent their time.
    """

    settings: dict[str, Any]
    records: dict[EpisodeKey, dict[str, Any]]
    sessions: list[dict[str, Any]]


def read_results(folder: Path) -> Results:
    """Read a results folder without touching it.

    Args:
        folder (`Path`): what `--output_dir` of a run named.

    Returns:
        `Results`: whichever rank wrote it.

    Raises:
        ValueError: if the folder is none of results, or its settings cannot be read.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise ValueError(
            f"`{folder}` holds no {SETTINGS}: it is no results folder of evaluation/run.py. Give what `--output_dir` "
            "of a run named."
        )
    try:
        settings = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` is no JSON: {error}. Run the evaluation again in an empty folder.") from error
    if not isinstance(settings, dict) or not all(
        isinstance(settings.get(name), dict) for name in ("protocol", "policy")
    ):
        raise ValueError(
            f"`{path}` names no protocol and policy: it was not written by evaluation/run.py, or by an older one. Run "
            "the evaluation again in an empty folder."
        )
    return Results(settings, _read_records(folder), list(_read_lines(folder / SESSIONS)))


class RunLedger:
    """The books of one results folder, opened by one rank; use as a context manager.

    Args:
        folder (`Path`): the results folder; made when missing.
        settings (`dict`): see `collect_settings`.
        rank (`int`): number of this process among those that share the run.
        world_size (`int`): how many share it.

    Raises:
        ValueError: if the folder holds results of other settings, or of an older form; names what changed.
        RuntimeError: if another process of the same rank is at work in the folder.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], rank: int = 0, world_size: int = 1) -> None:
        self.folder = folder
        self.world_size = world_size
        folder.mkdir(parents=True, exist_ok=True)
        self._presence = self._be_the_only_one(rank)
        try:
            with self._locked():
                self._check_settings(settings)
                if world_size == 1:
                    self._merge()
            self.path = folder / (EPISODES if world_size == 1 else f"episodes.rank{rank}.jsonl")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RunLedger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process of this rank at the folder."""
        self._presence.close()

    # Reading

    def finished(self, wanted: Sequence[EpisodeKey]) -> dict[EpisodeKey, dict[str, Any]]:
        """The records of the wanted episodes, whichever rank wrote them.

        Args:
            wanted (`Sequence[EpisodeKey]`): episodes of this command.

        Returns:
            `dict`: in the order of `wanted`; errors are among them.
        """
        with self._locked():
            records = _read_records(self.folder)
        return {key: records[key] for key in wanted if key in records}

    def settings(self) -> dict[str, Any]:
        """What decides the numbers, and every commit that took part."""
        return json.loads((self.folder / SETTINGS).read_text("utf-8"))

    # Writing

    def append(self, record: dict[str, Any]) -> None:
        """Book an episode and wait until it is on disk.

        Args:
            record (`dict`): one per episode, with `suite`, `task_id` and `initial_state`.
        """
        with self._locked():
            _append_line(self.path, record)

    def append_session(self, session: dict[str, Any]) -> None:
        """Note how a process spent its time; what was killed leaves no such line.

        Args:
            session (`dict`): JSON values.
        """
        with self._locked():
            _append_line(self.folder / SESSIONS, session)

    def sessions(self) -> list[dict[str, Any]]:
        """The lines of `append_session`."""
        with self._locked():
            return list(_read_lines(self.folder / SESSIONS))

    def merge(self) -> None:
        """Put the lines of all ranks into one file, one line per episode, in order; the parts are removed."""
        with self._locked():
            self._merge()

    # Inside

    def _be_the_only_one(self, rank: int) -> TextIO:
        file = (self.folder / f".rank{rank}").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise RuntimeError(
                f"Another evaluation (rank {rank}) is at work in `{self.folder}`. Wait for its end, or choose another "
                "`--output_dir`."
            ) from None
        return file

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The ranks read and write in turns."""
        with (self.folder / _LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if _parts_of(self.folder):
                raise ValueError(
                    f"`{self.folder}` holds {EPISODES} without {SETTINGS}: nobody knows how these numbers came about. "
                    "Choose another `--output_dir`."
                )
            write_json(path, settings)
            return
        before = json.loads(path.read_text("utf-8"))
        if changes := list_changes(before, settings):
            raise ValueError(
                f"`{self.folder}` holds results of other settings ({'; '.join(changes)}). Choose another "
                "`--output_dir`, or change the settings back."
            )
        commits = list(dict.fromkeys([*before["commits"], *settings["commits"]]))
        if commits != before["commits"]:
            write_json(path, {**before, "commits": commits})

    def _merge(self) -> None:
        parts, whole = _parts_of(self.folder), self.folder / EPISODES
        if not parts:
            return
        records = _read_records(self.folder)
        lines = "".join(json.dumps(records[key]) + "\n" for key in sorted(records)).encode()
        if not whole.exists() or whole.read_bytes() != lines:
            write_atomically(whole, lambda temporary: _write_to_disk(temporary, lines))
        for path in parts:
            if path != whole:
                path.unlink()


def _parts_of(folder: Path) -> list[Path]:
    """All files with lines, in the order in which later ones count."""
    whole = [path for path in [folder / EPISODES] if path.exists()]
    return whole + sorted(folder.glob("episodes.rank*.jsonl"))


def _read_records(folder: Path) -> dict[EpisodeKey, dict[str, Any]]:
    records: dict[EpisodeKey, dict[str, Any]] = {}
    for path in _parts_of(folder):
        for record in _read_lines(path):
            _keep_better(records, record)
    return records


def _keep_better(records: dict[EpisodeKey, dict[str, Any]], record: dict[str, Any]) -> None:
    """The later record of an episode counts, but an error never replaces an outcome."""
    key = key_of(record)
    if key in records and record["outcome"] == "error" and records[key]["outcome"] != "error":
        return
    records[key] = record


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; those that were cut off are left out."""
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def _append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a line and wait until it is on disk; one that was cut off before it is closed first."""
    line = json.dumps(record).encode() + b"\n"
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _write_to_disk(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
