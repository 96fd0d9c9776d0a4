"""Fixtures: a sealed environment, the program as a child process, and an emulated platform.

Everything is sealed first: HOME is a temporary folder, PATH holds the system's programs and
nothing of the user's, and no token, proxy or colour setting comes through.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from emulation import SPRITE_PROGRAM, Emulator, write_launcher
from emulation.state import Sprite
from support.configs import GitHub, write
from support.keys import CONFIG
from support.logins import Api, Login
from support.program import ROOT, Thopters
from support.pythons import compiled_by

from thopters import Transport

if TYPE_CHECKING:
    from support.terminals import Start


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
        items.sort(key=lambda item: item.get_closest_marker("long") is None)


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
        failed = session.testsfailed
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        with open(f"{path}.results", "ab") as results:  # a byte for each test, for who watches
            results.write(b"F" if session.testsfailed > failed else b".")
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's settings out of whatever runs inside the test process itself."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("SPRITE", "THOPTERS")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def left_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a Transport of a test's own has kept; a run of the program does that itself."""
    made: list[Transport] = []
    begin = Transport.__init__

    def make(transport: Transport, *args: Any, **options: Any) -> None:
        begin(transport, *args, **options)
        made.append(transport)

    monkeypatch.setattr(Transport, "__init__", make)
    yield
    for transport in made:
        transport.close()


@pytest.fixture(scope="session")
def compiled() -> Path:
    """Return the module as Python keeps it: to compile it anew costs as much as all else."""
    return compiled_by(sys.executable)


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


@pytest.fixture
def start(thopters: Thopters) -> Iterator[Start]:
    """Return a function that starts the program on a terminal."""
    from support.terminals import Session  # which skips where there are no pseudo-terminals

    sessions = []

    def start(*words: str, columns: int = 80, **streams: Any) -> Session:
        sessions.append(Session(thopters, words, columns, **streams))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


@pytest.fixture
def dev(emulator: Emulator) -> Emulator:
    """Return the platform with a sprite that is awake."""
    emulator.add_sprite("dev", status="running")
    return emulator


@pytest.fixture
def sprite(emulator: Emulator) -> Sprite:
    """Return a sprite named dev that has been woken, so that it has its task API too."""
    sprite = emulator.add_sprite("dev")
    while not sprite.enter():
        pass
    return sprite


@pytest.fixture
def github(thopters: Thopters) -> Iterator[GitHub]:
    """Return the stand-in for GitHub that `thopters` is set to ask."""
    github = GitHub()
    thopters.env["THOPTERS_GITHUB_API"] = github.url
    yield github
    github.close()


@pytest.fixture
def path(thopters: Thopters) -> Path:
    """Return where the configuration is kept."""
    return thopters.home / ".sprite-thopters" / "config.json"


@pytest.fixture
def login(thopters: Thopters, tmp_path: Path) -> Iterator[Login]:
    """Return a home where tokens can be stored, with an API that notes which one arrives."""
    api = Api()
    thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    programs = tmp_path / "programs"
    programs.mkdir()
    yield Login(thopters, api, programs)
    api.shutdown()
    thread.join()
    api.server_close()


@pytest.fixture
def login_here(login: Login) -> Login:
    """Return the same for a sweep: the program runs in this process."""
    login.is_here = True
    return login


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home like a fresh Ubuntu's, whose .bashrc ends early for commands."""
    home = tmp_path / "sprite"
    home.mkdir()
    (home / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\nPS1='$ '\n")
    (home / ".profile").write_text('[ -z "$BASH_VERSION" ] || . "$HOME/.bashrc"\n')
    return home


@pytest.fixture
def config(thopters: Thopters) -> Path:
    """Return a configuration with every kind of key."""
    path = thopters.home / ".sprite-thopters" / "config.json"
    write(path, CONFIG)
    return path


@pytest.fixture
def console(thopters: Thopters) -> None:
    """Put the stand-in for the `sprite` program into PATH."""
    folder = thopters.home / "programs"
    write_launcher(folder, "sprite", SPRITE_PROGRAM)
    thopters.env["PATH"] = f"{folder}{os.pathsep}{thopters.env['PATH']}"
