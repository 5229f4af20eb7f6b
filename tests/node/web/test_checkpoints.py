"""The certified state over HTTP: a wallet proves its balance, and a new node begins with it."""

import pytest
import trio

from node.addresses import Kind, encode_address
from node.errors import UserError
from node.joining import begin_with_checkpoint, fetch_checkpoint
from node.snapshots import SnapshotFolder
from node.storage.store import Store
from node.wallet.verify import verify_balance
from protocol.errors import InvalidInput
from protocol.records import Lot
from protocol.snapshot import restore_replica


@pytest.fixture
async def certified(funded):
    """The node's state is certified; it is the only member, so at once."""
    checkpoints = funded.member.checkpoints
    checkpoints.folder = SnapshotFolder(funded.home / "snapshots")
    await funded.call("pick_checkpoint", place=funded.socket)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(checkpoints.run)
        await funded.wait_until(lambda: checkpoints.get_kept() is not None)
        nursery.cancel_scope.cancel()
    return funded


async def test_before_the_first_checkpoint_there_is_none(funded):
    assert await funded.call("get_checkpoint") is None
    assert await funded.call("get_account_proof", encode_address(Kind.ACCOUNT, funded.federation.person)) is None


async def test_a_wallet_proves_its_balance_with_the_charter_alone(certified, federation):
    proof = await certified.call("get_account_proof", encode_address(Kind.ACCOUNT, federation.person))
    charters = {0: federation.charter}
    proved = verify_balance(charters, proof.checkpoint, proof.facts, federation.person)
    assert proved.lots == {Lot(federation.program.id, 2): 5000}
    with pytest.raises(InvalidInput):
        verify_balance(charters, proof.checkpoint, proof.facts, federation.donor)
    stranger = await certified.call("get_account_proof", encode_address(Kind.ACCOUNT, b"x" * 32))
    with pytest.raises(InvalidInput):
        verify_balance(charters, stranger.checkpoint, stranger.facts, b"x" * 32)


async def test_a_new_node_begins_with_what_it_fetched_and_verified(certified, federation, tmp_path):
    charters = {0: federation.charter}
    snapshot = await trio.to_thread.run_sync(fetch_checkpoint, certified.url, charters)
    assert snapshot is not None
    answer = await certified.call("get_checkpoint")
    assert answer.root == snapshot.checkpoint.root.hex()
    replica = restore_replica(federation.charter, snapshot.facts)
    assert replica.final_count == 4
    places = (tmp_path / "new.sqlite", tmp_path / "new-snapshots", federation.charter)
    begin_with_checkpoint(*places, snapshot, [])
    with pytest.raises(UserError, match="already"):
        begin_with_checkpoint(*places, snapshot, [])
    store = Store.open(places[0], federation.id)
    assert list(store.iterate_facts()) == snapshot.facts
    store.close()


async def test_a_snapshot_of_which_a_byte_was_changed_is_refused(certified, federation):
    path = certified.member.checkpoints.get_kept().path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not hold"):
        await trio.to_thread.run_sync(fetch_checkpoint, certified.url, {0: federation.charter})
