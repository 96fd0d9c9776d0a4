"""A shell on a terminal, with `thopters` in its PATH: keys go in, words of a line come out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from emulation import write_launcher

from support.program import Thopters
from support.terminals import Session

ARGV = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
# `words` prints its words; each shell says when it is ready for the next line
SETTINGS = {
    "bash": "PS1='> '; bind 'set bell-style none'; words() { printf '<%s>' \"$@\"; echo .; }",
    "zsh": "PS1='> '; unsetopt beep zle_bracketed_paste; words() { printf '<%s>' \"$@\"; echo . }",
    "fish": "function words; printf '<%s>' $argv; echo .; end",
}
LOAD = {
    "bash": 'eval "$(thopters completion bash)"',
    "zsh": 'eval "$(thopters completion zsh)"',
    "fish": "thopters completion fish | source",
}
START_OF_LINE = "\x01"


class Shell(Session):
    """A shell that has read the script of the completion."""

    def __init__(self, thopters: Thopters, kind: str) -> None:
        path = shutil.which(kind, path=thopters.env["PATH"])
        if path is None:
            pytest.skip(f"{kind} is not installed")
        folder = thopters.home.parent / "launchers"
        write_launcher(folder, "thopters", thopters.argv)
        usual = thopters.argv, dict(thopters.env)
        thopters.env |= {"PATH": f"{folder}:{thopters.env['PATH']}", "TERM": "xterm"}
        thopters.argv = [path, *ARGV[kind][1:]]
        super().__init__(thopters, (), 200, rows=50)
        thopters.argv, thopters.env = usual
        self.run(SETTINGS[kind])
        self.run(LOAD[kind])

    def run(self, line: str) -> None:
        """Run a line, to its end."""
        self.type(f"{line}; echo do''ne\r")
        self.expect("done\r\n")

    def words(self, keys: str) -> list[str]:
        """Type keys on a line, with Tab among them; return the words that the line then has."""
        self.type(keys + START_OF_LINE + "words \r")
        begin = self._seen
        self.expect(">.\r\n")
        printed = re.findall(rb"<[^\r\n]*>\.\r\n", self.output[begin : self._seen])[-1]
        return str(printed[1:-4].decode()).split("><")

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def local_files(folder: Path) -> None:
    """Make files whose names a shell has to quote."""
    (folder / "notes of today.txt").write_text("")
    (folder / "pictures").mkdir()
