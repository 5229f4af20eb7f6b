"""The commands that found a federation: draft, show, sign, found."""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec

from node.config import Federation, NodeHome, read_federation
from node.errors import UserError
from node.keystore import Passphrase
from node.operator import founding
from node.operator.charter_options import parse_credits_option, parse_weight, read_use_policy
from node.operator.cli_amend import amend, diff, show_in_force
from node.operator.homes import load_keys, node_home_option, passphrase_option
from node.operator.rates import compute_default_rates, read_rates
from node.terminal import FILE, confirm, emit, json_option, yes_option
from protocol.limits import EPOCHS_MAX

EPOCH_SECONDS_MIN = 60


@click.group("charter")
def group() -> None:
    """Found a federation: draft its charter, sign it, join the signatures. Later: amend it.

    Each founder runs `allmende node init` and sends its founder.json to one of them, who drafts:

    \b
        allmende charter draft a.json b.json c.json d.json --name Commons --out charter.json
        allmende charter sign charter.json --out a.signature        (each founder)
        allmende charter found charter.json *.signature --out federation.json
        allmende node run --federation federation.json              (each founder)

    A founded federation changes its charter by amendments, which `allmende member` proposes and approves:

    \b
        allmende charter amend --add e.json --out next.json
    """


@group.command()
@click.argument("cards", metavar="CARD...", nargs=-1, required=True, type=FILE)
@click.option("--name", required=True, help="Name of the federation.")
@click.option("--out", required=True, type=FILE, help="File to write the draft to.")
@click.option("--epoch-days", type=float, default=30, show_default=True, help="Length of an accounting period.")
@click.option("--cap", default="1000000", show_default=True, help="Credits each member may grant in one epoch.")
@click.option("--epochs", type=click.IntRange(1, EPOCHS_MAX), default=EPOCHS_MAX, show_default=True,
              help="Epochs that have a cap.")  # fmt: skip
@click.option("--weight", "weights", multiple=True, metavar="NAME=W", help="A member's voting weight, if not 1.")
@click.option("--rates", type=FILE, help="JSON object of devices and weights (A100-SXM4-80GB = 1000).")
@click.option("--dev", is_flag=True, help="A trial charter for fewer than four members: nobody may fail.")
@click.option("--acceptable-use", type=FILE, help="Text of the use policy that every job accepts.")
@json_option
def draft(
    cards: tuple[Path, ...],
    name: str,
    out: Path,
    epoch_days: float,
    cap: str,
    epochs: int,
    weights: tuple[str, ...],
    rates: Path | None,
    dev: bool,
    acceptable_use: Path | None,
    as_json: bool,
) -> None:
    """Draft a charter from the founders' cards; they are numbered in this order.

    \b
    Example:
        allmende charter draft a.json b.json c.json d.json --name Commons --cap 500000 --out charter.json
    """
    options = founding.DraftOptions(
        name=name,
        genesis_seconds=int(time.time()) // 60 * 60,
        rates=read_rates(rates) if rates else compute_default_rates(),
        epoch_seconds=_compute_epoch_seconds(epoch_days),
        cap_millicredits=parse_credits_option("--cap", cap),
        epochs=epochs,
        is_dev=dev,
        acceptable_use=read_use_policy(acceptable_use) if acceptable_use else founding.DEFAULT_ACCEPTABLE_USE,
        weights=dict(map(parse_weight, weights)),
    )
    founders = [founding.read_document(card, founding.FounderCard, "founder's card") for card in cards]
    drafted = founding.compose_draft(founders, options)
    founding.write_document(out, drafted)
    charter = founding.open_draft(drafted, out)
    lines = [
        *founding.compute_summary(charter, drafted.addresses),
        "",
        f"The draft is in {out}. Each founder reads it and runs: allmende charter sign {out.name} --out NAME.signature",
    ]
    emit({"federation": drafted.federation, "draft": str(out), "terms": _plain(drafted.terms)}, lines, as_json)


@group.command()
@click.argument("file", type=FILE, required=False)
@node_home_option
@click.option("--url", help="Ask the node at this address.")
@json_option
def show(file: Path | None, home: NodeHome, url: str | None, as_json: bool) -> None:
    """Show the charter in force and its history; or what a FILE (draft or founding document) says.

    \b
    Example:
        allmende charter show
        allmende charter show federation.json
    """
    if file is None:
        show_in_force(home, url, as_json)
        return
    try:
        found = founding.read_document(file, founding.Draft, "draft")
    except UserError:
        found = None
    if found is not None:
        charter, addresses, state = founding.open_draft(found, file), found.addresses, "draft"
        acceptable_use = found.acceptable_use
    else:
        federation = read_federation(file)
        charters = federation.decode_charters()
        charter, addresses, state = charters[max(charters)], federation.addresses, "founded"
        acceptable_use = federation.acceptable_use
    lines = founding.compute_summary(charter, addresses)
    lines += ["", "This is a draft, not yet founded." if state == "draft" else "Signed by all its founders."]
    if founding.compute_acceptable_use_hash(acceptable_use) == charter.policy.acceptable_use:
        lines += ["", *acceptable_use.splitlines()]
    terms = _plain(founding.describe_charter(charter))
    emit({"federation": founding.name_federation(charter), "state": state, "terms": terms}, lines, as_json)


@group.command()
@click.argument("draft_file", metavar="DRAFT", type=FILE)
@click.option("--out", required=True, type=FILE, help="File to write the signature to.")
@node_home_option
@passphrase_option
@yes_option
@json_option
def sign(draft_file: Path, out: Path, home: NodeHome, passphrase_file: Path | None, yes: bool, as_json: bool) -> None:
    """Sign a draft with this institution's member key, after reading what it means.

    \b
    Example:
        allmende charter sign charter.json --out university-a.signature
    """
    drafted = founding.read_document(draft_file, founding.Draft, "draft of a charter")
    charter = founding.open_draft(drafted, draft_file)
    keys = load_keys(home, Passphrase(passphrase_file))
    signature = founding.sign_draft(charter, keys.member, keys.vote, keys.peer)
    for line in founding.compute_summary(charter, drafted.addresses):
        click.echo(line, err=True)
    click.echo(
        f"\nYou sign as {signature.name}. It binds your institution to this charter; from then on keep the keys in "
        f"{home.path} safe.",
        err=True,
    )
    confirm("Sign this charter?", yes)
    founding.write_document(out, signature, replace=True)
    document = {"federation": signature.federation, "name": signature.name, "signature": str(out)}
    emit(document, [f"Signed. Send {out} to the drafter."], as_json)


@group.command()
@click.argument("draft_file", metavar="DRAFT", type=FILE)
@click.argument("signatures", metavar="SIGNATURE...", nargs=-1, required=True, type=FILE)
@click.option("--out", required=True, type=FILE, help="File to write the founding document to.")
@json_option
def found(draft_file: Path, signatures: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Join all founders' signatures to the founding document, and check them.

    \b
    Example:
        allmende charter found charter.json *.signature --out federation.json
    """
    drafted = founding.read_document(draft_file, founding.Draft, "draft of a charter")
    charter = founding.open_draft(drafted, draft_file)
    signed = [founding.read_document(path, founding.FounderSignature, "founder's signature") for path in signatures]
    federation: Federation = founding.join_signatures(drafted, charter, signed)
    founding.write_document(out, federation)
    lines = [
        f"The federation {charter.fields.name} is founded: {federation.federation}",
        f"Send {out} to all founders. Each starts its node: allmende node run --federation {out.name}",
    ]
    emit({"federation": federation.federation, "file": str(out)}, lines, as_json)


group.add_command(amend)
group.add_command(diff)


def _compute_epoch_seconds(days: float) -> int:
    if not EPOCH_SECONDS_MIN <= days * founding.SECONDS_PER_DAY <= 2**32:  # not a number fails this, too
        raise UserError(f"--epoch-days {days:g}: an epoch is at least a minute, usually about a month")
    return round(days * founding.SECONDS_PER_DAY)


def _plain(terms: founding.CharterTerms) -> object:
    return msgspec.to_builtins(terms)
