"""Going on with another donor when one let a job down: from the last checkpoint, for what is left of the credits.

A donor that fails or takes its machine back is paid up to the last checkpoint, and the wallet holds that. The next run
starts from it, on a machine of another donor, with the rest of the time. All runs together take no more than the person
agreed to for the first one: a hold that has not ended counts in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from node.errors import UserError
from node.wallet.checkpoints import compute_saved_ms
from node.wallet.job_ends import is_let_down
from node.wallet.job_inputs import JobInputs, add_checkpoint
from node.wallet.job_records import (
    STARTED,
    WalletJob,
    get_checkpoint_path,
    get_inputs_path,
    list_jobs,
)
from node.wallet.jobs import Choice, JobPlan, plan_job
from protocol.metering import JobState, compute_affordable_ms

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet

NOT_RUNNING = frozenset({JobState.HELD, STARTED, JobState.STAGING})


def list_runs(wallet: Wallet, job: WalletJob) -> list[WalletJob]:
    """The job's run and all before it, the first one first."""
    known = {one.job_id: one for one in list_jobs(wallet)}
    runs = [job]
    while runs[0].retry_of in known:
        runs.insert(0, known[runs[0].retry_of])
    return runs


def find_retry(jobs: Iterable[WalletJob], job: WalletJob) -> WalletJob | None:
    """The job that goes on with this one."""
    return next((one for one in jobs if one.retry_of == job.job_id), None)


def compute_spent(wallet: Wallet, runs: Iterable[WalletJob]) -> int:
    """Millicredits that these runs have taken, or may still take."""
    spent = 0
    for run in runs:
        if run.is_over:
            spent += max(0, run.paid)
        elif run.hold:
            spent += run.decode_quote(wallet).amount_max
    return spent


def check_retryable(wallet: Wallet, job: WalletJob) -> None:
    """Raise UserError that says why there is nothing to go on with."""
    if (later := find_retry(list_jobs(wallet), job)) is not None:
        raise UserError(f"job {job.job_id} goes on already, as job {later.job_id}")
    if not is_let_down(wallet, job):
        if job.has_ended:
            raise UserError(f"job {job.job_id} has ended by itself ({job.state}): run it anew")
        if job.state not in NOT_RUNNING:
            raise UserError(f"job {job.job_id} runs ({job.state}): cancel it first, or wait")
    if job.needs is None or not get_inputs_path(wallet, job).exists():
        raise UserError(f"the inputs of job {job.job_id} are gone: run it anew from its job file")


def plan_retry(wallet: Wallet, job: WalletJob, choice: Choice) -> JobPlan:
    """Where the job would go on, and for how much. Signs nothing.

    Raises: UserError when there is nothing to go on with, no other donor can do it, or the credits are used up.
    """
    check_retryable(wallet, job)
    needs = job.needs
    assert needs is not None
    assert needs.amount_max is not None
    runs = list_runs(wallet, job)
    spent = compute_spent(wallet, runs)
    rate = job.decode_quote(wallet).rate
    affordable = compute_affordable_ms(max(0, needs.amount_max - spent), rate) // 1000
    saved = -(-compute_saved_ms(job) // 1000) if get_checkpoint_path(wallet, job).exists() else 0
    seconds = min(max(1, needs.wall_seconds - saved), affordable)
    if seconds < 1:
        raise UserError("the credits that this job may take are used up, or still held by a run that has not ended")
    excluded = choice.excluded | {run.decode_offer(wallet).donor_key for run in runs}
    return plan_job(wallet, replace(needs, wall_seconds=seconds), choice._replace(excluded=excluded), spent)


def collect_inputs(wallet: Wallet, job: WalletJob) -> JobInputs:
    """The inputs of the next run: those of this one, and the last checkpoint that the wallet holds."""
    assert job.needs is not None
    bundle = get_inputs_path(wallet, job).read_bytes()
    checkpoint = get_checkpoint_path(wallet, job)
    if checkpoint.exists():
        bundle = add_checkpoint(bundle, checkpoint.read_bytes(), job.needs.disk_bytes)
    return JobInputs(job.name, bundle, job.source_digest, tuple(job.secrets), job.path, job.job_id)
