"""R21: no command claims what is not so, wherever a connection of its ends.

Every command runs through a relay that records what goes to and fro. Then it runs again and
again, in this process and on a clock that does not wait, each time with one stream ended behind
another byte. What it says, and its exit status, are compared with the state of the emulator,
whose work goes on behind the cut.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from emulation import Emulator
from support.configs import KEYS, ME, GitHub, write
from support.keys import record_keys
from support.program import Thopters
from support.relay import Cut, Relay
from support.runs import COMMANDS, Done, environ_for, run_here
from support.servers import Server
from support.sessions import refuse_websockets, session_of
from support.waiting import until

import thopters as program

OLD_KEYS = b"export OLD='1'\n"


class SkippingClock(program.Clock):
    """Real time, but for sleep: that takes none, here and on the emulator alike."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.skipped = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped

    def sleep(self, seconds: float) -> None:
        self.skipped += seconds
        self.emulator.clock.advance(seconds)


class World:
    """An emulator behind a relay, and the program in this process as its user."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.emulator = Emulator().start()
        self.emulator.personality.hold_after_exit_s = 0.0
        self.emulator.personality.restore_delay_s = 0.0
        self.relay = Relay(int(self.emulator.url.rpartition(":")[2]))
        self.home = home
        self.config = home / ".sprite-thopters" / "config.json"
        self.environ = environ_for(
            self.emulator,
            str(home),
            SPRITES_API_URL=self.relay.url,
            THOPTERS_GITHUB_API="http://127.0.0.1:9",  # nothing leaves this machine
        )
        self.patch = monkeypatch
        self.all_end = True  # whether what a command begins in a sprite ends with it
        self.streams = {1: bytearray(), 2: bytearray()}
        for limit in ("WAKE_LIMIT_S", "READY_LIMIT_S", "READ_BACK_LIMIT_S"):
            monkeypatch.setattr(program, limit, 3.0)  # fewer questions where all are cut
        monkeypatch.setattr(program, "AWAY_LIMIT_S", 0.0)
        monkeypatch.setattr(program, "Clock", lambda: SkippingClock(self.emulator))
        monkeypatch.setattr(program, "write_all", lambda fd, data: self.streams[fd].extend(data))

    def close(self) -> None:
        self.relay.stop()
        self.emulator.stop()
        broken = [text for text in self.emulator.journal.oddities if "Traceback" in text]
        assert not broken, "the emulator itself failed:\n" + broken[0]

    def fresh(self, name: str = "dev") -> None:
        """Put a new sprite in the place of one that may be there."""
        if name in self.emulator.sprites:
            self.emulator.account.remove(name)
        self.emulator.add_sprite(name, status="running")

    def give_keys(self, content: bytes) -> None:
        """Write the environment file of the sprite, as its user."""
        sprite = self.emulator.sprite("dev")
        path = sprite.home / ".thopters" / "env"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        sprite.machine.own(path.parent)

    def run(self, argv: Sequence[str]) -> Done:
        """Run a command to its end, and what it has begun in sprites as well."""
        for stream in self.streams.values():
            stream.clear()
        self.emulator.journal.clear()
        done = run_here(argv, self.environ)
        done.out = self.streams[1].decode() + done.out
        done.err = self.streams[2].decode() + done.err
        for thread in threading.enumerate():
            if thread.name.endswith("(_refresh)"):  # it would have ended with the program
                thread.join(60)
        self.settle()
        return done

    def settle(self) -> None:
        self.relay.settle()
        if not self.all_end:
            return
        for sprite in list(self.emulator.sprites.values()):
            sprite.machine.thaw()  # a command that stands still would be ended only 10 s later
            for session in list(sprite.sessions.values()):
                session.end_input()  # it may wait for a script that will not come
                assert session.ended.wait(20), "a command does not end"
            sprite.sessions.clear()

    def posts(self, end: str) -> int:
        return len([r for r in self.emulator.journal.requests("POST") if r.path.endswith(end)])


# What each command starts from, and what has to be true of what it said


class Case:
    """A command, what it starts from, and `true`: whether all that it said is so."""

    argv: tuple[str, ...]
    step = 29  # a sample takes every so many bytes; more where a run takes longer

    def __init__(self, world: World) -> None:
        self.world = world
        self.emulator = world.emulator
        self.begin()

    def begin(self) -> None:
        """Do what is needed once."""
        self.world.fresh()

    def arrange(self) -> None:
        """Do what is needed before each run."""

    def judge(self, done: Done) -> None:
        assert "Traceback" not in done.err
        assert "internal error" not in done.err
        assert ("thopters: error: " in done.err) == (done.code != 0)
        assert program.EXIT_OK <= done.code <= 255
        self.true(done)

    def true(self, done: Done) -> None:
        raise NotImplementedError


class List(Case):
    argv = ("list",)

    def begin(self) -> None:
        for name in ("a", "b", "c"):
            self.emulator.add_sprite(name, updated_at=1_800_000_000.0)
        self.lines = [f"{name}\thibernating\t2027-01-15T08:00:00Z" for name in ("a", "b", "c")]

    def true(self, done: Done) -> None:
        assert done.out.splitlines() == ([] if done.code else self.lines)


class Info(Case):
    """What can't be had is warned of, and the rest is told."""

    argv = ("info", "dev")
    step = 61

    def begin(self) -> None:
        super().begin()
        self.emulator.sprite("dev").add_checkpoint("one").made = 1_800_000_000.0
        self.line = "checkpoint\tv1: 2027-01-15T08:00:00Z, one"

    def true(self, done: Done) -> None:
        lines = done.out.splitlines()
        assert not lines if done.code else lines[0] == "state\trunning"
        assert (self.line in lines) or done.code or "warning" in done.err


class Doctor(Case):
    argv = ("doctor",)

    def judge(self, done: Done) -> None:
        assert "Traceback" not in done.err and "internal error" not in done.err
        lines = [line.split("\t") for line in done.out.splitlines()]
        states = {name: state for state, name, *_ in lines}
        assert len(states) == 9
        assert ("failure" in states.values()) == (done.code == 1)
        assert (states["token"] == "ok") == ("org acme, valid" in done.out)
        assert states["token"] != "ok" or states["api"] == "ok"
        assert states["plan"] == "ok" or states["api"] == "failure" or done.code


class Url(Case):
    argv = ("url", "dev")

    def true(self, done: Done) -> None:
        assert done.out == ("" if done.code else self.emulator.sprite("dev").url + "\n")


class Use(Case):
    argv = ("use", "dev")

    def arrange(self) -> None:
        self.world.config.unlink(missing_ok=True)

    def true(self, done: Done) -> None:
        folder = os.getcwd()
        stored = json.loads(self.world.config.read_text()) if self.world.config.exists() else {}
        assert stored.get("directories") == (None if done.code else {folder: "dev"})
        assert done.out == ("" if done.code else f"dev is the sprite of {folder} now\n")


class SshConfig(Case):
    argv = ("ssh", "--config", "dev")

    def true(self, done: Done) -> None:
        alias = f"  HostKeyAlias dev.sprite-{self.emulator.sprite('dev').id[-36:]}\n"
        assert alias in done.out if done.code == 0 else done.out == ""


class UrlPublic(Case):
    argv = ("url", "dev", "--public")

    def arrange(self) -> None:
        self.emulator.sprite("dev").url_settings = {"auth": "sprite"}

    def true(self, done: Done) -> None:
        public = self.emulator.sprite("dev").url_settings == {"auth": "public"}
        assert public or done.code
        assert ("anybody can now open" in done.err) == (done.code == 0)
        assert done.out == ("" if done.code else self.emulator.sprite("dev").url + "\n")


class Checkpoints(Case):
    argv = ("checkpoints", "dev")

    def begin(self) -> None:
        super().begin()
        for comment in ("one", "two"):
            made = self.emulator.sprite("dev").add_checkpoint(comment)
            made.made = 1_800_000_000.0
        stamp = "2027-01-15T08:00:00Z"
        self.lines = [f"v2\t{stamp}\ttwo", f"v1\t{stamp}\tone"]

    def true(self, done: Done) -> None:
        assert done.out.splitlines() == ([] if done.code else self.lines)


class Checkpoint(Case):
    argv = ("checkpoint", "dev", "--comment", "known good")

    def arrange(self) -> None:
        self.emulator.sprite("dev").checkpoints.clear()
        self.emulator.sprite("dev")._next_checkpoint = 1
        shutil.rmtree(self.emulator.sprite("dev").machine.recent / "v1", ignore_errors=True)
        self.emulator.sprite("dev").machine.saved.clear()

    def true(self, done: Done) -> None:
        made = [(c.id, c.comment) for c in self.emulator.sprite("dev").checkpoints]
        assert made in ([], [("v1", "known good")])  # asked for once
        assert made or done.code
        assert done.out == ("" if done.code else "v1\n")
        assert made or "was made" not in done.err


class Resume(Case):
    argv = ("resume", "dev")
    step = 97

    def arrange(self) -> None:
        self.emulator.sprite("dev").pause()

    def true(self, done: Done) -> None:
        assert self.emulator.sprite("dev").status == "running" or done.code
        assert (
            done.out.startswith("dev was hibernating, woke in ") if done.code == 0 else not done.out
        )


class Pause(Case):
    argv = ("pause", "dev")
    step = 97

    def begin(self) -> None:
        super().begin()
        self.emulator.idle_s = 3.0

    def arrange(self) -> None:
        sprite = self.emulator.sprite("dev")
        while not sprite.enter():  # as any command wakes it
            pass

    def true(self, done: Done) -> None:
        asleep = self.emulator.sprite("dev").status == "warm"
        assert asleep or done.code
        assert done.out.startswith("dev is hibernating after ") if done.code == 0 else not done.out


class Destroy(Case):
    argv = ("destroy", "dev", "--yes")

    def arrange(self) -> None:
        if "dev" not in self.emulator.sprites:
            self.emulator.add_sprite("dev")

    def true(self, done: Done) -> None:
        gone = "dev" not in self.emulator.sprites
        assert gone or done.code
        assert done.out == ("" if done.code else "destroyed dev\n")
        assert gone or "there is no sprite" not in done.err
        assert not gone or "is still there" not in done.err


class Setup(Case):
    argv = ("setup", "--from-env")

    def begin(self) -> None:
        self.world.environ |= {**KEYS, **ME}
        self.world.config.parent.mkdir(mode=0o700)
        self.document = b""

    def arrange(self) -> None:
        self.world.config.unlink(missing_ok=True)

    def true(self, done: Done) -> None:
        # both tokens are good ones; a server that can't be asked is no reason to keep nothing
        stored = self.world.config.read_bytes()
        self.document = self.document or stored
        assert KEYS["GITHUB_PAT"].encode() in stored
        assert (done.code, stored) == (0, self.document)
        assert done.out == f"saved {self.world.config}\n"
        assert "rejected" not in done.err
        verdicts = "valid|unreachable|could not be checked"
        said = re.findall(rf"^(sprites token|GITHUB_PAT).*: ({verdicts})\b", done.err, re.M)
        assert [what for what, _ in said] == ["sprites token", "GITHUB_PAT"]
        assert program.DEFAULT_GITHUB_API not in done.err


class Exec(Case):
    argv = ("exec", "dev", "--", "sh", "-c", "echo out; echo 1 >>a; echo err >&2; echo 1 >>b")

    def arrange(self) -> None:
        for name in ("a", "b"):
            (self.emulator.sprite("dev").home / name).unlink(missing_ok=True)

    def true(self, done: Done) -> None:
        home = self.emulator.sprite("dev").home
        a, b = ((home / name).read_text() if (home / name).exists() else "" for name in "ab")
        assert a == b in ("", "1\n")  # run whole, and once, or not at all
        assert done.code in (0, 255)
        assert a or done.code
        assert "out\n".startswith(done.out)
        if done.code == 0:
            assert (done.out, done.err) == ("out\n", "err\n")
        if "cannot reach" in done.err or "cannot run" in done.err:
            assert not a


class ExecByPost(Exec):
    def begin(self) -> None:
        super().begin()
        refuse_websockets(self.emulator)


class Init(Case):
    argv: tuple[str, ...] = ("init", "dev")
    step = 37

    def begin(self) -> None:
        super().begin()
        write(self.world.config, {"secrets": KEYS, "git": {"user": "A", "email": "a@b.c"}})
        self.world.run(self.argv)
        self.path = self.emulator.sprite("dev").home / ".thopters" / "env"
        self.new = self.path.read_bytes()
        assert KEYS["GITHUB_PAT"].encode() in self.new

    def arrange(self) -> None:
        self.path.write_bytes(OLD_KEYS)

    def true(self, done: Done) -> None:
        now = self.path.read_bytes()
        assert now in (OLD_KEYS, self.new)
        assert now == self.new or done.code
        assert done.out == (
            "" if done.code else f"dev: {', '.join(sorted(KEYS))}; git as A <a@b.c>\n"
        )


class EnvPush(Init):
    argv = ("env", "push", "dev")
    step = 97


class EnvCheck(Case):
    argv = ("env", "check", "dev")

    def begin(self) -> None:
        super().begin()
        write(self.world.config, {"secrets": KEYS, "git": {"user": "A", "email": "a@b.c"}})
        self.world.run(("init", "dev"))

    def true(self, done: Done) -> None:
        lines = "".join(f"dev: {name}: current\n" for name in sorted(KEYS))
        assert done.out == ("" if done.code else lines)


class EnvUnset(Case):
    argv = ("env", "unset", "MINE")

    def begin(self) -> None:
        super().begin()
        made = self.emulator.sprite("dev").add_checkpoint("")
        record_keys(self.world.config, self.emulator.sprite("dev").id, "dev", ["MINE"])
        self.told = f"  dev: {made.id}\n"

    def arrange(self) -> None:
        write(self.world.config, {"secrets": {"MINE": "a value"}})

    def judge(self, done: Done) -> None:
        """What is removed here is removed, whatever can be learned of the sprites."""
        assert (done.code, done.out) == (0, "removed MINE\n")
        assert b"a value" not in self.world.config.read_bytes()
        assert self.told in done.err or "  dev: unknown, as it was not looked at\n" in done.err


class ExecMany(Exec):
    argv = (*Exec.argv[:1], "d*", *Exec.argv[2:])
    step = 97

    def true(self, done: Done) -> None:
        home = self.emulator.sprite("dev").home
        a, b = ((home / name).read_text() if (home / name).exists() else "" for name in "ab")
        assert a == b in ("", "1\n")
        assert done.code in (0, 1, 255) and (a or done.code)
        if done.code == 0:
            assert (done.out, done.err) == ("dev: out\n", "dev: err\n1 done\n")


class Create(Case):
    argv = ("create", "new")
    step = 97

    def begin(self) -> None:
        write(self.world.config, {"secrets": KEYS, "git": {"user": "A", "email": "a@b.c"}})

    def arrange(self) -> None:
        if "new" in self.emulator.sprites:
            self.emulator.account.remove("new")

    def true(self, done: Done) -> None:
        sprite = self.emulator.sprites.get("new")
        assert self.world.posts("/v1/sprites") <= 2
        assert done.code in (0, 1, 7)  # not 5: it did not exist before
        assert sprite or "was created" not in done.err
        if done.code:
            assert not done.out
            return
        assert sprite
        assert done.out.startswith(f"new\t{sprite.url}\t")
        assert KEYS["GITHUB_PAT"] in (sprite.home / ".thopters" / "env").read_text()


class Restore(Case):
    argv = ("restore", "dev", "v1", "--yes")
    step = 257

    def begin(self) -> None:
        write(self.world.config, {"secrets": KEYS, "git": {"user": "A", "email": "a@b.c"}})

    def arrange(self) -> None:
        self.world.fresh()
        sprite = self.emulator.sprite("dev")
        self.world.give_keys(OLD_KEYS)
        (sprite.home / "work").write_text("before")
        sprite.add_checkpoint("first")
        (sprite.home / "work").write_text("after")
        record_keys(self.world.config, sprite.id, "dev", KEYS)  # so that they are renewed

    def true(self, done: Done) -> None:
        sprite = self.emulator.sprite("dev")
        asked = self.world.posts("/restore")
        assert asked <= 1
        if asked:
            self.finish()
        restored = (sprite.home / "work").read_text() == "before"
        made = {checkpoint.id: checkpoint.comment for checkpoint in sprite.checkpoints}
        for told in re.findall(r"restore dev (v\d+)$|is checkpoint (v\d+)$", done.err, re.M):
            assert made["".join(told)] == "before restore of v1"
        assert restored or "dev was restored" not in done.err
        assert not restored or "still shows the disk from before" not in done.err
        assert asked or not restored
        assert not asked or "was not restored" not in done.err
        assert not asked or len(made) == 2  # a backup before that
        keys = (sprite.home / ".thopters" / "env").read_bytes()
        assert keys == OLD_KEYS or KEYS["GITHUB_PAT"].encode() in keys
        if done.code and done.out:  # it is done, and only the keys are not known to be renewed
            assert restored and "dev was restored to v1 (checkpoint v2 " in done.err
        if done.code:
            return
        assert done.out.startswith("restored dev to v1 in ")
        assert restored
        assert keys != OLD_KEYS
        assert not list(sprite.home.glob(".thopters-restore-*"))

    def finish(self) -> None:
        """Wait until the emulator is done with a restore, which goes on by itself."""
        for thread in threading.enumerate():
            if thread.name.endswith("(later)"):
                thread.join(20)


class Lasting(Case):
    """A command that begins, or is about, what goes on in a sprite; each time in a new one."""

    def begin(self) -> None:
        self.world.all_end = False

    def arrange(self) -> None:
        self.world.fresh()


class WithSession(Lasting):
    """A command about a detached one that was started before, and goes on."""

    words: tuple[str, ...]
    script = "read x; true"

    def begin(self) -> None:
        super().begin()
        self.world.patch.setattr(program, "START_WATCH_S", 0.1)

    def arrange(self) -> None:
        super().arrange()
        self.world.relay.arm(None)
        done = self.world.run(("exec", "dev", "--detach", "--", "sh", "-c", self.script))
        assert done.code == 0, done
        self.id = done.out.strip()
        self.session = session_of(self.emulator.sprite("dev"), self.id)
        self.argv = tuple(word.format(self.id) for word in self.words)


class Sessions(WithSession):
    words = ("sessions", "dev")
    step = 29

    def true(self, done: Done) -> None:
        ids = [line.split("\t")[0] for line in done.out.splitlines()]
        is_partial = "known by the platform's list alone" in done.err
        assert is_partial or ids == ([] if done.code else [self.id])
        assert "no command runs" not in done.err


class Kill(WithSession):
    words = ("kill", "dev", "{}")
    step = 89

    def true(self, done: Done) -> None:
        if not done.code:  # the command has ended, and its session is about to
            until(self.session.ended.is_set, "its session has ended")
        gone = self.session.ended.is_set()
        assert done.out == ("" if done.code else f"{self.id} has ended\n")
        assert gone or done.code != program.EXIT_NOT_FOUND


class LetGo(WithSession):
    """About one that ends as soon as the program has asked often enough for what `asked` is."""

    script = "while [ ! -e go ]; do sleep 0.01; done; echo seen"
    step = 131
    times = 1

    def asked(self) -> str:
        return "/v1/sprites/dev/exec"

    def arrange(self) -> None:
        super().arrange()
        self.emulator.journal.clear()
        self.is_over = threading.Event()
        threading.Thread(target=self.let_go, daemon=True).start()

    def let_go(self) -> None:
        home, path = self.emulator.sprite("dev").home, self.asked()
        while not self.is_over.wait(0.005):
            if len(self.emulator.journal.requests("WS", path)) >= self.times:
                (home / "go").touch()
                return

    def judge(self, done: Done) -> None:
        self.is_over.set()
        super().judge(done)


class Attach(LetGo):
    words = ("attach", "dev", "{}")

    def asked(self) -> str:
        return f"/v1/sprites/dev/exec/{self.session.id}"

    def true(self, done: Done) -> None:
        assert done.code in (0, program.EXIT_STATUS_UNKNOWN)
        assert done.code or (self.session.ended.is_set() and "seen" in done.out)
        gone = "there is no session" in done.err or "has ended" in done.err
        assert not gone or self.session.ended.is_set()


class Logs(WithSession):
    words = ("logs", "dev", "{}")
    script = "while [ ! -e go ]; do sleep 0.01; done; echo seen"
    step = 47

    def arrange(self) -> None:
        super().arrange()
        (self.emulator.sprite("dev").home / "go").touch()
        assert self.session.ended.wait(20)

    def true(self, done: Done) -> None:
        assert done.code in (0, 1)
        assert done.out == "seen\r\n" or (done.code and "seen\r\n".startswith(done.out))


class LogsFollow(LetGo):
    """It reads on over cuts: each byte comes once."""

    words = ("logs", "dev", "{}", "-f")
    times = 2  # the look, and the first that reads
    step = 67

    def true(self, done: Done) -> None:
        assert done.code in (0, 1)
        assert done.out == "seen\r\n" or (done.code and "seen\r\n".startswith(done.out))
        assert done.code or self.session.ended.is_set()


class Wait(LetGo):
    words = ("wait", "dev", "{}", "--timeout", "5m")
    times = 2
    step = 67

    def judge(self, done: Done) -> None:
        """When the time is up that is no error of the program's, so it is said in a note."""
        self.is_over.set()
        if done.code != program.EXIT_TIMED_OUT:
            super().judge(done)
            return
        assert done.out == "" and "the time is up" in done.err
        assert "has ended" not in done.err and "was lost" not in done.err

    def true(self, done: Done) -> None:
        assert done.code in (0, program.EXIT_STATUS_UNKNOWN)
        assert done.out == ""
        assert (f"{self.id} of dev has ended with status 0" in done.err) == (done.code == 0)
        assert done.code or self.session.ended.wait(20)
        assert "was lost" not in done.err


class OnTerminal(Lasting):
    argv = ("exec", "dev", "-t", "--", "sh", "-c", "echo 1 >> a; echo out; exec sleep 0.1")
    step = 37

    def true(self, done: Done) -> None:
        path = self.emulator.sprite("dev").home / "a"
        assert done.code in (0, program.EXIT_STATUS_UNKNOWN)
        assert not path.exists() or path.read_text() in ("", "1\n")
        if done.code == 0:
            assert (path.read_text(), "out\r\n" in done.out) == ("1\n", True)


class Detach(Lasting):
    argv = ("exec", "dev", "--detach", "--", "sh", "-c", "echo 1 >> a; exec sleep 60")
    step = 37

    def true(self, done: Done) -> None:
        sprite = self.emulator.sprite("dev")
        path = sprite.home / "a"
        if done.code:
            assert done.out == ""
            assert not path.exists() or path.read_text() in ("", "1\n")
            return
        assert not session_of(sprite, done.out.strip()).ended.is_set()
        assert path.read_text() == "1\n"


class Hold(Lasting):
    argv = ("hold", "dev", "--for", "1h")
    step = 89

    def begin(self) -> None:
        super().begin()
        self.world.patch.setattr(program, "HOLD_FIRST_S", 0.05)

    def true(self, done: Done) -> None:
        held = bool(self.emulator.sprite("dev").live_tasks())
        assert held or done.code
        assert bool(re.fullmatch(r"dev stays awake until .* \(1h\)\n", done.out)) == (not done.code)
        assert not done.code or not done.out
        if held and done.code:
            assert "dev may be held all the same" in done.err


class Shell(Lasting):
    argv = ("shell", "dev")
    step = 83

    def true(self, done: Done) -> None:
        """Our stdin has ended, which is typed there as ^D."""
        sessions = self.emulator.sprite("dev").sessions.values()
        assert done.code in (0, 255)
        assert done.code or any(session.ended.is_set() for session in sessions)


class Upload(Case):
    argv = ("cp", "FILE", "dev:got")
    step = 37
    old, new = b"old\n", b"new\n" * 40

    def begin(self) -> None:
        super().begin()
        path = self.world.home / "file"
        path.write_bytes(self.new)
        self.argv = ("cp", str(path), "dev:got")

    def arrange(self) -> None:
        (self.emulator.sprite("dev").home / "got").write_bytes(self.old)

    def true(self, done: Done) -> None:
        home = self.emulator.sprite("dev").home
        now = (home / "got").read_bytes()
        assert now in (self.old, self.new)
        assert now == self.new or done.code
        assert sorted(path.name for path in home.iterdir()) == [".bashrc", ".profile", "got"]


class Download(Case):
    argv = ("cp", "dev:file", "PLACE")
    step = 431
    old, new = b"old\n", b"new\n" * 40

    def begin(self) -> None:
        super().begin()
        (self.emulator.sprite("dev").home / "file").write_bytes(self.new)
        self.folder = self.world.home / "place"
        self.folder.mkdir()
        self.argv = ("cp", "dev:file", f"{self.folder}/got")

    def arrange(self) -> None:
        (self.folder / "got").write_bytes(self.old)

    def true(self, done: Done) -> None:
        now = (self.folder / "got").read_bytes()
        assert now == (self.old if done.code else self.new)
        assert [path.name for path in self.folder.iterdir()] == ["got"]


class Wire(Case):
    argv = ("proxy", "dev", "-W", "localhost:PORT")
    step = 11
    words = b"hello, whoever is there\n"
    size = 0

    def begin(self) -> None:
        super().begin()
        self.server = Greeter(self.words)
        self.argv = ("proxy", "dev", "-W", f"127.0.0.1:{self.server.port}")

    def true(self, done: Done) -> None:
        """A plain end between two frames is one: the platform may say no more than that."""
        connection = self.world.relay.connections[0]
        self.size = self.size or len(connection.came)  # of the first time, which is whole
        words = self.words.decode()
        assert words.startswith(done.out)
        frames = (2 + len(self.words), 2 + 2)  # that, and the close frame
        is_plain = len(connection.came) == self.size - sum(frames)
        assert done.out == words or done.code or (is_plain and done.out == "")


class Greeter(Server):
    def __init__(self, words: bytes) -> None:
        self.words = words
        super().__init__()

    def serve(self, sock: socket.socket) -> None:
        sock.sendall(self.words)


CASES: dict[str, Callable[[World], Case]] = {
    "list": List,
    "info": Info,
    "doctor": Doctor,
    "url": Url,
    "use": Use,
    "url --public": UrlPublic,
    "checkpoints": Checkpoints,
    "checkpoint": Checkpoint,
    "resume": Resume,
    "pause": Pause,
    "destroy": Destroy,
    "setup": Setup,
    "exec": Exec,
    "exec by POST": ExecByPost,
    "init": Init,
    "env push": EnvPush,
    "env check": EnvCheck,
    "env unset": EnvUnset,
    "exec in many": ExecMany,
    "create": Create,
    "restore": Restore,
    "exec -t": OnTerminal,
    "exec --detach": Detach,
    "attach": Attach,
    "sessions": Sessions,
    "logs": Logs,
    "logs -f": LogsFollow,
    "wait": Wait,
    "kill": Kill,
    "hold": Hold,
    "shell": Shell,
    "ssh --config": SshConfig,
    "cp to": Upload,
    "cp from": Download,
    "proxy -W": Wire,
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path, monkeypatch)
    yield world
    world.close()


@pytest.fixture
def github_relay(world: World) -> Iterator[Relay]:
    github = GitHub()
    with Relay(github.server.server_port) as relay:
        world.environ["THOPTERS_GITHUB_API"] = relay.url
        yield relay
    github.close()


def play(world: World, case: Case, relay: Relay, cut: Cut | None) -> Done:
    """Run a command once, with or without a cut, and judge it."""
    case.arrange()
    relay.arm(cut)
    done = world.run(case.argv)
    try:
        case.judge(done)
    except AssertionError as error:
        raise AssertionError(f"{cut}: {error}\n{done}") from error
    assert cut or done.code == 0, done
    return done


def sweep(world: World, case: Case, *, upward: bool, step: int, relay: Relay | None = None) -> int:
    """Cut every stream behind every `step`-th byte, and return how many places that were.

    By turns a cut is an end or a reset, and the only one or that of all connections from there on.
    Not all are reached: a run may ask less often than the first one.
    """
    relay = relay or world.relay
    play(world, case, relay, None)
    streams = [c.sent if upward else c.came for c in relay.connections]
    places = [(number, at) for number, data in enumerate(streams) for at in range(len(data))]
    places = places[::step]
    cuts = failures = 0
    for count, (number, at) in enumerate(places):
        cut = Cut(number, at, upward=upward, reset=bool(count & 1), lasting=bool(count & 2))
        done = play(world, case, relay, cut)
        reached = relay.connections[number : number + 1]
        assert all(len(c.sent if upward else c.came) <= at for c in reached), cut
        cuts += any(connection.was_cut.is_set() for connection in relay.connections)
        failures += done.code != 0
    assert cuts > len(places) / 4
    assert failures or isinstance(case, (Setup, EnvUnset))  # which ask only to tell
    return len(places)


def test_r21_every_command_that_asks_something_is_among_them() -> None:
    ask_nothing = {"help", "config", "rename", "completion", "env list", "env set"}
    names = {program.find_command(name.split())[0].name for name in CASES}
    assert names == COMMANDS - ask_nothing


@pytest.mark.parametrize("name", CASES)
@pytest.mark.long
def test_r21_a_cut_answer_makes_no_command_lie(world: World, name: str) -> None:
    case = CASES[name](world)
    assert sweep(world, case, upward=False, step=case.step) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_r21_no_cut_of_an_answer_makes_a_command_lie(world: World, name: str) -> None:
    assert sweep(world, CASES[name](world), upward=False, step=1) > 200


def test_r21_github_that_is_cut_is_no_rejection(world: World, github_relay: Relay) -> None:
    assert sweep(world, Setup(world), upward=False, step=5, relay=github_relay) >= 25


UPWARD = {"exec": 67, "exec by POST": 113, "init": 491, "restore": 641}


@pytest.mark.parametrize("name", UPWARD)
def test_r21_a_cut_request_is_carried_out_whole_or_not_at_all(world: World, name: str) -> None:
    assert sweep(world, CASES[name](world), upward=True, step=UPWARD[name]) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", UPWARD)
def test_r21_no_request_is_carried_out_in_part(world: World, name: str) -> None:
    assert sweep(world, CASES[name](world), upward=True, step=1) > 700


# the same through a process of its own

CHILDREN = [
    ("list", 0, 100),
    ("url --public", 0, 723),
    ("checkpoint", 0, 700),
    ("destroy", 0, 423),
    ("exec", 0, 5),
    ("exec", 0, 370),
    ("restore", 1, 380),
]


@pytest.mark.parametrize(("name", "connection", "size"), CHILDREN)
def test_r21_the_program_itself_does_not_lie(
    thopters: Thopters, world: World, name: str, connection: int, size: int
) -> None:
    case = CASES[name](world)
    case.arrange()
    world.relay.arm(Cut(connection, size))
    thopters.env |= world.environ
    ended = thopters(*case.argv)
    world.settle()
    assert world.relay.connections[connection].was_cut.is_set()
    case.judge(Done(case.argv, ended.code, ended.out, ended.err))
