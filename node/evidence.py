"""A verdict in plain words: whom a proof convicts and of what, the same on a node's list and in an offline check.

What it says is what `protocol.evidence.verify_evidence` found in the signatures, nothing that a node claims.
"""

from __future__ import annotations

from collections.abc import Iterator

from node.addresses import Kind, encode_address
from protocol.charter import Charters, find_member
from protocol.disputes import DisputeReason
from protocol.equivocation import EvidenceKind
from protocol.evidence import Verdict
from protocol.identifiers import compute_account_id
from protocol.job_evidence import Claim, JobVerdict
from protocol.ledger import Ledger
from protocol.limits import DISPUTE_SECONDS_MAX
from protocol.records import ScopeKind


def list_accounts(federation: bytes, verdict: Verdict) -> list[str]:
    """The addresses of the accounts whose keys are convicted."""
    return [encode_address(Kind.ACCOUNT, compute_account_id(federation, key)) for key in verdict.keys]


def describe_verdict(charters: Charters, verdict: Verdict) -> str:
    """One line: who did what. A member that left the federation is named as it was."""
    members = [(number, find_member(charters, number)) for number in verdict.members]
    who = [f"{member.name if member else 'somebody'} (member {number})" for number, member in members]
    who += [f"the owner of {address}" for address in list_accounts(charters[0].federation, verdict)]
    if not who:  # two finals of two rounds
        who = ["members that hold a third of the weight or more, whom this proof does not name,"]
    return f"{' and '.join(who)} {_describe_act(verdict)}"


def _describe_act(verdict: Verdict) -> str:
    slot = _describe_slot(verdict)
    rounds = ", ".join(f"attempt {attempt} of charter version {version}" for version, attempt in verdict.rounds)
    match verdict.kind:
        case EvidenceKind.FORK:
            return f"signed two batches with number {verdict.sequence} of its log"
        case EvidenceKind.VOTES:
            return f"voted for two records in {slot}, {rounds}"
        case EvidenceKind.COMMITS:
            return f"committed to two records in {slot}, {rounds}"
        case EvidenceKind.HIDDEN_COMMIT:
            return f"promised to leave {slot} and hid a commit there, {rounds}"
        case EvidenceKind.FINALS:
            return f"made two records final in {slot}, {rounds}"
        case EvidenceKind.RECORDS:
            return f"signed two records for {slot}"


def _describe_slot(verdict: Verdict) -> str:
    if not verdict.scope:
        return ""
    kind, name = verdict.scope[0], verdict.scope[1:]
    if kind == ScopeKind.ACCOUNT:
        scope = f"account {encode_address(Kind.ACCOUNT, name)}"
    elif kind == ScopeKind.HOLD:
        scope = f"hold {encode_address(Kind.RECORD, name)}"
    else:
        scope = f"{ScopeKind(kind).name.lower()} {name.hex()}"
    return f"slot {verdict.sequence} of {scope}"


# -- disputed jobs ----------------------------------------------------------------------------------------------------

EVIDENCE_KEPT_MAX = 1000
"""Files of disputes that a node keeps beyond a week: 1.3 GB at the most, 20 MB in practice."""

_CLAIMS = {
    Claim.METER_FORKED: "signed two different meter readings for one moment",
    Claim.METER_BACKWARDS: "signed a later meter reading that counts less time",
    Claim.TICK_OVERCHARGED: "signed a meter reading above the quote",
    Claim.RECEIPT_OVERCHARGED: "signed a job receipt above its own meter",
    Claim.SETTLE_OVERCHARGED: "took more than its own job receipt says is due",
    Claim.LOST_WORK_CHARGED: "charged work that it lost by its own fault",
}


def describe_reason(reason: int) -> str:
    """What a dispute accuses the other side of, as people type it: work-lost."""
    return DisputeReason(reason).name.lower().replace("_", "-")


def describe_claim(claim: Claim) -> str:
    """What the donor did, as its own signatures prove it."""
    return _CLAIMS[claim]


def iterate_job_verdict(verdict: JobVerdict) -> Iterator[str]:
    """Lines for people: what is proven, and what is the accuser's word alone."""
    payee = encode_address(Kind.ACCOUNT, verdict.payee)
    for claim in verdict.claims:
        yield f"Proven: the donor {payee} {describe_claim(claim)}."
    reason = describe_reason(verdict.reason)
    if verdict.is_reason_proven:
        yield f"So the reason holds: {reason}."
    else:
        yield f"The reason is the accuser's word, not proven by this file: {reason}."
    own = verdict.receipt.outputs.hex() if verdict.receipt is not None else ""
    for rerun in verdict.reruns:
        yield f"Shown, and said to be the same work: results {rerun.outputs.hex() or 'none'}, here {own or 'none'}."


def list_kept_evidence(ledger: Ledger, now_seconds: int) -> set[str]:
    """Digests, in hex, of the newest disputes' evidence; a node keeps it as long as an ended hold may be disputed."""
    charter = ledger.charter
    first = charter.compute_epoch(now_seconds) - -(-DISPUTE_SECONDS_MAX // charter.fields.epoch_seconds)
    states = [state for disputes in ledger.disputes.values() for state in disputes.values() if state.epoch >= first]
    states.sort(key=lambda state: (-state.epoch, state.evidence))
    return {state.evidence.hex() for state in states[:EVIDENCE_KEPT_MAX]}
