"""What a checkpoint costs, and what a new node saves by it.

`measure` tells facts, times and bytes of a checkpoint for ledgers of several sizes. As a program it compares a new
node that joins a ledger of many records from a checkpoint with one that verifies everything:

    .venv/bin/python -m scripts.benchmarks.checkpoint --records 1000000

Each way runs in a process of its own, so its memory is its own; 5 % of the records come after the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio

from node.auditing import Audit
from node.snapshots import SnapshotFolder, iterate_frames, verify_snapshot
from node.storage.store import Store
from protocol.batches import decode_batch
from protocol.checkpoints import CheckpointClaims, build_checkpoint_proof, sort_facts
from protocol.identifiers import Tag
from protocol.merkle import compute_set_root
from protocol.receipts import ProvableBatch
from protocol.replica import Replica
from protocol.statements import Checkpoint
from scripts.benchmarks.federation_in_memory import Cast
from scripts.benchmarks.written_ledger import LedgerWriter, write_payments, write_setup

SIZES = (2_000, 8_000, 32_000)
CHUNK = 256
"""Records of one introducing batch, as under load."""
PAYMENTS_PER_PERSON = 20
TAIL_SHARE = 0.05
MEMBERS = 4


def _time(work: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _replay(cast: Cast, store: Store) -> Replica:
    replica = Replica(cast.founded.charter)
    for encoded in store.iterate_batches():
        replica.admit(decode_batch(cast.federation, encoded), lambda _: None)
    return replica


def _describe(replica: Replica) -> tuple[dict[str, object], list[bytes], bytes]:
    """(what its checkpoint costs, facts in order, root)."""
    facts_seconds, facts = _time(replica.compute_facts)
    sort_seconds, sorted_facts = _time(lambda: sort_facts(facts))  # type: ignore[arg-type]
    root_seconds, root = _time(lambda: compute_set_root(Tag.STATE_LEAF, facts))  # type: ignore[arg-type]
    assert isinstance(sorted_facts, list)
    assert isinstance(root, bytes)
    figures: dict[str, object] = {
        "records_final": replica.final_count,
        "batches": len(replica.entries),
        "facts": len(sorted_facts),
        "facts_ms": round(1000 * facts_seconds, 1),
        "root_ms": round(1000 * root_seconds, 1),
        "sort_ms": round(1000 * sort_seconds, 1),
        "snapshot_bytes": sum(4 + len(fact) for fact in sorted_facts),
    }
    return figures, sorted_facts, root


def measure(sizes: tuple[int, ...] = SIZES) -> dict[str, object]:
    """The cost of a checkpoint by the number of payments."""
    result: dict[str, object] = {}
    for size in sizes:
        cast = Cast(MEMBERS, max(10, size // PAYMENTS_PER_PERSON))
        store = Store.open(":memory:", cast.federation)
        writer = LedgerWriter(cast, store)
        write_setup(writer, cast, CHUNK)
        write_payments(writer, cast, size, CHUNK)
        writer.commit()
        result[str(size)] = _describe(_replay(cast, store))[0]
    return result


# -- joining ----------------------------------------------------------------------------------------------------


class Place:
    """The files of one comparison, and the federation in them, which both processes make from the same keys."""

    def __init__(self, folder: Path, people: int, genesis_seconds: int) -> None:
        self.cast = Cast(MEMBERS, people, genesis_seconds=genesis_seconds)
        self.ledger = folder / "ledger.sqlite"
        self.tail = folder / "tail.sqlite"
        self.joined = folder / "joined.sqlite"
        self.snapshots = SnapshotFolder(folder / "snapshots")


def write_ledger(place: Place, records: int) -> dict[str, object]:
    """The whole ledger in one file, and what comes after the checkpoint in another."""
    cast = place.cast
    store = Store.open(place.ledger, cast.federation)
    writer = LedgerWriter(cast, store)
    tail = int(records * TAIL_SHARE)

    def write() -> bytes:
        write_setup(writer, cast, CHUNK)
        write_payments(writer, cast, records - tail - writer.record_count, CHUNK)
        return writer.commit()

    seconds, last = _time(write)
    figures, facts, root = _describe(_replay(cast, store))
    before = store.count_batches()
    assert isinstance(last, bytes)
    claim = Checkpoint(last, root)
    claims, said = CheckpointClaims(), {}
    for batch in writer.certify(claim):
        claims.note({0: cast.founded.charter}, batch.header, batch.id, 0, claim)
        said[batch.id] = ProvableBatch(batch)
    place.snapshots.keep(build_checkpoint_proof(cast.founded.charter, claim, claims, said.__getitem__), facts)

    def write_tail() -> bytes:
        write_payments(writer, cast, tail, CHUNK)
        return writer.commit()

    tail_seconds, _ = _time(write_tail)
    rest = Store.open(place.tail, cast.federation)
    rest.append_batches([(batch, encoded) for _, batch, encoded in store.get_batches(before + 1, writer.batch_count)])
    rest.close()
    store.close()
    return {
        "records": writer.record_count,
        "batches": writer.batch_count,
        "people": len(cast.accounts),
        "writing_s": round(seconds + tail_seconds, 1),
        "database_bytes_per_record": round(place.ledger.stat().st_size / writer.record_count, 1),
        "checkpoint": figures,
    }


def join_from_checkpoint(place: Place) -> dict[str, object]:
    """Verify the snapshot, begin the store with it, restore, take in what came after through the member itself."""
    cast, kept = place.cast, place.snapshots.get_latest()
    assert kept is not None
    with open(kept.path, "rb") as file:
        verified_seconds, verified = _time(lambda: verify_snapshot({0: cast.founded.charter}, iterate_frames(file)))
    store = Store.open(place.joined, cast.federation)
    stored_seconds, _ = _time(lambda: store.begin_with(verified.facts))  # type: ignore[attr-defined]
    restored_seconds, member = _time(lambda: cast.open_member(MEMBERS, store))
    rest = list(Store.open(place.tail, cast.federation).iterate_batches())
    started = time.perf_counter()
    for start in range(0, len(rest), 64):
        trio.run(member.ingest, rest[start : start + 64], "benchmark")  # type: ignore[attr-defined]
    tail_seconds = time.perf_counter() - started
    root = member.replica.compute_state_root().hex()  # type: ignore[attr-defined]
    store.close()
    return {
        "total_s": round(verified_seconds + stored_seconds + restored_seconds + tail_seconds, 2),
        "verify_snapshot_s": round(verified_seconds, 2),
        "store_s": round(stored_seconds, 2),
        "restore_s": round(restored_seconds, 2),
        "tail_s": round(tail_seconds, 2),
        "fetched_bytes": kept.path.stat().st_size + sum(map(len, rest)),
        "database_bytes": place.joined.stat().st_size,
        "state_root": root,
    }


def verify_everything(place: Place) -> dict[str, object]:
    """Every signature, link and root from the genesis charter on."""
    store = Store.open(place.ledger, place.cast.federation)
    audit = Audit(place.cast.founded.charter)
    size = 0

    def take_all() -> None:
        nonlocal size
        for encoded in store.iterate_batches():
            audit.take(encoded)
            size += len(encoded)
        audit.finish()

    seconds, _ = _time(take_all)
    assert audit.problems == []
    assert audit.checkpoint_count == 1
    return {
        "total_s": round(seconds, 2),
        "fetched_bytes": size,
        "database_bytes": place.ledger.stat().st_size,
        "state_root": audit.replica.compute_state_root().hex(),
    }


def restart_from_all(place: Place) -> dict[str, object]:
    """What a node that keeps everything does at each start."""
    store = Store.open(place.ledger, place.cast.federation)
    seconds, member = _time(lambda: place.cast.open_member(MEMBERS, store))
    started = time.perf_counter()
    trio.run(member.restore)  # type: ignore[attr-defined]
    return {"total_s": round(seconds + time.perf_counter() - started, 2)}


def restart_from_checkpoint(place: Place) -> dict[str, object]:
    """What a node does at each start whose store begins with a checkpoint."""
    store = Store.open(place.joined, place.cast.federation)
    seconds, member = _time(lambda: place.cast.open_member(MEMBERS, store))
    started = time.perf_counter()
    trio.run(member.restore)  # type: ignore[attr-defined]
    return {"total_s": round(seconds + time.perf_counter() - started, 2)}


WAYS = {
    "join_from_checkpoint": join_from_checkpoint,
    "verify_everything": verify_everything,
    "restart_from_checkpoint": restart_from_checkpoint,
    "restart_from_all": restart_from_all,
}


def main() -> int:
    """Compare, or be one of the compared processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--way", choices=["write", *WAYS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep the files here instead of in a temporary folder")
    parser.add_argument("--genesis", type=int, default=int(time.time()), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    people = max(10, arguments.records // (PAYMENTS_PER_PERSON + 1))
    if arguments.way:
        place = Place(arguments.folder, people, arguments.genesis)
        way = arguments.way
        figures = write_ledger(place, arguments.records) if way == "write" else WAYS[way](place)
        figures["memory_mb_max"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(json.dumps(figures))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "scripts.benchmarks.checkpoint", "--records", str(arguments.records)]
        command += ["--folder", str(folder), "--genesis", str(arguments.genesis), "--way"]
        for way in ("write", *WAYS):
            print(f"{way} ...", file=sys.stderr, flush=True)
            answer = subprocess.run([*command, way], check=True, stdout=subprocess.PIPE, text=True).stdout
            print(json.dumps({way: json.loads(answer)}, indent=2), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
