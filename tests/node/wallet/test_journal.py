"""What a wallet never forgets, and never signs twice."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from node.errors import UserError
from node.wallet.journal import Journal, SlotTaken, State

ACCOUNT = b"a" * 32
OTHER = b"b" * 32


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path):
    with Journal(path, clock=lambda: 1_700_000_000.5) as opened:
        yield opened


def make(sequence: int, previous: bytes | None) -> tuple[bytes, bytes]:
    return b"id %d" % sequence, b"record %d after %s" % (sequence, previous or b"none")


def test_a_signed_record_is_there_after_the_journal_was_closed(path):
    with Journal(path, clock=lambda: 1_700_000_000.5) as journal:
        entry = journal.add(ACCOUNT, 0, b"id", b"the exact bytes", "send 1.000 credits")
    assert entry.record == b"the exact bytes"
    with Journal(path) as journal:
        assert journal.pending() == [entry]
        assert journal.find(b"id") == entry
        assert (entry.state, entry.signed_at_seconds) == (State.SIGNED, 1_700_000_000)


def test_the_journal_and_its_side_files_are_private(path, journal, tmp_path):
    journal.save_job("job", {"meter_seed": "00" * 32})
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    assert (tmp_path / "journal.sqlite-wal").exists()


def test_a_second_record_for_a_slot_is_refused_and_the_first_one_kept(journal):
    first = journal.add(ACCOUNT, 0, b"id", b"record", "send")
    assert journal.add(ACCOUNT, 0, b"id", b"record", "send") == first
    for record_id, record in ((b"id", b"other"), (b"other", b"record"), (b"other", b"other")):
        with pytest.raises(SlotTaken, match="something else in its place"):
            journal.add(ACCOUNT, 0, record_id, record, "send")
    journal.mark_rejected(b"id", "funds missing")
    with pytest.raises(SlotTaken):
        journal.add(ACCOUNT, 0, b"other", b"other", "send")
    assert [entry.record for entry in journal.history()] == [b"record"]
    journal.add(OTHER, 0, b"other", b"other", "send")


def test_an_unlock_may_bring_another_record_into_a_slot_once_per_attempt(journal):
    journal.add(ACCOUNT, 0, b"first", b"first", "send")
    journal.add(ACCOUNT, 0, b"second", b"second", "unlock", attempt=1)
    with pytest.raises(SlotTaken):
        journal.add(ACCOUNT, 0, b"third", b"third", "unlock", attempt=1)
    journal.mark_final(b"second", b"receipt")
    found = journal.find(b"first")
    assert found is not None
    assert (found.state, found.reason) == (State.REJECTED, "another record became final in its place")
    latest = journal.latest(ACCOUNT)
    assert latest is not None
    assert latest.record_id == b"second"
    assert journal.next_sequence(ACCOUNT) == 1


def test_the_record_that_became_final_is_the_latest_though_a_later_attempt_was_signed(journal):
    journal.add(ACCOUNT, 0, b"first", b"first", "send")
    journal.add(ACCOUNT, 0, b"second", b"second", "unlock", attempt=1)
    journal.mark_final(b"first", b"receipt")
    assert journal.append(ACCOUNT, "send", make).record == b"record 1 after first"


def test_sequences_count_up_and_name_the_record_before(journal):
    assert journal.next_sequence(ACCOUNT) == 0
    assert journal.append(ACCOUNT, "send", make).record == b"record 0 after none"
    assert journal.append(ACCOUNT, "send", make).record == b"record 1 after id 0"
    assert journal.append(OTHER, "send", make).sequence == 0
    assert journal.next_sequence(ACCOUNT) == 2


def test_a_restored_wallet_goes_on_where_its_node_knows_it_to_be(journal):
    assert journal.append(ACCOUNT, "send", make, sequence_min=7).record == b"record 7 after none"
    assert journal.append(ACCOUNT, "send", make, sequence_min=7).record == b"record 8 after id 7"


def test_after_a_refused_record_the_account_wants_an_unlock_first(journal):
    entry = journal.append(ACCOUNT, "send", make)
    journal.mark_rejected(entry.record_id, "funds missing")
    with pytest.raises(UserError, match=r"\(funds missing\): run `allmende wallet unlock` first"):
        journal.append(ACCOUNT, "send", make)
    journal.mark_final(entry.record_id, b"receipt")
    assert journal.append(ACCOUNT, "send", make).sequence == 1


def test_a_failure_while_signing_takes_no_sequence(journal):
    def fail(sequence: int, previous: bytes | None) -> tuple[bytes, bytes]:
        raise UserError("no passphrase")

    with pytest.raises(UserError, match="no passphrase"):
        journal.append(ACCOUNT, "send", fail)
    assert journal.next_sequence(ACCOUNT) == 0
    assert journal.history() == []


def test_states_move_on_and_what_is_final_stays_final(journal):
    record_id = journal.append(ACCOUNT, "send", make).record_id
    journal.mark_sent(record_id)
    assert [entry.state for entry in journal.pending()] == [State.SENT]
    assert journal.mark_rejected(record_id, "signature invalid")
    assert journal.pending() == []
    journal.mark_final(record_id, b"receipt")
    assert not journal.mark_rejected(record_id, "too late")
    journal.mark_sent(record_id)
    journal.mark_final(record_id, b"another receipt")
    entry = journal.find(record_id)
    assert entry is not None
    assert (entry.state, entry.reason, entry.receipt) == (State.FINAL, "", b"receipt")


def test_a_record_that_was_never_written_down_cannot_become_anything(journal):
    for mark in (
        lambda: journal.mark_sent(b"none"),
        lambda: journal.mark_final(b"none", b""),
        lambda: journal.mark_rejected(b"none", ""),
    ):
        with pytest.raises(AssertionError):
            mark()
    assert journal.find(b"none") is None


def test_history_is_read_in_pages_from_the_newest(journal):
    for _ in range(5):
        journal.append(ACCOUNT, "send", make)
    first = journal.history(2)
    second = journal.history(2, before=first[-1].number)
    assert [entry.sequence for entry in first + second] == [4, 3, 2, 1]


def test_jobs_are_kept_replaced_and_removed(path, journal):
    journal.save_job("b", {"meter_seed": "00", "ticks": [1, 2]})
    journal.save_job("a", {"conversation": "é"})
    journal.save_job("b", {"meter_seed": "11"})
    with Journal(path) as again:
        assert again.jobs() == {"a": {"conversation": "é"}, "b": {"meter_seed": "11"}}
        again.remove_job("a")
    assert journal.job("a") is None
    assert journal.job("b") == {"meter_seed": "11"}


PROGRAM = """
import sys
from pathlib import Path
from node.wallet.journal import Journal
name = sys.argv[2].encode()
sys.stdin.readline()
for _ in range(20):
    with Journal(Path(sys.argv[1])) as journal:
        journal.append(b"a", "send", lambda number, previous: (b"%s %d" % (name, number), previous or b""))
"""


def test_processes_that_sign_at_once_never_take_one_sequence_twice(path):
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(path), name], stdin=subprocess.PIPE, text=True)
        for name in "xyz"
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    with Journal(path) as journal:
        entries = journal.history(1000)[::-1]
    assert [entry.sequence for entry in entries] == list(range(60))
    assert [entry.record for entry in entries] == [b"", *(entry.record_id for entry in entries[:-1])]


def test_many_threads_may_open_a_new_journal_at_once(path):
    def open_and_sign(_: int) -> int:
        with Journal(path) as journal:
            return journal.append(ACCOUNT, "send", make).sequence

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(open_and_sign, range(24))) == list(range(24))


CRASH = """
import os, signal, sys
from pathlib import Path
from node.wallet.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append(b"a", "send", lambda sequence, previous: (b"kept", b"kept"))
with journal._writing():
    journal._add(b"a", 1, 0, b"half", b"half", "send")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_in_the_middle_leaves_what_was_added_and_no_half_entry(path):
    done = subprocess.run([sys.executable, "-c", CRASH, str(path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    with Journal(path) as journal:
        assert [entry.record for entry in journal.history()] == [b"kept"]
        assert journal.append(ACCOUNT, "send", make).sequence == 0
        assert journal.append(b"a", "send", make).sequence == 1


def test_what_is_written_is_forced_to_disk(journal):
    assert journal._one("PRAGMA synchronous") == 2  # FULL
    assert journal._one("PRAGMA journal_mode") == "wal"


def test_other_files_are_refused_and_left_as_they_are(tmp_path, path):
    foreign = sqlite3.connect(tmp_path / "other.sqlite")
    foreign.execute("CREATE TABLE mine (a)")
    foreign.close()
    before = (tmp_path / "other.sqlite").read_bytes()
    with pytest.raises(UserError, match="not a wallet journal"):
        Journal(tmp_path / "other.sqlite")
    assert (tmp_path / "other.sqlite").read_bytes() == before
    (tmp_path / "noise").write_bytes(b"no database at all " * 100)
    for wrong in (tmp_path / "noise", tmp_path, tmp_path / "missing" / "journal"):
        with pytest.raises(UserError, match="wallet journal") as caught:
            Journal(wrong)
        assert "\n" not in str(caught.value)
    Journal(path).close()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 2")
    later.close()
    with pytest.raises(UserError, match="update allmende"):
        Journal(path)


slots = st.tuples(st.sampled_from([b"a", b"b"]), st.integers(0, 3), st.integers(0, 1))


class JournalMachine(RuleBasedStateMachine):
    """Any course of events, beside a dictionary that remembers the same."""

    @initialize()
    def open(self):
        self.directory = Path(mkdtemp())
        self.journal = Journal(self.directory / "journal.sqlite")
        self.signed: dict[tuple[bytes, int, int], bytes] = {}
        self.final: set[bytes] = set()

    @rule(slot=slots, record=st.sampled_from([b"1", b"2"]))
    def add(self, slot, record):
        scope, sequence, attempt = slot
        record_id = b"%s%d%s" % (scope, sequence, record)
        try:
            self.journal.add(scope, sequence, record_id, record, "send", attempt=attempt)
        except SlotTaken:
            assert self.signed[slot] != record_id
        else:
            assert self.signed.setdefault(slot, record_id) == record_id

    @rule(data=st.data())
    def finalise(self, data):
        if self.signed:
            record_id = data.draw(st.sampled_from(sorted(self.signed.values())))
            if not any(other[:2] == record_id[:2] and other != record_id for other in self.final):
                self.journal.mark_final(record_id, b"receipt")
                self.final.add(record_id)

    @rule(data=st.data())
    def reject(self, data):
        if self.signed:
            record_id = data.draw(st.sampled_from(sorted(self.signed.values())))
            assert self.journal.mark_rejected(record_id, "no") == (record_id not in self.final)

    @invariant()
    def nothing_is_forgotten(self):
        if not hasattr(self, "signed"):
            return
        entries = self.journal.history(1000)
        assert {(e.scope, e.sequence, e.attempt): e.record_id for e in entries} == self.signed
        assert {e.record_id for e in entries if e.state is State.FINAL} == self.final
        assert all(e.receipt for e in entries if e.state is State.FINAL)

    def teardown(self):
        if hasattr(self, "journal"):
            self.journal.close()
            shutil.rmtree(self.directory)


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=25, stateful_step_count=20)
