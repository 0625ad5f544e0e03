"""A stand-in for huggingface.co on 127.0.0.1, so that tests can use the real client libraries without the network.

Emulated is what huggingface_hub, datasets and transformers ask for when they read a repository:

- ``/api/{models,datasets}/<id>[/revision/<revision>]``: the commit of a revision and the names of its files, with
  ``?blobs=true`` their sizes and checksums too
- ``/api/{models,datasets}/<id>/tree/<revision>[/<folder>]`` and ``.../paths-info/<revision>``: folders and files
- ``[/datasets]/<id>/resolve/<revision>/<file>``: a small file itself; for a file that the real hub keeps in git LFS,
  a redirect to ``/cdn/<sha256>/<file>``, which like the real content network knows nothing of repositories
- 401 for a repository that does not exist, since it might be a private one; 404 with ``X-Error-Code`` for such a
  revision or file, 404 for everything else

And, for a hub that has tokens, what huggingface_hub asks for when it writes:

- ``POST /api/repos/create``: a repository with the first commit, which has ``.gitattributes``; 409 if there is one
- ``POST /api/validate-yaml``: whether the metadata of a card is a dictionary in YAML
- ``POST /api/{models,datasets}/<id>/preupload/<revision>``: which files go to git LFS, and what of them is there
- ``POST [/datasets]/<id>.git/info/lfs/objects/batch``: where those go that are not there, ``PUT /lfs/<sha256>``
- ``POST /api/{models,datasets}/<id>/commit/<revision>``: files, large files by their checksum, and deletions, in lines
  of JSON; 412 if the parent is not the last commit
- 401 for a token that it does not know, 403 for one of another owner; a private repository does not exist for others

Left out are renamed repositories, Xet storage, branches of what was written, uploads in several parts, pages and
expanded entries of listings, and the dataset viewer, which is another host.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
import yaml
from urllib3.util import Retry

from common import hub as client
from tests.conftest import guard

Failure = int | Literal["hang", "cut", "truncate", "corrupt", "html", "broken", "list", "garbage"] | None

LFS_SUFFIXES = {".arrow", ".bin", ".h5", ".msgpack", ".onnx", ".parquet", ".pt", ".safetensors", ".whl"}
API = re.compile(r"/api/(models|datasets)/([^/]+(?:/[^/]+)?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?")
RESOLVE = re.compile(r"/((?:datasets/)?[^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)")
CDN = re.compile(r"/cdn/([0-9a-f]{64})/.+")
WRITE = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit)/main")
BATCH = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch")
OBJECT = re.compile(r"/lfs/([0-9a-f]{64})")
SAMPLE = 512  # bytes of a file, by which the client lets the hub judge it
ERRORS = {"Revision": "Invalid rev id", "Entry": "Entry not found"}
BODIES = {"html": b"<!doctype html><title>Welcome</title>", "broken": b'{"id": ', "list": b"[]"}


class Reply(NamedTuple):
    """What is sent for a request."""

    status: int
    body: bytes
    headers: dict[str, str]


def as_json(data: object, status: int = 200, **headers: str) -> Reply:
    """A reply in JSON; underscores in the names of headers stand for hyphens."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(data).encode(), {"Content-Type": "application/json"} | headers)


def not_found(what: Literal["Revision", "Entry"], **headers: str) -> Reply:
    """The reply from which the clients know what does not exist."""
    error = ERRORS[what]
    return as_json({"error": error}, 404, X_Error_Code=f"{what}NotFound", X_Error_Message=error, **headers)


def refused(status: int, said: str) -> Reply:
    """The reply to somebody who may not do this."""
    return as_json({"error": said}, status, X_Error_Message=said)


def is_large(name: str, sample: bytes) -> bool:
    """Whether a file goes to git LFS, by its name and its first bytes."""
    return Path(name).suffix in LFS_SUFFIXES or b"\0" in sample


def contents(path: Path, wanted: str | None, headers: dict[str, str]) -> Reply:
    """The bytes of a file, all of them or those that a ``Range: bytes=<first>-[<last>]`` header wants."""
    data = path.read_bytes()
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers
    if not (match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")):
        return Reply(200, data, headers)
    first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if first > last:
        return Reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    return Reply(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})


class Revision:
    """A folder as one commit of a repository; its files must not change while the hub is running."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        self.entries = {name: self._file(name, path) for name, path in self.files.items()}
        for parent in sorted({parent.as_posix() for name in self.files for parent in Path(name).parents[:-1]}):
            self.entries[parent] = {"type": "directory", "oid": self._tree_id(f"{parent}/"), "size": 0, "path": parent}
        self.commit = self._tree_id("")
        self.lfs = {entry["lfs"]["oid"]: self.files[name] for name, entry in self.entries.items() if "lfs" in entry}

    @staticmethod
    def _file(name: str, path: Path) -> dict[str, Any]:
        """What listings say of a file. What git has of an LFS file is a pointer to its contents."""
        blob = path.read_bytes()
        entry: dict[str, Any] = {"type": "file", "size": len(blob), "path": name}
        if is_large(name, blob[:SAMPLE]):
            oid = hashlib.sha256(blob).hexdigest()
            blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(blob)}\n".encode()
            entry["lfs"] = {"oid": oid, "size": entry["size"], "pointerSize": len(blob)}
        return entry | {"oid": hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()}

    def _tree_id(self, prefix: str) -> str:
        """40 hexadecimal digits for the names and contents of all files whose names start with a prefix."""
        lines = (f"{self.entries[name]['oid']} {name}\n" for name in self.files if name.startswith(prefix))
        return hashlib.sha1("".join(lines).encode()).hexdigest()

    def info(self, repo_id: str, blobs: bool, private: bool) -> Reply:
        """The repository at this revision, with the checksums of its files if they are asked for."""
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in self.files]
        for sibling in siblings if blobs else ():
            entry = self.entries[sibling["rfilename"]]
            sibling |= {"blobId": entry["oid"], "size": entry["size"]}
            if "lfs" in entry:
                sibling["lfs"] = {"sha256": entry["lfs"]["oid"]} | {k: entry["lfs"][k] for k in ("size", "pointerSize")}
        return as_json({"id": repo_id, "sha": self.commit, "private": private, "gated": False, "siblings": siblings})

    def tree(self, folder: str, recursive: bool) -> Reply:
        """The entries of a folder, or of everything below it."""
        if folder and self.entries.get(folder, {"type": None})["type"] != "directory":
            return not_found("Entry", X_Repo_Commit=self.commit)
        below = {name: entry for name, entry in self.entries.items() if name.startswith(f"{folder}/" if folder else "")}
        return as_json([below[name] for name in below if recursive or name.rpartition("/")[0] == folder])

    def resolve(self, name: str, wanted: str | None, url: str) -> Reply:
        """A file of this revision, or where it is to be had."""
        if name not in self.files:
            return not_found("Entry", X_Repo_Commit=self.commit)
        entry = self.entries[name]
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{entry["oid"]}"'}
        if "lfs" not in entry:
            return contents(self.files[name], wanted, headers)
        oid, size = entry["lfs"]["oid"], entry["lfs"]["size"]
        # The address is absolute, as the clients follow a relative one even when they ask only for these headers.
        location = {"Location": f"{url}/cdn/{oid}/{quote(name)}"}
        return Reply(302, b"", headers | location | {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(size)})


class Handler(BaseHTTPRequestHandler):
    """Passes requests on to the hub and sends its replies, or misbehaves as ``hub.fail`` wants it."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        """Answer one request; the connection ends with it, so that nothing is answered after the hub is closed."""
        length = int(self.headers.get("Content-Length", 0))
        self.server.requests.append((self.command, self.path))
        self.close_connection = True
        failure = self.server.fail(self.command, self.path) if self.server.fail else None
        body = self.rfile.read(length // 2 if failure == "cut" else length)
        if failure == "cut":
            return
        if failure == "hang":
            self.server.closed.wait()
            return
        if failure == "garbage":
            self.wfile.write(b"\x00\xff no answer in HTTP\r\n\r\n")
            return
        if isinstance(failure, int):
            reply = as_json({"error": f"Failed on purpose with {failure}"}, failure)
        elif failure in BODIES:
            reply = Reply(
                200, BODIES[failure], {"Content-Type": "text/html" if failure == "html" else "application/json"}
            )
        else:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            reply = self.server.write(self.command, self.path, body, token) or self.server.answer(
                self.path, body.decode(), self.headers.get("Range"), token
            )
        if failure == "corrupt":
            reply = reply._replace(body=reply.body[:-1] + bytes([reply.body[-1] ^ 1]) if reply.body else b"")
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if failure == "truncate" else reply.body)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet; what was asked for is in ``hub.requests``."""


class Hub(ThreadingHTTPServer):
    """A hub of local folders while in ``with Hub({<repository>: {<revision>: <folder>}}) as hub``.

    A repository is ``datasets/<id>`` or the id of a model. A revision is asked for by its name or by its commit, which
    ``hub.commit(repository, revision)`` tells.

    With ``tokens``, whose owners they are by token, their owners may write into a hub that keeps it in the folder
    ``store``. ``hub.private`` has the repositories that only their owners see, ``hub.commits`` the repository and the
    summary of each commit.

    ``hub.url`` is for ``HF_ENDPOINT``. ``hub.requests`` lists method and path of each request as sent, that is quoted
    and with the query. ``hub.fail`` may be set, at any time, to a function of both: for a number this status is sent,
    for "hang" nothing until the hub is closed, for "cut" nothing, the connection being closed after half of the
    request, for "truncate" half of the body that is announced (HEAD has none and is answered as usual), for "corrupt"
    the body with another last byte, for "html", "broken" and "list" a page, broken JSON and JSON of another kind, for
    "garbage" what is not HTTP, and for None the usual answer.
    """

    request_queue_size = 64

    def __init__(
        self,
        repos: Mapping[str, Mapping[str, Path]],
        tokens: Mapping[str, str] | None = None,
        store: Path | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str]] = []
        self.fail: Callable[[str, str], Failure] | None = None
        self.closed = threading.Event()
        self.private: set[str] = set()
        self.commits: list[tuple[str, str]] = []
        self._tokens, self._store = tokens or {}, store
        self._repos = {repo: {name: Revision(folder) for name, folder in revs.items()} for repo, revs in repos.items()}
        self._cdn = {
            oid: path for revs in self._repos.values() for rev in revs.values() for oid, path in rev.lfs.items()
        }

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()

    def commit(self, repo: str, revision: str = "main") -> str:
        """The commit id of a revision."""
        return self._repos[repo][revision].commit

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision has."""
        return {name: path.read_bytes() for name, path in self._repos[repo][revision].files.items()}

    def write(self, method: str, target: str, body: bytes, token: str) -> Reply | None:
        """The reply to a request that writes, or that comes before one that does; nothing for any other request."""
        path = urlsplit(target).path
        if self._tokens and token and token not in self._tokens:
            return refused(401, "Invalid credentials in Authorization header")
        if method == "PUT" and (match := OBJECT.fullmatch(path)):
            return self._keep(match[1], body)
        if path == "/api/validate-yaml":
            metadata = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            errors = [] if isinstance(metadata, dict) else [{"message": "no dictionary"}]
            return as_json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = "datasets/" * (asked["type"] == "dataset") + f"{asked['organization']}/{asked['name']}"
            return self._deny(repo, token) or self._create(repo, asked["private"])
        if match := BATCH.fullmatch(path):
            return self._deny(match[1], token) or self._list_uploads(json.loads(body)["objects"])
        if match := WRITE.fullmatch(path):
            repo = "datasets/" * (match[1] == "datasets") + match[2]
            found = self._deny(repo, token) or self._find(repo, "main", token)
            if isinstance(found, Reply):
                return found
            return self._judge(found, body) if match[3] == "preupload" else self._commit(repo, found, body)
        return None

    def _deny(self, repo: str, token: str) -> Reply | None:
        if not token:
            return refused(401, "Invalid username or password.")
        if self._tokens[token] != repo.removeprefix("datasets/").partition("/")[0]:
            return refused(403, "You don't have the rights to write there")
        return None

    def _keep(self, oid: str, body: bytes) -> Reply:
        """Keep a large file, which no revision has so far."""
        assert self._store
        if hashlib.sha256(body).hexdigest() != oid:
            return refused(400, "The checksum does not fit")
        self._store.mkdir(exist_ok=True)
        (self._store / oid).write_bytes(body)
        self._cdn[oid] = self._store / oid
        return Reply(200, b"", {})

    def _create(self, repo: str, private: bool) -> Reply:
        if repo in self._repos:
            return as_json({"error": "You already created this repo", "url": f"{self.url}/{repo}"}, 409)
        self.private |= {repo} if private else set()
        self.put(repo, {".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
        return as_json({"url": f"{self.url}/{repo}"})

    def _list_uploads(self, objects: list[dict[str, Any]]) -> Reply:
        """Where large files go; those that are there go nowhere."""
        new = [one for one in objects if one["oid"] not in self._cdn]
        actions = {one["oid"]: {"actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}} for one in new}
        return as_json({"transfer": "basic", "objects": [one | actions.get(one["oid"], {}) for one in objects]})

    def _judge(self, revision: Revision, body: bytes) -> Reply:
        """Say of files which go to git LFS, and what a revision has under these names."""
        files = []
        for file in json.loads(body)["files"]:
            entry = revision.entries.get(file["path"], {})
            mode = "lfs" if is_large(file["path"], base64.b64decode(file["sample"])) else "regular"
            known = entry.get("lfs", entry).get("oid")
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
        return as_json({"files": files})

    def _commit(self, repo: str, parent: Revision, body: bytes) -> Reply:
        """Make a revision from another one and lines of JSON."""
        (_, header), *changes = ((line["key"], line["value"]) for line in map(json.loads, body.splitlines()))
        if header.get("parentCommit") not in (None, parent.commit):
            return refused(412, "A commit has happened since. Please refresh and try again.")
        files: dict[str, bytes | Path] = {**parent.files}
        for key, value in changes:
            if key == "deletedFile":
                del files[value["path"]]
            elif key == "lfsFile" and value["oid"] not in self._cdn:
                return refused(400, f"{value['path']} was not uploaded")
            else:
                large = key == "lfsFile"
                files[value["path"]] = self._cdn[value["oid"]] if large else base64.b64decode(value["content"])
        commit = self.put(repo, files, header["summary"])
        return as_json({"success": True, "commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit})

    def put(self, repo: str, files: Mapping[str, bytes | Path], summary: str) -> str:
        """Make these files the last revision of a repository."""
        assert self._store
        folder = self._store / f"commit-{len(self.commits)}"
        for name, what in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, bytes):
                (folder / name).write_bytes(what)
            else:
                os.link(what, folder / name)
        self._repos[repo] = {"main": Revision(folder)}
        self._cdn |= self._repos[repo]["main"].lfs
        self.commits.append((repo, summary))
        return self.commit(repo)

    def answer(self, target: str, form: str, wanted: str | None, token: str) -> Reply:
        """The reply for a path with query, the form that was posted with it, its Range header and its token."""
        url = urlsplit(target)
        options = parse_qs(url.query) | parse_qs(form)
        if (match := CDN.fullmatch(url.path)) and match[1] in self._cdn:
            return contents(self._cdn[match[1]], wanted, {"ETag": f'"{match[1]}"'})
        if match := RESOLVE.fullmatch(url.path):
            found = self._find(match[1], match[2], token)
            return found if isinstance(found, Reply) else found.resolve(unquote(match[3]), wanted, self.url)
        if match := API.fullmatch(url.path):
            kind, repo_id, verb, revision, folder = match.groups()
            repo = repo_id if kind == "models" else f"datasets/{repo_id}"
            found = self._find(repo, revision or "main", token)
            if isinstance(found, Reply):
                return found
            if verb == "tree":
                return found.tree(unquote(folder or ""), recursive=options.get("recursive", [""])[0].lower() == "true")
            if verb == "paths-info":
                return as_json([found.entries[path] for path in options.get("paths", []) if path in found.entries])
            return found.info(repo_id, options.get("blobs", [""])[0].lower() == "true", repo in self.private)
        return as_json({"error": "Not found"}, 404)

    def _find(self, repo: str, revision: str, token: str) -> Revision | Reply:
        if repo not in self._repos or (repo in self.private and self._deny(repo, token)):
            if token:
                return as_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            said = "Invalid username or password."
            return as_json({"error": said}, 401, X_Error_Message=said, WWW_Authenticate="Bearer")
        commits = {rev.commit: rev for rev in self._repos[repo].values()}
        return (commits | self._repos[repo]).get(unquote(revision)) or not_found("Revision")


@contextmanager
def connected(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Connect this process's client to a hub that works, with an empty cache and without pauses."""
    from huggingface_hub import configure_http_backend, constants

    hub.fail = None
    hub.requests.clear()
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache),
        "ENDPOINT": hub.url,
    }.items():
        monkeypatch.setattr(constants, name, value)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(client, "SECONDS", guard(8))
    monkeypatch.setattr(Retry, "sleep", lambda *_: None)
    yield hub
    configure_http_backend()
