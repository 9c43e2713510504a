"""`saqrl view`."""

import os
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saqrl.commands.output import say
from saqrl.commands.parser import Word, parse


@dataclass
class View:
    """Open the page of a run; where there is no browser, serve it to one on this machine."""

    run: Word
    """a run folder"""
    open: bool = True
    """write the page and print where it is; with --port, serve it"""
    port: int | None = None
    """serve the page at this port of 127.0.0.1 and open no window; 0 takes a free port"""

    examples = (
        "saqrl view runs/my_log-bc-seed0",
        "saqrl view runs/my_log-bc-seed0 --port 8080   # then: ssh -L 8080:localhost:8080 HOST",
    )


def main(arguments: Sequence[str]) -> int:
    asked = parse(View, arguments)
    if asked.port is not None and not 0 <= asked.port <= 65535:
        raise ValueError(f"--port {asked.port}: not a port; expected 0 to 65535")
    from saqrl.studies.run_page import PAGE, is_current, write_run_page

    run = Path(asked.run)
    if not run.is_dir():
        raise FileNotFoundError(f"no such run: {run}; saqrl ls lists the runs")
    if not (run / "config.json").exists() and any(run.glob("*/config.json")):
        raise ValueError(f"{run} holds several runs: view one of them; saqrl ls {run} lists them")
    page = run / PAGE
    if not is_current(run):
        say(f"writing {page}")
        write_run_page(run)
    if not asked.open and asked.port is None:
        print(page)
    elif asked.port is None and has_browser() and webbrowser.open(page.absolute().as_uri()):
        say(f"page: {page}")
    else:
        _serve(page, asked.port or 0)
    return 0


def has_browser() -> bool:
    """Whether a window can open here: not in a shell on another machine."""
    if sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _serve(page: Path, port: int) -> None:
    from saqrl.studies.page_server import page_server

    with page_server(page, port) as server:
        say(f"page: http://127.0.0.1:{server.server_port}/  (Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")
