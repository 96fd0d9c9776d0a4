"""The configuration: what setup stores, how the file is kept, and what the program says of it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from support.configs import KEYS, ME, SECRETS, UPDATER, GitHub, mode, updater, write
from support.preload import lacking
from support.program import MODULE, Thopters, both
from support.runs import run_here
from support.terminals import Session, Start

# setup from the environment


@both
def test_setup_stores_checks_and_shows_nothing(
    thopters: Thopters, emulator: Emulator, github: GitHub, path: Path
) -> None:
    done = thopters("setup", "--from-env", "--debug", env=KEYS | ME | {"THOPTERS_PREFIX": "me-"})
    assert done.code == 0, done
    assert done.out == f"saved {path}\n"
    assert "sprite program: not found" in done.err
    assert "sprites token (SPRITE_TOKEN): valid" in done.err
    assert "GITHUB_PAT: valid" in done.err
    assert "canary" not in done.out + done.err
    assert json.loads(path.read_bytes()) == {
        "secrets": KEYS,
        "git": {"user": "Ann O'Nym", "email": "ann@example.org"},
        "defaults": {"prefix": "me-"},
        "version": 1,
    }
    assert path.read_text() == json.dumps(json.loads(path.read_bytes()), indent=2) + "\n"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert github.requests == [("/user", f"Bearer {KEYS['GITHUB_PAT']}")]
    assert [request.method for request in emulator.journal] == ["GET"]
    assert not [r for r in emulator.journal if b"canary" in r.head + r.body]
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "config.json",
        "config.json.lock",
    ]


def test_setup_keeps_a_secret_of_ones_own_to_the_byte(
    thopters: Thopters, emulator: Emulator, path: Path
) -> None:
    value = " -----BEGIN KEY-----\nabc \udcff\n"
    write(path, {"secrets": {"MINE": "old", "OPENAI_API_KEY": "kept"}})
    env = {"MINE": value, "OPENAI_API_KEY": " \n", "GITHUB_PAT": " ghp_0123456789 \n"}
    assert thopters("setup", "--from-env", env=env).code == 0
    secrets = {"MINE": value, "OPENAI_API_KEY": "kept", "GITHUB_PAT": "ghp_0123456789"}
    assert json.loads(path.read_bytes())["secrets"] == secrets


@pytest.mark.parametrize("version", [{}, {"version": 0}, {"version": 1}], ids=repr)
def test_setup_changes_what_is_given_and_keeps_the_rest(
    thopters: Thopters, emulator: Emulator, path: Path, version: dict[str, int]
) -> None:
    secrets = {"MINE": "abc", "OPENAI_API_KEY": "old"}
    write(path, {"secrets": secrets, "other": {"x": [1]}, **version})
    assert thopters("setup", "--from-env", env={"OPENAI_API_KEY": "new", "MINE": "def"}).code == 0
    assert json.loads(path.read_bytes()) == {
        "secrets": {"MINE": "def", "OPENAI_API_KEY": "new"},
        "other": {"x": [1]},
        "version": 1,
    }


def test_rejected_tokens_are_said_and_fail(
    thopters: Thopters, emulator: Emulator, github: GitHub, path: Path
) -> None:
    thopters.env["SPRITE_TOKEN"] = "wrong-token-000"
    done = thopters("setup", "--from-env", env={"GITHUB_PAT": "ghp_rejected_canary"})
    assert done.code == 1
    assert "sprites token (SPRITE_TOKEN): rejected: the server answered 401" in done.err
    assert "GITHUB_PAT: rejected: the server answered 401: Bad credentials" in done.err
    assert "canary" not in done.err
    assert json.loads(path.read_bytes())["secrets"]["GITHUB_PAT"] == "ghp_rejected_canary"


@pytest.mark.parametrize(
    ("status", "kind", "body", "reason"),
    [
        (403, "application/json", b'{"message": "API rate limit exceeded"}', "API rate limit exc"),
        (403, "application/json", b'{"message": "Resource not accessible by integration"}', "Reso"),
        (403, "text/plain", b"not allowed", "not allowed"),
        (400, "application/json", b'{"message": "Problems parsing JSON"}', "Problems parsing"),
    ],
)
def test_n8_only_a_401_of_githubs_own_rejects_the_pat(
    thopters: Thopters,
    emulator: Emulator,
    github: GitHub,
    path: Path,
    status: int,
    kind: str,
    body: bytes,
    reason: str,
) -> None:
    github.instead = (status, kind, body)
    done = thopters("setup", "--from-env", env=KEYS)
    assert (done.code, done.out) == (0, f"saved {path}\n"), done
    said = f"GITHUB_PAT: could not be checked: the server answered {status}: {reason}"
    assert said in done.err and "rejected" not in done.err, done
    assert len(github.requests) == 1


def test_a_token_that_can_be_none_is_rejected_unsent(
    thopters: Thopters, emulator: Emulator, path: Path
) -> None:
    done = thopters("setup", "--from-env", env={**ME, "SPRITE_TOKEN": "abc"})
    assert (done.code, done.out) == (1, f"saved {path}\n"), done
    assert "sprites token: rejected: the token from SPRITE_TOKEN is malformed: " in done.err
    assert not len(emulator.journal)


def test_a_malformed_key_of_githubs_is_said_and_fails(
    thopters: Thopters, emulator: Emulator, path: Path
) -> None:
    done = thopters("setup", "--from-env", env={"GITHUB_PAT": "gh\tp"})
    assert (done.code, done.out) == (1, f"saved {path}\n")
    assert "GITHUB_PAT: rejected: the token from GITHUB_PAT is malformed: " in done.err
    assert "sprite login" not in done.err


def test_unreachable_servers_are_no_verdict(thopters: Thopters, path: Path) -> None:
    nowhere = {"SPRITES_API_URL": "http://127.0.0.1:9", "THOPTERS_GITHUB_API": "http://127.0.0.1:9"}
    done = thopters("setup", "--from-env", env=nowhere | KEYS | {"SPRITE_TOKEN": "tok-0123456"})
    assert done.code == 0
    assert done.err.count("unreachable") == 2
    assert path.exists()


PAGE = b"<html><body>Log in to the network</body></html>"


@pytest.mark.parametrize(
    ("status", "kind", "body", "reason"),
    [
        (200, "text/html", PAGE, "the answer is a web page"),
        (200, "application/json", PAGE, "the answer is a web page"),
        (200, "application/json", b'{"status": "ok"}', '{"status": "ok"}'),
        (200, "application/json", b'{"sprites": "x", "login": 1}', ""),
        (200, "text/plain", b'{"sprites": [], "login": "ann"}', ""),
        (302, "text/html", PAGE, "the answer is a web page"),
        (401, "text/html", PAGE, "the answer is a web page"),
        (403, "text/html", PAGE, "the answer is a web page"),
        (404, "application/json", b'{"error": "no such route"}', "no such route"),
        (503, "application/json", b'{"error": "down"}', "down"),
    ],
)
def test_n8_an_answer_that_says_nothing_of_a_token_is_no_verdict(
    thopters: Thopters,
    emulator: Emulator,
    github: GitHub,
    status: int,
    kind: str,
    body: bytes,
    reason: str,
) -> None:
    github.instead = (status, kind, body)
    emulator.fault(
        Fault("GET /v1/sprites", "status", times=None, status=status, body=body, content_type=kind)
    )
    done = thopters("setup", "--from-env", env=KEYS)
    assert done.code == 0, done
    for what in ("sprites token (SPRITE_TOKEN)", "GITHUB_PAT"):
        says = f"{what}: could not be checked: the server answered {status}: {reason}"
        assert says in done.err, done
    assert "valid" not in done.err and "rejected" not in done.err


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        ([], KEYS, "there is no terminal to ask on"),
        (["--from-env"], {}, "none of the variables is set"),
        (["--from-env"], {"GITHUB_PAT": "ghp_a\nb"}, "GITHUB_PAT holds a line's end"),
        (["--from-env"], {"GIT_AUTHOR_NAME": "a\nb"}, "git user holds a line's end"),
        (["--github-pat", "x"], {}, "unrecognized arguments"),
    ],
)
def test_setup_refuses_before_it_changes_anything(
    thopters: Thopters, emulator: Emulator, path: Path, words: list[str], env: Any, says: str
) -> None:
    done = thopters("setup", *words, env=env)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert not path.exists()


# what an env file holds that no shell has read

REFERENCES = ["${NAME}", "$(cat ~/key)", "$NAME", "${NAME:-none}"]
UNREAD = ['"{}"', "'{}'", '""', *REFERENCES]


@pytest.mark.parametrize("unread", UNREAD)
@pytest.mark.parametrize("name", [*KEYS, *ME, "THOPTERS_PREFIX"])
def test_n11_a_value_that_no_shell_has_read_is_refused_by_name(
    thopters: Thopters, emulator: Emulator, path: Path, name: str, unread: str
) -> None:
    value = unread.replace("{}", "canary-0123456789")
    done = run_here(["setup", "--from-env"], thopters.env | KEYS | {name: f" {value} "})
    assert (done.code, done.out) == (2, ""), done
    error = next(line for line in done.err.splitlines() if "thopters: error: " in line)
    said = (
        "holds a reference to a variable or command"
        if unread in REFERENCES
        else "has quotes around it"
    )
    shown = {"THOPTERS_PREFIX": "defaults prefix", "GIT_AUTHOR_NAME": "git user"}
    shown["GIT_AUTHOR_EMAIL"] = "git email"
    assert error.startswith(f"thopters: error: {shown.get(name, name)} {said}")
    assert "canary" not in done.err and "cat" not in done.err
    assert not path.exists()


def test_n11_what_was_typed_with_its_quotes_is_refused(
    thopters: Thopters, emulator: Emulator, path: Path, start: Start
) -> None:
    session = start("setup", columns=200)
    session.expect("]: ")
    session.type("'canary-0123456789'\n")
    assert session.end() == 2
    assert "error: ANTHROPIC_API_KEY has quotes around it" in session.screen.text
    assert "canary" not in session.screen.text
    assert not path.exists()


def test_n11_a_secret_of_ones_own_may_be_meant_so_and_is_warned_of(
    thopters: Thopters, emulator: Emulator, path: Path
) -> None:
    """To the byte all the same; what only begins or ends so, or has it inside, is nothing odd."""
    odd = {"QUOTED": '"{}"', "SINGLE": "'{}\n'", "HELD": "${NAME}", "RUN": "$(cat key)"}
    fine = {"JSON": '{"a": "b"}', "HALF": '"{}', "TEMPLATE": "a ${NAME} b", "PRICE": "$NAME"}
    values = {name: value.replace("{}", "canary") for name, value in {**odd, **fine}.items()}
    write(path, {"secrets": dict.fromkeys(values, "old")})
    done = thopters("setup", "--from-env", env=values)
    assert done.code == 0, done
    assert json.loads(path.read_bytes())["secrets"] == values
    warned = [line.split()[2] for line in done.err.splitlines() if "thopters: warning: " in line]
    assert warned == list(odd)
    assert "canary" not in done.err and "cat key" not in done.err


@pytest.mark.parametrize("variable", ["SPRITE_TOKEN", "SPRITES_TOKEN"])
@pytest.mark.parametrize("unread", ['"{}"', "'{}'", "${TOKEN}", "$(pass)"])
def test_n11_a_token_that_no_shell_has_read_is_not_sent(
    thopters: Thopters, emulator: Emulator, variable: str, unread: str
) -> None:
    del thopters.env["SPRITE_TOKEN"]
    value = unread.replace("{}", "canary-0123456789")
    done = run_here(["list"], thopters.env | {variable: value})
    assert (done.code, done.out) == (4, ""), done
    assert f"the token from {variable} is malformed: it h" in done.err
    assert "canary" not in done.err and not len(emulator.journal)


# setup on a terminal


def answer_setup(session: Session, answers: list[str]) -> int:
    for answer in answers:
        session.expect("]: ")
        session.type(answer + "\n")
    return session.end()


def test_setup_asks_and_does_not_show_what_is_typed(
    thopters: Thopters,
    emulator: Emulator,
    github: GitHub,
    path: Path,
    start: Start,
) -> None:
    (thopters.home / ".gitconfig").write_text("[user]\n\tname = Local Me\n")
    first = start("setup", columns=200)
    assert answer_setup(first, [*KEYS.values(), "", "me@example.org", ""]) == 0
    assert "canary" not in first.output.decode()
    assert first.settings_after == first.settings_before
    document = json.loads(path.read_bytes())
    assert document["secrets"] == KEYS
    assert document["git"] == {"user": "Local Me", "email": "me@example.org"}
    second = start("setup", columns=200)
    assert answer_setup(second, ["", "-", "", "", "", "dev-"]) == 0
    assert "ANTHROPIC_API_KEY [**** (30 characters)]:" in second.screen.text
    del document["secrets"]["OPENAI_API_KEY"]
    document["defaults"]["prefix"] = "dev-"
    assert json.loads(path.read_bytes()) == document


def test_setup_takes_no_half_of_a_long_key(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    start: Start,
) -> None:
    """A terminal drops what a line has above 4,095 bytes."""
    session = start("setup", columns=200)
    session.expect("]: ")
    session.type("x" * 6000 + "\n")
    assert session.end() == 2
    assert "too long for a line of a terminal" in session.screen.text
    assert session.settings_after == session.settings_before
    assert not path.exists()


def test_setup_hides_what_is_typed_after_a_stop_too(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    start: Start,
) -> None:
    """The shell has made the terminal show keys meanwhile."""
    session = start("setup", columns=200)
    session.expect("]: ")
    session.process.send_signal(signal.SIGSTOP)
    os.waitpid(session.process.pid, os.WUNTRACED)
    termios.tcsetattr(session._slave, termios.TCSANOW, session.settings_before)
    session.process.send_signal(signal.SIGCONT)
    session.expect("]: ")
    session.type("canary-key-0123\n")
    assert answer_setup(session, [""] * 5) == 0
    assert "canary" not in session.output.decode()
    assert json.loads(path.read_bytes())["secrets"] == {"ANTHROPIC_API_KEY": "canary-key-0123"}


def test_setup_keeps_the_spaces_that_are_typed_for_a_secret_of_ones_own(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    start: Start,
) -> None:
    write(path, {"secrets": {"MINE": "old", "NEXT": "old", "LAST": "old"}})
    typed = ["", " gpt \t", "", "  a b ", "  ", " - ", "", "", ""]
    assert answer_setup(start("setup", columns=200), typed) == 0
    secrets = {"OPENAI_API_KEY": "gpt", "MINE": "  a b ", "NEXT": "old"}
    assert json.loads(path.read_bytes())["secrets"] == secrets


def test_setup_offers_no_git_name_that_it_would_not_take(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    start: Start,
) -> None:
    (thopters.home / ".gitconfig").write_text('[user]\n\tname = "a\\nb"\n')
    session = start("setup")
    assert answer_setup(session, ["", "", "", "", "", ""]) == 0
    assert json.loads(path.read_bytes())["git"]["user"] == "ThopterBot"


@pytest.mark.parametrize("local", [True, False])
def test_h7_a_git_identity_that_is_offered_is_not_shown_as_stored(
    thopters: Thopters, emulator: Emulator, path: Path, start: Start, local: bool
) -> None:
    name, email = ("Local Me", "me@example.org") if local else (
        "ThopterBot", "thopterbot@telepath.computer"
    )  # fmt: skip
    if local:
        text = f"[user]\n\tname = {name}\n\temail = {email}\n"
        (thopters.home / ".gitconfig").write_text(text)
    first = start("setup", columns=200)
    assert answer_setup(first, ["", "", "", "", "-", ""]) == 0
    assert "Enter keeps what is stored, - removes it.\n" in first.screen.text
    assert f"git user [not stored, Enter stores {name}]:" in first.screen.text
    assert f"git email [not stored, Enter stores {email}]:" in first.screen.text
    assert "list prefix [none]:" in first.screen.text
    document = json.loads(path.read_bytes())
    assert document["git"] == {"user": name, "email": ""}
    second = start("setup", columns=200)
    assert answer_setup(second, [""] * 6) == 0
    assert f"git user [{name}]:" in second.screen.text
    assert "git email [none]:" in second.screen.text
    assert "not stored" not in second.screen.text
    assert json.loads(path.read_bytes()) == document


def test_setup_does_not_undo_what_is_set_meanwhile(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    start: Start,
) -> None:
    write(path, {"defaults": {"prefix": "old-"}, "git": {"email": "old@example.org"}})
    session = start("setup", columns=200)
    for answer in ["", "", "", "", "typed@example.org"]:
        session.expect("]: ")
        session.type(answer + "\n")
    session.expect("list prefix [old-]: ")
    meanwhile = ME | {"THOPTERS_PREFIX": "new-", "OPENAI_API_KEY": "new"}
    assert thopters("setup", "--from-env", env=meanwhile).code == 0
    session.type("\n")
    assert session.end() == 0
    document = json.loads(path.read_bytes())
    assert document["defaults"] == {"prefix": "new-"}
    assert document["git"] == {"user": "Ann O'Nym", "email": "typed@example.org"}
    assert document["secrets"] == {"OPENAI_API_KEY": "new"}


def test_setup_takes_bytes_that_are_no_text_where_it_shows_them_alone(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    start: Start,
) -> None:
    thopters.env["PYTHONIOENCODING"] = "utf-8:strict"  # as it is in most locales
    session = start("setup", columns=200)
    assert answer_setup(session, ["typed-secret", "sk-\udce9-secret"]) == 2
    assert session.settings_after == session.settings_before
    said = session.screen.text.splitlines()[-2:]
    assert said[0] == "thopters: error: what was typed is no text in this terminal's encoding"
    assert said[1].startswith("hint: thopters setup --from-env") and "secret" not in said[1]
    assert not path.exists()
    session = start("setup", columns=200)
    assert answer_setup(session, ["", "", "", "Ren\udce9", "", ""]) == 0
    assert json.loads(path.read_bytes())["git"]["user"] == "Ren\udce9"  # as by --from-env


def test_setup_that_is_interrupted_changes_nothing(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    start: Start,
) -> None:
    session = start("setup")
    assert answer_setup(session, ["typed-secret", "\x03"]) == -signal.SIGINT
    assert session.settings_after == session.settings_before
    assert not path.exists()


# the file


def test_config_shows_where_what_and_whence(thopters: Thopters, path: Path) -> None:
    assert thopters("config", "--path").out == f"{path}\n"
    absent = thopters("config")
    assert (absent.code, f"{path} (not there yet)" in absent.out) == (0, True)
    write(path, {"secrets": KEYS, "git": {"user": "A"}, "defaults": {"prefix": "p-"}})
    done = thopters("config", env={"SPRITE_TOKEN": "tok-canary-0123"})
    assert "canary" not in done.out + done.err
    assert "GITHUB_PAT\t**** (31 characters)\n" in done.out
    assert "token\tSPRITE_TOKEN\n" in done.out
    told = json.loads(thopters("config", "--json").out)
    assert told["secrets"]["GITHUB_PAT"] == {"length": 31}
    assert (told["path"], told["exists"]) == (str(path), True)
    assert (told["git"], told["defaults"]) == ({"user": "A", "email": None}, {"prefix": "p-"})
    assert told["token"] == {"source": None, "org": None}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not valid JSON"),
        (b'{"secrets": {"A": "canary', "is not valid JSON"),
        (b"[]", "does not hold a JSON object"),
        (b'{"secrets": []}', "'secrets' should be an object"),
        (b'{"secrets": {"A": 1}}', "secrets.A should be a text"),
        (b'{"git": {"user": null}}', "git.user should be a text"),
        (b'{"secrets": {"A-B": "x"}}', "is not a variable's name"),
        (b'{"secrets": {"PATH": "x"}}', "PATH steers the shell"),
        (b'{"secrets": {"RANDOM": "x"}}', "RANDOM steers the shell"),
        (b'{"secrets": {"status": "x"}}', "status steers the shell"),
        (b'{"secrets": {"GIT_CONFIG_COUNT": "x"}}', "GIT_CONFIG_COUNT steers the shell"),
        (b'{"secrets": {"A": "x\\u0000y"}}', "secrets.A holds a NUL"),
        (b'{"secrets": {"A": "\\ud800"}}', "secrets.A holds what is no text"),
        (b'{"secrets": {"GITHUB_PAT": "x\\ny"}}', "secrets.GITHUB_PAT holds a line's end"),
        (b'{"git": {"email": "x\\ry"}}', "git.email holds a line's end"),
        (b'{"version": 2}', "was written by a newer thopters"),
        (b'{"version": "1"}', "'version' should be a whole number"),
        (b'{"secrets": {"A": "x"}, "secrets": {}}', "has one name twice in an object"),
        (b'{"other": [1e400]}', "what it holds is no number in JSON to be saved"),
    ],
)
def test_a_file_that_is_not_understood_is_left_as_it_is(
    thopters: Thopters, emulator: Emulator, path: Path, content: bytes, says: str
) -> None:
    write(path, content)
    done = thopters("setup", "--from-env", env=SECRETS)
    assert done.code == 1
    assert says in done.err
    assert "canary" not in done.err
    assert path.read_bytes() == content


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_are_right_under_every_umask(
    thopters: Thopters, emulator: Emulator, path: Path, umask: int
) -> None:
    assert thopters("setup", "--from-env", env=SECRETS, umask=umask).code == 0
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert mode(path.with_name("config.json.lock")) == 0o600


def test_lax_modes_are_mended_with_a_notice(thopters: Thopters, path: Path) -> None:
    write(path, {"secrets": KEYS})
    path.chmod(0o644)
    path.parent.chmod(0o777)
    done = thopters("config")
    assert done.code == 0
    assert done.err.count("others could use") == 2
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert "others" not in thopters("config").err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_file_is_not_used(thopters: Thopters, path: Path) -> None:
    content = write(path, {"secrets": KEYS})
    os.chown(path, 52000, 52000)
    done = thopters("setup", "--from-env", env=SECRETS)
    assert done.code == 1
    assert "belongs to another user" in done.err
    assert path.read_bytes() == content


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(
    thopters: Thopters, emulator: Emulator, path: Path, there: bool
) -> None:
    dotfiles = thopters.home / "dotfiles"
    dotfiles.mkdir()
    target = dotfiles / "thopters.json"
    if there:
        write(target, {"other": 1})
    path.parent.mkdir(mode=0o700)
    path.symlink_to("../dotfiles/thopters.json")
    assert thopters("setup", "--from-env", env=SECRETS).code == 0
    assert path.is_symlink()
    document = json.loads(target.read_bytes())
    assert (document["secrets"], document.get("other")) == (SECRETS, 1 if there else None)
    assert mode(target) == 0o600


def test_another_file_can_be_named(thopters: Thopters, emulator: Emulator) -> None:
    named = thopters.home / "deep" / "er" / "mine.json"
    done = thopters("setup", "--from-env", env=SECRETS | {"THOPTERS_CONFIG": str(named)})
    assert done.out == f"saved {named}\n"
    assert (mode(named), mode(named.parent)) == (0o600, 0o700)


@pytest.mark.parametrize("place", ["<(printf %s '{content}')", "/dev/stdin"])
def test_a_pipe_of_the_shells_is_read(thopters: Thopters, emulator: Emulator, place: str) -> None:
    """Its name under /dev/fd is a link to no path."""
    content = json.dumps({"secrets": {"MINE": "abc"}})
    argv = shlex.join(thopters.argv)
    given = place.format(content=content)
    for words, code in (("create dev", 0), ("setup --from-env", 1)):
        command = f"printf %s '{content}' | THOPTERS_CONFIG={given} {argv} {words}"
        done = subprocess.run(
            ["bash", "-c", command], env=thopters.env | {"MINE": "new"}, cwd=thopters.home,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done
        assert ("is not a file, so nothing can be saved in it" in done.stderr) == bool(code)
    assert thopters("exec", "dev", "--", "printenv", "MINE").out == "abc\n"
    assert not (thopters.home / ".sprite-thopters").exists()


def test_a_here_document_is_read(thopters: Thopters, emulator: Emulator) -> None:
    """As a file that is deleted already, where it is too long for a pipe."""
    content = json.dumps({"secrets": {"MINE": "abc"}, "other": "x" * 200_000})
    argv, temporary = shlex.join(thopters.argv), str(thopters.home)
    for words, code, says in (
        ("config", 0, "MINE\t**** (3 characters)\n"),
        ("setup --from-env", 1, "is not a file, so nothing can be saved in it"),
    ):
        command = f"exec 3<<'END'\n{content}\nEND\nTHOPTERS_CONFIG=/dev/fd/3 {argv} {words}"
        done = subprocess.run(
            ["bash"], input=command, env=thopters.env | {"MINE": "new", "TMPDIR": temporary},
            cwd=thopters.home, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code and says in done.stdout + done.stderr, done
    assert not [path for path in thopters.home.rglob("*") if path.is_file()]


def test_no_umask_locks_the_user_out(thopters: Thopters, emulator: Emulator, path: Path) -> None:
    options = thopters.as_somebody()
    assert thopters("setup", "--from-env", env=SECRETS, **options).code == 0
    for umask in (0o777, 0o277, 0o377):
        for _ in range(2):
            done = thopters("setup", "--from-env", env=SECRETS, umask=umask, **options)
            assert (done.code, mode(path)) == (0, 0o600), done
    path.parent.chmod(0o300)  # may be written in, not read
    done = thopters("setup", "--from-env", env={"MINE": "x"} | SECRETS, **options)
    path.parent.chmod(0o700)
    assert (done.code, mode(path)) == (0, 0o600), done


def test_the_path_is_told_to_the_byte(thopters: Thopters) -> None:
    home = os.fsencode(thopters.home) + b"/h\xe9me"
    thopters.env["HOME"] = os.fsdecode(home)
    assert thopters("config", "--path").out_bytes == home + b"/.sprite-thopters/config.json\n"


@pytest.mark.parametrize("named", ["~/mine.json", "~/deep/er/mine.json", "~//mine.json"])
def test_h1_a_home_that_no_shell_has_replaced_is_found(
    thopters: Thopters, emulator: Emulator, named: str
) -> None:
    real = thopters.home / named[2:].lstrip("/")
    env = {"THOPTERS_CONFIG": named}
    done = thopters("setup", "--from-env", env=SECRETS | env)
    assert done.code == 0, done
    assert json.loads(real.read_bytes())["secrets"] == SECRETS
    assert not (thopters.home / "~").exists()
    told = thopters("config", "--path", env=env).out
    assert os.path.isabs(told) and os.path.realpath(told.rstrip("\n")) == str(real)


@pytest.mark.parametrize(
    "named", ["mine.json", "./mine.json", "../mine.json", "~", "~me/mine.json", '"~/mine.json"',
              "$HOME/mine.json", "${HOME}/mine.json"]
)  # fmt: skip
def test_h1_a_place_that_depends_on_the_working_directory_is_refused(
    thopters: Thopters, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(thopters.home)
    emulator.add_sprite("dev", status="running")
    before = sorted(thopters.home.parent.rglob("*"))
    for words in (["setup", "--from-env"], ["config"], ["config", "--path"], ["create", "new"],
                  ["init", "dev"], ["list"], ["restore", "dev", "v1", "--yes"]):  # fmt: skip
        done = run_here(words, thopters.env | SECRETS | {"THOPTERS_CONFIG": named})
        assert (done.code, done.out) == (2, ""), (words, done)
        assert "thopters: error: THOPTERS_CONFIG " in done.err, done
    assert sorted(thopters.home.parent.rglob("*")) == before
    assert "new" not in emulator.sprites


def test_h1_a_home_that_is_not_there_is_not_passed_over(
    thopters: Thopters, emulator: Emulator
) -> None:
    del thopters.env["HOME"]
    done = thopters("create", "dev", env={"THOPTERS_CONFIG": "~/mine.json"})
    assert (done.code, done.out) == (2, "")
    assert "cannot tell where your home directory is" in done.err
    assert not emulator.sprites


COMMANDS_THAT_READ = [["config"], ["list"], ["create", "new"], ["exec", "dev", "--", "true"]]


@pytest.mark.parametrize("content", [b"notes\n", b'{"secrets": []}', b"[]", b'{"secrets": {'])
@pytest.mark.parametrize("place", ["team/notes.txt", ".sprite-thopters/config.json"])
def test_h2_what_is_no_configuration_keeps_its_mode_and_its_folder(
    thopters: Thopters, emulator: Emulator, content: bytes, place: str
) -> None:
    emulator.add_sprite("dev", status="running")
    notes = thopters.home / place
    write(notes, content)
    notes.chmod(0o664)
    notes.parent.chmod(0o2775)
    env = {"THOPTERS_CONFIG": str(notes)} if place.startswith("team") else {}
    for words in COMMANDS_THAT_READ:
        done = run_here(words, thopters.env | env)
        assert done.code == (0 if words[0] == "exec" else 1), (words, done)
        assert "others could" not in done.err and "others can" not in done.err
    assert (mode(notes), mode(notes.parent)) == (0o664, 0o2775)
    assert notes.read_bytes() == content


@pytest.mark.parametrize("way", ["named", "linked"])
def test_h2_elsewhere_modes_are_warned_of_and_left(
    thopters: Thopters, emulator: Emulator, path: Path, way: str
) -> None:
    """Also once, where a command reads the file three times."""
    emulator.add_sprite("dev", status="running")
    real = thopters.home / "team" / "mine.json"
    write(real, {"secrets": SECRETS})
    real.chmod(0o644)
    real.parent.chmod(0o2775)
    env = {"THOPTERS_CONFIG": str(real)}
    if way == "linked":
        path.parent.mkdir(mode=0o700)
        path.symlink_to(real)
        env = {}
    folder = f"thopters: warning: others can use {real.parent}; mend it with: chmod 2755 "
    file = f"thopters: warning: others can use {real}; mend it with: chmod 600 {real}\n"
    for words in COMMANDS_THAT_READ:
        done = thopters(*words, env=env)
        assert done.code == 0, (words, done)
        assert (done.err.count(folder), done.err.count(file)) == (1, 1), done
    assert (mode(real), mode(real.parent)) == (0o644, 0o2775)
    done = thopters("setup", "--from-env", env={"OPENAI_API_KEY": "new"} | env)
    assert (done.code, done.err.count(folder), done.err.count(file)) == (0, 1, 1), done
    assert (mode(real), mode(real.parent)) == (0o600, 0o2775)  # what we write is ours alone


@pytest.mark.parametrize(
    ("modes", "why"),
    [
        ("0", "its file system keeps no modes"),
        ("EPERM", "its mode can't be changed: Operation not permitted"),
        ("EOPNOTSUPP", "its mode can't be changed: Operation not supported"),
    ],
)
def test_h3_without_modes_all_is_stored_and_what_is_so_is_said_once(
    thopters: Thopters, emulator: Emulator, path: Path, tmp_path: Path, modes: str, why: str
) -> None:
    write(path, {"other": 1})
    path.chmod(0o644)
    path.parent.chmod(0o755)
    env = lacking(tmp_path, modes=modes)
    for words in (["config"], ["setup", "--from-env"], ["create", "dev"]):
        done = thopters(*words, env=SECRETS | env)
        assert done.code == 0, done
        assert f"thopters: warning: others can use {path.parent}; {why}\n" in done.err
        assert done.err.count("others") == 1, done
    assert json.loads(path.read_bytes())["secrets"] == SECRETS
    assert mode(path.parent) == 0o755


@pytest.mark.parametrize(
    ("modes", "locks", "why"),
    [
        ("0", "ENOLCK", "No locks available"),
        ("EPERM", "ENOSYS", "Function not implemented"),
        ("0", "EOPNOTSUPP", "Operation not supported"),
    ],
)
def test_h3_without_locks_all_is_stored_with_a_warning(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    tmp_path: Path,
    modes: str,
    locks: str,
    why: str,
) -> None:
    env = lacking(tmp_path, modes=modes, locks=locks)
    done = thopters("setup", "--from-env", env=SECRETS | env)
    assert done.code == 0, done
    said = f"the file system of {path} has no locks ({why}): store from one place at a time\n"
    assert done.err.count("thopters: warning: ") == 1 and said in done.err, done
    assert json.loads(path.read_bytes())["secrets"] == SECRETS
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


def test_h3_a_lock_that_fails_otherwise_is_an_error(
    thopters: Thopters, emulator: Emulator, path: Path, tmp_path: Path
) -> None:
    env = lacking(tmp_path, locks="EIO")
    done = thopters("setup", "--from-env", env=SECRETS | env)
    assert (done.code, done.out) == (1, "")
    assert f"cannot write {path}: Input/output error" in done.err
    assert not path.exists()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@as_root
def test_h5_a_file_of_roots_that_can_be_read_is_used(
    thopters: Thopters, emulator: Emulator, path: Path
) -> None:
    write(path, {"secrets": SECRETS, "defaults": {"prefix": "dev"}})
    options = thopters.as_somebody()
    os.chown(path, 0, 0)
    path.chmod(0o644)
    emulator.add_sprite("dev", status="running")
    emulator.add_sprite("other", status="running")
    done = thopters("list", **options)
    assert (done.code, done.out[:4], done.out.count("\n")) == (0, "dev\t", 1), done
    assert thopters("init", "dev", **options).code == 0
    assert thopters("setup", "--from-env", env={"MINE": "x"} | SECRETS, **options).code == 0
    assert (path.stat().st_uid, mode(path)) == (52000, 0o600)


@as_root
@pytest.mark.parametrize("what", ["folder", "file"])
def test_h5_a_file_that_root_has_taken_is_said_with_the_way_back(
    thopters: Thopters, emulator: Emulator, path: Path, what: str
) -> None:
    content = write(path, {"secrets": SECRETS, "defaults": {"prefix": "dev"}})
    options = thopters.as_somebody()
    taken = path.parent if what == "folder" else path
    os.chown(taken, 0, 0)
    emulator.add_sprite("other", status="running")
    why = f"cannot read {path}: Permission denied"
    back = f"{taken} belongs to root; take it back with: sudo chown -R 52000 {taken}\n"
    done = thopters("list", **options)
    assert (done.code, done.out[:6]) == (0, "other\t"), done  # it can do without
    assert f"thopters: warning: {why}; all sprites are listed\nhint: {back}" in done.err
    assert thopters("exec", "other", "--", "true", **options).code == 0
    for words in (["config"], ["create", "new"], ["setup", "--from-env"]):
        done = thopters(*words, env=SECRETS, **options)
        assert (done.code, done.out) == (1, ""), (words, done)
        assert f"thopters: error: {why}\nhint: {back}" in done.err, done
    assert "new" not in emulator.sprites
    assert path.read_bytes() == content


@as_root
@pytest.mark.parametrize("there", ["nothing", "a folder", "a file"])
def test_h5_root_leaves_nothing_in_the_home_of_another_user(
    thopters: Thopters, emulator: Emulator, path: Path, there: str
) -> None:
    """As with sudo, which may keep HOME: a folder of root's would lock the user out."""
    if there == "a folder":
        path.parent.mkdir(mode=0o700)
    if there == "a file":
        write(path, {"secrets": SECRETS})
    options = thopters.as_somebody()
    before = {place: place.lstat().st_uid for place in thopters.home.rglob("*")}
    emulator.add_sprite("dev", status="running")
    assert thopters("list").out[:4] == "dev\t"
    done = thopters("setup", "--from-env", env=SECRETS)
    assert (done.code, done.out) == (1 if there == "a file" else 2, ""), done
    assert "belongs to " in done.err and "52000" in done.err and "without sudo" in done.err, done
    assert {place: place.lstat().st_uid for place in thopters.home.rglob("*")} == before
    named = thopters.home / "named.json"
    env = SECRETS | {"THOPTERS_CONFIG": str(named)}
    assert thopters("setup", "--from-env", env=env).code == 0  # a file that is named is wished
    assert thopters("setup", "--from-env", env=SECRETS, **options).code == 0


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_none_is_refused(thopters: Thopters, emulator: Emulator, home: str) -> None:
    done = thopters("setup", "--from-env", env=SECRETS | {"HOME": home})
    assert done.code == 2
    assert "THOPTERS_CONFIG" in done.err


# writers together, and writers killed


@pytest.mark.long
def test_a_lock_that_is_held_is_waited_for_and_then_reported(
    thopters: Thopters, emulator: Emulator, path: Path
) -> None:
    path.parent.mkdir(mode=0o700)
    with path.with_name("config.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = thopters("setup", "--from-env", env=SECRETS)
    assert done.code == 1
    assert "another thopters has been changing" in done.err
    assert not path.exists()
    assert thopters("setup", "--from-env", env=SECRETS).code == 0


def test_many_writers_lose_nothing(thopters: Thopters, path: Path) -> None:
    writers = [updater(thopters, 10) for _ in range(5)]
    assert [writer.wait() for writer in writers] == [0] * 5
    assert json.loads(path.read_bytes())["count"] == 50


def test_a_killed_writer_leaves_the_old_or_the_new(thopters: Thopters, path: Path) -> None:
    assert updater(thopters, 1).wait() == 0
    counts = [1]
    for _ in range(10):
        writers = [updater(thopters, 1_000_000) for _ in range(2)]
        before = path.stat().st_ino
        while path.stat().st_ino == before:  # both are at work now
            assert writers[0].poll() is None
        for writer in writers:
            writer.kill()
            writer.wait()
        counts.append(json.loads(path.read_bytes())["count"])
        assert mode(path) == 0o600
    assert counts == sorted(set(counts))
    left = {entry.name for entry in path.parent.iterdir()}
    assert left <= {"config.json", "config.json.lock", "config.json.new"}


def run_updater(thopters: Thopters, *changes: str) -> subprocess.CompletedProcess[str]:
    """Save once, by a program that has `changes` before its configuration is opened."""
    program = UPDATER.replace("config =", "\n".join([*changes, "config ="]))
    argv = [sys.executable, "-c", program, str(MODULE.parent), "1"]
    return subprocess.run(argv, env=thopters.env, capture_output=True, text=True)


FAILURES = {
    "fsync": "os.fsync = fail",
    "replace": "os.replace = fail",
    "write": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))",
}


@pytest.mark.parametrize("call", FAILURES)
def test_a_failing_disk_leaves_the_old(thopters: Thopters, path: Path, call: str) -> None:
    content = write(path, {"secrets": KEYS})
    failing = "def fail(*args): raise OSError(27, 'File too large')"
    done = run_updater(thopters, failing, FAILURES[call])
    assert done.returncode == 1
    assert f"cannot write {path}: File too large" in done.stderr
    assert path.read_bytes() == content
    assert not path.with_name("config.json.new").exists()


def test_what_could_not_be_read_again_is_not_saved(
    thopters: Thopters, emulator: Emulator, path: Path
) -> None:
    """Compact it is read; with a line for each number it would be three times as long."""
    content = write(path, b'{"secrets": {}, "other": [' + b"0," * 3_000_000 + b"0]}")
    done = thopters("setup", "--from-env", env=SECRETS)
    assert (done.code, done.out) == (1, ""), done
    assert f"{path} was left as it is: what it holds is too large to be saved" in done.err
    assert path.read_bytes() == content
    assert not path.with_name("config.json.new").exists()
    assert thopters("config").code == 0


def test_a_file_that_is_too_large_is_called_so(thopters: Thopters, path: Path) -> None:
    write(path, b'{"other": "' + b"x" * (16 << 20) + b'"}')
    done = thopters("config")
    assert (done.code, done.out) == (1, "")
    assert f"{path} is larger than 16 MiB" in done.err


def test_what_is_nested_too_deeply_is_not_saved(thopters: Thopters, path: Path) -> None:
    content = write(path, {"secrets": KEYS})
    deep = "deep = []\nfor _ in range(100_000): deep = [deep]"
    load = "load = thopters.Config.load\ndef more(self): load(self); self.document['x'] = deep"
    done = run_updater(thopters, deep, load, "thopters.Config.load = more")
    assert done.returncode == 1
    assert f"{path} was left as it is: what it holds is nested too deeply" in done.stderr
    assert path.read_bytes() == content


def test_a_folder_that_another_first_save_makes_is_used(thopters: Thopters, path: Path) -> None:
    again = "make = os.mkdir\nos.mkdir = lambda *words: (make(*words), make(*words))"
    assert run_updater(thopters, again).returncode == 0
    assert json.loads(path.read_bytes())["count"] == 1
    assert mode(path.parent) == 0o700
