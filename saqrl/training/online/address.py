"""Where a robot connects to."""

import dataclasses
from dataclasses import dataclass

# What result.json names as the environment of what a robot played.
ROBOT = "robot"


@dataclass(frozen=True)
class Address:
    """A host and a port to listen on, and what a client must know."""

    host: str
    port: int
    """0 takes a free one."""
    token: str | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def of(cls, text: str, token: str | None = None) -> "Address":
        """From HOST:PORT; ValueError where it is none."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (host and port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f"--serve {text}: expected HOST:PORT, as in 127.0.0.1:8000")
        return cls(host, int(port), token)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
