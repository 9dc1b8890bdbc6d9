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

    def commit(self, revision):
        return {**self.refs, **self.tags, **{commit: commit for commit in self.commits}}.get(revision)


class HubStub(ThreadingHTTPServer):
    """The server: ``repositories`` by name, ``requests`` as (method, path)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.requests = {}, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, repo, revision="main"):
        repository = self.repositories[repo]
        return repository.commits[repository.commit(revision)]

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
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        may_write = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if self.command == "POST" and not may_write:
            return self._send({"error": "no"}, 403)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        match = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(?:/(.*))?", path)
        repository = self.server.repositories.get(match[1]) if match else None
        if repository is None or (repository.private and not may_write):
            return self._send({"error": "no"}, 404, "RepoNotFound")
        kind, _, value = (match[2] or "").partition("/")
        return getattr(self, f"_{kind or 'revision'}")(match[1], repository, value, body)

    do_GET = do_HEAD = do_POST = _answer

    def _create(self, values):
        name = f"{values['organization']}/{values['name']}"
        private = values.get("visibility", "private" if values.get("private") else "public") == "private"
        self.server.repositories[name] = Repository(private)
        self.server.add_commit(name, {".gitattributes": b""})
        self._send({"url": f"{self.server.address}/{name}", "id": name})

    def _refs(self, name, repository, value, body):
        branches, tags = (
            [{"name": name, "ref": f"refs/{name}", "targetCommit": commit} for name, commit in kind.items()]
            for kind in (repository.refs, repository.tags)
        )
        self._send({"branches": branches, "tags": tags, "converts": []})

    def _preupload(self, name, repository, value, body):
        paths = [file["path"] for file in json.loads(body)["files"]]
        plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
        self._send({"files": [{"path": path, **plain} for path in paths]})

    def _commit(self, name, repository, value, body):
        files = dict(self.server.sent(name))
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        commit = self.server.add_commit(name, files)
        self._send({"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit})

    def _tag(self, name, repository, value, body):
        repository.tags[json.loads(body)["tag"]] = repository.commit(value)
        self._send({})

    def _revision(self, name, repository, value, body):
        commit = repository.commit(value or "main")
        if commit is None:
            return self._send({"error": "no"}, 404, "RevisionNotFound")
        files = [{"rfilename": path} for path in repository.commits[commit]]
        return self._send({"id": name, "sha": commit, "private": repository.private, "siblings": files, "tags": []})

    def _tree(self, name, repository, value, body):
        kept = self.server.sent(name, value).items()
        self._send([{"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in kept])

    def _resolve(self, name, repository, value, body):
        revision, _, path = value.partition("/")
        self._send(self.server.sent(name, revision)[path], commit=repository.commit(revision))

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
