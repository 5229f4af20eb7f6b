"""The floor plan as a test: what lies where, who may import whom, and how large a thing may grow.

The rules are the tables at the top. The layers are read from pyproject.toml, where import-linter reads them
too; a new module must be given its place there.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

TOP_LEVEL = {"pyproject.toml", "README.md", "node", "protocol", "tests", "scripts", "LICENSE", "CHANGELOG.md"}
LINES_MAX = 500
FUNCTION_LINES_MAX = 70
NAMES_FORBIDDEN = {"data", "helper", "helpers", "info", "manager", "misc", "util", "utils"}
PRINTING_MODULES = {"cli", "terminal"}  # and every cli_*

# The rules are pure: nothing here can see a clock, chance, a file, the network or another process.
PROTOCOL_IMPORTS = {
    "__future__", "abc", "base64", "bisect", "collections", "contextlib", "copy", "cryptography",
    "dataclasses", "enum", "fractions", "functools", "hashlib", "heapq", "hmac", "itertools", "math",
    "msgpack", "operator", "re", "struct", "types", "typing", "unicodedata",
}  # fmt: skip
# What would let chance or the world in without an import. hash() and id() differ from process to process.
PROTOCOL_BUILTINS_FORBIDDEN = {"breakpoint", "eval", "exec", "hash", "id", "input", "open", "print"}
PROTOCOL_METHODS_FORBIDDEN = {"generate", "generate_key"}

# Whoever holds keys of people or lends a machine speaks HTTP only: it can't even load the ledger's store.
NEAR_THE_LEDGER = ("node.daemon", "node.member", "node.network", "node.storage", "libp2p")
KEPT_AWAY = {
    "node.wallet": NEAR_THE_LEDGER,  # its journal is a database of its own
    "node.donor": NEAR_THE_LEDGER,
    "node.client": (*NEAR_THE_LEDGER, "peewee", "playhouse"),
}

# Where the name to import is not the name of the distribution.
DISTRIBUTIONS = {"nacl": "pynacl", "playhouse": "peewee", "pynvml": "nvidia_ml_py", "yaml": "pyyaml"}


def list_modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def compute_module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def describe(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def list_imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and absolute name of everything that a module imports anywhere, also inside functions.

    `from package import module` counts as `package.module` when that is a module of ours.
    """
    found: list[tuple[int, str]] = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.append((node.lineno, inner if is_own_module(inner) else source))
    return tuple(found)


@cache
def is_own_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def read_layers(contract_id: str) -> list[tuple[str, set[str]]]:
    """Layers from top to bottom: the separator of each and the full names of its modules."""
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    contract = next(entry for entry in contracts if entry["id"] == contract_id)
    prefix = "".join(f"{container}." for container in contract.get("containers", []))
    layers = []
    for line in contract["layers"]:
        separator = "|" if "|" in line else ":"
        layers.append((separator, {prefix + name.strip(" ()") for name in line.split(separator)}))
    return layers


def find_layer(name: str, layers: list[tuple[str, set[str]]]) -> tuple[int, str] | None:
    """Depth of the layer (0 is the top) that a module stands in, and the layer's entry that holds it."""
    for depth, (_, entries) in enumerate(layers):
        for entry in entries:
            if name == entry or name.startswith(entry + "."):
                return depth, entry
    return None


def list_functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def fail_if_any(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_the_top_level_holds_only_what_the_plan_names() -> None:
    visible = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert visible - TOP_LEVEL - {"dist"} == set()
    assert TOP_LEVEL - visible == set()


def test_protocol_imports_nothing_that_sees_the_world() -> None:
    fail_if_any(
        [
            f"{describe(path)}:{line}: imports {name}, which is not among the few that the rules may use"
            for path in list_modules("protocol")
            for line, name in list_imports(path)
            if name.split(".")[0] not in PROTOCOL_IMPORTS | {"protocol"}
        ]
    )


def test_protocol_calls_nothing_whose_result_differs_between_machines() -> None:
    fail_if_any(
        [
            f"{describe(path)}:{node.lineno}: calls {ast.unparse(node.func)}"
            for path in list_modules("protocol")
            for node in ast.walk(parse(path))
            if isinstance(node, ast.Call)
            if (isinstance(node.func, ast.Name) and node.func.id in PROTOCOL_BUILTINS_FORBIDDEN)
            or (isinstance(node.func, ast.Attribute) and node.func.attr in PROTOCOL_METHODS_FORBIDDEN)
        ]
    )


@pytest.mark.parametrize("contract_id", ["protocol", "node"])
def test_every_module_has_its_place_in_the_layers(contract_id: str) -> None:
    layers = read_layers(contract_id)
    fail_if_any(
        [
            f"{describe(path)}: give {compute_module_name(path)} a place in the layers of pyproject.toml"
            for path in list_modules(contract_id)
            if path.parent != ROOT / contract_id or path.name != "__init__.py"
            if find_layer(compute_module_name(path), layers) is None
        ]
    )


@pytest.mark.parametrize("contract_id", ["protocol", "node"])
def test_imports_point_down_only(contract_id: str) -> None:
    layers = read_layers(contract_id)
    problems = []
    for path in list_modules("protocol", "node"):
        own = find_layer(compute_module_name(path), layers)
        for line, name in list_imports(path):
            other = find_layer(name, layers)
            if own is None or other is None or own[1] == other[1]:
                continue
            if other[0] < own[0] or (other[0] == own[0] and layers[own[0]][0] == "|"):
                problems.append(f"{describe(path)}:{line}: {own[1]} must not import {name}")
    fail_if_any(problems)


def test_no_modules_import_each_other_in_a_circle() -> None:
    imports = {
        compute_module_name(path): {name for _, name in list_imports(path) if is_own_module(name)}
        for path in list_modules("protocol", "node")
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " > ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for inner in sorted(imports.get(name, set())):
                visit(inner, (*trail, name))
            done.add(name)

    for name in imports:
        visit(name, ())


@pytest.mark.parametrize("package", KEPT_AWAY)
def test_programs_of_people_cannot_reach_the_ledger_database(package: str) -> None:
    """Not even through a module that they import."""
    waiting = [
        name
        for path in list_modules("node")
        if (name := compute_module_name(path)) == package or name.startswith(package + ".")
    ]
    reached_through: dict[str, str] = dict.fromkeys(waiting, "")
    problems = []
    while waiting:
        name = waiting.pop()
        place = ROOT.joinpath(*name.split("."))
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        for line, imported in list_imports(path):
            if any(imported == away or imported.startswith(away + ".") for away in KEPT_AWAY[package]):
                problems.append(f"{describe(path)}:{line}: imports {imported}, and {package} can reach it")
            elif is_own_module(imported) and imported not in reached_through:
                reached_through[imported] = name
                waiting.append(imported)
    fail_if_any(problems)


def test_every_package_that_is_imported_is_a_declared_dependency() -> None:
    requirements = PYPROJECT["project"]["dependencies"]
    declared = {re.split(r"[\[>]", requirement)[0].lower().replace("-", "_") for requirement in requirements}
    known = set(sys.stdlib_module_names) | {"node", "protocol"}
    fail_if_any(
        [
            f"{describe(path)}:{line}: {name} is not among the dependencies of pyproject.toml"
            for path in list_modules("node", "protocol")
            for line, name in list_imports(path)
            if (top := name.split(".")[0]) not in known and DISTRIBUTIONS.get(top, top) not in declared
        ]
    )


def test_every_dependency_gives_its_reason_and_a_lower_bound() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("\ndependencies = [\n")[1].split("\n]")[0]
    for line in block.splitlines():
        requirement, _, reason = line.partition("#")
        assert ">=" in requirement, line
        assert len(reason.split()) >= 3, line


def test_modules_stay_short() -> None:
    fail_if_any(
        [
            f"{describe(path)}: {length} lines"
            for path in list_modules("node", "protocol")
            if (length := len(path.read_text(encoding="utf-8").splitlines())) > LINES_MAX
        ]
    )


def test_functions_fit_a_screen() -> None:
    fail_if_any(
        [
            f"{describe(path)}:{function.lineno}: {function.name} has {length} lines"
            for path in list_modules("node", "protocol")
            for function in list_functions(path)
            if (length := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES_MAX
        ]
    )


def test_names_of_files_say_what_is_in_them() -> None:
    fail_if_any(
        [
            f"{describe(path)}: say what is in it"
            for folder in ("node", "protocol", "tests", "scripts")
            for path in sorted((ROOT / folder).rglob("*"))
            if NAMES_FORBIDDEN & set(path.stem.lower().removeprefix("test_").split("_"))
        ]
    )


def test_every_module_says_what_it_is() -> None:
    fail_if_any(
        [
            f"{describe(path)}: begin with a docstring"
            for path in list_modules("node", "protocol", "tests")
            if path.name != "__init__.py" or path.stat().st_size
            if not ast.get_docstring(parse(path))
        ]
    )


def test_no_failure_is_swallowed_without_its_name() -> None:
    fail_if_any(
        [
            f"{describe(path)}:{node.lineno}: a bare except hides bugs and interrupts"
            for path in list_modules("node", "protocol", "tests")
            for node in ast.walk(parse(path))
            if isinstance(node, ast.ExceptHandler) and node.type is None
        ]
    )


def test_only_the_command_line_prints() -> None:
    fail_if_any(
        [
            f"{describe(path)}:{node.lineno}: prints"
            for path in list_modules("node", "protocol")
            if path.stem not in PRINTING_MODULES and not path.stem.startswith("cli_")
            for node in ast.walk(parse(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    )


def test_folders_of_tests_are_no_packages() -> None:
    """A tests/protocol/__init__.py would hide the real package `protocol`."""
    assert [describe(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


def test_every_package_can_be_imported_as_one() -> None:
    """A folder without __init__.py would be left out by type checks and import rules."""
    folders = {path.parent for path in list_modules("node", "protocol")}
    assert [describe(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
