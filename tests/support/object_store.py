"""An S3 server on this machine, and a proxy before it that breaks chosen calls.

The server is moto's, in a process of its own, spoken to over HTTP as any S3 server is; the proxy
lives in the test's process, so that a test can count what it did and switch it off and on. Which
calls are hit comes from a seeded generator: the order of concurrent calls may vary, the share of
each kind does not.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

KINDS = ("500", "503", "timeout", "reset_upload", "truncate_download", "lost_answer")
"""Faults that the proxy knows."""
ACCESS_KEY = "AKIATESTKEY0NOTREAL0"
SECRET_KEY = "a/test+secret/which-must-appear/nowhere0"
"""What tests look for where no secret may be."""
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}
_ERRORS = {
    "500": b"<Error><Code>InternalError</Code><Message>injected</Message></Error>",
    "503": b"<Error><Code>SlowDown</Code><Message>injected</Message></Error>",
}

Chooser = Callable[[str, str], str | None]
"""From a request's method and path, the kind of fault to inject; None for no opinion."""


def s3_environment(endpoint: str) -> dict[str, str]:
    """Environment variables that make every S3 client of ours speak to `endpoint`."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def moto_server(host: str = "127.0.0.1") -> Iterator[str]:
    """Run an S3 server for the block, at one of this machine's addresses; yields its URL."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for(host, port, process, log)
            yield f"http://{host}:{port}"
        finally:
            process.kill()
            process.wait()


def make_bucket(endpoint: str, name: str) -> None:
    """Make a bucket on a server of `moto_server`."""
    status, _ = _call(endpoint, "PUT", f"/{name}")
    assert status == 200, status


def list_objects(endpoint: str, bucket: str, *, prefix: str) -> list[str]:
    """Names of objects; at most a thousand, which is one page of a listing."""
    status, body = _call(endpoint, "GET", f"/{bucket}?list-type=2&prefix={prefix}")
    assert status == 200, status
    return re.findall("<Key>([^<]*)</Key>", body.decode())


def read_object(endpoint: str, bucket: str, name: str) -> bytes | None:
    """Content of an object; None: it is not there."""
    status, body = _call(endpoint, "GET", f"/{bucket}/{name}")
    return body if status == 200 else None


def uploads_in_progress(endpoint: str, bucket: str) -> int:
    """Multipart uploads that were started and neither finished nor aborted."""
    status, body = _call(endpoint, "GET", f"/{bucket}?uploads")
    assert status == 200, status
    return body.count(b"<Upload>")


class FaultyProxy:
    """An HTTP proxy between S3 clients and a server; a context manager.

    `injected` counts the faults by kind, `calls` the requests by method. Between `away()` and
    `back()` every call is cut off.
    """

    def __init__(
        self,
        upstream: str,
        *,
        seed: int = 0,
        share: float = 0.0,
        kinds: Sequence[str] = KINDS,
        hold_s: float = 5.0,
        after: Chooser | None = None,
    ) -> None:
        """Take note of what to do.

        Args:
            upstream: URL of the server.
            seed: Of the generator that chooses the calls to hit.
            share: Share of calls to hit, 0 to 1.
            kinds: Faults to choose from; those that do not fit a call are left out for it.
            hold_s: Seconds for which a `timeout` keeps a client waiting.
            after: Forces a kind for chosen calls; called once for each call, in order of arrival.
        """
        unknown = set(kinds) - set(KINDS)
        assert not unknown, unknown
        self.injected: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.hold_s = hold_s
        self.upstream = urlsplit(upstream)
        self.is_away = False
        self.stopping = threading.Event()
        self._share, self._kinds, self._after = share, tuple(kinds), after
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def endpoint(self) -> str:
        """URL for the clients."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def away(self) -> None:
        """Cut every call off from now on."""
        self.is_away = True

    def back(self) -> None:
        """Serve again."""
        self.is_away = False

    def choose(self, method: str, path: str, has_body: bool) -> str | None:
        """The fault for a call; None to serve it."""
        with self._lock:
            self.calls[method] += 1
            kind = self._after(method, path) if self._after is not None else None
            if kind is None and self._random.random() < self._share:
                fitting = [item for item in self._kinds if _fits(item, method, has_body)]
                kind = self._random.choice(fitting) if fitting else None
            if kind is not None:
                self.injected[kind] += 1
        return kind


def _fits(kind: str, method: str, has_body: bool) -> bool:
    if kind == "reset_upload":
        return has_body
    return kind != "truncate_download" or method == "GET"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client may keep its connection for long
    proxy: FaultyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are what this is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def _serve(self) -> None:
        proxy = self.server.proxy
        if proxy.is_away or proxy.stopping.is_set():
            proxy.injected["away"] += 1
            return self._cut()
        size = int(self.headers.get("Content-Length") or 0)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        kind = proxy.choose(self.command, self.path, chunked or size > 0)
        if kind == "reset_upload":
            self.rfile.read(size // 2)
            return self._cut()
        body = self._chunks() if chunked else self.rfile.read(size)
        if kind == "timeout":
            proxy.stopping.wait(proxy.hold_s)
            return self._cut()
        if kind in _ERRORS:
            content = b"" if self.command == "HEAD" else _ERRORS[kind]
            return self._answer(int(kind), {"Content-Type": "application/xml"}, content)
        status, headers, content = self._forward(body)
        if kind == "lost_answer":
            return self._cut()
        if kind == "truncate_download":
            return self._answer(status, headers, content, sent=len(content) // 2)
        return self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _chunks(self) -> bytes:
        """A body with `Transfer-Encoding: chunked`, trailers dropped."""
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = self.server.proxy.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"expect"}:
                    connection.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            response = connection.getresponse()
            headers = dict(response.getheaders())
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, sent: int | None = None
    ) -> None:
        size = str(len(content))
        if self.command == "HEAD":  # what a GET would send
            size = next((v for k, v in headers.items() if k.lower() == "content-length"), size)
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(content[:sent])
        self.wfile.flush()
        if sent is not None:
            self._cut(reset=False)

    def _cut(self, *, reset: bool = True) -> None:
        """End the connection without an answer: by a reset, or an early end of the data."""
        self.close_connection = True
        with suppress(OSError):
            if reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()


def _call(endpoint: str, method: str, path: str) -> tuple[int, bytes]:
    place = urlsplit(endpoint)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    try:
        # moto looks at the signature's scope to tell S3 from its other services
        scope = f"{ACCESS_KEY}/20260101/us-east-1/s3/aws4_request"
        signed = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"
        connection.request(method, path, headers={"Authorization": signed})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _wait_for(host: str, port: int, process: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise RuntimeError(f"moto's server did not start: {log.read().decode()[-500:]}")
        time.sleep(0.05)
