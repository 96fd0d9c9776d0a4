"""Fixtures: a sealed environment, the program as a child process, and an emulated platform.

Everything is sealed first: HOME is a temporary folder, PATH holds the system's programs and
nothing of the user's, and no token, proxy or colour setting comes through.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import py_compile
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "thopters.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--turns", metavar="FILE", help="share the tests with all that name FILE")
    parser.addoption("--shuffle", metavar="SEED", help="run the tests in a random order")
    parser.addoption(
        "--program", choices=("module", "pyz"), default="module", help="which one most tests run"
    )


def pytest_configure() -> None:
    # a shell's `&`, or nohup, has them ignored, and so they would be in all that the tests start
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT) if os.name == "posix" else ():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--shuffle")
    if seed:
        random.Random(seed).shuffle(items)


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the next test that nobody else has taken, as long as there is one."""
    path = session.config.getoption("--turns")
    if not path or session.config.option.collectonly:
        return None

    def take() -> pytest.Item | None:
        with open(path, "ab", buffering=0) as turns:  # as long as the number of tests taken
            turns.write(b".")
            turn = turns.tell() - 1
        return session.items[turn] if turn < len(session.items) else None

    item = take()
    while item:
        following = take()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has, the first of each with a free one behind it.

    They are below those that systems give to who connects, for that would come in between.
    """
    chance = random.SystemRandom()
    found: list[int] = []
    while len(found) < count:
        port = chance.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for listener in itertools.chain(listeners(port), listeners(port + 1)):
                stack.enter_context(listener)
            if not {port, port + 1} & {taken + near for taken in found for near in (0, 1)}:
                found.append(port)
    return found


def listeners(port: int) -> Iterator[socket.socket]:
    """Yield a listener on each loopback address there is; OSError where the port is taken."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            yield socket.create_server((address, port), family=family)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise


class Result:
    """How a run of the program ended: exit status (negative: by signal) and what it wrote."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code = done.returncode
        self.out_bytes = done.stdout
        self.err_bytes = done.stderr
        self.out = done.stdout.decode(errors="replace")
        self.err = done.stderr.decode(errors="replace")

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}--- stderr\n{self.err}"


class Thopters:
    """Runs the program as a child process in a sealed environment."""

    def __init__(self, program: Path, home: Path) -> None:
        self.argv = [sys.executable, str(program)]
        self.home = home
        self.started: list[subprocess.Popen[bytes]] = []
        self.env = {
            "HOME": str(home),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "COLUMNS": "80",
            "PYTHONDONTWRITEBYTECODE": "1",
            "THOPTERS_GITHUB_API": "http://127.0.0.1:9",  # nothing leaves this machine
        }

    def use(self, emulator: Emulator) -> None:
        self.env |= {"SPRITES_API_URL": emulator.url, "SPRITE_TOKEN": emulator.token}

    def __call__(
        self,
        *args: str | bytes,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 60,
        **options: Any,
    ) -> Result:
        """Run to the end. `env` adds variables; stdin is /dev/null unless given."""
        source: dict[str, Any] = {"input": stdin} if stdin is not None else {}
        return Result(
            subprocess.run(
                [*self.argv, *args],
                env=self.env | (env or {}),
                capture_output=True,
                timeout=timeout,
                cwd=self.home,
                **(source or {"stdin": subprocess.DEVNULL}),
                **options,
            )
        )

    def as_somebody(self) -> dict[str, Any]:
        """Return the options that run the program as a user whom modes bind, who owns the home."""
        if os.geteuid() != 0:
            return {}
        options: dict[str, Any] = {"user": 52000, "group": 52000, "extra_groups": []}
        probe = "import sys; sys.exit(sys.version_info < (3, 11))"
        for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
            with contextlib.suppress(OSError):
                done = subprocess.run(
                    [python, "-c", probe], cwd="/", capture_output=True, **options
                )
                if done.returncode == 0:
                    break
        else:
            pytest.skip("no Python here can be run by another user")
        copy = self.home.with_name("thopters.py")
        copy.write_bytes(MODULE.read_bytes())
        self.argv = [python, str(copy)]
        for folder in copy.parents[:3]:
            folder.chmod(0o755)
        for place in (self.home, *self.home.rglob("*")):
            os.lchown(place, 52000, 52000)
        return options

    def start(self, *args: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
        """Start the program and leave it running; its streams are pipes unless named."""
        pipes: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        argv: list[str | bytes] = [*self.argv, *args]
        process = subprocess.Popen(argv, env=self.env, cwd=self.home, **(pipes | options))
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what `start` has left behind."""
        for process in self.started:
            process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
            process.wait()


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's settings out of whatever runs inside the test process itself."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("SPRITE", "THOPTERS")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def compiled() -> Path:
    """Return the module as Python keeps it: to compile it anew costs as much as all else."""
    return Path(py_compile.compile(str(MODULE), doraise=True) or MODULE)


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a freshly built thopters.pyz."""
    path = tmp_path_factory.mktemp("pyz") / "thopters.pyz"
    subprocess.run(
        [sys.executable, str(ROOT / "build_pyz.py"), "--output", str(path)],
        check=True,
        capture_output=True,
    )
    return path


@pytest.fixture(scope="session")
def pyz_cache(pyz: Path) -> Path:
    """Return where the archive keeps its compiled code, with that in place."""
    path = pyz.parent / "cache"
    env = os.environ | {"XDG_CACHE_HOME": str(path)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, pyz, "--version"], env=env, check=True, capture_output=True)
    assert list((path / "thopters").iterdir())
    return path


@pytest.fixture
def thopters(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Thopters]:
    """Return the program: the module, or the built archive if a test or `--program` says so."""
    kind = getattr(request, "param", request.config.getoption("--program"))
    home = tmp_path / "home"
    home.mkdir()
    program = request.getfixturevalue("pyz" if kind == "pyz" else "compiled")
    thopters = Thopters(program, home)
    if kind == "pyz":
        thopters.env["XDG_CACHE_HOME"] = str(request.getfixturevalue("pyz_cache"))
    yield thopters
    thopters.end()


@pytest.fixture
def emulator(thopters: Thopters) -> Iterator[Emulator]:
    """Return an emulated platform that `thopters` is set to use."""
    with Emulator() as emulator:
        thopters.use(emulator)
        yield emulator
        broken = [text for text in emulator.journal.oddities if "Traceback" in text]
        assert not broken, "the emulator itself failed:\n" + broken[0]
