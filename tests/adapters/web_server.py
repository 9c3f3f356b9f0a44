"""The standard library's web server, for adapters to reach: in a thread of a test, or as a separate program.

python web_server.py HOST PORT [CERTIFICATE]       prints its port as soon as it listens
"""

from __future__ import annotations

import http.server
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

BIG = 3_000_000


class Handler(http.server.BaseHTTPRequestHandler):
    """`/` returns a greeting and the client's address, `/big` a long body, `/color` a red page, and POST its own body.

    `/slow` never answers.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.server.never.wait()  # type: ignore[attr-defined]
        pages = {
            "/": f"hello {self.client_address[0]}".encode(),
            "/big": bytes(BIG),
            "/color": b"<html><body style='margin:0;background:#c81432'></body></html>",
        }
        self._answer(pages.get(self.path, b""), "text/html")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])), "application/octet-stream")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class WebServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, certificate: str | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.never = threading.Event()
        super().__init__((host, port), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: clients in tests close connections at any time."""


@contextmanager
def web_server(host: str, certificate: str | None = None) -> Iterator[int]:
    """Run a web server, and yield its port."""
    server = WebServer(host, 0, certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.never.set()
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    running = WebServer(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
    print(running.server_address[1], flush=True)
    running.serve_forever()
