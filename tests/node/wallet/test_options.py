"""The options of commands that sign: the same everywhere, and handed over as one."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from node.wallet.cli import group as wallet
from node.wallet.cli_budget import group as budget
from node.wallet.cli_job import group as job
from node.wallet.options import Signing, signing_options

SIGNING = [
    wallet.commands["send"],
    wallet.commands["rotate"],
    wallet.commands["unlock"],
    job.commands["reclaim"],
    job.commands["retry"],
    job.commands["recheck"],
    job.commands["canary"],
    budget.commands["request"],
    budget.commands["leave"],
]


@pytest.mark.parametrize("command", SIGNING, ids=lambda command: command.name)
def test_every_command_that_signs_for_a_person_can_be_tried_and_needs_a_yes(command):
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {"--home", "--node", "--passphrase-file", "--dry-run", "-y", "--json"} <= flags


def test_the_options_of_a_signing_command_arrive_as_one():
    found = []

    @click.command()
    @click.argument("place")
    @signing_options
    def act(place: str, signing: Signing) -> None:
        found.append((place, signing))

    result = CliRunner().invoke(act, ["here", "--home", "/h", "-y", "--json"], env={"ALLMENDE_NODE": "http://n"})
    assert result.exit_code == 0, result.output
    assert found == [("here", Signing(Path("/h"), "http://n", None, dry_run=False, yes=True, as_json=True))]
