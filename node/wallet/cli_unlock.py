"""The command that frees an account by hand, and how an unlock is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.terminal import emit, home_option, json_option
from node.wallet.options import make_passphrase, node_option, passphrase_option, wait_option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from node.wallet.journal import Entry
    from node.wallet.unlocking import Freed

EXIT_NOT_YET = 3


def describe_document(freed: Freed | None) -> dict[str, Any]:
    """How an unlock ended, for programs."""
    from node.addresses import Kind, encode_address

    record = freed.record if freed else None
    return {
        "slot": freed.sequence if freed else None,
        "final": encode_address(Kind.RECORD, record.id) if record else None,
        "attempts": freed.attempts if freed else 0,
    }


def tell_lost(entries: Iterable[Entry]) -> None:
    """Name what an earlier command wanted and can never get any more."""
    for entry in entries:
        click.echo(f"Not done: {entry.purpose} ({entry.reason}). Run it again if it is still wanted.", err=True)


@click.command()
@home_option
@node_option
@passphrase_option
@wait_option
@json_option
@click.pass_context
def unlock(
    context: click.Context,
    home: Path,
    node_url: str | None,
    passphrase_file: Path | None,
    wait_seconds: float,
    as_json: bool,
) -> None:
    """Free the account's next slot by hand, when several records claim it or one never becomes final.

    Payments do this by themselves. Either a record that is known becomes final there, or a payment of 0.001 credits
    to yourself; nothing else that was signed for the slot, here or on another machine, ever will.
    """
    from node.wallet.sending import find_pending
    from node.wallet.unlocking import describe_freed, list_lost, unlock_account
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        pending = find_pending(wallet)
        found = wallet.client.get_slot(wallet.address)
        if not as_json:
            click.echo(
                f"Slot {found.sequence}: {len(found.records)} records claim it, {found.attempt} attempts so far.",
                err=True,
            )
        freed = unlock_account(wallet, wallet.unlock(make_passphrase(passphrase_file)), wait_seconds)
        tell_lost(list_lost(wallet, pending))
        document = {"claims": len(found.records), "attempts_before": found.attempt} | describe_document(freed)
        emit(document, [describe_freed(freed)], as_json)
        if freed is not None and freed.record is None:
            context.exit(EXIT_NOT_YET)
