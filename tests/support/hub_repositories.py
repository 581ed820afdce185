"""What the stand-in Hub stores: repositories of commits, the files in them, and who may do what."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

MAIN = "refs/heads/main"


class Refusal(Exception):
    """An answer other than 200, with the header by which clients tell 404s apart."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class User:
    """Who sent a request, as its token says; an empty name is nobody."""

    name: str = ""
    organisations: tuple[str, ...] = ()
    role: str = "read"

    def owns(self, namespace: str) -> bool:
        """Return whether a namespace is this user's or one of their organisations'."""
        return bool(self.name) and namespace in (self.name, *self.organisations)

    def require_write(self, namespace: str | None = None) -> None:
        """Refuse the anonymous, tokens that only read, and (given a namespace) strangers to it."""
        if not self.name:
            raise Refusal(401, "Invalid username or password.")
        if self.role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if namespace is not None and not self.owns(namespace):
            raise Refusal(403, f'You don\'t have the rights to write under the namespace "{namespace}".')


@dataclass(frozen=True)
class File:
    """A file of a commit: `sha` finds its content, `oid` is what git calls it (or its LFS pointer)."""

    sha: str
    oid: str
    size: int
    lfs: bool

    @classmethod
    def regular(cls, content: bytes) -> File:
        """Describe a file that git holds itself."""
        return cls(hashlib.sha256(content).hexdigest(), git_oid(content), len(content), lfs=False)

    @classmethod
    def large(cls, sha: str, size: int) -> File:
        """Describe a file that git holds a pointer to."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n"
        return cls(sha, git_oid(pointer.encode()), size, lfs=True)

    @property
    def etag(self) -> str:
        """What names the content: git's name for a small file, the hash for a large one."""
        return self.sha if self.lfs else self.oid

    def listed(self, path: str) -> dict[str, Any]:
        """Describe the file as `tree` and `paths-info` do."""
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        return {**entry, "lfs": {"oid": self.sha, "size": self.size, "pointerSize": 130}} if self.lfs else entry


Tree = dict[str, File]


@dataclass(frozen=True)
class Commit:
    """A state of a branch."""

    tree: Tree
    title: str
    message: str
    author: str
    parent: str | None
    date: str = field(default_factory=lambda: now())
    oid: str = ""

    def named(self) -> Commit:
        """Return the commit with its hash."""
        return replace(self, oid=hashlib.sha1(repr(self).encode()).hexdigest())


class Repository:
    """A dataset repository: commits, and the names (branches, tags, pull requests) that point at them."""

    def __init__(self, name: str, private: bool, author: str) -> None:
        self.name, self.private = name, private
        self.namespace = name.split("/")[0]
        self.created = now()
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.pull_requests: list[dict[str, Any]] = []
        self.lock = threading.RLock()
        self._add(MAIN, Commit({}, "initial commit", "", author, None))

    def ref(self, revision: str) -> str | None:
        """Return the full name of a branch, tag or pull request, None if there is no such name."""
        return next((r for r in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}") if r in self.refs), None)

    def at(self, revision: str) -> Commit:
        """Return a commit by branch, tag, pull request, or (part of) its hash."""
        if name := self.ref(revision):
            return self.commits[self.refs[name]]
        matches = [oid for oid in self.commits if oid.startswith(revision)]
        if len(revision) < 7 or len(matches) != 1:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[matches[0]]

    def history(self, revision: str) -> Iterable[Commit]:
        """Yield a commit and those before it, newest first."""
        oid: str | None = self.at(revision).oid
        while oid:
            yield self.commits[oid]
            oid = self.commits[oid].parent

    def commit(self, revision: str, user: User, header: dict[str, Any], changes: Iterable[tuple[str, File | None]]):
        """Add a commit of changed (file) and deleted (None) paths on top of a branch, if it is where the sender saw it.

        Returns:
            The commit.
        """
        with self.lock:
            name = self.ref(revision)
            if name is None or name.startswith("refs/tags/"):
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            before = self.at(name)
            if not before.oid.startswith(header.get("parentCommit") or ""):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(before.tree)
            for path, file in changes:
                check_path(path)
                if file:
                    tree[path] = file
                elif tree.pop(path, None) is None:
                    raise Refusal(404, f"{path} does not exist", "EntryNotFound")
            return self._add(
                name, Commit(tree, header["summary"], header.get("description", ""), user.name, before.oid)
            )

    def point(self, name: str, revision: str) -> None:
        """Make a branch or tag."""
        with self.lock:
            if name in self.refs:
                raise Refusal(409, f"Reference already exists: {name}")
            self.refs[name] = self.at(revision).oid

    def open_pull_request(self, title: str, user: User) -> int:
        """Open a pull request from the main branch and return its number."""
        with self.lock:
            number = len(self.pull_requests) + 1
            self.point(f"refs/pr/{number}", MAIN)
            opened = {"num": number, "title": title, "author": {"name": user.name}, "createdAt": now()}
            self.pull_requests.append({**opened, "status": "open", "isPullRequest": True})
            return number

    def merge(self, number: int) -> None:
        """Put the files that a pull request changed onto the main branch."""
        with self.lock:
            request = self.pull_requests[number - 1]
            ours, theirs = self.at(MAIN), self.at(f"refs/pr/{number}")
            base = next(c for c in self.history(f"refs/pr/{number}") if c.oid in {o.oid for o in self.history(MAIN)})
            paths = [path for path in {**base.tree, **theirs.tree} if base.tree.get(path) != theirs.tree.get(path)]
            tree = {**ours.tree, **{path: theirs.tree[path] for path in paths if path in theirs.tree}}
            tree = {path: file for path, file in tree.items() if path in theirs.tree or path not in paths}
            self._add(MAIN, Commit(tree, request["title"], "", request["author"]["name"], ours.oid))
            request["status"] = "merged"

    def described(self, commit: Commit) -> dict[str, Any]:
        """Describe the repository at a commit as `dataset_info` expects it."""
        dates = {"createdAt": self.created, "lastModified": commit.date}
        flags = {"private": self.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        files = [{"rfilename": path, "size": f.size, "blobId": f.oid} for path, f in sorted(commit.tree.items())]
        return {"id": self.name, "author": self.namespace, "sha": commit.oid, "siblings": files, **dates, **flags}

    def _add(self, ref: str, commit: Commit) -> Commit:
        """Keep a commit and move a name to it."""
        commit = commit.named()
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit


def listing(tree: Tree, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Describe the files and folders below a folder ("" is the root), as the `tree` route does."""
    start = f"{folder}/" if folder else ""
    below = {path[len(start) :]: file for path, file in sorted(tree.items()) if path.startswith(start)}
    if folder and not below:
        raise Refusal(404, f'"{folder}" does not exist', "EntryNotFound")
    entries = {}
    for path, file in below.items():
        parts = path.split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            inner = start + "/".join(parts[:depth])
            entries[inner] = folder_entry(inner)
        if recursive or len(parts) == 1:
            entries[start + path] = file.listed(start + path)
    return list(entries.values())


def folder_entry(path: str) -> dict[str, Any]:
    """Describe a folder."""
    return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}


def check_path(path: str) -> None:
    """Refuse paths that lead out of a repository."""
    if re.search(r"^/|^$|(^|/)\.{1,2}(/|$)|\\|//", path):
        raise Refusal(400, f"Invalid path: {path!r}")


def git_oid(content: bytes) -> str:
    """Return git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def now() -> str:
    """Return the time as the Hub writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
