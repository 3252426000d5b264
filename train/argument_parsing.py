"""Flags and YAML recipes to dataclasses, and the checks that options share.

`run.py [recipe.yaml] [--flags]`: flags beat the recipe, the recipe beats the one that it `extends`, that beats the
defaults, an unknown key is an error.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from tokenization.choices_worldvla import require_choice

EXTENDS = "extends"  # key of a recipe: the recipe beside it whose options it takes over


def require_positive(arguments: Any, *names: str) -> None:
    """Refuse options that must be larger than zero and are not.

    Args:
        arguments (`Any`): the dataclass that holds the options.
        *names (`str`): the fields to check.

    Raises:
        ValueError: names the first offending option and its value.
    """
    for name in names:
        if not getattr(arguments, name) > 0:  # so that NaN is refused too
            raise ValueError(f"`--{name}` must be larger than 0, got {getattr(arguments, name)}.")


def require_not_negative(arguments: Any, *names: str) -> None:
    """Refuse options that must not lie below zero and do.

    Args:
        arguments (`Any`): the dataclass that holds the options.
        *names (`str`): the fields to check.

    Raises:
        ValueError: names the first offending option and its value.
    """
    for name in names:
        if not getattr(arguments, name) >= 0:
            raise ValueError(f"`--{name}` must not be negative, got {getattr(arguments, name)}.")


def require_share(arguments: Any, *names: str) -> None:
    """Refuse options that must lie in [0, 1) and do not.

    Args:
        arguments (`Any`): the dataclass that holds the options.
        *names (`str`): the fields to check.

    Raises:
        ValueError: names the first offending option and its value.
    """
    for name in names:
        if not 0 <= getattr(arguments, name) < 1:
            raise ValueError(f"`--{name}` must lie in [0, 1), got {getattr(arguments, name)}.")


def parse_arguments(argument_classes: Sequence[Any], argv: Sequence[str]) -> tuple[Any, ...]:
    """Read `[recipe.yaml] [--flags]` into dataclasses.

    Args:
        argument_classes (`Sequence[type]`): the dataclasses to fill.
        argv (`Sequence[str]`): the command line without the program's name.

    Returns:
        `tuple`: one filled dataclass per class, in order.

    Raises:
        ValueError: for an unknown key or flag (names the nearest one), a recipe that is not a mapping, a bad value.
        FileNotFoundError: if the recipe does not exist.
    """
    known = list_options(argument_classes)
    argv = list(argv)
    given = argv and not argv[0].startswith("-")
    recipe = _as_flags(read_recipe(Path(argv.pop(0)), known)) if given else []
    parser = HfArgumentParser(argument_classes)
    *parsed, unknown = parser.parse_args_into_dataclasses(recipe + argv, return_remaining_strings=True)
    for flag in unknown:
        if flag.startswith("--"):
            require_choice("flag", flag[2:].split("=")[0], known)
        raise ValueError(f"Unexpected argument `{flag}`. Options are written `--name value`; a recipe comes first.")
    return tuple(parsed)


def list_options(argument_classes: Sequence[Any]) -> list[str]:
    """Names of all options, sorted.

    Args:
        argument_classes (`Sequence[type]`): the dataclasses that hold them.

    Returns:
        `list[str]`: the names.
    """
    return sorted({f.name for cls in argument_classes for f in fields(cls) if f.init})


def read_recipe(path: Path, known: Sequence[str], below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe over the one beside it that it extends.

    Args:
        path (`Path`): YAML file.
        known (`Sequence[str]`): options that may stand in it.
        below (`tuple[Path, ...]`): the recipes that led here by extending.

    Returns:
        `dict`: option to value.

    Raises:
        FileNotFoundError: if it, or one that is extended, does not exist.
        ValueError: for an unknown key (names the nearest one), no mapping, or recipes that extend each other.
    """
    if not path.is_file():
        named = f" (`{EXTENDS}` in `{below[-1]}`)" if below else ""
        raise FileNotFoundError(f"No recipe at `{path}`{named}. Give the path of a YAML file, or flags alone.")
    if path in below:
        raise ValueError(f"Recipe `{path}` extends itself, by way of {', '.join(map(str, below))}. Take one out.")
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise ValueError(f"Recipe `{path}` must be a mapping of option: value, got {type(content).__name__}.")
    for key in content:
        require_choice(f"key in recipe `{path}`:", str(key), [*known, EXTENDS])
    base = content.pop(EXTENDS, None)
    return content if base is None else read_recipe(path.parent / str(base), known, (*below, path)) | content


def _as_flags(recipe: Mapping[str, Any]) -> list[str]:
    """A recipe as flags, so that flags that come later beat it."""
    flags: list[str] = []
    for key, value in recipe.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{key}", *map(str, values)]
    return flags
