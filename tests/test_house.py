"""The rules of this house, for the program and for its tests."""

from __future__ import annotations

import ast
import re
import symtable
from pathlib import Path

from support.program import ROOT

import thopters

TESTS = ROOT / "tests"


def test_a_room_of_the_module_uses_only_rooms_above_it() -> None:
    source = (ROOT / "thopters.py").read_text()
    banners = [n for n, line in enumerate(source.splitlines(), 1) if line.startswith("# --- ")]
    assert len(banners) > 15

    def room(line: int) -> int:
        return sum(banner <= line for banner in banners)

    homes: dict[str, int] = {}
    for node in ast.parse(source).body:
        stored = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and is_stored(n)]
        named = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else stored
        for name in named:
            homes.setdefault(name, room(node.lineno))
    tables = [symtable.symtable(source, "thopters.py", "exec")]
    for table in tables:
        tables += table.get_children()
        if table.get_type() == "function":
            for symbol in table.get_symbols():
                if symbol.is_global() and symbol.is_referenced():
                    home = homes.get(symbol.get_name(), 0)
                    assert home <= room(table.get_lineno()), (table.get_name(), symbol.get_name())


def is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def test_the_value_of_a_secret_is_asked_for_in_four_places() -> None:
    """To make the header and init's input, to strike it out, to check a PAT before it is sent."""
    source = Path(thopters.__file__).read_text(encoding="utf-8")
    assert sorted(re.findall(r"(\S+)\.reveal\b", source)) == [
        "Credential(check_token(secret",
        "secret",
        "secret_forms(secret",
        "self.credential.token",
    ]


def test_no_test_module_imports_another() -> None:
    """What two of them need stands in support, or is a fixture in conftest.py."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(name.name for name in node.names)]
            words = {word for module in modules for word in module.split(".")}
            wrong = [w for w in words if w.startswith("test_") or w == "conftest"]
            assert not wrong, f"{path.relative_to(TESTS)} imports {', '.join(wrong)}"


def test_the_tables_of_the_tests_name_every_test_module_and_no_other() -> None:
    named = set()
    for readme in (TESTS / "README.md", TESTS / "reliability" / "README.md"):
        named |= set(re.findall(r"`(?:units/)?(test_\w+\.py)`", readme.read_text()))
    assert named == {path.name for path in TESTS.rglob("test_*.py")}
    for place in re.findall(r"`(units/test_\w+\.py)`", (TESTS / "README.md").read_text()):
        assert (TESTS / place).exists(), place


def test_s19_each_promise_of_the_specification_names_a_test_that_there_is() -> None:
    """A promise without a test is none."""
    spec = (ROOT / "SPEC.md").read_text()
    tests = {
        f"{path.stem}::{name}"
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"(?m)^def (\w+)", path.read_text())
    }
    named = re.findall(r"`(test_\w+::\w+)`", spec)
    assert len(named) > 50
    assert not set(named) - tests
    section = re.split(r"(?m)^## ", spec)[14]
    promises = re.split(r"What is promised:\n", section)[1:]
    assert len(promises) == 5
    for promise in re.findall(r"(?m)^- .*", "".join(part.split("\n**")[0] for part in promises)):
        assert "`test_" in promise, promise


def functions() -> list[ast.FunctionDef]:
    tree = ast.parse((ROOT / "thopters.py").read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_no_local_name_hides_a_function_or_class_of_the_module() -> None:
    """Who reads a body could take the one for the other."""
    tree = ast.parse((ROOT / "thopters.py").read_text())
    named = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    for function in functions():
        arguments = function.args.args + function.args.kwonlyargs
        local = {argument.arg for argument in arguments}
        local |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and is_stored(n)}
        assert not local & named, (function.name, local & named)


def test_each_room_says_first_what_it_is_for() -> None:
    source = (ROOT / "thopters.py").read_text()
    for room in re.split(r"(?m)^# --- .*-$", source)[1:]:
        assert re.match(r"\n\n# [A-Z].*", room), room[:200]


def test_the_body_of_a_command_is_short() -> None:
    """What a command does is an operation of a room above; the body shows what came of it."""
    for function in functions():
        if function.name.startswith("cmd_"):
            last = function.end_lineno or 0
            assert last - function.body[0].lineno < 25, function.name


def test_no_error_is_decided_on_by_its_words_or_its_context() -> None:
    source = (ROOT / "thopters.py").read_text()
    assert "__context__" not in source and "__cause__" not in source
    assert not re.search(r"\bin (str\(error\)|error\.message|str\(lost\))", source)
