"""The command that frees an account by hand, and how an unlock is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from node.terminal import emit
from node.wallet.options import Signing, signing_options, wait_option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from node.wallet.journal import Entry
    from node.wallet.unlocking import Freed, NextSlot

EXIT_NOT_YET = 3
NOTHING_TO_FREE = "Nothing has to be unlocked: the account is free for its next payment."


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
@click.option(
    "--fill", is_flag=True, help="Fill the next place even if nothing claims it: after a restore that broke off."
)
@wait_option
@signing_options
@click.pass_context
def unlock(context: click.Context, fill: bool, signing: Signing, wait_seconds: float) -> None:
    """Free the account when several payments were signed for its next place, or one never becomes final.

    An account's records have numbered places, each for one of them. Payments free theirs by themselves. Either a
    record that is known becomes final there, or a payment of 0.001 credits to yourself; nothing else that was signed
    for the place, here or on another machine, ever will. When nothing claims it, nothing is signed.

    Example: allmende wallet unlock
    """
    from node.wallet.sending import find_pending
    from node.wallet.unlocking import describe_freed, free_slot, list_lost, look_at_next_slot

    with signing.open_wallet() as wallet:
        pending = find_pending(wallet)
        slot = look_at_next_slot(wallet)
        document = {"claims": slot.claims_count, "attempts_before": slot.found.attempt}
        if not (slot.is_claimed or fill):
            tell_lost(list_lost(wallet, pending))
            emit(document | describe_document(None), [NOTHING_TO_FREE], signing.as_json)
            return
        if signing.dry_run:
            emit({"dry_run": True, **document}, [f"{_describe_plan(slot)} Nothing was signed."], signing.as_json)
            return
        signing.confirm(f"{_describe_plan(slot)} Go on?")
        freed = free_slot(wallet, wallet.unlock(signing.passphrase), slot, wait_seconds)
        tell_lost(list_lost(wallet, pending))
        emit(document | describe_document(freed), [describe_freed(freed)], signing.as_json)
        if freed is not None and freed.record is None:
            context.exit(EXIT_NOT_YET)


def _describe_plan(slot: NextSlot) -> str:
    """What is there, and what freeing it does."""
    count = slot.claims_count
    claims = f"{count} record{' claims' if count == 1 else 's claim'}" if count else "Nothing that is known here claims"
    before = f" (attempts to free it so far: {slot.found.attempt})" if slot.found.attempt else ""
    own = f": {'; '.join(entry.purpose for entry in slot.own)}" if slot.own else ""
    return (
        f"{claims} this account's place {slot.sequence}{before}{own}. The members are asked to let one record have it: "
        "one of these if the rules still allow it, else a payment of 0.001 credits to yourself."
    )
