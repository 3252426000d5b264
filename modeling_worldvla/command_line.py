"""Reading the options of this folder's commands."""

import difflib
import sys
from dataclasses import fields
from typing import Any

from transformers import HfArgumentParser


def parse_command_line(argument_class: Any) -> Any:
    """Read the command line into one dataclass.

    Args:
        argument_class (`type`): the dataclass.

    Returns:
        The filled dataclass.

    Raises:
        ValueError: for an unknown flag; names the nearest one.
    """
    parsed, unknown = HfArgumentParser(argument_class).parse_args_into_dataclasses(
        sys.argv[1:], return_remaining_strings=True
    )
    if unknown:
        names = [field.name for field in fields(argument_class)]
        near = difflib.get_close_matches(unknown[0].removeprefix("--").split("=")[0].replace("-", "_"), names, n=1)
        hint = f" Did you mean `--{near[0]}`?" if near else ""
        raise ValueError(f"Unknown argument `{unknown[0]}`. Choose from: --{', --'.join(names)}.{hint}")
    return parsed
