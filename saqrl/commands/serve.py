"""`saqrl serve`."""

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saqrl.commands.output import say
from saqrl.commands.parser import Word, parse
from saqrl.deploy.runtime import load

TOKEN_VARIABLE = "SAQRL_TOKEN"
LONGEST_TOKEN = 4096


@dataclass
class Serve:
    """Answer policy queries over a WebSocket, as openpi's client asks them."""

    file: Word
    """exported policy, .onnx or .npz"""
    host: str = "127.0.0.1"
    """address to listen on; an address that other machines can reach needs a token"""
    port: int = 8000
    """port; 0: any free port"""
    token: str | None = None
    """clients must send it as `Authorization: Api-Key TOKEN`; visible to others in the process
    list"""
    token_file: str | None = None
    """file whose only line is the token; default: the environment variable SAQRL_TOKEN"""
    seed: int = 0
    """random seed of a sampling policy"""
    max_message: int = 1 << 20
    """largest message in bytes"""
    max_rate: float = 2000.0
    """messages per second and connection; above it the server reads more slowly"""
    max_clients: int = 256
    """most connections; a new one replaces one that was idle for 30 s"""


def token_of(asked: Serve) -> str | None:
    """From the flag, the file or the environment; None where nobody gave one."""
    if asked.token is None:
        return token_in(asked.token_file)
    if asked.token_file is not None:
        raise ValueError("give --token or --token-file, not both")
    return asked.token


def token_in(token_file: str | None) -> str | None:
    """From the file, or from the environment where there is none."""
    if token_file is None:
        return os.environ.get(TOKEN_VARIABLE)
    file = Path(token_file)
    if not file.exists():
        raise FileNotFoundError(2, "no such file", str(file))
    if not file.is_file() or file.stat().st_size > LONGEST_TOKEN:
        raise ValueError(f"--token-file {file}: expected a file of one line, the token")
    lines = file.read_text(errors="surrogateescape").splitlines()
    if len(lines) != 1 or not lines[0].strip():
        raise ValueError(f"--token-file {file} has {len(lines)} lines; expected one, the token")
    return lines[0].strip()


def main(arguments: Sequence[str]) -> int:
    asked = parse(Serve, arguments)
    from saqrl.deploy.server import Limits, PolicyServer, check_address, serve_until_stopped

    if not 0 <= asked.port <= 65535:
        raise ValueError(f"--port {asked.port}: not a port; expected 0 to 65535")
    if min(asked.max_message, asked.max_clients) < 1 or not asked.max_rate > 0:
        raise ValueError("--max-message, --max-rate and --max-clients must be above 0")
    token = token_of(asked)
    check_address(asked.host, token)
    policy = load(asked.file, seed=asked.seed)
    # Each dropped connection would be a traceback.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    limits = Limits(asked.max_message, asked.max_rate, asked.max_clients)
    server = PolicyServer(policy, token=token, limits=limits)

    def ready(port: int) -> None:
        host = f"[{asked.host}]" if ":" in asked.host else asked.host
        say(f"serving {asked.file} at ws://{host}:{port}  (health: http://{host}:{port}/healthz)")

    asyncio.run(serve_until_stopped(server, asked.host, asked.port, ready=ready))
    say(f"stopped: {server.answered:,} requests answered, {server.refused:,} refused")
    return 0
