"""A mirror of the hub: the few addresses of its API by which a model and a data set are fetched."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def mirror(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `root/models/<owner>/<name>` and `root/datasets/<owner>/<name>`: the address, and what was asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(root, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _handler(root: Path, asked: list[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_POST(self) -> None:  # paths-info
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            parts = unquote(urlparse(self.path).path).strip("/").split("/")
            if parts[0] == "api":
                return self.api(parts[1:])
            repo = root / "datasets" if parts[0] == "datasets" else root / "models"
            owner, name, resolve, _, *rest = parts[1:] if parts[0] == "datasets" else parts
            file = repo / owner / name / "/".join(rest)
            if resolve != "resolve" or not file.is_file():
                return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
            content = file.read_bytes()
            self.reply(200, content, {"ETag": f'"{_id(content)}"', "X-Repo-Commit": COMMIT}, body)

        def api(self, parts: list[str]) -> None:
            if len(parts) < 3 or not (repo := root.joinpath(*parts[:3])).is_dir():
                return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, True)
            files = sorted(p for p in repo.rglob("*") if p.is_file())
            names = [p.relative_to(repo).as_posix() for p in files]
            call, *rest = [*parts[3:], "revision"]
            if call == "paths-info":
                length = int(self.headers.get("Content-Length", 0))
                wanted = self.paths(self.rfile.read(length).decode())
                return self.json([_entry(repo, name) for name in wanted if (repo / name).exists()])
            if call == "tree":
                below = "/".join(rest[1:-1])
                inside = [n for n in names if n.startswith(f"{below}/" if below else "")]
                folders = {f for n in inside for f in map(str, Path(n).parents) if f != "." and f != below}
                return self.json([_entry(repo, n) for n in (*sorted(folders), *inside)])
            self.json({"id": "/".join(parts[1:3]), "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]})

        def paths(self, text: str) -> list[str]:
            given = json.loads(text) if text.startswith("{") else parse_qs(text)
            return [unquote(p) for p in given["paths"]]

        def json(self, content: Any) -> None:
            self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, True)

        def reply(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Handler


def _entry(repo: Path, name: str) -> dict[str, Any]:
    path = repo / name
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _id(path.read_bytes())}


def _id(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
