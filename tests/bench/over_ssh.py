"""The benchmarks of ssh: to a sprite, against the same server behind a plain local ProxyCommand.

The other way enters the sprite's namespace with `nsenter` and starts `sshd -i` there, as the same
user and with the same keys and configuration. So it wants root, util-linux and OpenSSH.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

from measuring import SEALED_PATH, Bench, Contender, Row, anything, compare, median_of, rate_row

COMMAND_LIMIT = 2.0
COPY_LIMIT = 1.6
SHARED_LIMIT_S = 0.020  # that a command over a shared connection may take longer
COPY_BYTES = 50_000_000
SPRITE_UID = 52000  # of the emulator's sprites


def is_possible() -> bool:
    programs = ("ssh", "scp", "sshd", "nsenter")
    there = all(shutil.which(name, path=SEALED_PATH + ":/usr/sbin") for name in programs)
    return there and os.geteuid() == 0


@contextlib.contextmanager
def plain_way(bench: Bench, program: list[str]) -> Iterator[None]:
    """Add the host `dev.plain` to ssh's configuration: the same server without the platform."""
    keeper = subprocess.Popen(
        [*program, "exec", "dev", "--", "sh", "-c", "echo $$; exec sleep 3600"],
        env=bench.env,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert keeper.stdout
    inside = keeper.stdout.readline().decode().strip()
    blocks = (bench.home / ".ssh" / "thopters" / "config").read_text()
    kept = [line for line in blocks.splitlines() if line.split()[:1] in (
        ["User"], ["IdentityFile"], ["IdentitiesOnly"], ["HostKeyAlias"], ["UserKnownHostsFile"],
        ["StrictHostKeyChecking"])]  # fmt: skip
    enter = f"nsenter --target {inside} --mount --root --setuid {SPRITE_UID} --setgid {SPRITE_UID}"
    sshd = shutil.which("sshd", path=SEALED_PATH + ":/usr/sbin")
    server = f"{sshd} -i -f /home/sprite/.thopters/ssh/config"
    command = f"  ProxyCommand env -i PATH=$PATH HOME=/home/sprite {enter} -- {server}"
    with open(bench.home / ".ssh" / "config", "a") as file:
        file.write("\n".join(["Host dev.plain", *kept, command, ""]))
    try:
        yield
    finally:
        keeper.send_signal(signal.SIGINT)
        keeper.wait()


@contextlib.contextmanager
def shared(bench: Bench, argv: list[str]) -> Iterator[list[str]]:
    """Open a connection that others share; yield the words of ssh that do."""
    path = bench.home / f"master-{argv[-1]}"
    words = [*argv[:-1], "-S", str(path)]
    master = subprocess.Popen([*words, "-MN", argv[-1]], env=bench.env, stdin=subprocess.DEVNULL)
    try:
        while subprocess.run([*words, "-O", "check", argv[-1]], env=bench.env,
                             capture_output=True).returncode:  # fmt: skip
            if master.poll() is not None:
                raise bench.failed(Contender("ssh -M", words), "it does not connect")
        yield [*words, argv[-1], "true"]
    finally:
        master.terminate()
        master.wait()


def over_ssh(bench: Bench, program: list[str], rounds: int) -> list[Row]:
    """Return the rows of commands and copies by ssh; one that says so where they can't be had."""
    if not is_possible():
        return [Row("ssh", "", "sshd -i", "not installed, or not root")]
    bench.check(Contender("setup", [*program, "ssh", "--setup", "dev", "--yes"], anything))
    (bench.home / "copied").write_bytes(os.urandom(COPY_BYTES))
    config = str(bench.home / ".ssh" / "config")
    rows: list[Row] = []
    with plain_way(bench, program):
        ran, plain = (
            Contender(label, ["ssh", "-F", config, host, "true"])
            for label, host in (("ssh dev.sprite true", "dev.sprite"), ("sshd -i", "dev.plain"))
        )
        rows += compare(bench, rounds, ran, [plain._replace(limit=COMMAND_LIMIT)])[0]
        for way in ("up", "down"):
            what = f"scp of {COPY_BYTES / 1e6:.0f} MB {way}"
            raced = []
            for label, host in ((what, "dev.sprite"), ("sshd -i", "dev.plain")):
                ends = ["copied", f"{host}:copied"]
                words = ends if way == "up" else [ends[1], "back"]
                raced.append(Contender(label, ["scp", "-q", "-F", config, *words]))
            more, runs = compare(bench, rounds, raced[0], [raced[1]._replace(limit=COPY_LIMIT)])
            rows += [*more, rate_row(what, runs[0], COPY_BYTES)]
        with (
            shared(bench, ["ssh", "-F", config, "dev.sprite"]) as own,
            shared(bench, ["ssh", "-F", config, "dev.plain"]) as other,
        ):
            ours = Contender("ssh over a shared connection", own)
            more, runs = compare(bench, rounds, ours, [Contender("sshd -i", other)])
            added = median_of("seconds", runs[0]) - median_of("seconds", runs[1])
            rows += [*more, Row("the same: what is added", f"{added * 1000:.1f} ms",
                                target=f"<= {SHARED_LIMIT_S * 1000:.0f} ms",
                                kept=added <= SHARED_LIMIT_S)]  # fmt: skip
    return rows
