"""What a sprite is made of here: a directory, and real processes that see it as /home/sprite.

Where mount namespaces can be had, a holder process keeps one per sprite: a root of the host's
own directories with a fresh /home, /tmp and /.sprite. Elsewhere HOME is the host's path.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

READABLE_CHECKPOINTS = 5
SPRITE_UID = 52000  # of the processes, when the emulator runs as root

BUILD_ROOT = r"""
set -e
PATH=$PATH:/usr/sbin:/sbin  # for chroot, where a user has none of these
root=$1 home=$2 run=$3 checkpoints=$4
mount --make-rprivate /
mount -t tmpfs tmpfs "$root"
for entry in /*; do
  case $entry in /home|/.sprite|/tmp) continue;; esac
  if [ -L "$entry" ]; then cp -P "$entry" "$root$entry"
  elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
  fi
done
mkdir -p "$root/home/sprite" "$root/.sprite" "$root/tmp"
chmod 1777 "$root/tmp"
mount --bind "$home" "$root/home/sprite"
mount --bind "$run" "$root/.sprite"
mount --bind "$checkpoints" "$root/.sprite/checkpoints"
mount -o remount,bind,ro "$root/.sprite/checkpoints" || :  # not in every user namespace
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
        mount_points = (base / "root", self.run / "checkpoints")
        for folder in (self.home, self.run, self.recent, self.older, *mount_points):
            folder.mkdir(parents=True)
        (self.home / ".bashrc").write_text(BASHRC)
        (self.home / ".profile").write_text(PROFILE)
        self.own(self.home)

    def own(self, path: Path) -> None:
        """Give a tree to the sprite's user."""
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{SPRITE_UID}:{SPRITE_UID}", str(path)], check=True)

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
            return self._holder.pid if self._holder else self._make_holder()

    def _make_holder(self) -> int:
        options = ["-m"] if namespace_kind() == "root" else ["-U", "-r", "-m"]
        words = ["unshare", *options, "/bin/sh", "-c", BUILD_ROOT, "sh"]
        paths = [str(self.base / "root"), str(self.home), str(self.run), str(self.recent)]
        holder = subprocess.Popen(
            [*words, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )  # it reads until we are gone, however we end
        assert holder.stdout
        if holder.stdout.readline() != b"ready\n":
            raise RuntimeError("no mount namespace could be made for a sprite")
        self._holder = holder
        return holder.pid

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

    def leader_has_ended(self, pid: int) -> None:
        """Forget a session's process: its number may be anybody's soon, and we kill by it.

        What it has left behind is known by the namespace, if there are any.
        """
        if namespace_kind():
            self.leaders.discard(pid)

    def processes(self) -> set[int]:
        """Return the processes of this sprite that live: of its sessions, or in its namespace."""
        ours = set()
        space = self._namespace(self._holder.pid) if self._holder else None
        for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
            if entry.isdigit() and (not self._holder or int(entry) != self._holder.pid):
                with contextlib.suppress(OSError, IndexError, ValueError):
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                    if fields[0] in "ZX":
                        continue
                    inside = space is not None and self._namespace(int(entry)) == space
                    if inside or int(fields[3]) in self.leaders:
                        ours.add(int(entry))
        return ours

    @staticmethod
    def _namespace(pid: int) -> str:
        return os.readlink(f"/proc/{pid}/ns/mnt")

    def signal_all(self, number: signal.Signals) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self) -> None:
        self.frozen = True
        self.signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self.signal_all(signal.SIGCONT)

    def end_all(self) -> None:
        """Kill every process, those too that are born meanwhile."""
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
            self._holder.kill()
            self._holder.wait()
            for stream in (self._holder.stdin, self._holder.stdout):
                if stream:
                    stream.close()
        shutil.rmtree(self.base, ignore_errors=True)
