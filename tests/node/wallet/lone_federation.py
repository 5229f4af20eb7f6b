"""A federation of one (a dev charter): the real rules and receipts, without a network."""

from __future__ import annotations

import threading
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import encode_address
from node.history import AccountHistory
from protocol.attempts import FIRST_ROUND, Round
from protocol.batches import LogPosition, build_batch
from protocol.budgets import decode_budget_request
from protocol.charter import Charter, CharterFields, Member, Policy, found_charter
from protocol.codec import binary_up_to, decode, items
from protocol.errors import WAITING_REASONS, Reason, Rejected
from protocol.receipts import ProvableBatch, build_receipt
from protocol.records import (
    Grant,
    GrantOutput,
    Kind,
    Program,
    RecordDraft,
    account_scope,
    decode_record,
    has_valid_signatures,
    sign_record,
)
from protocol.replica import Replica
from protocol.rules import Circumstances
from protocol.statements import (
    Proposal,
    Unlock,
    VoteBatch,
    decode_slot_proposal,
    decode_unlock_request,
)
from protocol.voting import Voter

EPOCH_SECONDS = 30 * 24 * 3600


def _key(number):
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def _public(key):
    return key.public_key().public_bytes_raw()


def split_proposal(body):
    """(proposal, record) of a request's body."""
    return decode(items(binary_up_to(10**6), binary_up_to(10**6)), body, 10**6)


class Federation:
    """One member, which is enough for receipts that hold. Methods are called under `lock`."""

    def __init__(self, name="Test", nonce=b"n" * 16):
        self.member_key, self.vote_key = _key(1), _key(2)
        keys = _public(self.member_key), _public(self.vote_key), _public(_key(3))
        member = Member(1, "Hochschule", *keys, 1, (10**9, 10**9), 0)
        policy = Policy(bytes(32), 3600, 7200, 0, 50, 2**20)
        genesis = int(time.time()) - 1000
        self.charter = Charter(
            CharterFields(0, b"", name, nonce, genesis, EPOCH_SECONDS, 3600, 1, (member,), (), policy)
        )
        self.founded = found_charter(self.charter, {1: self.member_key.sign(self.charter.id)})
        self.replica = Replica(self.charter)
        self.voter = Voter(self.replica, 1)
        self.history = AccountHistory()
        self.batches = {}
        self.last = LogPosition(0, b"")
        self.lock = threading.Lock()
        self.requests = {}
        self.grace_is_over = False
        self.running_seconds = 0

    @property
    def epochs(self):
        return self.charter.compute_open_epochs(int(time.time()))

    @property
    def circumstances(self):
        ripe = self.replica.ledger.requests if self.grace_is_over else ()
        return Circumstances(self.epochs, self.running_seconds, ripe)

    def compute_seconds_left(self, request):
        if request not in self.replica.ledger.requests:
            return None
        return 0 if self.grace_is_over else 3600

    def say(self, records=(), wishes=(), unvoted=()):
        """The next batch: records with their votes, and an owner's wishes with records that are not voted for yet."""
        statements = [*wishes, *self.voter.take_statements(1000)]
        if records:
            statements = [VoteBatch(b"", 0), *statements]
        batch = build_batch(
            self.charter,
            self.vote_key,
            1,
            self.last,
            seen=[],
            time_ms=0,
            records=[*records, *unvoted],
            statements=statements,
        )
        self.last = LogPosition(self.last.index + 1, batch.id)
        self.batches[batch.id] = batch
        admission = self.replica.admit(batch, self.batches.__getitem__)
        assert admission is not None
        self.voter.handle_admission(admission)
        for record in admission.applied:
            self.history.note(record, self.replica.ledger)
        self.voter.handle_contests(self.circumstances)

    def say_all(self, **first):
        """Speak until there is nothing left to say."""
        self.say(**first)
        while self.voter.has_statements:
            self.say()

    def unlock(self, encoded):
        """Answer an owner's request; returns the promises, as a node tells them."""
        request = decode_unlock_request(encoded)
        contest = self.replica.contests.get(request.slot)
        if contest is None or request not in contest.requests.values():
            self.voter.check_request(request, self.circumstances)
            self.say_all(wishes=[Unlock(encoded)])
        contest = self.replica.contests.get(request.slot)
        chosen = contest.choose_promises(Round(0, request.attempt)) if contest else {}
        promises = [
            api.SlotPromise(
                batch,
                1,
                encode_address(AddressKind.RECORD, report.record) if report else None,
                *(report.round if report else FIRST_ROUND),
            )
            for batch, (_, report) in chosen.items()
        ]
        claims = [record.encoded for record in self.replica.get_claims(request.slot)]
        return api.Promises(0, request.attempt, contest is None, bool(promises), promises, claims)

    def propose(self, body):
        """Take an owner's proposal; returns its record."""
        proposal, encoded = split_proposal(body)
        record = decode_record(self.charter.federation, encoded)
        if not self.receipt(record.id):
            self.voter.check_proposal(decode_slot_proposal(proposal), record, self.circumstances)
            unvoted = [] if self.replica.locate(record.id) else [record]
            self.say_all(wishes=[Proposal(proposal)], unvoted=unvoted)
        return record

    def submit(self, encoded):
        """Make a record final, or raise Rejected; one that has to wait is left alone."""
        record = decode_record(self.charter.federation, encoded)
        if self.replica.locate(record.id) is None:
            if not has_valid_signatures(record):
                raise Rejected(Reason.SIGNATURE_INVALID)
            try:
                self.voter.check_introduction(record, self.circumstances)
            except Rejected as rejection:
                if rejection.reason in WAITING_REASONS:
                    return record
                raise
            self.voter.note_introduction(record)
            self.say_all(records=[record])
        return record

    def receipt(self, record_id):
        located = self.replica.locate(record_id) is not None and self.replica.is_final(record_id)
        if not located:
            return None
        return build_receipt(self.replica, record_id, lambda batch_id: ProvableBatch(self.batches[batch_id]))

    def sign(self, kind, account, body, *, keys=None):
        """The next record of an account that the member writes, made final."""
        keys = keys or [self.member_key]
        head = self.replica.ledger.heads.get(account_scope(account))
        sequence, prev = (head.sequence + 1, head.record) if head else (0, b"")
        draft = RecordDraft(
            kind, self.epochs[-1], account_scope(account), sequence, prev, body, tuple(map(_public, keys))
        )
        record = sign_record(self.charter.federation, draft, keys)
        self.submit(record.encoded)
        assert self.receipt(record.id)
        return record

    @property
    def member_account(self):
        return next(iter(self.charter.member_accounts))

    def declare(self, name, *, is_transferable=1, expiry_epochs=2):
        body = Program(1, name, "for a test", 10**6, expiry_epochs, is_transferable, ())
        return self.sign(Kind.PROGRAM, self.member_account, body)

    def enrol(self, request_bytes):
        request = decode_budget_request(self.charter, request_bytes)
        draft = request.build_enrolment(self.charter)
        signature = self.member_key.sign(draft.compute_id(self.charter.federation))
        record = draft.assemble(self.charter.federation, [signature, request.enrolment_signature])
        self.submit(record.encoded)
        return record

    def grant(self, program, enrolment, account, amount):
        epoch = self.epochs[-1]
        expiry = epoch + program.body.expiry_epochs
        issuance = self.charter.get_issuance_account(1, epoch)
        body = Grant(program.id, expiry, (GrantOutput(enrolment.id, account, amount),))
        return self.sign(Kind.GRANT, issuance, body)
