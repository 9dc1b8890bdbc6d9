"""A stub of the Hugging Face Hub on this machine, with the few endpoints that pushing and pulling use."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "s3cret" * 4


@dataclass
class Repository:
    """A repository: its commits (the files of each, by commit), branches and tags."""

    private: bool
    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)

    def files(self, revision):
        return self.commits.get(self.commit(revision))

    def commit(self, revision):
        return {**self.refs, **self.tags, **{commit: commit for commit in self.commits}}.get(revision)


class HubStub(ThreadingHTTPServer):
    """The server: ``repositories`` by name, ``requests`` as (method, path), ``objects`` are large files by checksum."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.requests, self.objects = {}, [], {}

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, repo, revision="main"):
        return self.repositories[repo].files(revision)

    def add_commit(self, repo, files):
        repository = self.repositories[repo]
        commit = hashlib.sha1(repr((len(repository.commits), sorted(files.items()))).encode()).hexdigest()
        repository.commits[commit] = files
        repository.refs["main"] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        is_chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self._chunks() if is_chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        may_write = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path.startswith("/objects/"):
            self.server.objects[path.removeprefix("/objects/")] = body
            return self._send({})
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if self.command == "POST" and not may_write:
            return self._send({"error": "no"}, 403)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        match = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(?:\.git)?(?:/(.*))?", path)
        repository = self.server.repositories.get(match[1]) if match else None
        if repository is None or (repository.private and not may_write):
            return self._send({"error": "no"}, 404, "RepoNotFound")
        return self._of_repository(match[1], repository, match[2] or "", body)

    do_GET = do_HEAD = do_PUT = do_POST = _answer

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _create(self, values):
        name = f"{values['organization']}/{values['name']}"
        private = values.get("visibility", "private" if values.get("private") else "public") == "private"
        self.server.repositories[name] = Repository(private)
        self.server.add_commit(name, {".gitattributes": b""})
        self._send({"url": f"{self.server.address}/{name}", "id": name})

    def _of_repository(self, name, repository, rest, body):
        kind, _, value = rest.partition("/")
        if kind == "refs":
            refs = {
                kind: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": c} for n, c in of.items()]
                for kind, where, of in (("branches", "heads", repository.refs), ("tags", "tags", repository.tags))
            }
            self._send({**refs, "converts": []})
        elif kind == "preupload":
            mode = {True: "lfs", False: "regular"}
            self._send({"files": [
                {"path": f["path"], "uploadMode": mode[f["path"].endswith(".pt")], "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]})  # fmt: skip
        elif kind == "info":  # of large files
            self._send({"transfer": "basic", "objects": [
                {**o, "actions": {"upload": {"href": f"{self.server.address}/objects/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]})  # fmt: skip
        elif kind == "commit":
            self._commit(name, [json.loads(line) for line in body.splitlines()])
        elif kind == "tag":
            repository.tags[json.loads(body)["tag"]] = repository.commit(value)
            self._send({})
        elif kind == "tree":
            self._send([
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in repository.files(value).items()
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

    def _commit(self, name, lines):
        files = dict(self.server.sent(name))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.add_commit(name, files)
        self._send({"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit})

    def _send(self, content, status=200, error=None, commit=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": len(body), "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        for name, value in {**headers, "X-Error-Code": error, "X-Repo-Commit": commit}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
