"""Where a token may come from, and an API that notes which one arrives.

PATH holds one folder of the test's own, so that a real keyring of the machine is never asked.
"""

from __future__ import annotations

import http.server
import json
import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from support.program import Result, Thopters
from support.runs import Done, run_here

OTHER_URL = "https://api.sprites.dev"
EMPTY_LIST = b'{"sprites":[],"has_more":false,"next_continuation_token":null}'


secret_service = pytest.mark.skipif(
    os.name != "posix" or sys.platform == "darwin", reason="secret-tool is not asked here"
)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        bearer = self.headers.get("Authorization")
        self.server.requests.append(self.path)
        self.server.tokens.append(bearer)
        status, body = self.server.status, self.server.body
        if self.server.wanted not in (None, bearer):
            status, body = 401, b'{"error":"unauthorized"}'
            self.server.when_refused()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Api(http.server.ThreadingHTTPServer):
    """Answers every GET alike and keeps the Authorization headers that came.

    Where another one than `wanted` comes, the answer is 401, behind a call of `when_refused`.
    """

    status = 200
    body = EMPTY_LIST
    wanted: str | None = None

    def when_refused(self) -> None:
        """Do nothing, unless a test says otherwise."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"


class Login:
    """A home with a store in it, and `list` as the command that needs a token.

    A sweep over many tokens runs it in this process: `is_here`.
    """

    is_here = False

    def __init__(self, thopters: Thopters, api: Api, path: Path) -> None:
        self.thopters = thopters
        self.env = thopters.env
        self.api = api
        self.url = api.url
        self.home = thopters.home
        self.folder = self.home / ".sprites"
        self.programs = path
        self.env |= {"SPRITES_API_URL": api.url, "PATH": str(path)}
        self.canaries: list[str] = []

    def token(self, label: str = "tok") -> str:
        token = f"acme/1/{label}/{secrets.token_hex(16)}"
        self.canaries.append(token.rpartition("/")[2])
        return token

    def run(self, *more: str, **env: str) -> Result | Done:
        before = len(self.api.tokens)
        if self.is_here:
            done: Result | Done = run_here(["list", *more], self.env | env)
        else:
            done = self.thopters("list", *more, env=env)
        assert "Traceback" not in done.err and "internal error" not in done.err, done
        for canary in self.canaries:
            for start in range(0, len(canary) - 7):
                assert canary[start : start + 8] not in done.out + done.err, "a token was printed"
        self.arrived = self.api.tokens[before:]
        return done

    def uses(self, token: str, **env: str) -> Result | Done:
        """Run and assert that this token, and nothing else, arrived; return the result."""
        done = self.run(**env)
        assert done.code == 0, done
        assert self.arrived == ["Bearer " + token]
        return done

    def fails(self, code: int = 4, /, **env: str) -> str:
        """Run and assert one error, this exit status and no request; return stderr."""
        done = self.run(**env)
        assert (done.code, done.out) == (code, ""), done
        assert self.arrived == []
        errors = [line for line in done.err.splitlines() if line.startswith("thopters: error: ")]
        assert len(errors) == 1, done
        return done.err

    def store(self, document: object, name: str = "sprites.json", mode: int = 0o600) -> Path:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        path = self.folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        return path

    def layout(self, orgs: dict[str, Any], url: str | None = None, **more: Any) -> dict[str, Any]:
        """Return a document as the `sprite` program writes it."""
        url = url or self.url
        records = {
            name: {
                "name": name,
                "keyring_key": f"sprites:org:{url}:{name}",
                "use_keyring": True,
                "sprites": {},
            }
            | record
            for name, record in orgs.items()
        }
        return {"version": "1", "urls": {url: {"url": url, "orgs": records}}} | more

    def keyring_file(self, service: str, account: str, text: str, root: str = ".sprites") -> Path:
        """Write the file that stands in for a keyring entry."""
        folder = self.home / root / "keyring" / service.replace(":", "-")
        path = Path(f"{folder}/{account.replace(':', '-')}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
        return path

    def program(self, text: str, folder: Path | None = None) -> None:
        """Put a program named secret-tool on PATH."""
        path = (folder or self.programs) / "secret-tool"
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    def secret_tool(self, service: str, account: str, value: str) -> None:
        """Put a keyring on PATH that holds one value and records what it is asked."""
        wanted = " ".join(map(shlex.quote, ("lookup", "service", service, "username", account)))
        self.program(
            f"""printf '%s|' "$@" >> {shlex.quote(str(self.log))}
printf '\\n' >> {shlex.quote(str(self.log))}
given="$*"
set -- {wanted}
[ "$given" = "$*" ] || exit 1
printf '%s\\n' {shlex.quote(value)}
"""
        )

    @property
    def log(self) -> Path:
        return self.home / "asked"

    def asked(self) -> list[tuple[str, str]]:
        """Return the (service, account) pairs that the keyring was asked for, in order."""
        pairs = []
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            lookup, service, name, username, account, rest = line.split("|")
            assert (lookup, service, username, rest) == ("lookup", "service", "username", "")
            pairs.append((name, account))
        return pairs
