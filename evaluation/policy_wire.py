"""How policies and harness talk over HTTP: JSON, arrays as base64. Nothing is ever unpickled.

An array is `{"dtype": "uint8", "shape": [128, 128, 3], "data": "<base64 of its bytes, rows first, little endian>"}`.
Everything that comes in is checked here, on both sides. docs/remote_policies.md describes the messages.
"""

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from evaluation.policies import ChunkRequest

VERSION = 1
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4"), "float64": np.dtype("<f8")}
MAX_BODY_BYTES = 2**26
MAX_REQUESTS = 256
MAX_OBSERVATIONS = 64
MAX_SIDE = 4096
MAX_TEXT = 2000
MAX_STATE = 1024

_T = TypeVar("_T")


class WireError(ValueError):
    """A message that is not what it should be; says what came."""


def encode_array(array: np.ndarray) -> dict[str, Any]:
    """Write an array as JSON values.

    Args:
        array (`np.ndarray`): of a dtype in `DTYPES`.

    Returns:
        `dict`: dtype, shape and data.

    Raises:
        WireError: for another dtype.
    """
    if array.dtype.name not in DTYPES:
        raise WireError(f"Arrays travel as {', '.join(DTYPES)}, got {array.dtype}. Convert it first.")
    data = np.ascontiguousarray(array, DTYPES[array.dtype.name])
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": base64.b64encode(data.tobytes()).decode("ascii"),
    }


def decode_array(value: Any, what: str) -> np.ndarray:
    """Read an array.

    Args:
        value: what came.
        what (`str`): what it stands for, for messages.

    Returns:
        `np.ndarray`: finite, with at most four dimensions.

    Raises:
        WireError: if it is no array, or its parts contradict each other.
    """
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data"}:
        raise WireError(f"{what} must be an array with `dtype`, `shape` and `data`, got {brief(value)}.")
    dtype, shape, data = value["dtype"], value["shape"], value["data"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WireError(f"{what} must have one of the dtypes {', '.join(DTYPES)}, got {brief(dtype)}.")
    whole = isinstance(shape, list) and len(shape) <= 4 and all(type(side) is int and 0 <= side for side in shape)
    if not whole:
        raise WireError(f"{what} must have a shape of at most four whole numbers, got {brief(shape)}.")
    try:
        raw = base64.b64decode(data if isinstance(data, str) else "*", validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"{what} must hold base64 text under `data`, got {brief(data)}.") from error
    expected = DTYPES[dtype].itemsize
    for side in shape:
        expected *= side  # whole numbers of Python: no overflow
    if len(raw) != expected:
        raise WireError(f"{what} of {dtype} and shape {shape} has {expected} bytes, got {len(raw)}.")
    array = np.frombuffer(raw, DTYPES[dtype]).reshape(shape).copy()  # writable, as arrays mostly are
    if dtype != "uint8" and not np.isfinite(array).all():
        raise WireError(f"{what} must be finite, got NaN or infinity.")
    return array


def read_message(body: bytes) -> dict[str, Any]:
    """Read a message and check its version.

    Args:
        body (`bytes`): what came.

    Returns:
        `dict`: the message.

    Raises:
        WireError: if it is not JSON, no object, or of another version.
    """
    try:
        message = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"Expected a JSON object, got {brief(body)}.") from error
    if not isinstance(message, dict):
        raise WireError(f"Expected a JSON object, got {brief(message)}.")
    if message.get("version") != VERSION:
        raise WireError(f"Expected a message of version {VERSION}, got version {brief(message.get('version'))}.")
    return message


def read_text(message: dict[str, Any], key: str) -> str:
    """Read a text of a message.

    Args:
        message (`dict`): the message.
        key (`str`): where the text stands.

    Returns:
        `str`: the text.

    Raises:
        WireError: if it is missing, empty or too long.
    """
    value = message.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise WireError(f"`{key}` must be a text of 1 to {MAX_TEXT} characters, got {brief(value)}.")
    return value


def read_number(message: dict[str, Any], key: str, low: int, high: int) -> int:
    """Read a whole number of a message.

    Args:
        message (`dict`): the message.
        key (`str`): where the number stands.
        low (`int`): smallest value.
        high (`int`): largest value.

    Returns:
        `int`: the number.

    Raises:
        WireError: if it is missing, no whole number or outside the range.
    """
    value = message.get(key)
    if type(value) is not int or not low <= value <= high:
        raise WireError(f"`{key}` must be a whole number from {low} to {high}, got {brief(value)}.")
    return value


def read_list(message: dict[str, Any], key: str, longest: int, read: Callable[[Any], _T]) -> list[_T]:
    """Read a list of a message.

    Args:
        message (`dict`): the message.
        key (`str`): where the list stands.
        longest (`int`): how many entries it may have; at least one is needed.
        read (`Callable`): reads an entry.

    Returns:
        `list`: the entries.

    Raises:
        WireError: if it is missing, no list, empty or too long, or as `read`.
    """
    values = message.get(key)
    if not isinstance(values, list) or not 0 < len(values) <= longest:
        came = f"{len(values)} entries" if isinstance(values, list) else brief(values)
        raise WireError(f"`{key}` must be a list of 1 to {longest} entries, got {came}.")
    return [read(value) for value in values]


def write_observation(observation: dict[str, np.ndarray], cameras: tuple[str, ...]) -> dict[str, Any]:
    """Write what a policy is shown: its cameras, and what the robot feels.

    Args:
        observation (`dict`): as `LiberoEnv` gives it.
        cameras (`tuple[str, ...]`): those that the policy looks at.

    Returns:
        `dict`: JSON values.
    """
    shown = (*cameras, "state") if "state" in observation else cameras
    return {name: encode_array(observation[name]) for name in shown}


def read_observation(value: Any) -> dict[str, np.ndarray]:
    """Read an observation.

    Args:
        value: what came.

    Returns:
        `dict`: uint8 frames `(H, W, 3)` by camera, and under `state` a float vector where it was sent.

    Raises:
        WireError: if something else came.
    """
    if not isinstance(value, dict) or not 0 < len(value) <= 8:
        raise WireError(f"An observation must hold arrays by name, got {brief(value)}.")
    observation = {name: decode_array(array, f"`{name}`") for name, array in value.items()}
    for name, array in observation.items():
        if name == "state":
            if array.dtype == np.uint8 or array.ndim != 1 or array.size > MAX_STATE:
                raise WireError(f"`state` must be a float vector, got {array.dtype} of shape {array.shape}.")
        elif array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not _has_picture_size(array):
            raise WireError(
                f"A frame must be uint8 of shape (H, W, 3), sides 1 to {MAX_SIDE}; `{name}` is {array.dtype} of shape "
                f"{array.shape}."
            )
    return observation


def _has_picture_size(array: np.ndarray) -> bool:
    return all(1 <= side <= MAX_SIDE for side in array.shape[:2])


def read_request(value: Any) -> tuple[ChunkRequest, int]:
    """Read what one episode asks.

    Args:
        value: what came.

    Returns:
        `tuple`: the request, and its number within the episode, from 0.

    Raises:
        WireError: if something else came.
    """
    if not isinstance(value, dict):
        raise WireError(f"A request must be an object, got {brief(value)}.")
    observations = read_list(value, "observations", MAX_OBSERVATIONS, read_observation)
    return ChunkRequest(read_text(value, "episode_id"), observations), read_number(value, "number", 0, 10**9)


def read_chunk(value: Any, action_dim: int) -> np.ndarray:
    """Read the commands that answer a request.

    Args:
        value: what came: an array, or a list of lists of numbers.
        action_dim (`int`): D.

    Returns:
        `np.ndarray` of shape `(n, D)`: n >= 1 finite commands.

    Raises:
        WireError: if something else came.
    """
    if isinstance(value, list):
        try:
            array = np.array(value)
        except ValueError as error:  # rows of different lengths
            raise WireError(f"A chunk must hold rows of {action_dim} numbers, got {brief(value)}.") from error
        if array.dtype.kind not in "iuf":
            raise WireError(f"A chunk must hold rows of {action_dim} numbers, got {brief(value)}.")
        array = array.astype(float)
    else:
        array = decode_array(value, "A chunk").astype(float)
    if array.ndim != 2 or array.shape[1] != action_dim or len(array) == 0:
        raise WireError(f"A chunk must have shape (n, {action_dim}), n >= 1, got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise WireError("A chunk must be finite, got NaN or infinity.")
    return array


def brief(value: Any) -> str:
    """What came, short enough for a message.

    Args:
        value: anything.

    Returns:
        `str`: at most 80 characters of it.
    """
    if value is None or value == b"":
        return "nothing"
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"
