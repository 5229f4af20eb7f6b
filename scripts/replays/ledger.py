"""The federation's ledger during a replay: real members, stores, records and batches; only the clock is simulated.

One to four members, each with its own replica. A record is handed to one of them, and all exchange batches until it is
final at every one; so what is counted here, records and bytes, is what a node would store. Signatures are real.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.keystore import Key
from node.member import LedgerMember
from node.running_clock import RunningClock
from node.storage.store import Store
from node.vote_keys import VoteKeys
from protocol.charter import Charter, CharterFields, FoundedCharter, Member, Policy, found_charter
from protocol.identifiers import compute_account_id
from protocol.limits import GRACE_SECONDS_MAX, GRACE_SECONDS_MIN, MEMBERS_SAFE_MIN
from protocol.metering import Voucher
from protocol.quotes import Quote, QuoteRequest
from protocol.records import (
    FREE_LOT,
    NONE,
    Body,
    Draw,
    Enrol,
    Grant,
    GrantOutput,
    Hold,
    Kind,
    Lot,
    Program,
    Reclaim,
    ReclaimRequest,
    Record,
    RecordDraft,
    Settle,
    Sponsor,
    Terms,
    account_scope,
    hold_scope,
    person_scope,
    sign_record,
)
from scripts.benchmarks.federation_in_memory import make_key

MEMBERS_MAX = 4
EPOCH_SECONDS = 30 * 24 * 3600
SETUP_SECONDS = 24 * 3600
"""The federation is founded a day before the replay begins."""
EXPIRY_EPOCHS = 100
GRANTED = 10**12
"""Millicredits of each person: more than anybody can spend, since budgets are not what a replay asks about."""
CAP = 2**50
ACCEPTABLE_USE = sha256(b"the federation's acceptable-use policy").digest()
_EXCHANGES_MAX = 100


class Party(NamedTuple):
    """Somebody with an account: a person who pays, or a donor."""

    name: str
    key: Ed25519PrivateKey
    public_key: bytes
    account: bytes


def get_public_key(key: Ed25519PrivateKey) -> bytes:
    """The public half."""
    return key.public_key().public_bytes_raw()


class Books:
    """What the replay writes into the ledger, and what it reads from it. `now_seconds` is the members' clock."""

    def __init__(self, member_count: int, start_seconds: int) -> None:
        """`start_seconds`: Unix time at which the replay begins."""
        assert 1 <= member_count <= MEMBERS_MAX
        self.now_seconds = float(start_seconds - SETUP_SECONDS)
        self._member_keys = {number: make_key("member", number) for number in range(1, member_count + 1)}
        founded = self._found(start_seconds - SETUP_SECONDS)
        self.charter = founded.charter
        self.federation = founded.charter.federation
        self._members = [self._open_member(founded, number) for number in self._member_keys]
        self._tips: dict[bytes, Record] = {}
        """Scope -> its newest record."""
        self._lots: dict[bytes, Lot] = {}
        """A person's account -> the lot that it was granted."""
        self.sponsors: dict[bytes, bytes] = {}
        """A donor's account -> the record by which a member vouches for it."""
        self.record_counts: Counter[Kind] = Counter()
        self.batch_count = 0
        self.batch_bytes = 0
        self.record_bytes = 0

    def _found(self, genesis_seconds: int) -> FoundedCharter:
        members = tuple(
            Member(
                number,
                f"Institution {number}",
                get_public_key(key),
                get_public_key(make_key("vote", number)),
                get_public_key(make_key("peer", number)),
                1,
                (CAP,),
                0,
            )
            for number, key in self._member_keys.items()
        )
        policy = Policy(ACCEPTABLE_USE, GRACE_SECONDS_MIN, GRACE_SECONDS_MAX, 0, 50, 2**30)
        is_dev = int(len(members) < MEMBERS_SAFE_MIN)
        charter = Charter(
            CharterFields(0, NONE, "replay", bytes(16), genesis_seconds, EPOCH_SECONDS, 60, is_dev, members, (), policy)
        )
        return found_charter(charter, {number: key.sign(charter.id) for number, key in self._member_keys.items()})

    def _open_member(self, founded: FoundedCharter, number: int) -> LedgerMember:
        vote_keys = VoteKeys([Key(make_key("vote", number).private_bytes_raw(), "vote")])
        store = Store.open(":memory:", self.federation)
        member = LedgerMember(founded, number, vote_keys, store, lambda: self.now_seconds)
        member.running_clock = RunningClock(store, lambda: self.now_seconds)
        return member

    @property
    def member_count(self) -> int:
        """How many replicas there are."""
        return len(self._members)

    def close(self) -> None:
        """Close the members' stores."""
        for member in self._members:
            member.store.close()

    # -- before the replay --------------------------------------------------------------------------------------

    def make_party(self, role: str, name: str) -> Party:
        """Somebody with an account, the same in each run."""
        key = make_key(role, name)
        public_key = get_public_key(key)
        return Party(name, key, public_key, compute_account_id(self.federation, public_key))

    def open_accounts(self, people: Mapping[str, Sequence[Party]], donors: Sequence[Party]) -> None:
        """Each institution runs a program, at one of the members in turn, and grants to its people; the members vouch
        for the donors, in turn. What this costs is not counted: it is done once."""
        numbers = list(self._member_keys)
        homes = {institution: numbers[index % len(numbers)] for index, institution in enumerate(people)}
        programs = {institution: self._open_program(homes[institution], institution) for institution in people}
        for institution, program in programs.items():
            self._grant(homes[institution], program, people[institution])
        for start in range(0, len(donors), len(numbers)):
            some = list(zip(numbers, donors[start : start + len(numbers)], strict=False))
            sponsors = [self._draft_sponsor(number, donor) for number, donor in some]
            self._bring_through(sponsors)
            for sponsor, (_, donor) in zip(sponsors, some, strict=True):
                self.sponsors[donor.account] = sponsor.id
            self.now_seconds += 1  # an account may hand in only so many records a minute
        self.record_counts.clear()
        self.batch_count = self.batch_bytes = self.record_bytes = 0

    def _open_program(self, number: int, institution: str) -> Record:
        body = Program(number, institution, "", GRANTED, EXPIRY_EPOCHS, 0, ())
        scope = account_scope(self.charter.get_member_account(number))
        program = self._sign(Kind.PROGRAM, scope, body, self._member_keys[number])
        self._bring_through([program])
        return program

    def _grant(self, number: int, program: Record, people: Sequence[Party]) -> None:
        key = self._member_keys[number]
        enrolments = [
            self._sign(Kind.ENROL, person_scope(person.account), Enrol(number, person.account), key, person.key)
            for person in people
        ]
        self._bring_through(enrolments)
        epoch = self._epoch
        lot = Lot(program.id, epoch + EXPIRY_EPOCHS)
        outputs = [GrantOutput(one.id, person.account, GRANTED) for one, person in zip(enrolments, people, strict=True)]
        scope = account_scope(self.charter.get_issuance_account(number, epoch))
        self._bring_through([self._sign(Kind.GRANT, scope, Grant(*lot, tuple(outputs)), key)])
        self._lots.update({person.account: lot for person in people})

    def _draft_sponsor(self, number: int, donor: Party) -> Record:
        scope = account_scope(self.charter.get_member_account(number))
        body = Sponsor(number, donor.account, self._epoch + EXPIRY_EPOCHS)
        return self._sign(Kind.SPONSOR, scope, body, self._member_keys[number])

    # -- during the replay --------------------------------------------------------------------------------------

    def put_aside(self, payer: Party, payee: bytes, quote: Quote, request: QuoteRequest) -> Record:
        """A hold for what the quote asks for."""
        terms = Terms(
            quote.charter_version,
            quote.compute_id(self.federation),
            request.meter_key,
            quote.grace_seconds,
            ACCEPTABLE_USE,
            quote.sponsor,
            request.job_class,
        )
        draw = Draw(*self._lots[payer.account], quote.amount_max)
        hold = self._sign(Kind.HOLD, account_scope(payer.account), Hold(payee, (draw,), terms), payer.key)
        self._bring_through([hold])
        return hold

    def settle(self, payee: Party, voucher: Voucher, receipt: bytes) -> Record:
        """The end of a hold: the payee has what the voucher says, the payer the rest."""
        body = Settle(voucher.sequence, voucher.amount, voucher.signature, NONE, 0, receipt)
        settle = self._sign(Kind.SETTLE, hold_scope(voucher.hold), body, payee.key)
        self._bring_through([settle])
        return settle

    def ask_back(self, payer: Party, hold: Record) -> Record:
        """The payer's reclaim-request, from which the grace runs."""
        request = self._sign(Kind.RECLAIM_REQUEST, account_scope(payer.account), ReclaimRequest(hold.id), payer.key)
        self._bring_through([request])
        return request

    def reclaim(self, payer: Party, hold: Record, request: Record) -> Record:
        """The end of a hold after the grace: the payer has all of it back."""
        reclaim = self._sign(Kind.RECLAIM, hold_scope(hold.id), Reclaim(request.id), payer.key)
        self._bring_through([reclaim])
        return reclaim

    @property
    def _epoch(self) -> int:
        return self.charter.compute_epoch(int(self.now_seconds))

    def _sign(self, kind: Kind, scope: bytes, body: Body, *keys: Ed25519PrivateKey) -> Record:
        """The next record of the scope."""
        tip = self._tips.get(scope)
        sequence, prev = (tip.sequence + 1, tip.id) if tip else (0, NONE)
        draft = RecordDraft(kind, self._epoch, scope, sequence, prev, body, tuple(map(get_public_key, keys)))
        self._tips[scope] = sign_record(self.federation, draft, keys)
        return self._tips[scope]

    def _bring_through(self, records: Iterable[Record]) -> None:
        """Hand the records to members in turn; when this returns they have applied everywhere."""
        given = list(records)
        for record in given:
            self._members[sum(self.record_counts.values()) % len(self._members)].submit_at_once(record.encoded)
            self.record_counts[Kind(record.kind)] += 1
            self.record_bytes += len(record.encoded)
        self._exchange()
        for member in self._members:
            assert all(member.get_state(record.id) == "applied" for record in given)

    def _exchange(self) -> None:
        """Let everybody speak in turn until nobody has anything to say."""
        for _ in range(_EXCHANGES_MAX):
            spoken = [(member, batch) for member in self._members if (batch := member.say_next()) is not None]
            if not spoken:
                return
            self.batch_count += len(spoken)
            self.batch_bytes += sum(len(batch.encoded) for _, batch in spoken)
            for member in self._members:
                others = [batch.encoded for speaker, batch in spoken if speaker is not member]
                if others:
                    member.ingest_at_once(others, "replay")
        raise AssertionError("the members never fell silent")

    # -- at the end ---------------------------------------------------------------------------------------------

    def get_earned(self, donor: Party) -> int:
        """Millicredits on a donor's account."""
        return self._members[0].replica.ledger.get_balance(donor.account, FREE_LOT)

    def get_left(self, payer: Party) -> int:
        """Millicredits that a person still has of its grant."""
        return self._members[0].replica.ledger.get_balance(payer.account, self._lots[payer.account])

    def check(self) -> None:
        """Assert that nothing was made or lost, that no hold is open, and that all members agree on everything."""
        for member in self._members:
            member.replica.ledger.check_conservation()
            assert member.replica.ledger.escrowed == 0, "every hold has ended"
        assert len({member.replica.compute_state_root() for member in self._members}) == 1, "the members agree"
