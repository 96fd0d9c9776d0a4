"""Everything that speaks ssh speaks to a sprite: OpenSSH's own programs are the judge.

One sprite that is set up serves all tests that leave it as it is (`station`); what changes a set-up
has one of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulation import Emulator, Fault
from emulation.state import Sprite
from support.certificates import OPENSSL, Authority
from support.ports import free_ports
from support.program import MODULE, Thopters
from support.runs import run_here
from support.servers import ConnectProxy, TlsRelay
from support.ssh import SSHD, Host, descendants, listening, needs_ssh, needs_user
from support.terminals import Tty
from support.waiting import until

import thopters as program

pytestmark = [needs_ssh, needs_user]

INCLUDE = re.compile(r"Include (\S+/\.ssh/thopters/config)\n")


@pytest.fixture(scope="module", autouse=True)
def untouched() -> Iterator[None]:
    """See that nothing of all this reaches the account's own configuration of ssh."""
    folder = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"

    def state() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))
                if path.exists()}  # fmt: skip

    before = state()
    yield
    assert state() == before


@pytest.fixture(scope="module")
def station(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Return a sprite that is set up for ssh, for all tests that leave it so."""
    thopters = Thopters(compiled, tmp_path_factory.mktemp("station"))
    with Emulator() as emulator:
        emulator.add_sprite("dev", status="running")
        thopters.use(emulator)
        yield Host(thopters, emulator)
        thopters.end()
        assert not [text for text in emulator.journal.oddities if "Traceback" in text]


@pytest.fixture
def host(thopters: Thopters, dev: Emulator) -> Host:
    """Return a sprite that is set up for ssh, for one test alone."""
    return Host(thopters, dev)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# setting up


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return each file's mode, time and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode & 0o777, path.stat().st_mtime_ns,
                                        path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }  # fmt: skip


def ssh_says(thopters: Thopters, name: str, config: Path) -> list[str]:
    """Return what ssh makes of its configuration for a host."""
    done = subprocess.run(
        ["ssh", "-F", str(config), "-G", name], capture_output=True, text=True, env=thopters.env
    )
    assert done.returncode == 0, done
    return done.stdout.splitlines()


USER_CONFIG = """\
# mine, with a tab and no end of its last line
Host *
\tServerAliveInterval 30
  ForwardAgent yes
  ForwardX11 yes
  StrictHostKeyChecking no
Host git*
  User git"""


def test_a_setup_outlives_the_removal_of_what_was_the_last_host(
    host: Host, thopters: Thopters, dev: Emulator
) -> None:
    """The removal takes our own key away, after that one's public half went into the sprite."""
    other = dev.add_sprite("other", status="running")
    wait = "echo locked; until [ -e ~/go ]; do sleep 0.05; done"
    take = f"mkdir -p ~/.thopters/ssh && exec flock ~/.thopters/ssh/lock sh -c '{wait}'"
    holder = thopters.start("exec", "other", "--", "sh", "-c", take)
    assert holder.stdout and holder.stdout.readline() == b"locked\n"
    process = thopters.start("ssh", "--setup", "other", "--yes")
    seen = ["pgrep", "-f", "^flock -w 20 7"]
    until(lambda: not subprocess.run(seen, stdout=subprocess.DEVNULL).returncode, "it waits")
    assert thopters("ssh", "--remove", "dev").code == 0
    (other.home / "go").touch()
    holder.communicate(timeout=60)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    done = thopters("ssh", "other", "echo", "works")
    assert (done.code, done.out) == (0, "works\n"), done


def test_setup_makes_hosts_and_remove_leaves_all_as_it_was(
    thopters: Thopters, dev: Emulator
) -> None:
    dev.add_sprite("other", status="running")
    folder = thopters.home / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "config").write_text(USER_CONFIG)
    (folder / "config").chmod(0o640)
    others = ("dev.example", "dev", "github.com", "x.sprite")
    before = {name: ssh_says(thopters, name, folder / "config") for name in others}

    done = thopters("ssh", "--setup", "dev")
    assert (done.code, done.out) == (2, "") and "--yes" in done.err, done
    assert thopters("ssh", "dev", "true").code == 2  # nor does this, unasked
    assert not len(dev.journal) and (folder / "config").read_text() == USER_CONFIG

    done = thopters("ssh", "--yes", "--setup", "dev", "other")
    assert done.code == 0, done
    assert done.out.splitlines() == [
        f"{name} is set up for ssh: ssh {name}.sprite" for name in ("dev", "other")
    ]
    include = INCLUDE.search(done.err)
    assert include and include[1] == str(folder / "thopters" / "config")
    assert "HOME is not your account's home" in done.err
    assert (folder / "config").read_text() == include[0] + USER_CONFIG
    assert (folder / "config").stat().st_mode & 0o777 == 0o640
    for path in ("config", "known_hosts"):
        assert (folder / "thopters" / path).stat().st_mode & 0o777 == 0o600
    there = dev.sprite("dev").home / ".thopters" / "ssh"
    assert there.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in there.iterdir()} == {0o600}
    assert before == {name: ssh_says(thopters, name, folder / "config") for name in others}
    said = dict(line.split(" ", 1) for line in ssh_says(thopters, "dev.sprite", folder / "config"))
    identity = dev.sprite("dev").id[-36:]
    assert said["hostname"] == "dev.sprite" and said["user"] == "sprite"
    assert said["stricthostkeychecking"] == "true" and said["identitiesonly"] == "yes"
    assert said["forwardagent"] == said["forwardx11"] == "no"
    assert said["serveraliveinterval"] == "0" and said["connecttimeout"] == "120"
    assert said["hostkeyalias"] == f"dev.sprite-{identity}"
    words = shlex.split(said["proxycommand"])
    assert all(map(os.path.isabs, words[:2])) and words[2:5] == ["ssh", "--stdio", "dev"]
    assert words[5:] == ["--api", dev.url, "--org", "acme", "--id", dev.sprite("dev").id]

    states = tree(folder), tree(there)
    done = thopters("ssh", "--setup", "dev", "other")  # nothing is left to ask for
    assert done.code == 0 and "is set up for ssh already" in done.out, done
    assert (tree(folder), tree(there)) == states
    printed = thopters("ssh", "--config", "dev")
    assert printed.code == 0 and printed.out.strip() in (folder / "thopters/config").read_text()
    assert (tree(folder), tree(there)) == states

    done = thopters("ssh", "--remove", "dev")
    assert done.code == 0 and not there.exists(), done
    assert "dev.sprite" not in (folder / "thopters" / "config").read_text()
    assert include[0] in (folder / "config").read_text()
    dev.account.remove("other")  # with the last one all goes, though the sprite is gone
    assert thopters("ssh", "--remove", "other").code == 0
    assert os.listdir(folder) == ["config"] and (folder / "config").read_text() == USER_CONFIG
    assert not list((thopters.home / ".sprite-thopters").glob("*ed25519*"))


def test_ssh_asks_and_then_sets_up(thopters: Thopters, dev: Emulator) -> None:
    for answer, code in (("n\r", 2), ("y\r", 7)):
        with Tty(thopters, "ssh", "dev", "exit 7") as terminal:
            terminal.expect(f"gets one line at its top: Include {thopters.home}")
            terminal.expect("dev is not set up for ssh. Set it up? [y/N]")
            terminal.type(answer)
            assert terminal.end() == code, terminal.output
    assert thopters("ssh", "dev", "exit", "3").code == 3


def test_a_key_of_the_users_own(thopters: Thopters, dev: Emulator) -> None:
    """Its comment stays here, a key of another's in the sprite stays there, a changed one goes."""
    key = thopters.home / "my key"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@home"]
    subprocess.run([*words, "-f", str(key)], check=True, stdin=subprocess.DEVNULL)
    host = Host(thopters, dev)
    keys = host.sprite.home / ".thopters" / "ssh" / "authorized_keys"
    own = keys.read_text()
    keys.write_text("ssh-ed25519 AAAA a-team-mate\n" + own)
    assert thopters("ssh", "--setup", "dev", "--key", "my key").code == 0
    public = " ".join((thopters.home / "my key.pub").read_text().split()[:2])
    assert re.fullmatch(
        rf"ssh-ed25519 AAAA a-team-mate\n{re.escape(public)} thopters-\w+\n", keys.read_text()
    )
    assert host.ssh("echo there").out == "there\n"
    key.unlink()
    (thopters.home / "my key.pub").unlink()
    subprocess.run([*words, "-f", str(key)], check=True, stdin=subprocess.DEVNULL)
    assert host.ssh("true", options=["-o", "BatchMode=yes"]).code == 0  # a start renews it
    key.unlink()
    (thopters.home / "my key.pub").unlink()
    subprocess.run([*words, "-f", str(key)], check=True, stdin=subprocess.DEVNULL)
    assert thopters("init", "dev").code == 0  # and so does this
    public = " ".join((thopters.home / "my key.pub").read_text().split()[:2])
    assert public in keys.read_text() and len(keys.read_text().splitlines()) == 2
    assert thopters("ssh", "--remove", "dev").code == 0
    assert keys.read_text() == "ssh-ed25519 AAAA a-team-mate\n" and key.exists()


@pytest.mark.parametrize("thopters", ["pyz"], indirect=True)
def test_a_block_calls_the_archive(thopters: Thopters, dev: Emulator) -> None:
    host = Host(thopters, dev)
    assert f"'{thopters.argv[1]}' 'ssh' '--stdio'" in thopters("ssh", "--config", "dev").out
    assert thopters.argv[1].endswith("/thopters.pyz")
    assert host.ssh("echo there").out == "there\n"


# everyday use


def test_commands_have_their_status_and_their_bytes(station: Host) -> None:
    for code in (0, 1, 2, 7, 126, 127, 128, 254):
        assert station.ssh(f"exit {code}", code=code).err == ""
    done = station.ssh("echo out; echo err >&2; id -un; kill -TERM $$", code=255)
    assert (done.out, done.err) == ("out\nsprite\n", "err\n")
    data = noise(3_000_000)
    assert station.ssh("cat", input=data).out_bytes == data
    assert station.ssh("sha256sum", input=data).out.split()[0] == digest(data)
    text = "x" * 120_000
    assert station.ssh(f"printf %s {text} | wc -c").out.strip() == "120000"
    done = station.thopters("ssh", "dev", "-T", "echo", "'a  b'", "c;", "sh -c 'exit 5'", "--json")
    assert (done.code, done.out) == (5, "a  b c\n")  # ssh joins its words by blanks
    there = station.sprite.machine.home_inside
    path = station.ssh("echo $PATH; pwd; echo $HOME").out.splitlines()
    seen = station.thopters("exec", "dev", "--", "sh", "-c", "echo $PATH").out.strip()
    assert path == [seen, there, there]


@pytest.mark.parametrize("protocol", [[], ["-O"]], ids=["sftp", "scp"])
def test_scp_goes_both_ways(station: Host, protocol: list[str]) -> None:
    home = station.thopters.home
    data = noise(2_000_000, len(protocol))
    (home / "up").write_bytes(data)
    argv = ["scp", "-q", "-F", str(station.config), *protocol]
    station.run([*argv, "up", f"{station.name}:arrived"])
    assert (station.sprite.home / "arrived").read_bytes() == data
    station.run([*argv, f"{station.name}:arrived", "back"])
    assert (home / "back").read_bytes() == data


def test_sftp_and_rsync(station: Host) -> None:
    home = station.thopters.home
    (home / "source").mkdir()
    for number in range(40):
        (home / "source" / f"f {number}").write_bytes(noise(number * 100, number))
    (home / "source" / "link").symlink_to("f 1")
    batch = b"mkdir sftp\nput source/* sftp/\nls -1 sftp\nget sftp/f*7 seven\nrm sftp/f*\n"
    (home / "seven").mkdir()
    done = station.run(["sftp", "-q", "-F", str(station.config), "-b", "-", station.name],
                       input=batch)  # fmt: skip
    assert "f 12" in done.out and (home / "seven" / "f 17").read_bytes() == noise(1700, 17)
    if not shutil.which("rsync"):
        pytest.skip("rsync is not installed")
    argv = ["rsync", "-a", "--delete", "-e", station.shell]
    station.run([*argv, "source/", f"{station.name}:tree/"])
    assert station.run([*argv, "-ni", "source/", f"{station.name}:tree/"]).out == ""
    station.run([*argv, f"{station.name}:tree/", "again"])
    assert tree(home / "again") == tree(home / "source")


def test_git_over_ssh(station: Host) -> None:
    env = {"GIT_SSH_COMMAND": station.shell, "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")}  # fmt: skip
    station.ssh("git init -q --bare -b main repo.git")
    for words in (
        ["clone", "-q", f"{station.name}:repo.git", "work"],
        ["-C", "work", "checkout", "-qb", "main"],
        ["-C", "work", "commit", "-q", "--allow-empty", "-m", "first"],
        ["-C", "work", "push", "-q", "origin", "main"],
        ["clone", "-q", f"{station.name}:repo.git", "other"],
        ["-C", "work", "commit", "-q", "--allow-empty", "-m", "second"],
        ["-C", "work", "push", "-q", "origin", "main"],
        ["-C", "other", "fetch", "-q"],
    ):
        station.run(["git", *words], env=env)
    heads = {
        station.run(["git", "-C", *words], env=env).out
        for words in (["work", "rev-parse", "HEAD"], ["other", "rev-parse", "origin/main"])
    }
    assert len(heads) == 1


# forwarding


@contextlib.contextmanager
def answering(text: bytes, path: str = "") -> Iterator[int]:
    """Serve a text on a port of the loopback address, or at the path of a socket."""
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    listener.bind(path or ("127.0.0.1", 0))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    sock.sendall(text)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield 0 if path else listener.getsockname()[1]
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def hear(port: int | str) -> bytes:
    """Return what a server says on a local port, or at a socket's path."""
    with contextlib.closing(socket.socket(socket.AF_UNIX if isinstance(port, str)
                                          else socket.AF_INET)) as sock:  # fmt: skip
        sock.settimeout(30)
        sock.connect(port if isinstance(port, str) else ("127.0.0.1", port))
        parts = iter(lambda: sock.recv(100), b"")
        return b"".join(parts)


SAY = """python3 -c 'import socket, sys
sock = socket.socket()
sock.connect(("127.0.0.1", int(sys.argv[1])))
print(sock.recv(100).decode())' """


def test_ports_and_sockets_are_forwarded_both_ways(station: Host) -> None:
    """And nothing listens but what ssh was asked to: not before, not meanwhile, not behind."""

    def pids() -> set[int]:
        return station.sprite.machine.processes() | descendants(os.getpid())

    assert not listening(pids())
    local, socks, remote = free_ports(3)
    path = str(station.thopters.home / "forwarded")
    station.ssh("true")
    assert not listening(pids())
    with answering(b"a text") as port, station.master() as shared:
        assert not listening(pids())
        options = [
            "-L", f"{local}:127.0.0.1:{port}", "-R", f"127.0.0.1:{remote}:127.0.0.1:{port}",
            "-D", str(socks), "-L", f"{path}:127.0.0.1:{port}", "-L", f"{path}2:/.sprite/api.sock",
        ]  # fmt: skip
        station.ssh(options=[*shared, *options, "-O", "forward"])
        assert hear(local) == hear(path) == b"a text"
        assert station.ssh(SAY + str(remote), options=shared).out == "a text\n"
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.connect(f"{path}2")
            sock.sendall(b"GET /v1/tasks HTTP/1.1\r\nHost: sprite\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"
        with socket.create_connection(("127.0.0.1", socks)) as sock:
            sock.sendall(b"\5\1\0")
            assert sock.recv(2) == b"\5\0"
            sock.sendall(b"\5\1\0\1\x7f\0\0\1" + port.to_bytes(2, "big"))
            assert sock.recv(10)[:2] == b"\5\0" and sock.recv(100) == b"a text"
        inside = {address.rpartition(":")[2] for address in
                  listening(station.sprite.machine.processes())}  # fmt: skip
        assert inside == {f"{remote:04X}"}
    until(lambda: not listening(pids()), "nothing listens")


def test_an_agent_goes_along_by_wish_alone(station: Host) -> None:
    if not shutil.which("ssh-agent"):
        pytest.skip("there is no ssh-agent here")
    path = station.thopters.home / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    station.thopters.started.append(agent)
    until(path.exists, "the agent is there")
    env = {"SSH_AUTH_SOCK": str(path)}
    key = station.thopters.home / ".sprite-thopters" / "thopters_ed25519"
    station.run(["ssh-add", "-q", str(key)], env=env)
    assert station.ssh("ssh-add -l", options=["-A"], env=env).out.count("ED25519") == 1
    assert station.ssh("echo $SSH_AUTH_SOCK$DISPLAY", env=env | {"DISPLAY": ":7"}).out == "\n"


def test_many_share_a_connection(station: Host) -> None:
    """More than the ten that OpenSSH allows unless it is told otherwise, all at once."""
    with station.master() as shared:
        before = len(station.emulator.journal.requests("WS"))
        line = "read line; echo $line; exit 3"
        started = [station.start(line, options=shared, stdin=subprocess.PIPE) for _ in range(20)]
        for number, process in enumerate(started):
            out, err = process.communicate(f"{number}\n".encode(), timeout=60)
            assert (process.returncode, out, err) == (3, f"{number}\n".encode(), b"")
        assert len(station.emulator.journal.requests("WS")) == before


# a terminal, and the ways of programs


def test_a_terminal_has_its_size_and_a_device(station: Host) -> None:
    with Tty(station.thopters, "ssh", "dev", "-t", "bash --norc") as terminal:
        terminal.type("PS1='$ '; stty size; tty\r")
        terminal.expect("24 80\r\n/dev/pts/")
        terminal.resize(100, 30)
        terminal.type("until [ \"$(stty size)\" = '30 100' ]; do sleep 0.1; done; echo re''sized\r")
        terminal.expect("resized")
        terminal.type("sleep 600\r")
        until(lambda: any(b"sleep\x00600" in line for line in lines_of(station)), "it sleeps")
        terminal.type("\x03")
        terminal.type("echo st''ill; exit 9\r")
        terminal.expect("still")
        assert terminal.end_restored() == 9


def lines_of(host: Host) -> list[bytes]:
    """Return the command lines of what runs in a sprite."""
    lines = []
    for pid in host.sprite.machine.processes():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return lines


def test_an_interrupt_ends_ssh_and_all_of_ours(station: Host) -> None:
    """At a terminal ^C is for ssh; what joins it to the sprite ends with it, and so does sshd."""
    until(lambda: not lines_of(station), "what was before has ended")
    with Tty(station.thopters, "ssh", "dev", "echo up; cat") as terminal:
        terminal.expect("up")
        terminal.type("\x03")
        assert terminal.end() == 255  # as ssh does
        assert terminal.output == b"up\r\n^C"
    until(lambda: not lines_of(station), "all has ended")


def test_an_editor_starts_its_server(station: Host) -> None:
    """As VS Code does: a shell without a terminal reads a script, while a port is forwarded."""
    [port] = free_ports(1)
    script = b"echo started: $(uname -s); " + b"# a long script\n" * 5000 + b"cat <<'END'\nx\nEND\n"
    done = station.ssh("bash", options=["-T", "-D", str(port)], input=script)
    assert done.out == "started: Linux\nx\n"


# what ends a connection, and what is in its way


def quicken(thopters: Thopters, **limits_s: float) -> None:
    """Have the program run with other limits, those that a block starts as well."""
    path = thopters.home / "quick.py"
    values = "\n".join(f"thopters.{name} = {value}" for name, value in limits_s.items())
    assert all(hasattr(program, name) for name in limits_s)
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(MODULE.parent)!r})\nimport thopters\n{values}\n"
        "thopters.leave(thopters.main())\n"
    )
    thopters.argv = [sys.executable, str(path)]


QUICK_HOLD = {"HOLD_FIRST_S": 0.1, "HOLD_EVERY_S": 0.4, "HOLD_EXPIRY_S": 4}
TRICKLE = "while :; do head -c 3000 /dev/zero; sleep 0.1; done"


@pytest.mark.long
def test_an_idle_connection_is_let_go_and_a_busy_one_is_not(
    thopters: Thopters, dev: Emulator
) -> None:
    """An editor's pings, twelve in a minute, are no work.

    Meanwhile the sprite is held, as it would fall asleep else.
    """
    quicken(thopters, SSH_MINUTE_S=12.0, SSH_IDLE_S=2.0, SSH_MAX_S=20.0, **QUICK_HOLD)
    host = Host(thopters, dev)
    dev.idle_s = 1.0
    idle = [
        host.start("sleep 60"),
        host.start("sleep 60", options=["-o", "ServerAliveInterval=1"]),
    ]
    lasting = [
        host.start(TRICKLE, stdout=subprocess.DEVNULL),
        thopters.start("ssh", "--hold", "dev", "sleep 60"),
    ]
    closed = "thopters: error: the connection to dev was closed, so that dev can sleep: "
    for process in idle:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 255
        why = "less than 4 KB a minute went through it for 2 seconds"
        hint = "--idle TIME and --hold keep it for longer"
        assert err.decode().splitlines()[0] == f"{closed}{why}; {hint}", err
    assert [process.poll() for process in lasting] == [None, None]
    for process in lasting:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 255
        assert err.decode().startswith(f"{closed}it was open for 20 seconds"), err
    sprite = dev.sprite("dev")
    assert not dev.journal.oddities
    until(lambda: not sprite.live_tasks(), "nothing holds it")
    until(lambda: sprite.status == "warm", "it sleeps")


def test_a_quiet_connection_outlives_idle_windows(thopters: Thopters, dev: Emulator) -> None:
    quicken(thopters, **QUICK_HOLD)
    host = Host(thopters, dev)
    process = host.start("until [ -e go ]; do sleep 0.1; done; exit 42")
    sprite = dev.sprite("dev")
    until(lambda: sprite.live_tasks(), "it is held")
    [(name, task)] = sprite.tasks.items()
    end, dev.idle_s = 2 * task["expires_at"] - task["started_at"], 0.5
    until(lambda: sprite.tasks[name]["expires_at"] > end or sprite.status != "running", "held on")
    assert sprite.status == "running"
    (sprite.home / "go").touch()
    assert process.wait(60) == 42


def test_a_laptop_that_is_shut_holds_nothing(thopters: Thopters, dev: Emulator) -> None:
    """Its end of the connection stands still, and the platform need not notice."""
    quicken(thopters, **QUICK_HOLD)
    host = Host(thopters, dev)
    process = host.start("sleep 60")
    sprite = dev.sprite("dev")
    until(lambda: sprite.live_tasks(), "it is held")
    stopped = descendants(process.pid)
    assert len(stopped) == 1
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    until(lambda: not sprite.live_tasks(), "the hold has expired")
    assert [line for line in lines_of(host) if b"sshd" in line]
    dev.idle_s = 0.5
    until(lambda: sprite.status == "warm", "it sleeps")
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert process.wait(60) == 255


def test_a_pause_ends_it_with_its_reason_and_the_next_one_wakes(host: Host) -> None:
    process = host.start("echo up; sleep 60")
    assert process.stdout.readline() == b"up\n"
    host.sprite.pause()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (255, b"")
    first = err.decode().splitlines()[0]
    assert first == "thopters: error: the connection to dev was lost: dev has paused"
    assert host.ssh("echo woken").out == "woken\n"


def test_a_sprite_that_was_made_anew_is_not_taken_for_the_old(host: Host) -> None:
    known = host.folder / "thopters" / "known_hosts"
    old = known.read_text()
    host.emulator.account.remove("dev")
    host.emulator.add_sprite("dev", status="running")
    host.emulator.journal.clear()
    done = host.ssh("touch reached", code=255)
    lines = [line for line in done.err.splitlines() if "thopters" in line]
    assert len(lines) == 1 and "dev was destroyed and made again" in lines[0], done
    assert "thopters ssh --setup dev" in lines[0] and "host key is not accepted" in lines[0]
    assert {request.method for request in host.emulator.journal} == {"GET"}
    assert host.thopters("init", "dev").code == 0  # which puts no key of ssh's into another one
    assert not (host.sprite.home / ".thopters" / "ssh").exists()
    assert host.thopters("ssh", "--setup", "dev").code == 0
    assert known.read_text() != old and len(known.read_text().splitlines()) == 1
    assert host.ssh("echo new").out == "new\n"
    assert host.thopters("destroy", "dev", "--yes").code == 0
    assert not host.config.exists() and not known.exists()


def test_after_a_restore_the_next_connection_sets_up_again(
    thopters: Thopters, dev: Emulator
) -> None:
    dev.personality.restore_delay_s = 0.05
    dev.sprite("dev").add_checkpoint("without")
    host = Host(thopters, dev)
    before = host.thopters("ssh", "--config", "dev").out
    dev.sprite("dev").add_checkpoint("with")
    data = noise(300_000)
    said = "dev lacked its ssh server's files, as after a restore; they were put in again"
    for checkpoint, is_renewed in (("v1", True), ("v2", True), ("v2", False)):
        assert thopters("restore", "dev", checkpoint, "--yes", "--no-backup").code == 0
        done = host.ssh("cat", input=data)
        assert done.out_bytes == data and (said in done.err) == is_renewed, done.err
        assert len(done.err.splitlines()) == is_renewed
    assert host.thopters("ssh", "--config", "dev").out == before
    shutil.rmtree(dev.sprite("dev").home / ".thopters")
    started = [
        host.start("echo there") for _ in range(4)
    ]  # at once, and none gets in another's way
    for process in started:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, b"there\n"), err


def test_a_program_that_has_moved_is_noticed(thopters: Thopters, dev: Emulator) -> None:
    old, new = thopters.home / "old place" / "thopters.pyc", thopters.home / "new.pyc"
    old.parent.mkdir()
    shutil.copy(thopters.argv[1], old)
    thopters.argv[1] = str(old)
    host = Host(thopters, dev)
    assert host.ssh("echo works").out == "works\n"
    old.rename(new)
    thopters.argv[1] = str(new)
    host.ssh("true", code=255)
    done = thopters("ssh", "dev", "echo works")
    assert (done.code, done.out) == (0, "works\n")
    assert f"called {old}, which is not there any more" in done.err
    assert host.ssh("echo works").out == "works\n"
    assert thopters("ssh", "dev", "true").err == ""


def test_what_only_a_shell_has_set_is_named(
    thopters: Thopters, dev: Emulator, tmp_path: Path
) -> None:
    """A token, a proxy, certificates: each where a connection does not work without it."""
    done = thopters("ssh", "--setup", "dev", "--yes")
    assert done.code == 0 and "a connection to dev.sprite needs SPRITE_TOKEN\n" in done.err, done
    token = thopters.env.pop("SPRITE_TOKEN")

    def log_in(url: str) -> None:
        store = thopters.home / ".sprites" / "sprites.json"
        store.parent.mkdir(exist_ok=True)
        org = {"api_token": token, "use_keyring": False}
        store.write_text(json.dumps({"version": "1", "urls": {url: {"orgs": {"acme": org}}},
                                     "disable_keyring": True}))  # fmt: skip
        store.chmod(0o600)

    log_in(dev.url)
    thopters.env["NO_PROXY"] = "*"  # is set, and changes nothing
    done = thopters("ssh", "--setup", "dev")
    assert done.code == 0 and "needs" not in done.err, done
    bare = {"HOME": str(thopters.home)}
    argv = ["ssh", "-F", str(thopters.home / ".ssh" / "config"), "dev.sprite", "echo bare"]
    ran = subprocess.run(argv, env=bare, capture_output=True, timeout=60, cwd="/")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"bare\n", b"")
    if not OPENSSL:
        pytest.skip("openssl is not here")
    authority = Authority(tmp_path / "authority")
    certificate = authority.issue("server")
    with (
        TlsRelay(int(dev.url.rpartition(":")[2]), certificate) as relay,
        ConnectProxy(relay.port) as proxy,
    ):
        del thopters.env["NO_PROXY"]
        thopters.env |= {
            "SPRITES_API_URL": "https://api.test",
            "HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}",
            "THOPTERS_CA_BUNDLE": str(authority.certificate),
        }
        log_in("https://api.test")
        done = thopters("ssh", "--setup", "dev", timeout=240)
        assert done.code == 0, done
        assert "a connection to dev.sprite needs HTTPS_PROXY, THOPTERS_CA_BUNDLE\n" in done.err
        data = noise(400_000)
        through = thopters("ssh", "dev", "cat", stdin=data)
        assert through.out_bytes == data and len(proxy.seen) > 800_000


def test_what_can_not_be_is_said_in_a_line_of_ours(station: Host, tmp_path: Path) -> None:
    thopters = station.thopters

    def fails(*words: str, code: int, **env: str) -> str:
        done = thopters("ssh", *words, env=env)
        assert (done.code, done.out) == (code, ""), done
        return done.err

    def one_line(err: str) -> str:
        assert err.startswith("thopters: error: ") and err.count("\n") == 1, err
        return err

    assert "no token" in one_line(fails("--stdio", "dev", code=255, SPRITE_TOKEN=""))
    assert "not set up" in one_line(fails("--stdio", "other", code=255))
    other = ["--stdio", "dev", "--id", "sprite-" + "1" * 36]
    assert "made again" in one_line(fails(*other, code=255))
    gone = ["--stdio", "dev", "--api", "http://127.0.0.1:9"]
    assert "127.0.0.1" in one_line(fails(*gone, code=255))
    assert "ssh is not installed here" in fails("dev", code=255, PATH=str(tmp_path))
    assert "ssh is not installed here" in fails("--setup", "dev", code=1, PATH=str(tmp_path))
    assert "there is no sprite nosuch" in fails("--setup", "nosuch", "--yes", code=3)
    for words in (
        ["dev", "--setup"], ["dev", "--hold", "x"], ["--key", "k", "--remove", "dev"],
        ["-x", "dev"],
        ["--setup", "--config", "dev"], ["--idle", "1h", "--hold", "dev"], ["--idle", "x", "dev"],
        ["--id", "1", "dev"], ["--stdio", "a", "b"], ["--setup", "Dev"], ["Dev"], [], ["--setup"],
        ["--hold", "--config", "dev"], ["--setup", "a@b", "dev"],
    ):  # fmt: skip
        done = run_here(["ssh", *words], thopters.env)
        assert done.code == 2 and "thopters: error: " in done.err, done
    assert thopters("ssh", "--config", "dev").code == 0
    assert "option" in station.run([*thopters.argv, "ssh", "dev", "-%"], code=255).err  # is ssh's
    fault = station.emulator.fault(Fault("WS *", "status", status=403, body=b"no", times=None))
    assert "WebSocket" in one_line(fails("--stdio", "dev", code=255))
    fault.times = 0


def test_no_process_has_a_key_or_a_token_on_its_command_line(station: Host) -> None:
    process = station.start("echo up; cat", stdin=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    key = (station.thopters.home / ".sprite-thopters" / "thopters_ed25519").read_bytes()
    inside = (station.sprite.home / ".thopters" / "ssh" / "host_key").read_bytes()
    secrets = [station.emulator.token.encode(), *key.splitlines()[1:-1], *inside.splitlines()[1:-1]]
    seen = lines_of(station)
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            seen.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    assert len([line for line in seen if b"--stdio" in line]) >= 1
    assert len([line for line in seen if b"sshd" in line]) >= 1
    assert not [line for line in seen for secret in secrets if secret in line]
    process.communicate(timeout=60)


# a sprite without an ssh server

needs_apt = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "dpkg-deb"))), reason="there is no apt-get here"
)


def put_over(sprite: Sprite, place: str, source: Path) -> None:
    """Have a sprite see a file or folder of its home in another place, too."""
    sprite.machine.own(source)
    inside = Path(sprite.machine.home_inside) / source.relative_to(sprite.home)
    enter = ["nsenter", "--target", str(sprite.machine._start_holder()), "--mount", "--root"]
    subprocess.run([*enter, "mount", "--bind", str(inside), place], check=True)


@pytest.fixture
def bare(dev: Emulator) -> Sprite:
    """Return a sprite that has no ssh server, and whose packages come from a folder of its own."""
    assert SSHD
    sprite = dev.sprite("dev")
    package = sprite.home / "package"
    (package / "usr" / "sbin").mkdir(parents=True)
    shutil.copy(SSHD, package / "usr" / "sbin" / "sshd")
    (package / "DEBIAN").mkdir()
    control = "Package: openssh-server\nVersion: 1:9.9-1\nArchitecture: all\n"
    control += "Maintainer: nobody\nDescription: a test's\n"
    (package / "DEBIAN" / "control").write_text(control)
    (package / "DEBIAN" / "postinst").write_text("#!/bin/sh\ntouch /home/sprite/was-run\n")
    (package / "DEBIAN" / "postinst").chmod(0o755)
    places = sprite.home / "places"
    places.mkdir()
    deb = places / "openssh-server_9.9_all.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", package, deb],
        check=True,
        capture_output=True,
    )
    data = deb.read_bytes()
    listed = f"Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {digest(data)}\n"
    (places / "Packages").write_text(control + listed)
    apt = sprite.home / "apt"
    apt.mkdir()
    (apt / "sources.list").write_text(
        f"deb [trusted=yes] copy:{sprite.machine.home_inside}/places ./\n"
    )
    (sprite.home / "nothing").touch()
    (sprite.home / "etc").mkdir()
    (sprite.home / "etc" / "sshd_config").write_text("This is none\n")
    put_over(sprite, "/etc/ssh", sprite.home / "etc")  # of which nothing is read
    put_over(sprite, "/etc/apt", apt)
    put_over(sprite, "/var/lib/dpkg/status", sprite.home / "nothing")
    put_over(sprite, SSHD, sprite.home / "nothing")
    return sprite


@needs_apt
def test_a_server_that_is_missing_is_fetched_and_nothing_is_installed(
    thopters: Thopters, bare: Sprite
) -> None:
    done = thopters("ssh", "--setup", "dev", "--yes", timeout=240)
    assert done.code == 0, done
    fetched = re.findall(r"dev fetches openssh-server \((\d\.\d) MB\)\n", done.err)
    assert len(fetched) == 1 and float(fetched[0]) > 0, done
    assert re.search(
        r"fetched into ~/.thopters/ssh in \d+\.\d s; nothing was installed\n", done.err
    )
    place = bare.home / ".thopters" / "ssh"
    assert (place / "root" / "usr" / "sbin" / "sshd").stat().st_mode & 0o111
    assert not (bare.home / "was-run").exists() and not (place / "fetching").exists()
    done = thopters("ssh", "dev", "echo $PPID; tr '\\0' ' ' < /proc/$PPID/cmdline; exit 5")
    assert done.code == 5 and "sshd" in done.out, done
    done = thopters("ssh", "--setup", "dev")
    assert done.code == 0 and "fetches" not in done.err and "already" in done.out
    [port] = free_ports(1)
    server = f"python3 -m http.server {port} --bind 127.0.0.1 > /dev/null 2>&1"
    wait = f"until grep -q :{port:04X} /proc/net/tcp; do sleep 0.1; done"
    hook = f'APT::Update::Pre-Invoke {{ "{server} & {wait}"; }};\n'
    (bare.home / "apt" / "apt.conf").write_text(hook)
    shutil.rmtree(place)  # as a restore does; the connection fetches it again
    done = thopters("ssh", "dev", "echo back")
    assert (done.code, done.out) == (0, "back\n") and "dev fetches openssh-server" in done.err
    told = rf"something has begun to listen in dev meanwhile, at port [\d, ]*\b{port}\b"
    assert re.search(told, done.err)  # others on this machine may have begun, too
    assert len(listening(bare.machine.processes())) == 1
    assert thopters("ssh", "--remove", "dev").code == 0 and not place.exists()


@needs_apt
@pytest.mark.parametrize("lacking", ["a package", "a network", "apt-get", "leave to write"])
def test_a_server_that_can_not_be_fetched_is_an_error_with_the_reason(
    thopters: Thopters, bare: Sprite, lacking: str
) -> None:
    why = {
        "a package": "Unable to locate package openssh-server",
        "a network": "W: Failed to fetch http://127.0.0.1:9/",
        "apt-get": "there is no apt-get to fetch it with",
        "leave to write": "cannot create directory",
    }[lacking]
    if lacking == "a package":
        (bare.home / "places" / "Packages").write_text("")
    elif lacking == "a network":
        (bare.home / "apt" / "sources.list").write_text("deb http://127.0.0.1:9/ stable main\n")
    elif lacking == "apt-get":
        put_over(bare, str(shutil.which("apt-get")), bare.home / "nothing")
    else:
        (bare.home / ".thopters").touch()
    done = thopters("ssh", "--setup", "dev", "--yes", timeout=240)
    assert (done.code, done.out) == (1, ""), done
    error = re.findall(r"(?m)^thopters: error: (.*)", done.err)
    assert len(error) == 1 and error[0].startswith("dev cannot ") and why in error[0], done
    assert not (thopters.home / ".ssh" / "config").exists()


# full figures


@pytest.mark.slow
def test_every_exit_status(station: Host) -> None:
    with station.master() as shared:
        for code in range(256):
            station.ssh(f"exit {code}", options=shared, code=code)
    for code in (*range(8), 126, 127, 130, 200, 254):
        station.ssh(f"exit {code}", code=code)


@pytest.mark.slow
def test_fifty_megabytes_each_way(station: Host) -> None:
    data = noise(50_000_000, 50)
    assert station.ssh("sha256sum", input=data).out.split()[0] == digest(data)
    assert station.ssh("cat", input=data).out_bytes == data
    (station.thopters.home / "large").write_bytes(data)
    for protocol in ([], ["-O"]):
        argv = ["scp", "-q", "-F", str(station.config), *protocol]
        station.run([*argv, "large", f"{station.name}:large"])
        station.run([*argv, f"{station.name}:large", "again"])
        assert digest((station.thopters.home / "again").read_bytes()) == digest(data)
        (station.thopters.home / "again").unlink()


@pytest.mark.slow
def test_rsync_of_two_thousand_files(station: Host) -> None:
    if not shutil.which("rsync"):
        pytest.skip("rsync is not installed")
    source = station.thopters.home / "many"
    for number in range(2000):
        path = source / f"d{number % 37}" / f"größe {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(number % 5000, number))
    argv = ["rsync", "-a", "-e", station.shell]
    station.run([*argv, "many/", f"{station.name}:many/"])
    for options in (["-ni"], ["-nic"]):
        assert station.run([*argv, *options, "many/", f"{station.name}:many/"]).out == ""
    station.run([*argv, f"{station.name}:many/", "back"])
    assert tree(station.thopters.home / "back") == tree(source)


@pytest.mark.slow
def test_a_sprite_is_mounted(station: Host) -> None:
    if not shutil.which("sshfs") or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("sshfs can't be used here")
    place = station.thopters.home / "mounted"
    place.mkdir()
    station.ssh("mkdir -p shown && echo there > shown/file")
    argv = ["sshfs", "-F", str(station.config), f"{station.name}:shown", str(place)]
    station.run(argv)
    try:
        assert (place / "file").read_text() == "there\n"
        (place / "new").write_bytes(noise(500_000))
        (place / "file").rename(place / "renamed")
    finally:
        station.run(["fusermount", "-u", str(place)])
    home = station.sprite.home / "shown"
    assert (home / "new").read_bytes() == noise(500_000) and (home / "renamed").exists()
