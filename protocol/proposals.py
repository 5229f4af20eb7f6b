"""Whether promises allow a proposal: the rule that carries what may be final from one attempt to the next (spec 5.6).

A record that is final in a round has a quorum of commits there. Every quorum of promises shares a correct member with
it, and that member reports its commit or a later certificate; so the highest report names that record.
"""

from __future__ import annotations

from protocol.attempts import Round, compute_forced
from protocol.errors import Reason, Rejected
from protocol.identifiers import Slot
from protocol.records import ScopeKind
from protocol.replica import Replica
from protocol.statements import SlotProposal


def check_is_wanted(replica: Replica, slot: Slot) -> None:
    """Raise `Rejected` for a slot that nobody need unlock. An account that nobody knows has nothing to free, and
    where several may write, turns begin with a record: otherwise strangers, or one writer alone, could use up
    attempts in slots before anybody wants them."""
    scope, _ = slot
    if scope[0] == ScopeKind.ACCOUNT:
        if not replica.ledger.is_known(scope[1:]):
            raise Rejected(Reason.FUNDS_MISSING, "nobody has vouched for the account, and it never received anything")
    elif not replica.get_claim_places(slot):
        raise Rejected(Reason.REFERENCE_MISSING, "no record claims that slot yet")


def check_support(replica: Replica, proposal: SlotProposal, version: int) -> tuple[Round, bytes | None]:
    """The proposal's round under this charter version, and the record that its promises force, if any.

    Raises: Rejected unless the named batches hold promises of a quorum for this slot and attempt, each of another
    member, and a certificate stands behind each report.
    """
    contest = replica.contests.get(proposal.slot)
    promised = Round(version, proposal.attempt)
    promises = contest.find_promises(promised, proposal.promise_batches) if contest else None
    if promises is None:
        raise Rejected(Reason.REFERENCE_MISSING, "a batch that the proposal names holds no promise for this attempt")
    weights = replica.charter.weights
    weight = sum(weights.get(promise.member, 0) for promise in promises)
    if len({promise.member for promise in promises}) < len(promises) or weight < replica.charter.quorum:
        raise Rejected(Reason.TERMS_WRONG, "the proposal does not rest on promises of a quorum")
    if not all(replica.is_supported(proposal.slot, promise) for promise in promises):
        raise Rejected(Reason.TERMS_WRONG, "a promise reports a record without a certificate")
    return promised, compute_forced(promise.report for promise in promises)
