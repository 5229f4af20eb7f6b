"""The commands that check donors: run a job's inputs again elsewhere, or a job whose result is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from node.terminal import emit, explain_interruption
from node.wallet.options import Signing, choice_options, signing_options

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node.wallet.canaries import Canary
    from node.wallet.jobs import Choice, Connect, JobPlan
    from node.wallet.rechecking import Comparison
    from node.wallet.running import Watcher
    from node.wallet.wallet import Wallet

EXIT_DIFFERENT = 1
INTERRUPTED = "`allmende job ls` lists what was begun; `allmende job logs -f ID` goes on with it"


@click.command()
@click.argument("job_id", metavar="ID")
@choice_options
@signing_options
@click.pass_context
def recheck(context: click.Context, job_id: str, donor: str, prefer: str, signing: Signing) -> None:
    """Run the same inputs on another donor's machine, and compare the results file by file.

    The job file and what it names must still be as they were. Costs what the job costs. A program that uses chance or
    time may differ without anybody's fault. Exit status 1 when a file differs, or the second run did not finish.

    Example: allmende job recheck 3fa2c81b90
    """
    from node.wallet.calling import Connections
    from node.wallet.job_records import get_outputs_path, load_job
    from node.wallet.jobs import Choice, open_job
    from node.wallet.matching import Preference
    from node.wallet.plan_view import describe_plan, iterate_plan
    from node.wallet.rechecking import compare_results, plan_recheck
    from node.wallet.running import has_succeeded, run_to_end
    from protocol.credits import format_credits

    with signing.open_wallet() as wallet, Connections(wallet) as connect:
        first = load_job(wallet, job_id)
        plan, inputs = plan_recheck(wallet, first, Choice(donor, Preference(prefer)))
        if signing.dry_run:
            document = {"dry_run": True} | describe_plan(wallet, plan, inputs.name, inputs.secrets)
            emit(document, iterate_plan(wallet, plan, inputs.name, inputs.secrets), signing.as_json)
            return
        signing.confirm(f"Put up to {format_credits(plan.amount_max)} credits aside and run it once more?")
        key = wallet.unlock(signing.passphrase)
        watcher = _make_watcher()
        second = open_job(wallet, plan, connect, inputs, watcher.tell)
        with explain_interruption(INTERRUPTED):
            run_to_end(wallet, key, second, connect, watcher)
        document = {"job": first.job_id, "recheck": second.job_id, "paid_millicredits": second.paid}
        if not has_succeeded(wallet, second) or not get_outputs_path(wallet, second).exists():
            emit(document | {"is_equal": None}, [_explain_unfinished(second.state)], signing.as_json)
            context.exit(EXIT_DIFFERENT)
        found = compare_results(
            get_outputs_path(wallet, first).read_bytes(), get_outputs_path(wallet, second).read_bytes()
        )
        document |= {"is_equal": found.is_equal} | found._asdict()
        emit(document, _iterate_comparison(first.job_id, second.job_id, found), signing.as_json)
        if not found.is_equal:
            context.exit(EXIT_DIFFERENT)


def _explain_unfinished(state: str) -> str:
    return f"The second run did not finish ({state}): it says nothing about the first. Recheck it again."


def _iterate_comparison(first: str, second: str, found: Comparison) -> Iterator[str]:
    if found.is_equal:
        yield f"Equal: both runs made the same {len(found.same)} files ({second} checks {first})."
        return
    yield f"Different: {len(found.same)} files are the same in {first} and {second}, these are not:"
    for paths, text in (
        (found.different, "differs"),
        (found.only_first, f"only in {first}"),
        (found.only_second, f"only in {second}"),
    ):
        for path in paths:
            yield f"  {path}: {text}"
    yield "If the program uses no chance and no time, one of the donors is wrong; a third run shows which."
    yield f"Compare: allmende job fetch {first}, allmende job fetch {second}; then: allmende job dispute ID"


@click.command()
@choice_options
@click.option("--all", "is_for_all", is_flag=True, help="One for every donor whose machine can do it, in turn.")
@signing_options
@click.pass_context
def canary(context: click.Context, donor: str, prefer: str, is_for_all: bool, signing: Signing) -> None:
    """Run a small job whose result is known, and say whether the donor computed it.

    For institutions that vouch for donors. It looks like any other job and is paid like one. A donor that passes may
    still cheat elsewhere; one whose result is wrong did. Exit status 1 when one did not pass.

    Example: allmende job canary --all -y --json
    """
    import tempfile
    from pathlib import Path

    from node.wallet.calling import Connections
    from node.wallet.canaries import Verdict
    from node.wallet.jobs import Choice
    from node.wallet.matching import Preference
    from protocol.credits import format_credits

    with (
        signing.open_wallet() as wallet,
        Connections(wallet) as connect,
        tempfile.TemporaryDirectory(prefix="allmende-") as place,
    ):
        plans = _plan_canaries(wallet, Path(place), Choice(donor, Preference(prefer)), is_for_all)
        amount = sum(plan.priced.amount_max for _, plan in plans)
        question = f"Put up to {format_credits(amount)} credits aside for {len(plans)} canary jobs, one after another?"
        if signing.dry_run:
            names = [plan.priced.offer.machine for _, plan in plans]
            document = {"dry_run": True, "machines": names, "millicredits_max": amount}
            emit(document, [f"It would be asked: {question}", *names], signing.as_json)
            return
        signing.confirm(question)
        key = wallet.unlock(signing.passphrase)
        watcher = _make_watcher()
        with explain_interruption(INTERRUPTED):
            found = [_run_canary(wallet, key, made, plan, connect, watcher) for made, plan in plans]
        emit({"canaries": found}, map(_describe_canary, found), signing.as_json)
        if any(one["verdict"] != Verdict.PASSED for one in found):
            context.exit(EXIT_DIFFERENT)


def _plan_canaries(wallet: Wallet, place: Path, choice: Choice, is_for_all: bool) -> list[tuple[Canary, JobPlan]]:
    """A canary of its own for each donor: all of those whose machine can do one, or the best."""
    import secrets

    from node.addresses import Kind, encode_address
    from node.wallet.canaries import SEED_BYTES, write_canary
    from node.wallet.job_spec import read_job_file
    from node.wallet.jobs import plan_job

    def plan(name: str, choice: Choice) -> tuple[Canary, JobPlan]:
        (place / name).mkdir()
        made = write_canary(place / name, secrets.token_bytes(SEED_BYTES))
        return made, plan_job(wallet, read_job_file(made.path), choice)

    best = plan("best", choice)
    if not is_for_all:
        return [best]
    donors = dict.fromkeys(match.offer.compute_donor(wallet.federation) for match in best[1].matches)
    addresses = [encode_address(Kind.ACCOUNT, donor) for donor in donors]
    return [plan(address, choice._replace(donor=address)) for address in addresses]


def _run_canary(
    wallet: Wallet, key: Ed25519PrivateKey, made: Canary, plan: JobPlan, connect: Connect, watcher: Watcher
) -> dict[str, Any]:
    """One canary at one donor. What goes wrong there is its verdict, and the next donor's turn comes."""
    from node.addresses import Kind, encode_address
    from node.errors import UserError
    from node.wallet.canaries import Verdict, judge
    from node.wallet.jobs import open_job
    from node.wallet.running import run_to_end

    found: dict[str, Any] = {"job": None, "paid_millicredits": None}
    try:
        job = open_job(wallet, plan._replace(matches=plan.matches[:1]), connect, tell=watcher.tell)
        found["job"] = job.job_id
        run_to_end(wallet, key, job, connect, watcher)
        verdict = judge(wallet, job, made)
        detail = f"{job.state}{': ' if job.detail else ''}{job.detail}" if verdict is Verdict.FAILED else ""
        found["paid_millicredits"] = job.paid
    except UserError as error:
        verdict, detail = Verdict.FAILED, str(error)
    offer = plan.priced.offer
    donor = encode_address(Kind.ACCOUNT, offer.compute_donor(wallet.federation))
    return found | {"donor": donor, "machine": offer.machine, "verdict": verdict, "detail": detail}


def _describe_canary(found: dict[str, Any]) -> str:
    job = f"  job {found['job']}" if found["job"] else ""
    return f"{found['verdict']:<8} {found['machine']:<24}{job}  {found['detail']}".rstrip()


def _make_watcher() -> Watcher:
    """What is told goes to standard error; the log of such a run interests nobody."""
    from node.terminal import make_printable
    from node.wallet.running import Watcher

    return Watcher(tell=lambda text: click.echo(make_printable(text), err=True))
