"""A donor disputes a job with what it keeps of it: one file, one record, the same bytes after an interruption."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from node import api
from node.addresses import Kind, decode_address, encode_address
from node.cli import run
from node.donor import cli_dispute
from node.donor.disputing import build_donor_evidence, dispute_job
from node.donor.enrolling import KEY_PURPOSE, make_donor
from node.donor.job_file import JobDocument, JobFile
from node.donor.settings import DIRECTORY_NAME, DonorHome
from node.errors import Unreachable, UserError
from node.evidence import describe_reason
from node.keystore import save_key
from protocol.disputes import PAYEE_REASONS, DisputeReason
from protocol.errors import Reason, Rejected
from protocol.metering import sign_voucher
from protocol.records import account_scope, decode_record
from tests.disputed_jobs import DONOR_KEY, METER, make_job
from tests.node.donor.conftest import SETTINGS


class Link:
    """A node of the job's federation; `fault` is raised by the next submission."""

    def __init__(self, job):
        self.job, self.member = job, job.cluster.members[1]
        self.fault = None
        self.submitted, self.blobs = [], {}

    @property
    def disputes(self):
        return self.member.replica.ledger.disputes.get(self.job.hold.id, {})

    def get_charter(self):
        charter = self.job.federation.charter
        address = encode_address(Kind.FEDERATION, charter.id)
        return api.Charter(address, "", self.job.federation.found().encode(), 1, 3600, 3, [])

    def get_record(self, name, wait=0):
        record_id = decode_address(Kind.RECORD, name)
        for record in (self.job.hold, *(decode_record(self.job.federation.id, it) for it in self.submitted)):
            if record.id == record_id and self.member.replica.is_final(record_id):
                return api.Record(name, "", 1, "", 0, "applied", {}, b"", self.member.receipt(record))
        return None

    def get_account(self, address):
        head = self.member.replica.ledger.heads.get(account_scope(decode_address(Kind.ACCOUNT, address)))
        name = encode_address(Kind.RECORD, head.record) if head else None
        return api.Account(address, 1, head.sequence + 1 if head else 0, name, 0, [], [], [])

    def submit_record(self, encoded, wait=0):
        self.submitted.append(encoded)
        if self.fault is not None:
            raise self.fault
        record = decode_record(self.job.federation.id, encoded)
        if not self.member.replica.is_final(record.id):
            self.job.cluster.finalise([record])
        return api.Submitted("", "applied", self.member.receipt(record))

    def put_blob(self, content):
        self.blobs[sha256(content).digest()] = content

    def close(self):
        pass


@pytest.fixture
def job():
    return make_job()


@pytest.fixture
def link(job):
    return Link(job)


@pytest.fixture
def kept(job, tmp_path):
    """What the donor keeps of the job."""
    ticks = job.make_ticks(10, 20)
    vouchers = [sign_voucher(job.federation.id, METER, job.hold.id, number, 10 * number)[1:] for number in (0, 1)]
    document = JobDocument(
        "3fa2c81b90" * 3,
        job.request.encode(),
        job.quote.encode(),
        "POLICY_KILLED",
        hold=job.hold.id,
        ticks=[tick.encode() for tick in ticks],
        vouchers=vouchers,
        receipt=job.make_receipt(ticks).encode(),
    )
    return JobFile.create(tmp_path / DIRECTORY_NAME / "jobs", document)


@pytest.fixture
def allmende(link, job, kept, tmp_path, monkeypatch, capsys):
    home = DonorHome(tmp_path / DIRECTORY_NAME)
    home.directory.mkdir(exist_ok=True)
    save_key(home.key_path, DONOR_KEY.private_bytes_raw(), None, purpose=KEY_PURPOSE)
    make_donor(home, SETTINGS, job.federation.found(), None)
    for module in ("node.served_charter", "node.client"):  # what is loaded meanwhile must not keep the replacement
        monkeypatch.setattr(f"{module}.NodeClient", lambda place: link)

    def call(*words, status=0):
        assert run([*words, "--home", str(tmp_path)]) == status
        return capsys.readouterr()

    return call


def build(link, kept, reason=DisputeReason.METER_UNANSWERED):
    return build_donor_evidence(link, {0: link.job.federation.charter}, kept, reason)


def test_the_command_signs_and_publishes(allmende, link):
    words = ("donor", "dispute", "3fa2", "--reason", "meter-unanswered", "--json")
    dry = json.loads(allmende(*words, "--dry-run").out)
    assert not link.submitted
    done = json.loads(allmende(*words, "-y").out)
    ((record, state),) = link.disputes.items()
    assert done["record"] == encode_address(Kind.RECORD, record)
    assert state.evidence.hex() == done["evidence"] == dry["evidence"]
    assert state.evidence in link.blobs
    assert allmende(*words, "-y")
    assert len(link.disputes) == 1


def test_a_job_that_nobody_knows_is_named_in_one_line(allmende):
    refused = allmende("donor", "dispute", "9", "--reason", "job-abusive", "-y", status=1)
    assert refused.err.count("\n") == 1


def test_without_a_hold_there_is_nothing_to_dispute(link, kept):
    kept.document.hold = b""
    with pytest.raises(UserError, match="nothing to dispute"):
        build(link, kept)


def test_after_an_interruption_the_same_bytes_go_out(link, job, kept):
    law = {0: job.federation.charter}
    link.fault = Unreachable("gone")
    with pytest.raises(Unreachable):
        dispute_job(link, law, DONOR_KEY, kept, build(link, kept))
    link.fault = None
    kept.document.vouchers = []
    record = dispute_job(link, law, DONOR_KEY, kept, build(link, kept))
    assert link.submitted[0] == link.submitted[1]
    assert list(link.disputes) == [record]


def test_a_record_whose_epoch_has_passed_is_signed_anew(link, job, kept):
    law, evidence = {0: job.federation.charter}, build(link, kept)
    link.fault = Rejected(Reason.EPOCH_WRONG)
    with pytest.raises(Rejected):
        dispute_job(link, law, DONOR_KEY, kept, evidence)
    link.fault = None
    assert [dispute_job(link, law, DONOR_KEY, kept, build(link, kept))] == list(link.disputes)


def test_a_place_that_another_record_took_is_given_up(link, job, kept):
    law, evidence = {0: job.federation.charter}, build(link, kept)
    link.fault = Unreachable("gone")
    with pytest.raises(Unreachable):
        dispute_job(link, law, DONOR_KEY, kept, evidence)
    link.fault = None
    person = job.federation.person("donor")
    job.cluster.finalise([job.federation.rotate(person, person._replace(public_key=job.request.meter_key, key=METER))])
    with pytest.raises(Rejected):  # by the key of before; the place is the next one
        dispute_job(link, law, DONOR_KEY, kept, evidence)
    assert decode_record(job.federation.id, link.submitted[-1]).sequence == 1


def test_the_command_knows_every_reason_that_a_donor_may_give():
    assert set(cli_dispute.REASONS) == set(map(describe_reason, PAYEE_REASONS))
