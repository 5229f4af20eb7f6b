"""Options and questions that all commands share."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from node.errors import UserError
from node.terminal import (
    confirm,
    dry_run_option,
    emit,
    home_option,
    json_option,
    parse_duration,
    show_progress,
    yes_option,
)


@click.command()
@home_option
@json_option
@yes_option
@dry_run_option
def probe(home: Path, as_json: bool, yes: bool, dry_run: bool) -> None:
    """A command with every shared option."""
    emit({"home": str(home), "yes": yes, "dry_run": dry_run}, [f"home {home}", "second line"], as_json)


def test_a_program_gets_one_document_and_a_person_gets_lines() -> None:
    runner = CliRunner()
    document = json.loads(runner.invoke(probe, ["--json", "--home", "/tmp/h", "-y"]).output)
    assert document == {"home": "/tmp/h", "yes": True, "dry_run": False}
    assert runner.invoke(probe, ["--home", "/tmp/h"]).output == "home /tmp/h\nsecond line\n"


def test_the_home_comes_from_option_then_environment_then_the_person() -> None:
    runner = CliRunner()
    environment = {"ALLMENDE_HOME": "/tmp/env", "HOME": "/tmp/person"}
    assert "home /tmp/h\n" in runner.invoke(probe, ["--home", "/tmp/h"], env=environment).output
    assert "home /tmp/env\n" in runner.invoke(probe, env=environment).output
    environment["ALLMENDE_HOME"] = ""
    assert "home /tmp/person/.allmende\n" in runner.invoke(probe, env=environment).output


def test_without_a_terminal_a_question_needs_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/null").open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        with pytest.raises(UserError, match="needs -y"):
            confirm("Pay 12.500 credits?", yes=False)
        confirm("Pay 12.500 credits?", yes=True)


@pytest.mark.parametrize(("answer", "agreed"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_person_is_asked_and_the_default_is_no(monkeypatch, answer: str, agreed: bool) -> None:
    @click.command()
    def ask() -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        confirm("Pay 12.500 credits?", yes=False)
        click.echo("paid")

    result = CliRunner().invoke(ask, input=answer)
    assert ("paid" in result.stdout) is agreed
    assert isinstance(result.exception, UserError) is not agreed


def test_without_a_terminal_there_is_no_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress([1, 2, 3], "Fetching") as items:
        assert list(items) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


@given(st.integers(0, 10**6), st.sampled_from(["s", "m", "h", "d"]))
def test_a_length_of_time_is_its_number_times_its_unit(number, unit):
    assert parse_duration(f"{number}{unit}") == number * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
