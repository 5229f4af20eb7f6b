"""A verdict in plain words: whom a proof convicts and of what, the same on a node's list and in an offline check.

What it says is what `protocol.evidence.verify_evidence` found in the signatures, nothing that a node claims.
"""

from __future__ import annotations

from node.addresses import Kind, encode_address
from protocol.charter import Charters, find_member
from protocol.equivocation import EvidenceKind
from protocol.evidence import Verdict
from protocol.identifiers import compute_account_id
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
