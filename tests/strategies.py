"""Everything that the tests of the protocol build from: federations, people, records, batches, whole schedules.

Keys come from labels and choices from a seed, so each case can be built again. Hypothesis draws seeds and small
values; `random.Random` makes the large structures, because that is ten times faster and a seed replays it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import cache, lru_cache
from hashlib import sha256
from random import Random
from typing import Any, NamedTuple
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from protocol import signatures
from protocol.batches import Batch, LogPosition, build_batch
from protocol.budgets import BudgetRequest
from protocol.charter import (
    Charter,
    CharterFields,
    FoundedCharter,
    Member,
    Policy,
    Rate,
    decode_charter,
    found_charter,
)
from protocol.disputes import PAYEE_REASONS, PAYER_REASONS, Dispute, DisputeReason
from protocol.finality import iterate_positions
from protocol.identifiers import compute_account_id, compute_voucher_id
from protocol.records import (
    Amend,
    Body,
    Draw,
    Enrol,
    Grant,
    GrantOutput,
    Hold,
    Kind,
    Leave,
    Output,
    Program,
    Reclaim,
    ReclaimRequest,
    Record,
    RecordDraft,
    Reinstate,
    Rotate,
    Settle,
    Sponsor,
    Suspend,
    Terms,
    Transfer,
    account_scope,
    charter_scope,
    hold_scope,
    person_scope,
    sign_record,
)
from protocol.rules import Circumstances
from protocol.statements import Statement

NOW = Circumstances(range(1, 2))
ACCEPTABLE_USE = sha256(b"be kind").digest()
SEEDS = st.integers(0, 2**32 - 1)


_is_valid_signature = lru_cache(maxsize=1 << 17)(signatures.is_valid_signature)
_is_prime_order_key = lru_cache(maxsize=1 << 12)(signatures.is_prime_order_key)


@contextmanager
def memoised_signature_checks() -> Iterator[None]:
    """Inside, each (key, message, signature) is checked once: the answer is a pure function of these bytes."""
    with ExitStack() as stack:
        for module in (
            "records",
            "batches",
            "budgets",
            "rules",
            "charter",
            "evidence",
            "metering",
            "quotes",
            "job_evidence",
        ):
            stack.enter_context(mock.patch(f"protocol.{module}.is_valid_signature", _is_valid_signature))
        stack.enter_context(mock.patch("protocol.charter.is_prime_order_key", _is_prime_order_key))
        yield


@cache
def make_key(label: str) -> Ed25519PrivateKey:
    """The private key with this label; the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(sha256(label.encode()).digest())


_KEYS: dict[bytes, Ed25519PrivateKey] = {}


@cache
def make_public_key(label: str) -> bytes:
    """Its public key."""
    key = make_key(label)
    public_key = key.public_key().public_bytes_raw()
    _KEYS[public_key] = key
    return public_key


def find_key(public_key: bytes) -> Ed25519PrivateKey:
    """The private key of a public one that `make_public_key` made."""
    return _KEYS[public_key]


def get_public_key(key: Ed25519PrivateKey) -> bytes:
    """The public key of a private one."""
    return key.public_key().public_bytes_raw()


def make_id(label: str) -> bytes:
    """Some 32 bytes."""
    return sha256(label.encode()).digest()


class Person(NamedTuple):
    """Somebody with an account, or a member as the owner of its own account."""

    name: str
    key: Ed25519PrivateKey
    public_key: bytes
    account: bytes


def rekey(person: Person, label: str) -> Person:
    """The same account with another key."""
    return person._replace(key=make_key(label), public_key=make_public_key(label))


class Federation:
    """A founded federation whose keys are all at hand."""

    def __init__(
        self,
        weights: Sequence[int] = (1, 1, 1, 1),
        *,
        name: str = "Testland",
        caps: Sequence[int] = (1_000_000, 1_000_000, 1_000_000),
        backing_ceiling: int = 400,
        is_dev: bool = False,
    ) -> None:
        self.name = name
        self.numbers = tuple(range(1, len(weights) + 1))
        members = tuple(
            Member(
                number,
                f"Institution {number}",
                make_public_key(f"{name} member {number}"),
                make_public_key(f"{name} vote {number}"),
                make_public_key(f"{name} peer {number}"),
                weight,
                tuple(caps),
                backing_ceiling,
            )
            for number, weight in zip(self.numbers, weights, strict=True)
        )
        policy = Policy(ACCEPTABLE_USE, 60, 86_400, 500, 50, 1 << 20)
        nonce = make_id(name)[:16]
        self.charter = Charter(
            CharterFields(0, b"", name, nonce, 1_000_000, 3600, 60, int(is_dev), members, (Rate("gpu", 1000),), policy)
        )
        self.id = self.charter.federation
        self.member_keys = {number: make_key(f"{name} member {number}") for number in self.numbers}

    def found(self) -> FoundedCharter:
        """The founding document, signed by all."""
        return found_charter(self.charter, {n: key.sign(self.id) for n, key in self.member_keys.items()})

    def person(self, name: str) -> Person:
        """Somebody whose key comes from the name."""
        public_key = make_public_key(f"person {name}")
        return Person(name, make_key(f"person {name}"), public_key, compute_account_id(self.id, public_key))

    def member(self, number: int) -> Person:
        """A member as the owner of its own account."""
        key, account = self.member_keys[number], self.charter.get_member_account(number)
        return Person(f"member {number}", key, get_public_key(key), account)

    def amended(self, amendment: Record, member_keys: Mapping[int, Ed25519PrivateKey] | None = None) -> Federation:
        """The same federation under an amendment that has applied; `member_keys` are those that it changed or added."""
        assert isinstance(amendment.body, Amend)
        after = copy(self)
        after.charter = decode_charter(amendment.body.charter, self.id)
        after.numbers = tuple(after.charter.members)
        after.member_keys = {**self.member_keys, **(member_keys or {})}
        return after

    # -- records --------------------------------------------------------------------------------------------------

    def sign(
        self,
        kind: Kind,
        scope: bytes,
        body: Body,
        writers: Sequence[Person],
        *,
        sequence: int = 0,
        prev: bytes = b"",
        epoch: int = 1,
    ) -> Record:
        """Any record at all."""
        keys = tuple(writer.public_key for writer in writers)
        draft = RecordDraft(kind, epoch, scope, sequence, prev, body, keys)
        return sign_record(self.id, draft, [writer.key for writer in writers])

    def transfer(self, payer: Person, outputs: Sequence[Output], memo: str = "", **place: Any) -> Record:
        """A payment out of the payer's account."""
        return self.sign(Kind.TRANSFER, account_scope(payer.account), Transfer(tuple(outputs), memo), [payer], **place)

    def program(self, member: int, **changes: Any) -> Record:
        """A budget in the member's own account; `changes` are fields of `Program` or the place."""
        place = {name: changes.pop(name) for name in ("sequence", "prev", "epoch") if name in changes}
        body = Program(member, "Studies", "for courses", 50_000, 1, 1, ())._replace(**changes)
        writer = self.member(member)
        return self.sign(Kind.PROGRAM, account_scope(writer.account), body, [writer], **place)

    def enrol(self, member: int, person: Person, tag: bytes = b"", **place: Any) -> Record:
        """The member says that the person's account is a person's."""
        scope = person_scope(tag or make_id(f"tag of {person.name}"))
        return self.sign(Kind.ENROL, scope, Enrol(member, person.account), [self.member(member), person], **place)

    def grant(self, program: Record, outputs: Iterable[tuple[Record, int]], member: int = 0, **changes: Any) -> Record:
        """Allowances for enrolled people, from the issuance account of the record's epoch."""
        number = member or self.charter.member_accounts[program.account]
        epoch = changes.get("epoch", 1)
        assert isinstance(program.body, Program)
        expiry = changes.pop("expiry_epoch", epoch + program.body.expiry_epochs)
        body = Grant(program.id, expiry, tuple(_grant_output(enrolment, amount) for enrolment, amount in outputs))
        scope = account_scope(self.charter.get_issuance_account(number, changes.pop("issuance_epoch", epoch)))
        return self.sign(Kind.GRANT, scope, body, [self.member(number)], **changes)

    def sponsor(self, member: int, donor: Person, until_epoch: int = 3, **place: Any) -> Record:
        """The member vouches for a donor."""
        writer = self.member(member)
        body = Sponsor(member, donor.account, until_epoch)
        return self.sign(Kind.SPONSOR, account_scope(writer.account), body, [writer], **place)

    def hold(self, payer: Person, payee: Person, sponsor: Record, draws: Sequence[Draw], **changes: Any) -> Record:
        """Funds put aside for a job; `changes` are fields of `Terms` or the place."""
        place = {name: changes.pop(name) for name in ("sequence", "prev", "epoch") if name in changes}
        terms = Terms(
            self.charter.version, make_id("quote"), make_public_key("meter"), 600, ACCEPTABLE_USE, sponsor.id, "cpu"
        )._replace(**changes)
        body = Hold(payee.account, tuple(draws), terms)
        return self.sign(Kind.HOLD, account_scope(payer.account), body, [payer], **place)

    def settle(self, payee: Person, hold: Record, amount: int, **changes: Any) -> Record:
        """The end of a hold, with a voucher of the key that `hold` names when `make_key("meter")` made it."""
        place = {name: changes.pop(name) for name in ("sequence", "prev", "epoch") if name in changes}
        voucher = make_key("meter").sign(compute_voucher_id(self.id, hold.id, 7, amount))
        body = Settle(7, amount, voucher, b"", 0, b"")._replace(**changes)
        return self.sign(Kind.SETTLE, hold_scope(hold.id), body, [payee], **place)

    def leave(self, member: int, person: Person, enrolment: Record, **place: Any) -> Record:
        """A person leaves a member; the record follows the enrolment in its scope."""
        place = {"sequence": enrolment.sequence + 1, "prev": enrolment.id, **place}
        body = Leave(member, person.account)
        return self.sign(Kind.LEAVE, enrolment.scope, body, [self.member(member), person], **place)

    def reclaim_request(self, payer: Person, hold: Record, **place: Any) -> Record:
        """A payer asks for an escrow back."""
        return self.sign(Kind.RECLAIM_REQUEST, account_scope(payer.account), ReclaimRequest(hold.id), [payer], **place)

    def reclaim(self, payer: Person, hold: Record, request: Record, **place: Any) -> Record:
        """A payer takes an escrow back."""
        return self.sign(Kind.RECLAIM, hold_scope(hold.id), Reclaim(request.id), [payer], **place)

    def suspend(self, member: int, person: Person, until_epoch: int = 3, **place: Any) -> Record:
        """A member stops an account for a while."""
        body = Suspend(member, person.account, 7, make_id("evidence"), until_epoch, "appeals@example.org")
        return self.sign(Kind.SUSPEND, account_scope(self.member(member).account), body, [self.member(member)], **place)

    def reinstate(self, member: int, person: Person, **place: Any) -> Record:
        """And lets it go on."""
        body, writer = Reinstate(member, person.account), self.member(member)
        return self.sign(Kind.REINSTATE, account_scope(writer.account), body, [writer], **place)

    def dispute(
        self, person: Person, hold: Record, reason: int = DisputeReason.WORK_LOST, evidence: bytes = b"", **place: Any
    ) -> Record:
        """A side of the hold accuses the other one."""
        body = Dispute(hold.id, int(reason), evidence or make_id("evidence"))
        return self.sign(Kind.DISPUTE, account_scope(person.account), body, [person], **place)

    def rotate(self, person: Person, after: Person, **place: Any) -> Record:
        """The account's next key, which `after` holds."""
        body = Rotate(after.public_key)
        return self.sign(Kind.ROTATE, account_scope(person.account), body, [person, after], **place)

    def amend(self, before: Record | None = None, *, writer: int = 1, epoch: int = 1, **changes: Any) -> Record:
        """The amendment after `before` with changed fields, which may break rules."""
        next_version: dict[str, Any] = {"version": self.charter.version + 1, "prev": self.charter.id}
        fields = self.charter.fields._replace(**(next_version | changes))
        place: dict[str, Any] = {"sequence": before.sequence + 1, "prev": before.id} if before else {}
        scope, body = charter_scope(self.id), Amend(fields.encode())
        return self.sign(Kind.AMEND, scope, body, [self.member(writer)], epoch=epoch, **place)

    def change_member(self, number: int, **changes: Any) -> tuple[Member, ...]:
        """The members of the charter, one of them changed or, under a new number, added."""
        member = self.charter.members.get(number)
        if member is None:
            keys = [make_public_key(f"{self.name} {use} {number}") for use in ("member", "vote", "peer")]
            member = Member(number, f"Institution {number}", keys[0], keys[1], keys[2], 1, (), 0)
        members = {**self.charter.members, number: member._replace(**changes)}
        return tuple(members[key] for key in sorted(members))

    def budget_request(self, member: int, person: Person, program: bytes) -> BudgetRequest:
        """What a person sends to an institution."""
        tag = make_id(f"tag of {person.name}")
        request = BudgetRequest(program, member, 1, tag, person.account, person.public_key, "please", b"", b"")
        return request.sign(self.charter, person.key)

    # -- batches --------------------------------------------------------------------------------------------------

    def batch(
        self,
        member: int,
        *,
        after: Batch | None = None,
        seen: Iterable[Batch] = (),
        records: Sequence[Record] = (),
        statements: Sequence[Statement] = (),
        time_ms: int = 0,
        charter: Charter | None = None,
    ) -> Batch:
        """A signed batch of the member's log, honest or not; under another charter version, if one is given."""
        charter = charter or self.charter
        position = LogPosition(after.header.index + 1, after.id) if after else LogPosition(0, b"")
        return build_batch(
            charter,
            find_key(charter.members[member].vote_key),
            member,
            position,
            seen=[batch.id for batch in seen],
            time_ms=time_ms,
            records=records,
            statements=statements,
        )


def _grant_output(enrolment: Record, amount: int) -> GrantOutput:
    assert isinstance(enrolment.body, Enrol)
    return GrantOutput(enrolment.id, enrolment.body.account, amount)


@cache
def make_federation(weights: tuple[int, ...] = (1, 1, 1, 1), name: str = "Testland") -> Federation:
    """A federation that tests share; nothing in it changes."""
    return Federation(weights, name=name)


class Economy(NamedTuple):
    """Records that lead from genesis to people with money, in an order in which all of them apply."""

    federation: Federation
    people: tuple[Person, ...]
    donor: Person
    program: Record
    enrolments: tuple[Record, ...]
    sponsor: Record
    grant: Record

    @property
    def setup(self) -> tuple[Record, ...]:
        """What comes before the grant."""
        return (self.program, *self.enrolments, self.sponsor)

    @property
    def records(self) -> tuple[Record, ...]:
        """All, causes first."""
        return (*self.setup, self.grant)

    @property
    def lot(self) -> tuple[bytes, int]:
        """(program, expiry epoch) of what the people were granted."""
        return self.program.id, 2

    def output(self, payee: Person, amount: int) -> Output:
        """A payment in the granted lot."""
        return Output(payee.account, *self.lot, amount)


GRANTED = 1000
"""Millicredits that each person of an economy is granted."""


@cache
def make_economy(federation: Federation, people_count: int = 2) -> Economy:
    """Member 1 runs a program and enrols people; member 2 sponsors a donor."""
    people = tuple(federation.person(f"person {number}") for number in range(people_count))
    program = federation.program(1)
    enrolments = tuple(federation.enrol(1, person) for person in people)
    donor = federation.person("donor")
    sponsor = federation.sponsor(2, donor)
    grant = federation.grant(program, [(enrolment, GRANTED) for enrolment in enrolments])
    return Economy(federation, people, donor, program, enrolments, sponsor, grant)


# -- random histories -------------------------------------------------------------------------------------------------


class HistoryWriter:
    """Writes random histories of valid records, keeping books of its own in the plainest way.

    Each record is valid once all before it have applied. Charters change, keys rotate and people move on the way.
    """

    def __init__(self, economy: Economy, random: Random) -> None:
        self.federation = economy.federation
        self.economy = economy
        self.random = random
        self.records: list[Record] = []
        self.purses: dict[tuple[bytes, tuple[bytes, int]], int] = {}
        self.owners = {person.account: person for person in (*economy.people, economy.donor)}
        """Account -> its owner with the key in force."""
        self.tips: dict[bytes, Record] = {}
        self.open_holds: list[Record] = []
        self.disputable: list[tuple[bytes, Record]] = []
        """(account, hold) of sides that have not disputed yet."""
        self.requests: list[tuple[Record, Record]] = []
        """(hold, its reclaim-request) of holds that may still be open."""
        self.sponsors = [economy.sponsor]
        self.programs = [economy.program]
        self.enrolments = list(economy.enrolments)
        """Those that count in epoch 1, by member 1."""
        self.suspended: list[tuple[int, bytes]] = []
        for record in economy.records:
            self._note(record)
        for person in economy.people:
            self.purses[person.account, economy.lot] = GRANTED

    def _place(self, scope: bytes) -> dict[str, Any]:
        tip = self.tips.get(scope)
        return {"sequence": tip.sequence + 1, "prev": tip.id} if tip else {"sequence": 0, "prev": b""}

    def _place_in(self, account: bytes) -> dict[str, Any]:
        return self._place(account_scope(account))

    def _note(self, record: Record) -> Record:
        self.tips[record.scope] = record
        self.records.append(record)
        return record

    def _take(self, account: bytes, count_max: int) -> list[tuple[bytes, int, int]]:
        """Parts of some lots of the account: (program, expiry epoch, amount)."""
        lots = [(lot, held) for (owner, lot), held in self.purses.items() if owner == account and held > 0]
        taken = []
        for lot, held in self.random.sample(lots, min(len(lots), self.random.randint(1, count_max))):
            amount = self.random.randint(1, held)
            self.purses[account, lot] -= amount
            taken.append((*lot, amount))
        return taken

    def _give(self, account: bytes, lot: tuple[bytes, int], amount: int) -> None:
        self.purses[account, lot] = self.purses.get((account, lot), 0) + amount

    def write(self) -> Record:
        """One more record."""
        choices = {
            self._write_transfer: 8,
            self._write_hold: 6,
            self._write_settle: 5,
            self._write_program: 1,
            self._write_grant: 3,
            self._write_amendment: 2,
            self._write_reclaim: 3,
            self._write_dispute: 2,
            self._write_suspension: 1,
            self._write_rotation: 2,
            self._write_move: 1,
        }
        choice = self.random.choices(list(choices), list(choices.values()))[0]
        return choice() or self._write_program()

    def _choose_spender(self) -> Person:
        stopped = {account for _, account in self.suspended}
        return self.random.choice([person for account, person in self.owners.items() if account not in stopped])

    def _write_transfer(self) -> Record | None:
        payer = self._choose_spender()
        outputs = []
        for program, expiry, amount in self._take(payer.account, 2):
            payee = self.random.choice(list(self.owners))
            outputs.append(Output(payee, program, expiry, amount))
            self._give(payee, (program, expiry), amount)
        if not outputs:
            return None
        return self._note(self.federation.transfer(payer, outputs, **self._place_in(payer.account)))

    def _write_hold(self) -> Record | None:
        payer = self._choose_spender()
        draws = [Draw(*part) for part in self._take(payer.account, 2)]
        if not draws:
            return None
        sponsor = self.random.choice(self.sponsors)
        newest = self.federation.charter.version
        version = self.random.randint(max(0, newest - 1), newest)
        place = self._place_in(payer.account) | {"charter_version": version}
        hold = self.federation.hold(payer, self.economy.donor, sponsor, draws, **place)
        self.open_holds.append(hold)
        self.disputable += {(payer.account, hold), (self.economy.donor.account, hold)}
        return self._note(hold)

    def _write_settle(self) -> Record | None:
        if not self.open_holds:
            return None
        hold = self.open_holds.pop(self.random.randrange(len(self.open_holds)))
        assert isinstance(hold.body, Hold)
        amount = self.random.randint(0, sum(draw.amount for draw in hold.body.draws))
        gift = self.random.choice((0, 0, amount // 3))
        program = self.random.choice(self.programs).id if gift else b""
        rest = amount
        for program_id, expiry, drawn in hold.body.draws:
            part = min(rest, drawn)
            rest -= part
            self._give(hold.account, (program_id, expiry), drawn - part)
        self._give(self.economy.donor.account, (b"", 0), amount - gift)
        changes = {"gift_amount": gift, "gift_program": program}
        return self._note(self.federation.settle(self.owners[self.economy.donor.account], hold, amount, **changes))

    def _write_reclaim(self) -> Record | None:
        """A reclaim-request; or the reclaim of a hold that was asked for."""
        self.requests = [pair for pair in self.requests if pair[0] in self.open_holds]
        if self.requests and self.random.random() < 0.7:
            hold, request = self.requests.pop()
            assert isinstance(hold.body, Hold)
            self.open_holds.remove(hold)
            for program, expiry, amount in hold.body.draws:
                self._give(hold.account, (program, expiry), amount)
            return self._note(self.federation.reclaim(self.owners[hold.account], hold, request))
        asked = [hold for hold, _ in self.requests]
        left = [hold for hold in self.open_holds if hold not in asked]
        if not left:
            return None
        hold = self.random.choice(left)
        payer = self.owners[hold.account]
        request = self.federation.reclaim_request(payer, hold, **self._place_in(payer.account))
        self.requests.append((hold, request))
        return self._note(request)

    def _write_dispute(self) -> Record | None:
        """A side of a hold, open or ended, accuses the other one."""
        if not self.disputable:
            return None
        self.disputable.sort(key=lambda side: (side[1].id, side[0]))
        account, hold = self.disputable.pop(self.random.randrange(len(self.disputable)))
        reasons = PAYER_REASONS if account == hold.account else PAYEE_REASONS
        reason, evidence = self.random.choice(sorted(reasons)), self.random.randbytes(32)
        place = self._place_in(account)
        return self._note(self.federation.dispute(self.owners[account], hold, reason, evidence, **place))

    def _write_program(self) -> Record:
        number = self.random.choice(self.federation.numbers)
        place = self._place_in(self.federation.member(number).account)
        if self.random.random() < 0.3:
            record = self.federation.sponsor(number, self.economy.donor, **place)
            self.sponsors.append(record)
        else:
            record = self.federation.program(number, expiry_epochs=self.random.randint(0, 3), **place)
            self.programs.append(record)
        return self._note(record)

    def _write_grant(self) -> Record | None:
        own = [program for program in self.programs if program.account == self.economy.program.account]
        program = self.random.choice(own)
        assert isinstance(program.body, Program)
        scope = account_scope(self.federation.charter.get_issuance_account(1, 1))
        stopped = {account for _, account in self.suspended}
        outputs = []
        for enrolment in self.enrolments:
            assert isinstance(enrolment.body, Enrol)
            if enrolment.body.account not in stopped:
                outputs.append((enrolment, self.random.randint(1, 500)))
                self._give(enrolment.body.account, (program.id, 1 + program.body.expiry_epochs), outputs[-1][1])
        if not outputs:
            return None
        return self._note(self.federation.grant(program, outputs, **self._place(scope)))

    def _write_suspension(self) -> Record:
        """Suspend somebody of member 1's people, or lift it."""
        place = self._place_in(self.federation.member(1).account)
        if self.suspended:
            number, account = self.suspended.pop()
            return self._note(self.federation.reinstate(number, self.owners[account], **place))
        person = self.random.choice(self.economy.people)
        self.suspended.append((1, person.account))
        return self._note(self.federation.suspend(1, person, **place))

    def _write_rotation(self) -> Record:
        before = self.random.choice(list(self.owners.values()))
        after = rekey(before, f"key {len(self.records)} of {before.name}")
        self.owners[before.account] = after
        return self._note(self.federation.rotate(before, after, **self._place_in(before.account)))

    def _write_move(self) -> Record | None:
        """Somebody leaves member 1, or is handed over to member 2; it counts from epoch 2 on."""
        staying = [enrolment for enrolment in self.enrolments if self.tips[enrolment.scope] == enrolment]
        if not staying:
            return None
        enrolment = self.random.choice(staying)
        assert isinstance(enrolment.body, Enrol)
        person = self.owners[enrolment.body.account]
        if self.random.random() < 0.5:
            return self._note(self.federation.leave(1, person, enrolment))
        return self._note(self.federation.enrol(2, person, enrolment.account, **self._place(enrolment.scope)))

    def _write_amendment(self) -> Record:
        """Raise a cap or a ceiling, change how much counts, give a member a new key, take one in."""
        number = self.random.choice(self.federation.numbers)
        member = self.federation.charter.members[number]
        keys: dict[int, Ed25519PrivateKey] = {}
        match self.random.randrange(5):
            case 0:
                caps = tuple(cap + self.random.randint(0, 500) for cap in member.issuance_caps)
                changes: dict[str, Any] = {"members": self._change(number, issuance_caps=(*caps, 700)[:120])}
            case 1:
                ceiling = member.backing_ceiling + self.random.randint(1, 300)
                changes = {"members": self._change(number, backing_ceiling=ceiling)}
            case 2:
                permille = self.random.randint(0, 999)
                changes = {"policy": self.federation.charter.policy._replace(backing_permille=permille)}
            case 3:
                keys[number] = make_key(f"key {len(self.records)} of member {number}")
                changes = {"members": self._change(number, member_key=get_public_key(keys[number]))}
            case _:
                number = len(self.federation.numbers) + 1
                keys[number] = make_key(f"{self.federation.name} member {number}")
                changes = {"members": self._change(number, issuance_caps=(100, 200), backing_ceiling=50)}
        writer = self.random.choice(self.federation.numbers)
        amendment = self.federation.amend(self.tips.get(charter_scope(self.federation.id)), writer=writer, **changes)
        self.federation = self.federation.amended(amendment, keys)
        return self._note(amendment)

    def _change(self, number: int, **changes: Any) -> tuple[Member, ...]:
        return self.federation.change_member(number, **changes)


def write_history(federation: Federation, seed: int, count: int) -> list[Record]:
    """An economy's records and `count` random ones after them, causes first."""
    writer = HistoryWriter(make_economy(federation), Random(seed))
    for _ in range(count):
        writer.write()
    return writer.records


def make_records_of_every_kind(federation: Federation) -> list[Record]:
    """One record of each kind at least, all valid in this order."""
    economy = make_economy(federation)
    payer, payee = economy.people[0], economy.people[1]
    transfer = federation.transfer(payer, [economy.output(payee, 10), economy.output(payee, 5)], "coffee ☕")
    draws = [Draw(*economy.lot, 100)]
    hold = federation.hold(payer, economy.donor, economy.sponsor, draws, sequence=1, prev=transfer.id)
    gift = {"gift_program": economy.program.id, "gift_amount": 20}
    settle = federation.settle(economy.donor, hold, 60, **gift)
    pending = federation.hold(payer, economy.donor, economy.sponsor, draws, sequence=2, prev=hold.id)
    request = federation.reclaim_request(payer, pending, sequence=3, prev=pending.id)
    dispute = federation.dispute(payer, hold, DisputeReason.WORK_LOST, sequence=4, prev=request.id)
    suspend = federation.suspend(1, payee, sequence=1, prev=economy.program.id)
    rotated = rekey(payee, f"next key of {payee.name}")
    return [
        *economy.records,
        transfer,
        hold,
        settle,
        pending,
        request,
        federation.reclaim(payer, pending, request),
        dispute,
        federation.dispute(economy.donor, pending, DisputeReason.JOB_ABUSIVE),
        suspend,
        federation.reinstate(1, payee, sequence=2, prev=suspend.id),
        federation.rotate(payee, rotated),
        federation.leave(1, rotated, economy.enrolments[1]),
        federation.amend(members=federation.change_member(2, issuance_caps=(1_000_000, 1_500_000, 1_000_000))),
    ]


def iterate_mask(mask: int) -> list[int]:
    """The positions of a mask."""
    return list(iterate_positions(mask))
