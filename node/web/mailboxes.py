"""Letters between wallets and donors that wait for each other at a node; the node can't read them.

A reader that finds nothing new waits here until somebody writes to the same mailbox; no thread and no timer runs
meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from node.storage.store import Store, StoredMessage


class Mailboxes:
    """The mailboxes of the store, with a bell on each that has a reader."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._bells: dict[bytes, trio.Event] = {}

    def post(self, mailbox: bytes, content: bytes) -> int:
        """Keep a letter and wake the readers; returns its sequence. Raises: StoreFull, StoreFailed."""
        sequence = self._store.append_message(mailbox, content, int(self._clock()))
        bell = self._bells.pop(mailbox, None)
        if bell is not None:
            bell.set()
        return sequence

    async def read(self, mailbox: bytes, after: int, wait_seconds: float) -> list[StoredMessage]:
        """Letters after `after`, oldest first; when there are none, the first that comes within the time, or none."""
        with trio.move_on_after(wait_seconds):
            while not (found := self._store.read_messages(mailbox, after)):
                bell = self._bells.setdefault(mailbox, trio.Event())
                try:
                    await bell.wait()
                finally:
                    # The last reader that leaves takes the bell along: names of mailboxes are not kept for ever.
                    if self._bells.get(mailbox) is bell and bell.statistics().tasks_waiting == 0:
                        del self._bells[mailbox]
            return found
        return self._store.read_messages(mailbox, after)
