"""A policy over the network: openpi's messages in and out, and whatever else a client may send."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest

from saqrl.commands import serve
from saqrl.deploy import runtime
from tests.deploy.test_export import OBSERVATIONS, make_policy, write

msgpack = pytest.importorskip("msgpack")
sync = pytest.importorskip("websockets.sync.client")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402

from saqrl.deploy import server as serving  # noqa: E402

CHUNK, ACT = 4, 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "p.npz"
    write(make_policy("quantized", "bc"), path)
    return path


@contextmanager
def running(exported, *, token=None, **limits):
    """(server, port) of a server in a thread."""
    found: dict = {}
    up = threading.Event()

    async def main():
        found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()
        limited = serving.Limits(**limits)
        found["server"] = serving.PolicyServer(runtime.load(exported), token=token, limits=limited)

        def ready(port):
            found["port"] = port
            up.set()

        await found["server"].run("127.0.0.1", 0, ready=ready, stop=found["stop"])

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert up.wait(20)
    try:
        yield found["server"], found["port"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def connected(port, **words):
    with sync.connect(f"ws://127.0.0.1:{port}", compression=None, **words) as client:
        yield client, msgpack.unpackb(client.recv())


def array(value) -> dict:
    value = np.asarray(value)
    return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": value.dtype.str,
        b"shape": value.shape,
    }


def request(value, name="observation") -> bytes:
    return msgpack.packb({name: value})


def actions_of(answer: bytes) -> np.ndarray:
    found = msgpack.unpackb(answer)["actions"]
    return np.frombuffer(found[b"data"], found[b"dtype"]).reshape(found[b"shape"])


GARBAGE = [
    (b"", "not msgpack"),
    (b"\xc1", "not msgpack"),
    (b"\x93\x01", "not msgpack"),
    (b"\x91" * 5000 + b"\x01", "not msgpack"),
    ("hello", "got text"),
    (msgpack.packb([1, 2]), "expected a map"),
    (msgpack.packb({}), "no observation"),
    (msgpack.packb({"image": 1}), "no observation"),
    (request("abc"), "not an array of numbers"),
    (request({"a": 1}), "not an array of numbers"),
    (request([1.0, [2.0]]), "not an array of numbers"),
    (request(3.0), r"has shape \(\)"),
    (request([1.0, 2.0]), "observation of 3 numbers"),
    (request([1.0, float("nan"), 2.0]), "number 1 of the observation is nan"),
    (request(array(np.zeros((2, 3)))), "expected one observation"),
    (request(array(np.zeros(3)) | {b"shape": (10**9,)}), "not msgpack"),
    (request(array(np.zeros(3)) | {b"dtype": "O"}), "not accepted"),
    (request(array(np.zeros(3)) | {b"dtype": "nonsense"}), "not msgpack"),
    (request(array(np.zeros(3)) | {b"data": b"12"}), "not msgpack"),
    (request({b"__ndarray__": True}), "not msgpack"),
    (request(array(np.array(["a", "b", "c"]))), "not accepted"),
    (request([0.0, 1.0, "2"]), "not an array of numbers"),
    (request({b"__npgeneric__": True, b"data": "1" * 1000, b"dtype": "<f8"}), "holds no value"),
    (request(array(np.zeros(3)) | {b"shape": (-3,)}), "no shape"),
    (request(array(np.zeros(3)) | {b"shape": (2,)}), "24 bytes"),
]
# Of a megabyte or less, made to cost the server much more: what reading each may take at most is
# a quarter of a second and 32 MB; the worst takes a tenth of both on an idle machine.
COSTLY = {
    "a long text and many empty ones": request(["x" * 500_000] + [""] * 1000),
    "a long type": request(array(np.zeros(3)) | {b"dtype": "i4," * 300_000}),
    "a long type of many dimensions": request(
        array(np.zeros(3)) | {b"dtype": "i4," * 300_000, b"shape": [1] * 1000}
    ),
    "many dimensions": request(array(np.zeros(3)) | {b"shape": [1] * 100_000}),
    "a million numbers": request([1] * 1_000_000),
    "many lists of numbers": request([[1] * 40_000] * 25),
    "a million empty maps": request([{}] * 49_000 + [[{}] * 49_000] * 19),
    "many arrays": request([array(np.zeros(0))] * 15_000),
    "a map of many names": msgpack.packb(dict.fromkeys(range(170_000), 0)),
    "a number of a million digits": request(
        {b"__npgeneric__": True, b"data": "9" * 1_000_000, b"dtype": "<f8"}
    ),
}


def test_a_server_answers_survives_garbage_and_goes_on(exported):
    policy = runtime.load(exported)
    with running(exported) as (server, port), connected(port) as (client, metadata):
        assert metadata["chunk"] == CHUNK
        for name in serving.OBSERVATION_KEYS:
            client.send(request(array(OBSERVATIONS[0]), name))
            answer = client.recv()
            expected = policy.plan(OBSERVATIONS[:1])
            np.testing.assert_array_equal(actions_of(answer), expected.actions[0])
        found = msgpack.unpackb(answer)
        assert found["code"] == expected.code[0]
        assert found["distance"] == pytest.approx(expected.distance[0])
        assert found["server_timing"]["infer_ms"] > 0
        for message, _ in GARBAGE:
            client.send(message)
            answer = client.recv()
            assert isinstance(answer, str), message
            assert answer.startswith("error: ")
        client.send(request([0.0, 1.0, 2.0]))
        assert actions_of(client.recv()).shape == (CHUNK, ACT)
        assert server.refused == len(GARBAGE)


@pytest.mark.parametrize(("message", "reason"), GARBAGE)
def test_each_bad_request_is_told_what_is_wrong(exported, message, reason):
    server = serving.PolicyServer(runtime.load(exported), limits=serving.Limits())
    answer = server.answer(message)
    assert isinstance(answer, str)
    assert re.search(reason, answer), answer


@pytest.mark.parametrize("name", COSTLY)
def test_no_message_costs_more_than_its_size(exported, name):
    server = serving.PolicyServer(runtime.load(exported), limits=serving.Limits())
    assert len(COSTLY[name]) <= serving.Limits().message_bytes
    server.answer(request([0.0, 1.0, 2.0]))
    began = time.process_time()
    answer = server.answer(COSTLY[name])
    assert time.process_time() - began < 0.25
    assert isinstance(answer, str)
    assert len(answer) < 300
    tracemalloc.start()
    server.answer(COSTLY[name])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6


def test_numbers_in_every_accepted_form_are_the_same_observation(exported):
    server = serving.PolicyServer(runtime.load(exported), limits=serving.Limits())
    expected = actions_of(server.answer(request([1.0, 0.0, 1.0])))
    row = np.array([1, 0, 1])
    scalars = [{b"__npgeneric__": True, b"data": int(one), b"dtype": "<i8"} for one in row]
    forms = [[1, 0, 1], [True, False, True], scalars, {**array(row), b"dtype": "int64"}]
    forms += [array(row.astype(kind)) for kind in ("?", "i1", ">i4", "u8", "f2", ">f4", "f8")]
    for form in forms:
        np.testing.assert_array_equal(actions_of(server.answer(request(form))), expected)


def test_large_and_half_messages_close_only_their_own_connection(exported):
    with running(exported, message_bytes=1000) as (_, port), connected(port) as (good, _):
        with connected(port) as (bad, _):
            bad.send(b"x" * 10_000)
            with pytest.raises(ConnectionClosed):
                bad.recv()
        with connected(port) as (half, _):
            # A frame that announces 500 bytes, then nothing but the end of the connection.
            half.socket.sendall(b"\x82\xfe\x01\xf4\x00\x00\x00\x00abc")
            half.socket.shutdown(socket.SHUT_RDWR)
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(b"GET / HT")
        good.send(request([0.0, 1.0, 2.0]))
        assert actions_of(good.recv()).shape == (CHUNK, ACT)


def test_a_token_is_asked_for_and_the_health_check_needs_none(exported):
    from urllib.request import urlopen

    with running(exported, token="secret") as (_, port):
        assert urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10).read() == b"OK\n"
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "secret"}):
            with pytest.raises(InvalidStatus, match="401"):
                sync.connect(f"ws://127.0.0.1:{port}", additional_headers=headers)
        for scheme in ("Api-Key", "Bearer"):
            headers = {"Authorization": f"{scheme} secret"}
            with connected(port, additional_headers=headers) as (_, metadata):
                assert metadata["act"] == "greedy"


def test_only_one_header_with_the_very_bytes_of_the_token_lets_in(exported):
    def answered(port, *lines: bytes) -> int:
        """The status of a handshake with these headers besides its own."""
        own = (
            b"GET / HTTP/1.1",
            b"Host: here",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        )
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"\r\n".join((*own, *lines, b"", b"")))
            return int(client.recv(100).split()[1])

    right = "Authorization: Api-Key grüße".encode()
    with running(exported, token="grüße") as (_, port):
        for line in (right, right.decode().encode("latin-1")):
            assert answered(port, line) == 101
        for lines in (
            (right, right),
            (right, b"Authorization: Api-Key other"),
            (b"Authorization: Api-Key gr??e",),
            (b"Authorization: Api-Key gr\xff",),
            (b"Authorization: Api-Key",),
            (b"Authorization:",),
            (),
        ):
            assert answered(port, *lines) == 401, lines


def test_the_longest_silent_client_makes_room_when_the_server_is_full(exported):
    with running(exported, connections=2, idle_seconds=0.0) as (server, port):
        with connected(port) as (silent, _), connected(port) as (talking, _):
            talking.send(request([0.0, 1.0, 2.0]))
            talking.recv()
            with connected(port) as (new, _):
                with pytest.raises(ConnectionClosed, match=r"1013.*another client waits"):
                    silent.recv(timeout=20)
                for client in (talking, new):
                    client.send(request([0.0, 1.0, 2.0]))
                    assert actions_of(client.recv()).shape == (CHUNK, ACT)
        assert server.answered == 3


@pytest.mark.slow
def test_256_silent_clients_keep_nobody_out(exported):
    with running(exported) as (_, port), ExitStack() as open_clients:
        for _ in range(256):
            open_clients.enter_context(connected(port))
        with pytest.raises(InvalidStatus, match="503"):
            sync.connect(f"ws://127.0.0.1:{port}")
        time.sleep(serving.Limits().idle_seconds)
        for _ in range(10):
            client, _ = open_clients.enter_context(connected(port))
            client.send(request([0.0, 1.0, 2.0]))
            assert actions_of(client.recv()).shape == (CHUNK, ACT)


def test_a_token_comes_from_the_flag_a_file_or_the_environment(exported, tmp_path, monkeypatch):
    def token(**given):
        return serve.token_of(serve.Serve(str(exported), **given))

    monkeypatch.delenv("SAQRL_TOKEN", raising=False)
    assert token() is None
    (tmp_path / "token").write_text("from the file\n")
    monkeypatch.setenv("SAQRL_TOKEN", "from the environment")
    assert token() == "from the environment"
    assert token(token="from the flag") == "from the flag"
    assert token(token_file=str(tmp_path / "token")) == "from the file"
    with pytest.raises(ValueError, match="not both"):
        token(token="a", token_file=str(tmp_path / "token"))
    with pytest.raises(FileNotFoundError):
        token(token_file=str(tmp_path / "absent"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_text("x" * 5000)
    for name in ("pipe", "long"):
        with pytest.raises(ValueError, match="expected a file of one line"):
            token(token_file=str(tmp_path / name))
    for content in ("", " \n", "a\nb\n"):
        (tmp_path / "token").write_text(content)
        with pytest.raises(ValueError, match="expected one, the token"):
            token(token_file=str(tmp_path / "token"))


def test_pages_in_a_browser_and_too_many_clients_are_turned_away(exported):
    with running(exported, connections=1) as (_, port):
        with pytest.raises(InvalidStatus, match="403"):
            sync.connect(f"ws://127.0.0.1:{port}", origin="http://evil.example")
        with connected(port), pytest.raises(InvalidStatus, match="503"):
            sync.connect(f"ws://127.0.0.1:{port}")


def test_a_client_that_asks_too_often_is_slowed_down(exported):
    with running(exported, messages_per_second=50) as (_, port), connected(port) as (client, _):
        began = time.perf_counter()
        for _ in range(60):
            client.send(request([0.0, 1.0, 2.0]))
            client.recv()
        # Fifty at once, then ten at 50 a second.
        assert time.perf_counter() - began >= 10 / 50 * 0.9


def test_an_address_that_others_reach_needs_a_token():
    for host in ("0.0.0.0", "192.168.1.5", "::", "robot.local"):
        with pytest.raises(ValueError, match="add --token"):
            serving.check_address(host, None)
        serving.check_address(host, "secret")
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        serving.check_address(host, None)
    with pytest.raises(ValueError, match="token is empty"):
        serving.check_address("0.0.0.0", "")


def test_the_command_says_when_the_port_is_taken_and_stops_cleanly(exported):
    command = [sys.executable, "-m", "saqrl.cli", "serve", str(exported), "--port"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = subprocess.run([*command, port], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    process = subprocess.Popen([*command, "0"], stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        port = int(line.partition("127.0.0.1:")[2].split()[0])
        with connected(port) as (client, _):
            client.send(request([0.0, 1.0, 2.0]))
            client.recv()
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed, match="1001"):
                client.recv()
        rest = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode == 0
    assert rest == "stopped: 1 requests answered, 0 refused\n"


@pytest.mark.slow
def test_a_hundred_megabytes_are_refused_without_being_kept(exported):
    command = [sys.executable, "-m", "saqrl.cli", "serve", str(exported), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        port = int(process.stderr.readline().partition("127.0.0.1:")[2].split()[0])

        def resident() -> int:
            with open(f"/proc/{process.pid}/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        with connected(port) as (good, _):
            good.send(request([0.0, 1.0, 2.0]))
            good.recv()
            before, message = resident(), b"x" * 100_000_000
            for _ in range(3):
                with connected(port) as (bad, _):
                    with suppress(ConnectionClosed):  # it may be closed before all is sent
                        bad.send(message)
                    with pytest.raises(ConnectionClosed):
                        bad.recv()
            # A hundredth of what was sent would show.
            assert resident() - before < 3_000_000
            good.send(request([0.0, 1.0, 2.0]))
            assert actions_of(good.recv()).shape == (CHUNK, ACT)
        process.send_signal(signal.SIGTERM)
        assert "2 requests answered" in process.communicate(timeout=20)[1]
    finally:
        process.kill()


@pytest.mark.slow
def test_ten_thousand_malformed_messages_leave_memory_flat(exported):
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with running(exported, messages_per_second=1e6) as (server, port):
        with connected(port) as (client, _):
            sizes = []
            for number in range(12_000):
                client.send(GARBAGE[number % len(GARBAGE)][0])
                assert isinstance(client.recv(), str)
                if number % 2000 == 1999:
                    sizes.append(resident())
            client.send(request([0.0, 1.0, 2.0]))
            assert actions_of(client.recv()).shape == (CHUNK, ACT)
        assert server.refused == 12_000
    # The first 2,000 warm caches up; a leak of 100 bytes a message would be 1 MB after that.
    assert sizes[-1] - sizes[0] < 1_000_000, sizes
