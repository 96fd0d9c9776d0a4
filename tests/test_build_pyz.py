"""The archive: reproducible, runnable, not to be shadowed, polite to old Pythons.

Everything is built from a copy of the sources, so that nothing is written in the repository.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
import zipimport
from pathlib import Path
from types import ModuleType

import pytest
from support.archives import (
    SHEBANG,
    SOURCES,
    SUPPORTED,
    TOO_OLD,
    assert_greeting,
    build,
    clean_env,
    copy_sources,
    plant,
    python,
    run,
)
from support.pythons import SEARCH_PATH

MEMBERS = ["__main__.py", "thopters.py", "LICENSE"]

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes or shebangs")

# A program in thopters.py's place that imports what the real one may need, at any time.
PROBE = '''
"""What the probe is."""
__version__ = "0.0.1"
import argparse, asyncio, base64, datetime, email.utils, getpass, hashlib, http.client, json
import logging, os, random, re, secrets, select, shlex, shutil, signal, socket, ssl, struct
import subprocess, sys, tempfile, textwrap, threading, time, traceback, urllib.request, uuid


def main():
    try:
        raise ValueError("on purpose")  # this very line
    except ValueError:
        trace = traceback.format_exc()
    module = sys.modules["thopters"]
    print(json.dumps({
        "name": __name__, "same": module.main is main, "doc": __doc__, "file": __file__,
        "path": sys.path, "trace": trace, "argv": sys.argv[1:],
    }))
    return 5


def leave(status):
    sys.exit(status)
'''


def load_builder(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_pyz_copy", folder / "build_pyz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sources, thopters.pyz and its checksum; not to be changed."""
    folder = copy_sources(tmp_path_factory.mktemp("built") / "sources")
    done = build(folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.fixture
def pyz(built: Path) -> Path:
    """Return the archive in that folder; the suite's own has no sources beside it."""
    return built / "thopters.pyz"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive, not to be changed, with the probe in the program's place."""
    folder = copy_sources(tmp_path_factory.mktemp("probe") / "sources", PROBE)
    assert build(folder).returncode == 0
    return folder / "thopters.pyz"


def runs(done: subprocess.CompletedProcess[str]) -> bool:
    """Say whether `--version` printed what it should."""
    return done.returncode == 0 and done.stdout.startswith("thopters ") and not done.stderr


# --- the same bytes everywhere ----------------------------------------------------------


def test_output_names_the_sum_and_the_file(built: Path) -> None:
    sum_line = (built / "thopters.pyz.sha256").read_text()
    digest = hashlib.sha256((built / "thopters.pyz").read_bytes()).hexdigest()
    assert sum_line == f"{digest}  thopters.pyz\n"
    again = build(built, "--output", built / "again.pyz")
    assert again.stdout == f"{digest}  again.pyz\n"
    assert (built / "again.pyz").read_bytes() == (built / "thopters.pyz").read_bytes()
    assert sorted(path.name for path in built.iterdir()) == sorted(
        [*SOURCES, *("thopters.pyz", "thopters.pyz.sha256", "again.pyz", "again.pyz.sha256")]
    )


@posix_only
@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes_are_the_same_under_every_umask(tmp_path: Path, pyz: Path, umask: int) -> None:
    target = tmp_path / "out.pyz"
    done = run(sys.executable, pyz.with_name("build_pyz.py"), "--output", target, umask=umask)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == pyz.read_bytes()
    assert target.stat().st_mode & 0o7777 == 0o755
    assert target.with_name("out.pyz.sha256").stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize(
    "extra",
    [
        {"TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1700000000"},
        {"TZ": "America/St_Johns", "PYTHONHASHSEED": "7"},
        {"LC_ALL": "C", "PYTHONHASHSEED": "0"},
        {"LC_ALL": "tr_TR.UTF-8", "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "2"},
    ],
    ids=" ".join,
)
def test_environment_leaves_no_trace(tmp_path: Path, pyz: Path, extra: dict[str, str]) -> None:
    target = tmp_path / "out.pyz"
    builder = pyz.with_name("build_pyz.py")
    done = run(sys.executable, builder, "--output", target, env=clean_env(**extra), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == pyz.read_bytes()


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_python_builds_the_same(tmp_path: Path, pyz: Path, version: str) -> None:
    target = tmp_path / "out.pyz"
    done = run(python(version), pyz.with_name("build_pyz.py"), "--output", target)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == pyz.read_bytes()


def test_dates_and_modes_of_the_sources_do_not_matter(tmp_path: Path, pyz: Path) -> None:
    folder = copy_sources(tmp_path / "sources")
    for name in SOURCES:
        os.utime(folder / name, (1e9, 1e9))
        (folder / name).chmod(0o600)
    assert build(folder).returncode == 0
    assert (folder / "thopters.pyz").read_bytes() == pyz.read_bytes()


def test_entries(built: Path, pyz: Path) -> None:
    data = pyz.read_bytes()
    assert data.startswith(SHEBANG + b"PK\x03\x04")
    with zipfile.ZipFile(pyz) as bundle:
        assert bundle.testzip() is None
        assert bundle.namelist() == MEMBERS
        assert bundle.comment == b""  # an archive cut inside its comment would still run
        for info in bundle.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.create_system, info.external_attr) == (3, 0o100644 << 16)
            assert info.extra == info.comment == b""
        for name in ("thopters.py", "LICENSE"):
            assert bundle.read(name) == (built / name).read_bytes()


def test_other_tools_can_read_it(pyz: Path) -> None:
    if not shutil.which("unzip", path=SEARCH_PATH):
        pytest.skip("no unzip here")
    tested = run("unzip", "-t", pyz)  # 1 would be a warning, as for offsets that do not fit
    assert tested.returncode == 0, tested.stdout + tested.stderr
    listed = run("unzip", "-Z1", pyz)
    assert listed.stdout.split() == MEMBERS


def test_sha256sum_accepts_the_checksum(built: Path) -> None:
    if not shutil.which("sha256sum", path=SEARCH_PATH):
        pytest.skip("no sha256sum here")
    done = run("sha256sum", "-c", "thopters.pyz.sha256", cwd=built)
    assert (done.returncode, done.stdout) == (0, "thopters.pyz: OK\n")


# --- the builder's refusals -------------------------------------------------------------


def test_check_accepts_a_fresh_build_and_writes_nothing(built: Path, pyz: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in built.iterdir()}
    expected = (built / "thopters.pyz.sha256").read_text()
    for args in (["--check"], ["--check", pyz], ["--output", pyz, "--check"]):
        done = build(built, *args)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    assert {path.name: path.stat().st_mtime_ns for path in built.iterdir()} == before


def test_check_says_what_differs(tmp_path: Path) -> None:
    folder = copy_sources(tmp_path / "sources")
    archive = folder / "thopters.pyz"

    def complaint() -> str:
        done = build(folder, "--check")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("build_pyz: error: ") and done.stderr.count("\n") == 1
        return done.stderr

    assert "missing" in complaint()
    assert build(folder).returncode == 0
    good = archive.read_bytes()
    for name in ("thopters.py", "LICENSE"):
        source = (folder / name).read_bytes()
        (folder / name).write_bytes(source + b"\n")
        assert complaint().endswith(f" {name}\n")
        (folder / name).write_bytes(source)
    archive.write_bytes(good[:-1])
    assert "no sound zip archive" in complaint()
    archive.write_bytes(good.replace(b"env python3\n", b"env python2\n", 1))
    assert "first line" in complaint()
    with zipfile.ZipFile(archive, "a") as bundle:
        bundle.writestr("extra.py", b"")
    assert complaint().endswith(" extra.py\n")
    archive.write_bytes(good)
    (folder / "thopters.pyz.sha256").write_text("0  thopters.pyz\n")
    assert "not the checksum" in complaint()
    assert archive.read_bytes() == good


def test_check_looks_at_the_file_it_is_given(tmp_path: Path, built: Path) -> None:
    other = tmp_path / "other.pyz"
    done = build(built, "--check", other)
    assert (done.returncode, done.stdout) == (1, "") and f"{other}: missing" in done.stderr
    shutil.copy(built / "thopters.pyz", other)
    done = build(built, "--check", other)
    assert done.returncode == 0 and done.stdout.endswith("  other.pyz\n")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("thopters.py", b'__version__ = "1"\r\n', "line 1 has a carriage return"),
        ("thopters.py", b'__version__ = "1"\n# \xe9\n', "not UTF-8"),
        ("LICENSE", b"one\ntwo\r\n", "line 2 has a carriage return"),
        ("thopters.py", b"def main(): pass\n", "__version__"),
        ("thopters.py", b'__version__ = "1"\n__version__ = "2"\n', "__version__"),
        ("thopters.py", b'__version__ = "1" + "2"\n', "__version__"),
        ("thopters.py", b"__version__ = '1\"'\n", "__version__"),
        ("thopters.py", b'__version__ = "1"\n(\n', "never closed"),
    ],
)
def test_unfit_sources_are_refused(
    tmp_path: Path, name: str, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_sources(tmp_path / "sources", PROBE)
    (folder / name).write_bytes(content)
    assert load_builder(folder).main([]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"build_pyz: error: {'' if '(' in err else name}")
    assert reason in err
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == sorted(SOURCES)


def test_missing_source(tmp_path: Path) -> None:
    folder = copy_sources(tmp_path / "sources")
    (folder / "LICENSE").unlink()
    done = build(folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert "LICENSE" in done.stderr and "Traceback" not in done.stderr


def test_building_never_runs_the_program(tmp_path: Path) -> None:
    program = '__version__ = "1.2.3"\nraise SystemExit("the program ran")\n'
    folder = copy_sources(tmp_path / "sources", program)
    done = build(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert b"thopters 1.2.3" in (folder / "thopters.pyz").read_bytes()[:200]


@posix_only
def test_failed_write_leaves_the_old_files(tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the write itself fails, half-way."""
    folder = copy_sources(tmp_path / "sources")
    old = {"thopters.pyz": b"old archive", "thopters.pyz.sha256": b"old sum"}
    for name, data in old.items():
        (folder / name).write_bytes(data)
    before = sorted(path.name for path in folder.iterdir())
    limited = 'ulimit -f 1 && exec "$0" "$1"'  # in blocks of 512 or 1024 bytes
    done = run("/bin/sh", "-c", limited, sys.executable, folder / "build_pyz.py")
    assert done.returncode == 1
    assert done.stderr.startswith("build_pyz: error: ") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before
    assert {name: (folder / name).read_bytes() for name in old} == old


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_failure_at_each_step_leaves_the_old_files(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    folder = copy_sources(tmp_path / "sources", PROBE)
    (folder / "thopters.pyz").write_bytes(b"old")
    builder = load_builder(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        assert builder.main([]) == 1
    assert "No space left" in capsys.readouterr().err
    assert (folder / "thopters.pyz").read_bytes() == b"old"
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {*SOURCES, "thopters.pyz"}


# --- running it -------------------------------------------------------------------------


@pytest.mark.parametrize("version", SUPPORTED)
def test_runs_on_every_supported_python(pyz: Path, version: str) -> None:
    # -X dev and -W error turn a stray warning, say about an open file, into a failure
    assert runs(run(python(version), "-X", "dev", "-W", "error", pyz, "--version"))
    helped = run(python(version), "-I", pyz, "--help")
    assert helped.returncode == 0 and "thopters" in helped.stdout and not helped.stderr


@posix_only
def test_runs_from_anywhere_by_any_name(tmp_path: Path, pyz: Path) -> None:
    """As an executable with the shebang: without suffix, with spaces, by link, read-only."""
    here = tmp_path / "a folder, read-only"
    here.mkdir()
    program = here / "thopters"
    shutil.copy(pyz, program)
    link = tmp_path / "th"
    link.symlink_to(program)
    first = tmp_path / "bin"
    first.mkdir()
    (first / "python3").symlink_to(sys.executable)
    env = clean_env(PATH=f"{first}{os.pathsep}{SEARCH_PATH}")
    here.chmod(0o555)
    try:
        for argv0, cwd in ((program, tmp_path), (link, tmp_path), ("./thopters", here)):
            assert runs(run(argv0, "--version", env=env, cwd=cwd))
        assert runs(run(sys.executable, "thopters", "--version", cwd=here))
        assert os.listdir(here) == ["thopters"]
    finally:
        here.chmod(0o755)


@pytest.mark.parametrize("version", SUPPORTED)
def test_source_is_compiled_once(tmp_path: Path, pyz: Path, version: str) -> None:
    """A sitecustomize is the one thing of PYTHONPATH that is loaded, and watches the rest."""
    log = tmp_path / "log"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, args):\n"
        "    if event == 'compile':\n"
        f"        with open({str(log)!r}, 'a') as file:\n"
        "            file.write(os.path.basename(str(args[1])) + '\\n')\n"
        "sys.addaudithook(hook)\n"
    )
    done = run(python(version), "-B", pyz, "--version", env=clean_env(PYTHONPATH=str(tmp_path)))
    assert runs(done)
    compiled = log.read_text().split()
    assert compiled.count("thopters.py") == 1


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("form", ["archive", "directory"])
def test_module_is_what_a_plain_import_would_give(
    tmp_path: Path, probe: Path, version: str, form: str
) -> None:
    target = probe
    if form == "directory":
        target = tmp_path / "unzipped"
        with zipfile.ZipFile(probe) as bundle:
            bundle.extractall(target)
    done = run(python(version), target, "one", "two")
    assert (done.returncode, done.stderr) == (5, "")  # main's own status
    seen = ast.literal_eval(done.stdout.replace("true", "True"))
    assert (seen["name"], seen["same"], seen["doc"]) == ("thopters", True, "What the probe is.")
    assert seen["file"] == str(target / "thopters.py")
    assert 'raise ValueError("on purpose")  # this very line' in seen["trace"]
    assert seen["argv"] == ["one", "two"]
    assert str(target) not in seen["path"]


# --- nothing stands in for the standard library ------------------------------------------


def loaded_before_main(interpreter: str, flags: list[str], folder: Path) -> set[str]:
    """Return the top-level modules that an interpreter has imported before any __main__."""
    spy = folder / "spy.pyz"
    with zipfile.ZipFile(spy, "w") as bundle:
        bundle.writestr("__main__.py", "import sys; print(*sys.modules)")
    return {name.partition(".")[0] for name in run(interpreter, *flags, spy).stdout.split()}


@pytest.mark.parametrize(
    "flags",
    [pytest.param([], id="site"), pytest.param(["-S"], id="no-site", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("version", SUPPORTED)
def test_no_module_is_shadowed(tmp_path: Path, probe: Path, version: str, flags: list[str]) -> None:
    """Every module of the library that the interpreter has not imported itself is planted."""
    interpreter = python(version)
    loaded = loaded_before_main(interpreter, flags, tmp_path)
    names = (set(sys.stdlib_module_names) - loaded) | {"thopters", "LICENSE", "os", "site", "io"}
    assert {"json", "ssl", "socket", "argparse", "subprocess"} <= names
    mark = tmp_path / "mark"
    evil = plant(tmp_path / "evil", names - {"__main__"}, mark)
    unzipped = tmp_path / "unzipped"
    shutil.copytree(evil, unzipped)
    with zipfile.ZipFile(probe) as bundle:
        bundle.extractall(unzipped)
    both = os.pathsep.join([str(tmp_path / "none"), str(evil)])
    for target, cwd, python_path in (
        (probe, evil, None),
        (probe, tmp_path, str(evil)),
        (probe, tmp_path, "./evil/"),
        (probe, evil, os.pathsep),
        (probe, evil, both),
        (unzipped, evil, "."),
        (Path("unzipped"), tmp_path, both),
        (Path("."), unzipped, None),
        (Path("__main__.py"), unzipped, None),
    ):
        env = clean_env() if python_path is None else clean_env(PYTHONPATH=python_path)
        done = run(interpreter, *flags, target, cwd=cwd, env=env)
        where = f"{target} in {cwd} with PYTHONPATH {python_path}: {done.stderr}"
        assert not mark.exists(), where + mark.read_text()
        assert done.returncode == 5, where
        path = ast.literal_eval(done.stdout.replace("true", "True"))["path"]
        assert not {str(evil), str(unzipped), "", ".", "evil", "unzipped"} & set(path), where


def test_real_program_amid_hostile_modules(tmp_path: Path, pyz: Path) -> None:
    mark = tmp_path / "mark"
    evil = plant(tmp_path / "evil", {"json", "ssl", "socket", "argparse", "thopters"}, mark)
    for cwd, python_path in ((evil, "."), (tmp_path, "evil"), (tmp_path, str(evil))):
        env = clean_env(PYTHONPATH=python_path)
        assert runs(run(sys.executable, pyz, "--version", cwd=cwd, env=env))
        assert run(sys.executable, pyz, "--help", cwd=cwd, env=env).returncode == 0
    assert not mark.exists()


@pytest.mark.parametrize("python_path", [":/nonexistent", "."])
def test_s13_only_the_interpreters_own_imports_can_come_from_the_working_directory(
    tmp_path: Path, pyz: Path, python_path: str
) -> None:
    """An empty entry of PYTHONPATH is the working directory too; -I keeps away all of it."""
    mark = tmp_path / "mark"
    evil = plant(tmp_path / "evil", {"json", "ssl", "argparse", "signal", "thopters"}, mark)
    env = clean_env(PYTHONPATH=python_path.replace(":", os.pathsep))
    assert runs(run(sys.executable, pyz, "--version", cwd=evil, env=env))
    assert run(sys.executable, pyz, "help", "list", cwd=evil, env=env).returncode == 0
    assert not mark.exists()
    own = tmp_path / "own"
    (evil / "sitecustomize.py").write_text(f"open({str(own)!r}, 'w').close()\n")
    assert runs(run(sys.executable, "-I", pyz, "--version", cwd=evil, env=env))
    assert not own.exists()
    assert runs(run(sys.executable, pyz, "--version", cwd=evil, env=env))
    assert own.exists()  # if that changes, SPEC 16 may promise more


@pytest.mark.parametrize("version", SUPPORTED)
def test_library_folders_on_pythonpath_stay(probe: Path, version: str) -> None:
    show = "import os; d = os.path.dirname(os.__file__); print(d, os.path.join(d, 'lib-dynload'))"
    folders = run(python(version), "-c", show).stdout.split()
    env = clean_env(PYTHONPATH=os.pathsep.join([*folders, str(probe)]))
    done = run(python(version), probe, env=env)
    assert (done.returncode, done.stderr) == (5, "")


@posix_only
def test_runs_where_the_working_directory_is_gone(tmp_path: Path, probe: Path) -> None:
    # (with a relative PYTHONPATH the interpreter itself gives up)
    gone = tmp_path / "gone"
    gone.mkdir()
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys; sys.path.append('a mark, not a folder')")
    script = 'rmdir ../gone && exec "$0" "$1"'
    env = clean_env(PYTHONPATH=str(site))
    done = run("/bin/sh", "-c", script, sys.executable, probe, cwd=gone, env=env)
    assert done.returncode == 5, done.stderr


# --- old Pythons and broken files --------------------------------------------------------


@pytest.mark.parametrize("version", TOO_OLD)
def test_archive_greets_old_pythons(tmp_path: Path, pyz: Path, version: str) -> None:
    odd = tmp_path / "caf\u00e9 100%s" / "thopters"
    odd.parent.mkdir()
    shutil.copy(pyz, odd)
    assert_greeting(run(python(version), pyz, "ls"), version)
    assert_greeting(run(python(version), odd, "ls", env=clean_env(LC_ALL="C")), version)


@pytest.mark.parametrize("version", ["3.9", "3.10"])
@pytest.mark.parametrize("name", ["thopters.py", "build_pyz.py"])
def test_sources_greet_old_pythons(built: Path, name: str, version: str) -> None:
    assert_greeting(run(python(version), "-B", built / name, "--version"), version)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="later parsers let f-strings pass")
def test_stub_parses_as_old_python(built: Path) -> None:
    stub = load_builder(built).STUB
    ast.parse(stub, feature_version=(3, 4))
    for newer in ("print(f'{stub}')", "stub: int = 1", "(stub := 1)"):
        with pytest.raises(SyntaxError):  # or the line above would prove nothing
            ast.parse(stub + newer, feature_version=(3, 4))


def test_stub_is_ascii_and_knows_its_version(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as bundle:
        stub = bundle.read("__main__.py").decode("ascii")
        source = bundle.read("thopters.py").decode()
    docstring = ast.get_docstring(ast.parse(stub))
    assert docstring is not None and "@" not in docstring
    assert f'__version__ = "{docstring.split()[1].rstrip(":")}"' in source


def test_truncated_archive_never_runs(tmp_path: Path, pyz: Path) -> None:
    """Cut short, it is no zip and so, for Python, a script whose second line can't be one.

    Cut inside its first line it is a script of one comment: nothing runs, but the exit status is 0.
    Only the checksum tells that.
    """
    data = pyz.read_bytes()
    end, start = len(data), len(SHEBANG)
    cut = tmp_path / "cut.pyz"
    points = [0, start - 1, start + 1, start + 30, start + 4000]
    for size in [*points, end // 2, end - 300, end - 22, end - 21, end - 1]:
        cut.write_bytes(data[:size])
        done = run(sys.executable, "-S", cut, "--version")
        assert done.stdout == ""
        assert done.returncode == (0 if size < start else 1), size


def test_truncated_archive_is_no_zip_wherever_it_is_cut(tmp_path: Path, pyz: Path) -> None:
    cut = tmp_path / "cut.pyz"
    shutil.copyfile(pyz, cut)
    end = cut.stat().st_size
    assert zipimport.zipimporter(str(cut)).archive == str(cut)
    zipimport._zip_directory_cache.clear()  # type: ignore[attr-defined]
    for size in [*range(end - 1, end - 400, -1), *range(end - 400, -1, -499)]:
        os.truncate(cut, size)
        with pytest.raises(zipimport.ZipImportError):
            zipimport.zipimporter(str(cut))


# bytecode that is kept

COUNTING = """
__version__ = "0.0.1"
import sys


def main():
    print("this is", __version__)
    return 0


def leave(status):
    sys.exit(status)
"""


class Kept:
    """An archive, a home for what it keeps, and how often its source was compiled in a run."""

    def __init__(self, tmp_path: Path, version: str) -> None:
        self.python = python(version)
        self.sources = copy_sources(tmp_path / "sources", COUNTING)
        self.home = tmp_path / "home"
        self.home.mkdir()
        self.log = tmp_path / "log"
        watch = tmp_path / "watch"
        watch.mkdir()
        (watch / "sitecustomize.py").write_text(
            "import os, sys\n"
            "def hook(event, args):\n"
            "    if event == 'compile' and str(args[1]).endswith('thopters.py'):\n"
            f"        with open({str(self.log)!r}, 'a') as file:\n"
            "            file.write('.')\n"
            "sys.addaudithook(hook)\n"
        )
        self.env = clean_env(HOME=str(self.home), PYTHONPATH=str(watch))
        self.build()

    def build(self, old: str = "", new: str = "") -> None:
        program = self.sources / "thopters.py"
        program.write_text(program.read_text().replace(old, new))
        assert build(self.sources).returncode == 0

    def compiles(self, *options: str, says: str = "this is 0.0.1\n", **env: str) -> int:
        self.log.write_text("")
        done = run(self.python, *options, self.sources / "thopters.pyz", env=self.env | env)
        assert (done.returncode, done.stdout, done.stderr) == (0, says, "")
        return len(self.log.read_text())

    @property
    def files(self) -> list[Path]:
        return [path for path in self.home.rglob("*") if path.is_file()]


@posix_only
@pytest.mark.parametrize("version", SUPPORTED)
def test_bytecode_is_kept_for_the_next_run(tmp_path: Path, version: str) -> None:
    kept = Kept(tmp_path, version)
    assert [kept.compiles() for _ in range(3)] == [1, 0, 0]
    [file] = kept.files
    assert file.parent == kept.home / ".cache" / "thopters"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    kept.build("0.0.1", "0.0.2")  # as long as the other, and with the same date
    assert [kept.compiles(says="this is 0.0.2\n") for _ in range(2)] == [1, 0]
    assert kept.files == [file]
    assert kept.compiles("-O", says="this is 0.0.2\n") == 1  # other bytecode, in another file
    assert kept.compiles(says="this is 0.0.2\n") == 0


@posix_only
def test_kept_bytecode_that_is_not_sound_is_not_run(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "3.11")
    kept.compiles()
    [file] = kept.files
    sound = file.read_bytes()
    for size in (*range(0, 40), len(sound) // 2, len(sound) - 1):
        file.write_bytes(sound[:size])
        assert kept.compiles("-B") == 1, size
    for place in (0, 5, 9, 13, 17, 30, len(sound) - 1):
        file.write_bytes(sound[:place] + bytes((sound[place] ^ 1,)) + sound[place + 1 :])
        assert kept.compiles("-B") == 1, place
    file.write_bytes(sound)
    assert kept.compiles("-B") == 0
    for mode in (0o620, 0o602, 0o666):  # others could have put something else there
        file.chmod(mode)
        assert kept.compiles("-B") == 1, oct(mode)
    if os.geteuid() == 0:
        file.chmod(0o600)
        os.chown(file, 52000, 52000)
        assert kept.compiles("-B") == 1


@posix_only
def test_nothing_is_kept_where_that_is_not_wanted_or_not_possible(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "3.11")
    nowhere: list[dict[str, str]] = [
        {"PYTHONDONTWRITEBYTECODE": "1"},
        {"HOME": ""},
        {"HOME": "relative"},
        {"HOME": str(tmp_path / "absent")},
        {"XDG_CACHE_HOME": "relative"},
        {"XDG_CACHE_HOME": str(kept.log)},  # a file
    ]
    for env in nowhere:
        assert [kept.compiles(**env) for _ in range(2)] == [1, 1], env
    assert kept.files == []
    assert not (tmp_path / "absent").exists()
    assert not Path("relative").exists()
    assert [kept.compiles(XDG_CACHE_HOME=str(tmp_path / "mine")) for _ in range(2)] == [1, 0]
    if os.geteuid() == 0:
        os.chown(kept.home, 52000, 52000)  # as sudo may leave it
        assert [kept.compiles() for _ in range(2)] == [1, 1]
        assert kept.files == []


@posix_only
def test_bytecode_is_taken_from_no_place_that_others_can_use(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "3.11")
    kept.compiles()
    [file] = kept.files
    sound = file.read_bytes()
    for mode in (0o770, 0o707):
        file.parent.chmod(mode)
        assert kept.compiles() == 1, oct(mode)
    file.parent.chmod(0o700)
    assert kept.compiles() == 0
    (tmp_path / "picture").write_bytes(sound)
    (tmp_path / "picture").chmod(0o600)
    file.unlink()
    file.symlink_to(tmp_path / "picture")
    assert kept.compiles("-B") == 1
    file.unlink()
    os.mkfifo(file)
    assert kept.compiles("-B") == 1  # and does not wait for anybody
    file.unlink()
    file.parent.rmdir()
    file.parent.symlink_to(tmp_path)
    assert kept.compiles() == 1
    assert not (tmp_path / file.name).exists()


@posix_only
def test_an_interrupt_while_it_is_compiled_shows_no_traceback(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "3.11")
    watch = Path(kept.env["PYTHONPATH"]) / "sitecustomize.py"
    watch.write_text(
        "import os, signal, sys\n"
        "def hook(event, args):\n"
        "    if event == 'compile' and str(args[1]).endswith('thopters.py'):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(hook)\n"
    )
    done = run(kept.python, kept.sources / "thopters.pyz", env=kept.env)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("words", [["--check", ""], ["--check", "."], ["--output", "/"]])
def test_what_names_no_file_is_refused(words: list[str]) -> None:
    """Such as a variable that is not set, where a download was to be verified."""
    done = run(sys.executable, Path(__file__).parent.parent / "build_pyz.py", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch("build_pyz: error: '[./]' names no file\n", done.stderr)
