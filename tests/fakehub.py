"""A hub on loopback: what huggingface_hub asks of the real one, with repositories from memory and faults on demand."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

NAME = "org/toy"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def commit(name: str) -> str:
    """A commit hash for a name."""
    return hashlib.sha1(name.encode()).hexdigest()


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method whose path ends so; `body` replaces the right one."""

    ends: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str | None = None
    delay: float = 0.0
    body: bytes | None = None
    times: int = 10**9


class Hub:
    """Repository `NAME`: commit of each branch, files of each commit; `asked` holds every request."""

    def __init__(self):
        self.branches: dict[str, str] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self.without_lfs = False
        self.url = ""
        self.closing = threading.Event()

    def put(self, branch: str, files: Mapping[str, bytes], name: str | None = None) -> str:
        """Let a branch point to a new commit with these files; its hash."""
        made = commit(name or branch)
        self.commits[made], self.branches[branch] = dict(files), made
        return made

    def bytes_of(self, ends: str) -> int:
        """How often the content of files that end so was asked for."""
        return sum(one.startswith("GET /org") and one.endswith(ends) for one in self.asked)

    def fault(self, method: str, path: str) -> Fault | None:
        for one in self.faults:
            if path.endswith(one.ends) and one.method in (None, method) and one.times > 0:
                one.times -= 1
                return one
        return None


def _listing(hub: Hub, content: dict[str, bytes]) -> list[dict]:
    rows = []
    for name, value in content.items():
        row = {"rfilename": name, "size": len(value), "blobId": hashlib.sha1(value).hexdigest()}
        if name.endswith((".safetensors", ".bin")) and not hub.without_lfs:
            row["lfs"] = {"sha256": sha256(value), "size": len(value), "pointerSize": 130}
        rows.append(row)
    return rows


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, unquote(self.path.split("?")[0])
        hub.asked.append(f"{self.command} {path}")
        fault = hub.fault(self.command, path)
        if fault and fault.delay:
            hub.closing.wait(fault.delay)
        if fault and fault.status != 200:
            return self.reply(fault.status, b"{}", fault.headers)
        for start in (f"/api/models/{NAME}/revision/", f"/{NAME}/resolve/"):
            if path.startswith(start):
                revision, _, file = path.removeprefix(start).partition("/")
                found = hub.branches.get(revision, revision)
                if found not in hub.commits:
                    return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                if "/api/" in start:
                    value = {"id": NAME, "sha": found, "siblings": _listing(hub, hub.commits[found])}
                    return self.reply(200, json.dumps(value | {"tags": [], "private": False, "downloads": 0}).encode())
                return self.file(found, file, fault)
        return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def file(self, found: str, name: str, fault: Fault | None) -> None:
        content = self.hub.commits[found].get(name)
        if content is None:
            return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found})
        headers = {"X-Repo-Commit": found, "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256(content)}"'}
        if not name.endswith(".safetensors"):
            headers["X-Linked-Etag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        body = content if fault is None or fault.body is None or self.command == "HEAD" else fault.body
        return self.reply(200, body, headers | dict(fault.headers if fault else {}))

    def reply(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the other side did not wait
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers on loopback as long as the context lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def use(monkeypatch, hub: Hub, cache: Path) -> None:
    """Let huggingface_hub in this process ask this hub and keep files in this cache, without anybody's token."""
    import huggingface_hub
    from huggingface_hub import constants

    huggingface_hub.close_session()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def forget() -> None:
    """Close the connections that huggingface_hub keeps open in this process."""
    import huggingface_hub

    huggingface_hub.close_session()


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """The same for another process."""
    return {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
