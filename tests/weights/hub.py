"""A hub on this machine: its addresses for one repository, with byte ranges, counted by file."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


class Hub:
    """Serves `folder` as the repository org/name at COMMIT. Weights are redirected to a storage address, as the real
    hub does; `sent` counts the bytes of each file, `asked` its requests by method.

    ranges: whether byte ranges are served. token: what requests to the hub must bear, and to the storage must not.
    """

    def __init__(self, folder: Path, *, ranges: bool = True):
        self.folder, self.ranges, self.keys, self.fails = folder, ranges, 0, False
        self.sent: collections.Counter[str] = collections.Counter()
        self.asked: collections.Counter[str] = collections.Counter()
        self.tokens: dict[str, set[bool]] = collections.defaultdict(set)
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815 (the server's name)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.storage = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        for server in (self.server, self.storage):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        for server in (self.server, self.storage):
            server.shutdown()
            server.server_close()

    def weights_sent(self) -> int:
        """Bytes of weights that were served."""
        return sum(size for name, size in self.sent.items() if name.endswith(".safetensors"))

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(request.path.partition("?")[0])
        if not path.startswith("/api/agent"):  # of the client itself
            with self.lock:
                where = "storage" if path.startswith("/storage/") else "hub"
                self.tokens[where].add("Authorization" in request.headers)
        if path.startswith("/api/models/org/name"):
            names = sorted(file.name for file in self.folder.iterdir())
            found = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            if "/tree/" in path:
                entries = [self.describe(name) for name in names]
                return self.send(request, 200, json.dumps(entries).encode(), "application/json")
            return self.send(request, 200, json.dumps(found).encode(), "application/json")
        if self.fails:
            return self.send(request, 503, b"", "text/plain")
        match = re.fullmatch(r"/(?:org/name/resolve/[^/]+|storage/(\d+))/(.+)", path)
        if match is None or not (self.folder / match[2]).is_file():
            return self.send(request, 404, b"", "text/plain", {"X-Error-Code": "EntryNotFound"})
        name = match[2]
        content = (self.folder / name).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        with self.lock:
            self.asked[f"{request.command} {name}"] += 1
        if match[1] is not None and int(match[1]) != self.keys:
            return self.send(request, 403, b"expired", "text/plain")
        if match[1] is None and name.endswith(".safetensors"):
            place = f"http://127.0.0.1:{self.storage.server_address[1]}/storage/{self.keys}/{name}"
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": headers["ETag"], "Location": place}
            return self.send(request, 302, b"", "text/plain", headers)
        status, wanted = 200, request.headers.get("Range")
        if self.ranges and wanted and (found := re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)):
            start, stop = int(found[1]), min(int(found[2]) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            status, content = 206, content[start:stop]
        if request.command == "GET":
            with self.lock:
                self.sent[name] += len(content)
        return self.send(request, status, content, "application/octet-stream", headers)

    def describe(self, name: str) -> dict:
        size = (self.folder / name).stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(name.encode()).hexdigest()}

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)


@contextlib.contextmanager
def serve(folder: Path, *, ranges: bool = True) -> Iterator[Hub]:
    """A hub for the body."""
    hub = Hub(folder, ranges=ranges)
    try:
        yield hub
    finally:
        hub.close()
