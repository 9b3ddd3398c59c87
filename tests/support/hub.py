"""A Hugging Face hub on this machine: what an upload asks of one, and failures on request."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a-token-of-the-tests"


@dataclass
class Hub:
    """Repositories in memory."""

    endpoint: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By id: `private`, and `files` by name."""
    failing: list[int] = field(default_factory=list)
    """Statuses with which the next commits are answered, instead of being made."""
    lost: int = 0
    """Commits that are made, and answered with an error all the same."""
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Status and JSON."""
        self.requests.append(f"{method} {path}")
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            if name.startswith("others/"):
                return 403, {"error": "You don't have the rights"}
            if name in self.repositories:
                return 409, {"error": "exists", "url": f"{self.endpoint}/{name}"}
            private = asked.get("private", asked.get("visibility") == "private")
            self.repositories[name] = {"private": private, "files": {}}
            return 200, {"url": f"{self.endpoint}/{name}"}
        name = "/".join(path.split("/")[3:5])
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {"error": "Repository not found"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False}
                for item in files
            ]
            return 200, {"files": modes}
        if "/commit/" in path:
            return self._commit(name, repository, body)
        if "/tree/" in path:
            found = [
                {"type": "file", "path": key, "size": len(content), "oid": "0" * 40}
                for key, content in repository["files"].items()
            ]
            return 200, found
        siblings = [{"rfilename": key} for key in repository["files"]]
        content = {"id": name, "private": repository["private"], "siblings": siblings}
        return 200, {**content, "sha": "0" * 40, "tags": []}

    def _commit(self, name: str, repository: dict[str, Any], body: bytes) -> tuple[int, Any]:
        if self.failing:
            return self.failing.pop(0), {"error": "not now"}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "deletedFile":
                del repository["files"][value["path"]]
        if self.lost:
            self.lost -= 1
            return 502, {"error": "lost"}
        url = f"{self.endpoint}/{name}/commit/{'1' * 40}"
        return 200, {"commitUrl": url, "commitOid": "1" * 40, "success": True}


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub for the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("authorization", "")
            path = self.path.partition("?")[0]
            status, content = hub.answer(self.command, path, body, token)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _do

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
