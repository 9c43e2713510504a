"""A WebSocket server around an exported policy, in the messages of openpi's client.

On connecting the server sends its metadata; each request is a map with the observation under one
of OBSERVATION_KEYS, each answer a map with "actions" (chunk, act). Messages are msgpack with
NumPy arrays as {b"__ndarray__", b"data", b"dtype", b"shape"}. A request that cannot be answered
gets a text message that says why, and the connection stays. Needs no JAX.
Protocol: github Physical-Intelligence/openpi, packages/openpi-client.
"""

import asyncio
import contextlib
import hmac
import http
import ipaddress
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from saqrl.deploy.runtime import RobotPolicy, Window
from saqrl.installation import install

try:
    import msgpack
    from websockets.asyncio.server import Server, ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request, Response
except ImportError as error:
    raise ImportError(f"serving needs websockets and msgpack: {install('serve')}") from error

OBSERVATION_KEYS = ("observation", "state", "observation/state", "observation.state")
# True in the first request of an episode; a new connection begins one too.
RESET_KEY = "reset"
# What a client's arrays may be made of: bool, and numbers of so many bytes, of either byte order.
NUMBERS = {
    text: np.dtype(text)
    for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    for text in (np.dtype(code).name, np.dtype(code).str, np.dtype(f">{code}").str)
}
DIMENSIONS = 8
# Of one message, lists and maps together: a megabyte of empty maps takes half a second to read.
ITEMS = 50_000


class RequestError(ValueError):
    """A request that cannot be answered; the text goes to the client."""


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server."""

    message_bytes: int = 1 << 20
    """Bytes; a larger message closes its connection."""
    messages_per_second: float = 2000.0
    """Messages per second of one connection; above it the server reads more slowly."""
    connections: int = 256
    """Most connections; a new one replaces the one idle for longest, or is refused."""
    idle_seconds: float = 30.0
    """Idle time after which a connection may be replaced by a new one."""


def check_address(host: str, token: str | None) -> None:
    """ValueError where anybody on the network could drive the robot."""
    if token is not None and not token:
        raise ValueError("the token is empty; set one that is hard to guess, or leave out --token")
    if not _is_loopback(host) and token is None:
        raise ValueError(
            f"--host {host} can be reached from other machines: add --token-file FILE (or set "
            "SAQRL_TOKEN), or keep 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):  # a name, no address
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class MessageServer:
    """Greets every connection, and talks with it; who may connect, and how many."""

    def __init__(self, greeting: Mapping[str, Any], *, token: str | None, limits: Limits):
        self._token, self._limits = token, limits
        self._heard: dict[ServerConnection, float] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._greeting = pack(greeting)

    async def talk(self, connection: ServerConnection) -> None:
        """Answer the connection's messages until it ends; ConnectionClosed may be raised."""
        raise NotImplementedError

    async def run(
        self, host: str, port: int, *, ready: Callable[[int], None], stop: asyncio.Event
    ) -> None:
        """Serve until `stop`; `ready(port)` is called when clients can connect.

        ValueError where the address cannot be had.
        """
        check_address(host, self._token)
        try:
            server = await serve(
                self._converse,
                host,
                port,
                process_request=self._admit,
                compression=None,
                max_size=self._limits.message_bytes,
                # A page in somebody's browser sends an Origin; a robot does not.
                origins=[None],
                open_timeout=5,
                close_timeout=2,
            )
        except OSError as error:
            raise ValueError(
                f"cannot listen on {host}:{port} ({error.strerror or error}): choose another "
                "--port (0 takes a free one) or --host"
            ) from error
        async with server:
            ready(_port(server))
            await stop.wait()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer the health check, and turn away who may not or cannot come in."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._token is not None and not _proves(request, self._token):
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "send one header Authorization: Api-Key TOKEN\n"
            )
        if len(self._heard) >= self._limits.connections and not self._make_room():
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    def _make_room(self) -> bool:
        """Close the connection that has been silent for longest, if that is long enough."""
        longest = min(self._heard, key=self._heard.__getitem__)
        if time.monotonic() - self._heard[longest] < self._limits.idle_seconds:
            return False
        del self._heard[longest]
        closing = asyncio.ensure_future(longest.close(1013, "idle, and another client waits"))
        self._closing.add(closing)  # the loop itself keeps no task alive
        closing.add_done_callback(self._closing.discard)
        return True

    async def _converse(self, connection: ServerConnection) -> None:
        self._heard[connection] = time.monotonic()
        try:
            await connection.send(self._greeting)
            await self.talk(connection)
        except ConnectionClosed:
            pass  # gone in the middle of an answer
        finally:
            self._heard.pop(connection, None)


class PolicyServer(MessageServer):
    """Answers every connection with the same policy; each request is planned for on its own.

    No chunk is kept for a client. A policy with a history reads the last observations: those of
    the connection since its start or the last reset where the client asks at every step, else
    those that the request holds.
    """

    def __init__(self, policy: RobotPolicy, *, token: str | None = None, limits: Limits):
        super().__init__(dict(policy.metadata), token=token, limits=limits)
        self._policy = policy
        self.answered = 0
        self.refused = 0

    async def talk(self, connection: ServerConnection) -> None:
        window = Window(self._policy.history)
        allowance = _Allowance(self._limits.messages_per_second)
        async for message in connection:
            self._heard[connection] = time.monotonic()
            await allowance.spend()
            await connection.send(self.answer(message, window))

    def answer(self, message: str | bytes, window: Window | None = None) -> str | bytes:
        """The reply to one message: packed actions, or a text that says what is wrong with it.

        `window` is what the client's episode has shown so far, where the policy has a history.
        """
        began = time.perf_counter()
        try:
            request = read_request(message)
            plan = self._policy.plan(self._seen(request, window)[None])
        except ValueError as error:
            self.refused += 1
            return f"error: {error}"
        self.answered += 1
        found: dict[str, Any] = {
            "actions": plan.actions[0],
            "distance": float(plan.distance[0]),
            "clipped": self._policy.on_edge(plan.actions[0]),
        }
        if plan.code is not None:
            found["code"] = int(plan.code[0])
        if plan.entropy is not None:
            found["entropy"] = float(plan.entropy[0])
        found["server_timing"] = {"infer_ms": 1000 * (time.perf_counter() - began)}
        return pack(found)

    def _seen(self, request: "Asked", window: Window | None) -> np.ndarray:
        """What is planned for: the observation, or with a history the last ones."""
        policy, observation = self._policy, request.observation
        size = policy.metadata["observation_size"]
        several = policy.history > 1 and observation.shape == (policy.history, size)
        if observation.ndim > 1 and not several:
            raise RequestError(
                f"the observation has shape {observation.shape}; expected one observation"
            )
        if policy.history == 1 or observation.shape != (size,):
            return observation.ravel()
        if not isinstance(request.reset, bool):
            raise RequestError(f"{RESET_KEY!r} is not true or false")
        if policy.metadata["action_horizon"] > 1:
            raise RequestError(
                f"this policy decides every {policy.metadata['action_horizon']} steps from "
                f"the last {policy.history} observations: send all of them as an array "
                f"({policy.history}, {size}), oldest first"
            )
        window = Window(policy.history) if window is None else window
        checked = policy.checked(observation)
        if request.reset:
            window.clear()
        window.see(checked)
        return window.flat()


def _proves(request: Request, token: str) -> bool:
    """Whether the request has one Authorization header, and that holds the token."""
    given = [header.partition(" ") for header in request.headers.get_all("Authorization")]
    allowed = [token.encode(errors="surrogateescape")]  # an argument may be any bytes
    with contextlib.suppress(UnicodeEncodeError):  # newer clients write what Latin-1 has in it
        allowed.append(token.encode("latin-1"))
    return len(given) == 1 and all(
        scheme.lower() in ("api-key", "bearer")
        and any(hmac.compare_digest(_header_bytes(secret), one) for one in allowed)
        for scheme, _, secret in given
    )


def _header_bytes(value: str) -> bytes:
    """As they came: websockets decodes them as Latin-1, or as ASCII before version 16."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode(errors="surrogateescape")


class _Allowance:
    """A token bucket of one second's messages."""

    def __init__(self, per_second: float):
        self._per_second, self._left, self._seen = per_second, per_second, time.monotonic()

    async def spend(self) -> None:
        now = time.monotonic()
        gained = (now - self._seen) * self._per_second
        self._left, self._seen = min(self._left + gained, self._per_second) - 1, now
        if self._left < 0:
            await asyncio.sleep(-self._left / self._per_second)


class Asked(NamedTuple):
    """What a request says."""

    observation: np.ndarray
    """(obs,), or (history, obs)."""
    reset: Any
    """Whether an episode begins; unchecked."""


def read_request(message: str | bytes) -> Asked:
    """What a request asks; RequestError says what is missing or wrong."""
    request = read_map(message)
    return Asked(observation_in(request), request.get(RESET_KEY, False))


def read_map(message: str | bytes) -> dict[Any, Any]:
    """The map that a message is; RequestError where it is none."""
    if isinstance(message, str):
        raise RequestError("expected a binary msgpack message, got text")
    try:
        request = _unpacked(message)
    except Exception as error:  # msgpack's exceptions have no common base; bytes are untrusted
        raise RequestError(f"the message is not msgpack ({_words(error)})") from error
    if not isinstance(request, dict):
        raise RequestError(f"expected a map with {OBSERVATION_KEYS[0]!r}")
    return request


def observation_in(request: Mapping[Any, Any]) -> np.ndarray:
    """Its observation, of one or two dimensions; RequestError where there is none."""
    name = next((name for name in OBSERVATION_KEYS if name in request), None)
    if name is None:
        raise RequestError(
            f"no observation in the message: expected one of the keys {', '.join(OBSERVATION_KEYS)}"
        )
    return _numbers(request[name], name)


def _numbers(value: Any, name: str) -> np.ndarray:
    """The value as one array of one or two dimensions; NumPy sees nothing but numbers."""
    if isinstance(value, list):
        if not all(isinstance(number, (int, float, np.generic)) for number in value):
            raise RequestError(f"{name!r} is not an array of numbers")
        value = np.asarray(value)
    elif isinstance(value, (int, float, np.generic)):
        value = np.asarray(value)
    elif not isinstance(value, np.ndarray):
        raise RequestError(f"{name!r} is not an array of numbers")
    if value.ndim not in (1, 2):
        raise RequestError(f"{name!r} has shape {value.shape}; expected one observation")
    return value


def _unpacked(message: bytes) -> Any:
    """What a message says, with arrays as NumPy's; ValueError where it holds too many things."""
    left = ITEMS

    def counted(found: Any) -> Any:
        nonlocal left
        left -= 1 + len(found)
        if left < 0:
            raise ValueError(
                f"a message may hold at most {ITEMS} numbers and names besides its arrays"
            )
        return _array(found) if isinstance(found, dict) else found

    return msgpack.unpackb(
        message,
        object_hook=counted,
        list_hook=counted,
        strict_map_key=False,
        max_array_len=ITEMS,
        max_map_len=ITEMS,
    )


def pack(message: Mapping[str, Any]) -> bytes:
    """Packed with arrays as openpi's client reads them."""
    return bytes(msgpack.packb(message, default=_described))


def _described(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _array(found: dict[Any, Any]) -> Any:
    """What a map stands for; everything is checked before NumPy sees it."""
    if b"__npgeneric__" in found:
        number = found[b"data"]
        if not isinstance(number, (int, float)):
            raise ValueError("a NumPy number holds no value")
        return _number_type(found[b"dtype"]).type(number)
    if b"__ndarray__" not in found:
        return found
    data, dtype, shape = found[b"data"], _number_type(found[b"dtype"]), found[b"shape"]
    known = isinstance(data, bytes) and isinstance(shape, list) and len(shape) <= DIMENSIONS
    if not (known and all(type(size) is int and size >= 0 for size in shape)):
        raise ValueError("an array has no bytes, or no shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} has {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _number_type(name: Any) -> np.dtype[Any]:
    if not (isinstance(name, str) and name in NUMBERS):
        raise ValueError(f"arrays of type {str(name)[:20]!r} are not accepted")
    return NUMBERS[name]


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]


def _port(server: Server) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])


async def serve_until_stopped(
    server: PolicyServer, host: str, port: int, *, ready: Callable[[int], None]
) -> None:
    """Serve until SIGINT or SIGTERM; open connections are closed properly then.

    The handlers stay until the event loop is closed.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.run(host, port, ready=ready, stop=stop)
