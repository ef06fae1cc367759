"""A model hub on this machine: the few endpoints that the hub's client asks for a public repository's files."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the server serves, and what it was asked."""

    repositories: dict[str, dict[str, bytes]]
    """Files by path, by repository."""
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    damaged: set[str] = field(default_factory=set)
    """Files that are served with other bytes than the listing says."""

    cut: set[str] = field(default_factory=set)
    """Files whose first download ends half-way."""
    instead: bytes | None = None
    """The body of every answer, if there is one: of a network that answers for others."""
    ranges: list[str | None] = field(default_factory=list)
    """The header ``Range`` of every download."""

    def downloads(self) -> list[str]:
        """Paths of the files that were fetched."""
        return [a.split("/", 5)[-1] for a in self.asked if a.startswith("GET") and "/resolve/" in a]


@contextmanager
def serve(repositories: dict[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    """Serves repositories on a port of this machine."""
    hub = FakeHub(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in ({"Content_Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if hub.instead is not None:
                self.answer(200, hub.instead)
                return
            found = listing or file
            files = hub.repositories.get(found[1]) if found else None
            if found is None or files is None:
                self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            elif found[2] not in (None, "main", COMMIT):
                self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Revision not found")
            elif listing:
                self.list(found[1], files)
            elif found[3] not in files:
                self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            else:
                self.send(found[3], files[found[3]])

        def list(self, repository: str, files: dict[str, bytes]) -> None:
            siblings = [
                {
                    "rfilename": name,
                    "size": len(data),
                    "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134},
                }
                for name, data in files.items()
            ]
            body = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False}
            self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

        def send(self, name: str, data: bytes) -> None:
            etag = hashlib.sha256(data).hexdigest()
            if name in hub.damaged:
                data = bytes(len(data))
            if self.command == "GET":
                hub.ranges.append(self.headers.get("Range"))
                if name in hub.cut:
                    hub.cut.remove(name)
                    self.answer(200, data[: len(data) // 2], Content_Length=str(len(data)), ETag=f'"{etag}"')
                    self.close_connection = True
                    return
            whole = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            headers = {"ETag": f'"{etag}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            if whole is None:
                self.answer(200, data, **headers)
                return
            first, last = int(whole[1]), int(whole[2] or len(data) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            self.answer(206, data[first : last + 1], **headers)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
