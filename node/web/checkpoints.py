"""The last certified state in the shapes that people and programs read, and proofs of what one account held in it."""

from __future__ import annotations

from node import api
from node.member import LedgerMember
from node.snapshots import Snapshot, read_facts
from node.web.problems import NotFound
from protocol.checkpoints import build_facts_proof, verify_checkpoint
from protocol.records import account_scope
from protocol.snapshot import decode_fact


def find_snapshot(member: LedgerMember) -> Snapshot:
    """The newest certified snapshot of this node. Raises: NotFound."""
    kept = member.checkpoints.get_kept()
    if kept is None:
        raise NotFound("this node has no certified checkpoint yet")
    return kept


def build_checkpoint(member: LedgerMember) -> api.Checkpoint:
    """What was certified last. Raises: NotFound."""
    kept = find_snapshot(member)
    verified = verify_checkpoint(member.replica.ledger.charters, kept.proof)
    size = kept.path.stat().st_size
    return api.Checkpoint(verified.batch.hex(), verified.root.hex(), verified.time_ms, kept.proof, size)


def build_account_proof(kept: Snapshot, account: bytes) -> api.AccountProof:
    """Walks through the whole snapshot: to be called in a thread, by one at a time."""
    facts = read_facts(kept.path)
    wanted = {("balance", account), ("head", account_scope(account))}
    positions = [
        number for number, fact in enumerate(facts) if account in fact and tuple(decode_fact(fact)[:2]) in wanted
    ]
    return api.AccountProof(kept.proof, build_facts_proof(facts, positions) if positions else b"")
