"""A stub of the Hugging Face Hub on this machine, with the few endpoints that pushing and pulling use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "s3cret" * 4


@dataclass
class Repository:
    """A repository: its commits (the files of each, by commit), branches and tags."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.commit(revision) or "")

    def commit(self, revision: str) -> str | None:
        return {**self.refs, **self.tags, **{commit: commit for commit in self.commits}}.get(revision)


class HubStub(ThreadingHTTPServer):
    """The server: ``repositories`` by name, ``requests`` as (method, path), ``objects`` are large files by checksum."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        files = self.repositories[repo].files(revision)
        assert files is not None
        return files

    def add_commit(self, repo: str, files: dict[str, bytes]) -> str:
        repository = self.repositories[repo]
        commit = hashlib.sha1(repr((len(repository.commits), sorted(files.items()))).encode()).hexdigest()
        repository.commits[commit] = files
        repository.refs["main"] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    server: HubStub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((method, path))
        length = int(self.headers.get("Content-Length") or 0)
        is_chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self._chunks() if is_chunked else self.rfile.read(length)
        may_write = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path.startswith("/objects/"):
            self.server.objects[path.removeprefix("/objects/")] = body
            return self._send({})
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if method == "POST" and not may_write:
            return self._send({"error": "no"}, 403)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        match = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(?:\.git)?(?:/(.*))?", path)
        repository = self.server.repositories.get(match[1]) if match else None
        if match is None or repository is None or (repository.private and not may_write):
            return self._send({"error": "no"}, 404, "RepoNotFound")
        return self._of_repository(match[1], repository, match[2] or "", body)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _create(self, values: dict[str, Any]) -> None:
        name = f"{values['organization']}/{values['name']}"
        private = values.get("visibility", "private" if values.get("private") else "public") == "private"
        self.server.repositories[name] = Repository(private)
        self.server.add_commit(name, {".gitattributes": b""})
        self._send({"url": f"{self.server.address}/{name}", "id": name})

    def _of_repository(self, name: str, repository: Repository, rest: str, body: bytes) -> None:
        kind, _, value = rest.partition("/")
        if kind == "refs":

            def refs(of: dict[str, str], where: str) -> list[dict[str, str]]:
                return [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": c} for n, c in of.items()]

            self._send({
                "branches": refs(repository.refs, "heads"), "converts": [], "tags": refs(repository.tags, "tags")
            })  # fmt: skip
        elif kind == "preupload":
            files = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            self._send({"files": [
                {"path": f["path"], "uploadMode": mode[f["path"].endswith(".pt")], "shouldIgnore": False, "oid": None}
                for f in files
            ]})  # fmt: skip
        elif kind == "info":  # of large files
            objects = json.loads(body)["objects"]
            self._send({"transfer": "basic", "objects": [
                {**o, "actions": {"upload": {"href": f"{self.server.address}/objects/{o['oid']}"}}} for o in objects
            ]})  # fmt: skip
        elif kind == "commit":
            self._commit(name, [json.loads(line) for line in body.splitlines()])
        elif kind == "tag":
            repository.tags[json.loads(body)["tag"]] = repository.commit(value) or ""
            self._send({})
        elif kind == "tree":
            files = repository.files(value) or {}
            self._send([
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ])  # fmt: skip
        elif kind in ("", "revision"):
            commit = repository.commit(value or "main")
            if commit is None:
                self._send({"error": "no"}, 404, "RevisionNotFound")
                return
            files = [{"rfilename": path} for path in repository.commits[commit]]
            self._send({"id": name, "sha": commit, "private": repository.private, "siblings": files, "tags": []})
        elif kind == "resolve":
            revision, _, path = value.partition("/")
            content = (repository.files(revision) or {}).get(path)
            if content is None:
                self._send({"error": "no"}, 404, "EntryNotFound")
                return
            self._send(content, commit=repository.commit(revision))
        else:
            raise AssertionError(rest)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.server.sent(name))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.add_commit(name, files)
        self._send({"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit})

    def _send(self, content: Any, status: int = 200, error: str | None = None, commit: str | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        if error:
            self.send_header("X-Error-Code", error)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
