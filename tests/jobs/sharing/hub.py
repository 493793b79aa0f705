"""A stand-in for the Hugging Face Hub, on loopback: what its client calls to upload a dataset, and `datasets` to load it.

It keeps LFS objects by hash, as the real one does: one that is there is not asked for again, and a commit that names one that
is not there is refused. Of Xet, the real one's other way to take large files, it knows nothing.
"""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".tar", ".parquet", ".gz")  # by the Hub's own .gitattributes
PAGE = 4  # entries of a listing
TOKEN = "hf_standintokenstandintoken"
SIGNATURE = "X-Amz-Signature=secretsignature"


class Hub:
    """What is in the Hub, and what was asked of it.

    Attributes:
        repositories: By name: branches, each with its files by path.
        objects: LFS objects by SHA-256.
        uploads: The SHA-256 of each object, in the order in which they were sent whole.
        commits: The paths of each commit.
        fetched: The path of each file that was sent, in their order.
        failing: By the beginning of a path: status and words that a request is answered with, how often, -1 for ever, and maybe
            the hub's code for the error.
        losing: How many of the next commits are made, but answered with 504.
        hold_at: The number of the upload, from 0, that is read in part once those before it are done, and then never answered.
    """

    def __init__(self):
        self.repositories: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.commits: list[list[str]] = []
        self.fetched: list[str] = []
        self.failing: dict[str, list] = {}
        self.begun = 0
        self.losing = 0
        self.hold_at: int | None = None
        self.held = threading.Event()
        self.lock = threading.Lock()

    def commit(self, name: str) -> str:
        """The hash of a repository's last commit."""
        return _sha(self.repositories[name]["branches"]["main"])

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """A repository's files, but for those that it began with."""
        files = self.repositories[name]["branches"][branch]
        return {path: content for path, content in files.items() if path != ".gitattributes"}


@contextmanager
def serving(hub: Hub):
    """The endpoint of a hub, while it is served."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body of an answer in one packet: apart, each waits for the other side's patience.
    wbufsize = -1
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *_):
        pass

    def _answer(self, status, body=b"", headers=()):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _handle(self):
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        for beginning, failure in self.hub.failing.items():
            if path.startswith(beginning) and failure[2]:
                failure[2] -= 1
                self._body()
                words = failure[1].format(authorization=self.headers.get("Authorization"))
                code = {"X-Error-Code": failure[3]} if failure[3:] else {}
                return self._answer(failure[0], {"error": words}, {"X-Error-Message": words, **code})
        if path.startswith("/objects/"):
            return self._put_object(path.rpartition("/")[2])
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": "me", "type": "user", "orgs": []})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": [{"message": "no task is named"}]})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        with self.hub.lock:
            return self._of_repository(path, query, body)

    do_GET = do_POST = do_PUT = do_HEAD = _handle  # noqa: N815 (http.server's names)

    def _put_object(self, oid):
        assert self.headers.get("Authorization") is None  # the address is signed, the token stays with the Hub
        with self.hub.lock:
            number, self.hub.begun = self.hub.begun, self.hub.begun + 1
        if self.hub.hold_at is not None and number >= self.hub.hold_at:
            self.rfile.read(100)
            while len(self.hub.uploads) < self.hub.hold_at:
                time.sleep(0.01)
            self.hub.held.set()
            return threading.Event().wait(30)
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == oid
        with self.hub.lock:
            self.hub.objects[oid] = content
            self.hub.uploads.append(oid)
        return self._answer(200)

    def _create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"http://{self.headers['Host']}/datasets/{name}"}
        if not name.startswith("me/"):
            return self._answer(403, {"error": "You don't have the rights to create a dataset under this namespace"})
        if name in self.hub.repositories:
            return self._answer(409, {"error": "You already created this dataset repo", **url})
        private = wanted.get("visibility") == "private"
        self.hub.repositories[name] = {"private": private, "branches": {"main": {".gitattributes": b"*.tar filter=lfs\n"}}}
        return self._answer(200, url)

    def _of_repository(self, path, query, body):
        lfs = re.fullmatch(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        api = re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(\w[\w-]*)/([^/]+))?(?:/(.*))?", path)
        file = re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = self.hub.repositories.get((lfs or api or file)[1])
        if repository is None:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if lfs:
            return self._answer(200, self._batch(json.loads(body)), {"Content-Type": "application/vnd.git-lfs+json"})
        what, branch, folder = (file and ("resolve", file[2], file[3])) or (api[2], api[3] or "main", api[4])
        if what == "branch":
            known = branch in repository["branches"]
            repository["branches"].setdefault(branch, dict(repository["branches"]["main"]))
            return self._answer(409 if known else 200, {})
        branch = "main" if branch == _sha(repository["branches"]["main"]) else branch
        if branch not in repository["branches"]:
            return self._answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        files = repository["branches"][branch]
        if what in (None, "revision"):
            siblings = [{"rfilename": name} for name in sorted(files)]
            known = {"id": api[1], "sha": _sha(files), "private": repository["private"], "siblings": siblings, "tags": []}
            return self._answer(200, known)
        if what == "tree":
            return self._listing(_entries(files, folder or "", query["recursive"] == ["true"]), query)
        if what == "paths-info":
            asked = parse_qs(body.decode())["paths"]
            return self._answer(200, [_entry(name, files[name]) for name in asked if name in files])
        if what == "preupload":
            return self._answer(200, {"files": [_preuploaded(each["path"], files) for each in json.loads(body)["files"]]})
        if what == "commit":
            return self._commit(files, [json.loads(line) for line in body.splitlines()])
        return self._resolve(files, folder)

    def _batch(self, wanted):
        def answered(each):
            if each["oid"] in self.hub.objects:
                return each
            href = f"http://{self.headers['Host']}/objects/{each['oid']}?{SIGNATURE}"
            return {**each, "actions": {"upload": {"href": href}}}

        return {"transfer": "basic", "objects": [answered(each) for each in wanted["objects"]]}

    def _commit(self, files, lines):
        changed = dict(files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile" and value["oid"] in self.hub.objects:
                changed[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile" and value["path"] in changed:
                del changed[value["path"]]
            else:
                return self._answer(400, {"error": f"no such thing: {value['path']}"})
        files.clear()
        files.update(changed)
        self.hub.commits.append([line["value"]["path"] for line in lines[1:]])
        if self.hub.losing:
            self.hub.losing -= 1
            return self._answer(504, {"error": "Gateway timeout"})
        url = f"http://{self.headers['Host']}/{self.path.split('/', 2)[2].rsplit('/', 2)[0]}/commit/{_sha(files)}"
        return self._answer(200, {"commitUrl": url, "commitOid": _sha(files), "success": True})

    def _listing(self, entries, query):
        start = int(query.get("cursor", ["0"])[0])
        link = f"<http://{self.headers['Host']}{urlsplit(self.path).path}?recursive={query['recursive'][0]}&cursor={start + PAGE}>"
        more = {"Link": f'{link}; rel="next"'} if len(entries) > start + PAGE else {}
        return self._answer(200, entries[start : start + PAGE], more)

    def _resolve(self, files, path):
        if path not in files:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        content, status = files[path], 200
        if self.command == "GET":
            self.hub.fetched.append(path)
        headers = {"X-Repo-Commit": _sha(files), "ETag": f'"{_git_id(content)}"', "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        return self._answer(status, content, {**headers, "Content-Type": "application/octet-stream"})


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha(files) -> str:
    return hashlib.sha1(repr(sorted((path, _git_id(content)) for path, content in files.items())).encode()).hexdigest()


def _is_large(path, content) -> bool:
    return path.endswith(LARGE) and bool(content)


def _entry(path, content):
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_id(content)}
    if _is_large(path, content):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _entries(files, folder, recursive):
    inside = {path: content for path, content in sorted(files.items()) if path.startswith(f"{folder}/" if folder else "")}
    folders = {path.rsplit("/", depth)[0] for path in inside for depth in range(1, path.count("/") + 1)}
    depth = folder.count("/") + 1 if folder else 0
    listed = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders) if path != folder]
    listed += [_entry(path, content) for path, content in inside.items()]
    return [entry for entry in listed if recursive or entry["path"].count("/") == depth]


def _preuploaded(path, files):
    large = path.endswith(LARGE)
    known = files.get(path)
    oid = None if known is None else hashlib.sha256(known).hexdigest() if large else _git_id(known)
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
