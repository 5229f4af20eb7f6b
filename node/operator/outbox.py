"""What this member signed and what is not final yet: one small file for each record, on disk before it is sent.

Two records of one writer in one slot stop that slot until its owner unlocks it, so the exact bytes are kept here from
signing to finality, and whatever happens between, the same bytes are sent again. A file's name is its slot; a second
record for a slot is refused by the file system itself, atomically. When a record is final the ledger remembers it, and
the file goes.
"""

from __future__ import annotations

import re
from pathlib import Path

from node.errors import UserError
from node.files import sync_directory, write_atomically
from protocol.errors import InvalidInput
from protocol.limits import RECORD_BYTES_MAX
from protocol.records import Record, decode_record

_NAME_FORM = re.compile(r"[0-9a-f]{66}-[0-9]{1,16}")


class Outbox:
    """The records on their way, kept in a directory of their own."""

    def __init__(self, path: Path, federation: bytes) -> None:
        """Read what an earlier run left. Raises: UserError when a file is damaged or can't be read."""
        self.path = path
        self._federation = federation
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            files = sorted(file for file in path.iterdir() if _NAME_FORM.fullmatch(file.name))
            self._pending = {record.id: record for record in map(self._read, files)}
        except OSError as error:
            raise UserError(f"cannot use {path}: {error.strerror}") from error

    def _read(self, file: Path) -> Record:
        with open(file, "rb") as opened:
            encoded = opened.read(RECORD_BYTES_MAX + 1)
        try:
            record = decode_record(self._federation, encoded)
        except InvalidInput as error:
            raise UserError(
                f"{file} is damaged ({error}): restore it from a backup, or ask the others for help"
            ) from None
        if self._place(record) != file:
            raise UserError(f"{file} holds a record of another account or federation: put it back where it belongs")
        return record

    def add(self, record: Record) -> None:
        """Keep a signed record, on disk on return. The same one again changes nothing.

        Raises: UserError when another record waits for this slot.
        """
        if record.id in self._pending:
            return
        other = self.find(*record.slot)
        if other is not None:
            raise UserError("another record of ours waits for the same place already: wait until that one is final")
        write_atomically(self._place(record), record.encoded, replace=False)
        self._pending[record.id] = record

    def remove(self, record: Record) -> None:
        """Forget a record that is final, or that no correct member will ever vote for."""
        self._place(record).unlink(missing_ok=True)
        sync_directory(self.path)
        self._pending.pop(record.id, None)

    def get_pending(self) -> list[Record]:
        """What is on its way, in the order in which it must be sent."""
        return sorted(self._pending.values(), key=lambda record: record.slot)

    def find(self, scope: bytes, sequence: int | None = None) -> Record | None:
        """The first record on its way in a scope, or the one in a slot of it."""
        for record in self.get_pending():
            if record.scope == scope and sequence in (None, record.sequence):
                return record
        return None

    def _place(self, record: Record) -> Path:
        return self.path / f"{record.scope.hex()}-{record.sequence}"
