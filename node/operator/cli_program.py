"""The commands by which an institution gives compute budgets: declare, approve, grant; suspend an account, let go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from node import api
from node.addresses import Kind, decode_address, encode_address
from node.config import NodeHome
from node.errors import UserError
from node.operator.connection import connect
from node.operator.homes import node_home_option
from node.terminal import (
    confirm,
    dry_run_option,
    emit,
    format_moment,
    json_option,
    make_printable,
    show_progress,
    yes_option,
)
from protocol.credits import format_credits, parse_credits
from protocol.limits import REASON_CODE_MAX, SUSPENSION_SECONDS_MAX

if TYPE_CHECKING:
    from node.client import NodeClient

REQUEST_PREFIX_MIN = 4
"""Characters of a request's id that name it, if no other starts so; after the `almr1q` that all ids share."""
ID_HEAD = "almr1q"
ADDRESS_HEAD = "alm"
SHOWN_CHARACTERS = len(ID_HEAD) + 8
APPROVALS_AT_ONCE = 8
DAYS_MAX = SUSPENSION_SECONDS_MAX // (24 * 3600)


@click.group("program")
def group() -> None:
    """Give compute budgets: declare a program, approve who asks, grant credits each epoch.

    \b
    Example:
        allmende program create "Students 2027" --allowance 3600 --expiry-epochs 1
        allmende program approve --all almp1...
        allmende program grant Students
    """


@group.command()
@click.argument("name")
@click.option("--allowance", required=True, help="Credits that one person may get in an epoch.")
@click.option("--purpose", default="", help="For whom and what, in a sentence that everybody can read.")
@click.option("--expiry-epochs", type=click.IntRange(min=0), default=1, show_default=True,
              help="Epochs after the grant's own in which the credits can still be spent.")  # fmt: skip
@click.option("--transferable", is_flag=True, help="People may pass the credits on.")
@click.option("--job-class", "job_classes", multiple=True, help="Buys jobs of this class only; may be repeated.")
@node_home_option
@dry_run_option
@yes_option
@json_option
def create(
    name: str,
    allowance: str,
    purpose: str,
    expiry_epochs: int,
    transferable: bool,
    job_classes: tuple[str, ...],
    home: NodeHome,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Declare a compute budget. It is public and can't be changed afterwards.

    \b
    Example:
        allmende program create "Students 2027" --allowance 3600 --purpose "One GPU hour a month for each student"
    """
    draft = api.ProgramDraft(name, purpose, parse_credits(allowance), expiry_epochs, transferable, list(job_classes))
    with connect(home) as client:
        signed = sign_after_asking(lambda dry: client.create_program(draft, dry_run=dry), dry_run, yes)
    document = describe_signed(signed, dry_run)
    document["program"] = encode_address(Kind.PROGRAM, decode_address(Kind.RECORD, signed.records[0].id))
    emit(document, [signed.text], as_json)


@group.command("ls")
@node_home_option
@click.option("--all", "is_all", is_flag=True, help="Other members' programs, too.")
@click.option("--url", help="Ask the node at this address.")
@json_option
def list_programs(home: NodeHome, is_all: bool, url: str | None, as_json: bool) -> None:
    """List programs and what was granted from them.

    \b
    Example:
        allmende program ls --all
    """
    with connect(home, url) as client:
        programs = client.get_programs()
        own = client.get_status().member
    chosen = [program for program in programs if is_all or program.member == own]
    lines = [
        f"{program.id}  {program.name} ({program.member_name}): {format_credits(program.allowance)} credits a person "
        f"and epoch, {format_credits(program.granted)} granted"
        for program in chosen
    ]
    emit({"programs": msgspec.to_builtins(chosen)}, lines or ["No programs yet."], as_json)


@group.command()
@click.argument("program")
@node_home_option
@click.option("--url", help="Ask the node at this address.")
@json_option
def show(program: str, home: NodeHome, url: str | None, as_json: bool) -> None:
    """Show one program.

    \b
    Example:
        allmende program show Students
    """
    with connect(home, url) as client:
        found = find_program(client, program)
    lines = [
        f"Program    {found.name}",
        f"Id         {found.id}",
        f"Member     {found.member_name} ({found.member})",
        f"Purpose    {found.purpose or '-'}",
        f"Allowance  {format_credits(found.allowance)} credits a person and epoch",
        f"Spendable  in the grant's epoch and {found.expiry_epochs} more",
        f"Transfer   {'people may pass credits on' if found.is_transferable else 'for jobs only'}",
        f"Jobs       {', '.join(found.job_classes) or 'all classes'}",
        f"Granted    {format_credits(found.granted)} credits so far",
    ]
    emit(msgspec.to_builtins(found), lines, as_json)


@group.command()
@click.argument("program", required=False)
@click.option("--all", "is_all", is_flag=True, help="Approved ones, too.")
@node_home_option
@json_option
def requests(program: str | None, is_all: bool, home: NodeHome, as_json: bool) -> None:
    """List who asks for a budget.

    \b
    Example:
        allmende program requests
    """
    with connect(home) as client:
        found = [request for request in list_requests(client, program) if is_all or request.state == "open"]
    lines = [
        f"{request.id[:SHOWN_CHARACTERS]}  {request.state:8}  {request.account}  {_quote(request.text)}"
        for request in found
    ]
    emit({"requests": msgspec.to_builtins(found)}, lines or ["Nobody asks at the moment."], as_json)


@group.command()
@click.argument("request_ids", metavar="[REQUEST]...", nargs=-1)
@click.option("--all", "program", metavar="PROGRAM", help="Everybody who asks for this program; `any` for all of ours.")
@node_home_option
@dry_run_option
@yes_option
@json_option
def approve(
    request_ids: tuple[str, ...],
    program: str | None,
    home: NodeHome,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Admit people who asked: enrol them and let them take part. The first characters of a request's id suffice.

    \b
    Example:
        allmende program approve almr1q3fa94c
        allmende program approve --all Students -y
    """
    if bool(request_ids) == (program is not None):
        raise click.UsageError("name requests, or --all PROGRAM, and not both")
    with connect(home) as client:
        if program is not None:
            known = list_requests(client, None if program == "any" else program)
            chosen = [request for request in known if request.state == "open"]
        else:
            known = list_requests(client, None)
            chosen = [find_request(known, text) for text in request_ids]
        if chosen and not dry_run:
            for request in chosen:
                click.echo(f"{request.id[:SHOWN_CHARACTERS]}  {request.account}  {_quote(request.text)}", err=True)
            confirm(f"Enrol {len(chosen)} people and let them take part?", yes)
        signed = approve_all(client, chosen, dry_run)
    records = [record for answer in signed for record in answer.records]
    document = {"dry_run": dry_run, "records": msgspec.to_builtins(records)}
    emit(document, [answer.text for answer in signed] or ["Nobody asks at the moment."], as_json)


@group.command()
@click.argument("program")
@click.option("--to", "accounts", multiple=True, metavar="ADDRESS", help="Only this account; may be repeated.")
@click.option("--amount", help="Credits a person; without it, what is left of the allowance.")
@node_home_option
@dry_run_option
@yes_option
@json_option
def grant(
    program: str,
    accounts: tuple[str, ...],
    amount: str | None,
    home: NodeHome,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Grant this epoch's credits to everybody who takes part, or to named accounts.

    Without --amount the order may be given again at any time: nobody gets more than the allowance.

    \b
    Example:
        allmende program grant Students
        allmende program grant almp1... --to alm1... --amount 100
    """
    with connect(home) as client:
        wanted = find_program(client, program).id
        order = api.GrantOrder(wanted, list(accounts) or None, None if amount is None else parse_credits(amount))
        signed = sign_after_asking(lambda dry: client.grant(order, dry_run=dry), dry_run, yes)
    emit(describe_signed(signed, dry_run), [signed.text], as_json)


@group.command()
@click.argument("address")
@click.option("--reason", type=click.IntRange(0, REASON_CODE_MAX), required=True, metavar="CODE",
              help="Why: a number from 0 to 255 of your own list. The rules give it no meaning.")  # fmt: skip
@click.option("--days", type=click.IntRange(1, DAYS_MAX), required=True,
              help="At least so long; it ends with an epoch.")  # fmt: skip
@click.option("--appeal", required=True, metavar="TEXT", help="To whom the owner can turn. Everybody can read it.")
@click.option("--evidence", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="What it was decided on. Its hash alone is published: keep the file.")  # fmt: skip
@node_home_option
@dry_run_option
@yes_option
@json_option
def suspend(
    address: str,
    reason: int,
    days: int,
    appeal: str,
    evidence: Path | None,
    home: NodeHome,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Stop the account of somebody whom this institution enrolled, or of a donor that it sponsors.

    It can't pay, put credits aside, be granted any or take new jobs meanwhile. Jobs that were agreed on are settled.

    The owner reads the number of the reason: publish what yours mean where the appeal goes.

    \b
    Example:
        allmende program suspend alm1... --reason 3 --days 14 --evidence case.pdf --appeal board@example.org
    """
    digest = b"" if evidence is None else sha256(evidence.read_bytes()).digest()
    order = api.SuspendOrder(address, reason, days, digest, appeal)
    with connect(home) as client:
        signed = sign_after_asking(lambda dry: client.suspend(order, dry_run=dry), dry_run, yes)
    emit(describe_signed(signed, dry_run), [signed.text], as_json)


@group.command()
@click.argument("address")
@node_home_option
@dry_run_option
@yes_option
@json_option
def reinstate(address: str, home: NodeHome, dry_run: bool, yes: bool, as_json: bool) -> None:
    """End this institution's suspension of an account before its time.

    \b
    Example:
        allmende program reinstate alm1...
    """
    with connect(home) as client:
        order = api.ReinstateOrder(address)
        signed = sign_after_asking(lambda dry: client.reinstate(order, dry_run=dry), dry_run, yes)
    emit(describe_signed(signed, dry_run), [signed.text], as_json)


@group.command()
@click.option("--url", help="Ask the node at this address.")
@node_home_option
@json_option
def suspended(url: str | None, home: NodeHome, as_json: bool) -> None:
    """List the accounts that members have suspended, why, and to whom their owners can turn.

    \b
    Example:
        allmende program suspended
    """
    with connect(home, url) as client:
        found = client.get_suspensions()
    lines = [
        f"{entry.account}  by {entry.member_name} until {format_moment(entry.until_seconds)}, the end of epoch "
        f"{entry.until_epoch}, reason {entry.reason}; "
        f"appeal: {_quote(entry.appeal)}"
        for entry in found
    ]
    emit({"suspensions": msgspec.to_builtins(found)}, lines or ["No account is suspended."], as_json)


@group.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@node_home_option
@dry_run_option
@yes_option
@json_option
def leave(files: tuple[Path, ...], home: NodeHome, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Let people go who asked for it: FILES are what their `allmende budget leave` wrote, in this epoch.

    \b
    Example:
        allmende program leave ada.leave
    """
    answers = []
    with connect(home) as client:
        for file in files:
            order = api.LeaveOrder(file.read_bytes())
            answers.append(sign_after_asking(partial(client.complete_leave, order), dry_run, yes))
    records = [record for answer in answers for record in answer.records]
    document = {"dry_run": dry_run, "records": msgspec.to_builtins(records)}
    emit(document, [answer.text for answer in answers], as_json)


def approve_all(client: NodeClient, requests: list[api.BudgetRequest], dry_run: bool) -> list[api.Signed]:
    """Approve side by side: each enrolment waits for the same quorum, none for another."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(APPROVALS_AT_ONCE) as pool:
        answers = pool.map(lambda request: client.approve_budget_request(request.id, dry_run=dry_run), requests)
        with show_progress(answers, "Enrolling", len(requests)) as shown:
            return list(shown)


def sign_after_asking(act: Callable[[bool], api.Signed], dry_run: bool, yes: bool) -> api.Signed:
    """Let the node check an act and say what it would sign, ask, and carry it out. `act` takes "dry run?"."""
    if dry_run:
        return act(True)
    if not yes:
        planned = act(True)
        if not planned.records:
            return planned
        click.echo(planned.text, err=True)
        confirm(f"Sign {_count_records(len(planned.records))} with the member key?", yes)
    return act(False)


def _count_records(count: int) -> str:
    return "this record" if count == 1 else f"these {count} records"


def describe_signed(signed: api.Signed, dry_run: bool) -> dict[str, object]:
    """The JSON of an act."""
    return {"dry_run": dry_run, "text": signed.text, "records": msgspec.to_builtins(signed.records)}


def find_program(client: NodeClient, text: str) -> api.Program:
    """The program with this id, or the one of our own with this name. Raises: UserError."""
    programs = client.get_programs()
    wanted = text.strip()
    own = client.get_status().member
    found = [program for program in programs if program.name == wanted and program.member == own]
    if not found and wanted.lower().startswith(ADDRESS_HEAD):
        decode_address(Kind.PROGRAM, wanted)
        found = [program for program in programs if program.id == wanted.lower()]
    if len(found) > 1:
        raise UserError(f"{len(found)} programs are called {wanted}: name one by its id (almp1...)")
    if not found:
        raise UserError("this node knows no such program: see `allmende program ls --all`")
    return found[0]


def list_requests(client: NodeClient, program: str | None) -> list[api.BudgetRequest]:
    """Requests for one program, or all."""
    wanted = None if program is None else find_program(client, program).id
    return [request for request in client.list_budget_requests() if wanted in (None, request.program)]


def find_request(known: list[api.BudgetRequest], text: str) -> api.BudgetRequest:
    """The one request whose id starts so. Raises: UserError."""
    start = text.strip().lower().removeprefix(ID_HEAD)
    found = [request for request in known if request.id.removeprefix(ID_HEAD).startswith(start)]
    if len(start) < REQUEST_PREFIX_MIN or not found:
        raise UserError(f"no request {text!r}: see `allmende program requests`")
    if len(found) > 1:
        raise UserError(f"{len(found)} requests start with {text!r}: give more of it")
    return found[0]


def _quote(text: str) -> str:
    """What a stranger wrote, short enough for one line."""
    printable = make_printable(text)
    return printable if len(printable) <= 80 else f"{printable[:77]}..."
