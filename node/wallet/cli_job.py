"""The commands of a job: plan it, run it, watch it, fetch what it made, keep the proof."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.errors import UserError
from node.terminal import confirm, emit, explain_interruption, home_option, json_option, make_printable, yes_option
from node.wallet.cli_dispute import dispute
from node.wallet.cli_reclaim import reclaim
from node.wallet.options import make_passphrase, node_option, passphrase_option

if TYPE_CHECKING:
    from node.wallet.job_records import WalletJob
    from node.wallet.jobs import Connect, JobPlan
    from node.wallet.wallet import Wallet

JOB_FILE = click.Path(dir_okay=False, path_type=Path)
EXIT_JOB_FAILED = 1


@click.group()
def group() -> None:
    """Plan, run, watch and fetch computations."""


group.add_command(reclaim)
group.add_command(dispute)


@group.command()
@click.argument("file", type=JOB_FILE)
@home_option
@node_option
@json_option
def plan(file: Path, home: Path, node_url: str | None, as_json: bool) -> None:
    """Show where the job in FILE would run and what it could cost at most. Nothing is spent or signed.

    Example: allmende job plan train.yaml
    """
    from node.wallet.job_spec import read_job_file
    from node.wallet.jobs import plan_job
    from node.wallet.wallet import Wallet

    spec = read_job_file(file)
    with Wallet.open(home, node_url) as wallet:
        made = plan_job(wallet, spec)
        emit(_describe_plan(wallet, made), _iterate_plan(made), as_json)


@group.command()
@click.argument("file", type=JOB_FILE)
@home_option
@node_option
@passphrase_option
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="Write the results there at the end.")
@yes_option
@json_option
@click.pass_context
def run(
    context: click.Context,
    file: Path,
    home: Path,
    node_url: str | None,
    passphrase_file: Path | None,
    to: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Run the job in FILE on a donated machine, and watch it to its end.

    The most that it can cost is put aside first; what is not used comes back when it ends. Keep this command running:
    it agrees to the meter's readings, and a donor stops a job whose payer falls silent. After an interruption go on
    with `allmende job logs -f`. Exit status 1 when the job itself failed.

    Example: allmende job run train.yaml --to results
    """
    from node.wallet.job_spec import read_job_file
    from node.wallet.jobs import hold_job, open_job, plan_job, start_job
    from node.wallet.wallet import Wallet
    from protocol.credits import format_credits

    spec = read_job_file(file)
    if to is not None:
        _check_target(to)
    with Wallet.open(home, node_url) as wallet, _Connections(wallet) as connect:
        made = plan_job(wallet, spec)
        if not yes:
            for line in _iterate_plan(made):
                click.echo(line, err=True)
        confirm(f"Put {format_credits(made.priced.amount_max)} credits aside and run it?", yes)
        key = wallet.unlock(make_passphrase(passphrase_file))
        _tell(f"asking {made.priced.offer.machine} for a quote")
        job = open_job(wallet, made, connect)
        _tell(f"job {job.job_id}: {made.priced.offer.machine} has given a quote")
        with explain_interruption(
            f"the job may go on and cost credits; go on watching with `allmende job logs -f {job.job_id}`, or stop it "
            f"with `allmende job cancel {job.job_id}`"
        ):
            hold_job(wallet, key, job, spec)
            _tell(f"{format_credits(made.priced.amount_max)} credits are put aside")
            start_job(wallet, job, connect)
            _follow(context, wallet, job, connect, as_json, to)


@group.command("ls")
@home_option
@json_option
def list_command(home: Path, as_json: bool) -> None:
    """List this wallet's jobs, newest first."""
    from node.wallet.job_records import list_jobs
    from node.wallet.wallet import Wallet

    with Wallet.open(home) as wallet:
        jobs = list_jobs(wallet)
        document = {"jobs": [_describe_job(wallet, job) for job in jobs]}
        emit(document, _iterate_jobs(wallet, jobs), as_json)


@group.command()
@click.argument("job_id", metavar="ID")
@home_option
@json_option
def show(job_id: str, home: Path, as_json: bool) -> None:
    """Show one job: where it runs, what it costs, how it ended."""
    from node.wallet.job_records import load_job
    from node.wallet.wallet import Wallet

    with Wallet.open(home) as wallet:
        document = _describe_job(wallet, load_job(wallet, job_id))
        emit(document, (f"{name.replace('_', ' ') + ':':<22} {value}" for name, value in document.items()), as_json)


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
    from node.wallet.job_records import get_job_directory, load_job
    from node.wallet.jobs import resume_job
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet, _Connections(wallet) as connect:
        job = load_job(wallet, job_id)
        path = get_job_directory(wallet, job) / "log"
        if path.exists():
            _show_log(path.read_bytes())
        if follow and not job.is_over:
            resume_job(wallet, job, connect)
            _follow(context, wallet, job, connect, as_json, None)


@group.command()
@click.argument("job_id", metavar="ID")
@home_option
@node_option
@click.option("--reason", default="", help="A word for the donor.")
@yes_option
def cancel(job_id: str, home: Path, node_url: str | None, reason: str, yes: bool) -> None:
    """Ask the donor to stop the job. The time until then is charged."""
    from node.wallet.calling import Line
    from node.wallet.job_records import load_job
    from node.wallet.wallet import Wallet
    from protocol.conversation import Cancel

    with Wallet.open(home, node_url) as wallet, _Connections(wallet) as connect:
        job = load_job(wallet, job_id)
        if job.has_ended:
            raise UserError(f"job {job.job_id} has ended already ({job.state})")
        confirm(f"Stop job {job.job_id} ({job.name})?", yes)
        Line(wallet, job, connect).say(Cancel(reason[:200]))
        click.echo(f"The donor is asked to stop; `allmende job logs -f {job.job_id}` shows the end.")


@group.command()
@click.argument("job_id", metavar="ID")
@home_option
@node_option
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="Default: a new folder NAME-ID here.")
@json_option
def fetch(job_id: str, home: Path, node_url: str | None, to: Path | None, as_json: bool) -> None:
    """Write the job's results into a folder. They were encrypted to this wallet; nobody else can open them."""
    from node.wallet.following import Follower, unpack_outputs
    from node.wallet.job_records import load_job
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet, _Connections(wallet) as connect:
        job = load_job(wallet, job_id)
        if not job.is_over and job.hold:
            Follower(wallet, job, connect, lambda _: None, _tell).follow(is_waiting=False)
        target = to or Path(f"{job.name}-{job.job_id}")
        _check_target(target)
        count = unpack_outputs(wallet, job, target)
        emit({"directory": str(target), "files": count}, [f"{count} files in {target}"], as_json)


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


class _Connections:
    """Connections to the nodes of donors, one for each, closed at the end. The wallet's own is used again."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._others: dict[str, Any] = {}

    def __call__(self, url: str) -> Any:
        from node.client import NodeClient

        if url.rstrip("/") == self._wallet.node_url.rstrip("/"):
            return self._wallet.client
        if url not in self._others:
            self._others[url] = NodeClient(url)
        return self._others[url]

    def __enter__(self) -> Connect:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._others.values():
            client.close()


def _follow(
    context: click.Context, wallet: Wallet, job: WalletJob, connect: Connect, as_json: bool, to: Path | None
) -> None:
    """Watch to the end, then say what it cost. The log goes to standard output, unless that is for JSON."""
    from node.wallet.following import Follower, unpack_outputs

    Follower(wallet, job, connect, (lambda _: None) if as_json else _show_log, _tell).follow()
    made = job.decode_receipt(wallet)
    if to is not None and made is not None and made.outputs:
        _tell(f"{unpack_outputs(wallet, job, to)} files in {to}")
    emit(_describe_job(wallet, job), _iterate_end(wallet, job, to), as_json)
    if made is None or made.state != "DONE":
        context.exit(EXIT_JOB_FAILED)


def _iterate_end(wallet: Wallet, job: WalletJob, to: Path | None) -> Iterator[str]:
    from protocol.credits import format_credits

    quote = job.decode_quote(wallet)
    back = format_credits(quote.amount_max - max(0, job.paid))
    if job.reclaim_receipt:
        yield f"Reclaimed: {back} credits came back."
        return
    yield f"Settled: {format_credits(max(0, job.paid))} credits paid, {back} came back."
    if job.dispute:
        yield f"Not agreed to: {job.dispute}"
    made = job.decode_receipt(wallet)
    if to is None and made is not None and made.outputs:
        yield f"Results: allmende job fetch {job.job_id}"
    yield f"Proof: allmende job receipt {job.job_id}"


def _tell(text: str) -> None:
    click.echo(make_printable(text), err=True)


def _show_log(content: bytes) -> None:
    """What a stranger's machine says: shown as text, without control characters that a terminal obeys."""
    text = content.decode("utf-8", "replace")
    shown = "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)
    sys.stdout.write(shown)
    sys.stdout.flush()


def _check_target(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder: name another one with --to")


def _describe_plan(wallet: Wallet, made: JobPlan) -> dict[str, Any]:
    from node.addresses import Kind, encode_address

    spec, priced = made.spec, made.priced
    return {
        "name": spec.name,
        "machine": priced.offer.machine,
        "donor": encode_address(Kind.ACCOUNT, priced.offer.compute_donor(wallet.federation)),
        "weight": priced.rate.weight,
        "cores": priced.rate.cores,
        "memory_gb": priced.rate.memory_gb,
        "gpus": priced.rate.gpus,
        "wall_seconds_max": spec.wall_seconds,
        "millicredits_max": priced.amount_max,
        "draws": [
            {
                "program": encode_address(Kind.PROGRAM, lot.program) if lot.program else None,
                "expiry_epoch": lot.expiry_epoch,
                "millicredits": amount,
            }
            for lot, amount in made.draws
        ],
        "other_offers": made.others,
    }


def _iterate_plan(made: JobPlan) -> Iterator[str]:
    from protocol.credits import format_credits
    from protocol.metering import compute_charge

    spec, priced = made.spec, made.priced
    yield f"{spec.name} on {priced.offer.machine} ({made.others} other machines could do it)"
    yield (
        f"  {priced.rate.cores} cores, {priced.rate.memory_gb} GB, {priced.rate.gpus} GPUs, "
        f"weight {priced.rate.weight}, at most {spec.wall_seconds} s"
    )
    yield f"  {format_credits(compute_charge(3_600_000, priced.rate))} credits an hour"
    yield f"  at most {format_credits(priced.amount_max)} credits; what is not used comes back"
    for lot, amount in made.draws:
        origin = "of a budget" if lot.program else "earned"
        expiry = f", expiring after epoch {lot.expiry_epoch}" if lot.expiry_epoch else ""
        yield f"  from credits {origin}{expiry}: {format_credits(amount)}"


def _describe_job(wallet: Wallet, job: WalletJob) -> dict[str, Any]:
    from protocol.quotes import NO_EXIT_STATUS

    offer = job.decode_offer(wallet)
    made = job.decode_receipt(wallet)
    return {
        "job": job.job_id,
        "name": job.name,
        "state": job.shown_state,
        "ended": made.state.value if made else None,
        "exit_status": made.exit_status if made and made.exit_status != NO_EXIT_STATUS else None,
        "machine": offer.machine,
        "node": offer.node_url,
        "hold": job.hold.hex() or None,
        "held_millicredits": job.decode_quote(wallet).amount_max if job.quote and job.hold else None,
        "metered_millicredits": job.list_ticks()[-1].amount if job.ticks else 0,
        "paid_millicredits": job.paid if job.paid >= 0 else None,
        "is_agreed": bool(made and made.meter_signature),
        "dispute": job.dispute or None,
        "detail": job.detail or None,
    }


def _iterate_jobs(wallet: Wallet, jobs: list[WalletJob]) -> Iterator[str]:
    from protocol.credits import format_credits

    if not jobs:
        yield "No jobs yet: `allmende job run FILE` makes one."
        return
    yield f"{'ID':<10} {'NAME':<20} {'STATE':<12} {'PAID':>12}  MACHINE"
    for job in jobs:
        paid = format_credits(job.paid) if job.paid >= 0 else "-"
        machine = job.decode_offer(wallet).machine
        yield f"{job.job_id:<10} {job.name[:20]:<20} {job.shown_state:<12} {paid:>12}  {machine}"
