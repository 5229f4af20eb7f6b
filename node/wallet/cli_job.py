"""The commands of a job: plan it, run it, watch it, go on with it, fetch what it made, keep the proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.errors import UserError
from node.terminal import confirm, emit, explain_interruption, home_option, json_option, make_printable, yes_option
from node.wallet.cli_detach import attach, detach
from node.wallet.cli_dispute import dispute
from node.wallet.cli_job_checks import canary, recheck
from node.wallet.cli_reclaim import reclaim
from node.wallet.options import (
    Signing,
    choice_options,
    make_passphrase,
    node_option,
    passphrase_option,
    signing_options,
)

if TYPE_CHECKING:
    from node.wallet.job_records import WalletJob
    from node.wallet.running import Watcher
    from node.wallet.wallet import Wallet

JOB_FILE = click.Path(dir_okay=False, path_type=Path)
EXIT_JOB_FAILED = 1

to_option = click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), help="Write the results there at the end."
)
retries_option = click.option(
    "--retries",
    type=click.IntRange(0, 20),
    default=2,
    show_default=True,
    help="How often to go on with another donor when one fails or takes its machine back.",
)


@click.group()
def group() -> None:
    """Plan, run, watch and fetch computations."""


for command in (reclaim, recheck, canary, detach, attach, dispute):
    group.add_command(command)


@group.command()
@click.argument("file", type=JOB_FILE)
@choice_options
@home_option
@node_option
@json_option
def plan(file: Path, donor: str, prefer: str, home: Path, node_url: str | None, as_json: bool) -> None:
    """Show where the job in FILE would run, what it could cost, and what could go wrong. Nothing is spent or signed.

    Example: allmende job plan train.yaml --prefer reliability
    """
    from node.wallet.job_spec import read_job_file
    from node.wallet.jobs import Choice, plan_job
    from node.wallet.matching import Preference
    from node.wallet.plan_view import describe_plan, iterate_plan
    from node.wallet.wallet import Wallet

    spec = read_job_file(file)
    with Wallet.open(home, node_url) as wallet:
        made = plan_job(wallet, spec, Choice(donor, Preference(prefer)))
        document = describe_plan(wallet, made, spec.name, spec.secrets)
        emit(document, iterate_plan(wallet, made, spec.name, spec.secrets), as_json)


@group.command()
@click.argument("file", type=JOB_FILE)
@choice_options
@retries_option
@home_option
@node_option
@passphrase_option
@to_option
@click.option("--detach", "is_left", is_flag=True, help="Leave the running job to your node, and end this command.")
@yes_option
@json_option
@click.pass_context
def run(
    context: click.Context,
    file: Path,
    donor: str,
    prefer: str,
    retries: int,
    home: Path,
    node_url: str | None,
    passphrase_file: Path | None,
    to: Path | None,
    is_left: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Run the job in FILE on a donated machine, and watch it to its end.

    The most that it can cost is put aside first; what is not used comes back when it ends. When a donor fails or takes
    its machine back, the job goes on elsewhere from its last checkpoint, for no more credits in all. Keep this command
    running: it agrees to the meter's readings, and a donor stops a job whose payer falls silent; with --detach your
    node does that. After an interruption go on with `allmende job logs -f`. Exit status 1 when the job itself failed.

    Example: allmende job run train.yaml --to results
    """
    from node.wallet.calling import Connections
    from node.wallet.detaching import check_way_is_private, describe_trust, hand_over
    from node.wallet.job_spec import read_job_file
    from node.wallet.job_view import describe_job
    from node.wallet.jobs import Choice, open_job, plan_job
    from node.wallet.matching import Preference
    from node.wallet.plan_view import iterate_plan
    from node.wallet.running import retry_to_end, run_to_end, start
    from node.wallet.wallet import Wallet
    from protocol.credits import format_credits

    spec = read_job_file(file)
    check_target(to)
    with Wallet.open(home, node_url) as wallet, Connections(wallet) as connect:
        if is_left:
            check_way_is_private(wallet)
        choice, watcher = Choice(donor, Preference(prefer)), make_watcher(wallet, as_json)
        made = plan_job(wallet, spec, choice)
        if not yes:
            for line in iterate_plan(wallet, made, spec.name, spec.secrets):
                click.echo(make_printable(line), err=True)
        confirm(f"Put up to {format_credits(made.amount_max)} credits aside and run it?", yes)
        key = wallet.unlock(make_passphrase(passphrase_file))
        watcher.tell(f"asking {made.priced.offer.machine} for a quote")
        job = open_job(wallet, made, connect, tell=watcher.tell)
        watcher.tell(f"job {job.job_id}: {job.decode_offer(wallet).machine} has given a quote")
        with explain_interruption(_explain_going_on(job)):
            if is_left:
                start(wallet, key, job, connect, watcher, then=hand_over)
                emit(describe_job(wallet, job), describe_trust(wallet, job), as_json)
                return
            run_to_end(wallet, key, job, connect, watcher)
            job = retry_to_end(wallet, key, job, retries, choice, connect, watcher)
        _finish(context, wallet, job, as_json, to)


@group.command()
@click.argument("job_id", metavar="ID")
@choice_options
@retries_option
@to_option
@signing_options
@click.pass_context
def retry(
    context: click.Context, job_id: str, donor: str, prefer: str, retries: int, to: Path | None, signing: Signing
) -> None:
    """Go on with a job that its donor did not finish: elsewhere, from the last checkpoint, for what is left of its
    credits.

    `job run` does it by itself; this is for a job that was not followed, or whose donor never started it.

    Example: allmende job retry 3fa2c81b90
    """
    from node.wallet.calling import Connections
    from node.wallet.job_ends import look_for_end
    from node.wallet.job_records import load_job
    from node.wallet.jobs import Choice
    from node.wallet.matching import Preference
    from node.wallet.plan_view import describe_plan, iterate_plan
    from node.wallet.retrying import plan_retry
    from node.wallet.running import open_retry, retry_to_end, run_to_end
    from protocol.credits import format_credits

    check_target(to)
    with signing.open_wallet() as wallet, Connections(wallet) as connect:
        choice, watcher = Choice(donor, Preference(prefer)), make_watcher(wallet, signing.as_json)
        job = load_job(wallet, job_id)
        look_for_end(wallet, job)
        made = plan_retry(wallet, job, choice)
        secrets = tuple(job.secrets)
        if signing.dry_run:
            document = {"dry_run": True} | describe_plan(wallet, made, job.name, secrets)
            emit(document, iterate_plan(wallet, made, job.name, secrets), signing.as_json)
            return
        signing.confirm(f"Put up to {format_credits(made.amount_max)} credits aside and go on with {job.job_id}?")
        key = wallet.unlock(signing.passphrase)
        job = open_retry(wallet, job, made, connect, watcher.tell)
        with explain_interruption(_explain_going_on(job)):
            run_to_end(wallet, key, job, connect, watcher)
            job = retry_to_end(wallet, key, job, retries, choice, connect, watcher)
        _finish(context, wallet, job, signing.as_json, to)


@group.command("ls")
@home_option
@json_option
def list_command(home: Path, as_json: bool) -> None:
    """List this wallet's jobs, newest first."""
    from node.wallet.job_records import list_jobs
    from node.wallet.job_view import describe_job, iterate_jobs
    from node.wallet.wallet import Wallet

    with Wallet.open(home) as wallet:
        jobs = list_jobs(wallet)
        document = {"jobs": [describe_job(wallet, job, jobs) for job in jobs]}
        emit(document, iterate_jobs(wallet, jobs), as_json)


@group.command()
@click.argument("job_id", metavar="ID")
@home_option
@json_option
def show(job_id: str, home: Path, as_json: bool) -> None:
    """Show one job: where it runs, what it costs, how it ended, and which other runs belong to it."""
    from node.wallet.job_records import list_jobs, load_job
    from node.wallet.job_view import describe_job, iterate_job
    from node.wallet.retrying import list_runs
    from node.wallet.wallet import Wallet

    with Wallet.open(home) as wallet:
        job = load_job(wallet, job_id)
        document = describe_job(wallet, job, list_jobs(wallet))
        document["runs"] = [run.job_id for run in list_runs(wallet, job)]
        emit(document, iterate_job(document), as_json)


@group.command()
@click.argument("job_id", metavar="ID")
@home_option
@node_option
@click.option("-f", "--follow", is_flag=True, help="Go on watching (and paying) to the end.")
@json_option
@click.pass_context
def logs(context: click.Context, job_id: str, home: Path, node_url: str | None, follow: bool, as_json: bool) -> None:
    """Print what the job has written so far.

    Example: allmende job logs -f 3fa2c81b90
    """
    from node.wallet.calling import Connections
    from node.wallet.job_progress import JobScreen
    from node.wallet.job_records import get_job_directory, load_job
    from node.wallet.running import go_on
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet, Connections(wallet) as connect:
        job = load_job(wallet, job_id)
        path = get_job_directory(wallet, job) / "log"
        if path.exists() and not as_json:
            JobScreen(wallet).show_log(path.read_bytes())
        if follow and not job.is_over:
            with explain_interruption(_explain_going_on(job)):
                job = go_on(wallet, job.job_id, connect, make_watcher(wallet, as_json))
            _finish(context, wallet, job, as_json, None)


@group.command()
@click.argument("job_id", metavar="ID")
@home_option
@node_option
@click.option("--reason", default="", help="A word for the donor.")
@yes_option
@json_option
def cancel(job_id: str, home: Path, node_url: str | None, reason: str, yes: bool, as_json: bool) -> None:
    """Have the donor stop the job. The time until then is charged.

    When another command follows the job, that one passes it on; else this one sees the job to its end.

    Example: allmende job cancel 3fa2c81b90
    """
    from node.wallet.calling import Connections
    from node.wallet.job_records import load_job
    from node.wallet.job_turns import REASON_CHARACTERS_MAX, leave_note, try_turn
    from node.wallet.job_view import describe_job, iterate_end
    from node.wallet.running import cancel_job
    from node.wallet.wallet import Wallet

    reason = reason[:REASON_CHARACTERS_MAX]
    with Wallet.open(home, node_url) as wallet, Connections(wallet) as connect:
        job = load_job(wallet, job_id)
        if job.has_ended:
            raise UserError(f"job {job.job_id} has ended already ({job.state})")
        confirm(f"Stop job {job.job_id} ({job.name})?", yes)
        with try_turn(wallet, job.job_id) as is_free:
            if not is_free:
                leave_note(wallet, job, reason)
        if not is_free:
            text = "Asked to stop; the command that follows the job passes it on within seconds, and shows the end."
            emit(describe_job(wallet, job), [text], as_json)
            return
        with explain_interruption(_explain_going_on(job)):
            job = cancel_job(wallet, job.job_id, reason, connect, make_watcher(wallet, as_json))
        emit(describe_job(wallet, job), iterate_end(wallet, job, None), as_json)


@group.command()
@click.argument("job_id", metavar="ID")
@home_option
@node_option
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="Default: a new folder NAME-ID here.")
@click.option("--checkpoint", is_flag=True, help="The job's last checkpoint instead of its results.")
@json_option
def fetch(job_id: str, home: Path, node_url: str | None, to: Path | None, checkpoint: bool, as_json: bool) -> None:
    """Write the job's results into a folder. They were encrypted to this wallet; nobody else can open them.

    Example: allmende job fetch 3fa2c81b90 --to results
    """
    from node.wallet.calling import Connections
    from node.wallet.following import Follower, unpack_checkpoint, unpack_outputs
    from node.wallet.job_records import load_job
    from node.wallet.job_turns import try_turn
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet, Connections(wallet) as connect:
        job = load_job(wallet, job_id)
        with try_turn(wallet, job.job_id) as is_free:
            if is_free and job.hold and not job.is_over:
                job = load_job(wallet, job.job_id)
                tell = make_watcher(wallet, as_json).tell
                Follower(wallet, job, connect, lambda _: None, tell).follow(is_waiting=False)
        target = to or Path(f"{job.name}-{job.job_id}{'-checkpoint' if checkpoint else ''}")
        check_target(target)
        count = (unpack_checkpoint if checkpoint else unpack_outputs)(wallet, job, target)
        emit({"directory": str(target), "files": count}, [f"{count} files in {target}"], as_json)


@group.command("rm")
@click.argument("job_id", metavar="ID")
@home_option
@yes_option
@json_option
def remove(job_id: str, home: Path, yes: bool, as_json: bool) -> None:
    """Forget a job that is over: its results, checkpoint, log, keys and proof are removed from this machine.

    Example: allmende job rm 3fa2c81b90
    """
    from node.wallet.job_records import load_job, remove_job
    from node.wallet.job_turns import take_turn
    from node.wallet.wallet import Wallet

    with Wallet.open(home) as wallet:
        job = load_job(wallet, job_id)
        confirm(f"Forget job {job.job_id} ({job.name}), with its results and its proof?", yes)
        with take_turn(wallet, job.job_id):
            remove_job(wallet, load_job(wallet, job.job_id))
        emit({"job": job.job_id, "removed": True}, [f"Job {job.job_id} is forgotten."], as_json)


@group.command()
@click.argument("job_id", metavar="ID")
@home_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write OUT.settle, OUT.hold, OUT.job.")
@json_option
def receipt(job_id: str, home: Path, out: Path | None, as_json: bool) -> None:
    """Check the proof of a settled job, offline: what ran, how long, at what price, paid by whom to whom.

    With --out it is written as three files for others; `allmende receipt verify OUT.settle --hold OUT.hold --job
    OUT.job` checks them anywhere.
    """
    from node.files import write_atomically
    from node.wallet.job_receipts import describe_job, verify_job
    from node.wallet.job_records import load_job
    from node.wallet.wallet import Wallet
    from protocol.receipts import verify_receipt

    with Wallet.open(home) as wallet:
        job = load_job(wallet, job_id)
        if job.reclaim_receipt:
            raise UserError(f"job {job.job_id} was never settled: its credits were taken back")
        if not job.settle_receipt or not job.receipt:
            raise UserError(f"job {job.job_id} is not settled yet ({job.state}): `allmende job logs -f {job.job_id}`")
        settle = verify_receipt(wallet.charters, job.settle_receipt).record
        document, lines = describe_job(verify_job(wallet.charters, settle, job.hold_receipt, job.receipt))
        document["paid_millicredits"] = job.paid
        if out is not None:
            parts = (("settle", job.settle_receipt), ("hold", job.hold_receipt), ("job", job.receipt))
            for suffix, content in parts:
                write_atomically(out.with_name(f"{out.name}.{suffix}"), content, 0o644)
                lines.append(f"  written: {out}.{suffix}")
        emit(document, lines, as_json)


# -- shared ---------------------------------------------------------------------------------------------------------


def make_watcher(wallet: Wallet, as_json: bool) -> Watcher:
    """The log goes to standard output, unless that is for JSON; what is told goes to standard error."""
    from node.wallet.job_progress import JobScreen
    from node.wallet.running import Watcher

    screen = JobScreen(wallet)
    return Watcher(tell=screen.tell) if as_json else Watcher(screen.show_log, screen.tell, screen.look)


def check_target(target: Path | None) -> None:
    """Raise UserError unless results can be written there."""
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder: name another one with --to")


def _explain_going_on(job: WalletJob) -> str:
    return (
        f"the job may go on and cost credits; go on watching with `allmende job logs -f {job.job_id}`, or stop it "
        f"with `allmende job cancel {job.job_id}` (`allmende job ls` lists every run)"
    )


def _finish(context: click.Context, wallet: Wallet, job: WalletJob, as_json: bool, to: Path | None) -> None:
    """Write the results, say what it cost, and whether the job did what it should."""
    from node.wallet.following import unpack_outputs
    from node.wallet.job_records import get_outputs_path
    from node.wallet.job_view import describe_job, iterate_end
    from node.wallet.running import has_succeeded

    if to is not None and get_outputs_path(wallet, job).exists():
        click.echo(f"{unpack_outputs(wallet, job, to)} files in {to}", err=True)
    emit(describe_job(wallet, job), iterate_end(wallet, job, to), as_json)
    if not has_succeeded(wallet, job):
        context.exit(EXIT_JOB_FAILED)
