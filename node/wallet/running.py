"""A job from its quote to its end, on one donor after another when it must be: the steps of `jobs`, `following` and
`retrying` in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.errors import UserError
from node.wallet.calling import Line
from node.wallet.following import Follower, Show, Tell
from node.wallet.job_ends import is_let_down
from node.wallet.job_records import (
    WalletJob,
    drop_inputs,
    find_signed_hold,
    get_checkpoint_path,
    load_job,
    remove_job,
)
from node.wallet.job_turns import take_note, take_turn
from node.wallet.jobs import Choice, Connect, JobPlan, hold_job, open_job, resume_job, start_job
from node.wallet.retrying import collect_inputs, list_runs, plan_retry
from protocol.conversation import Cancel
from protocol.credits import format_credits
from protocol.metering import JobState

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet


class Watcher(NamedTuple):
    """How a run is shown while it goes on."""

    show_log: Show = lambda _: None
    tell: Tell = lambda _: None
    look: Callable[[WalletJob], None] = lambda _: None
    """Called between messages, with the job as it stands."""


def run_to_end(wallet: Wallet, key: Ed25519PrivateKey, job: WalletJob, connect: Connect, watcher: Watcher) -> None:
    """Pay for a quoted job, start it, and follow it until it is settled. Raises: UserError; Unreachable."""
    start(wallet, key, job, connect, watcher, lambda wallet, job: _follow(wallet, job, connect, watcher))


def start(
    wallet: Wallet,
    key: Ed25519PrivateKey,
    job: WalletJob,
    connect: Connect,
    watcher: Watcher,
    then: Callable[[Wallet, WalletJob], None],
) -> None:
    """Pay for a quoted job and start it; one that can't be paid for is forgotten. `then` is what is done with it before
    another command may speak for it.

    Raises: UserError; Unreachable.
    """
    assert job.needs is not None
    with take_turn(wallet, job.job_id):
        try:
            hold_job(wallet, key, job, job.needs)
        except UserError:
            if find_signed_hold(wallet, job) is None:
                remove_job(wallet, job)  # nothing was signed, and its inputs may hold secrets
            raise
        watcher.tell(f"{format_credits(job.decode_quote(wallet).amount_max)} credits are put aside")
        start_job(wallet, job, connect)
        then(wallet, job)


def go_on(wallet: Wallet, job_id: str, connect: Connect, watcher: Watcher) -> WalletJob:
    """Take up a job that an earlier command left, and follow it to its end. Signs no record.

    Raises: UserError when another command follows it; Unreachable.
    """
    with take_turn(wallet, job_id):
        job = load_job(wallet, job_id)
        if not job.is_over:
            resume_job(wallet, job, connect)
            _follow(wallet, job, connect, watcher)
    return job


def cancel_job(wallet: Wallet, job_id: str, reason: str, connect: Connect, watcher: Watcher) -> WalletJob:
    """Have a job stopped that no other command follows, and see it to its end: the last reading wants an answer.

    A job that was paid for and never started is started first: only a donor that knows of the hold can give it back.

    Raises: UserError when another command follows it, or it was never paid for; Unreachable.
    """
    with take_turn(wallet, job_id):
        job = load_job(wallet, job_id)
        if not job.has_ended:
            resume_job(wallet, job, connect)
            Line(wallet, job, connect).say(Cancel(reason))
        if not job.is_over:
            _follow(wallet, job, connect, watcher)
    return job


def _follow(wallet: Wallet, job: WalletJob, connect: Connect, watcher: Watcher) -> None:
    def beat() -> None:
        reason = take_note(wallet, job)
        if reason is not None and not job.has_ended:
            watcher.tell("another command asks to stop the job: passed on to the donor")
            Line(wallet, job, connect).say(Cancel(reason))
        watcher.look(job)

    for run in list_runs(wallet, job)[:-1]:
        drop_inputs(wallet, run)  # this run has its own
    Follower(wallet, job, connect, watcher.show_log, watcher.tell, beat).follow()


def retry_to_end(
    wallet: Wallet,
    key: Ed25519PrivateKey,
    job: WalletJob,
    retries: int,
    choice: Choice,
    connect: Connect,
    watcher: Watcher,
) -> WalletJob:
    """While donors let the job down, go on with others, at most `retries` times; returns the last run.

    When there is nothing to go on with, that is told, and the run that ended is the last.
    """
    for _ in range(retries):
        if not is_let_down(wallet, job):
            break
        try:
            plan = plan_retry(wallet, job, choice)
            following = open_retry(wallet, job, plan, connect, watcher.tell)
        except UserError as error:
            watcher.tell(f"not gone on with elsewhere: {error}")
            break
        job = following
        run_to_end(wallet, key, job, connect, watcher)
    return job


def open_retry(wallet: Wallet, job: WalletJob, plan: JobPlan, connect: Connect, tell: Tell) -> WalletJob:
    """The next run of a job, quoted."""
    source = "its last checkpoint" if get_checkpoint_path(wallet, job).exists() else "the start: there is no checkpoint"
    tell(f"going on from {source}; asking {plan.priced.offer.machine} for a quote")
    following = open_job(wallet, plan, connect, collect_inputs(wallet, job), tell)
    tell(f"job {following.job_id} goes on with {job.job_id} on {following.decode_offer(wallet).machine}")
    return following


def has_succeeded(wallet: Wallet, job: WalletJob) -> bool:
    """True when the job came to its end with exit status 0."""
    receipt = job.decode_receipt(wallet)
    return receipt is not None and receipt.state is JobState.DONE
