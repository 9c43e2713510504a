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
from contextlib import contextmanager, suppress

import numpy as np
import pytest

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
    (b"", "no msgpack"),
    (b"\xc1", "no msgpack"),
    (b"\x93\x01", "no msgpack"),
    (b"\x91" * 5000 + b"\x01", "no msgpack"),
    ("hello", "this one is text"),
    (msgpack.packb([1, 2]), "expected a map"),
    (msgpack.packb({}), "no observation"),
    (msgpack.packb({"image": 1}), "no observation"),
    (request("abc"), "no array of numbers"),
    (request({"a": 1}), "no array of numbers"),
    (request([1.0, [2.0]]), "no array of numbers"),
    (request(3.0), r"has shape \(\)"),
    (request([1.0, 2.0]), "observations of 3 numbers"),
    (request([1.0, float("nan"), 2.0]), "number 1 of the observation is nan"),
    (request(array(np.zeros((2, 3)))), "expected one observation"),
    (request(array(np.zeros(3)) | {b"shape": (10**9,)}), "no msgpack"),
    (request(array(np.zeros(3)) | {b"dtype": "O"}), "not accepted"),
    (request(array(np.zeros(3)) | {b"dtype": "nonsense"}), "no msgpack"),
    (request(array(np.zeros(3)) | {b"data": b"12"}), "no msgpack"),
    (request({b"__ndarray__": True}), "no msgpack"),
    (request(array(np.array(["a", "b", "c"]))), "not accepted"),
]


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
