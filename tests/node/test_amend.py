"""The whole way on the command line: a federation of four becomes five, then four again without a founder."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from node.addresses import Kind, encode_address
from node.config import read_federation
from node.mnemonics import new_mnemonic
from node.served_charter import fetch_charter
from node.wallet.wallet import Wallet
from protocol.receipts import verify_receipt
from scripts.benchmarks.federation_in_memory import Cast
from scripts.benchmarks.local_federation import LocalFederation, wait_until
from scripts.loopback import find_free_port
from tests.load import Load, fund

PEOPLE = 12
NEW = 5


def call(*arguments):
    command = [str(Path(sys.executable).parent / "allmende"), *map(str, arguments), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def run(*arguments):
    """One command; its JSON."""
    done = call(*arguments)
    assert done.returncode == 0, (arguments, done.stderr)
    return json.loads(done.stdout)


def make_newcomer(federation, folder):
    """What the new institution does first."""
    home, port = folder / f"node-{NEW}", find_free_port()
    run("node", "init", "--home", home, "--name", "Newcomer", "--p2p", f"/ip4/127.0.0.1/tcp/{find_free_port()}",
        "--http", f"127.0.0.1:{port}")  # fmt: skip
    federation.homes[NEW] = home
    federation.urls[NEW] = f"http://127.0.0.1:{port}"


def amend(federation, folder, drafter, voters, *options):
    """Draft, read, propose and approve; returns when the version is in force at the drafter and all `voters`."""
    home = federation.homes[drafter]
    draft = folder / f"next-{drafter}.json"
    order = ("charter", "amend", "--home", home, "--out", draft, *options)
    tried = []

    def has_heard():
        """A node that joined under load drafts nothing before a quorum told it what it has."""
        tried.append(call(*order))
        return "has not heard yet" not in tried[-1].stderr

    wait_until(has_heard, "the drafter has heard a quorum")
    assert tried[-1].returncode == 0, tried[-1].stderr
    drafted = json.loads(tried[-1].stdout)
    assert run("charter", "diff", draft, "--home", home)["changes"] == drafted["changes"]
    proposed = run("member", "propose", draft, "--home", home, "-y")["records"][0]["id"]
    for number in voters:
        with federation.client(number) as client:
            wait_until(partial(is_proposed, client), "it is proposed")
        run("member", "vote", proposed, "--home", federation.homes[number], "-y")
    version = drafted["version"]
    for number in (drafter, *voters):
        wait_until(partial(has_version, federation, number, version), f"version {version} is in force")
    return drafted


def is_proposed(client):
    return bool(client.get_charter().proposals)


def read_notice(federation, number):
    status = federation.read_status(number)
    assert status is not None
    return status.notice


def has_version(federation, number, version):
    status = federation.read_status(number)
    return status is not None and status.charter_version == version


@pytest.mark.slow
def test_four_become_five_and_four_again_without_a_founder_under_load(tmp_path, record_property):
    cast = Cast(4, PEOPLE)
    name = encode_address(Kind.FEDERATION, cast.federation)
    with LocalFederation(tmp_path, cast) as federation:
        fund(federation)
        make_newcomer(federation, tmp_path)
        known = dict(fetch_charter(federation.urls[1], name).charters)
        with Load(federation, PEOPLE, 1, lambda: known) as load:
            card = federation.homes[NEW] / "founder.json"
            drafted = amend(federation, tmp_path, 1, [2, 4], "--add", card)
            assert any("Newcomer joins" in change for change in drafted["changes"])
            known.update(fetch_charter(federation.urls[1], name).charters)
            federation.start(NEW, "--join", name, "--from", federation.urls[3])
            wait_until(lambda: has_version(federation, NEW, 1), "the newcomer has everything")
            federation.numbers.append(NEW)
            assert read_notice(federation, NEW) == ""
            before = len(load.acknowledged)
            wait_until(lambda: len(load.acknowledged) > before + 10, "payments go on")

            amend(federation, tmp_path, NEW, [1, 3, 4], "--remove", "member 2")
            known.update(fetch_charter(federation.urls[1], name).charters)
            federation.numbers.remove(2)
            wait_until(lambda: "no member" in read_notice(federation, 2), "the one that left knows it")
            before = len(load.acknowledged)
            wait_until(lambda: len(load.acknowledged) > before + 10, "payments go on")

        federation.kill(NEW)
        federation.start(NEW)
        federation.wait_ready(NEW)
        federation.wait_equal()
        for number in federation.numbers:
            with federation.client(number) as client:
                for record in load.acknowledged:
                    found = client.get_record(encode_address(Kind.RECORD, record))
                    assert found is not None
                    assert found.state == "applied"
        assert max(read_federation(federation.homes[1] / "federation.json").decode_charters()) == 2
        assert not (federation.homes[1] / "vote.key").exists()
        assert [it["version"] for it in run("charter", "show", "--home", federation.homes[NEW])["amendments"]] == [1, 2]
        with Wallet.create(tmp_path / "wallet", federation.urls[NEW], new_mnemonic(), None, federation=name) as wallet:
            assert wallet.charter.version == 0, "the federation's id is all that it pins"
            assert wallet.client.get_status().charter_version == wallet.charter.version == 2
            last = wallet.client.get_record(encode_address(Kind.RECORD, load.acknowledged[-1]))
            assert last is not None
            receipt = last.receipt
            assert receipt is not None
            assert verify_receipt(Wallet.open(tmp_path / "wallet").charters, receipt).round.version == 2
        record_property("acknowledged", len(load.acknowledged))
