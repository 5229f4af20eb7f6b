"""A dispute names a file that is kept before it is signed, is signed once, and survives interruptions."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from node.addresses import Kind, encode_address
from node.cli import run
from node.config import Federation, encode_json
from node.errors import Unreachable, UserError
from node.evidence import describe_reason
from node.wallet import cli_dispute
from node.wallet.disputing import build_evidence, dispute_job
from node.wallet.following import Follower
from node.wallet.job_records import get_job_directory, load_job
from protocol.conversation import Ticked
from protocol.disputes import PAYER_REASONS, DisputeReason
from protocol.job_evidence import Claim, decode_job_evidence
from protocol.metering import JobState


@pytest.fixture
def follow(wallet, running, connect):
    """Take what the donor has said; the job as the wallet has it then."""

    def take():
        Follower(wallet, running, connect, lambda _: None, lambda _: None).follow(is_waiting=False)
        return running

    return take


@pytest.fixture
def allmende(wallet, donor, running, capsys, monkeypatch):
    """A command of the wallet's, with the real client."""
    wallet.__dict__["client"] = donor.client
    monkeypatch.setenv("ALLMENDE_HOME", str(wallet.home))

    def call(*arguments, status=0):
        assert run([*arguments]) == status
        return capsys.readouterr()

    return call


def make_forked_ticks(donor, job):
    first = donor.make_tick(job.hold, 200)
    return first, donor.make_tick(job.hold, 300)


def test_a_tick_that_was_not_agreed_to_is_kept_and_convicts_the_donor(wallet, donor, running, follow):
    for tick in make_forked_ticks(donor, running):
        donor.say(Ticked(tick.encode()))
    job = follow()
    assert len(job.ticks) == len(job.refused_ticks) == 1
    file = build_evidence(wallet, job, None)
    assert file.verdict.claims == (Claim.METER_FORKED,)
    assert file.verdict.reason is DisputeReason.AMOUNT_NOT_DUE
    assert load_job(wallet, job.job_id).refused_ticks == job.refused_ticks


def test_work_that_was_lost_and_charged_is_the_reason_that_the_file_proves(wallet, donor, running, follow):
    tick = donor.make_tick(running.hold, 500)
    donor.say(Ticked(tick.encode()))
    donor.say(donor.make_result(running.hold, tick, JobState.DONOR_FAILED))
    file = build_evidence(wallet, follow(), None)
    assert file.verdict.reason is DisputeReason.WORK_LOST
    assert file.verdict.is_reason_proven


def test_without_proof_a_reason_must_be_given(wallet, running):
    with pytest.raises(UserError, match="--reason"):
        build_evidence(wallet, running, None)
    file = build_evidence(wallet, running, DisputeReason.RESULTS_WITHHELD)
    assert (file.verdict.claims, file.verdict.is_reason_proven) == ((), False)


def test_rubbish_of_the_donors_never_spoils_the_file(wallet, donor, running, follow):
    forged = donor.make_tick(running.hold, 200)._replace(signature=bytes(64))
    for content in (b"rubbish", forged.encode(), donor.make_tick(bytes(32), 200).encode()):
        donor.say(Ticked(content))
    job = follow()
    assert len(job.refused_ticks) == 3
    assert decode_job_evidence(build_evidence(wallet, job, DisputeReason.RESULTS_WRONG).content).ticks == ()


def test_keys_to_the_results_are_shown_only_when_asked_for(wallet, running):
    hidden, shown = (
        build_evidence(wallet, running, DisputeReason.RESULTS_WRONG, shows_results=shows) for shows in (False, True)
    )
    assert running.result_seed not in hidden.content
    assert running.meter_seed not in shown.content
    assert decode_job_evidence(shown.content).result_key == running.result_seed


def test_a_job_without_a_hold_has_nothing_to_dispute(wallet, running):
    running.hold_receipt = b""
    with pytest.raises(UserError, match="nothing was put aside"):
        build_evidence(wallet, running, DisputeReason.RESULTS_WRONG)


def test_the_command_signs_publishes_and_shows_the_job_as_disputed(allmende, node, federation, running):
    document = json.loads(
        allmende("job", "dispute", running.job_id, "--reason", "results-withheld", "-y", "--json").out
    )
    ((record, state),) = federation.replica.ledger.disputes[running.hold].items()
    assert state.evidence.hex() == document["evidence"]
    assert sha256(node.blobs[state.evidence]).digest() == state.evidence
    assert document["publishing_problem"] is None
    assert json.loads(allmende("job", "show", running.job_id, "--json").out)["state"] == "DISPUTED"
    assert "DISPUTED" in allmende("job", "ls").out
    again = json.loads(allmende("job", "dispute", running.job_id, "--reason", "results-wrong", "-y", "--json").out)
    assert again["record"] == document["record"]
    assert list(federation.replica.ledger.disputes[running.hold]) == [record]


def test_a_dry_run_signs_nothing_and_writes_what_would_be_published(allmende, node, federation, running, tmp_path):
    out = tmp_path / "case.evidence"
    done = allmende("job", "dispute", running.job_id, "--reason", "work-lost", "--dry-run", "--out", str(out), "--json")
    assert json.loads(done.out)["evidence"] == sha256(out.read_bytes()).hexdigest()
    assert running.hold not in federation.replica.ledger.disputes
    assert not node.blobs


def test_anybody_checks_the_file_offline(allmende, running, tmp_path, federation):
    founding_file = tmp_path / "federation.json"
    address = encode_address(Kind.FEDERATION, federation.charter.id)
    founding_file.write_bytes(encode_json(Federation(federation.founded.encode(), address, {})))
    out = tmp_path / "case.evidence"
    allmende("job", "dispute", running.job_id, "--reason", "work-lost", "--dry-run", "--out", str(out))
    checked = allmende("evidence", "verify", str(out), "--charter", str(founding_file))
    assert "not proven by this file: work-lost" in checked.out
    out.write_bytes(out.read_bytes()[:-1])
    refused = allmende("evidence", "verify", str(out), "--charter", str(founding_file), status=1)
    assert refused.err.count("\n") == 1


def test_after_an_interruption_the_same_file_and_bytes_go_out(wallet, donor, federation, node, running):
    wallet.__dict__["client"] = donor.client
    key = wallet.unlock(None)
    file = build_evidence(wallet, running, DisputeReason.RESULTS_WRONG)
    node.fault = lambda method, path: "drop" if (method, path) == ("POST", "records") else None
    with pytest.raises(Unreachable):
        dispute_job(wallet, key, running, file, 0)
    node.fault = lambda method, path: None
    later = build_evidence(wallet, running, DisputeReason.RESULTS_WITHHELD)
    assert later.digest != file.digest
    done = dispute_job(wallet, key, running, later)
    assert done.evidence == get_job_directory(wallet, running) / f"{file.digest.hex()}.evidence"
    ((record, state),) = federation.replica.ledger.disputes[running.hold].items()
    assert (record, state.evidence) == (done.record, file.digest)
    assert node.blobs[file.digest] == file.content


def test_a_node_that_does_not_take_the_file_is_told_and_asked_again(wallet, donor, node, running):
    wallet.__dict__["client"] = donor.client
    key = wallet.unlock(None)
    file = build_evidence(wallet, running, DisputeReason.RESULTS_WRONG)
    node.fault = lambda method, path: (507, None) if method == "PUT" else None
    assert dispute_job(wallet, key, running, file).publishing_problem
    node.fault = lambda method, path: None
    assert not dispute_job(wallet, key, running, file).publishing_problem
    assert file.digest in node.blobs


def test_the_command_knows_every_reason_that_a_payer_may_give():
    assert set(cli_dispute.REASONS) == set(map(describe_reason, PAYER_REASONS))
