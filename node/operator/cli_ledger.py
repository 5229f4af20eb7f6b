"""The commands that look after the ledger's length: certify its state, archive old batches, verify everything anew."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING

import click

from node.config import NodeHome
from node.errors import UserError
from node.operator.homes import node_home_option
from node.terminal import emit, json_option, show_progress

if TYPE_CHECKING:
    from node.auditing import Audit

WAIT_SECONDS = 60
POLL_SECONDS = 0.5


@click.command()
@node_home_option
@json_option
def checkpoint(home: NodeHome, as_json: bool) -> None:
    """Ask the members to certify the state of the ledger now. By itself it happens once a day.

    \b
    Example:
        allmende node checkpoint
    """
    from node.operator.connection import connect

    with connect(home) as client:
        before = client.get_checkpoint()
        client.pick_checkpoint()
        deadline = time.monotonic() + WAIT_SECONDS
        found = client.get_checkpoint()
        while (found is None or found == before) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            found = client.get_checkpoint()
    if found is None or found == before:
        raise UserError(f"no quorum certified it within {WAIT_SECONDS} s: it goes on by itself when members answer")
    lines = [f"Certified: state {found.root[:16]}..., {found.snapshot_bytes} bytes."]
    emit({"batch": found.batch, "root": found.root, "snapshot_bytes": found.snapshot_bytes}, lines, as_json)


@click.command()
@node_home_option
@json_option
def prune(home: NodeHome, as_json: bool) -> None:
    """Move what lies before the last certified checkpoint out of the database, into the archive. Stop the node first.

    Old records then have no receipts at this node. Keep the archive: `allmende node audit` needs it.

    \b
    Example:
        allmende node prune
    """
    from node.files import lock_directory
    from node.joining import name_amendments
    from node.pruning import prune as prune_store
    from node.snapshots import SnapshotFolder, iterate_frames, verify_snapshot
    from node.storage.store import Store
    from protocol.snapshot import group_facts, read_charters

    federation, founded = home.load_federation()
    kept = SnapshotFolder(home.snapshots).get_latest()
    if kept is None:
        raise UserError("no checkpoint was certified yet: start the node and run `allmende node checkpoint`")
    with lock_directory(home.path, "allmende node"):
        store = Store.open(home.ledger, founded.charter.federation)
        try:
            with open(kept.path, "rb") as file:
                proof, *facts = iterate_frames(file)
            charters = read_charters(founded.charter, group_facts(facts))  # of our own file
            amendments = name_amendments(founded.charter, federation.amendments)
            if len(amendments) < len(charters) - 1:
                raise UserError("this node has not noted every amendment yet: start it once more, then prune")
            count = prune_store(store, verify_snapshot(charters, [proof, *facts]), amendments, home.archive)
            store.compact()
        finally:
            store.close()
    lines = [f"{count} batches are in {home.archive} now, and no more in the database. Back the archive up."]
    emit({"archived": count, "archive": str(home.archive)}, lines, as_json)


@click.command()
@node_home_option
@json_option
def fetch_archive(home: NodeHome, as_json: bool) -> None:
    """Fetch what lies before this node's first checkpoint from other members, into the archive. The node must run.

    \b
    Example:
        allmende node fetch-archive
    """
    from node.operator.connection import connect

    with connect(home) as client:
        fetched = client.fetch_archive()
    lines = [f"{fetched.batches} batches fetched into {home.archive}; {fetched.missing} are at no member that answers."]
    emit({"batches": fetched.batches, "missing": fetched.missing}, lines, as_json)


def verify_ledger(home: NodeHome) -> Audit:
    """Verify the whole ledger of a home whose node does not run. Raises: UserError when it does, or for a problem."""
    from node.auditing import Audit
    from node.files import lock_directory
    from node.pruning import iterate_archive
    from node.storage.store import Store

    _, founded = home.load_federation()
    with lock_directory(home.path, "allmende node"):
        store = Store.open(home.ledger, founded.charter.federation)
        try:
            examination = Audit(founded.charter)
            batches = chain(iterate_archive(home.archive), store.iterate_batches())
            with show_progress(batches, "Verifying") as shown:
                for encoded in shown:
                    examination.take(encoded)
            examination.finish()
            is_late = store.begins_late
        finally:
            store.close()
    if examination.problems:
        hint = " (old batches come back with `allmende node fetch-archive`)" if is_late else ""
        raise UserError(f"{len(examination.problems)} problems, the first: {examination.problems[0]}{hint}")
    return examination
