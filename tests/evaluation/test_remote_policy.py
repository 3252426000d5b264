"""Client and server of remote policies: the same answers as next door, and what can go wrong between them."""

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from evaluation.policies import ChunkRequest, PolicyError, make_batched_policy
from evaluation.policy_arguments import PolicyArguments
from evaluation.policy_server import PolicyServer, PolicyServerArguments, PolicyService
from evaluation.policy_wire import VERSION, WireError, decode_array, encode_array, read_chunk, read_observation
from evaluation.remote_policy import RemotePolicy
from evaluation.worldvla_policy import WorldVLAPolicy

FRAMES = np.random.default_rng(3).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
TASK = "lift the cup"
DESCRIPTION = {"name": "other", "cameras": ["agentview"], "n_obs_steps": 1, "action_dim": 7}


class SummingPolicy:
    """Answers with the sum of the brightness seen so far in the episode and notes what it is asked."""

    cameras, n_obs_steps = ("agentview",), 2

    def __init__(self):
        self.sums, self.begun, self.ended, self.batches, self.failures, self.delay = {}, [], [], [], [], 0.0

    def describe(self):
        return {"policy": "summing"}

    def begin(self, episode_id, instruction):
        self.sums[episode_id] = 0
        self.begun.append(instruction)

    def end(self, episode_id):
        self.ended.append(episode_id)

    def predict_chunks(self, requests):
        time.sleep(self.delay)
        self.batches.append(len(requests))
        if self.failures:
            raise self.failures.pop()
        for request in requests:
            self.sums[request.episode_id] += sum(int(o["agentview"][0, 0, 0]) for o in request.observations)
        return [np.full((3, 7), self.sums[request.episode_id], float) for request in requests]


def grey(*values):
    return [{"agentview": np.full((4, 4, 3), value, np.uint8), "state": np.zeros(8, np.float32)} for value in values]


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def policy():
    return SummingPolicy()


@pytest.fixture
def server(policy):
    with serving(PolicyServer(PolicyService(policy, "summing", max_episodes=4), max_body_bytes=10_000)) as server:
        yield server


def connect(server, **options):
    return RemotePolicy(server.url, **{"timeout": 5, "retries": 0, **options})


def post(server, path, message, **headers):
    """A raw message: status and answer."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
    body = message if isinstance(message, bytes) else json.dumps({"version": VERSION, **message}).encode()
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


# The same answers as next door


def test_a_served_checkpoint_answers_as_the_checkpoint_itself(make_model, processor):
    model = make_model(initializer_range=0.5)
    local, served = (WorldVLAPolicy(model, processor, n_obs_steps=2, chunk_size=4) for _ in range(2))
    with serving(PolicyServer(PolicyService(served, "tiny"))) as server:
        remote = connect(server)
        assert (remote.cameras, remote.n_obs_steps, remote.name) == (("agentview",), 2, "tiny")
        assert remote.describe()["server"] == local.describe()
        answers = []
        for policy in (local, remote):
            policy.begin("a", TASK)
            policy.begin("b", "push the plate")
            for step in ({"a": [0], "b": [4]}, {"a": [1, 2], "b": [5, 6]}, {"b": [7]}):
                requests = [ChunkRequest(name, [{"agentview": FRAMES[k]} for k in ks]) for name, ks in step.items()]
                answers.append(policy.predict_chunks(requests))
            policy.end("a")
    for mine, its in zip(answers[:3], answers[3:], strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(its))
    assert len({chunk.tobytes() for batch in answers[:3] for chunk in batch}) == 5


def test_a_batch_is_one_call_and_episodes_end_at_the_server(server, policy):
    remote = connect(server)
    for name in "ab":
        remote.begin(name, TASK)
    chunks = remote.predict_chunks([ChunkRequest("a", grey(1)), ChunkRequest("b", grey(2))])
    assert [chunk[0, 0] for chunk in chunks] == [1, 2]
    (chunk,) = remote.predict_chunks([ChunkRequest("b", grey(9, 3, 4))])  # only as many as the policy looks at
    assert chunk.shape == (3, 7) and chunk[0, 0] == 9
    assert policy.batches == [2, 1] and policy.begun == [TASK, TASK]
    remote.end("a")
    remote.end("a")
    assert len(policy.ended) == 1
    assert remote.predict_chunks([]) == []


def test_fewer_actions_of_a_chunk(server):
    remote = connect(server, n_action_steps=2)
    remote.begin("a", TASK)
    assert remote.predict_chunks([ChunkRequest("a", grey(1))])[0].shape == (2, 7)
    assert remote.describe()["n_action_steps"] == 2


def test_the_command_line_connects(server):
    arguments = PolicyArguments(policy="http", server=server.url + "/", server_timeout=5, server_retries=1)
    remote = make_batched_policy(arguments)
    assert (remote.timeout, remote.retries, remote.name) == (5, 1, "summing")


def test_clients_at_the_same_time_keep_their_episodes_apart(server):
    def play(first):
        remote = connect(server)
        remote.begin("same name", TASK)
        return [remote.predict_chunks([ChunkRequest("same name", grey(first + k))])[0][0, 0] for k in range(10)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(play, range(0, 200, 50)))
    assert found == [[sum(first + j for j in range(k + 1)) for k in range(10)] for first in range(0, 200, 50)]


# Attempts


def test_an_answer_that_came_too_late_is_given_again(server, policy):
    remote = connect(server, retries=9, sleep=lambda seconds: time.sleep(0.05))
    remote.begin("a", TASK)
    remote.timeout, policy.delay = 0.3, 0.8
    (chunk,) = remote.predict_chunks([ChunkRequest("a", grey(5))])
    assert chunk[0, 0] == 5 and policy.batches.count(1) == 1, "the frame is taken in once"
    policy.delay = 0.0
    assert remote.predict_chunks([ChunkRequest("a", grey(2))])[0][0, 0] == 7


def test_pauses_between_attempts_grow_and_end():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"  # bound, but nobody listens
        pauses = []
        with pytest.raises(
            PolicyError, match="/describe` was asked 7 times without an answer, last: ConnectionRefused"
        ):
            RemotePolicy(url, timeout=1, retries=6, sleep=pauses.append)
    assert pauses == [0.5, 1, 2, 4, 8, 8]


class Script(ThreadingHTTPServer):
    """Answers each path with what it is told: a list of (status, body) or functions of the handler; the last stays."""

    daemon_threads = True

    def __init__(self, **answers):
        super().__init__(("127.0.0.1", 0), ScriptHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked = []
        self.answers = {"describe": [message(DESCRIPTION)], "begin": [message({})], "end": [message({})]} | answers

    def handle_error(self, request, client_address):
        pass


class ScriptHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.strip("/")
        self.server.asked.append(path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answers = self.server.answers[path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer(self)
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    do_POST = do_GET

    def log_message(self, *_):
        pass


def message(values, status=200, version=VERSION):
    return status, json.dumps({"version": version, **values}).encode()


def chunks(*values):
    return message({"chunks": values})


GOOD = encode_array(np.ones((2, 7)))


def nothing(handler):
    """Close the connection without a word."""
    handler.close_connection = True


def silence(handler):
    time.sleep(0.6)


def drip(handler):
    """Send an answer that never ends, a byte at a time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(12):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def cut(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"version": 1, "chunks": [')


def no_http(handler):
    handler.wfile.write(b"I speak another language\r\n\r\n")


def ask(server, timeout=5, **options):
    remote = connect(server, sleep=lambda seconds: None, **options)
    remote.begin("a", TASK)
    remote.timeout = timeout  # from now on
    return remote.predict_chunks([ChunkRequest("a", grey(1))])


@pytest.mark.parametrize("passing", [nothing, silence, cut, no_http, message({"error": "busy"}, 503)])
def test_what_passes_is_asked_again(passing):
    with serving(Script(predict=[passing, chunks(GOOD)])) as server:
        (chunk,) = ask(server, retries=9, timeout=0.3 if passing is silence else 5)
    np.testing.assert_array_equal(chunk, np.ones((2, 7)))
    assert server.asked.count("predict") == 2 or passing is silence


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (nothing, r"asked 2 times without an answer, last: RemoteDisconnected"),
        (silence, r"asked 2 times without an answer, last: TimeoutError.*`--server_timeout`"),
        (drip, r"asked 2 times without an answer, last: TimeoutError"),
        (cut, r"asked 2 times without an answer, last: IncompleteRead"),
        (no_http, r"asked 2 times without an answer, last: BadStatusLine: I speak another language"),
        (message({"error": "busy"}, 503), r"without an answer, last: HTTP 503: busy"),
        (message({"error": "no memory"}, 500), r"/predict` answers HTTP 500: no memory"),
        ((500, b"<html>Internal Server Error</html>"), r"answers HTTP 500: `<html>Internal Server Error</html>`"),
        ((404, b""), r"answers HTTP 404: nothing"),
        ((200, b"<html>hello</html>"), r"answers nonsense: Expected a JSON object, got `<html>hello</html>`"),
        ((200, b""), r"answers nonsense: Expected a JSON object, got nothing"),
        ((200, b"\xff\xfe"), r"answers nonsense: Expected a JSON object"),
        ((200, b"[" * 100_000), r"answers nonsense: Expected a JSON object, got `\[\[\["),
        ((200, b"[1, 2]"), r"answers nonsense: Expected a JSON object, got `\[1, 2\]`"),
        (message({"chunks": [GOOD]}, version=2), r"Expected a message of version 1, got version `2`"),
        (message({}), r"`chunks` must hold one chunk for each of the 1 requests, got nothing"),
        (chunks(GOOD, GOOD), r"one chunk for each of the 1 requests, got 2 chunks"),
        (chunks(encode_array(np.ones((2, 6)))), r"Episode `a`: A chunk must have shape \(n, 7\), .* got shape \(2, 6"),
        (chunks(encode_array(np.ones(7))), r"must have shape \(n, 7\), n >= 1, got shape \(7,\)"),
        (chunks([]), r"must have shape \(n, 7\), n >= 1, got shape \(0,\)"),
        (chunks(encode_array(np.full((1, 7), np.nan))), r"Episode `a`: A chunk must be finite, got NaN or infinity"),
        (chunks([[float("nan")] * 7]), r"Episode `a`: A chunk must be finite"),
        (chunks([[1, 2], [3]]), r"A chunk must hold rows of 7 numbers, got `\[\[1, 2\], \[3\]\]`"),
        (chunks([["1"] * 7]), r"A chunk must hold rows of 7 numbers"),
        (chunks("left"), r"A chunk must be an array with `dtype`, `shape` and `data`, got `'left'`"),
        (chunks({**GOOD, "dtype": "object"}), r"one of the dtypes uint8, float32, float64, got `'object'`"),
        (chunks({**GOOD, "shape": [3, 7]}), r"A chunk of float64 and shape \[3, 7\] has 168 bytes, got 112"),
        (chunks({**GOOD, "shape": [-1, 7]}), r"a shape of at most four whole numbers, got `\[-1, 7\]`"),
        (chunks({**GOOD, "data": "***"}), r"A chunk must hold base64 text under `data`, got `'\*\*\*'`"),
    ],
)  # fmt: skip
def test_nonsense_is_named(answer, text):
    with serving(Script(predict=[answer])) as server, pytest.raises(PolicyError, match=text):
        ask(server, retries=1, timeout=0.25 if answer in (silence, drip) else 5)


def test_nonsense_for_one_episode_leaves_the_others():
    with serving(Script(predict=[chunks(GOOD, [[1]]), chunks(GOOD)])) as server:
        remote = connect(server)
        for name in "ab":
            remote.begin(name, TASK)
        requests = [ChunkRequest(name, grey(1)) for name in "ab"]
        with pytest.raises(PolicyError) as failure:
            remote.predict_chunks(requests)
        assert failure.value.episode_ids == ("b",)
        np.testing.assert_array_equal(remote.predict_chunks(requests[:1]), np.ones((1, 2, 7)))


def test_an_episode_that_cannot_begin_is_named():
    with serving(Script(begin=[message({"error": "full"}, 500)])) as server:
        with pytest.raises(PolicyError, match="/begin` answers HTTP 500: full") as failure:
            connect(server).begin("a", TASK)
    assert failure.value.episode_ids == ("a",)


def test_an_end_that_does_not_arrive_is_only_noted(caplog):
    with serving(Script(end=[message({}, 500)])) as server:
        remote = connect(server)
        remote.begin("a", TASK)
        remote.end("a")
    assert "The end of an episode did not reach the server" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"action_dim": 14}, ValueError, "predicts actions of 14 numbers; the simulator takes 7"),
        ({"action_dim": None}, PolicyError, "/describe` answers nonsense: `action_dim` must be a whole number"),
        (
            {"cameras": ["agent_view"]},
            ValueError,
            "Unknown camera of the server `agent_view`.*Did you mean `agentview`",
        ),
        ({"cameras": "agentview"}, PolicyError, "`cameras` must be a list of names, got `'agentview'`"),
        ({"n_obs_steps": 0}, PolicyError, "`n_obs_steps` must be a whole number from 1 to 64, got `0`"),
        ({"n_obs_steps": True}, PolicyError, "`n_obs_steps` must be a whole number"),
        ({"name": ""}, PolicyError, "`name` must be a text of 1 to 2000 characters, got `''`"),
    ],
)
def test_descriptions_that_do_not_fit(change, error, text):
    with serving(Script(describe=[message(DESCRIPTION | change)])) as server, pytest.raises(error, match=text):
        connect(server)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:x", "http://a?b=c"])
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="`--server` must look like `http://127.0.0.1:8000`, got"):
        RemotePolicy(address)


# What enters the server is checked


FRAME = encode_array(np.zeros((2, 2, 3), np.uint8))
REQUEST = {"episode_id": "a", "number": 0, "observations": [{"agentview": FRAME}]}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (3, "A request must be an object, got `3`"),
        ({**REQUEST, "episode_id": 7}, "`episode_id` must be a text of 1 to 2000 characters, got `7`"),
        ({**REQUEST, "episode_id": "b"}, "Episode `'b'` has not begun here, or was forgotten"),
        ({**REQUEST, "number": 1}, "Episode `'a'` sends request 1, expected 0"),
        ({**REQUEST, "number": -1}, "`number` must be a whole number from 0"),
        ({**REQUEST, "observations": []}, "`observations` must be a list of 1 to 64 entries, got 0 entries"),
        ({**REQUEST, "observations": [[1]]}, "An observation must hold arrays by name"),
        ({**REQUEST, "observations": [{"wrist": FRAME}]}, "Episode `a` shows no camera `agentview`, only: wrist"),
        ({**REQUEST, "observations": [{"agentview": "gASVAAA="}]}, "`agentview` must be an array with `dtype`"),
        ({**REQUEST, "observations": [{"agentview": {**FRAME, "shape": [2**62, 2**62, 3]}}]}, "got 12"),
        ({**REQUEST, "observations": [{"agentview": {**FRAME, "shape": [12]}}]}, "A frame must be uint8 of shape"),
        (
            {**REQUEST, "observations": [{"agentview": encode_array(np.zeros((2, 2, 3), np.float32))}]},
            "`agentview` is float32 of shape",
        ),
        (
            {**REQUEST, "observations": [{"agentview": FRAME, "state": encode_array(np.full(8, np.inf))}]},
            "`state` must be finite",
        ),
        ({**REQUEST, "observations": [{"agentview": FRAME, "state": FRAME}]}, "`state` must be a float vector"),
    ],
)
def test_requests_are_checked_and_cost_nothing(server, policy, request_, text):
    post(server, "/begin", {"episode_id": "a", "instruction": TASK})
    status, answer = post(server, "/predict", {"requests": [request_]})
    assert status == 400 and text in answer["error"]
    assert policy.batches == []
    assert post(server, "/predict", {"requests": [REQUEST]})[0] == 200  # the same number as before


def test_messages_are_checked(server):
    assert post(server, "/begin", {"episode_id": "a", "instruction": ""})[0] == 400
    assert post(server, "/begin", {"episode_id": "a", "instruction": "x" * 2001})[0] == 400
    assert post(server, "/end", {})[0] == 400
    assert post(server, "/predict", {"requests": "all"})[0] == 400
    assert post(server, "/predict", b"\x80\x04\x95 a pickle")[1]["error"].startswith("Expected a JSON object")
    assert "got version `3`" in post(server, "/begin", b'{"version": 3}')[1]["error"]
    assert post(server, "/predict", b"x" * 10_001) == (
        413,
        {"version": 1, "error": "A message may have 10000 bytes, this one has 10001."},
    )
    assert post(server, "/train", {})[1]["error"] == "There is no `POST /train`. There are: /begin, /predict, /end."


@pytest.mark.parametrize("length", ["", "Content-Length: -5\r\n", "Content-Length: many\r\n"])
def test_messages_of_unknown_length_are_refused(server, length):
    with socket.create_connection(server.server_address[:2], timeout=5) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: a\r\n{length}\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 411")


def test_a_path_that_is_not_there(server):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert response.status == 404 and b"There is `GET /describe`" in response.read()
    connection.close()


def test_a_model_that_fails_is_reported_and_the_server_goes_on(server, policy):
    remote = connect(server)
    remote.begin("a", TASK)
    policy.failures.append(RuntimeError("out of memory"))
    with pytest.raises(PolicyError, match="answers HTTP 500: RuntimeError: out of memory"):
        remote.predict_chunks([ChunkRequest("a", grey(1))])
    with pytest.raises(PolicyError, match="HTTP 400: Episode .* its last request failed in the model"):
        remote.predict_chunks([ChunkRequest("a", grey(1))])
    remote.begin("a", TASK)
    assert remote.predict_chunks([ChunkRequest("a", grey(4))])[0][0, 0] == 4


def test_the_episode_that_rested_longest_is_forgotten_first(server, policy):
    remote = connect(server)
    for name in "abcd":
        remote.begin(name, TASK)
    remote.predict_chunks([ChunkRequest("a", grey(1))])
    remote.begin("e", TASK)
    assert [name[-1] for name in policy.ended] == ["b"]
    with pytest.raises(PolicyError, match="HTTP 400: Episode .*b'` has not begun here, or was forgotten: 4 are remem"):
        remote.predict_chunks([ChunkRequest("b", grey(1))])
    assert remote.predict_chunks([ChunkRequest("a", grey(1))])[0][0, 0] == 2


def test_a_port_that_is_taken(server, policy):
    with pytest.raises(OSError, match=r"Cannot listen at 127\.0\.0\.1:\d+: .*Choose another `--port` or `--host`"):
        PolicyServer(PolicyService(policy, "second"), port=server.server_port)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"policy": "noop"}, "The server serves policy `worldvla`, got `noop`"),
        ({"checkpoint": "c", "port": 65536}, "`--port` must lie in 0 … 65535, got 65536"),
        ({"checkpoint": "c", "max_episodes": 0}, "`--max_episodes` must be larger than 0, got 0"),
    ],
)
def test_options_of_the_server(options, text):
    with pytest.raises(ValueError, match=text):
        PolicyServerArguments(**options)


# The wire itself


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_arrays_come_back_as_they_were(dtype):
    array = np.random.default_rng(0).uniform(0, 255, (3, 5, 3)).astype(dtype)[:, ::-1]
    back = decode_array(json.loads(json.dumps(encode_array(array))), "it")
    assert back.dtype == array.dtype and back.flags.writeable
    np.testing.assert_array_equal(back, array)
    with pytest.raises(WireError, match="Arrays travel as uint8, float32, float64, got int64"):
        encode_array(np.zeros(3, np.int64))


def test_chunks_may_be_plain_lists():
    np.testing.assert_array_equal(read_chunk([[1, 0, 0, 0, 0, 0, -1]], 7), [[1, 0, 0, 0, 0, 0, -1]])


def test_the_state_travels_with_the_frames():
    observation = read_observation({"agentview": FRAME, "state": encode_array(np.arange(8.0))})
    assert observation["state"].tolist() == list(range(8))


def test_the_server_of_the_docs_can_be_asked():
    text = (Path(__file__).parents[2] / "docs" / "remote_policies.md").read_text("utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    names = {"__name__": "my_server"}
    exec(compile(code, "remote_policies.md", "exec"), names)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), names["Handler"])) as server:
        policy = RemotePolicy(f"http://127.0.0.1:{server.server_address[1]}")
        assert (policy.name, policy.cameras, policy.n_obs_steps) == ("my-model", ("agentview",), 1)
        policy.begin("a", TASK)
        for hand in (-1, 1):
            (chunk,) = policy.predict_chunks([ChunkRequest("a", grey(7))])
            assert chunk.tolist() == [[0.0] * 6 + [hand]] * 5
        policy.end("a")
