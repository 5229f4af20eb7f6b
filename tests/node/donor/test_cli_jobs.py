"""What a donor sees of its jobs and earnings, and how it leaves without taking anybody's credits along."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.donor.earnings import read_entry
from node.donor.job_file import SETTLED, Institution, JobDocument, JobFile
from node.files import lock_directory
from protocol.metering import JobState, Rate, compute_charge
from protocol.quotes import Quote, QuoteRequest
from protocol.records import NONE, Kind, RecordDraft, Settle, hold_scope, sign_record

KEY = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
METER = Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)
RATE = Rate(1000, 1, 1, 0)
AMOUNT_MAX = compute_charge(100_000, RATE)


@pytest.fixture
def add_job(lent, fake_node):
    """`add_job(number, state, paid=None, epoch=0)`: a job as the agent leaves it on disk."""
    federation, donor_key = fake_node.charter.federation, KEY.public_key().public_bytes_raw()

    def add(number, state, paid=None, epoch=0):
        mailboxes = bytes([number]) * 32, bytes([number + 100]) * 32
        meter_key = METER.public_key().public_bytes_raw()
        request = QuoteRequest(
            b"a" * 32, meter_key, b"s" * 32, b"o" * 32, 1, 10**9, 10**9, 0, 0, 100, b"", "batch", *mailboxes, b""
        ).sign(federation, METER)
        name = request.compute_id(federation)
        valid_until = 1_790_000_000 + number
        quote = Quote(donor_key, name, b"r" * 32, RATE, 100, 30, AMOUNT_MAX, 60, 1, 0, valid_until, b"")
        document = JobDocument(name.hex(), request.encode(), quote.sign(federation, KEY).encode(), state)
        document.institutions = [Institution(1, "Hochschule")]
        document.hold = bytes([number]) * 32 if state != JobState.QUOTED else b""
        if paid is not None:
            body = Settle(1, paid, bytes(64), NONE, 0, b"")
            draft = RecordDraft(Kind.SETTLE, epoch, hold_scope(document.hold), 0, NONE, body, (donor_key,))
            document.settle = sign_record(federation, draft, [KEY]).encoded
            document.settle_receipt = b"proof"
        JobFile.create(lent.jobs, document)
        return read_entry(fake_node.charter, document)

    return add


def test_jobs_tell_who_paid_who_vouches_and_what_came_of_it(allmende, add_job):
    assert allmende("donor", "jobs")[1].out == "No job was here yet.\n"
    add_job(2, JobState.RUNNING)
    add_job(1, SETTLED, paid=700, epoch=1)
    printed = allmende("donor", "jobs")[1].out
    assert printed.index("SETTLED") < printed.index("RUNNING")
    assert "0.700 credits" in printed
    assert "(Hochschule)" in printed
    settled, running = json.loads(allmende("donor", "jobs", "--json")[1].out)["jobs"]
    assert settled["institutions"] == [{"number": 1, "name": "Hochschule"}]
    assert (settled["paid_millicredits"], settled["is_open"]) == (700, False)
    assert (running["paid_millicredits"], running["is_open"]) == (None, True)


def test_an_open_job_counts_with_all_that_it_may_cost_and_a_mere_quote_with_nothing(add_job):
    running, quoted = add_job(1, JobState.RUNNING), add_job(2, JobState.QUOTED)
    assert (running.is_open, running.millicredits, running.epoch) == (True, AMOUNT_MAX, 0)
    assert (quoted.is_open, quoted.millicredits) == (False, 0)


def test_earnings_are_summed_by_epoch(allmende, add_job):
    for number, (paid, epoch) in enumerate([(700, 1), (300, 1), (5, 2)], 1):
        add_job(number, SETTLED, paid, epoch)
    add_job(9, JobState.RUNNING)
    found = json.loads(allmende("donor", "earnings", "--json")[1].out)
    assert [(line["epoch"], line["jobs"], line["millicredits"]) for line in found["epochs"]] == [
        (2, 1, 5),
        (1, 2, 1000),
    ]
    assert (found["millicredits"], found["open_millicredits_max"]) == (1005, AMOUNT_MAX)
    assert "In all: 1.005 credits" in allmende("donor", "earnings")[1].out
    assert "Earned here: 1.005 credits in 4 jobs" in allmende("donor", "status")[1].out


def test_nobody_leaves_with_a_hold_that_is_not_settled(allmende, lent, add_job):
    add_job(1, JobState.RUNNING)
    status, printed = allmende("donor", "uninstall", "-y")
    assert (status, "1 jobs are not settled" in printed.err) == (1, True)
    assert lent.settings_path.exists()


def test_nobody_leaves_while_the_agent_runs_or_without_being_asked(allmende, lent):
    with lock_directory(lent.directory, "donor agent"):
        assert "stop it first" in allmende("donor", "uninstall", "-y")[1].err
    status, printed = allmende("donor", "uninstall")
    assert (status, "needs -y" in printed.err) == (1, True)
    assert lent.settings_path.exists()


def test_leaving_leaves_nothing_but_the_key_that_was_asked_for(allmende, lent, add_job, tmp_path):
    add_job(1, SETTLED, paid=700, epoch=1)
    key, kept = lent.key_path.read_bytes(), tmp_path / "kept.key"
    assert "0.700 credits were earned" in allmende("donor", "uninstall")[1].err
    assert allmende("donor", "uninstall", "-y", "--keep-key", str(lent.directory / "kept.key"))[0] == 1
    assert allmende("donor", "uninstall", "-y", "--keep-key", str(kept))[0] == 0
    assert kept.read_bytes() == key
    assert kept.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["kept.key"]
