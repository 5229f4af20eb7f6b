"""A job's receipt is tied to the ledger by its settle and its hold, or it is worth nothing."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.cli import run
from node.wallet.job_receipts import describe_job, verify_job
from node.wallet.payments import spend
from node.wallet.sending import read_account
from protocol.errors import InvalidInput
from protocol.identifiers import compute_account_id, compute_voucher_id
from protocol.metering import JobState
from protocol.quotes import JobReceipt
from protocol.records import Draw, Hold, Kind, RecordDraft, Settle, Sponsor, Terms, hold_scope, sign_record

DONOR = Ed25519PrivateKey.from_private_bytes(b"d" * 32)
METER = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
QUOTE = sha256(b"quote").digest()


@pytest.fixture
def hold(wallet, federation, fund):
    """A hold of the wallet's for the donor, final."""
    program = fund(wallet, 10_000)
    donor_key = DONOR.public_key().public_bytes_raw()
    donor = compute_account_id(federation.charter.federation, donor_key)
    with federation.lock:
        sponsor = federation.sign(Kind.SPONSOR, federation.member_account, Sponsor(1, donor, 2))
    policy = federation.charter.policy
    terms = Terms(0, QUOTE, METER.public_key().public_bytes_raw(), 3600, policy.acceptable_use, sponsor.id, "training")

    def build(account):
        return Hold(donor, (Draw(program.id, 3, 5000),), terms)

    assert read_account(wallet).millicredits == 10_000
    outcome = spend(wallet, wallet.unlock(None), Kind.HOLD, "a job", build)
    assert outcome.verified is not None
    return outcome.verified.record


@pytest.fixture
def job_receipt(federation, hold):
    receipt = JobReceipt(hold.id, QUOTE, JobState.DONE, 0, 60_000, 1, 10**6, 0, b"", 4000, b"", bytes(64), b"")
    signed = receipt.sign_as_donor(federation.charter.federation, DONOR)
    return signed.sign_as_payer(federation.charter.federation, METER)


@pytest.fixture
def settle(federation, hold, job_receipt):
    charter = federation.charter
    voucher = METER.sign(compute_voucher_id(charter.federation, hold.id, 1, 4000))
    body = Settle(1, 4000, voucher, b"", 0, job_receipt.compute_id(charter.federation))
    donor_key = DONOR.public_key().public_bytes_raw()
    draft = RecordDraft(Kind.SETTLE, federation.epochs[-1], hold_scope(hold.id), 0, b"", body, (donor_key,))
    record = sign_record(charter.federation, draft, [DONOR])
    with federation.lock:
        federation.submit(record.encoded)
    return record


def test_the_three_proofs_together_say_what_ran_and_what_it_cost(wallet, federation, hold, settle, job_receipt):
    proven = verify_job({0: federation.charter}, settle, federation.receipt(hold.id), job_receipt.encode())
    document, lines = describe_job(proven)
    assert (document["state"], document["millicredits"], document["payer"]) == ("DONE", 4000, wallet.address)
    assert document["is_signed_by_payer"] is True
    assert "4.000 credits" in lines[0]


def test_another_job_receipt_is_not_the_one_that_the_settle_names(federation, hold, settle, job_receipt):
    other = job_receipt._replace(amount=1).sign_as_donor(federation.charter.federation, DONOR)
    other = other.sign_as_payer(federation.charter.federation, METER)
    with pytest.raises(InvalidInput, match="names another job receipt"):
        verify_job({0: federation.charter}, settle, federation.receipt(hold.id), other.encode())


def test_a_settle_of_another_hold_does_not_serve(federation, hold, settle, job_receipt):
    stranger = federation.declare("Others")
    with pytest.raises(InvalidInput, match="not the one that the settle ends"):
        verify_job({0: federation.charter}, settle, federation.receipt(stranger.id), job_receipt.encode())
    with pytest.raises(InvalidInput, match="receipt of its settle"):
        verify_job({0: federation.charter}, stranger, federation.receipt(hold.id), job_receipt.encode())


def test_the_command_checks_all_three_files(federation, hold, settle, job_receipt, tmp_path, founding_file, capsys):
    files = {
        "settle": federation.receipt(settle.id),
        "hold": federation.receipt(hold.id),
        "job": job_receipt.encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    command = ["receipt", "verify", str(tmp_path / "settle"), "--charter", str(founding_file), "--json"]
    together = [*command, "--hold", str(tmp_path / "hold"), "--job", str(tmp_path / "job")]
    assert run(together) == 0
    assert json.loads(capsys.readouterr().out)["job"]["exit_status"] == 0
    (tmp_path / "job").write_bytes(files["job"][:-1] + b"x")
    assert run(together) == 1
    assert "does not hold" in capsys.readouterr().err
    assert run([*command, "--job", str(tmp_path / "job")]) == 2
