"""Init in made-up homes: the keys that go into a sprite, and what is found there afterwards."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import thopters as program
from support.configs import KEYS, write
from support.words import nasty_words

BLOCK = b"""\
# >>> thopters >>>
if [ -r ~/.thopters/env ]; then . ~/.thopters/env; fi
# <<< thopters <<<
"""
PAT_LINE = b"https://x-access-token:%s@github.com\n"


class Settings(program.Config):
    """A configuration without a file."""

    def __init__(
        self, secrets: dict[str, str], user: str = "", email: str = "", *, exists: bool = True
    ) -> None:
        self.document = {"secrets": secrets, "git": {"user": user, "email": email}}
        self.exists = exists


def record_keys(config: Path, identity: str, name: str, keys: Iterable[str]) -> None:
    """Have the record beside a configuration say that its keys are in a sprite."""
    item: dict[str, Any] = {"name": name, "keys": list(keys), "since": "2026-01-01T00:00:00Z"}
    item |= {"generation": 1, "wanted": 1, "organization": "acme"}
    record = {"version": 1, "key": "00" * 32, "generation": 1, "sprites": {identity[-36:]: item}}
    write(config.with_name(config.name + ".record"), record)


SEAL = program.Seal(bytes(32), "dev")


def data_for(settings: Settings) -> bytes:
    """Return what init sends to a sprite."""
    return program.init_data(settings, "dev", SEAL)


def run_init(
    home: Path, settings: Settings, *, size: int | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run init as a sprite does, with the first `size` bytes of its input."""
    words = [program.INIT_SCRIPT, b"thopters-init", program.SEE_ALL, program.SEE_EACH]
    script = (
        program.RemoteCommand([b"bash", b"-c", *words], with_keys=False).stream_script() + b"\0"
    )
    before = options.pop("before", [])
    env = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "TMUX_TMPDIR": str(home)}
    env |= options.pop("env", {})
    return subprocess.run(
        [*before, "bash", "-c", program.BOOTSTRAP],
        input=(script + data_for(settings))[:size],
        env=env,
        cwd=home,
        capture_output=True,
        timeout=60,
        **options,
    )


def states_in(home: Path, settings: Settings) -> dict[str, str]:
    """Return the states of the keys in a home, as `env check` finds them there."""
    done = subprocess.run(
        ["bash", "-c", program.LOOK_SCRIPT], input=SEAL.salt + b"\0", capture_output=True,
        env={"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )  # fmt: skip
    values = program.secret_values(settings, "dev")
    states = program.key_states(done.stdout, SEAL, values)
    assert states is not None, done
    return states


def succeeded(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Assert that init says it is done, and return its warnings."""
    first, *lines = done.stdout.decode("latin-1").splitlines()
    assert first.startswith("thopters-exec "), done
    assert (done.returncode, lines[-1], done.stderr) == (0, program.INIT_PROOF, b""), done
    return lines[:-1]


def failed(done: subprocess.CompletedProcess[bytes]) -> str:
    """Assert that init does not say it is done, and return what it says."""
    assert done.returncode not in (0, 255), done
    assert program.INIT_PROOF.encode() not in done.stdout
    return (done.stdout + done.stderr).decode("latin-1")


def tree(home: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file under a home: its mode and content, or where a link leads."""
    found = {}
    for path in sorted(home.rglob("*")):
        content = b"a folder"
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(home))] = (path.lstat().st_mode, content)
    return found


def values_of(home: Path, names: Iterable[str]) -> list[bytes]:
    """Return what a bash that has read the environment file has in the variables."""
    tell = '. .thopters/env; for n_; do printf "%s\\0" "${!n_}"; done'
    done = subprocess.run(
        ["/bin/bash", "-c", tell, "-", *names], cwd=home, env={}, capture_output=True
    )
    return done.stdout.split(b"\0")[:-1]


def as_text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def carry(home: Path, values: Iterable[bytes]) -> None:
    """Carry values, other ones each time, and see each arrive and none run."""
    words = [word for word in values if word]
    words += [b"$(touch ran)", b"`touch ran`", b"';touch ran;'", b"\n\n touch ran \n"]
    for first in range(0, len(words), 2500):
        part = words[first : first + 2500]
        names = [f"V{number}" for number in range(len(part))]
        secrets = dict(zip(names, map(as_text, part), strict=True))
        assert succeeded(run_init(home, Settings(secrets))) == []
        assert values_of(home, names) == part
    left = {".thopters", ".bashrc", ".profile", ".zshenv"}
    assert {path.name for path in home.iterdir()} <= left, "a value was run"


def limit_files(size: int) -> Callable[[], None]:
    """Return what gives a child a disk that is full once a file has `size` bytes."""
    import resource  # not there on Windows

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


CONFIG = {
    "secrets": {**KEYS, "MINE": 'it\'s "mine"\n$(touch ran)'},
    "git": {"user": "Ann O'Nym", "email": "ann@example.org"},
}
NAMES, VALUES = CONFIG["secrets"].keys(), CONFIG["secrets"].values()
SHOW = "printf '%s.' {} | sha256sum".format(" ".join(f'"${name}"' for name in NAMES))
SEEN = hashlib.sha256("".join(f"{value}." for value in VALUES).encode()).hexdigest()
WITHOUT = ["env", *(f"-u{name}" for name in NAMES)]
WAYS = {
    "a program": ["printenv", *NAMES],
    "bash -c": ["bash", "-c", SHOW],
    "sh -c": ["sh", "-c", SHOW],
    "bash -lc": [*WITHOUT, "bash", "-lc", SHOW],
    "bash -ic": [*WITHOUT, "bash", "-ic", SHOW],
    "sh -lc": [*WITHOUT, "sh", "-lc", SHOW],
    "zsh -c": [*WITHOUT, "zsh", "-c", SHOW],
    "zsh -ic": [*WITHOUT, "zsh", "-ic", SHOW],
}


def answer_of(way: str) -> str:
    return "".join(f"{value}\n" for value in VALUES) if way == "a program" else f"{SEEN}  -\n"


OTHERS = [b"https://me:pw@example.org", b"rubbish"]


def bashrc_of(rng: random.Random) -> bytes:
    return rng.choice((
        b"", b"set -u\n", b"set -e\nfalse || :\n", b"shopt -s expand_aliases\nalias printf=echo\n",
        b"echo welcome\n", b"read -r line\n", b"IFS=:\n", b"set -o noclobber\n", b"exec 3>&1\n",
        b"[ -z \"$PS1\" ] && return\n", b"PROMPT_COMMAND='echo x'\n", b"umask 000\ncd /\n",
        rng.randbytes(40).replace(b"\0", b"").replace(b"\n", b"").join((b"# ", b"\n")),
    ))  # fmt: skip


def furnish(home: Path, rng: random.Random) -> dict[str, bytes]:
    """Make a home with a history; return the rc files that exist."""
    home.mkdir()
    names = [".bashrc", ".profile", ".bash_profile", ".bash_login"]
    files = {name: bashrc_of(rng) for name in names if rng.random() < 0.6}
    for name, content in files.items():
        (home / name).write_bytes(content)
    if rng.random() < 0.5:
        (home / ".git-credentials").write_bytes(b"\n".join(OTHERS) + b"\n")
        (home / ".git-credentials").chmod(rng.choice((0o600, 0o644, 0o666)))
    if rng.random() < 0.5:
        helpers = rng.choice(("", "\thelper = store\n", "\thelper =\n\thelper = !true\n"))
        (home / ".gitconfig").write_text(
            "[user]\n\tname = A\n\tname = B\n[alias]\n\tst = status\n[credential]\n" + helpers
        )
    if rng.random() < 0.2:
        (home / ".thopters").mkdir(mode=0o777)
        (home / ".thopters" / "env").write_bytes(b"export LEFT=1\nexport GITHUB_PAT='old'\n")
    return files


def check_home(home: Path, files: dict[str, bytes], secrets: dict[str, str], user: str) -> None:
    for name, content in {".bashrc": b"", ".profile": b"", **files}.items():
        assert (home / name).read_bytes() == BLOCK + content
    env = home / ".thopters" / "env"
    assert [path.stat().st_mode & 0o777 for path in (env.parent, env)] == [0o700, 0o600]
    assert env.read_bytes().count(b"export ") >= len(secrets)
    told = subprocess.run(
        ["bash", "-c", '. ~/.thopters/env; for n; do printf "%s\\0" "${!n}"; done; '
         'for key in name email; do printf "%s\\0" "$(git config --global user.$key)"; done; '
         'printf "%s\\0" "${LEFT-gone}"; '
         'printf "protocol=https\\nhost=github.com\\n\\n" | git credential fill', "-", *secrets],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, capture_output=True,
    )  # fmt: skip
    *values, name_set, email_set, left, credential = told.stdout.split(b"\0")
    assert [as_text(value) for value in values] == list(secrets.values())
    assert (as_text(name_set), email_set, left) == (user, b"ann@example.org", b"gone")
    assert b"password=" + os.fsencode(secrets["GITHUB_PAT"]) in credential.splitlines()
    stored = (home / ".git-credentials").read_bytes()
    assert stored.count(b"github.com") == 1
    assert (home / ".git-credentials").stat().st_mode & 0o777 == 0o600


def homes(tmp_path: Path, seeds: range) -> None:
    """Run init three times in each home, with other values the last time."""
    values = [as_text(word) for word in nasty_words(seed=3, count=300) if 0 < len(word) < 200]
    lines = [value for value in values if not re.search("[\r\n]", value)]
    for seed in seeds:
        rng = random.Random(seed)
        home = tmp_path / str(seed)
        files = furnish(home, rng)
        others = OTHERS if (home / ".git-credentials").exists() else []
        first = {"A": rng.choice(values), "B_": rng.choice(values), "GITHUB_PAT": "ghp_@/:% x"}
        last = {"A": rng.choice(values), "C": "c", "GITHUB_PAT": rng.choice(lines).strip() or "p"}
        user = rng.choice(["Ann O'Nym", 'a "b" $c', "é #;\\"])
        for number, secrets in enumerate((first, first, last)):
            settings = Settings(secrets, user, "ann@example.org")
            before = tree(home)
            done = run_init(home, settings, preexec_fn=lambda: os.umask(0) and None)
            succeeded(done)
            check_home(home, files, secrets, user)
            if number == 1:
                assert tree(home) == before, "the second time something changed"
        stored = (home / ".git-credentials").read_bytes().splitlines()
        assert [line for line in stored if b"@github.com" not in line] == others
        assert not [name for name in tree(home) if ".thopters-new" in name]
