"""The commands of a wallet: make it, see what it holds, pay, look back, keep it safe.

Nothing heavy is imported before a command needs it: a balance asks one question over HTTP and signs nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from node.errors import Refused, Unreachable, UserError
from node.terminal import emit, explain_interruption, format_date, home_option, json_option
from node.wallet.cli_rotate import rotate
from node.wallet.cli_unlock import EXIT_NOT_YET, describe_document, tell_lost, unlock
from node.wallet.options import (
    Signing,
    make_passphrase,
    node_option,
    passphrase_option,
    signing_options,
    wait_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from node.wallet.journal import Entry
    from node.wallet.sending import Outcome
    from node.wallet.wallet import Wallet


@click.group()
def group() -> None:
    """Your keys, balance, payments and history."""


# -- making ---------------------------------------------------------------------------------------------------------


@group.command()
@home_option
@click.option("--node", "node_url", required=True, envvar="ALLMENDE_NODE", metavar="URL", help="The node to ask.")
@click.option("--federation", metavar="ADDRESS", help="Refuse a node of any federation but this (almf1...).")
@passphrase_option
@click.option("--no-passphrase", is_flag=True, help="Keep the key in the clear: for tests and machines.")
@json_option
def init(
    home: Path,
    node_url: str,
    federation: str | None,
    passphrase_file: Path | None,
    no_passphrase: bool,
    as_json: bool,
) -> None:
    """Make a new wallet, and show its 24 words once.

    Example: allmende wallet init --node https://node.example.org
    """
    from node.mnemonics import new_mnemonic
    from node.wallet.wallet import Wallet, check_no_wallet

    check_no_wallet(home)
    passphrase = _choose_passphrase(passphrase_file, no_passphrase)
    words = new_mnemonic()
    with Wallet.create(home, node_url, words, passphrase, federation=federation) as wallet:
        document = {
            "address": wallet.address,
            "federation": wallet.federation_address,
            "federation_name": wallet.charter.fields.name,
            "words": words,
        }
        emit(document, _iterate_created(wallet, words), as_json)


def _iterate_created(wallet: Wallet, words: str) -> Iterator[str]:
    yield f"Your address: {wallet.address}"
    yield f"Federation:   {wallet.charter.fields.name} ({wallet.federation_address})"
    yield ""
    yield "These 24 words are the whole wallet. Write them on paper, in this order; who has them has your credits:"
    yield ""
    yield from _iterate_words(words)
    yield ""
    yield "Then run `allmende wallet backup verify` to check the paper."


def _iterate_words(words: str) -> Iterator[str]:
    numbered = [f"{number:2}. {word:<10}" for number, word in enumerate(words.split(), start=1)]
    for start in range(0, len(numbered), 4):
        yield "  ".join(numbered[start : start + 4]).rstrip()


def _choose_passphrase(file: Path | None, no_passphrase: bool) -> str | None:
    if no_passphrase:
        if file is not None:
            raise click.UsageError("--no-passphrase and --passphrase-file contradict each other")
        return None
    return make_passphrase(file).choose("the wallet")


def _read_words() -> str:
    """The words that a person types, or that a program passes on standard input."""
    if sys.stdin.isatty():
        return str(click.prompt("The 24 words", err=True))
    return sys.stdin.read(4096)


@group.command()
@home_option
@click.option("--node", "node_url", required=True, envvar="ALLMENDE_NODE", metavar="URL", help="The node to ask.")
@click.option("--federation", metavar="ADDRESS", help="Refuse a node of any federation but this (almf1...).")
@passphrase_option
@click.option("--no-passphrase", is_flag=True, help="Keep the key in the clear: for tests and machines.")
@json_option
def restore(
    home: Path,
    node_url: str,
    federation: str | None,
    passphrase_file: Path | None,
    no_passphrase: bool,
    as_json: bool,
) -> None:
    """Bring a wallet back from its 24 words (asked for, or read from standard input).

    Whatever the old machine signed and did not send can't become final later: the account's next slot is filled at
    once, with a record that is on its way or with a payment of 0.001 credits to yourself.
    """
    from node.mnemonics import check_mnemonic
    from node.wallet.unlocking import describe_freed, unlock_account
    from node.wallet.wallet import Wallet, check_no_wallet

    check_no_wallet(home)
    words = check_mnemonic(_read_words())
    passphrase = _choose_passphrase(passphrase_file, no_passphrase)
    with Wallet.create(home, node_url, words, passphrase, federation=federation) as wallet:
        try:
            freed = unlock_account(wallet, wallet.unlock(passphrase))
        except UserError as error:
            kind = Unreachable if isinstance(error, Unreachable) else UserError
            raise kind(
                f"{wallet.address} is restored, but a record of the old machine may still come between: {error}. Run "
                "`allmende wallet unlock --fill` before the next payment"
            ) from error
        document = {"address": wallet.address, "federation": wallet.federation_address} | describe_document(freed)
        emit(document, [f"Restored: {wallet.address}", describe_freed(freed)], as_json)


@group.group(invoke_without_command=True)
@home_option
@passphrase_option
@json_option
@click.pass_context
def backup(context: click.Context, home: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Show the 24 words again. `backup verify` checks what you wrote down."""
    if context.invoked_subcommand is not None:
        context.obj = home
        return
    from node.wallet.wallet import Wallet

    words = Wallet.open(home).unlock_words(make_passphrase(passphrase_file))
    emit({"words": words}, _iterate_words(words), as_json)


@backup.command()
@home_option
@json_option
@click.pass_context
def verify(context: click.Context, home: Path, as_json: bool) -> None:
    """Compare the words on your paper (asked for, or read from standard input) with the wallet.

    Needs no passphrase: the words lead to the wallet's address, or they do not.
    """
    from node.addresses import Kind, encode_address
    from node.keystore import Key
    from node.mnemonics import check_mnemonic, derive_seed
    from node.wallet.wallet import Wallet
    from protocol.identifiers import compute_account_id

    # --home may stand on either side of the verb; the nearer one counts.
    is_named_here = context.get_parameter_source("home") is ParameterSource.COMMANDLINE
    wallet = Wallet.open(home if is_named_here else context.obj)
    key = Key(derive_seed(check_mnemonic(_read_words()), "account"))
    found = encode_address(Kind.ACCOUNT, compute_account_id(wallet.federation, key.public_key))
    if found != wallet.address:
        raise UserError(f"these words are a correct backup of another wallet ({found}): look for the right paper")
    emit({"address": found, "matches": True}, [f"The words are the backup of {found}."], as_json)


# -- looking --------------------------------------------------------------------------------------------------------


@group.command()
@home_option
@click.option("--qr", "with_qr", is_flag=True, help="Draw it as a QR code, too.")
@json_option
def address(home: Path, with_qr: bool, as_json: bool) -> None:
    """Show the address to which others pay."""
    from node.wallet.wallet import Wallet

    wallet = Wallet.open(home)
    document = {"address": wallet.address, "federation": wallet.federation_address}
    emit(document, _iterate_address(wallet.address, with_qr), as_json)


def _iterate_address(text: str, with_qr: bool) -> Iterator[str]:
    yield text
    if with_qr:
        from node.addresses import qr_lines

        yield from qr_lines(text)


@group.command()
@home_option
@node_option
@click.option("--verify", is_flag=True, help="Prove what you held at the federation's last certified checkpoint.")
@json_option
def balance(home: Path, node_url: str | None, verify: bool, as_json: bool) -> None:
    """Show your credits: of which program, and until when. Asks for no passphrase.

    With --verify the wallet trusts no node: members of a quorum certified the state in which your balance stands.
    """
    from node.wallet.stopped import list_stops
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        if verify:
            from node.wallet.proved_balance import show_proved_balance

            show_proved_balance(wallet, as_json)
            return
        account = wallet.client.get_account(wallet.address)
        lots = sorted(account.lots, key=lambda lot: (lot.expiry_epoch == 0, lot.expiry_epoch, lot.program_name))
        document: dict[str, Any] = {
            "address": wallet.address,
            "epoch": account.epoch,
            "millicredits": sum(lot.millicredits for lot in lots if not 0 < lot.expiry_epoch < account.epoch),
            "lots": [
                {
                    "program": lot.program,
                    "program_name": lot.program_name,
                    "expiry_epoch": lot.expiry_epoch,
                    "expires_seconds": wallet.compute_epoch_end(lot.expiry_epoch) if lot.expiry_epoch else None,
                    "is_expired": 0 < lot.expiry_epoch < account.epoch,
                    "millicredits": lot.millicredits,
                }
                for lot in lots
            ],
            "suspensions": [
                {
                    "member": entry.member,
                    "member_name": entry.member_name,
                    "until_epoch": entry.until_epoch,
                    "until_seconds": wallet.compute_epoch_end(entry.until_epoch),
                    "reason": entry.reason,
                    "appeal": entry.appeal,
                }
                for entry in account.suspensions
            ],
            "node": wallet.node_url,
        }
        lines = [*_iterate_balance(wallet, document, account.epoch, lots), *list_stops(wallet, account)]
        emit(document, lines, as_json)


def _iterate_balance(wallet: Wallet, document: dict[str, Any], epoch: int, lots: list[Any]) -> Iterator[str]:
    from protocol.credits import format_credits

    yield f"{format_credits(document['millicredits'])} credits"
    for lot in lots:
        if not lot.expiry_epoch:
            end = "no end"
        elif lot.expiry_epoch < epoch:
            end = f"expired on {format_date(wallet.compute_epoch_end(lot.expiry_epoch))}"
        else:
            end = f"until {format_date(wallet.compute_epoch_end(lot.expiry_epoch))}"
        name = "".join(c if c.isprintable() else "?" for c in lot.program_name) if lot.program else "free"
        yield f"{format_credits(lot.millicredits):>16}  {name}, {end}"


@group.command()
@home_option
@node_option
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="How many records.")
@click.option("--verify", "with_proof", is_flag=True, help="Fetch and check the receipt of each that is unproven.")
@json_option
def history(home: Path, node_url: str | None, limit: int, with_proof: bool, as_json: bool) -> None:
    """Show what came and went, newest first.

    `proven` stands where this wallet has checked a receipt itself; the rest is what the node says.
    """
    from node.wallet.history import read_history
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        page = read_history(wallet, limit, with_proof)
        if page.is_offline:
            click.echo(f"{wallet.node_url} does not answer: this is what the wallet itself has signed.", err=True)
        document = {
            "address": wallet.address,
            "is_from_node": not page.is_offline,
            "records": [line.to_document() for line in page.lines],
        }
        emit(document, (line.to_text(wallet.compute_epoch_end) for line in page.lines), as_json)


# -- paying ---------------------------------------------------------------------------------------------------------


@group.command()
@click.argument("to", metavar="ADDRESS")
@click.argument("credits_text", metavar="CREDITS")
@click.option("--memo", default="", help="A public word with it, 128 bytes at most.")
@wait_option
@signing_options
@click.pass_context
def send(context: click.Context, to: str, credits_text: str, memo: str, signing: Signing, wait_seconds: float) -> None:
    """Pay CREDITS (such as 12.5) to ADDRESS, and wait for the proof.

    The credits that expire soonest go first. Example: allmende wallet send alm1q... 12.5 --memo "thank you"
    """
    from node.addresses import Kind, decode_address
    from node.wallet.payments import Payment, find_same_payment, plan_transfer, send_transfer
    from protocol.credits import format_credits, parse_credits

    payment = Payment(decode_address(Kind.ACCOUNT, to), parse_credits(credits_text), memo)
    with signing.open_wallet() as wallet:
        same = find_same_payment(wallet, payment)
        if same is not None and not signing.dry_run:
            click.echo(
                "This very payment was signed before and is still pending: it is sent again, not a second time. "
                "To pay twice, run the command once more afterwards.",
                err=True,
            )
        else:
            plan = plan_transfer(wallet, payment)
            lines = [f"{format_credits(payment.amount)} credits to {to.strip()}", *_iterate_draws(plan.draws)]
            if signing.dry_run:
                emit({"dry_run": True, **_describe_plan(to, plan)}, ["It would pay:", *lines], signing.as_json)
                return
            if not signing.yes and sys.stdin.isatty():
                for line in lines:
                    click.echo(line, err=True)
            signing.confirm("Pay this?")
        key = wallet.unlock(signing.passphrase)
        with explain_interruption("the payment may be signed already and become final; see `allmende wallet pending`"):
            outcome = send_transfer(wallet, key, payment, wait_seconds, same)
        _tell(context, wallet, outcome, signing.as_json, was_pending=same is not None)


def _describe_plan(to: str, plan: Any) -> dict[str, Any]:
    from node.addresses import Kind, encode_address

    return {
        "to": to.strip(),
        "millicredits": plan.payment.amount,
        "memo": plan.payment.memo,
        "epoch": plan.epoch,
        "lots": [
            {
                "program": encode_address(Kind.PROGRAM, lot.program) if lot.program else None,
                "expiry_epoch": lot.expiry_epoch,
                "millicredits": amount,
            }
            for lot, amount in plan.draws
        ],
    }


def _iterate_draws(draws: Any) -> Iterator[str]:
    from node.wallet.wording import Movement, describe_lot
    from protocol.credits import format_credits

    for lot, amount in draws:
        yield f"{format_credits(amount):>16}  {describe_lot(Movement(b'', lot.program, lot.expiry_epoch, amount))}"


def _tell(
    context: click.Context, wallet: Wallet, outcome: Outcome, as_json: bool, *, was_pending: bool = False
) -> None:
    """Say what became of one record; the exit status is 0 only when it is proven to be final."""
    tell_lost(outcome.lost)
    if outcome.verified is None and outcome.refusal:
        kept = "" if outcome.entry.state == "rejected" else _KEPT
        raise Refused(f"{wallet.node_url} refused it: {outcome.refusal}{kept}")
    if outcome.verified is None and not as_json:
        raise Unreachable(f"not final yet; it is signed and kept{_RESEND}")
    document = _describe_entry(outcome.entry) | {"members": [], "was_pending": was_pending}
    lines = []
    if outcome.verified is not None:
        document["members"] = list(outcome.verified.members)
        names = ", ".join(
            wallet.charters[outcome.verified.round.version].members[number].name for number in outcome.verified.members
        )
        lines = [f"Final: {outcome.entry.purpose}", f"Record {document['record']}, committed by {names}"]
    emit(document, lines, as_json)
    if outcome.verified is None:
        context.exit(EXIT_NOT_YET)


_RESEND = ": `allmende wallet pending --resend` sends it again, and never pays twice"
_KEPT = (
    ". It stays pending, because other members may have taken it; "
    "`allmende wallet pending --resend --node URL` asks another node"
)


def _describe_entry(entry: Entry) -> dict[str, Any]:
    from node.addresses import Kind, encode_address

    return {
        "record": encode_address(Kind.RECORD, entry.record_id),
        "sequence": entry.sequence,
        "purpose": entry.purpose,
        "state": str(entry.state),
        "reason": entry.reason,
        "signed_at_seconds": entry.signed_at_seconds,
    }


@group.command()
@home_option
@node_option
@click.option(
    "--resend", is_flag=True, help="Send them again, the same ones and no second time, and wait for the proof."
)
@wait_option
@json_option
@click.pass_context
def pending(
    context: click.Context, home: Path, node_url: str | None, resend: bool, wait_seconds: float, as_json: bool
) -> None:
    """Show what was signed and is not known to be final.

    While something is pending, nothing new is signed after it. A node that refuses it is not believed alone: other
    members may have taken it. It leaves this list when it is proved final, or proved void because another payment has
    its place.
    """
    from node.wallet.payments import resend_pending
    from node.wallet.sending import is_open
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        refusals: dict[bytes, str] = {}
        entries = wallet.journal.pending()
        if resend:
            outcomes = resend_pending(wallet, wait_seconds)
            refusals = {outcome.entry.record_id: outcome.refusal for outcome in outcomes if outcome.refusal}
            entries = [outcome.entry for outcome in outcomes]
        described = [_describe_entry(entry) | {"refusal": refusals.get(entry.record_id, "")} for entry in entries]
        emit({"pending": described}, _iterate_pending(described), as_json)
        if resend and any(is_open(entry) for entry in entries):
            context.exit(EXIT_NOT_YET)


def _iterate_pending(described: list[dict[str, Any]]) -> Iterator[str]:
    if not described:
        yield "Nothing is pending."
    for entry in described:
        day = format_date(entry["signed_at_seconds"])
        yield f"{entry['state']:<9} {day}  {entry['purpose']}  {entry['record']}"
        if entry["refusal"] or entry["reason"]:
            yield f"          {entry['refusal'] or entry['reason']}"


group.add_command(unlock)
group.add_command(rotate)
