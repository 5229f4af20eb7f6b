"""The command that takes back what was put aside for a job whose donor never settled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from node.terminal import emit, explain_interruption
from node.wallet.cli_unlock import EXIT_NOT_YET, tell_lost
from node.wallet.options import Signing, signing_options, wait_option

if TYPE_CHECKING:
    from node.wallet.job_records import WalletJob
    from node.wallet.reclaiming import Reclaimed
    from node.wallet.wallet import Wallet


@click.command()
@click.argument("job_id", metavar="ID")
@wait_option
@signing_options
@click.pass_context
def reclaim(context: click.Context, job_id: str, signing: Signing, wait_seconds: float) -> None:
    """Take back what was put aside for a job whose donor never settled.

    First the wallet asks for it on the ledger. From then on the donor has the time that both agreed on (its grace) to
    settle after all, counted while the members' nodes run. When that is over, run the command again, and everything
    comes back. A settlement that comes first wins. Exit status 3 while there is still something to wait for.

    Example: allmende job reclaim 3fa2c81b90
    """
    from node.wallet.job_ends import look_for_end
    from node.wallet.job_records import load_job
    from node.wallet.reclaiming import Reclaimed, ReclaimState, check_reclaimable, reclaim_job

    with signing.open_wallet() as wallet:
        job = load_job(wallet, job_id)
        check_reclaimable(job)
        if look_for_end(wallet, job):
            done = Reclaimed(ReclaimState(job.state))
        else:
            question = _describe_plan(wallet, job)
            if signing.dry_run:
                emit(
                    {"dry_run": True, "job": job.job_id, "state": job.state},
                    [f"It would be asked: {question}"],
                    signing.as_json,
                )
                return
            signing.confirm(question)
            key = wallet.unlock(signing.passphrase)
            with explain_interruption(f"run `allmende job reclaim {job.job_id}` again: it goes on where it was"):
                done = reclaim_job(wallet, key, job, wait_seconds)
        tell_lost(done.lost)
        document = {"job": job.job_id, "state": str(done.state), "seconds_left": done.seconds_left}
        emit(
            document | {"paid_millicredits": job.paid if job.is_over else None},
            _iterate_end(wallet, job, done),
            signing.as_json,
        )
        if not job.is_over:
            context.exit(EXIT_NOT_YET)


def _describe_plan(wallet: Wallet, job: WalletJob) -> str:
    from protocol.credits import format_credits

    quote = job.decode_quote(wallet)
    running = "" if job.has_ended else f" The job may still run ({job.state})."
    return (
        f"Ask for the {format_credits(quote.amount_max)} credits of job {job.job_id} back?{running} "
        f"Its donor can settle within {quote.grace_seconds} s."
    )


def _iterate_end(wallet: Wallet, job: WalletJob, done: Reclaimed) -> Iterator[str]:
    from protocol.credits import format_credits

    amount = job.decode_quote(wallet).amount_max
    again = f"run `allmende job reclaim {job.job_id}` again"
    left = "some" if done.seconds_left is None else f"about {done.seconds_left}"
    texts: dict[str, str] = {
        "WAITING": f"Asked for. Not yet: {left} seconds of the members' running time are left in which the donor may "
        f"settle; {again} then.",
        "SENT": f"On its way: some members count less running time than the node; {again} in a moment.",
        "CONTESTED": "The donor has signed a settlement of the same job, and neither is final yet. Both have turns to "
        f"decide it: {again}, it goes on.",
        "RECLAIMED": f"Reclaimed: {format_credits(amount)} credits are back.",
        "SETTLED": f"The donor has settled: {format_credits(max(0, job.paid))} credits paid, "
        f"{format_credits(amount - max(0, job.paid))} came back.",
    }
    yield texts[done.state]
