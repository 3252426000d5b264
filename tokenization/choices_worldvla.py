"""One wording for "that is not one of the choices"."""

import difflib
from collections.abc import Iterable


def require_choice(kind: str, name: object, choices: Iterable[str]) -> None:
    """Refuse a name that is not among the choices, and point at the nearest one.

    Args:
        kind (`str`): what is chosen, for the message: `role`, `binning`, ...
        name (`object`): what came.
        choices (iterable of `str`): what may come.

    Raises:
        ValueError: if `name` is not among `choices`.
    """
    choices = list(choices)
    if isinstance(name, str) and name in choices:
        return
    message = f"Unknown {kind} `{name}`. Choose one of: {', '.join(f'`{choice}`' for choice in choices)}."
    match = difflib.get_close_matches(str(name), choices, n=1)
    raise ValueError(message + (f" Did you mean `{match[0]}`?" if match else ""))
