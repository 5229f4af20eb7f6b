"""A donor's commands: nothing is set up without consent, and what was set up says so."""

from __future__ import annotations

import json

from node.addresses import Kind, encode_address
from node.donor.cli import group
from node.donor.enrolling import load_donor_key, load_seal_seed
from node.donor.settings import DonorHome
from protocol.identifiers import compute_account_id

SETUP = ("donor", "setup", "--node", "http://node", "--machine", "bench", "--cores", "1", "--memory", "2")


def test_set_up_shows_what_will_run_and_does_nothing_without_consent(allmende, tmp_path):
    status, printed = allmende(*SETUP)
    assert status == 1
    for told in ("programs of people whom you don't know", "1 cores, 2.0 GB", "To stop", "http://node", "Risk"):
        assert told in printed.err
    assert list(tmp_path.iterdir()) == []


def test_set_up_makes_keys_pins_the_charter_and_prints_the_address(allmende, tmp_path, fake_node):
    status, printed = allmende(*SETUP, "-y", "--json")
    assert status == 0
    home = DonorHome(tmp_path / "donor")
    key = load_donor_key(home, None)
    federation = fake_node.charter.federation
    assert home.load_charter().charter.federation == federation
    assert len(load_seal_seed(home)) == 32
    assert home.key_path.stat().st_mode & 0o077 == 0
    address = json.loads(printed.out)["address"]
    assert allmende("donor", "status", "--json")[1].out
    policy = fake_node.charter.policy.acceptable_use
    assert home.load_settings().acceptable_use == policy.hex()
    assert address == encode_address(Kind.ACCOUNT, compute_account_id(federation, key.public_key))
    status, printed = allmende(*SETUP, "-y")
    assert status == 1
    assert "already" in printed.err


def test_wishes_reach_the_agent_and_need_a_donor(allmende, tmp_path):
    status, printed = allmende("donor", "pause")
    assert (status, "donor setup" in printed.err) == (1, True)
    allmende(*SETUP, "-y")
    for wish in ("pause", "finish"):
        assert allmende("donor", wish)[0] == 0
        assert DonorHome(tmp_path / "donor").read_wish() == wish
    allmende("donor", "resume")
    assert DonorHome(tmp_path / "donor").read_wish() == "run"


def test_an_agent_does_not_start_before_the_machine_was_measured(allmende):
    allmende(*SETUP, "-y")
    status, printed = allmende("donor", "start")
    assert status == 1
    assert "selftest" in printed.err


def test_every_command_says_how_it_is_used(allmende):
    for name, command in group.commands.items():
        printed = allmende("donor", name, "--help", home=False)[1].out
        assert "Example: allmende donor" in printed, name
        assert command.name == name
