"""The node's memory keeps what it confirmed, through kills, full disks and damaged files, and bounds the rest."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from node.errors import UserError
from node.storage import store as store_module
from node.storage.database import StoreFailed, open_database
from node.storage.limits import MESSAGE_SECONDS_MAX, READ_BYTES_MAX
from node.storage.migrations import STEPS
from node.storage.store import Store, StoreFull
from node.storage.tables import TABLES

ROOT = Path(__file__).resolve().parents[3]
FEDERATION = b"f" * 32
OTHER_FEDERATION = b"g" * 32


def name(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


def make_batches(first: int, count: int, size: int = 2000) -> list[tuple[bytes, bytes]]:
    return [(name(number), b"%08d" % number * (size // 8)) for number in range(first, first + count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def store() -> Iterator[Store]:
    opened = Store.open(":memory:", FEDERATION)
    yield opened
    opened.close()


def run_child(path: Path, body: str) -> subprocess.CompletedProcess[bytes]:
    """Run `body` in a process of its own, with `store` open on `path`."""
    program = (
        "import os, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from node.storage.store import Store\n"
        f"store = Store.open(Path({str(path)!r}), {FEDERATION!r})\n"
        "def make_batches(first, count, size=2000):\n"
        "    from hashlib import sha256\n"
        "    return [(sha256(b'%d' % n).digest(), b'%08d' % n * (size // 8)) for n in range(first, first + count)]\n"
        f"{body}\n"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60)


def read_all(path: Path) -> list[bytes]:
    opened = Store.open(path, FEDERATION)
    try:
        return list(opened.iterate_batches())
    finally:
        opened.close()


def test_batches_come_back_in_the_order_of_their_admission(store: Store) -> None:
    batches = make_batches(0, 200)
    store.append_batches(batches[:150])
    store.append_batches(batches[150:])
    assert list(store.iterate_batches()) == [encoded for _, encoded in batches]
    assert store.get_batches(3, 2) == [(3, *batches[2]), (4, *batches[3])]
    assert store.get_batches(200, 9) == [(200, *batches[199])]
    assert store.get_batch(batches[77][0]) == batches[77][1]
    assert store.get_batch(name(1000)) is None
    assert store.count_batches() == 200


def test_repeating_a_batch_changes_nothing_and_leaves_no_gap(store: Store) -> None:
    batches = make_batches(0, 3)
    store.append_batches(batches[:2])
    store.append_batches(batches)
    assert list(store.iterate_batches()) == [encoded for _, encoded in batches]
    assert store.count_batches() == 3


def test_a_confirmed_batch_survives_a_kill(path: Path) -> None:
    body = "store.append_batches(make_batches(0, 50)); os.kill(os.getpid(), signal.SIGKILL)"
    assert run_child(path, body).returncode == -signal.SIGKILL
    assert read_all(path) == [encoded for _, encoded in make_batches(0, 50)]


def test_a_kill_in_the_middle_leaves_all_or_nothing(path: Path) -> None:
    """The kill comes while the transaction's rows are being handed over, after many of them reached the log."""
    body = (
        "store.append_batches(make_batches(0, 5))\n"
        "def many():\n"
        "    yield from make_batches(5, 4000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.append_batches(many())"
    )
    assert run_child(path, body).returncode == -signal.SIGKILL
    assert read_all(path) == [encoded for _, encoded in make_batches(0, 5)]


def test_a_full_disk_undoes_the_transaction_and_says_so(path: Path) -> None:
    """A limit on the size of files stands in for the disk; SQLite meets it in the middle of its log."""
    body = (
        "store.append_batches(make_batches(0, 5))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "try: store.append_batches(make_batches(5, 400))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = run_child(path, body)
    assert said.returncode == 0, said.stderr.decode()
    assert said.stdout.startswith(b"StoreFailed"), said.stdout
    assert said.stdout.count(b"\n") == 1
    assert read_all(path) == [encoded for _, encoded in make_batches(0, 5)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mountpoint = tmp_path / "disk"
    mountpoint.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", str(mountpoint)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield mountpoint
    subprocess.run(["umount", "-l", str(mountpoint)], check=True)


def test_a_store_goes_on_once_a_full_disk_has_space_again(small_disk: Path) -> None:
    path, filler = small_disk / "ledger.sqlite", small_disk / "filler"
    store = Store.open(path, FEDERATION)
    store.append_batches(make_batches(0, 5))
    filler.write_bytes(bytes(1_000_000))
    with pytest.raises(StoreFailed, match=r"full: free some space"):
        store.append_batches(make_batches(5, 1000))
    assert store.count_batches() == 5
    filler.unlink()
    store.append_batches(make_batches(5, 100))
    store.close()
    assert read_all(path) == [encoded for _, encoded in make_batches(0, 105)]


def test_a_disk_that_can_only_be_read_is_named(small_disk: Path) -> None:
    path = small_disk / "ledger.sqlite"
    Store.open(path, FEDERATION).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreFailed, match=r"name another directory"):
        Store.open(path, FEDERATION)


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match=r"nowhere/ledger.sqlite can't be opened"):
        Store.open(tmp_path / "nowhere" / "ledger.sqlite", FEDERATION)


def test_a_damaged_file_is_refused_at_the_start(path: Path) -> None:
    opened = Store.open(path, FEDERATION)
    opened.append_batches(make_batches(0, 300))
    opened.close()
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 12] = bytes(4096 * 9)
    path.write_bytes(content)
    with pytest.raises(StoreFailed, match=r"damaged .* move it away"):
        Store.open(path, FEDERATION)


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError):
        Store.open(path, FEDERATION)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_left_as_it_is(path: Path) -> None:
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE songs (title TEXT)")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match="no ledger"):
        Store.open(path, FEDERATION)
    assert path.read_bytes() == before


def test_the_ledger_of_another_federation_is_refused(path: Path) -> None:
    Store.open(path, FEDERATION).close()
    with pytest.raises(UserError, match=r"belongs to the federation almf1\w+, not to almf1"):
        Store.open(path, OTHER_FEDERATION)


def test_a_file_of_a_newer_program_is_refused(path: Path) -> None:
    newer = open_database(path, FEDERATION, [*STEPS, ("CREATE TABLE tomorrow (x INTEGER)",)])
    newer.close()
    with pytest.raises(UserError, match=r"newer allmende .* update allmende"):
        Store.open(path, FEDERATION)


def test_an_older_file_is_brought_forward_with_its_content(path: Path) -> None:
    older = Store.open(path, FEDERATION)
    older.append_batches(make_batches(0, 3))
    older.close()
    steps = [*STEPS, ("CREATE TABLE tomorrow (x INTEGER)", "INSERT INTO tomorrow VALUES (7)")]
    for _ in range(2):  # the second time there is nothing left to do
        newer = open_database(path, FEDERATION, steps)
        with newer.reading():
            assert newer.connection.execute("SELECT x FROM tomorrow").fetchall() == [(7,)]
            assert newer.connection.execute("SELECT count(*) FROM batch").fetchall() == [(3,)]
        newer.close()


def test_a_step_that_fails_leaves_the_version_before(path: Path) -> None:
    Store.open(path, FEDERATION).close()
    with pytest.raises(UserError):
        open_database(path, FEDERATION, [*STEPS, ("CREATE TABLE tomorrow (x INTEGER)", "no such verb")])
    Store.open(path, FEDERATION).close()


def test_the_tables_are_those_that_the_migrations_make(store: Store) -> None:
    with sqlite3.connect(":memory:") as made:
        made.deserialize(store.serialize())
        for table in TABLES:
            columns = [row[1] for row in made.execute(f"PRAGMA table_info({table._meta.table_name})")]
            assert columns == [field.column_name for field in table._meta.sorted_fields]
    made.close()


def test_only_one_process_works_with_a_file(path: Path) -> None:
    opened = Store.open(path, FEDERATION)
    said = run_child(path, "")
    assert b"another allmende works with" in said.stderr
    opened.close()
    assert run_child(path, "").returncode == 0


def test_the_file_belongs_to_its_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        opened = Store.open(path, FEDERATION)
        opened.append_batches(make_batches(0, 1))
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()}
        opened.close()
    finally:
        os.umask(before)
    assert modes == {"ledger.sqlite": 0o600, "ledger.sqlite-wal": 0o600}


def test_a_serialized_store_can_be_set_back(path: Path) -> None:
    for place in (":memory:", path):
        before = Store.open(place, FEDERATION)
        before.append_batches(make_batches(0, 3))
        before.append_message(name(1), b"hello", 100)
        snapshot = before.serialize()
        before.append_batches(make_batches(3, 3))
        after = Store.restore(snapshot, FEDERATION)
        assert list(after.iterate_batches()) == [encoded for _, encoded in make_batches(0, 3)]
        assert after.append_message(name(1), b"again", 100) == 2
        after.append_batches(make_batches(3, 1))
        assert after.count_batches() == 4
        with pytest.raises(UserError):
            Store.restore(snapshot, OTHER_FEDERATION)
        before.close()
        after.close()


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    with pytest.raises(StoreFailed, match="closed"):
        store.count_batches()


def test_requests_for_a_budget_are_listed_until_they_are_approved(store: Store) -> None:
    program, other = name(1), name(2)
    store.put_budget_request(name(10), program, name(20), b"first")
    store.put_budget_request(name(10), program, name(20), b"first")
    store.put_budget_request(name(11), program, name(21), b"second")
    store.put_budget_request(name(12), other, name(20), b"third")
    assert [request.encoded for request in store.list_budget_requests()] == [b"first", b"second", b"third"]
    assert store.list_participants(program) == []
    assert store.mark_approved(name(11))
    assert store.mark_approved(name(10))
    assert not store.mark_approved(name(99))
    assert store.list_participants(program) == [name(20), name(21)]
    assert [request.id for request in store.list_budget_requests(is_approved=False)] == [name(12)]
    found = store.get_budget_request(name(10))
    assert found is not None
    assert (found.program, found.account, found.encoded, found.is_approved) == (program, name(20), b"first", True)
    assert store.get_budget_request(name(99)) is None


def test_a_newer_request_takes_the_place_of_the_open_one(store: Store) -> None:
    store.put_budget_request(name(10), name(1), name(20), b"first")
    store.put_budget_request(name(11), name(1), name(20), b"second")
    assert [request.id for request in store.list_budget_requests()] == [name(11)]


def test_waiting_requests_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUDGET_REQUESTS_OPEN_MAX", 2)
    store.put_budget_request(name(10), name(1), name(20), b"a")
    store.put_budget_request(name(11), name(1), name(21), b"b")
    with pytest.raises(StoreFull):
        store.put_budget_request(name(12), name(1), name(22), b"c")
    store.mark_approved(name(10))
    store.put_budget_request(name(12), name(1), name(22), b"c")


def test_the_latest_offer_of_a_donor_stands_until_it_ends(store: Store) -> None:
    assert store.put_offer(name(1), b"early", 100)
    assert not store.put_offer(name(1), b"early", 100)
    assert store.put_offer(name(1), b"late", 200)
    assert not store.put_offer(name(1), b"early", 100)
    assert store.put_offer(name(2), b"other", 150)
    assert {encoded for _, encoded, _ in store.list_offers(120)} == {b"late", b"other"}
    assert [encoded for _, encoded, _ in store.list_offers(150)] == [b"late"]
    store.expire(150)
    assert [encoded for _, encoded, _ in store.list_offers(0)] == [b"late"]


def test_letters_are_read_in_order_and_their_numbers_are_never_used_twice(store: Store) -> None:
    numbers = [store.append_message(name(1), b"%d" % count, 1000) for count in range(3)]
    store.append_message(name(2), b"other", 1000)
    assert [letter.content for letter in store.read_messages(name(1), 0)] == [b"0", b"1", b"2"]
    assert [letter.content for letter in store.read_messages(name(1), numbers[1])] == [b"2"]
    assert [letter.content for letter in store.read_messages(name(1), 0, limit=1)] == [b"0"]
    assert store.expire(1000 + MESSAGE_SECONDS_MAX) == 0
    assert store.expire(1001 + MESSAGE_SECONDS_MAX) == 4
    assert store.read_messages(name(1), 0) == []
    assert store.append_message(name(1), b"new", 2000) > numbers[-1]


def test_one_answer_of_a_mailbox_is_bounded_and_never_empty_when_there_is_a_letter(store: Store) -> None:
    for _ in range(4):
        store.append_message(name(1), bytes(READ_BYTES_MAX // 2), 0)
    assert len(store.read_messages(name(1), 0)) == 2
    store.append_message(name(2), bytes(READ_BYTES_MAX + 1), 0)
    assert len(store.read_messages(name(2), 0)) == 1


def test_mailboxes_are_bounded_each_and_all_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAILBOX_MESSAGES_MAX", 3)
    monkeypatch.setattr(store_module, "MAILBOX_BYTES_MAX", 1000)
    monkeypatch.setattr(store_module, "POST_MESSAGES_MAX", 5)
    monkeypatch.setattr(store_module, "POST_BYTES_MAX", 1500)
    store.append_message(name(1), bytes(900), 0)
    store.append_message(name(1), bytes(101), 0)
    assert [len(letter.content) for letter in store.read_messages(name(1), 0)] == [101]
    for size in (1, 2, 3):
        store.append_message(name(1), bytes(size), 0)
    assert [len(letter.content) for letter in store.read_messages(name(1), 0)] == [1, 2, 3]
    store.append_message(name(1), bytes(900), 0)
    assert [len(letter.content) for letter in store.read_messages(name(1), 0)] == [2, 3, 900]
    with pytest.raises(StoreFull, match="this node"):
        store.append_message(name(2), bytes(700), 0)
    store.append_message(name(2), bytes(1), 0)
    store.append_message(name(3), bytes(1), 0)
    with pytest.raises(StoreFull, match="this node"):
        store.append_message(name(4), b"", 0)
    store.expire(MESSAGE_SECONDS_MAX + 1)
    store.append_message(name(4), bytes(700), 0)


def test_calls_from_many_threads_take_turns(path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store = Store.open(path, FEDERATION)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.append_batches(make_batches(number * 10, 10)), range(20)))
        numbers = list(pool.map(lambda number: store.append_message(name(number % 3), b"x", 0), range(50)))
    assert store.count_batches() == 200
    assert len(set(numbers)) == 50
    store.close()


def test_the_limits_of_this_process_were_left_alone() -> None:
    """Guards the tests above: a file limit set here by mistake would outlive them."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
