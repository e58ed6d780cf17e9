"""A hub on this machine: the requests of huggingface_hub that vimpac's models need, over HTTP."""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Repositories by name; a commit is a dict from file names to bytes."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}  # of a repository: branch or tag -> commit
        self.commits: dict[str, dict[str, bytes]] = {}
        self.tokens: dict[str, str] = {}  # of private repositories
        self.messages: list[str] = []
        self.downloads: list[str] = []
        self.url = ""

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Puts files in place of what a branch had."""
        text = json.dumps([repo, len(self.commits)]).encode()
        sha = hashlib.sha1(text).hexdigest()
        self.commits[sha] = files
        self.branches.setdefault(repo, {})[branch] = sha
        return sha

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        """The files of a branch, a tag or a commit."""
        return self.commits.get(self.branches[repo].get(revision, revision))


@contextmanager
def serve() -> Iterator[FakeHub]:
    """An empty hub, which has a `url` meanwhile."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = urlsplit(self.path).path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            words = words[2:]
        if len(words) < 4:
            return self._refuse(404, "EntryNotFound")
        owner, name, kind, revision, *path = words
        repo, revision = f"{owner}/{name}", unquote(revision)
        if not self._may_see(repo):
            return self._refuse(401, "RepoNotFound")
        files = self.hub.files(repo, revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        sha = self.hub.branches[repo].get(revision, revision)
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self._send({"id": repo, "sha": sha, "siblings": siblings})
        if kind == "tree":
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": _oid(data)}
                for file, data in files.items()
            ]
            return self._send(entries)
        data = files.get("/".join(path))
        if data is None:
            return self._refuse(404, "EntryNotFound")
        if self.command == "GET":
            self.hub.downloads.append("/".join(path))
        return self._send(data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": sha})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer may-write":
            return self._refuse(401, "")
        words = urlsplit(self.path).path.strip("/").split("/")
        if words == ["api", "validate-yaml"]:  # of a model card
            return self._send({"errors": [], "warnings": []})
        if words == ["api", "repos", "create"]:
            wanted = json.loads(body)
            repo = f"{wanted.get('organization', 'me')}/{wanted['name']}"
            if repo not in self.hub.branches:
                self.hub.commit(repo, {".gitattributes": b""})
                if wanted.get("visibility") == "private" or wanted.get("private"):
                    self.hub.tokens[repo] = "may-write"
            return self._send({"url": f"{self.hub.url}/{repo}"})
        _, _, owner, name, kind, branch = words
        if kind == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]
            return self._send({"files": modes})
        return self._commit(f"{owner}/{name}", branch, body)

    def _commit(self, repo: str, branch: str, body: bytes) -> None:
        files = dict(self.hub.files(repo, branch) or {})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.hub.messages.append(line["value"]["summary"])
            else:
                assert line["key"] == "file", line
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = self.hub.commit(repo, files, branch)
        self._send({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def _may_see(self, repo: str) -> bool:
        token = self.hub.tokens.get(repo)
        given = self.headers.get("Authorization")
        return repo in self.hub.branches and (token is None or given == f"Bearer {token}")

    def _refuse(self, status: int, code: str) -> None:
        self._send({"error": code}, {"X-Error-Code": code}, status)

    def _send(self, what: object, headers: dict | None = None, status: int = 200) -> None:
        data = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
