"""A federation of members in one process, for benchmarks: real members, stores and records, no network.

`Cast` founds it, enrols people and grants them credits; then `make_payments` signs one payment for each person.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.keystore import Key
from node.member import LedgerMember
from node.storage.store import Store
from node.vote_keys import VoteKeys
from protocol.charter import Charter, CharterFields, Member, Policy, found_charter
from protocol.identifiers import compute_account_id
from protocol.limits import OUTPUTS_MAX
from protocol.records import (
    Enrol,
    Grant,
    GrantOutput,
    Kind,
    Output,
    Program,
    Record,
    RecordDraft,
    Transfer,
    account_scope,
    person_scope,
    sign_record,
)

EPOCH_SECONDS = 30 * 24 * 3600


def make_key(*name: object) -> Ed25519PrivateKey:
    """The private key that belongs to a name: the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(sha256(repr(name).encode()).digest())


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


class Cast:
    """Members and people with their keys, and how far each person's account has come."""

    def __init__(
        self, member_count: int, people: int, log_bytes_per_second: int = 2**30, genesis_seconds: int | None = None
    ) -> None:
        """Epoch 1 starts at `genesis_seconds`, or now."""
        self.member_keys: dict[int, Ed25519PrivateKey] = {}
        self.vote_keys: dict[int, Ed25519PrivateKey] = {}
        """Those of the genesis charter, or of the version with which a member joined."""
        self.peer_keys: dict[int, Ed25519PrivateKey] = {}
        self.held_vote_keys: dict[int, VoteKeys] = {}
        """What each member's node holds; it outlives a restart."""
        members = tuple(self.make_member(number) for number in range(1, member_count + 1))
        policy = Policy(bytes(32), 60, 3600, 0, 50, log_bytes_per_second)
        fields = CharterFields(
            0,
            b"",
            "benchmark",
            bytes(16),
            genesis_seconds or int(time.time()),
            EPOCH_SECONDS,
            0,
            0,
            members,
            (),
            policy,
        )
        charter = Charter(fields)
        signatures = {number: key.sign(charter.id) for number, key in self.member_keys.items()}
        self.founded = found_charter(charter, signatures)
        self.federation = charter.federation
        self.people = [make_key("person", number) for number in range(people)]
        self.accounts = [compute_account_id(self.federation, _public(key)) for key in self.people]
        self._heads = [b""] * people
        self._sequences = [0] * people
        self._program = b""

    def make_member(self, number: int) -> Member:
        """A member with its keys, for a charter."""
        purposes = (("member", self.member_keys), ("vote", self.vote_keys), ("peer", self.peer_keys))
        for purpose, keys in purposes:
            keys[number] = make_key(purpose, number)
        self.held_vote_keys[number] = VoteKeys([Key(self.vote_keys[number].private_bytes_raw(), "vote")])
        member_key, vote_key, peer_key = (_public(keys[number]) for _, keys in purposes)
        return Member(number, f"member {number}", member_key, vote_key, peer_key, 1, (10**12,), 0)

    def open_member(self, number: int, store: Store) -> LedgerMember:
        """A member with its store."""
        return LedgerMember(self.founded, number, self.held_vote_keys[number], store)

    def restart(self, member: LedgerMember) -> LedgerMember:
        """The member again, from a copy of its store: what a restart of its node makes of it."""
        return self.open_member(member.number, Store.restore(member.store.serialize(), self.federation))

    def make_setup(self) -> list[list[Record]]:
        """The records that give everybody credits, in groups of which each must be final before the next."""
        member_key = self.member_keys[1]
        signer = _public(member_key)
        own_scope = account_scope(self.founded.charter.get_member_account(1))
        body = Program(1, "people", "", 10**9, 1, 1, ())
        program = self._sign(RecordDraft(Kind.PROGRAM, 1, own_scope, 0, b"", body, (signer,)), member_key)
        enrolments = [
            self._sign(
                RecordDraft(Kind.ENROL, 1, person_scope(account), 0, b"", Enrol(1, account), (signer, _public(key))),
                member_key,
                key,
            )
            for key, account in zip(self.people, self.accounts, strict=True)
        ]
        scope = account_scope(self.founded.charter.get_issuance_account(1, 1))
        outputs = [GrantOutput(e.id, a, 10**6) for e, a in zip(enrolments, self.accounts, strict=True)]
        grants: list[Record] = []
        for start in range(0, len(outputs), OUTPUTS_MAX):
            grant = Grant(program.id, 2, tuple(outputs[start : start + OUTPUTS_MAX]))
            previous = grants[-1].id if grants else b""
            draft = RecordDraft(Kind.GRANT, 1, scope, len(grants), previous, grant, (signer,))
            grants.append(self._sign(draft, member_key))
        self._program = program.id
        return [[program], enrolments, *([grant] for grant in grants)]

    def make_payments(self) -> list[Record]:
        """A payment of each person to the next one."""
        return self.make_payments_of(range(len(self.people)))

    def make_payments_of(self, people: Iterable[int]) -> list[Record]:
        """The next payment of each of these people to the one after."""
        payments = []
        for number in people:
            key, account = self.people[number], self.accounts[number]
            payee = self.accounts[(number + 1) % len(self.accounts)]
            body = Transfer((Output(payee, self._program, 2, 1 + number),), "")
            scope, sequence = account_scope(account), self._sequences[number]
            draft = RecordDraft(Kind.TRANSFER, 1, scope, sequence, self._heads[number], body, (_public(key),))
            payments.append(self._sign(draft, key))
            self._heads[number] = payments[-1].id
            self._sequences[number] += 1
        return payments

    def _sign(self, draft: RecordDraft, *keys: Ed25519PrivateKey) -> Record:
        return sign_record(self.federation, draft, keys)


async def exchange(members: Sequence[LedgerMember], rounds_max: int = 100) -> list[bytes]:
    """Let everybody speak in turn until nobody has anything to say; returns all batches in their order."""
    said: list[bytes] = []
    for _ in range(rounds_max):
        batches = [(member, member.say_next()) for member in members]
        spoken = [(member, batch) for member, batch in batches if batch is not None]
        if not spoken:
            return said
        for member in members:
            others = [batch.encoded for speaker, batch in spoken if speaker is not member]
            await member.ingest(others, "benchmark")
        said += [batch.encoded for _, batch in spoken]
    raise AssertionError("the members never fell silent")


async def make_final(members: Sequence[LedgerMember], records: Sequence[Record]) -> list[bytes]:
    """Hand the records to the members in turn and bring them to finality."""
    for number, record in enumerate(records):
        await members[number % len(members)].submit(record.encoded)
    said = await exchange(members)
    assert all(members[0].replica.is_final(record.id) for record in records)
    return said


def list_roots(members: Iterable[LedgerMember]) -> set[bytes]:
    """The state roots of the members: one when all agree."""
    return {member.replica.compute_state_root() for member in members}
