"""A policy that answers over HTTP: other people's models, judged by the same harness. See docs/remote_policies.md.

Shapes: `D` action dimensions, `n` commands of a chunk.
"""

import http.client
import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from evaluation.libero_env import ACTION_DIM
from evaluation.libero_rendering import CAMERAS
from evaluation.libero_setup import choose
from evaluation.policies import ChunkRequest, PolicyError, check_requests
from evaluation.policy_arguments import PolicyArguments
from evaluation.policy_wire import (
    MAX_BODY_BYTES,
    MAX_OBSERVATIONS,
    VERSION,
    WireError,
    brief,
    read_chunk,
    read_message,
    read_number,
    read_text,
    write_observation,
)

logger = logging.getLogger("worldvla.remote_policy")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts; doubled each time
PASSING = (429, 502, 503, 504)  # HTTP answers that a moment later may be others


class _NoAnswer(Exception):
    """Nothing came that could be read; worth another attempt."""


@dataclass
class _Episode:
    wire_id: str  # no two clients use the same
    instruction: str
    answered: int = 0


class RemotePolicy:
    """Asks a server over HTTP.

    Args:
        server (`str`): `http://host:port` or `https://host:port`, with a path in front where there is one.
        timeout (`float`): seconds that an answer may take.
        retries (`int`): attempts after the first one, where nothing came, or the server asks for patience.
        n_action_steps (`int`, *optional*): commands of a chunk that are carried out, at most; by default all.
        sleep (`Callable`): waits so many seconds.

    Raises:
        ValueError: if the address is none, or the server's policy does not fit the simulator.
        PolicyError: if the server does not answer, or answers nonsense.
    """

    def __init__(
        self,
        server: str,
        timeout: float = 60.0,
        retries: int = 3,
        n_action_steps: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server = server.rstrip("/")
        self._address = _read_address(self.server)
        self.timeout = timeout
        self.retries = retries
        self.n_action_steps = n_action_steps
        self._sleep = sleep
        self._client_id = uuid.uuid4().hex
        self._episodes: dict[str, _Episode] = {}
        description = self._ask("GET", "/describe")
        try:
            self._take_in(description)
        except WireError as error:
            raise PolicyError(f"`{self.server}/describe` answers nonsense: {error}") from error

    @classmethod
    def from_arguments(cls, arguments: PolicyArguments) -> "RemotePolicy":
        """Connect to a server.

        Args:
            arguments (`PolicyArguments`): its address, and how patient to be.

        Returns:
            `RemotePolicy`: ready to begin episodes.
        """
        return cls(
            str(arguments.server),
            timeout=arguments.server_timeout,
            retries=arguments.server_retries,
            n_action_steps=arguments.n_action_steps,
        )

    def _take_in(self, description: dict[str, Any]) -> None:
        cameras = description.get("cameras")
        if not isinstance(cameras, list) or not all(isinstance(name, str) for name in cameras):
            raise WireError(f"`cameras` must be a list of names, got {brief(cameras)}.")
        self.cameras = tuple(choose("camera of the server", name, tuple(CAMERAS)) for name in cameras)
        self.n_obs_steps = read_number(description, "n_obs_steps", 1, MAX_OBSERVATIONS)
        self.name = read_text(description, "name")
        width = read_number(description, "action_dim", 1, 10**6)
        if width != ACTION_DIM:
            raise ValueError(
                f"`{self.server}` predicts actions of {width} numbers; the simulator takes {ACTION_DIM} (position "
                "deltas, rotation deltas, gripper). Convert them in the server."
            )
        self._description = description.get("description", {})

    def describe(self) -> dict[str, Any]:
        """What decides the answers, as far as the server says.

        Returns:
            `dict`: JSON values; the address is not among them: a server may move.
        """
        return {
            "policy": "http",
            "name": self.name,
            "cameras": list(self.cameras),
            "n_obs_steps": self.n_obs_steps,
            "n_action_steps": self.n_action_steps,
            "server": self._description,
        }

    def begin(self, episode_id: str, instruction: str) -> None:
        """Take up an episode; one of the same id is forgotten.

        Args:
            episode_id (`str`): its name.
            instruction (`str`): what the robot shall do.

        Raises:
            PolicyError: if the server does not take it.
        """
        wire_id = f"{self._client_id}/{uuid.uuid4().hex[:8]}/{episode_id}"  # new for every beginning
        try:
            self._ask("POST", "/begin", {"episode_id": wire_id, "instruction": instruction})
        except PolicyError as error:
            raise PolicyError(str(error), [episode_id]) from error
        self._episodes[episode_id] = _Episode(wire_id, instruction)

    def end(self, episode_id: str) -> None:
        """Forget an episode; a server that does not hear of it forgets it later.

        Args:
            episode_id (`str`): its name.
        """
        episode = self._episodes.pop(episode_id, None)
        if episode is None:
            return
        try:
            self._ask("POST", "/end", {"episode_id": episode.wire_id}, retries=0)
        except PolicyError as error:
            logger.warning("The end of an episode did not reach the server: %s", error)

    def predict_chunks(self, requests: Sequence[ChunkRequest]) -> list[np.ndarray]:
        """Ask for the next commands of every episode, in one call.

        Args:
            requests (`Sequence[ChunkRequest]`): with uint8 frames `(H, W, 3)` under the cameras' names.

        Returns:
            `list[np.ndarray]`: one array `(n, D)` each.

        Raises:
            ValueError: if an episode is unknown, asks twice, or lacks a camera.
            PolicyError: if no answer came, or nonsense; names the episodes whose answers are nonsense.
        """
        if not requests:
            return []
        check_requests(requests, self._episodes, self.cameras)
        answer = self._ask("POST", "/predict", {"requests": [self._write(request) for request in requests]})
        values = answer.get("chunks")
        if not isinstance(values, list) or len(values) != len(requests):
            came = f"{len(values)} chunks" if isinstance(values, list) else brief(values)
            raise PolicyError(
                f"`{self.server}/predict` answers nonsense: `chunks` must hold one chunk for each of the "
                f"{len(requests)} requests, got {came}."
            )
        chunks = self._read_chunks(requests, values)
        for request in requests:
            self._episodes[request.episode_id].answered += 1
        return chunks

    def _write(self, request: ChunkRequest) -> dict[str, Any]:
        episode = self._episodes[request.episode_id]
        latest = request.observations[-self.n_obs_steps :]
        return {
            "episode_id": episode.wire_id,
            "number": episode.answered,
            "instruction": episode.instruction,
            "observations": [write_observation(observation, self.cameras) for observation in latest],
        }

    def _read_chunks(self, requests: Sequence[ChunkRequest], values: list[Any]) -> list[np.ndarray]:
        chunks, wrong = [], {}
        for request, value in zip(requests, values, strict=True):
            try:
                chunks.append(read_chunk(value, ACTION_DIM)[: self.n_action_steps])
            except WireError as error:
                wrong[request.episode_id] = str(error)
        if wrong:
            text = " ".join(f"Episode `{name}`: {error}" for name, error in wrong.items())
            raise PolicyError(f"`{self.server}/predict` answers nonsense. {text}", list(wrong))
        return chunks

    def _ask(
        self, method: str, path: str, message: dict[str, Any] | None = None, retries: int | None = None
    ) -> dict[str, Any]:
        """Send a message until an answer comes, but not for ever."""
        body = None if message is None else json.dumps({"version": VERSION, **message}).encode()
        attempts = 1 + (self.retries if retries is None else retries)
        pause, reason = FIRST_PAUSE, ""
        for attempt in range(attempts):
            if attempt:
                logger.warning("`%s%s`: %s; asked again in %g s", self.server, path, reason, pause)
                self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            try:
                return self._exchange(method, path, body)
            except _NoAnswer as error:
                reason = str(error)
        tried = "once" if attempts == 1 else f"{attempts} times"
        raise PolicyError(
            f"`{self.server}{path}` was asked {tried} without an answer, last: {reason}. Check that the server runs, "
            "and `--server_timeout`."
        )

    def _exchange(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        """One connection, one message, one answer, within the time."""
        https, host, port, prefix = self._address
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        connection = kind(host, port, timeout=self.timeout)
        deadline = time.monotonic() + self.timeout
        try:
            connection.request(method, prefix + path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = _read_until(response, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise _NoAnswer(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        finally:
            connection.close()
        if response.status in PASSING:
            raise _NoAnswer(f"HTTP {response.status}: {_error_text(answer)}")
        if response.status != 200:
            raise PolicyError(f"`{self.server}{path}` answers HTTP {response.status}: {_error_text(answer)}")
        try:
            return read_message(answer)
        except WireError as error:
            raise PolicyError(f"`{self.server}{path}` answers nonsense: {error}") from error


def _read_until(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read an answer, however slowly it drips, up to a time and a size."""
    parts, size = [], 0
    while part := response.read1(2**16):
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise http.client.HTTPException(f"the answer is larger than {MAX_BODY_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("the answer was not complete in time")
    if response.length:
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


def _error_text(answer: bytes) -> str:
    """What a server says went wrong: our servers' `error`, or the beginning of whatever came."""
    try:
        message = json.loads(answer)
    except (ValueError, RecursionError):
        return brief(answer)
    text = message.get("error") if isinstance(message, dict) else None
    return text[:500] if isinstance(text, str) else brief(answer)


def _read_address(server: str) -> tuple[bool, str, int, str]:
    """Whether it is https, then host, port, and what stands in front of every path."""
    try:
        parts = urlsplit(server)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"`--server` must look like `http://127.0.0.1:8000`, got `{server}` ({error}).") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"`--server` must look like `http://127.0.0.1:8000`, got `{server}`.")
    https = parts.scheme == "https"
    return https, parts.hostname, port or (443 if https else 80), parts.path
