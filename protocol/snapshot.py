"""A replica made from the facts of its state instead of from all batches: what a checkpoint certifies (spec 6.5, 10.6).

Law: `restore_replica(charter, replica.compute_facts())` followed by any further batches has the same state root,
frontier and finality as the replica that took them all. Its proof is the list of what a later batch can read: the
ledger, the places of batches, the adoptions, and of open slots the records, votes, commits, requests, proposals and
promises. All of that are facts. Statements about records that were closed change nothing in either of them, unless
more was faulty than the quorum tolerates (spec 8.8).

This module alone knows how ledger and replica are laid out inside, beside their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from protocol.attempts import Claim, Round
from protocol.charter import Charter, decode_charter
from protocol.codec import (
    Shape,
    binary,
    binary_up_to,
    check_canonical,
    encode,
    items,
    list_of,
    optional_binary,
    set_of,
    text,
    uint,
    unpack,
)
from protocol.contests import Contest, PromiseGiven
from protocol.disputes import DisputeReason
from protocol.errors import InvalidInput
from protocol.finality import Tally, full_mask
from protocol.identifiers import ID_BYTES
from protocol.introductions import Introduction
from protocol.ledger import LOTS_PER_FACT, Ledger
from protocol.limits import (
    DRAWS_MAX,
    JOB_CLASS_BYTES_MAX,
    JOB_CLASSES_MAX,
    MEMBERS_MAX,
    NAME_BYTES_MAX,
    PURPOSE_BYTES_MAX,
    RECORD_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
    SIGNERS_MAX,
)
from protocol.records import SCOPE_BYTES, Draw, Lot, Program, Terms, decode_record
from protocol.replica import LogEntry, Replica
from protocol.signatures import NO_SIGNATURE, PUBLIC_KEY_BYTES
from protocol.statements import Adopt, decode_slot_proposal, decode_unlock_request
from protocol.states import DisputeState, EnrolmentState, Head, HoldPhase, HoldState, ProgramState, SponsorState

FACT_BYTES_MAX = 2 * RECORD_BYTES_MAX
"""The longest fact holds a charter, a record or a proposal."""

_ID = binary(ID_BYTES)
_NAME = optional_binary(ID_BYTES)
_SCOPE = binary(SCOPE_BYTES)
_BYTES = binary_up_to(FACT_BYTES_MAX, 1)
_POSITION = uint(RECORDS_PER_BATCH_MAX - 1)
_LOT = items(_NAME, uint(), uint())
_MEMBERS = set_of(uint(), MEMBERS_MAX, 1)
_PROGRAM = items(
    uint(),
    text(NAME_BYTES_MAX),
    text(PURPOSE_BYTES_MAX),
    uint(),
    uint(),
    uint(1),
    list_of(text(JOB_CLASS_BYTES_MAX), JOB_CLASSES_MAX),
)
_TERMS = items(uint(), _ID, binary(PUBLIC_KEY_BYTES), uint(), _ID, _ID, text(JOB_CLASS_BYTES_MAX))
_SHAPES: dict[str, tuple[Shape, ...]] = {
    "charter": (_BYTES,),
    "applied": (uint(),),
    "finals": (uint(),),
    "balance": (_ID, uint(), uint(), list_of(_LOT, LOTS_PER_FACT)),
    "head": (_SCOPE, uint(), _ID),
    "key": (_ID, binary(PUBLIC_KEY_BYTES)),
    "tag": (_ID, _ID),
    "program": (_ID, uint(), _PROGRAM),
    "enrolment": (_ID, _ID, uint(), _ID, uint(), uint()),
    "sponsor": (_ID, uint(), _ID, uint()),
    "hold": (_ID, _ID, _ID, list_of(_LOT, DRAWS_MAX, 1), _TERMS, uint(), uint(2), uint(), _NAME, uint()),
    "dispute": (_ID, _ID, _ID, uint(), uint(len(DisputeReason), 1), _ID),
    "request": (_ID, _ID),
    "frozen": (_SCOPE,),
    "overdraft": (_SCOPE, _NAME, uint(), uint()),
    "suspension": (_ID, _ID, uint()),
    "allowance": (_ID, _ID, _ID, uint()),
    "backing": (uint(), uint(), uint()),
    "cap": (uint(), uint(), uint()),
    "ceiling": (uint(), uint()),
    "waiting": (_BYTES, uint(SIGNERS_MAX)),
    "batch": (uint(), uint(), uint(), _ID, _NAME),
    "adopter": (uint(), _ID, uint()),
    "open": (_ID, _POSITION, uint(RECORDS_PER_BATCH_MAX, 1), _BYTES),
    "votes": (_ID, uint(), uint(), _NAME, uint(), _MEMBERS),
    "commits": (_ID, uint(), uint(), _MEMBERS),
    "unlock": (_ID, uint(), _BYTES),
    "proposal": (_ID, uint(), _BYTES),
    "promise": (_SCOPE, uint(), uint(), uint(), _ID, uint(), uint(), uint(), _NAME),
}
_FACTS = {name: items(text(16), *shapes) for name, shapes in _SHAPES.items()}

Facts = dict[str, list[tuple[Any, ...]]]
"""Name -> the other items of all facts with that name."""


def group_facts(encoded_facts: Iterable[bytes]) -> Facts:
    """The facts by name. A quorum certified them, so nothing else is asked of them. Raises: InvalidInput."""
    facts: Facts = defaultdict(list)
    for encoded in encoded_facts:
        name, *rest = decode_fact(encoded)
        facts[name].append(tuple(rest))
    return facts


def decode_fact(encoded: bytes) -> tuple[Any, ...]:
    """One fact: its name, then its items. Raises: InvalidInput."""
    fact = unpack(encoded, FACT_BYTES_MAX)
    if type(fact) is not tuple or not fact or type(fact[0]) is not str or fact[0] not in _FACTS:
        raise InvalidInput("no fact of a known name")
    _FACTS[fact[0]](fact)
    check_canonical(fact, encoded)
    return fact


def restore_replica(charter: Charter, encoded_facts: Iterable[bytes]) -> Replica:
    """The replica whose facts these are; `charter` is version 0.

    Requires: the facts are those of a replica (a checkpoint certified their root).
    """
    facts = group_facts(encoded_facts)
    replica = Replica(charter)
    replica.ledger = restore_ledger(charter, facts)
    replica._sequences_before = {scope: head.sequence + 1 for scope, head in replica.ledger.heads.items()}
    replica._waiting_before = {record.slot for record in replica.ledger.list_waiting()}
    ((replica.final_count,),) = facts["finals"]
    _restore_logs(replica, facts)
    for version, charter_id, member in facts["adopter"]:
        replica._adopters.setdefault(Adopt(version, charter_id), set()).add(member)
    replica._advance()
    _restore_open_records(replica, facts)
    _restore_contests(replica, facts)
    return replica


def read_charters(genesis: Charter, facts: Facts) -> dict[int, Charter]:
    """The charter versions that the facts tell. Whoever does not trust the facts verifies the amendments instead."""
    charters = {0: genesis}
    for (encoded,) in facts["charter"]:
        if encoded != genesis.encoded:
            charter = decode_charter(encoded, genesis.federation)
            charters[charter.version] = charter
    return charters


def restore_ledger(charter: Charter, facts: Facts) -> Ledger:
    """The ledger whose facts these are."""
    ledger = Ledger(charter)
    ledger.charters = read_charters(charter, facts)
    ledger.charter = ledger.charters[max(ledger.charters)]
    ((ledger.applied_count,),) = facts["applied"]
    ledger.balances.clear()
    for account, _, _, part in facts["balance"]:
        ledger.balances.setdefault(account, {}).update({Lot(*lot): amount for *lot, amount in part})
    ledger.heads = {scope: Head(*head) for scope, *head in facts["head"]}
    for key, member, body in facts["program"]:
        ledger.programs[key] = ProgramState(member, Program._make(body))
    ledger.enrolments = {key: EnrolmentState(*state) for key, *state in facts["enrolment"]}
    ledger.sponsors = {key: SponsorState(*state) for key, *state in facts["sponsor"]}
    for key, payer, payee, draws, terms, epoch, phase, *rest in facts["hold"]:
        escrow = tuple(Draw._make(draw) for draw in draws)
        end = HoldPhase(phase)
        ledger.holds[key] = HoldState(payer, payee, escrow, Terms._make(terms), epoch, end, *rest)
    ledger.allowances = {(issuer, program, account): n for issuer, program, account, n in facts["allowance"]}
    ledger.backing = {(member, epoch): amount for member, epoch, amount in facts["backing"]}
    ledger.caps = {(member, epoch): amount for member, epoch, amount in facts["cap"]}
    ledger.ceilings = dict(facts["ceiling"])
    ledger.requests = dict(facts["request"])
    for account, suspending, until_epoch in facts["suspension"]:
        ledger.suspensions.setdefault(account, {})[suspending] = until_epoch
    for hold, record, *state in facts["dispute"]:
        ledger.disputes.setdefault(hold, {})[record] = DisputeState(*state)
    ledger.keys = dict(facts["key"])
    ledger.tags = dict(facts["tag"])
    for enrolment in ledger.enrolments.values():
        ledger.vouchings.setdefault(enrolment.account, set()).add(enrolment.member)
    for sponsor in ledger.sponsors.values():
        ledger.vouchings.setdefault(sponsor.donor, set()).add(sponsor.member)
    ledger.escrowed = sum(hold.amount for hold in ledger.holds.values() if hold.is_open)
    ledger.frozen = {scope for (scope,) in facts["frozen"]}
    for scope, program, expiry_epoch, amount in facts["overdraft"]:
        ledger.overdrafts.setdefault(scope, {})[Lot(program, expiry_epoch)] = amount
    lacking = sum(sum(lots.values()) for lots in ledger.overdrafts.values())
    ledger.issued = ledger.escrowed - lacking + sum(sum(lots.values()) for lots in ledger.balances.values())
    for unsigned, signature_count in facts["waiting"]:
        tail = encode((NO_SIGNATURE,) * signature_count)
        assert not ledger.take_in(decode_record(charter.federation, unsigned + tail)), "it waits on"
    return ledger


def _restore_logs(replica: Replica, facts: Facts) -> None:
    """The places of all batches, each after the one before it in its log."""
    continued = set()
    for member, version, index, batch, prev in sorted(facts["batch"], key=lambda place: (place[2], place)):
        log = (member, version)
        parents = (prev,) if prev else ()
        replica.entries[batch] = LogEntry(len(replica.entries), log, index, parents)
        siblings = replica.logs.setdefault(log, {}).setdefault(index, [])
        siblings.append(batch)
        if len(siblings) > 1:
            replica.forked_logs |= {log}
        continued.add(prev)
        replica.heads.setdefault(log, set()).add(batch)
    for heads in replica.heads.values():
        heads -= continued
    replica.named_count = len(replica.entries)


def _restore_open_records(replica: Replica, facts: Facts) -> None:
    """Weight is counted at a record's lowest place: where it came first here would be chance."""
    for batch, position, count, encoded in sorted(facts["open"]):
        record = decode_record(replica.federation, encoded)
        introduction = replica._introductions.get(batch)
        if introduction is None:
            introduction = replica._introductions[batch] = replica._open[batch] = Introduction(batch, ())
            introduction.final = full_mask(count)  # what is not open is of no further interest
            introduction.ids = (b"",) * count
        introduction.ids = (*introduction.ids[:position], record.id, *introduction.ids[position + 1 :])
        introduction.records[position] = record
        introduction.final &= ~(1 << position)
        replica._place(introduction, position, record)
    for record_id, version, attempt, proposal, proposal_position, members in facts["votes"]:
        introduction, position = replica._located[record_id]
        vote_round = Round(version, attempt)
        _restore_tally(
            replica,
            introduction.votes.setdefault((vote_round, proposal, proposal_position), Tally()),
            vote_round,
            position,
            members,
        )
    for record_id, version, attempt, members in facts["commits"]:
        introduction, position = replica._located[record_id]
        commit_round = Round(version, attempt)
        _restore_tally(replica, introduction.commits.setdefault(commit_round, Tally()), commit_round, position, members)


def _restore_tally(replica: Replica, tally: Tally, spoken: Round, position: int, members: Iterable[int]) -> None:
    charter = replica.ledger.charters[spoken.version]
    for member in members:
        tally.add(member, charter.weights[member], 1 << position, charter.quorum)


def _restore_contests(replica: Replica, facts: Facts) -> None:
    for batch, position, encoded in facts["unlock"]:
        request = decode_unlock_request(encoded)
        replica._requests[batch, position] = request
        replica.contests.setdefault(request.slot, Contest()).requests[batch, position] = request
    for batch, position, encoded in facts["proposal"]:
        proposal = decode_slot_proposal(encoded)
        replica.contests.setdefault(proposal.slot, Contest()).proposals[batch, position] = proposal
        replica._proposals[batch, position] = (proposal.compute_id(replica.federation), 0)
    for scope, sequence, version, attempt, batch, member, *reported in facts["promise"]:
        report = Claim(Round(*reported[:2]), reported[2]) if reported[2] else None
        contest = replica.contests[scope, sequence]
        contest.note_promise(Round(version, attempt), batch, PromiseGiven(member, report))
