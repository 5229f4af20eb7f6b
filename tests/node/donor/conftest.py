"""A federation of one, and a node that is nothing but dictionaries: real rules, real receipts, no network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api, job_api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.cli import run
from node.donor import settings as donor_settings
from node.donor.agent import Agent
from node.donor.executors.sandbox import Sandbox
from node.keystore import save_key
from node.mnemonics import compute_entropy, derive_seed
from node.wallet.journal import Journal
from node.wallet.wallet import JOURNAL_NAME, KEY_NAME, KEY_PURPOSE, SETTINGS_NAME, Settings, Wallet
from protocol.batches import LogPosition, build_batch
from protocol.charter import Charter, CharterFields, Member, Policy, found_charter
from protocol.identifiers import compute_account_id
from protocol.quotes import decode_offer
from protocol.receipts import ProvableBatch, build_receipt
from protocol.records import (
    Enrol,
    Grant,
    GrantOutput,
    Kind,
    Program,
    RecordDraft,
    Sponsor,
    account_scope,
    decode_record,
    has_valid_signatures,
    hold_scope,
    person_scope,
    sign_record,
)
from protocol.replica import Replica
from protocol.rules import Circumstances, check_record
from protocol.statements import CommitBatch, VoteBatch, decode_slot_proposal, decode_unlock_request
from tests.node.donor.fake_gpus import fake_gpus, fake_nvml
from tests.node.donor.slurm_cluster import find_obstacle, running_cluster

__all__ = ["fake_gpus", "fake_nvml"]  # fixtures of this folder


@pytest.fixture(scope="session")
def slurm_cluster():
    """A real cluster of three nodes, for all tests that need one."""
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    with running_cluster() as cluster:
        yield cluster


WORDS = " ".join(["abandon"] * 23 + ["art"])


def make_key(number):
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def get_public(key):
    return key.public_key().public_bytes_raw()


class FakeNode:
    """The calls of a node's client, answered in this process. Safe to call from several threads."""

    def __init__(self):
        self.member_key, self.vote_key = make_key(1), make_key(2)
        member_key, vote_key, peer_key = map(get_public, (self.member_key, self.vote_key, make_key(3)))
        member = Member(1, "Hochschule", member_key, vote_key, peer_key, 1, (10**9, 10**9), 0)
        policy = Policy(bytes(32), 60, 7200, 0, 50, 2**20)
        fields = CharterFields(
            0, b"", "Test", b"n" * 16, int(time.time()) - 1000, 30 * 86400, 3600, 1, (member,), (), policy
        )
        self.charter = Charter(fields)
        self.founded = found_charter(self.charter, {1: self.member_key.sign(self.charter.id)})
        self.replica = Replica(self.charter)
        self.batches = {}
        self.last = LogPosition(0, b"")
        self.changed = threading.Condition()
        self.mailboxes = {}
        self.posted = 0
        self.blobs = {}
        self.offers = {}
        self.proposals = []
        self.on_submit = lambda record: None

    # what the test does

    @property
    def epoch(self):
        return self.charter.compute_epoch(int(time.time()))

    def get_provable(self, batch_id):
        return ProvableBatch(self.batches[batch_id])

    def make_final(self, record, ripe=()):
        if self.replica.locate(record.id) is None:
            assert has_valid_signatures(record)
            check_record(record, self.replica.ledger, Circumstances(range(self.epoch, self.epoch + 1), 0, ripe))
            batch = build_batch(
                self.charter,
                self.vote_key,
                1,
                self.last,
                seen=[],
                time_ms=0,
                records=[record],
                statements=[VoteBatch(b"", 0), CommitBatch(b"", 0)],
            )
            self.last = LogPosition(self.last.index + 1, batch.id)
            self.batches[batch.id] = batch
            self.replica.admit(batch, self.batches.__getitem__)
            self.replica.ledger.check_conservation()
        return build_receipt(self.replica, record.id, self.get_provable)

    def sign(self, kind, account, body):
        head = self.replica.ledger.heads.get(account_scope(account))
        sequence, prev = (head.sequence + 1, head.record) if head else (0, b"")
        scope, signers = account_scope(account), (get_public(self.member_key),)
        draft = RecordDraft(kind, self.epoch, scope, sequence, prev, body, signers)
        record = sign_record(self.charter.federation, draft, [self.member_key])
        self.make_final(record)
        return record

    def sponsor(self, donor):
        return self.sign(Kind.SPONSOR, next(iter(self.charter.member_accounts)), Sponsor(1, donor, self.epoch + 1))

    def fund(self, person_key, amount, job_classes=(), name="Students", tag=b"t" * 32):
        member_account = next(iter(self.charter.member_accounts))
        program = self.sign(Kind.PROGRAM, member_account, Program(1, name, "for a test", 10**8, 1, 0, job_classes))
        account = compute_account_id(self.charter.federation, get_public(person_key))
        signers = (get_public(self.member_key), get_public(person_key))
        draft = RecordDraft(Kind.ENROL, self.epoch, person_scope(tag), 0, b"", Enrol(1, account), signers)
        enrolment = sign_record(self.charter.federation, draft, [self.member_key, person_key])
        self.make_final(enrolment)
        issuance = self.charter.get_issuance_account(1, self.epoch)
        output = GrantOutput(enrolment.id, account, amount)
        self.sign(Kind.GRANT, issuance, Grant(program.id, self.epoch + 1, (output,)))
        return program

    def get_hold(self):
        (hold,) = self.replica.ledger.holds.values()
        return hold

    def get_balance(self, account):
        return sum(self.replica.ledger.balances.get(account, {}).values())

    # what a client does

    def close(self):
        pass

    def get_charter(self):
        federation = encode_address(AddressKind.FEDERATION, self.charter.federation)
        return api.Charter(federation, "Test", self.founded.encode(), self.epoch, 1, 1, [])

    def get_account(self, address):
        account = decode_address(AddressKind.ACCOUNT, address)
        ledger = self.replica.ledger
        with self.changed:
            head = ledger.heads.get(account_scope(account))
            lots = [
                api.Lot(
                    encode_address(AddressKind.PROGRAM, lot.program) if lot.program else None,
                    "",
                    lot.expiry_epoch,
                    amount,
                )
                for lot, amount in ledger.balances.get(account, {}).items()
            ]
            sponsorships = [
                api.Sponsorship(encode_address(AddressKind.RECORD, name), state.member, state.until_epoch)
                for name, state in ledger.sponsors.items()
                if state.donor == account
            ]
            enrolments = [
                api.Enrolment(encode_address(AddressKind.RECORD, name), state.member, state.until_epoch, "Hochschule")
                for name, state in ledger.enrolments.items()
                if state.account == account
            ]
        return api.Account(
            address=address,
            epoch=self.epoch,
            next_sequence=head.sequence + 1 if head else 0,
            head=encode_address(AddressKind.RECORD, head.record) if head else None,
            millicredits=sum(lot.millicredits for lot in lots),
            lots=lots,
            enrolments=enrolments,
            sponsorships=sponsorships,
        )

    def get_account_records(self, address, limit=50, before=None):
        return api.RecordPage([], None)

    def get_programs(self):
        return [
            api.Program(
                encode_address(AddressKind.PROGRAM, name),
                1,
                "Hochschule",
                state.body.name,
                state.body.purpose,
                state.body.allowance,
                state.body.expiry_epochs,
                False,
                list(state.body.job_classes),
                0,
            )
            for name, state in self.replica.ledger.programs.items()
        ]

    def submit_record(self, encoded, wait=0):
        record = decode_record(self.charter.federation, encoded)
        self.on_submit(record)
        with self.changed:
            receipt = self.make_final(record)
        return api.Submitted(encode_address(AddressKind.RECORD, record.id), "applied", receipt)

    def get_record(self, address, wait=0):
        record_id = decode_address(AddressKind.RECORD, address)
        if self.replica.locate(record_id) is None:
            return None
        receipt = build_receipt(self.replica, record_id, self.get_provable)
        return api.Record(address, "", 1, "", 0, "applied", {}, b"", receipt)

    def get_job(self, hold_id):
        hold = decode_address(AddressKind.RECORD, hold_id)
        head = self.replica.ledger.heads.get(hold_scope(hold))
        state = self.replica.ledger.holds[hold]
        ended_by = encode_address(AddressKind.RECORD, head.record) if head else None
        return job_api.Job(hold_id, "", "", "", 1, state.amount, state.paid, "HELD", "", None, ended_by)

    def post_unlock(self, request, wait=0):
        attempt = decode_unlock_request(request).attempt
        return api.Promises(0, attempt, False, True, [api.SlotPromise(self.last.prev, 1, None, 0, 0)], [])

    def post_proposal(self, proposal, record, wait=0):
        self.proposals.append(decode_slot_proposal(proposal))
        with self.changed:
            receipt = self.make_final(decode_record(self.charter.federation, record))
        return api.Submitted("", "applied", receipt)

    def put_offer(self, encoded):
        offer = decode_offer(self.charter, encoded)
        with self.changed:
            self.offers[offer.donor_key] = job_api.Offer("", encoded, offer.valid_until)
            self.changed.notify_all()

    def get_offers(self):
        return list(self.offers.values())

    def get_donors(self):
        return []

    def post_message(self, mailbox, content):
        assert len(content) <= api.MESSAGE_BYTES_MAX
        with self.changed:
            self.posted += 1
            self.mailboxes.setdefault(mailbox, []).append(job_api.Message(self.posted, content))
            self.changed.notify_all()
            return self.posted

    def get_messages(self, mailbox, after=0, wait=0):
        def read():
            return [message for message in self.mailboxes.get(mailbox, ()) if message.sequence > after]

        with self.changed:
            self.changed.wait_for(read, timeout=wait)
            return read()

    def put_blob(self, content):
        self.blobs[hashlib.sha256(content).digest()] = content

    def get_blob(self, digest):
        return self.blobs[digest]


DONOR_KEY = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
SEAL_SEED = bytes([8]) * 32
WEIGHT = 1000
SCORE = donor_settings.Score(WEIGHT, 1.0, 1.0, 1.0, 0)


SETTINGS = donor_settings.Settings(
    node_url="http://node",
    machine="bench",
    cores=2,
    memory_bytes=4 * 10**9,
    disk_bytes=10**9,
    job_classes=["batch"],
    runtimes=[],
    tick_seconds=1,
    grace_seconds=60,
)


@pytest.fixture
def donor_account(fake_node):
    public_key = DONOR_KEY.public_key().public_bytes_raw()
    return compute_account_id(fake_node.charter.federation, public_key)


@pytest.fixture
def donor_home(tmp_path):
    home = donor_settings.DonorHome(tmp_path / "donor")
    home.jobs.mkdir(parents=True)
    return home


@asynccontextmanager
async def _run_agent(home, fake_node, score=SCORE, devices=None, **changes):
    """An agent that serves, and has published its offer; stopped as by `kill -9` at the end of the block."""
    sandbox = Sandbox(home.sandbox, devices=devices)
    settings = msgspec.structs.replace(SETTINGS, **changes)
    home.save_settings(settings)
    agent = Agent(
        home,
        settings,
        score,
        fake_node.charter,
        DONOR_KEY,
        SEAL_SEED,
        fake_node,
        sandbox,
        {},
        devices=devices,
        poll_seconds=1,
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            with trio.fail_after(20):
                while not fake_node.offers:
                    await trio.sleep(0.05)
            yield agent
            nursery.cancel_scope.cancel()
    finally:
        sandbox.close()


@pytest.fixture
def write_job(tmp_path):
    """A job file whose script is `run`."""

    def write(run, **fields):
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        (folder / "input.txt").write_text("seven\n")
        lines = ["name: count", f"run: {run!r}", "max_duration: 60s", "resources: {memory: 0.5, disk_size: 0.1}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        path = folder / "job.yaml"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def start_agent(donor_home, fake_node):
    """`async with start_agent(**settings) as agent`, as often as wanted, one after the other."""
    return lambda **changes: _run_agent(donor_home, fake_node, **changes)


@pytest.fixture
def fake_node():
    return FakeNode()


@pytest.fixture
def person_key():
    return Ed25519PrivateKey.from_private_bytes(derive_seed(WORDS, "account"))


@pytest.fixture
def wallet(tmp_path, fake_node, person_key):
    """A wallet without a passphrase, whose node is the fake one."""
    home = tmp_path / "wallet"
    home.mkdir()
    save_key(home / KEY_NAME, compute_entropy(WORDS), None, purpose=KEY_PURPOSE)
    charter, public_key = fake_node.charter, get_public(person_key)
    settings = Settings(
        1,
        encode_address(AddressKind.ACCOUNT, compute_account_id(charter.federation, public_key)),
        public_key.hex(),
        "http://node",
        encode_address(AddressKind.FEDERATION, charter.federation),
        b64encode(fake_node.founded.encode()).decode(),
        charter.fields.genesis_seconds,
        charter.fields.epoch_seconds,
    )
    (home / SETTINGS_NAME).write_text(json.dumps(settings._asdict()))
    Journal(home / JOURNAL_NAME).close()
    with Wallet.open(home) as wallet:
        wallet.__dict__["client"] = fake_node
        yield wallet


@pytest.fixture
def allmende(fake_node, monkeypatch, capsys, tmp_path):
    """Run a command on this test's home: its exit status and what it printed."""
    monkeypatch.setattr("node.served_charter.NodeClient", lambda place: nullcontext(fake_node))

    def call(*words, home=True):
        capsys.readouterr()
        status = run([*words, *(("--home", str(tmp_path)) if home else ())])
        return status, capsys.readouterr()

    return call


@pytest.fixture
def lent(allmende, tmp_path):
    """The directory of a machine that was set up."""
    allmende("donor", "setup", "--node", "http://node", "--machine", "bench", "--cores", "1", "--memory", "2", "-y")
    return donor_settings.DonorHome(tmp_path / "donor")


@pytest.fixture(params=["superuser", "ordinary"])
def agent(request) -> str:
    if request.param == "superuser" and os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user: nothing to test as the superuser")
    return str(request.param)


@pytest.fixture
def home() -> Iterator[Path]:
    """A donor's private folder that both agents may be given."""
    path = Path(tempfile.mkdtemp(prefix="donor-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def marker() -> str:
    """Stands in the command line of a test's processes, so that they can be found."""
    return f"marker{uuid.uuid4().hex}"
