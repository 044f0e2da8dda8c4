"""A stand-in of the hub: its HTTP interface for making a repository, large files, and commits, as huggingface_hub calls
it. It keeps everything in memory, and can be told to fail."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import yaml

__all__ = ["LARGE", "READER", "WRITER", "Hub", "Repository", "running"]

WRITER, READER = "hf_writer", "hf_reader"  # tokens: of one who may write to the owner "me", and of one who may not
LARGE = (".gguf", ".safetensors", ".onnx", ".onnx_data", ".png")


@dataclass
class Repository:
    """A repository: visibility, files of its last commit, and the summaries of all commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.gguf filter=lfs\n"})
    commits: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def sha(self) -> str:
        """The last commit."""
        return hashlib.sha1(json.dumps([self.commits, sorted(self.files)]).encode()).hexdigest()


@dataclass
class Hub:
    """The state of the stand-in.

    Attributes:
        repositories: by OWNER/NAME.
        large: contents of large files by sha256, committed or not.
        calls: "METHOD kind" of every request, in order.
        faults: kind of request -> status to answer with, or "drop": close the connection, or "stall": never answer.
        stalled: set when a request stalls.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    faults: dict[str, int | str] = field(default_factory=dict)
    stalled: Event = field(default_factory=Event)
    address: str = ""

    def unpack(self, repo: str, out: Path) -> Path:
        """Write what a repository holds into a folder: what somebody who downloads it has."""
        for name, content in self.repositories[repo].files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
        return out


_ROUTES = (
    ("info", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/main)?"), ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"), ("preupload", "POST", r"/api/models/(?P<repo>.+)/preupload/main"),
    ("batch", "POST", r"/(?P<repo>.+)\.git/info/lfs/objects/batch"), ("upload", "PUT", r"/large/(?P<oid>[0-9a-f]{64})"),
    ("tree", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)"),
    ("commit", "POST", r"/api/models/(?P<repo>.+)/commit/main"),
    ("resolve", "GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    ("resolve", "HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
)  # fmt: skip


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def _any(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        for kind, method, pattern in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                return self._route(kind, found.groupdict(), body)
        self._answer(404, {"error": f"no such address: {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def _route(self, kind: str, found: dict[str, str], body: bytes) -> None:
        hub = self.hub
        hub.calls.append(f"{self.command} {kind}")
        fault = hub.faults.get(kind)
        if fault == "stall":
            hub.stalled.set()
            Event().wait(60)
        if fault in ("drop", "stall"):
            self.close_connection = True
            return self.connection.close()
        try:
            if isinstance(fault, int):
                raise _Refused(fault, "the stand-in was told to")
            getattr(self, f"_{kind}")(found, body)
        except _Refused as error:
            self._answer(error.status, {"error": error.message}, {"X-Error-Code": error.code} if error.code else {})

    def _info(self, found: dict[str, str], body: bytes) -> None:
        repo = self._repository(found["repo"])
        files = [{"rfilename": name} for name in sorted(repo.files)]
        told = {
            "_id": "1",
            "id": found["repo"],
            "sha": repo.sha,
            "private": repo.private,
            "tags": [],
            "siblings": files,
        }
        self._answer(200, told)

    def _tree(self, found: dict[str, str], body: bytes) -> None:
        files = self._repository(found["repo"]).files.items()
        self._answer(200, [
            {"type": "file", "path": name, "size": len(content), "oid": _oid(content, False)} for name, content in files
        ])  # fmt: skip

    def _create(self, found: dict[str, str], body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        self._may_write(repo)
        if repo in self.hub.repositories:
            raise _Refused(409, "You already created this model repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[repo] = Repository(private)
        self._answer(200, {"url": f"{self.hub.address}/{repo}", "name": repo, "id": "1"})

    def _validate(self, found: dict[str, str], body: bytes) -> None:
        head = json.loads(body)["content"].split("---")[1]
        data, errors = yaml.safe_load(head), []
        if not isinstance(data.get("license"), str):
            errors.append({"message": '"license" must be a string'})
        if "model-index" in data and not all("metrics" in one for one in data["model-index"][0]["results"]):
            errors.append({"message": '"model-index" has no metrics'})
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, found: dict[str, str], body: bytes) -> None:
        self._may_write(found["repo"])
        there, files = self._repository(found["repo"]).files, []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(LARGE)
            oid = _oid(there[file["path"]], large) if file["path"] in there else None
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": files})

    def _batch(self, found: dict[str, str], body: bytes) -> None:
        self._may_write(found["repo"])
        objects: list[dict[str, Any]] = []
        for one in json.loads(body)["objects"]:
            action = {"upload": {"href": f"{self.hub.address}/large/{one['oid']}"}}
            objects.append(one | ({} if one["oid"] in self.hub.large else {"actions": action}))
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _upload(self, found: dict[str, str], body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != found["oid"]:
            raise _Refused(400, "other bytes than were announced")
        self.hub.large[found["oid"]] = body
        self._answer(200, {})

    def _commit(self, found: dict[str, str], body: bytes) -> None:
        self._may_write(found["repo"])
        repo = self._repository(found["repo"])
        lines = [json.loads(line) for line in body.decode().splitlines()]
        header, files = lines[0]["value"], dict(repo.files)
        if header.get("parentCommit") not in (None, repo.sha):
            raise _Refused(412, "A commit has happened since")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise _Refused(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        repo.files = files
        repo.commits.append(header["summary"])
        url = f"{self.hub.address}/{found['repo']}/commit/{repo.sha}"
        self._answer(200, {"commitUrl": url, "commitOid": repo.sha, "success": True})

    def _resolve(self, found: dict[str, str], body: bytes) -> None:
        repo = self._repository(found["repo"])
        content = repo.files.get(found["path"])
        if content is None:
            raise _Refused(404, "no such file", "EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": repo.sha}
        self._answer(200, content, headers)

    def _repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self._token() != WRITER):
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return found

    def _may_write(self, repo: str) -> None:
        if self._token() not in (WRITER, READER):
            raise _Refused(401, "Invalid credentials in Authorization header")
        if self._token() == READER or not repo.startswith("me/"):
            raise _Refused(403, f"You don't have the rights to write to {repo}")

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        told = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(content: bytes, large: bool) -> str:
    """As the hub tells it: sha256 of large files, git's own hash of others."""
    return hashlib.sha256(content).hexdigest() if large else hashlib.sha1(
        b"blob %d\0" % len(content) + content
    ).hexdigest()  # fmt: skip


@contextmanager
def running() -> Iterator[Hub]:
    """A stand-in that answers at `Hub.address`."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
