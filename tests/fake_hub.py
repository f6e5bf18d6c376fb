"""A Hugging Face hub on this machine: enough of its protocol for a push and a download."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

ADDRESS = "127.0.0.1"


class FakeHub:
    """Repositories by their names: each the files of its one commit."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.stored: dict[str, bytes] = {}  # of large files, by their digests
        self.sent: list[str] = []  # repository and name of each file that was downloaded
        self.refuses_writing = False

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address to reach it at."""
        server = ThreadingHTTPServer((ADDRESS, 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{ADDRESS}:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def commit(self, repo: str) -> str:
        """A digest of the files, as long as that of git."""
        listed = repr(sorted((n, _digest(f)) for n, f in self.repos[repo].items()))
        return hashlib.sha1(listed.encode()).hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            file = re.fullmatch(r"/(\w[\w.-]*/[\w.-]+)/resolve/\w+/(.+)", path)
            listed = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/revision/\w+|/tree/\w+)?", path)
            found = file or listed
            if found is None or found[1] not in hub.repos:
                self._missing("RepoNotFound")
            elif file is not None:
                self._file(*file.groups())
            elif listed is not None and "/tree/" in path:
                self._json([_entry(n, c) for n, c in hub.repos[found[1]].items()])
            else:
                self._json({"id": found[1], "sha": hub.commit(found[1])})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self._body()
            if hub.refuses_writing:
                said = json.dumps({"error": "You have no right to write"}).encode()
                self._answer(403, said, {"Content-Type": "application/json"})
            elif self.path == "/api/repos/create":
                self._create(json.loads(body))
            elif self.path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
                self._json({"files": [_mode(file) for file in json.loads(body)["files"]]})
            elif self.path.endswith("/info/lfs/objects/batch"):
                self._json({"transfer": "basic", "objects": self._uploads(json.loads(body))})
            elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
                self._commit(found[1], body)
            else:
                self._missing("EntryNotFound")

        def do_PUT(self) -> None:
            content = self._body()
            hub.stored[_digest(content)] = content
            self._answer(200)

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked['organization']}/{asked['name']}"
            if name in hub.repos:
                self._answer(409, json.dumps({"url": self._url(name)}).encode())
                return
            hub.repos[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(name)
            self._json({"url": self._url(name), "name": name})

        def _uploads(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
            href = self._url("upload")
            return [{**one, "actions": {"upload": {"href": href}}} for one in asked["objects"]]

        def _commit(self, repo: str, body: bytes) -> None:
            files = hub.repos[repo]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    hub.messages.append(value["summary"])
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.stored[value["oid"]]
            oid = hub.commit(repo)
            self._json({"commitUrl": self._url(f"{repo}/commit/{oid}"), "commitOid": oid})

        def _file(self, repo: str, name: str) -> None:
            content = hub.repos[repo].get(name)
            if content is None:
                self._missing("EntryNotFound")
                return
            if self.command == "GET":
                hub.sent.append(f"{repo}/{name}")
            headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": hub.commit(repo)}
            self._answer(200, content, headers)

        def _missing(self, what: str) -> None:
            self._answer(404, b'{"error": "not found"}', {"X-Error-Code": what})

        def _url(self, rest: str) -> str:
            return f"http://{self.headers['Host']}/{rest}"

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _json(self, value: Any) -> None:
            self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _answer(self, code: int, body: bytes = b"", headers: Any = ()) -> None:
            self.send_response(code)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)[:40]}


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["path"].endswith(".safetensors")
    mode = "lfs" if large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
