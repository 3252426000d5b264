"""Reads columns of Parquet tables, one episode at a time. Does not travel to the Hub.

`datasets` brings `pyarrow` along. Its own loading would first copy a whole table into its cache; here only the column
that is asked for, and of it only the row groups that hold the episode, are read.
"""

from pathlib import Path
from typing import Any


def read_table(path: Path, columns: list[str] | None = None, filters: Any = None) -> Any:
    """Read a table.

    Args:
        path (`Path`): a Parquet file.
        columns (`list[str]`, *optional*): which columns; by default all.
        filters (`list[tuple]`, *optional*): conditions in pyarrow's form.

    Returns:
        `pyarrow.Table`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or lacks a column; the message lists those that it has.
        ImportError: if pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "LeRobot data sets are read with datasets. Install it with `pip install datasets`."
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"There is no table `{path}`. Download the data set again.")
    try:
        known = parquet.read_schema(path).names
        missing = [name for name in columns or () if name not in known]
        if not missing:
            return parquet.read_table(path, columns=columns, filters=filters, partitioning=None)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"`{path}` is not a readable Parquet file: truncated or of another kind ({error}). Download the data set "
            "again."
        ) from error
    listed = ", ".join(f"`{name}`" for name in known)
    raise ValueError(f"`{path}` lacks the column `{missing[0]}`. It has {listed}.")


def read_column(path: Path, name: str, episode_index: int) -> Any:
    """Read one column of one episode.

    Args:
        path (`Path`): a Parquet file with the column `episode_index`.
        name (`str`): the column.
        episode_index (`int`): the episode.

    Returns:
        `pyarrow.ChunkedArray`: one entry per step, in the order of the table.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `read_table`.
    """
    wanted = [("episode_index", "=", episode_index)]
    return read_table(path, [name, "episode_index"], wanted).column(name)
