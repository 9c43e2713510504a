"""`saqrl serve`."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from saqrl.commands.output import say
from saqrl.commands.parser import Word, parse
from saqrl.deploy.runtime import load


@dataclass
class Serve:
    """Answer policy queries over a WebSocket, as openpi's client asks them."""

    file: Word
    """exported policy, .onnx or .npz"""
    host: str = "127.0.0.1"
    """address to listen on; one that other machines reach needs --token"""
    port: int = 8000
    """0 takes a free one"""
    token: str | None = None
    """clients must send it as `Authorization: Api-Key TOKEN`"""
    seed: int = 0
    """of the noise of a sampling policy"""
    max_message: int = 1 << 20
    """bytes that a message may have"""
    max_rate: float = 2000.0
    """messages per second of one connection; beyond it the server reads more slowly"""
    max_clients: int = 256
    """connections at once"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Serve, arguments)
    from saqrl.deploy.server import Limits, PolicyServer, check_address, serve_until_stopped

    if not 0 <= asked.port <= 65535:
        raise ValueError(f"--port {asked.port} is no port; 0 to 65535")
    if min(asked.max_message, asked.max_clients) < 1 or not asked.max_rate > 0:
        raise ValueError("--max-message, --max-rate and --max-clients must be above 0")
    check_address(asked.host, asked.token)
    policy = load(asked.file, seed=asked.seed)
    # Each dropped connection would be a traceback.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    limits = Limits(asked.max_message, asked.max_rate, asked.max_clients)
    server = PolicyServer(policy, token=asked.token, limits=limits)

    def ready(port: int) -> None:
        host = f"[{asked.host}]" if ":" in asked.host else asked.host
        say(f"serving {asked.file} at ws://{host}:{port}  (health: http://{host}:{port}/healthz)")

    asyncio.run(serve_until_stopped(server, asked.host, asked.port, ready=ready))
    say(f"stopped: {server.answered:,} requests answered, {server.refused:,} refused")
    return 0
