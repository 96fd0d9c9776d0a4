"""What the tests of `cp` share: trees of files, what is left of them, and tars that lie."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from emulation import exec
from emulation.state import Sprite

import thopters as program


def described(folder: Path) -> str:
    """Return kinds, modes, targets, times and sizes of all but directories, by find."""
    told = subprocess.run(
        ["find", ".", "-type", "l", "-printf", r"%P %l\0", "-o", "-type", "f",
         "-printf", r"%P %m %Ts %s\0"],
        cwd=folder, capture_output=True, check=True,
    )  # fmt: skip
    return "\n".join(sorted(told.stdout.decode("latin-1").split("\0")))


def same(one: Path, other: Path) -> None:
    subprocess.run(["diff", "-r", "--no-dereference", str(one), str(other)], check=True)


def leftovers(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.glob("*thopters-*")] + [
        path for folder in folders for path in folder.glob(".thopters-*")
    ]


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def a_copy() -> program.Copy:
    return program.Copy(program.Console(io.StringIO(), io.StringIO(), {}))


def pack(*paths: Path, style: str = "") -> tuple[program.Copy, bytes]:
    """Pack files as `upload` does, and return the stream that a sprite gets."""
    copy = a_copy()
    sources = [(str(path), path.name) for path in paths]
    stream = io.BytesIO()
    program.Packer(copy, sources, program.CopyStyle(style)).pack(stream)
    return copy, stream.getvalue()


def unpacker(
    folder: Path, sources: Sequence[str] = (".",), *, style: str = "", umask: int = 0
) -> program.Unpacker:
    (folder / "t").mkdir()
    tree = program.Tree(str(folder))
    return program.Unpacker(a_copy(), tree, sources, program.CopyStyle(style), umask)


def unpack(folder: Path, data: bytes, sources: Sequence[str] = (".",), **how: Any) -> program.Copy:
    """Unpack a stream as `download` does, links and all."""
    taker = unpacker(folder, sources, **how)
    copy = taker._copy
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=copy.run, args=(taker.unpack, theirs, "rb"))
    thread.start()
    with ours, contextlib.suppress(ConnectionError):
        ours.sendall(data)
    thread.join(30)
    assert not thread.is_alive()
    if copy.is_whole:
        try:
            taker.finish()
        except program.Garbled as error:
            copy.error = error
    return copy


def archive(*members: tarfile.TarInfo, data: bytes = b"evil") -> bytes:
    """Return a tar stream of these; each file holds as much of `data` as its header says."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as made:
        for each in members:
            made.addfile(each, io.BytesIO(data) if each.isreg() else None)
    return stream.getvalue()


def put_program(sprite: Sprite, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Put a program of our own into the sprite."""
    (folder := sprite.home / ".programs").mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    path = f"{sprite.machine.home_inside}/.programs:/usr/bin:/bin"
    monkeypatch.setattr(exec, "DEFAULT_PATH", path)
    sprite.machine.own(sprite.home)


def put_tar(sprite: Sprite, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    put_program(sprite, monkeypatch, "tar", script)


def evil(sprite: Sprite, monkeypatch: pytest.MonkeyPatch, *members: tarfile.TarInfo) -> None:
    """Have the sprite's tar send these, as of its first source, for what was asked for."""
    for each in members:
        each.name = f".//{each.name}"
        if each.islnk():
            each.linkname = f".//{each.linkname}"
    (sprite.home / "x").mkdir(exist_ok=True)
    (sprite.home / "stream").write_bytes(archive(*members))
    put_tar(sprite, monkeypatch, f"cat {sprite.machine.home_inside}/stream")
