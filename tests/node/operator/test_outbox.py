"""The outbox: exact bytes from signing to finality, one record a slot, also after a crash."""

import pytest

from node.errors import UserError
from node.operator.outbox import Outbox
from protocol.records import Kind, RecordDraft, Sponsor, account_scope, sign_record
from tests.node.operator.institution import make_keys

FEDERATION = bytes([5]) * 32
KEY = make_keys(1)[0]


def make_record(sequence=0, donor=1, account=3):
    body = Sponsor(1, bytes([donor]) * 32, 2)
    scope, prev = account_scope(bytes([account]) * 32), bytes([7]) * 32 if sequence else b""
    draft = RecordDraft(Kind.SPONSOR, 1, scope, sequence, prev, body, (KEY.public_key,))
    return sign_record(FEDERATION, draft, [KEY])


def test_what_was_added_is_there_after_a_crash_in_the_order_of_the_slots(tmp_path):
    outbox = Outbox(tmp_path / "outbox", FEDERATION)
    records = [make_record(sequence) for sequence in (0, 9, 10)]
    for record in reversed(records):
        outbox.add(record)
        outbox.add(record)
    assert Outbox(tmp_path / "outbox", FEDERATION).get_pending() == records
    assert outbox.find(records[0].scope) == records[0]
    assert outbox.find(records[0].scope, 10) == records[2]
    assert outbox.find(account_scope(bytes(32))) is None


def test_a_second_record_for_a_slot_is_refused(tmp_path):
    outbox, late = Outbox(tmp_path / "outbox", FEDERATION), Outbox(tmp_path / "outbox", FEDERATION)
    outbox.add(make_record())
    with pytest.raises(UserError, match="another record of ours"):
        outbox.add(make_record(donor=2))
    with pytest.raises(UserError, match="exists already"):
        late.add(make_record(donor=2))


def test_what_was_removed_is_gone_for_good(tmp_path):
    outbox = Outbox(tmp_path / "outbox", FEDERATION)
    outbox.add(make_record())
    outbox.remove(make_record())
    outbox.remove(make_record())
    assert outbox.get_pending() == Outbox(tmp_path / "outbox", FEDERATION).get_pending() == []
    outbox.add(make_record(donor=2))


@pytest.mark.parametrize("content", [b"", b"\x99", make_record(account=4).encoded])
def test_a_damaged_file_is_told(tmp_path, content):
    outbox = Outbox(tmp_path / "outbox", FEDERATION)
    outbox.add(make_record())
    (file,) = (tmp_path / "outbox").iterdir()
    file.write_bytes(content)
    with pytest.raises(UserError, match=file.name):
        Outbox(tmp_path / "outbox", FEDERATION)


def test_other_files_are_left_alone(tmp_path):
    Outbox(tmp_path / "outbox", FEDERATION)
    (tmp_path / "outbox" / ".half.new").write_bytes(b"half")
    assert Outbox(tmp_path / "outbox", FEDERATION).get_pending() == []
