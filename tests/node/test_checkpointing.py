"""A quorum certifies the state; a node begins with it, goes on as the others do, and prunes what lies before."""

import pytest

from node.auditing import Audit
from node.checkpointing import list_past
from node.errors import UserError
from node.pruning import iterate_archive, prune
from node.snapshots import SnapshotFolder, iterate_frames, verify_snapshot
from node.storage.store import Store
from protocol.batches import decode_batch
from protocol.checkpoints import build_facts_proof, read_balance, verify_checkpoint, verify_facts
from protocol.errors import InvalidInput
from protocol.receipts import verify_receipt
from protocol.snapshot import restore_replica
from scripts.benchmarks.federation_in_memory import Cast, exchange, list_roots, make_final


@pytest.fixture
def cast():
    return Cast(4, 6)


@pytest.fixture
async def members(cast, tmp_path, autojump_clock):
    """Three of four: a quorum. The fourth institution's node has not started yet."""
    members = [cast.open_member(number, Store.open(":memory:", cast.federation)) for number in (1, 2, 3)]
    for member in members:
        member.checkpoints.folder = SnapshotFolder(tmp_path / str(member.number))
    for group in cast.make_setup():
        await make_final(members, group)
    return members


async def certify(members):
    """Member 1 picks its last batch; all compute what others say until a quorum has certified it."""
    members[0].checkpoints.pick()
    for _ in range(3):
        for member in members:
            await member.checkpoints.work()
        await exchange(members)
    for member in members:
        await member.checkpoints.work()


def read_snapshot(cast, member):
    kept = member.checkpoints.get_kept()
    with open(kept.path, "rb") as file:
        return verify_snapshot({0: cast.founded.charter}, iterate_frames(file))


async def test_a_quorum_certifies_the_state_and_every_node_keeps_the_same_facts(cast, members):
    await make_final(members, cast.make_payments())
    await certify(members)
    snapshots = [read_snapshot(cast, member) for member in members]
    assert len({snapshot.checkpoint.root for snapshot in snapshots}) == 1
    assert all(snapshot.facts == snapshots[0].facts for snapshot in snapshots)
    assert len(snapshots[0].checkpoint.members) == 3


async def test_the_next_checkpoint_is_computed_from_the_last_one_and_from_genesis_alike(cast, members):
    for _ in range(3):
        await make_final(members, cast.make_payments())
        await certify(members)
    newcomer = cast.open_member(3, Store.restore(members[2].store.serialize(), cast.federation))
    await newcomer.restore()
    latest = members[0].checkpoints.latest
    assert newcomer.checkpoints.latest == latest
    assert newcomer.checkpoints._compute_past(latest.batch) == read_snapshot(cast, members[0]).facts
    assert len(list(members[0].checkpoints.folder.path.iterdir())) == 2


async def test_a_root_that_is_not_so_is_said_by_nobody_else(cast, members):
    """One faulty member says a wrong root; no correct one follows it."""
    wrong = members[0].checkpoints
    wrong._compute_past = lambda batch: [b"no fact of this ledger"]
    await certify(members)
    assert all(member.checkpoints.latest is None for member in members)
    assert all(not member.checkpoints.has_statements for member in members)


async def test_a_balance_is_proved_against_the_certified_root(cast, members):
    await make_final(members, cast.make_payments())
    await certify(members)
    snapshot = read_snapshot(cast, members[2])
    account = cast.accounts[0]
    positions = [number for number, fact in enumerate(snapshot.facts) if b"balance" in fact and account in fact]
    proof = build_facts_proof(snapshot.facts, positions)
    balances = restore_replica(cast.founded.charter, snapshot.facts).ledger.balances
    assert read_balance(account, verify_facts(snapshot.checkpoint.root, proof)) == balances[account]
    with pytest.raises(InvalidInput):
        verify_facts(bytes(32), proof)
    with pytest.raises(InvalidInput):
        read_balance(cast.accounts[1], verify_facts(snapshot.checkpoint.root, proof))


async def test_a_node_that_begins_with_a_checkpoint_goes_on_as_the_others_do(cast, members):
    first = cast.make_payments()
    await make_final(members, first)
    old = first[0]
    await certify(members)
    snapshot = read_snapshot(cast, members[0])
    later = cast.make_payments()
    store = Store.open(":memory:", cast.federation)
    store.begin_with(snapshot.facts, [(old.id, members[0].build_receipt(old.id))])
    joined = cast.open_member(4, store)
    await joined.restore()
    assert joined.get_record(old.id) == old, "what proves the charter is kept"
    assert verify_receipt({0: cast.founded.charter}, joined.build_receipt(old.id)).record == old
    known = snapshot.checkpoint.batch
    assert known in joined.replica
    missing = [
        batch.encoded
        for encoded in members[0].store.iterate_batches()
        if (batch := decode_batch(cast.federation, encoded)).id not in joined.replica
    ]
    assert await joined.ingest(missing, "peer") == len(missing) > 0
    assert joined.replica.compute_state_root() == members[0].replica.compute_state_root()
    together = [*members, joined]
    await make_final(together, later)
    assert len({member.replica.compute_state_root() for member in together}) == 1
    assert joined.build_receipt(later[0].id) is not None
    again = cast.open_member(4, Store.restore(store.serialize(), cast.federation))
    await again.restore()
    assert again.replica.compute_state_root() == joined.replica.compute_state_root()
    assert again.say_next() is None


async def test_past_is_listed_parents_first_down_to_what_is_known(cast, members):
    entries = members[0].replica.entries
    last = max(entries, key=lambda each: entries[each].number)
    past, _ = list_past(entries, last, ())
    assert past[-1] == last
    seen: set[bytes] = set()
    for each in past:
        assert seen.issuperset(entries[each].parents)
        seen.add(each)
    middle = past[len(past) // 2]
    known = set(list_past(entries, middle, ())[0])
    rest, reached = list_past(entries, last, known)
    assert known | set(rest) == set(past)
    assert not known & set(rest)
    assert reached <= known


async def test_a_proof_of_a_checkpoint_needs_a_quorum_that_signed_it(cast, members):
    await certify(members)
    proof = read_snapshot(cast, members[0]).proof
    assert verify_checkpoint({0: cast.founded.charter}, proof).batch == members[0].checkpoints.latest.batch
    for position in range(0, len(proof), 7):
        damaged = bytearray(proof)
        damaged[position] ^= 1
        with pytest.raises(InvalidInput):
            verify_checkpoint({0: cast.founded.charter}, bytes(damaged))


async def test_a_pruned_node_restarts_with_the_checkpoint_and_the_archive_completes_it_again(cast, members, tmp_path):
    first = cast.make_payments()
    await make_final(members, first)
    await make_final(members, cast.make_payments())
    await certify(members)
    await make_final(members, cast.make_payments())
    member = members[0]
    count, root = member.store.count_batches(), member.replica.compute_state_root()
    whole = [encoded for _, _, encoded in member.store.get_batches(1, 10**6)]
    archived = prune(member.store, read_snapshot(cast, member), [], tmp_path / "archive")
    assert 0 < archived < count
    assert member.store.count_batches() == count - archived
    pruned = cast.open_member(1, Store.restore(member.store.serialize(), cast.federation))
    assert await pruned.restore() == count - archived
    assert pruned.replica.compute_state_root() == root
    assert pruned.replica.get_frontier() == member.replica.get_frontier()
    assert not pruned.signing.is_silenced
    assert pruned.build_receipt(first[0].id) is None, "not here"
    with pytest.raises(UserError, match="that old"):
        await pruned.submit(first[0].encoded)
    together = [pruned, *members[1:]]
    await make_final(together, cast.make_payments())
    assert len(list_roots(together)) == 1
    assert list(iterate_archive(tmp_path / "archive"))[:archived] == whole[:archived]


async def test_an_audit_verifies_everything_anew_and_meets_the_checkpoints(cast, members):
    payments = cast.make_payments()
    await make_final(members, payments)
    await certify(members)
    await make_final(members, cast.make_payments())
    await certify(members)
    batches = list(members[0].store.iterate_batches())
    audit = Audit(cast.founded.charter)
    for encoded in batches:
        audit.take(encoded)
    audit.finish()
    assert audit.problems == []
    assert audit.replica.compute_state_root() == members[0].replica.compute_state_root()
    assert audit.checkpoint_count == 2
    assert audit.record_count >= len(payments)


async def test_an_audit_finds_a_batch_that_nobody_signed_and_a_missing_past(cast, members):
    await make_final(members, cast.make_payments())
    batches = list(members[0].store.iterate_batches())
    damaged = bytearray(batches[3])
    damaged[damaged.index(decode_batch(cast.federation, batches[3]).signature)] ^= 1
    for wrong in (bytes(damaged), None, b"no batch"):
        audit = Audit(cast.founded.charter)
        for encoded in [*batches[:3], *([wrong] if wrong else []), *batches[4:]]:
            audit.take(encoded)
        audit.finish()
        assert audit.problems
