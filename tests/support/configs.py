"""The configuration of a test: its keys, its file, and a stand-in for GitHub that knows them."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from support.program import MODULE, Thopters

KEYS = {
    "ANTHROPIC_API_KEY": "sk-ant-canary-aaaaaaaaaaaaaaaa",
    "OPENAI_API_KEY": "sk-canary-bbbbbbbbbbbbbbbbbbbb",
    "GITHUB_PAT": "ghp_canary_cccccccccccccccccccc",
}
SECRETS = {name: KEYS[name] for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY")}
ME = {"GIT_AUTHOR_NAME": "Ann O'Nym", "GIT_AUTHOR_EMAIL": "ann@example.org"}


class GitHub:
    """A stand-in for GitHub's API: knows one token, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.instead: tuple[int, str, bytes] | None = None  # what somebody else answers
        github, requests = self, self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                bearer = self.headers.get("Authorization")
                requests.append((self.path, bearer))
                good = bearer == f"Bearer {KEYS['GITHUB_PAT']}" and self.path == "/user"
                body = b'{"login": "ann"}' if good else b'{"message": "Bad credentials"}'
                status, kind = 200 if good else 401, "application/json; charset=utf-8"
                status, kind, body = github.instead or (status, kind, body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, document: Any) -> bytes:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    path.write_bytes(data)
    path.chmod(0o600)
    return data


UPDATER = """\
import os, sys
sys.path.insert(0, sys.argv[1])
import thopters
config = thopters.Config(os.environ, thopters.Console(sys.stdout, sys.stderr, os.environ))
def change(document):
    document["count"] = document.get("count", 0) + 1
    document["filler"] = "x" * 50_000
for _ in range(int(sys.argv[2])):
    config.update(change)
"""


def updater(thopters: Thopters, count: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", UPDATER, str(MODULE.parent), str(count)]
    return subprocess.Popen(argv, env=thopters.env)
