"""The command line as a whole: help without imports, exit statuses, errors in one line or one document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module

import click
import pytest

from node import cli
from node.errors import Refused, Unreachable, UserError
from protocol.errors import InvalidInput, Reason, Rejected

SLOW_PACKAGES = ("trio", "httpx", "libp2p", "peewee", "litestar", "hypercorn")


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch):
    """Puts a command that raises (or returns) something into the table of groups."""

    def add(outcome: object) -> None:
        @click.command()
        @click.option("--json", "as_json", is_flag=True)
        def command(as_json: bool) -> object:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        module = sys.modules[__name__] if __name__ in sys.modules else import_module("node.terminal")
        monkeypatch.setattr(module, "probe", command, raising=False)
        monkeypatch.setitem(cli.GROUPS, "probe", cli.GroupEntry(f"{module.__name__}:probe", "A probe."))

    return add


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        (UserError("no wallet here; make one with allmende wallet init"), 1, "no wallet here; make one with"),
        (Unreachable("the node does not answer"), 3, "the node does not answer"),
        (Refused("not in this program"), 4, "not in this program"),
        (Rejected(Reason.SLOT_TAKEN, "sequence 7"), 4, "rejected by the rules: slot taken: sequence 7"),
        (InvalidInput("the receipt is cut off"), 1, "the receipt is cut off"),
        (click.ClickException("cannot do"), 1, "cannot do"),
        (PermissionError(13, "Permission denied", "/etc/key"), 1, "/etc/key: Permission denied"),
        (AssertionError("sum\ndiffers"), 70, "this is a bug of allmende (AssertionError: sum differs)"),
        (ExceptionGroup("", [ExceptionGroup("", [UserError("port 80 is taken")])]), 1, "port 80 is taken"),
        (ExceptionGroup("", [UserError("port"), AssertionError("sum")]), 70, "this is a bug of allmende"),
    ],
)
def test_a_failure_is_told_in_one_line_with_its_exit_status(add_command, capsys, failure, status, line) -> None:
    add_command(failure)
    assert cli.run(["probe"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"Error: {line}")
    assert captured.err.count("\n") == 1

    assert cli.run(["probe", "--json"]) == status
    document = json.loads(capsys.readouterr().err)
    assert document["error"].startswith(line)
    assert document["exit_status"] == status


@pytest.mark.parametrize(
    "interrupt", [KeyboardInterrupt(), click.Abort(), BaseExceptionGroup("", [KeyboardInterrupt()])]
)
def test_an_interrupt_ends_with_the_status_that_shells_expect(add_command, capsys, interrupt) -> None:
    add_command(interrupt)
    assert cli.run(["probe"]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted."


def test_what_a_command_returns_is_no_exit_status(add_command) -> None:
    add_command(7)
    assert cli.run(["probe"]) == 0


def test_wrong_usage_names_the_help_and_exits_with_2(add_command, capsys) -> None:
    add_command(0)
    assert cli.run(["probe", "--colour"]) == 2
    assert "--help" in capsys.readouterr().err
    assert cli.run(["nonsense", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["exit_status"] == 2


def test_the_help_lists_every_group_and_imports_none() -> None:
    result = run_python("-X", "importtime", "-m", "node", "--help")
    assert result.returncode == 0
    assert all(f"  {name} " in result.stdout for name in cli.GROUPS)
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert not imported & {*SLOW_PACKAGES, "node.wallet", "node.donor", "node.operator"}


@pytest.mark.parametrize("name", cli.GROUPS)
def test_every_group_of_the_table_exists_and_has_help(name: str) -> None:
    module_name, attribute = cli.GROUPS[name].target.split(":")
    command = getattr(import_module(module_name), attribute)
    assert isinstance(command, click.Command)
    assert command.help


@pytest.mark.parametrize("name", ["wallet", "budget", "offers", "job", "receipt"])
def test_commands_of_people_start_without_the_network_stack(name: str) -> None:
    result = run_python("-X", "importtime", "-m", "node", name, "--help")
    assert result.returncode == 0, result.stderr[-2000:]
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert not imported & set(SLOW_PACKAGES)


def test_the_version_is_told() -> None:
    result = run_python("-m", "node", "--version")
    assert result.returncode == 0
    assert result.stdout.startswith("allmende ")


def test_a_python_without_assertions_is_refused() -> None:
    for result in (
        run_python("-O", "-m", "node", "--help"),
        run_python("-m", "node", "--help", PYTHONOPTIMIZE="1"),
    ):
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")


def test_a_reader_that_stops_early_gets_no_complaint() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "node", "--help"], stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert result.stderr == b""
