"""From a contradiction in a node's ledger to a file that convicts: HTTP, command line, offline check."""

from __future__ import annotations

import json

import pytest
import trio

from node import cli
from node.addresses import Kind, encode_address
from node.config import Federation as FederationDocument
from node.config import encode_json
from protocol.batches import LogPosition, build_batch
from protocol.equivocation import EvidenceKind
from protocol.evidence import verify_evidence
from protocol.statements import CommitBatch, VoteBatch
from tests.node.web.conftest import make_key, public


async def betray(funded, *statements):
    """The member's key speaks elsewhere of two payments of one person in one slot, and the node hears of it."""
    federation = funded.federation
    log = funded.member.replica.get_log((1, 0))
    rivals = [federation.sign_payment(0, b"", amount) for amount in (1, 2)]
    batch = build_batch(
        federation.charter,
        make_key(2),
        1,
        LogPosition(len(log), log[len(log) - 1][0]),
        seen=(),
        time_ms=0,
        records=rivals,
        statements=statements,
    )
    assert await funded.member.ingest([batch.encoded], "peer") == 1
    return funded


@pytest.fixture
async def betrayed(funded):
    return await betray(funded, VoteBatch(b"", 0))


@pytest.fixture
def charter_file(federation, tmp_path):
    name = encode_address(Kind.FEDERATION, federation.id)
    path = tmp_path / "federation.json"
    path.write_bytes(encode_json(FederationDocument(federation.founded.encode(), name, {})))
    return path


@pytest.fixture
def allmende(capsys):
    """Runs one command in a thread; its status, and what it says."""

    async def run(*arguments):
        capsys.readouterr()
        status = await trio.to_thread.run_sync(cli.run, [str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


async def test_a_node_without_contradictions_lists_none(funded):
    assert await funded.call("get_evidence") == []
    assert (await funded.call("get_status")).evidence == []


async def test_two_finals_in_a_slot_freeze_the_account_and_everybody_can_see_it(funded, allmende):
    await betray(funded, VoteBatch(b"", 0), CommitBatch(b"", 0))
    person = encode_address(Kind.ACCOUNT, funded.federation.person)
    assert (await funded.call("get_account", person)).is_frozen
    assert (await funded.call("get_status")).frozen_count == 1
    assert "finals" in [evidence.kind for evidence in await funded.call("get_evidence")]
    status, said = await allmende("node", "status", "--url", funded.url)
    assert status == 0
    assert "Frozen    1 of all accounts" in said


async def test_a_node_lists_what_its_batches_prove(betrayed):
    votes, records = await betrayed.call("get_evidence")
    assert (votes.kind, votes.members, votes.accounts) == ("votes", [1], [])
    person = encode_address(Kind.ACCOUNT, betrayed.federation.person)
    assert (records.kind, records.members, records.accounts) == ("records", [], [person])
    assert votes.text.startswith("University (member 1) voted for two records in slot 0 of account alm1")
    assert f"the owner of {person} signed two records for slot 0" in records.text
    verdict = verify_evidence({0: betrayed.federation.charter}, records.encoded)
    assert (verdict.kind, verdict.keys) == (EvidenceKind.RECORDS, (public(betrayed.federation.person_key),))
    assert (await betrayed.call("get_status")).evidence == [votes.text, records.text]
    again = await betrayed.call("get_evidence")
    assert [evidence.seen_seconds for evidence in again] == [votes.seen_seconds, records.seen_seconds]


async def test_a_proof_goes_from_the_node_into_a_file_that_convicts_offline(betrayed, allmende, charter_file, tmp_path):
    status, said = await allmende("node", "status", "--url", betrayed.url)
    assert status == 0
    assert "voted for two records" in said
    assert "and 1 more; see allmende evidence ls" in said
    status, said = await allmende("evidence", "ls", "--url", betrayed.url)
    assert (status, len(said.splitlines())) == (0, 2)
    name = said.split()[0]
    status, said = await allmende(
        "evidence", "export", name, "--out", tmp_path / "one.evidence", "--url", betrayed.url, "--json"
    )
    assert status == 0
    assert json.loads(said)["id"].startswith(name)
    check = ("evidence", "verify", tmp_path / "one.evidence", "--charter", charter_file)
    status, said = await allmende(*check)
    assert (status, len(said.splitlines())) == (0, 1)
    assert said.startswith("Proven: University (member 1) voted for two records in slot 0 of account alm1")
    status, said = await allmende(*check, "--json")
    assert json.loads(said)["members"] == [1]


async def test_a_file_that_proves_nothing_is_told_in_one_line_with_status_1(allmende, charter_file, tmp_path):
    forged = tmp_path / "forged.evidence"
    forged.write_bytes(b"\x94\x01\x02\x90\x90")
    status, said = await allmende("evidence", "verify", forged, "--charter", charter_file)
    assert (status, len(said.splitlines())) == (1, 1)
    assert "proves nothing in the federation Alone" in said


async def test_an_unknown_or_ambiguous_id_is_not_exported(betrayed, allmende, tmp_path):
    for name in ("zz", ""):
        status, said = await allmende("evidence", "export", name, "--out", tmp_path / "x", "--url", betrayed.url)
        assert status == 1, said
        assert "allmende evidence ls" in said
    assert not (tmp_path / "x").exists()
