"""A job as a person and as a program sees it: one line in a list, all that is known of it, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from node.wallet.job_ends import is_let_down
from node.wallet.job_records import WalletJob, get_checkpoint_path, get_inputs_path
from node.wallet.retrying import find_retry
from protocol.credits import format_credits
from protocol.quotes import NO_EXIT_STATUS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from node.wallet.wallet import Wallet


def describe_job(wallet: Wallet, job: WalletJob, jobs: Iterable[WalletJob] = ()) -> dict[str, Any]:
    """All that is known; `jobs` are those among which the run after this one is looked for."""
    offer = job.decode_offer(wallet)
    made = job.decode_receipt(wallet)
    later = find_retry(jobs, job)
    return {
        "job": job.job_id,
        "name": job.name,
        "state": job.shown_state,
        "is_detached": job.is_detached,
        "ended": made.state.value if made else None,
        "exit_status": made.exit_status if made and made.exit_status != NO_EXIT_STATUS else None,
        "machine": offer.machine,
        "node": offer.node_url,
        "hold": job.hold.hex() or None,
        "held_millicredits": job.decode_quote(wallet).amount_max if job.quote and job.hold else None,
        "metered_millicredits": job.list_ticks()[-1].amount if job.ticks else 0,
        "paid_millicredits": job.paid if job.paid >= 0 else None,
        "millicredits_max": job.needs.amount_max if job.needs else None,
        "is_agreed": bool(made and made.meter_signature),
        "dispute": job.dispute or None,
        "detail": job.detail or None,
        "secrets": job.secrets,
        "retry_of": job.retry_of or None,
        "retried_as": later.job_id if later else None,
        "recheck_of": job.recheck_of or None,
        "has_inputs": get_inputs_path(wallet, job).exists(),
        "has_checkpoint": get_checkpoint_path(wallet, job).exists(),
    }


def iterate_job(document: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    for name, value in document.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        yield f"{name.replace('_', ' ') + ':':<22} {shown}"


def iterate_jobs(wallet: Wallet, jobs: list[WalletJob]) -> Iterator[str]:
    """A table, newest first; a run that goes on with another one names it."""
    if not jobs:
        yield "No jobs yet: `allmende job run FILE` makes one."
        return
    yield f"{'ID':<10} {'NAME':<20} {'STATE':<12} {'ENDED':<13} {'PAID':>12}  {'GOES ON WITH':<12} MACHINE"
    for job in jobs:
        paid = format_credits(job.paid) if job.paid >= 0 else "-"
        made = job.decode_receipt(wallet)
        ended = made.state.value if made else "-"
        yield (
            f"{job.job_id:<10} {job.name[:20]:<20} {job.shown_state:<12} {ended:<13} {paid:>12}  "
            f"{job.retry_of or '-':<12} {job.decode_offer(wallet).machine}"
        )


def iterate_end(wallet: Wallet, job: WalletJob, to: Path | None) -> Iterator[str]:
    """What it cost, and what can be done now."""
    quote = job.decode_quote(wallet)
    back = format_credits(quote.amount_max - max(0, job.paid))
    if job.reclaim_receipt:
        yield f"Reclaimed: {back} credits came back."
    else:
        yield f"Settled: {format_credits(max(0, job.paid))} credits paid, {back} came back."
    if job.dispute:
        yield f"Not agreed to: {job.dispute}"
    if is_let_down(wallet, job) and get_inputs_path(wallet, job).exists():
        yield f"Go on with another donor: allmende job retry {job.job_id}"
    if job.reclaim_receipt:
        return
    made = job.decode_receipt(wallet)
    if to is None and made is not None and made.outputs:
        yield f"Results: allmende job fetch {job.job_id}"
    yield f"Proof: allmende job receipt {job.job_id}"
