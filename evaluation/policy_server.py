"""Serve a WorldVLA checkpoint over HTTP, to this harness on another machine or in another environment.

    python evaluation/policy_server.py --checkpoint outputs/run --port 8000
    python evaluation/run.py --policy http --server http://127.0.0.1:8000 --output_dir out/

docs/remote_policies.md describes the messages, and how to serve a model of another kind. There is no password: the
server listens on this machine only, unless `--host` says otherwise.
"""

import json
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from evaluation.arguments import parse_arguments
from evaluation.libero_env import ACTION_DIM
from evaluation.policies import BatchedPolicy, ChunkRequest, check_requests, make_batched_policy
from evaluation.policy_arguments import PolicyArguments
from evaluation.policy_wire import (
    MAX_BODY_BYTES,
    MAX_REQUESTS,
    VERSION,
    WireError,
    brief,
    encode_array,
    read_list,
    read_message,
    read_request,
    read_text,
)

logger = logging.getLogger("worldvla.policy_server")

IDLE_SECONDS = 60  # after which a connection that says nothing is closed


@dataclass
class PolicyServerArguments(PolicyArguments):
    """Options of `evaluation/policy_server.py`."""

    name: str = field(default="worldvla", metadata={"help": "What results shall call this model."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 lets everyone in."})
    port: int = field(default=8000, metadata={"help": "Port to listen on; 0 takes a free one."})
    max_episodes: int = field(
        default=256, metadata={"help": "Episodes that are remembered; the one that rested longest goes first."}
    )

    def __post_init__(self) -> None:
        """Check every option before anything is loaded."""
        super().__post_init__()
        if self.policy != "worldvla":
            raise ValueError(f"The server serves policy `worldvla`, got `{self.policy}`.")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"`--port` must lie in 0 … 65535, got {self.port}.")
        if self.max_episodes <= 0:
            raise ValueError(f"`--max_episodes` must be larger than 0, got {self.max_episodes}.")


@dataclass
class _Episode:
    """Where an episode stands: how many requests were taken in, and the answer to the last one."""

    taken: int = 0
    last_chunk: np.ndarray | None = None


class PolicyService:
    """What the server does, without HTTP: messages in, messages out. One thread at a time is with the policy.

    A request that comes again, because its answer got lost, gets the same answer again.

    Args:
        policy (`BatchedPolicy`): decides.
        name (`str`): what results shall call it.
        max_episodes (`int`): episodes that are remembered; beyond, the one that rested longest is forgotten.
    """

    def __init__(self, policy: BatchedPolicy, name: str, max_episodes: int = 256) -> None:
        self.policy = policy
        self.name = name
        self.max_episodes = max_episodes
        self._episodes: OrderedDict[str, _Episode] = OrderedDict()
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """What a client must know before it begins.

        Returns:
            `dict`: the message.
        """
        return {
            "name": self.name,
            "cameras": list(self.policy.cameras),
            "n_obs_steps": self.policy.n_obs_steps,
            "action_dim": ACTION_DIM,
            "description": self.policy.describe(),
        }

    def begin(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take up an episode; one of the same id is forgotten.

        Args:
            message (`dict`): with `episode_id` and `instruction`.

        Returns:
            `dict`: nothing more to say.

        Raises:
            WireError: if a part is missing.
        """
        episode_id, instruction = read_text(message, "episode_id"), read_text(message, "instruction")
        with self._lock:
            self.policy.begin(episode_id, instruction)
            self._episodes[episode_id] = _Episode()
            self._episodes.move_to_end(episode_id)
            while len(self._episodes) > self.max_episodes:
                forgotten, _ = self._episodes.popitem(last=False)
                self.policy.end(forgotten)
        return {}

    def end(self, message: dict[str, Any]) -> dict[str, Any]:
        """Forget an episode, if it is known.

        Args:
            message (`dict`): with `episode_id`.

        Returns:
            `dict`: nothing more to say.

        Raises:
            WireError: if the id is missing.
        """
        episode_id = read_text(message, "episode_id")
        with self._lock:
            self._episodes.pop(episode_id, None)
            self.policy.end(episode_id)
        return {}

    def predict(self, message: dict[str, Any]) -> dict[str, Any]:
        """Answer the requests of one batch.

        Args:
            message (`dict`): with `requests`.

        Returns:
            `dict`: `chunks`, one array `(n, D)` for each request.

        Raises:
            WireError: if a request is malformed, its episode unknown, or its number out of order.
            ValueError: if the policy refuses a request.
        """
        numbered = read_list(message, "requests", MAX_REQUESTS, read_request)
        with self._lock:
            fresh = [request for request, number in numbered if self._is_fresh(request, number)]
            check_requests(fresh, self._episodes, self.policy.cameras)
            for request in fresh:  # from here on, what fails cannot be asked again
                self._episodes[request.episode_id].taken += 1
                self._episodes[request.episode_id].last_chunk = None
            chunks = self.policy.predict_chunks(fresh) if fresh else []
            for request, chunk in zip(fresh, chunks, strict=True):
                self._episodes[request.episode_id].last_chunk = np.asarray(chunk, dtype=np.float64)
            return {"chunks": [self._last_chunk_of(request.episode_id) for request, _ in numbered]}

    def _is_fresh(self, request: ChunkRequest, number: int) -> bool:
        episode = self._episodes.get(request.episode_id)
        if episode is None:
            raise WireError(
                f"Episode {brief(request.episode_id)} has not begun here, or was forgotten: {self.max_episodes} are "
                "remembered, and none over a restart of the server. Begin it again."
            )
        if number not in (episode.taken, episode.taken - 1):
            raise WireError(
                f"Episode {brief(request.episode_id)} sends request {number}, expected {episode.taken}. Requests of "
                "an episode are numbered from 0; only the last one may come again."
            )
        self._episodes.move_to_end(request.episode_id)
        return number == episode.taken

    def _last_chunk_of(self, episode_id: str) -> dict[str, Any]:
        chunk = self._episodes[episode_id].last_chunk
        if chunk is None:
            raise WireError(
                f"Episode {brief(episode_id)} cannot go on: its last request failed in the model. Begin it again."
            )
        return encode_array(chunk)


class _Handler(BaseHTTPRequestHandler):
    """One connection of the server."""

    server: "PolicyServer"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        if self.path == "/describe":
            self._answer(lambda _: self.server.service.describe(), None)
        else:
            self._refuse(404, f"There is no `GET {self.path[:80]}`. There is `GET /describe`.")

    def do_POST(self) -> None:
        service = self.server.service
        routes = {"/begin": service.begin, "/predict": service.predict, "/end": service.end}
        if self.path not in routes:
            self._refuse(404, f"There is no `POST {self.path[:80]}`. There are: {', '.join(routes)}.")
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._refuse(411, "A message needs a `Content-Length`.")
        elif int(length) > self.server.max_body_bytes:
            self._refuse(413, f"A message may have {self.server.max_body_bytes} bytes, this one has {length}.")
        else:
            self._answer(routes[self.path], self.rfile.read(int(length)))

    def _answer(self, act: Callable[[dict[str, Any]], dict[str, Any]], body: bytes | None) -> None:
        try:
            answer = act({} if body is None else read_message(body))
        except ValueError as error:
            self._send(400, {"error": str(error)})
        except Exception as error:  # the model's own failure: say so, and serve on
            logger.exception("`%s` failed", self.path)
            self._send(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            self._send(200, answer)

    def _refuse(self, status: int, text: str) -> None:
        """Answer without having read the body: the connection cannot go on."""
        self.close_connection = True
        self._send(status, {"error": text})

    def _send(self, status: int, message: dict[str, Any]) -> None:
        body = json.dumps({"version": VERSION, **message}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


class PolicyServer(ThreadingHTTPServer):
    """Listens, one thread for each connection.

    Args:
        service (`PolicyService`): answers.
        host (`str`): address to listen on.
        port (`int`): port to listen on; 0 takes a free one.
        max_body_bytes (`int`): size of the largest message.

    Raises:
        OSError: if the port is taken, or the address not of this machine.

    Example:
        ```python
        with PolicyServer(PolicyService(policy, "mine"), "127.0.0.1", 8000) as server:
            server.serve_forever()
        ```
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, service: PolicyService, host: str = "127.0.0.1", port: int = 0, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise OSError(f"Cannot listen at {host}:{port}: {error}. Choose another `--port` or `--host`.") from error
        self.service = service
        self.max_body_bytes = max_body_bytes

    @property
    def url(self) -> str:
        """Where clients find it."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note a connection that broke; the server goes on."""
        logger.debug("connection of %s broke", client_address, exc_info=True)


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(PolicyServerArguments, argv)
    service = PolicyService(make_batched_policy(arguments), arguments.name, arguments.max_episodes)
    with PolicyServer(service, arguments.host, arguments.port) as server:
        logger.info("serving `%s` at %s", arguments.name, server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            logger.info("stopped")


if __name__ == "__main__":
    main(sys.argv[1:])
