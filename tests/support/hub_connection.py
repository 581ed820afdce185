"""How the stand-in Hub listens, answers, keeps a record, and fails when a test asks for it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.hub_repositories import Refusal, Repository, User


class Request(NamedTuple):
    """A request that was answered; status 0: the connection was cut instead."""

    method: str
    path: str
    status: int

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status}"


@dataclass
class Fault:
    """What goes wrong with the next requests whose `METHOD path?query` matches a regular expression.

    Attributes:
        match: The regular expression.
        times: Requests that it hits.
        status: Answer with this status and do nothing.
        headers: Of that answer, for example X-Error-Code.
        cut: Cut the connection after so many bytes: of the answer of a GET, else of the request, which does nothing.
        lose_answer: Do what was asked, then cut the connection instead of answering.
        delay: Seconds to wait first.
        call: Called first, for example to commit behind the sender's back.
    """

    match: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] | None = None
    cut: int | None = None
    lose_answer: bool = False
    delay: float = 0.0
    call: Callable[[], object] | None = None


class Cut(Exception):
    """Ends a request without an answer."""


class Listener(ThreadingHTTPServer):
    """A server in threads; `stop` and `start` keep its port and what it stores."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[Connection], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler, bind_and_activate=False)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.reset()
        self.server_bind()

    def reset(self) -> None:
        """Forget everything."""
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []  # of this server itself
        self.page_size = 1000

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Answer from now on."""
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections, and cut those there are; the port stays ours."""
        if self._thread:
            self.shutdown()
            self._thread.join()
            self._thread = None
        self.socket.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # it may have gone by itself
                    connection.shutdown(socket.SHUT_RDWR)
            self._connections.clear()
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()

    def server_bind(self) -> None:
        """Take the port, without the search for a name of 127.0.0.1 that the base class does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember an open connection."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that is done."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that went away."""

    def fault_for(self, request: str) -> Fault:
        """Return the first fault that hits a request, and count it; a harmless one if there is none."""
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    fault.times -= 1
                    return fault
        return Fault("")


class Connection(BaseHTTPRequestHandler):
    """Answers the requests of one connection; `tokens` and `routes` say to whom and with what."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener
    tokens: ClassVar[dict[str, User]]
    routes: ClassVar[tuple[tuple[str, str, str], ...]]  # methods, pattern of the path, name of the function

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def handle_any(self) -> None:
        """Answer one request, or let it fail as a fault says."""
        self.base = f"http://{self.headers['Host']}"
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        self.fault = self.server.fault_for(f"{self.command} {self.path}")
        try:
            if self.fault.call:
                self.fault.call()
            time.sleep(self.fault.delay)
            self.body = b"".join(self._sent())
            if self.fault.status:
                raise Refusal(self.fault.status, "a fault that a test asked for", headers=self.fault.headers)
            self.user = self._who()
            self._route()
        except Refusal as refusal:
            self.answer({"error": str(refusal)}, refusal.status, refusal.headers)
        except Cut:
            self._drop()
        except ConnectionError:  # the client went away
            self.close_connection = True
        except Exception:
            self.server.errors.append(f"{self.command} {self.path}\n{traceback.format_exc()}")
            self.answer({"error": traceback.format_exc()}, 500)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None, kind: str = "") -> None:
        """Send JSON or bytes."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self.fault.lose_answer:
            self._drop()
            return
        length = self.fault.cut if self.command == "GET" and self.fault.cut is not None else len(data)
        self.server.requests.append(Request(self.command, self.path, status))
        self.send_response(status)
        fields = {"Content-Type": kind or "application/json", "Content-Length": str(len(data))}
        for name, value in {**fields, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:length])
        self.close_connection = self.close_connection or length < len(data)

    def _drop(self) -> None:
        """Cut the connection."""
        self.server.requests.append(Request(self.command, self.path, 0))
        self.close_connection = True

    def _sent(self) -> Iterator[bytes]:
        """Yield the body of the request; a cut ends it early."""
        left = self.fault.cut if self.command in ("POST", "PUT") else None
        for size in self._pieces():
            if left is not None and left < size:
                self.rfile.read(left)
                raise Cut
            yield self.rfile.read(size)
            left = None if left is None else left - size
        if left is not None:
            raise Cut

    def _pieces(self) -> Iterator[int]:
        """Yield the sizes of the pieces in which a body comes."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            yield int(self.headers.get("Content-Length") or 0)
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield size
            self.rfile.readline()
        self.rfile.readline()

    def _who(self) -> User:
        """Return who a token belongs to."""
        given = self.headers.get("Authorization")
        if given and given.removeprefix("Bearer ") not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[given.removeprefix("Bearer ")] if given else User()

    def _route(self) -> None:
        """Call the function for an address."""
        for methods, pattern, function in self.routes:
            match = re.fullmatch(pattern, urlsplit(self.path).path)
            if match and self.command in methods.split():
                getattr(self, function)(**{name: unquote(value) for name, value in match.groupdict().items() if value})
                return
        raise Refusal(404, f"This stand-in does not serve {self.command} {self.path}")
