"""A local web server that simulates faults, and a limit on file sizes that simulates a full disk."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A file, and the behavior of the server when the file is requested."""

    body: bytes
    etag: str | None = '"1"'
    date: str | None = None
    ranges: bool = True
    """True if the server supports Range."""
    wrong_range: bool = False
    """True if the server answers with a range that was not requested."""
    announced: int | None = None
    """A wrong Content-Length. If 0, the header is not sent."""
    content_type: str = "application/octet-stream"
    drops: list[int] = field(default_factory=list)
    """The number of bytes sent in each of the next answers before the connection closes. Later answers are complete."""
    hangs: bool = False
    """True if the connection stays open for longer than a test, instead of closing."""
    errors: list[int] = field(default_factory=list)
    """The HTTP status of each of the next answers. Later answers have 200 or 206."""


class Shelf:
    """The files on the server, and the requests received, as (name, Range)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.agents: set[str | None] = set()


@contextmanager
def serving() -> Iterator[Shelf]:
    """Runs a server within the `with` block."""

    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, asked = self.path.lstrip("/"), self.headers.get("Range")
            shelf.requests.append((name, asked))
            shelf.agents.add(self.headers.get("User-Agent"))
            file = shelf.files.get(name)
            if file is None:
                self.send_error(404)
            elif file.errors:
                self.send_error(file.errors.pop(0))
            else:
                answer(self, file, asked)

        def log_message(self, *arguments: object) -> None:
            pass

    def answer(handler: BaseHTTPRequestHandler, file: Served, asked: str | None) -> None:
        condition = handler.headers.get("If-Range")
        start = 0
        if asked and file.ranges and condition in (None, file.etag, file.date):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= len(file.body):
                handler.send_error(416)
                return
            handler.send_response(206)
            start_sent = start - 1 if file.wrong_range else start
            handler.send_header("Content-Range", f"bytes {start_sent}-{len(file.body) - 1}/{len(file.body)}")
        else:
            handler.send_response(200)
        body = file.body[start:]
        announced = len(body) if file.announced is None else file.announced - start
        if file.announced != 0:
            handler.send_header("Content-Length", str(announced))
        handler.send_header("Content-Type", file.content_type)
        for header, value in (("ETag", file.etag), ("Last-Modified", file.date)):
            if value is not None:
                handler.send_header(header, value)
        handler.end_headers()
        dropped = bool(file.drops)
        handler.wfile.write(body[: file.drops.pop(0)] if dropped else body)
        if dropped and file.hangs:
            released.wait(60)

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # server_close() waits for the answers

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the client has closed the connection

    server = Server(("127.0.0.1", 0), Handler)
    shelf = Shelf(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield shelf
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limits the size of files. Writing a larger file fails as on a full disk, but with a different message."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
