"""Planted faults: each breaks one rule in every correct member, and the checkers must notice.

A plant changes a function of the product while a run lasts. That the simulator catches it within a thousand seeds shows
that its faults are hard enough and its checks sharp enough for that rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from node.member import LedgerMember
from node.signing import Signing
from protocol import proposals, voting
from protocol.attempts import FIRST_ROUND, Claim, SlotMemory
from protocol.errors import Rejected
from protocol.introductions import Introduction
from protocol.ledger import Ledger
from protocol.records import Record
from protocol.replica import Replica
from protocol.rules import check_record, check_writer
from protocol.statements import Commit
from protocol.voting import Voter

Patch = Any


def commit_without_certificate() -> list[Patch]:
    """A member commits to whatever it votes for."""
    decide_vote = Voter._decide_vote

    def decide(voter: Voter, introduction: Introduction, position: int, *rest: Any) -> None:
        before = voter._votes.get(introduction, 0)
        decide_vote(voter, introduction, position, *rest)
        if voter._votes.get(introduction, 0) != before:
            voter._commits[introduction] = voter._commits.get(introduction, 0) | 1 << position

    return [mock.patch.object(Voter, "_decide_vote", decide)]


def vote_again_after_restart() -> list[Patch]:
    """What a member said is not restored from its log."""
    note_own_statements = Voter._note_own_statements

    def note(voter: Voter, *rest: Any) -> None:
        memories = dict(voter._memories)
        note_own_statements(voter, *rest)
        voter._memories = memories

    return [mock.patch.object(Voter, "_note_own_statements", note)]


def _may(memory: SlotMemory, claim: Claim) -> bool:
    return claim.round >= memory.promised


def vote_for_two() -> list[Patch]:
    """A member votes for every record of a slot."""
    return [mock.patch.object(voting, "may_vote", _may)]


def vote_and_commit_for_two() -> list[Patch]:
    """A member votes for every record of a slot, and commits to each that gets a certificate."""
    return [*vote_for_two(), mock.patch.object(voting, "may_commit", _may)]


def vote_below_promise() -> list[Patch]:
    """A member votes and commits also in rounds that it promised to leave."""
    return [
        mock.patch.object(voting, function, _forget_promise(getattr(voting, function)))
        for function in ("may_vote", "may_commit")
    ]


def _forget_promise(may: Callable[[SlotMemory, Claim], bool]) -> Callable[[SlotMemory, Claim], bool]:
    return lambda memory, claim: may(memory._replace(promised=FIRST_ROUND), claim)


def drop_votes_of_equivocators() -> list[Patch]:
    """After the proof, what an equivocator says does not count."""
    count = Replica._count

    def count_some(replica: Replica, header: Any, *rest: Any) -> None:
        if header.member not in replica.forks:
            count(replica, header, *rest)

    return [mock.patch.object(Replica, "_count", count_some)]


def speak_before_storing() -> list[Patch]:
    """A batch is sent before it is on the disk."""
    sign = LedgerMember._sign

    def sign_and_send(member: LedgerMember, *rest: Any) -> Any:
        batch = sign(member, *rest)
        for callback in member.on_spoken:
            callback(batch.encoded)
        return batch

    return [mock.patch.object(LedgerMember, "_sign", sign_and_send)]


def hide_commit() -> list[Patch]:
    """A promise reports nothing."""
    return [mock.patch.object(voting, "compute_report", return_value=None)]


def promise_before_commit() -> list[Patch]:
    """A promise is computed before a commit that stands in the same batch."""
    decide_promise = Voter._decide_promise

    def decide(voter: Voter, contest: Any, place: Any, request: Any, circumstances: Any) -> None:
        slot = request.slot
        pending = (slot, Commit) in voter._late or any(
            voter._commits.get(introduction, 0) >> position & 1
            for introduction, position in voter.replica.get_claim_places(slot)
        )
        had_promise = slot in voter._promises
        if not pending:
            decide_promise(voter, contest, place, request, circumstances)
            return
        with mock.patch.object(Voter, "_drop_undecided"):
            decide_promise(voter, contest, place, request, circumstances)
        if slot in voter._promises and not had_promise:
            voter._promises[slot] = voter._promises[slot]._replace(report=None)

    return [mock.patch.object(Voter, "_decide_promise", decide)]


def ignore_promises() -> list[Patch]:
    """A proposal may be for any record, whatever its promises force."""
    check_support = proposals.check_support

    def check(replica: Replica, proposal: Any, version: int) -> Any:
        promised, _ = check_support(replica, proposal, version)
        return promised, None

    return [mock.patch.object(voting, "check_support", check)]


def check_forced_record() -> list[Patch]:
    """A record that the promises force is checked again, its epoch too."""
    check_proposal = Voter.check_proposal

    def check(voter: Voter, proposal: Any, record: Any, circumstances: Any) -> None:
        check_proposal(voter, proposal, record, circumstances)
        check_record(record, voter.replica.ledger, circumstances)

    return [mock.patch.object(Voter, "check_proposal", check)]


def forget_own_batches() -> list[Patch]:
    """A member with an old disk goes on signing."""
    return [mock.patch.object(Signing, "silence")]


def adopt_without_hand_over() -> list[Patch]:
    """On entering a charter version a member forgets what was certified before."""
    return [mock.patch.object(Voter, "_find_bound", return_value={})]


def fold_checks_current_keys() -> list[Patch]:
    """A final record applies only when its signers' keys are still in force."""
    take_applicable = Ledger._take_applicable

    def take(ledger: Ledger, scope: bytes) -> Record | None:
        try:
            for record in ledger._waiting.get(scope, {}).values():
                if record.sequence == ledger.get_next_sequence(scope):
                    check_writer(record, ledger)
        except Rejected:
            return None
        return take_applicable(ledger, scope)

    return [mock.patch.object(Ledger, "_take_applicable", take)]


PLANTS: dict[str, Callable[[], list[Patch]]] = {
    plant.__name__: plant
    for plant in (
        commit_without_certificate,
        vote_again_after_restart,
        vote_for_two,
        vote_and_commit_for_two,
        vote_below_promise,
        drop_votes_of_equivocators,
        speak_before_storing,
        hide_commit,
        promise_before_commit,
        ignore_promises,
        check_forced_record,
        forget_own_batches,
        adopt_without_hand_over,
        fold_checks_current_keys,
    )
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Inside, the fault is there; no fault with an empty name."""
    patches = PLANTS[name]() if name else []
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        for patch in patches:
            patch.stop()
