"""A robot as the environment of a fine-tuning: a client that requests actions and sends rewards.

The message format is that of `saqrl.deploy.server`. The first request of an episode has only an
observation; each later one has the next observation and the `reward` of the previous action, and at
the end `terminated` or `truncated` is true; `success` may be in any of these. An answer has the
next action, or `ended` when the updates are done and the next episode may begin. One robot at a
time: during an episode, learning and the robot never wait for each other.
"""

import asyncio
import contextlib
import math
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from websockets.asyncio.server import ServerConnection

from saqrl.datasets import Transitions
from saqrl.deploy.server import (
    RESET_KEY,
    Limits,
    MessageServer,
    RequestError,
    observation_in,
    pack,
    read_map,
)
from saqrl.policy import Act, Policy
from saqrl.policy.rollout import Arena, Episodes
from saqrl.training import interrupts
from saqrl.training.online.address import Address
from saqrl.training.online.loop import LONGEST

# Seconds between two checks for an interrupt.
LOOK = 0.2
# Seconds in which a last answer is sent.
FAREWELL = 2.0


class Said(NamedTuple):
    """The checked content of a request."""

    observation: np.ndarray
    reward: float | None
    """None in the first request of an episode."""
    terminated: bool
    truncated: bool
    success: bool | None

    @property
    def ends(self) -> bool:
        return self.terminated or self.truncated


def read_step(message: str | bytes, size: int, steps: int | None) -> Said:
    """A request in an episode of so many steps, or before one; RequestError: it tells no step."""
    request = read_map(message)
    observation = observation_in(request).ravel()
    if len(observation) != size:
        raise RequestError(
            f"the observation has {len(observation)} numbers; expected {size}, as in the data"
        )
    if len(wrong := np.flatnonzero(~np.isfinite(observation))):
        raise RequestError(f"number {wrong[0]} of the observation is {observation[wrong[0]]}")
    names = (RESET_KEY, "terminated", "truncated", "success")
    flags = {name: request.get(name) for name in names}
    for name, value in flags.items():
        if not (value is None or isinstance(value, (bool, np.bool_))):
            raise RequestError(f"{name!r} is not true or false")
    reward = request.get("reward")
    terminated, truncated = bool(flags["terminated"]), bool(flags["truncated"])
    if steps is None or flags[RESET_KEY]:
        if reward is not None or terminated or truncated:
            raise RequestError(
                "the first request of an episode must hold only an observation: no reward, no end"
            )
        return Said(observation, None, False, False, None)
    known = isinstance(reward, (int, float, np.number)) and not isinstance(reward, bool)
    if reward is None or not known or not math.isfinite(reward):
        raise RequestError(
            f"the reward of the last action is {str(reward)[:20]}; expected a finite number"
        )
    if steps + 1 >= LONGEST and not (terminated or truncated):
        raise RequestError(
            f"the episode did not end within {LONGEST:,} steps: end it with 'truncated': true"
        )
    success = None if flags["success"] is None else bool(flags["success"])
    return Said(observation, float(reward), terminated, truncated, success)


class ClientGone(Exception):
    """The client has left an episode before its end."""


@dataclass(frozen=True, eq=False)
class _Call:
    """A request that waits for its answer."""

    said: Said
    reply: "Future[bytes]" = field(default_factory=Future)
    sent: threading.Event = field(default_factory=threading.Event)

    def answer(self, **words: Any) -> None:
        with contextlib.suppress(InvalidStateError):  # its client has gone
            self.reply.set_result(pack(words))


class _Server(MessageServer):
    """Passes what clients say on to `calls`; None there: the episode before was left."""

    def __init__(self, size: int, act: int, token: str | None):
        greeting = {"observation_size": size, "action_size": act, "learns": True}
        limits = Limits(connections=1, idle_seconds=math.inf)
        super().__init__(greeting, token=token, limits=limits)
        self._size = size
        self.calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()

    async def talk(self, connection: ServerConnection) -> None:
        steps: int | None = None  # of the episode that is open
        try:
            async for message in connection:
                try:
                    said = read_step(message, self._size, steps)
                except ValueError as error:
                    await connection.send(f"error: {error}")
                    continue
                if said.reward is None and steps is not None:
                    self.calls.put(None)
                begun = 0 if said.reward is None or steps is None else steps + 1
                steps = None if said.ends else begun
                call = _Call(said)
                self.calls.put(call)
                try:
                    await self._pass_on(call, connection)
                finally:
                    call.sent.set()
        finally:
            if steps is not None:
                self.calls.put(None)

    async def _pass_on(self, call: _Call, connection: ServerConnection) -> None:
        """Send the answer when there is one, unless the client goes first."""
        reply = asyncio.wrap_future(call.reply)
        gone = asyncio.ensure_future(connection.wait_closed())
        either: set[asyncio.Future[Any]] = {reply, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if reply.done():
            await connection.send(reply.result())


class Robot(gymnasium.Env[np.ndarray, np.ndarray]):
    """The connected client as an environment. An interrupt ends the wait for it."""

    def __init__(self, address: Address, size: int, act: int):
        """Listens at once; ValueError if the address is not available, or needs a token."""
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (act,), np.float32)
        self.evaluating = self._evaluated = self.failed = False
        self._server = _Server(size, act, address.token)
        self._waiting: _Call | None = None
        up: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(address, up), daemon=True)
        self._thread.start()
        self.port = up.result()

    def _run(self, address: Address, up: "Future[int]") -> None:
        async def serve() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await self._server.run(address.host, address.port, ready=up.set_result, stop=self._stop)

        try:
            asyncio.run(serve())
        except ValueError as error:
            up.set_exception(error)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation of an episode; a waiting client is told to begin."""
        self._release(finished=False)
        self._evaluated = self.evaluating
        while (call := self._next()) is None:
            pass  # the client left an episode that is already dropped
        self._waiting = call
        return call.said.observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The client's report after the action; ClientGone if it has disconnected."""
        assert self._waiting is not None
        actions = np.asarray(action, np.float32)[None]
        self._waiting.answer(actions=actions, evaluation=self._evaluated)
        self._waiting = self._next()
        if self._waiting is None:
            raise ClientGone
        said = self._waiting.said
        assert said.reward is not None
        info = {} if said.success is None else {"success": said.success}
        return said.observation, said.reward, said.terminated, said.truncated, info

    def close(self) -> None:
        """Tell the client that training is finished, unless it `failed`: then only disconnect."""
        if self._thread.is_alive():
            if not self.failed:
                self._release(finished=True)
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _release(self, *, finished: bool) -> None:
        """Answer the end of the last episode."""
        if (call := self._waiting) is None:
            return
        self._waiting = None
        if call.said.ends:
            call.answer(ended=True, evaluation=self._evaluated, finished=finished)
            call.sent.wait(FAREWELL)

    def _next(self) -> _Call | None:
        while True:
            interrupts.stop_if_asked()
            with contextlib.suppress(queue.Empty):
                return self._server.calls.get(timeout=LOOK)


class RobotArena(Arena):
    """Episodes on a robot, one after the other; one that its client leaves is played again."""

    def __init__(self, robot: Robot, say: Callable[[str], None]):
        super().__init__(lambda: robot, lanes=1)
        self._robot, self._say = robot, say

    def __exit__(self, *failure: object) -> None:
        self._robot.failed = failure[0] is not None
        super().__exit__(*failure)

    def close(self) -> None:
        super().close()
        self._robot.close()

    def play(
        self,
        policy: Policy,
        *,
        episodes: int,
        act: Act,
        seed: int = 0,
        keep_steps: bool = False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Episodes:
        """Play like an arena; without `keep_steps` it is an evaluation."""
        self._robot.evaluating = not keep_steps
        played: list[Episodes] = []
        while len(played) < episodes:
            done = len(played)
            try:
                one = super().play(
                    policy,
                    episodes=1,
                    act=act,
                    seed=seed + done,
                    keep_steps=keep_steps,
                    progress=lambda more, done=done: progress(done + more),  # type: ignore[misc]
                )
            except ClientGone:
                self._say(
                    "the robot disconnected before the end of an episode: that episode is dropped"
                )
                continue
            played.append(one)
        return _joined(played)


def _joined(played: list[Episodes]) -> Episodes:
    successes = [one.successes for one in played if one.successes is not None]
    steps = [one.steps for one in played if one.steps is not None]
    return Episodes(
        np.concatenate([one.returns for one in played]),
        np.concatenate([one.max_rewards for one in played]),
        np.concatenate([one.lengths for one in played]),
        np.concatenate(successes) if len(successes) == len(played) else None,
        tuple(step for one in steps for step in one) if steps else None,
    )


@contextlib.contextmanager
def robot_arena(
    address: Address, data: Transitions, say: Callable[[str], None]
) -> Iterator[RobotArena]:
    """Listens while inside; ValueError where it cannot."""
    robot = Robot(address, data.observations.shape[1], data.actions.shape[1])
    arena = RobotArena(robot, say)
    with arena:
        say(f"waiting for the robot at ws://{replace(address, port=robot.port)}")
        yield arena
