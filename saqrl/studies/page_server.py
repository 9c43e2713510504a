"""One page for a browser on this machine."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"
# A page may load nothing but what it holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def page_server(page: Path, port: int) -> ThreadingHTTPServer:
    """A server of this file alone, on the loopback address; port 0 is a free one.

    OSError where the port is taken. A request that names another host is refused: a page elsewhere
    could otherwise read this one through a name that it points at this machine.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in (HOST, "localhost"):
                self.send_error(403)
                return
            if self.path.partition("?")[0] not in ("/", f"/{page.name}"):
                self.send_error(404)
                return
            try:
                content = page.read_bytes()
            except OSError:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the terminal belongs to the person."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}; choose another --port", f"port {port}"
        ) from error
