"""A small Hugging Face hub on this machine: what its own client asks when it downloads and pushes.

    with Hub() as hub:
        hub.repositories["models/google-bert/bert-base-uncased"] = {"config.json": b"..."}
        hub.faults.append(Fault("drop", "model.safetensors", times=1))
        HfApi(endpoint=hub.url).hf_hub_download(...)     # or a process with HF_ENDPOINT=hub.url

Files whose names end as in LARGE are "LFS" ones: their ETag is the SHA-256, that of the others git's hash.
"""

import base64
import hashlib
import io
import json
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
from huggingface_hub.utils.sha import git_hash
from pyarrow import parquet

from pruning.tasks import Task

LARGE = (".parquet", ".safetensors", ".bin")
API = re.compile(r"/api/(?P<repo>(models|datasets)/[^/]+/[^/]+)(/(?P<what>\w+)/[^/]+(/(?P<under>.+))?)?")
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)")


@dataclass
class Fault:
    """What goes wrong with requests, GET ones unless it is a status, whose path holds `match`.

    kind: "slow" (a pause before each part), "stuck" (half of what was asked for, and no more while the hub is
    there), "drop" (half, then closed), "reset" (half, then a TCP reset), "mute" (closed before the first
    byte), "wrong" (other bytes of the same length), or a status ("401").
    """

    kind: str
    match: str = ""
    times: float = 1

    def is_for(self, handler: "Handler") -> bool:
        fits = self.match in handler.path and (handler.command == "GET" or self.kind.isdigit())
        if fits and self.times > 0:
            self.times -= 1
            return True
        return False


@dataclass
class Hub:
    """The server. repositories: "models/<owner>/<name>" or "datasets/…" → file → bytes."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # method, path and range of each

    ended: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def server(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # a client that was killed
        return server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for, in their order."""
        found = [re.match("GET .*/resolve/[^/]+/([^ ]+)", request) for request in self.requests]
        return [match[1] for match in found if match]


def as_parquet(task: Task, labels: list, *texts: list, names: list[str] | None = None) -> bytes:
    """A file of a task as the hub has it. labels: places in `names`, which are the task's; or scores."""
    features = {} if task.is_regression else {"label": {"names": names or [*task.classes.values()]}}
    kind = pyarrow.float32() if task.is_regression else pyarrow.int64()
    columns = dict(zip(task.hub, texts, strict=True)) | {"label": pyarrow.array(labels, kind)}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(described), file)
    return file.getvalue()


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def describe(file: str, content: bytes, name: str, oid: str, sha256: str) -> dict:
    """What the API tells of a file; `name`, `oid`, `sha256`: the keys, which differ between its answers."""
    digest = hashlib.sha256(content).hexdigest()
    lfs = {"lfs": {sha256: digest, "size": len(content), "pointerSize": 134}} if file.endswith(LARGE) else {}
    return {name: file, oid: git_hash(content), "size": len(content), **lfs}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *_) -> None:
        pass

    def answer(self, status: int, body: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, {"X-Error-Code": code})

    def handle_one(self) -> None:
        """Any request."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        asked = self.headers.get("Range", "")
        self.hub.requests.append(f"{self.command} {self.path} {asked}".strip())
        self.fault = next((fault.kind for fault in self.hub.faults if fault.is_for(self)), "")
        path = self.path.partition("?")[0]
        if self.fault.isdigit():
            self.answer(int(self.fault), {"error": "a fault"})
        elif self.command == "POST":
            self.post(path, body)
        elif match := FILE.fullmatch(path):
            self.file((match["kind"] or "models/") + match["name"], match["file"])
        elif match := API.fullmatch(path):
            self.tell(match["repo"], match["what"], match["under"] or "")
        elif path == "/api/whoami-v2":
            self.answer(200, {"type": "user", "name": "tester", "orgs": []})
        else:
            self.refuse(404, "NotFound")

    do_GET = do_HEAD = do_POST = handle_one

    def tell(self, repo: str, what: str | None, under: str) -> None:
        """What the API tells of a repository, or the list of its files, all or those under a folder."""
        if repo not in self.hub.repositories:
            return self.refuse(404, "RepoNotFound")
        files = self.hub.repositories[repo]
        if what == "tree":
            found = [file for file in files if file.startswith(under)]
            tree = [describe(file, files[file], "path", "oid", "oid") | {"type": "file"} for file in found]
            return self.answer(200, tree) if tree else self.refuse(404, "EntryNotFound")
        card = {"license": "apache-2.0"} if repo.startswith("models/") else {}
        siblings = [describe(file, files[file], "rfilename", "blobId", "sha256") for file in files]
        name = repo.partition("/")[2]
        told = {"id": name, "sha": commit_of(files), "siblings": siblings, "cardData": card}
        return self.answer(200, told | {"private": False, "tags": []})

    def file(self, repo: str, file: str) -> None:
        """A file, or the part of it that is asked for."""
        if repo not in self.hub.repositories:
            return self.refuse(401, "RepoNotFound")
        files = self.hub.repositories[repo]
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        content = files[file]
        told = describe(file, content, "path", "oid", "oid")
        etag = told["lfs"]["oid"] if "lfs" in told else told["oid"]
        start = int(re.sub(r"\D", "", self.headers.get("Range", "")) or 0)  # the client asks for "bytes=N-"
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit_of(files), "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.fault == "wrong":
            content = bytes(byte ^ 1 for byte in content)
        body = content[start:]
        if self.fault in ("", "wrong"):
            return self.answer(206 if start else 200, body, headers)
        return self.answer_badly(206 if start else 200, body, headers)

    def answer_badly(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Slowly in eight parts, or not to the end."""
        if self.fault == "mute":
            return self.close()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.fault in ("drop", "reset", "stuck"):
            self.wfile.write(body[: max(1, len(body) // 2)])
            if self.fault == "stuck":
                self.hub.ended.wait()
            return self.close()
        step = len(body) // 8 + 1
        for at in range(0, len(body), step):
            self.hub.ended.wait(0.05)  # not time.sleep: tests take that away from the client
            self.wfile.write(body[at : at + step])
            self.wfile.flush()
        return None

    def close(self) -> None:
        self.close_connection = True
        if self.fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def post(self, path: str, body: bytes) -> None:
        """What a push consists of."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'tester'}/{asked['name']}"
            self.hub.repositories.setdefault(f"{asked.get('type', 'model')}s/{name}", {})
            return self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        match = API.fullmatch(path)
        if not match or match["repo"] not in self.hub.repositories:
            return self.refuse(404, "RepoNotFound")
        files = self.hub.repositories[match["repo"]]
        if match["what"] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer(200, {"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = commit_of(files)
        url = f"{self.hub.url}/{match['repo'].partition('/')[2]}/commit/{commit}"
        return self.answer(200, {"commitUrl": url, "commitOid": commit})
