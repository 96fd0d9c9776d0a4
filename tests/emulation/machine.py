"""What a sprite is made of here: a directory, and real processes that see it as /home/sprite.

Where mount namespaces can be had, a holder process keeps one per sprite: a root of the host's
own directories with a fresh /home, /tmp, /.sprite and /dev/pts, and for root a user who is named
sprite. It begins as a copy of one namespace that has the host's directories in place, since that
takes many mounts. Elsewhere HOME is the host's path.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import pty
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

READABLE_CHECKPOINTS = 5
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441  # of Linux
SPRITE_UID = 52000  # of the processes, when the emulator runs as root

BUILD_ROOT = r"""
set -e
root=$1 user=$2
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
for entry in /*; do
  case $entry in /home|/.sprite|/tmp) continue;; esac
  if [ -L "$entry" ]; then cp -P "$entry" "$root$entry"
  elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
  fi
done
[ ! -d "$root/dev/shm" ] || mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mkdir -p "$root/home/sprite" "$root/.sprite" "$root/tmp"
if [ -n "$user" ]; then
  { grep -v '^sprite:' /etc/passwd; echo "$user"; } > "$root/passwd"
  chmod 644 "$root/passwd"
  mount --bind "$root/passwd" "$root/etc/passwd"
  rm "$root/passwd"
fi
mount -o remount,bind,ro "$root" || :  # not in every user namespace
echo ready
exec cat
"""
FILL_ROOT = r"""
set -e
PATH=$PATH:/usr/sbin:/sbin  # for chroot, where a user has none of these
root=$1 home=$2 run=$3 checkpoints=$4
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts "$root/dev/pts" || :  # likewise
mount --bind "$home" "$root/home/sprite"
mount --bind "$run" "$root/.sprite"
mount --bind "$checkpoints" "$root/.sprite/checkpoints"
mount -o remount,bind,ro "$root/.sprite/checkpoints" || :
exec chroot "$root" /bin/sh -c 'cd /home/sprite && echo ready && exec cat'
"""

# Like a fresh Ubuntu's: what stands in .bashrc is not read by a shell that is not interactive
BASHRC = """\
# executed by bash for shells that are not login shells
case $- in
  *i*) ;;
  *) return ;;
esac
PS1='\\u@\\h:\\w\\$ '
"""
PROFILE = """\
# executed by login shells
if [ -n "$BASH_VERSION" ] && [ -f "$HOME/.bashrc" ]; then
  . "$HOME/.bashrc"
fi
"""


@functools.cache
def namespace_kind() -> str:
    """Return "root", "user" or "", as mount namespaces can be had here."""
    if not shutil.which("unshare") or not shutil.which("nsenter"):
        return ""
    options = ["-m"] if os.geteuid() == 0 else ["-U", "-r", "-m"]
    probe = ["unshare", *options, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    works = subprocess.run(probe, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    return ("root" if os.geteuid() == 0 else "user") if works else ""


def hold_namespace(words: list[str]) -> subprocess.Popen[bytes]:
    """Start what makes a namespace and keeps it; it reads until we are gone, however we end."""
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout
    if holder.stdout.readline() != b"ready\n":
        raise RuntimeError("no mount namespace could be made for a sprite")
    return holder


def end_holder(holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()
    for stream in (holder.stdin, holder.stdout):
        if stream:
            stream.close()


def namespace_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")


def is_child_of_script(pid: int) -> bool:
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return Path(f"/proc/{parent}/comm").read_text() == "script\n"
    except OSError:  # it is gone
        return False


class CommonRoot:
    """A root of the host's directories that waits for a sprite's own, as long as we live."""

    _lock = threading.Lock()

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="sprites-root-")
        atexit.register(os.rmdir, self.path)
        options = ["-m"] if namespace_kind() == "root" else ["-U", "-r", "-m"]
        user = f"sprite:x:{SPRITE_UID}:{SPRITE_UID}::/home/sprite:/bin/bash"
        user = user if namespace_kind() == "root" else ""  # where they run as its root
        words = ["unshare", *options, "/bin/sh", "-c", BUILD_ROOT, "sh", self.path, user]
        self._holder = hold_namespace(words)
        atexit.register(end_holder, self._holder)

    @classmethod
    def get(cls) -> CommonRoot:
        with cls._lock:
            return cls._only()

    @classmethod
    @functools.cache
    def _only(cls) -> CommonRoot:
        return cls()

    def copy(self, home: Path, run: Path, checkpoints: Path) -> subprocess.Popen[bytes]:
        """Start the holder of a sprite's namespace."""
        user = ["--user", "--preserve-credentials"] if namespace_kind() == "user" else []
        enter = ["nsenter", "--target", str(self._holder.pid), *user, "--mount"]
        words = [*enter, "unshare", "-m", "/bin/sh", "-c", FILL_ROOT, "sh"]
        return hold_namespace([*words, self.path, str(home), str(run), str(checkpoints)])


class Machine:
    """The directory and the processes of one sprite."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"
        self.run = base / "run"
        self.leaders: set[int] = set()
        self.saved: list[str] = []  # checkpoints, oldest first
        self.frozen = False
        self._holder: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self.recent = base / "recent"
        self.older = base / "older"
        for folder in (self.home, self.run / "checkpoints", self.recent, self.older):
            folder.mkdir(parents=True)
        (self.home / ".bashrc").write_text(BASHRC)
        (self.home / ".profile").write_text(PROFILE)
        self.own(self.home)

    def own(self, path: Path) -> None:
        """Give a tree to the sprite's user."""
        for place in (path, *path.rglob("*")) if os.geteuid() == 0 else ():
            os.chown(place, SPRITE_UID, SPRITE_UID, follow_symlinks=False)

    @property
    def home_inside(self) -> str:
        return "/home/sprite" if namespace_kind() else str(self.home)

    def host_path(self, inside: str) -> Path:
        """Return where a path of the sprite lies on the host."""
        path = Path(self.home_inside) / inside
        if path.is_relative_to(self.home_inside):
            return self.home / path.relative_to(self.home_inside)
        return path

    def _start_holder(self) -> int:
        with self._lock:
            if not self._holder:
                self._holder = CommonRoot.get().copy(self.home, self.run, self.recent)
            return self._holder.pid

    def command(self, argv: list[str], directory: str) -> list[str]:
        """Return the host's words that run `argv` inside."""
        kind = namespace_kind()
        if not kind:
            if os.geteuid() == 0:
                ids = [f"--reuid={SPRITE_UID}", f"--regid={SPRITE_UID}", "--clear-groups"]
                return ["setpriv", *ids, "--", *argv]
            return argv
        words = ["nsenter", "--target", str(self._start_holder()), "--mount", "--root"]
        if kind == "root":
            words += [f"--setuid={SPRITE_UID}", f"--setgid={SPRITE_UID}"]
        else:
            words += ["--user", "--preserve-credentials"]
        return [*words, f"--wdns={directory}", "--", *argv]

    def open_terminal(self) -> tuple[int, int]:
        """Return both ends of a new terminal of the sprite's own, or of the host's."""
        if namespace_kind() != "root":
            return pty.openpty()
        master = os.open(f"/proc/{self._start_holder()}/root/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
        slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        os.fchown(slave, SPRITE_UID, -1)
        return master, slave

    def leader_has_ended(self, pid: int) -> None:
        """Forget a session's process: its number may be anybody's soon, and we kill by it.

        What it has left behind is known by the namespace, if there are any.
        """
        if namespace_kind():
            self.leaders.discard(pid)

    def processes(self) -> set[int]:
        """Return the processes of this sprite that live: of its sessions, or in its namespace."""
        if not self.leaders and not self._holder:
            return set()
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        return {pid for pid in pids if self._is_ours(pid)}

    def _is_ours(self, pid: int) -> bool:
        holder = self._holder.pid if self._holder else None
        try:
            inside = holder is not None and namespace_of(pid) == namespace_of(holder)
            if pid == holder or not (inside or self.leaders):
                return False
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            return fields[0] not in b"ZX" and (inside or int(fields[3]) in self.leaders)
        except (OSError, IndexError, ValueError):  # it is gone, or another user's
            return False

    def signal_all(
        self, number: signal.Signals, *, but: Callable[[int], bool] | None = None
    ) -> None:
        for pid in sorted(self.processes(), reverse=True):
            with contextlib.suppress(ProcessLookupError):
                if but is None or not but(pid):
                    os.kill(pid, number)

    def freeze(self) -> None:
        """Stop every process, as a machine that stops does: nothing in it may notice.

        A shell that `script` has started goes on. Its stop would make `script` stop itself when it
        goes on again.
        """
        self.frozen = True
        self.signal_all(signal.SIGSTOP, but=is_child_of_script)

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self.signal_all(signal.SIGCONT)

    def end_all(self) -> None:
        """Kill every process, those too that are born meanwhile; none sees another one's end.

        So all are stopped first. A terminal that ends lets those on it go on, so children, which
        have the higher numbers, are killed before whoever holds their terminal.
        """
        self.signal_all(signal.SIGSTOP)
        end = time.monotonic() + 5
        while self.processes() and time.monotonic() < end:
            self.signal_all(signal.SIGKILL)
            time.sleep(0.005)
        self.frozen = False

    def save(self, identity: str) -> None:
        """Copy the disk: content, modes, owners, links, times. The last few can be read inside."""
        target = self.recent / identity
        target.mkdir()
        subprocess.run(["cp", "-a", f"{self.home}/.", str(target)], check=True)
        self.saved.append(identity)
        if len(self.saved) > READABLE_CHECKPOINTS:
            name = self.saved[-READABLE_CHECKPOINTS - 1]
            (self.recent / name).rename(self.older / name)

    def load(self, identity: str) -> None:
        """Put a copy back in place of the present disk."""
        places = (self.recent / identity, self.older / identity)
        source = next(path for path in places if path.exists())
        for entry in self.home.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                subprocess.run(["chmod", "-R", "u+rwx", str(entry)], check=False)
                shutil.rmtree(entry)
            else:
                entry.unlink()
        subprocess.run(["cp", "-a", f"{source}/.", str(self.home)], check=True)

    def remove(self) -> None:
        self.end_all()
        if self._holder:
            end_holder(self._holder)
        shutil.rmtree(self.base, ignore_errors=True)
