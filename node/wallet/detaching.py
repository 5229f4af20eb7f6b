"""Leaving a running job to the home node, so that the computer may be switched off, and taking it back later.

The node answers the donor's meter with the job's own key, within the limit and the time that the wallet names, and is
trusted with that much (spec 12.10). The wallet writes down that the job is away before it hands it over, and that it is
back after the node said that it stopped: the two never speak at the same time. What happened meanwhile the wallet reads
again in the donor's own letters, opens the results with a key that the node never had, and checks everything by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from node import job_api
from node.connections import is_loopback
from node.errors import Unreachable, UserError
from node.terminal import format_moment
from node.wallet.job_records import WalletJob, save_job
from protocol.conversation import compute_metering_ticket
from protocol.countersigning import find_saved_tick
from protocol.credits import format_credits
from protocol.errors import Rejected
from protocol.metering import decode_tick

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet


def describe_trust(wallet: Wallet, job: WalletJob) -> list[str]:
    """What the person risks, in two plain lines."""
    amount = format_credits(job.decode_quote(wallet).amount_max)
    return [
        f"The node {wallet.node_url} may agree to at most {amount} credits for this job on your behalf, until "
        f"{format_moment(job.detached_until_seconds)}, and you trust it with that.",
        f"It can't read your results. `allmende job attach {job.job_id}` takes the job back and shows how it went.",
    ]


PAUSES_SECONDS = 7 * 24 * 3600
"""How much longer than its wall time a job may take: a machine that somebody uses by day pauses it."""


def check_way_is_private(wallet: Wallet) -> None:
    """Raises: UserError unless the job's key would travel where nobody else can read it."""
    parts = urlsplit(wallet.node_url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise UserError(
            f"{wallet.node_url} is not encrypted, and the job's key would be read on the way: use an https:// address "
            "of your node, or run without --detach"
        )


def hand_over(wallet: Wallet, job: WalletJob) -> None:
    """Leave the job's meter to the wallet's node. Repeating it changes nothing.

    Raises: UserError when the node won't do it; then the wallet has to stay. Unreachable when nobody knows whether it
    does: `take_back` finds out.
    """
    check_way_is_private(wallet)
    if not job.is_detached:
        job.detached_turns += 1
        job.is_detached = True
        job.detached_until_seconds = _compute_expiry(wallet, job)
        save_job(wallet, job)
    try:
        wallet.client.post_metering(_make_order(wallet, job))
    except Unreachable:
        raise
    except UserError as error:
        job.is_detached = False
        save_job(wallet, job)
        raise UserError(f"your node does not take the job over, so keep watching it here: {error}") from error


def take_back(wallet: Wallet, job: WalletJob) -> None:
    """Let the node stop, and go on from where it came to. Does nothing for a job that is here.

    An order that the node has never seen is handed over first: one that is still on its way can do nothing later.
    Raises: Unreachable; then the job stays with the node. UserError when the node forgot it.
    """
    if not job.is_detached:
        return
    ticket = compute_metering_ticket(job.meter_seed)
    metered = wallet.client.take_metering_back(ticket, job.detached_turns)
    if metered is None:
        metered = _take_back_unseen(wallet, job, ticket)
    if metered is not None:
        _take_over(job, metered)
    job.is_detached = False
    save_job(wallet, job)


def _take_back_unseen(wallet: Wallet, job: WalletJob, ticket: bytes) -> job_api.Metered | None:
    try:
        wallet.client.post_metering(_make_order(wallet, job))
    except Unreachable:
        raise
    except (UserError, Rejected):
        return None  # refused, now as before
    return wallet.client.take_metering_back(ticket, job.detached_turns)


def _take_over(job: WalletJob, metered: job_api.Metered) -> None:
    """Go on after the node's last number and tick. The place in the donor's letters stays where the wallet was: it
    reads them again, for the log and for all that the node could not open."""
    job.sent = max(job.sent, metered.sent)
    known = set(job.ticks)
    fresh = {encoded: decode_tick(encoded).sequence for encoded in (metered.saved, metered.last) if encoded}
    job.ticks += sorted((encoded for encoded in fresh if encoded not in known), key=fresh.__getitem__)
    if metered.saved and metered.saved not in known:
        job.checkpoint_wanted = decode_tick(metered.saved).checkpoint
    job.metered_receipt, job.detail = metered.receipt, job.detail or metered.detail
    if metered.dispute:
        job.dispute = job.dispute or f"your node did not agree: {metered.dispute}"


def _compute_expiry(wallet: Wallet, job: WalletJob) -> int:
    quote = job.decode_quote(wallet)
    return wallet.now() + quote.wall_seconds + quote.grace_seconds + PAUSES_SECONDS


def _make_order(wallet: Wallet, job: WalletJob) -> job_api.MeteringOrder:
    ticks = job.list_ticks()
    saved = find_saved_tick(ticks)
    return job_api.MeteringOrder(
        turn=job.detached_turns,
        offer=job.offer,
        request=job.request,
        quote=job.quote,
        hold_receipt=job.hold_receipt,
        meter_seed=job.meter_seed,
        seal_seed=job.seal_seed,
        started_seconds_ago=max(0, wallet.now() - job.started_at_seconds),
        amount_max=job.decode_quote(wallet).amount_max,
        expires_seconds=job.detached_until_seconds,
        sent=job.sent,
        after=job.after,
        received=job.received,
        last=job.ticks[-1] if job.ticks else b"",
        saved=saved.encode() if saved else b"",
    )
