"""A reverse proxy on loopback that harms a share of the requests to an S3 server the way networks and S3 itself do."""

import contextlib
import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = (
    "error",  # 500, and the request went nowhere
    "slow_down",  # 503 SlowDown, likewise
    "reset_before",  # the connection is reset, likewise
    "reset_after",  # the request is served, and the connection reset in place of an answer
    "cut",  # the request is served, and the answer breaks off in the middle of its body, or of its head where it has none
    "stall",  # the request is served, and the answer comes too late
    "conflict",  # conditional puts: 409 ConditionalRequestConflict, and the request went nowhere
    "exists_after",  # conditional puts: one that succeeds is answered 412
)
CONDITIONAL = ("conflict", "exists_after")
ANSWERS = {
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "conflict": (409, "ConditionalRequestConflict", "A conflicting operation occurred during the processing of this request."),
    "exists_after": (412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"),
}
# What concerns one connection, not the request or the answer; Expect is settled with the client.
OF_A_CONNECTION = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect", "te", "upgrade")


class FaultyProxy:
    """Serves on `url` once started, also as a context manager.

    Args:
        upstream: URL of the server behind it.
        share: Of the requests, how many are harmed, 0 to 1.
        seed: Of the chance that picks them and how each is harmed; requests under way at once draw in any order.
        kinds: What may happen, out of KINDS; a request that none of them fits is served.
        limit: How many requests at most are harmed; None for no limit.
        stall: Seconds that a stalled answer is late.

    Attributes:
        faults: How many requests were harmed, by kind.
        requests: How many came in, by method.
    """

    def __init__(
        self,
        upstream: str,
        share: float,
        seed: int,
        kinds: Sequence[str] = KINDS,
        limit: int | None = None,
        stall: float = 2.0,
    ) -> None:
        self.upstream, self.share, self.kinds, self.limit, self.stall = urlsplit(upstream), share, tuple(kinds), limit, stall
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.stopped, self.conditional = threading.Event(), threading.Lock()
        self._chance, self._lock = random.Random(seed), threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Exchange)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it; stalled answers end at once."""
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "FaultyProxy":
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def draw(self, method: str, conditional: bool) -> str | None:
        """What happens to a request that just came in; None lets it pass."""
        fitting = [kind for kind in self.kinds if conditional or kind not in CONDITIONAL]
        with self._lock:
            self.requests[method] += 1
            harmed = self._chance.random() < self.share and (self.limit is None or self.faults.total() < self.limit)
            if not harmed or not fitting:
                return None
            kind = self._chance.choice(fitting)
            self.faults[kind] += 1
            return kind

    def spare(self, kind: str) -> None:
        """Take back a fault that could not happen."""
        with self._lock:
            self.faults[kind] -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    proxy: FaultyProxy


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60  # seconds that an idle client's connection is kept

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client is gone
            super().handle()

    def _serve(self) -> None:
        proxy = self.server.proxy  # type: ignore[attr-defined]
        body = self._body()
        conditional = self.command in ("PUT", "POST") and "*" in (self.headers.get("If-None-Match"), self._generation())
        kind = proxy.draw(self.command, conditional)
        if kind == "reset_before":
            self._reset()
        elif kind in ("error", "slow_down", "conflict"):
            self._answer(*_refusal(kind))
        else:
            # Unlike S3, moto looks and writes in two steps.
            with proxy.conditional if conditional else contextlib.nullcontext():
                status, headers, content = self._forward(proxy.upstream, body)
            if kind == "reset_after":
                self._reset()
            elif kind == "cut":
                self._cut(status, headers, content)
            elif kind == "exists_after" and status < 300:
                self._answer(*_refusal(kind))
            else:
                if kind == "stall":
                    proxy.stopped.wait(proxy.stall)
                elif kind is not None:
                    proxy.spare(kind)
                self._answer(status, headers, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _generation(self) -> str | None:
        """What Google's condition that there is no file is to S3, whose XML API Google's is otherwise like."""
        return "*" if self.headers.get("x-goog-if-generation-match") == "0" else None

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _forward(self, upstream, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=60)
        try:
            # Host stays the client's: it is part of what was signed.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in OF_A_CONNECTION:
                    connection.putheader(name, value)
            if self._generation():
                connection.putheader("If-None-Match", "*")
            connection.putheader("Content-Length", str(len(body)))
            connection.putheader("Connection", "close")
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _head(self, status: int, headers: list[tuple[str, str]], content: bytes) -> bytes:
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers if name.lower() not in OF_A_CONNECTION]
        said = [value for name, value in headers if name.lower() == "content-length"]
        if self.command == "HEAD" and said:
            lines.append(f"Content-Length: {said[0]}")
        elif status != 204:
            lines.append(f"Content-Length: {len(content)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        # In one piece: small packets would wait for each other's acknowledgements.
        self.wfile.write(self._head(status, headers, content) + (b"" if self.command == "HEAD" else content))

    def _cut(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        head = self._head(status, headers, content)
        whole = self.command != "HEAD" and content
        self.wfile.write(head + content[: len(content) // 2] if whole else head[: len(head) // 2])
        self.close_connection = True

    def _reset(self) -> None:
        # No lingering: closing sends RST in place of FIN. The reader holds the socket open as well.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def _refusal(kind: str) -> tuple[int, list[tuple[str, str]], bytes]:
    status, code, message = ANSWERS[kind]
    condition = "<Condition>If-None-Match</Condition>" if status == 412 else ""
    content = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{condition}</Error>'
    return status, [("Content-Type", "application/xml")], content.encode()
