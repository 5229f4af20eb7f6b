"""Compute budgets from a person's side: ask an institution for one, and see what is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.errors import UserError
from node.terminal import emit, format_date, home_option, json_option, make_printable
from node.wallet.options import Signing, node_option, signing_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from node import api
    from node.wallet.wallet import Wallet


@click.group()
def group() -> None:
    """Compute budgets: ask for one, see what is left."""


def _find_program(programs: list[api.Program], text: str) -> api.Program:
    """The program that a person means: by its address, or by its name where only one has it."""
    wanted = text.strip()
    found = [program for program in programs if wanted in (program.id, program.name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{len(found)} programs are called {wanted}: name one by its address (almp1...)")
    from node.addresses import Kind, decode_address

    if wanted.lower().startswith("almp1"):
        decode_address(Kind.PROGRAM, wanted)  # tells a typing error from a program that is not there
    raise UserError(f"there is no program {wanted}: see `allmende budget ls --all`")


@group.command()
@click.argument("program")
@click.option("--text", default="", help="A word to the institution: who you are, what you need it for.")
@signing_options
def request(program: str, text: str, signing: Signing) -> None:
    """Ask for the budget of PROGRAM (an address almp1... or a name).

    The institution answers by enrolling your account under a random tag. Asking again before it has done so sends
    the same request. Example: allmende budget request "Students 2026" --text "Ada, physics, third year"
    """
    from node.addresses import Kind, decode_address
    from node.wallet.budget_requests import mark_taken, sign_request
    from protocol.credits import format_credits

    with signing.open_wallet() as wallet:
        chosen = _find_program(wallet.client.get_programs(), program)
        line = (
            f"{chosen.name} of {chosen.member_name}: up to {format_credits(chosen.allowance)} credits per person "
            "and epoch"
        )
        if signing.dry_run:
            document: dict[str, Any] = {"dry_run": True, "program": chosen.id, "member": chosen.member, "text": text}
            emit(document, [f"It would ask for {line}"], signing.as_json)
            return
        signing.confirm(f"Ask for {line}? Its node will read your text.")
        key = wallet.unlock(signing.passphrase)
        signed = sign_request(wallet, key, decode_address(Kind.PROGRAM, chosen.id), chosen.member, text)
        answer = wallet.client.post_budget_request(signed.encode())
        mark_taken(wallet, signed)
        lines = [f"Asked for {line}", f"Request {answer.id}: {answer.state}"]
        emit({"request": answer.id, "program": chosen.id, "state": answer.state}, lines, signing.as_json)


@group.command()
@click.argument("program", required=False)
@click.option("--member", type=click.IntRange(min=1), help="Name the institution by its number instead.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: member-NUMBER.leave here.")
@signing_options
def leave(program: str | None, member: int | None, out: Path | None, signing: Signing) -> None:
    """Leave the institution of PROGRAM: no new credits from any of its programs; what you hold stays yours.

    It writes a file with your signature. Give it to the institution, which completes it (`allmende program leave`)
    within this epoch. Example: allmende budget leave "Students 2026"
    """
    from node.files import write_atomically
    from node.wallet.leaving import find_enrolment, sign_leave
    from node.wallet.sending import read_account

    if (program is None) == (member is None):
        raise click.UsageError("name a program, or --member NUMBER, and not both")
    with signing.open_wallet() as wallet:
        number = member or _find_program(wallet.client.get_programs(), program or "").member
        account = read_account(wallet)
        find_enrolment(wallet, account, number)
        if signing.dry_run:
            emit(
                {"dry_run": True, "member": number}, [f"It would sign that you leave member {number}."], signing.as_json
            )
            return
        signing.confirm(f"Sign that you leave member {number}? It grants you nothing more after this epoch.")
        key = wallet.unlock(signing.passphrase)
        target = out or Path(f"member-{number}.leave")
        write_atomically(target, sign_leave(wallet, key, account, number), 0o644)
        lines = [f"Signed: {target}. Give it to the institution in this epoch; it runs `allmende program leave` on it."]
        emit({"member": number, "file": str(target), "epoch": account.epoch}, lines, signing.as_json)


@group.command()
@click.option("--all", "with_all", is_flag=True, help="Also the programs that you have nothing to do with.")
@home_option
@node_option
@json_option
def ls(with_all: bool, home: Path, node_url: str | None, as_json: bool) -> None:
    """List the budgets that you asked for or have: allowance, credits left, and until when."""
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        budgets = [budget for budget in _read_budgets(wallet) if with_all or budget["standing"] != "none"]
        emit({"budgets": budgets}, _iterate_budgets(budgets), as_json)


@group.command()
@click.argument("program")
@home_option
@node_option
@json_option
def show(program: str, home: Path, node_url: str | None, as_json: bool) -> None:
    """Show one budget (address almp1... or name): its rules, what you asked and what you hold."""
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        chosen = _find_program(wallet.client.get_programs(), program)
        budget = next(budget for budget in _read_budgets(wallet) if budget["program"] == chosen.id)
        emit(budget, _iterate_details(budget), as_json)


def _read_budgets(wallet: Wallet) -> list[dict[str, Any]]:
    """Every program with the person's standing in it: holds, approved, open, not sent, enrolled, lapsed or none."""
    from node.addresses import Kind, encode_address
    from node.wallet.budget_requests import read_requests, read_state

    account = wallet.client.get_account(wallet.address)
    states = {
        encode_address(Kind.PROGRAM, asked.request.program): read_state(wallet, account, asked)
        for asked in read_requests(wallet)
    }
    enrolling = {enrolment.member for enrolment in account.enrolments if not enrolment.until_epoch}
    budgets = []
    for program in wallet.client.get_programs():
        lots = sorted((lot for lot in account.lots if lot.program == program.id), key=lambda lot: lot.expiry_epoch)
        standing = states.get(program.id) or ("enrolled" if program.member in enrolling else "none")
        live = [lot for lot in lots if not 0 < lot.expiry_epoch < account.epoch]
        budgets.append(
            {
                "program": program.id,
                "name": make_printable(program.name),
                "purpose": make_printable(program.purpose),
                "member": program.member,
                "member_name": make_printable(program.member_name),
                "standing": "holds" if live else standing,
                "allowance_millicredits": program.allowance,
                "expiry_epochs": program.expiry_epochs,
                "is_transferable": program.is_transferable,
                "job_classes": program.job_classes,
                "millicredits": sum(lot.millicredits for lot in live),
                "lots": [
                    {
                        "expiry_epoch": lot.expiry_epoch,
                        "expires_seconds": wallet.compute_epoch_end(lot.expiry_epoch) if lot.expiry_epoch else None,
                        "millicredits": lot.millicredits,
                    }
                    for lot in lots
                ],
            }
        )
    return budgets


_STANDINGS = {
    "holds": "you hold credits of it",
    "approved": "approved: credits come with the next grant",
    "open": "asked for, not answered yet",
    "not sent": "signed, but no node has it: run `allmende budget request` again",
    "enrolled": "its institution has enrolled you; you have not asked for this program",
    "lapsed": "the request's epoch is over: ask again",
    "none": "not asked for",
}


def _iterate_budgets(budgets: list[dict[str, Any]]) -> Iterator[str]:
    from protocol.credits import format_credits

    if not budgets:
        yield "You have asked for no budget yet: see `allmende budget ls --all`."
    for budget in budgets:
        yield (
            f"{format_credits(budget['millicredits']):>14}  {budget['name']} ({budget['member_name']}), "
            f"{_STANDINGS[budget['standing']]}"
        )
        yield f"{'':14}  {budget['program']}"
        yield from _iterate_lots(budget)


def _iterate_lots(budget: dict[str, Any]) -> Iterator[str]:
    from protocol.credits import format_credits

    for lot in budget["lots"]:
        end = f"until {format_date(lot['expires_seconds'])}" if lot["expires_seconds"] else "no end"
        yield f"{'':14}  {format_credits(lot['millicredits'])} credits, {end}"


def _iterate_details(budget: dict[str, Any]) -> Iterator[str]:
    from protocol.credits import format_credits

    yield f"{budget['name']}, of {budget['member_name']} (member {budget['member']})"
    yield budget["program"]
    if budget["purpose"]:
        yield f"Purpose:    {budget['purpose']}"
    yield f"Allowance:  {format_credits(budget['allowance_millicredits'])} credits per person and epoch"
    carried = budget["expiry_epochs"]
    yield f"Carry-over: {carried} epochs" if carried else "Carry-over: none; credits end with their epoch"
    yield f"Sending:    {'can be sent to others' if budget['is_transferable'] else 'can be redeemed, not sent'}"
    yield f"Jobs:       {', '.join(map(make_printable, budget['job_classes'])) or 'all classes'}"
    yield f"You:        {_STANDINGS[budget['standing']]}"
    yield from _iterate_lots(budget)
