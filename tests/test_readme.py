"""What README.md and the help show is true: each workflow and each example is run as printed.

The README's workflows are run in their order, as one reader would type them in one evening; the
examples of the help each on a platform of their own, on which there is what they speak of.
"""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from emulation import SPRITE_PROGRAM, Emulator, write_launcher
from support.configs import write
from support.program import ROOT, Result, Thopters
from support.terminals import Start

import thopters as program

Shell = Callable[[str], Result]

README = (ROOT / "README.md").read_text(encoding="utf-8")
SPEC = (ROOT / "SPEC.md").read_text(encoding="utf-8")


def section(document: str, title: str) -> str:
    """Return what stands under a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", document, re.M | re.S)
    assert found, f"there is no section {title}"
    return found[1]


@pytest.fixture
def shell(thopters: Thopters, tmp_path: Path) -> Shell:
    """Return a function that runs a script in bash, where `thopters` and `python3` are ours."""
    launchers = tmp_path / "launchers"
    write_launcher(launchers, "thopters", thopters.argv)
    write_launcher(launchers, "python3", [sys.executable])
    write_launcher(launchers, "sprite", SPRITE_PROGRAM)

    def run(script: str) -> Result:
        return Result(
            subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                env=thopters.env | {"PATH": f"{launchers}{os.pathsep}{thopters.env['PATH']}"},
                cwd=thopters.home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=120,
            )
        )

    return run


# the workflows


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
JOB = "'sleep 2; wc -l lines\\.txt'"
URL = r"https://[a-z0-9-]+\.sprites\.app"

ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "sk-ant-of-this-test-01",
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
}

# words that one block alone has: all that it prints, and some of what it says on stderr
WORKFLOWS = {
    "setup --from-env": (
        r"saved .*/config\.json\n"
        r"file\t.*/config\.json\n"
        r"ANTHROPIC_API_KEY\t\*{4} \(22 characters\)\n"
        r"git user\tAnn\ngit email\tann@example\.org\nlist prefix\t-\ntoken\tSPRITE_TOKEN\n",
        r"sprites token \(SPRITE_TOKEN\): valid",
    ),
    "create dev-main": (
        rf"dev-main\t{URL}\t[\d.]+\n(.|\n)*\$ logout\r\n",
        r"GITHUB_PAT is not configured",
    ),
    "resume dev-main": (
        rf"dev-main\trunning\t{TIME}\n"
        r"dev-main was running already, and answered in [\d.]+ s\n"
        r"(.|\n)*\$ logout\r\n",
        "",
    ),
    "thopters use": (
        r"dev-main is the sprite of .*/project/src now\n/\S+\ndev-main\n",
        r"using dev-main: it is the sprite of .*/project/src\nit is the sprite of ",
    ),
    "uname -a": (
        rf"dev\t{URL}\t[\d.]+\n"
        rf"dev\trunning\t{TIME}\ndev-main\trunning\t{TIME}\n"
        rf"{platform.system()} .*\n",
        "",
    ),
    "GREETING=hello": (r"hello\n", ""),
    "echo started": (r"started\n", ""),
    "bash -s": (r"work/\n(work/(greeting|lines)\.txt\n){2}", ""),
    "while read": (r" *3 lines\.txt\n *1 greeting\.txt\n", ""),
    "cp project": (r"a page\nhello\n", ""),
    "exec dev -d --hold": (
        rf"(?P<id>[0-9a-f]{{10}})\tsh -c {JOB}\t/\S+/work\t{TIME}\t({TIME}|-)\trunning\n"
        r" *3 lines\.txt\r\n"
        rf"(?P=id)\tsh -c {JOB}\t/\S+/work\t{TIME}\t({TIME}|-)\tended 0\n"
        r"the record of tests is gone\n",
        r"^\w+ of dev has ended with status 0\n",
    ),
    "hold dev --for": (
        r"dev stays awake until (\S+ )?\d\d:\d\d \(2h\)\ndev may sleep again\n",
        "",
    ),
    "checkpoint dev --comment": (
        r"restored dev to v1 in [\d.]+ s\n"
        r"greeting\.txt\nlines\.txt\n"
        rf"v2\t{TIME}\tbefore restore of v1\n"
        rf"v1\t{TIME}\tbefore the experiment\n",
        r"undo it: thopters restore dev v2\n",
    ),
    "url dev --public": (
        rf"({URL})\n\1\n\1\n",
        r"anybody can now open (.*\n)+only members of the org can open it now",
    ),
    "create issue-42 --if-missing": (
        rf"(issue-42\t{URL}\t)[\d.]+\n"
        rf"issue-55\t{URL}\t[\d.]+\n"
        r"\1[\d.]+\n"
        rf"(issue-(42|55)\t(running|hibernating)\t{TIME}\n){{2}}"
        r"issue-55 is hibernating (after [\d.]+ s|already)\n",
        "",
    ),
    "exec 'issue-*'": (
        rf"(issue-(42|55): {platform.system()}\n){{2}}(issue-(42|55): v1\n){{2}}",
        r"^2 done\n",
    ),
    "env push": (
        r"stored MY_KEY\n"
        r"(issue-(42|55): ANTHROPIC_API_KEY, MY_KEY; git as Ann <ann@example\.org>\n){2}"
        r"(issue-(42|55): (ANTHROPIC_API_KEY|MY_KEY): current\n){4}"
        r"a new value\n",
        r"2 left asleep: dev, dev-main (.|\n)*dev got its new keys: ANTHROPIC_API_KEY, MY_KEY",
    ),
    "list --json | python3": (
        rf"((dev|dev-main|issue-42|issue-55) (running|hibernating) {URL}\n){{4}}"
        r"dev\ndev-main\nissue-42\nissue-55\n"
        r"the command ended with 7\n",
        "",
    ),
    "destroy dev": (
        "".join(rf"destroyed {n}\n" for n in ("issue-42", "issue-55", "dev", "dev-main")),
        "",
    ),
}


@pytest.mark.long
def test_the_workflows_are_true(thopters: Thopters, emulator: Emulator, shell: Shell) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", section(README, "Workflows"), re.M | re.S)
    assert blocks, "README.md shows no workflows"
    expected = dict(WORKFLOWS)
    thopters.env |= ENVIRONMENT
    for block in blocks:
        emulator.idle_s = 1.0 if "pause" in block else 30.0
        words = [words for words in expected if words in block]
        assert len(words) == 1, f"say in one entry what this shall print:\n{block}"
        out, err = expected.pop(words[0])
        done = shell(block)
        assert done.code == 0, f"{block}{done}"
        assert re.fullmatch(out, done.out), f"{block}{done}"
        assert re.search(err, done.err), f"{block}{done}"
        assert "error" not in done.err, f"{block}{done}"
        if "--private" in block:
            assert emulator.sprite("dev").url_settings == {"auth": "sprite"}
    assert not expected, "README.md shows these no more"
    assert not emulator.sprites


# the help


# Those whose exit status is not 0, and why
STATUSES = {
    "thopters setup": 2,  # nobody to ask
    "thopters setup --from-env": 2,  # nothing in the environment
    "thopters destroy dev": 2,  # nobody to ask
    "thopters restore dev v3": 2,  # nobody to ask
    "thopters rename dev dev-2": 1,  # the platform cannot
    "thopters list --watch": 143,  # it runs until somebody ends it
    "thopters proxy dev 8080": 143,
    "thopters proxy dev 3001:3000": 143,
    "thopters proxy dev 3000 8080 --native": 143,
    "thopters attach dev": 3,  # nothing runs, and nothing ran
    "thopters attach dev tests": 3,
    "thopters kill dev tests": 3,
    "thopters kill dev tests --signal INT": 3,
    "thopters logs dev": 3,
    "thopters logs dev -f --tail 20": 3,
    "thopters logs dev --since 1h": 3,
    "thopters wait dev": 3,
    "thopters wait dev tests --timeout 2h": 3,
    "thopters ssh --setup dev": 2,  # nobody to ask
    "thopters ssh dev": 2,
    "thopters ssh dev -L 8080:localhost:80 -N": 2,
    "thopters ssh dev 'cd src && make'": 2,
}
# What shows that a command has arrived: a file in the sprite's home
EFFECTS = {
    "thopters exec dev --dir src --env CI=1 -- make test": "src/tested",
    "thopters exec dev -i -- tar xz < files.tar.gz": "unpacked.txt",
    "thopters cp notes.txt src dev:work": "work/notes.txt",
    "thopters exec dev -- git clone https://github.com/user/repo": "repo/.git/config",
}
PROGRAMS = {"make", "git"}  # of the sprite's; an emulated one has those of this machine


def commands(thopters: Thopters) -> list[str]:
    """Return the commands that the overview names."""
    listed = thopters("--help").out.split("\n\n")[2:-3]  # before them is what it is
    groups = [block.splitlines()[1:] for block in listed]
    row_of = r"  ([a-z]+(?: [a-z]+)?)(?:, [a-z]+)*  +\S"
    found = [re.match(row_of, row) for rows in groups for row in rows]
    return [row[1] for row in found if row]


def examples(text: str) -> list[str]:
    found = re.search(r"^examples:\n((?:  \S.*\n)+)\Z", text, re.M)
    assert found, f"there are no examples:\n{text}"
    return [line.strip() for line in found[1].splitlines()]


def furnish(thopters: Thopters, emulator: Emulator) -> None:
    """Make what the examples speak of."""
    emulator.add_sprite("issue-42", status="running")
    emulator.add_sprite("issue-55")
    dev = emulator.add_sprite("dev")
    (dev.home / "src").mkdir()
    (dev.home / "src" / "Makefile").write_text('test:\n\ttest "$(CI)" != 1 || touch tested\n')
    (dev.home / "Makefile").write_text("test:\n")
    remote = f"{dev.machine.home_inside}/remote/"
    (dev.home / ".gitconfig").write_text(f'[url "{remote}"]\n\tinsteadOf = https://github.com/\n')
    if shutil.which("git"):
        bare = dev.home / "remote" / "user" / "repo"
        subprocess.run(["git", "init", "--quiet", "--bare", str(bare)], check=True)
    (dev.home / "work").mkdir()
    (dev.home / "work" / "lines.txt").write_text("1\n")
    (thopters.home / "notes.txt").write_text("notes\n")
    for name in ("my-key.txt", "deploy-key.txt"):
        (thopters.home / name).write_text("a key\n")
    (thopters.home / "src").mkdir(exist_ok=True)
    dev.machine.own(dev.home)
    for _ in range(3):
        dev.add_checkpoint("")
    with tarfile.open(thopters.home / "files.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("unpacked.txt"), io.BytesIO())


# Ends a program that runs for ever, once it has printed its first line
UNTIL_IT_SPEAKS = "exec 3< <(exec %s); read -r line <&3; kill $!; wait $!"


def status_of(thopters: Thopters, shell: Shell, example: str) -> int:
    """Run an example as it is printed, on a platform of its own, and return its exit status."""
    with Emulator(idle_s=0.5 if "pause" in example else 30.0) as emulator:
        thopters.use(emulator)
        if not example.startswith("thopters create"):
            furnish(thopters, emulator)
        if re.search(r"env (push|check|unset)|init 'issue", example):
            config = thopters.home / ".sprite-thopters" / "config.json"
            write(config, {"secrets": {"MY_KEY": "a key"}})
            assert thopters("init", "dev", "issue-42").code == 0
        before = set(emulator.sprites)
        done = shell(UNTIL_IT_SPEAKS % example if STATUSES.get(example) == 143 else example)
        if done.code == 0 and example in EFFECTS:
            assert (emulator.sprite("dev").home / EFFECTS[example]).exists(), done
        if done.code:
            assert not emulator.journal.requests("DELETE"), done
            assert set(emulator.sprites) == before, done
        assert not [text for text in emulator.journal.oddities if "Traceback" in text]
        return done.code


@pytest.mark.long
def test_the_examples_of_the_help_are_true(thopters: Thopters, shell: Shell) -> None:
    shown = examples(thopters("--help").out)
    for command in [*commands(thopters), "rename"]:
        shown += examples(thopters("help", *command.split()).out)
    shown = list(dict.fromkeys(shown))
    assert STATUSES.keys() | EFFECTS.keys() <= set(shown)
    missing = {word for word in PROGRAMS if not shutil.which(word)}
    expected = {
        example: 127 if missing & set(re.findall(r"\w+", example)) else STATUSES.get(example, 0)
        for example in shown
    }
    assert {example: status_of(thopters, shell, example) for example in shown} == expected


def test_the_table_of_commands_is_the_helps(thopters: Thopters) -> None:
    rows = re.findall(r"^\| (`.*?`) \| [^|]+ \|$", section(README, "Commands"), re.M)
    told = {}
    for cell in rows:
        words = re.sub(r"[`\[\]]", " ", cell).split()
        name = " ".join(words[:2])
        name = name if name in commands(thopters) else words[0]
        told[name] = {word for word in words if re.fullmatch(r"--?[A-Za-z-]*[a-zA-Z]", word)}
    assert sorted(told) == sorted([*commands(thopters), "rename"])
    everywhere = {"--help", "--json", "--verbose", "--debug"}
    for command, options in told.items():
        spelled = re.findall(r"^  (-.*?)(?:  |$)", thopters("help", *command.split()).out, re.M)
        known = [set(re.findall(r"(?<![\w-])--?[A-Za-z][a-z-]*", line)) for line in spelled]
        known = [names for names in known if not names & everywhere]
        if command == "help":
            known.append({"--version"})  # it stands in the same row
        assert known or not options
        assert options <= set().union(*known), f"README.md has more options of {command}"
        assert all(names & options for names in known), f"README.md lacks options of {command}"


def test_each_variable_that_counts_is_in_the_help_and_the_specification(
    thopters: Thopters,
) -> None:
    [line] = re.findall(r"^Environment: (.*)$", SPEC, re.M)
    page = thopters("help", "environment").out
    assert set(re.findall(r"`([A-Z_]{4,})`", line)) <= set(re.findall(r"[A-Z_]{4,}", page))
    rows = "\n".join(re.findall(r"^  [A-Z].*$", page, re.M))
    assert set(re.findall(r"^  ([A-Z_]{4,})", rows, re.M)) <= set(re.findall(r"[A-Z_]{4,}", line))


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_help_is_wider_than_the_window_or_80_columns(start: Start, columns: int) -> None:
    texts = [["--help"], ["help", "environment"], ["help", "exit-codes"], ["exec", "--help"]]
    for words in texts if columns == 40 else [["--help"]]:
        session = start(*words, columns=columns)
        assert session.end() == 0
        lines = session.output.decode().split("\r\n")
        assert max(map(len, lines)) <= min(columns, 80), max(lines, key=len)


def test_no_help_in_a_pipe_is_wider_than_80_columns(thopters: Thopters) -> None:
    words = [command.name for command in program.COMMANDS]
    for text in [program.help_on(word.split()) for word in [*words, *program.TOPICS]]:
        assert max(map(len, text.splitlines())) <= 80
    assert max(map(len, thopters().out.splitlines())) <= 80


# the exit codes


# In the README, the specification and the help alike
MEANINGS = {
    0: "done",
    1: "failed",
    2: "wrong usage",
    3: "no such sprite, checkpoint or session",
    4: "no token|not authenticated",
    5: "exists already",
    6: "limit",
    7: "timed out",
    127: "sprite`? program",
}


def table(text: str) -> dict[str, str]:
    """Return the rows of a table of codes: the first column, and the second."""
    rows = re.findall(r"^\| (\d[\d, ]*) \| (.*?) \|", text, re.M)
    assert len(dict(rows)) == len(rows) > 0
    return dict(rows)


def test_the_exit_codes_agree(thopters: Thopters) -> None:
    told = thopters("help", "exit-codes").out
    in_help = dict(re.findall(r"^  (\d+)  +(.+)$", told, re.M))
    in_readme, in_spec = table(section(README, "Exit codes")), table(section(SPEC, "6. Exit codes"))
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM)
    by_signal = ", ".join(str(128 + number) for number in signals)
    assert "ended by" in in_readme.pop(by_signal)
    assert "exec" in in_spec.pop("255") and "exec" in in_help.pop("255")
    for meanings in (in_help, in_readme, in_spec):
        assert list(meanings) == [str(code) for code in MEANINGS]
        for code, words in MEANINGS.items():
            assert re.search(words, meanings[str(code)]), (code, meanings)
    assert "255" in section(README, "Exit codes")
