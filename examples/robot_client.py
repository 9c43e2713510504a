"""The client's side of `saqrl finetune RUN --serve HOST:PORT`, on a simulated robot.

    saqrl finetune RUN --serve 127.0.0.1:8000 --steps 2000 --eval-episodes 3
    python examples/robot_client.py ws://127.0.0.1:8000 Pendulum-v1

A robot of yours is whatever has `reset() -> observation` and `step(action)`. Needs msgpack,
websockets and, for the simulation, gymnasium; no JAX and no saqrl.
"""

import sys
from collections.abc import Callable

import gymnasium
import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect


def ask(server: ClientConnection, **request: object) -> dict:
    """The answer to a request; RuntimeError in the server's words where it refuses it."""
    server.send(msgpack.packb(request))
    answer = server.recv()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return msgpack.unpackb(answer)


def action_of(answer: dict) -> np.ndarray:
    """The first of its actions; an array comes as bytes, type and shape."""
    found = answer["actions"]
    return np.frombuffer(found[b"data"], found[b"dtype"]).reshape(found[b"shape"])[0]


def play(server: ClientConnection, robot: gymnasium.Env) -> dict:
    """One episode; the answer to its end comes when it has been learned from."""
    observation, _ = robot.reset()
    answer = ask(server, observation=observation.ravel().tolist())
    while "ended" not in answer:
        observation, reward, terminated, truncated, info = robot.step(action_of(answer))
        told = {"success": bool(info["success"])} if "success" in info else {}
        answer = ask(
            server,
            observation=observation.ravel().tolist(),
            reward=float(reward),
            terminated=bool(terminated),
            truncated=bool(truncated),
            **told,
        )
    return answer


def main(address: str, robot: gymnasium.Env, say: Callable[[str], None] = print) -> int:
    """Play until the server has what it asked for; the number of episodes."""
    episodes, finished = 0, False
    with connect(address, compression=None) as server:
        msgpack.unpackb(server.recv())  # the greeting: sizes of observations and actions
        while not finished:
            answer = play(server, robot)
            episodes, finished = episodes + 1, answer["finished"]
            kind = "evaluated" if answer["evaluation"] else "learned from"
            say(f"episode {episodes}: {kind}")
    return episodes


if __name__ == "__main__":
    try:
        main(sys.argv[1], gymnasium.make(sys.argv[2]))
    except (ConnectionClosed, OSError) as error:
        sys.exit(f"the server has gone: {error}")
