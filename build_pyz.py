#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Bundle thopters.py into thopters.pyz, one file that runs wherever Python 3.11 or newer is.

The same sources give the same bytes: from every Python, under every umask, time zone, locale and
hash seed. Hence entries in a fixed order with a fixed date, mode and system, and stored, since
what deflate makes depends on the zlib at hand. To verify a download, build from the tag's sources
and compare, with --check or with sha256sum.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import io
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (the file itself parses on 3.9)
    sys.stderr.write(
        f"build_pyz: error: Python 3.11 or newer is needed; this is {sys.version.split()[0]}\n"
        "hint: run it with a newer one, such as: python3.12 build_pyz.py\n"
    )
    sys.exit(2)

HERE = Path(__file__).resolve().parent
SHEBANG = b"#!/usr/bin/env python3\n"
ENTRY_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold

STUB = '''\
"""thopters @VERSION@: check the Python, then run the thopters.py beside this file."""
# Has to parse on every Python from 2.7 on: ASCII, no f-strings, no annotations.
import sys

if sys.version_info < (3, 11):
    sys.stderr.write(
        "thopters: error: Python 3.11 or newer is needed; this is Python %s (%s)\\n"
        "hint: run it with a newer one, such as: python3.12 %s\\n"
        % (sys.version.split()[0], sys.executable, sys.argv[0])
    )
    sys.exit(2)

import os  # part of the interpreter itself, and loaded already

import _signal  # likewise

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # to compile takes a while: no traceback


def full(path):
    return os.path.normcase(os.path.abspath(path))


# The program needs the standard library and nothing else, and a json.py in some folder of
# PYTHONPATH must not stand in for the real one. So before the first true import those folders
# leave sys.path, and this archive too (its own loader is used below). What the interpreter has
# imported by now is out of reach: encodings, importlib and what they need, sitecustomize.
# Only `python3 -I` keeps PYTHONPATH away from those as well.
here = os.path.dirname(__file__)
unwanted = {full(here)}
if os.environ.get("PYTHONPATH") and not sys.flags.ignore_environment:
    unwanted.update(full(path) for path in os.environ["PYTHONPATH"].split(os.pathsep))
library = os.path.dirname(os.__file__)
for path in library, os.path.join(library, "lib-dynload"), os.path.join(sys.base_prefix, "DLLs"):
    unwanted.discard(full(path))  # listed there or not, these it cannot do without
# Python made its own entries absolute; the rest are no folders but marks of editable installs.
sys.path[:] = [path for path in sys.path if not os.path.isabs(path) or full(path) not in unwanted]

# A plain `import thopters` from a zip compiles the source twice (cpython issue 141276), and again
# in each run, as zipimport keeps no bytecode. Here it is compiled once and kept, as Python keeps
# it for every other module, with PYTHONDONTWRITEBYTECODE to forbid it.
import marshal
from binascii import crc32
from importlib.machinery import ModuleSpec


def cache_folder():
    """Return where bytecode may be kept; None without a home of the user's own."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", ""), ".cache")
    home = os.path.dirname(base)
    if os.name != "posix" or not os.path.isabs(base) or not os.path.isdir(home):
        return None
    return os.path.join(base, "thopters") if os.stat(home).st_uid == os.geteuid() else None


FOLDER, FILE = 4, 8  # the first bits of a mode


def is_ours(status, kind):
    """Return whether something is of a kind, and nobody else can have put it or changed it."""
    mode = status.st_mode
    return mode >> 12 == kind and status.st_uid == os.geteuid() and not mode & 0o022


def read_kept(path, stamp):
    """Return the code that was kept; None unless it is whole, and ours with its folder."""
    try:
        if not is_ours(os.lstat(os.path.dirname(path)), FOLDER):
            return None
        # neither through a link nor from a pipe
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not is_ours(os.fstat(file.fileno()), FILE):
                return None
            data = file.read()
    except OSError:
        return None
    body = data[len(stamp) + 4 :]
    if data[: len(stamp) + 4] != stamp + crc32(body).to_bytes(4, "little"):
        return None
    return marshal.loads(body)


def keep(path, stamp, code):
    """Keep the code in place of an older one; a failure costs nothing but time."""
    body = marshal.dumps(code)
    temporary = "%s.%d" % (path, os.getpid())
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        if not is_ours(os.lstat(os.path.dirname(path)), FOLDER):
            return
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(stamp + crc32(body).to_bytes(4, "little") + body)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
    except OSError:
        pass


def program(source, path):
    """Return the program's code, compiled now or in an earlier run."""
    folder = cache_folder()
    if folder is None:
        return compile(source, path, "exec", dont_inherit=True)
    kept = os.path.join(folder, "%s-%d" % (sys.implementation.cache_tag, sys.flags.optimize))
    name = path.encode("utf-8", "surrogateescape")  # it stands in the code, for tracebacks
    marks = sys.hexversion, len(source), crc32(source), crc32(name)
    stamp = b"".join(mark.to_bytes(4, "little") for mark in marks)
    code = read_kept(kept, stamp)
    if code is None:
        code = compile(source, path, "exec", dont_inherit=True)
        if not sys.dont_write_bytecode:
            keep(kept, stamp, code)
    return code


path = os.path.join(here, "thopters.py")
module = sys.modules["thopters"] = type(sys)("thopters")
module.__file__ = path
module.__loader__ = __loader__  # tracebacks ask it for the source
module.__spec__ = ModuleSpec("thopters", __loader__, origin=path)
exec(program(__loader__.get_data(path), path), module.__dict__)
module.leave(module.main())
'''


class BuildError(Exception):
    """Why there is no archive, or why the one at hand is not the right one."""


def read_source(name: str) -> bytes:
    """Return the bytes of a source file, once they are known to be the same everywhere."""
    data = (HERE / name).read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BuildError(f"{name}: not UTF-8: byte {exc.start}") from exc
    if b"\r" in data:
        line = data.count(b"\n", 0, data.index(b"\r")) + 1
        raise BuildError(f"{name}: line {line} has a carriage return; lines must end in LF alone")
    return data


def read_version(source: bytes) -> str:
    """Return __version__ without running the program; refuse all but one plain literal."""
    found = [
        node.value.value if isinstance(node.value, ast.Constant) else None
        for node in ast.parse(source, "thopters.py").body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    version = found[0] if len(found) == 1 else None
    if not isinstance(version, str) or not re.fullmatch(r"[0-9][0-9A-Za-z.+-]*", version):
        raise BuildError('thopters.py: wants one line like __version__ = "1.2.3"')
    return version


def entries() -> list[tuple[str, bytes]]:
    """Return what goes into the archive, in its order."""
    program = read_source("thopters.py")
    stub = STUB.replace("@VERSION@", read_version(program)).encode("ascii")
    return [("__main__.py", stub), ("thopters.py", program), ("LICENSE", read_source("LICENSE"))]


def archive(contents: list[tuple[str, bytes]]) -> bytes:
    """Return the zip with its shebang; the bytes depend on `contents` alone."""
    buffer = io.BytesIO()
    buffer.write(SHEBANG)
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, data in contents:
            info = zipfile.ZipInfo(name, ENTRY_DATE)
            info.compress_type = zipfile.ZIP_STORED
            info.create_system = 3  # Unix, on Windows too
            info.external_attr = 0o100644 << 16
            bundle.writestr(info, data)
    return buffer.getvalue()


def checksum_line(path: Path, data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()}  {path.name}\n"


def publish(files: list[tuple[Path, bytes, int]]) -> None:
    """Write every file beside its place first, and only then put them there."""
    ready: list[tuple[str, Path]] = []
    try:
        for path, data, mode in files:
            if path.exists() and not path.is_file():
                raise BuildError(f"{path}: not a file")
            fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            ready.append((temporary, path))
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.chmod(temporary, mode)  # not what mkstemp or the umask say
        for temporary, path in ready:
            os.replace(temporary, path)
    finally:
        for temporary, _ in ready:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def difference(data: bytes, contents: list[tuple[str, bytes]]) -> str:
    """Say in a few words how an archive that differs from a fresh build does so."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as bundle:
            found = {info.filename: bundle.read(info) for info in bundle.infolist()}
    except Exception as exc:  # zipfile has a dozen ways to refuse strange bytes
        return f"no sound zip archive ({exc})"
    wanted = dict(contents)
    names = [name for name in wanted | found if wanted.get(name) != found.get(name)]
    return ", ".join(names) or "the order, dates, modes, packing or first line"


def check(path: Path, contents: list[tuple[str, bytes]], line: str) -> None:
    """Raise BuildError, saying what differs, unless the file is what a build would give."""
    checksum = path.with_name(path.name + ".sha256")
    if not path.exists():
        raise BuildError(f"{path}: missing")
    data = path.read_bytes()
    if data != archive(contents):
        raise BuildError(f"{path}: not what these sources give: {difference(data, contents)}")
    if checksum.exists() and checksum.read_bytes() != line.encode():
        raise BuildError(f"{checksum}: not the checksum of {path.name}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="build_pyz", description=(__doc__ or "").split("\n")[0])
    output = HERE / "thopters.pyz"
    parser.add_argument("--output", type=Path, metavar="FILE", default=output, help="write here")
    same = "write nothing; exit 1 unless FILE (default: the output) is what a build would give"
    parser.add_argument("--check", nargs="?", const=True, metavar="FILE", help=same)
    args = parser.parse_args(argv)
    path = args.output if args.check in (None, True) else Path(args.check)
    try:
        if not path.name:
            raise BuildError(f"{str(args.check or path)!r} names no file")
        contents = entries()
        data = archive(contents)
        line = checksum_line(path, data)
        if args.check is None:
            checksum = path.with_name(path.name + ".sha256")
            publish([(path, data, 0o755), (checksum, line.encode(), 0o644)])
        else:
            check(path, contents, line)
    except (BuildError, OSError, SyntaxError) as exc:
        sys.stderr.write(f"build_pyz: error: {exc}\n")
        return 1
    sys.stdout.write(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
