"""A stand-in for the Hub on 127.0.0.1 that the real clients talk to; standard library only, with faults on demand.

It serves what `huggingface_hub` and `datasets` ask for when they create, fill, list and read dataset repositories.
Large files go by LFS and are answered by a redirect, as on the Hub; it does not speak Xet, so clients need
`HF_HUB_DISABLE_XET=1`. Everything is kept in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.hub_connection import Connection, Listener
from tests.support.hub_repositories import File, Refusal, Repository, Tree, User, check_path, folder_entry, listing

TOKENS = {
    "tok_alice": User("alice", ("lab",), "write"),
    "tok_bob": User("bob", (), "write"),
    "tok_read": User("alice", ("lab",), "read"),
}
LARGE = re.compile(r"\.(parquet|safetensors|arrow|bin|npz|zip|png|jpe?g|webp)$")
LARGE_SIZE = 10 << 20
CARD_FIELDS = {"license": r"[a-z0-9.-]+", "size_categories": r"n<1K|1K<n<10K|10K<n<100K|100K<n<1M|1M<n<10M"}
_REPO = r"/api/datasets/(?P<repo>[^/]+/[^/]+)"
_REVISION = r"/(?P<revision>[^/]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", "/api/repos/create", "create"),
    ("DELETE", "/api/repos/delete", "delete"),
    ("GET", rf"{_REPO}(/revision{_REVISION})?", "info"),
    ("GET", rf"{_REPO}/tree{_REVISION}(/(?P<path>.+))?", "tree"),
    ("POST", rf"{_REPO}/paths-info{_REVISION}", "paths_info"),
    ("GET", rf"{_REPO}/refs", "refs"),
    ("GET", rf"{_REPO}/commits{_REVISION}", "commits"),
    ("POST", rf"{_REPO}/branch/(?P<name>[^/]+)", "branch"),
    ("POST", rf"{_REPO}/tag{_REVISION}", "tag"),
    ("POST", rf"{_REPO}/preupload{_REVISION}", "preupload"),
    ("POST", rf"{_REPO}/commit{_REVISION}", "commit"),
    ("POST", rf"{_REPO}/discussions", "open_discussion"),
    ("GET", rf"{_REPO}/discussions/(?P<number>\d+)", "discussion"),
    ("POST", rf"{_REPO}/discussions/(?P<number>\d+)/merge", "merge"),
    ("POST", r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<sha>[0-9a-f]{64})", "lfs_put"),
    ("POST", r"/lfs/(?P<sha>[0-9a-f]{64})/verify", "lfs_verify"),
    ("GET HEAD", rf"/datasets/(?P<repo>[^/]+/[^/]+)/resolve{_REVISION}/(?P<path>.+)", "resolve"),
    ("GET HEAD", r"/cdn/(?P<sha>[0-9a-f]{64})", "cdn"),
)


class HubServer(Listener):
    """The stand-in for the Hub: `start()` it and give its `url` to clients."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(Hub, port)


class Hub(Connection):
    """The answers to every request."""

    tokens = TOKENS
    routes = ROUTES

    def _repository(self, repo: str, *, write: bool = False) -> Repository:
        """Return a repository that the sender may read (and write)."""
        repository = self.server.repositories.get(repo)
        if repository is None or (repository.private and not self.user.owns(repository.namespace)):
            # The Hub does not tell the anonymous which repositories exist.
            signed_in = bool(self.user.name)
            message = "Repository not found" if signed_in else "Invalid username or password."
            raise Refusal(404 if signed_in else 401, message, "RepoNotFound")
        if write:
            # Anyone whose token writes may propose changes.
            proposed = self.query.get("create_pr") == "1" or "/refs%2Fpr%2F" in self.path
            self.user.require_write(None if proposed else repository.namespace)
        return repository

    # Requests that read, and those about repositories

    def whoami(self) -> None:
        if not self.user.name:
            raise Refusal(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.user.role}}
        organisations = [{"type": "org", "name": name} for name in self.user.organisations]
        self.answer({"type": "user", "name": self.user.name, "orgs": organisations, "auth": token})

    def validate_yaml(self) -> None:
        errors = [{"message": message} for message in card_errors(json.loads(self.body)["content"])]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self) -> None:
        request = json.loads(self.body)
        namespace = request.get("organization") or self.user.name
        self.user.require_write(namespace)
        if request.get("type") != "dataset":
            raise Refusal(400, f"This stand-in keeps datasets, not {request.get('type', 'model')}s")
        name = f"{namespace}/{request['name']}"
        private = request.get("visibility") == "private" or bool(request.get("private"))
        repository = Repository(name, private, self.user.name)
        exists = self.server.repositories.setdefault(name, repository) is not repository
        answer = {"url": f"{self.base}/datasets/{name}", "name": name, "id": name}
        self.answer(
            {**answer, "error": "You already created this dataset repo"} if exists else answer, 409 * exists or 200
        )

    def delete(self) -> None:
        request = json.loads(self.body)
        repo = self._repository(f"{request.get('organization') or self.user.name}/{request['name']}", write=True)
        del self.server.repositories[repo.name]
        self.answer({})

    def info(self, repo: str, revision: str = "main") -> None:
        repository = self._repository(repo)
        self.answer(repository.described(repository.at(revision)))

    def tree(self, repo: str, revision: str, path: str = "") -> None:
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries = listing(self._repository(repo).at(revision).tree, path, recursive=recursive)
        start = int(self.query.get("cursor", 0))
        end = start + min(int(self.query.get("limit", self.server.page_size)), self.server.page_size)
        following = f"{self.base}{urlsplit(self.path).path}?{urlencode({**self.query, 'cursor': end})}"
        self.answer(entries[start:end], headers={"Link": f'<{following}>; rel="next"'} if end < len(entries) else {})

    def paths_info(self, repo: str, revision: str) -> None:
        tree = self._repository(repo).at(revision).tree
        paths = [path.strip("/") for path in parse_qs(self.body.decode()).get("paths", [])]
        files = [tree[path].listed(path) for path in paths if path in tree]
        folders = [folder_entry(path) for path in paths if any(other.startswith(f"{path}/") for other in tree)]
        self.answer(files + folders)

    def refs(self, repo: str) -> None:
        repository = self._repository(repo)
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/"}
        if self.query.get("include_prs"):
            kinds["pullRequests"] = "refs/pr/"
        references = list(repository.refs.items())
        self.answer(
            {
                kind: [
                    {"name": r[len(start) :], "ref": r, "targetCommit": o} for r, o in references if r.startswith(start)
                ]
                for kind, start in kinds.items()
            }
        )

    def commits(self, repo: str, revision: str) -> None:
        self.answer(
            [
                {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
                for c in self._repository(repo).history(revision)
            ]
        )

    def branch(self, repo: str, name: str) -> None:
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        self._repository(repo, write=True).point(f"refs/heads/{name}", start)
        self.answer({})

    def tag(self, repo: str, revision: str) -> None:
        self._repository(repo, write=True).point(f"refs/tags/{json.loads(self.body)['tag']}", revision)
        self.answer({})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self._repository(repo).at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.tree:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        file = commit.tree[path]
        headers["ETag"] = f'"{file.etag}"'
        if file.lfs:
            linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": headers["ETag"]}
            store = self.server.url.replace("127.0.0.1", "localhost")  # another host, as on the Hub
            self.answer(b"", 302, {**headers, **linked, "Location": f"{store}/cdn/{file.sha}"})
        else:
            self._content(file.sha, headers)

    def cdn(self, sha: str) -> None:
        if self.user.name:
            raise Refusal(400, "A token was sent to another host")
        self._content(sha, {"ETag": f'"{sha}"'})

    def _content(self, sha: str, headers: dict[str, str]) -> None:
        """Send a file, or the part that the client wants."""
        data = self.server.blobs[sha]
        headers, kind = {**headers, "Accept-Ranges": "bytes"}, "application/octet-stream"
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            self.answer(data, 200, headers, kind)
            return
        start = int(span[1]) if span[1] else max(0, len(data) - int(span[2]))
        end = min(int(span[2] or len(data) - 1) if span[1] else len(data) - 1, len(data) - 1)
        if start >= len(data):
            self.answer(b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"}, kind)
            return
        self.answer(data[start : end + 1], 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}, kind)

    # Requests that write

    def preupload(self, repo: str, revision: str) -> None:
        tree = self._repository(repo, write=True).at(revision).tree
        files = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if LARGE.search(path) or file["size"] > LARGE_SIZE else "regular"
            stored = {"oid": tree[path].etag} if path in tree else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **stored})
        self.answer({"files": files})

    def lfs_batch(self, repo: str) -> None:
        self._repository(repo)
        self.user.require_write()
        objects = []
        for entry in json.loads(self.body)["objects"]:
            href = f"{self.base}/lfs/{entry['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry if entry["oid"] in self.server.blobs else {**entry, "actions": actions})
        self.answer({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def lfs_put(self, sha: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha:
            raise Refusal(400, "The content does not have the hash that was announced")
        self.server.blobs[sha] = self.body
        self.answer(b"")

    def lfs_verify(self, sha: str) -> None:
        if len(self.server.blobs.get(sha, b"")) != json.loads(self.body)["size"]:
            raise Refusal(422, "The object is not there, or not of this size")
        self.answer({})

    def commit(self, repo: str, revision: str) -> None:
        repository = self._repository(repo, write=True)
        header, *operations = [json.loads(line) for line in self.body.splitlines() if line]
        title = header["value"]["summary"]
        changes = list(self._changes(operations, repository.at(revision).tree))
        number = repository.open_pull_request(title, self.user) if self.query.get("create_pr") == "1" else None
        commit = repository.commit(f"refs/pr/{number}" if number else revision, self.user, header["value"], changes)
        page = f"{self.base}/datasets/{repository.name}"
        answer = {
            "success": True,
            "commitOid": commit.oid,
            "commitUrl": f"{page}/commit/{commit.oid}",
            "hookOutput": "",
        }
        self.answer({**answer, "pullRequestUrl": f"{page}/discussions/{number}"} if number else answer)

    def _changes(self, operations: list[dict[str, Any]], tree: Tree) -> Iterator[tuple[str, File | None]]:
        """Yield what a commit does to each path, and keep the contents that came with it."""
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            path = value["path"]
            check_path(path.rstrip("/"))
            if kind == "file":
                content = base64.b64decode(value["content"])
                if path == "README.md" and (errors := card_errors(content.decode())):
                    raise Refusal(400, f"Invalid metadata in README.md: {errors}")
                file = File.regular(content)
                self.server.blobs[file.sha] = content
                yield path, file
            elif kind == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    raise Refusal(400, f"The LFS object of {path} was not uploaded")
                yield path, File.large(value["oid"], len(self.server.blobs[value["oid"]]))
            elif kind == "deletedFile":
                yield path, None
            elif kind == "deletedFolder":
                yield from ((other, None) for other in tree if other.startswith(f"{path.rstrip('/')}/"))
            else:
                raise Refusal(400, f"Unknown operation {kind!r}")

    def open_discussion(self, repo: str) -> None:
        repository = self._repository(repo)
        self.user.require_write()
        request = json.loads(self.body)
        if not request.get("pullRequest"):
            raise Refusal(400, "This stand-in keeps pull requests, not discussions")
        self.answer({"num": repository.open_pull_request(request["title"], self.user)})

    def discussion(self, repo: str, number: str) -> None:
        repository = self._repository(repo)
        if int(number) > len(repository.pull_requests):
            raise Refusal(404, "No such discussion")
        about = {"repo": {"name": repo, "type": "dataset"}, "events": [], "filesWithConflicts": []}
        self.answer({**repository.pull_requests[int(number) - 1], **about, "changes": {"base": "refs/heads/main"}})

    def merge(self, repo: str, number: str) -> None:
        self._repository(repo, write=True).merge(int(number))
        self.answer({})


def card_errors(text: str) -> list[str]:
    """Return what the Hub would refuse in the metadata of a card."""
    import yaml  # comes with datasets; not needed before a card is sent

    block = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    try:
        fields = (yaml.safe_load(block[1]) if block else None) or {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    fields_to_check = {
        name: fields[name] if isinstance(fields[name], list) else [fields[name]]
        for name in CARD_FIELDS.keys() & fields.keys()
    }
    return [
        f"{name!r} cannot be {value!r}"
        for name, values in fields_to_check.items()
        for value in values
        if not re.fullmatch(CARD_FIELDS[name], str(value))
    ]
