"""The commands that change the charter: draft the next version, show what a draft changes, propose it, approve it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from node import api
from node.config import NodeHome
from node.errors import UserError
from node.operator import founding
from node.operator.amending import AmendmentDraft, Changes, compose_amendment, describe_changes, open_amendment
from node.operator.charter_options import parse_credits_option, parse_weight, read_use_policy, split_assignment
from node.operator.cli_program import describe_signed, sign_after_asking
from node.operator.connection import connect
from node.operator.homes import node_home_option
from node.operator.rates import read_rates
from node.served_charter import verify_charter
from node.terminal import FILE, dry_run_option, emit, format_moment, json_option, yes_option
from protocol.charter import Charter, Charters, decode_charter
from protocol.errors import InvalidInput

if TYPE_CHECKING:
    from node.client import NodeClient


def read_versions(answer: api.Charter) -> Charters:
    """All versions that a node tells of, each verified under the one before. Raises: UserError."""
    return verify_charter(answer, "the node").charters


@click.command()
@click.option("--out", required=True, type=FILE, help="File to write the draft to.")
@click.option("--add", "added", multiple=True, metavar="CARD[:WEIGHT]", help="A new member's founder.json.")
@click.option("--remove", "removed", multiple=True, metavar="NAME", help="A member that leaves.")
@click.option("--weight", "weights", multiple=True, metavar="NAME=W", help="A member's new voting weight.")
@click.option("--cap", "caps", multiple=True, metavar="NAME=CREDITS",
              help="What a member may grant in each epoch from now on; never less than before.")  # fmt: skip
@click.option("--name", "names", multiple=True, metavar="OLD=NEW", help="A member's new name.")
@click.option("--member-key", "member_keys", multiple=True, metavar="NAME=CARD",
              help="A member's new key, from the founder.json of a new `node init`.")  # fmt: skip
@click.option("--rates", type=FILE, help="The new rate table: JSON object of devices and weights.")
@click.option("--acceptable-use", type=FILE, help="Text of the new use policy.")
@node_home_option
@json_option
def amend(
    out: Path,
    added: tuple[str, ...],
    removed: tuple[str, ...],
    weights: tuple[str, ...],
    caps: tuple[str, ...],
    names: tuple[str, ...],
    member_keys: tuple[str, ...],
    rates: Path | None,
    acceptable_use: Path | None,
    home: NodeHome,
    as_json: bool,
) -> None:
    """Draft the next version of the charter, with fresh vote keys of all members that answer.

    \b
    Example:
        allmende charter amend --add e.json --out next.json
        allmende charter amend --remove "University B" --weight "University A=2" --out next.json
    """
    changes = Changes(
        added=[_read_card(text) for text in added],
        removed=removed,
        weights=dict(map(parse_weight, weights)),
        caps={name: parse_credits_option("--cap", text) for name, text in map(split_assignment, caps)},
        names=dict(map(split_assignment, names)),
        member_keys={
            name: founding.read_document(Path(card), founding.FounderCard, "card").member_key
            for name, card in map(split_assignment, member_keys)
        },
        rates=read_rates(rates) if rates else None,
        acceptable_use=read_use_policy(acceptable_use) if acceptable_use else None,
    )
    with connect(home) as client:
        answer = client.get_charter()
        cards = client.collect_vote_cards()
    charters = read_versions(answer)
    draft = compose_amendment(charters, changes, {card.member: card.vote_key for card in cards}, answer.epoch)
    founding.write_document(out, draft)
    silent = [m.name for m in answer.members if m.number not in {card.member for card in cards}]
    lines = [f"Version {draft.version}:", *(f"  {line}" for line in draft.changes), ""]
    if silent:
        lines.append(f"Not reached, so they keep their vote keys: {', '.join(silent)}")
    lines.append(f"The draft is in {out}. Read it, then: allmende member propose {out.name}")
    document = {"version": draft.version, "draft": str(out), "changes": draft.changes, "not_reached": silent}
    emit(document, lines, as_json)


def _read_card(text: str) -> tuple[founding.FounderCard, int]:
    """CARD or CARD:WEIGHT. Raises: UserError."""
    path, _, digits = text.rpartition(":")
    if path and digits.isascii() and digits.isdigit():
        weight = parse_weight(f"{path}={digits}")[1]
    else:
        path, weight = text, 1
    return founding.read_document(Path(path), founding.FounderCard, "new member's card"), weight


@click.command()
@click.argument("file", type=FILE)
@node_home_option
@click.option("--url", help="Ask the node at this address.")
@json_option
def diff(file: Path, home: NodeHome, url: str | None, as_json: bool) -> None:
    """Say in words what a draft of an amendment changes.

    \b
    Example:
        allmende charter diff next.json
    """
    draft = founding.read_document(file, AmendmentDraft, "draft of an amendment")
    with connect(home, url) as client:
        charters = read_versions(client.get_charter())
    open_amendment(draft, charters, file)
    lines = [f"Version {draft.version} of {draft.federation}:", *(f"  {line}" for line in draft.changes)]
    if draft.acceptable_use:
        lines += ["", *draft.acceptable_use.splitlines()]
    emit({"version": draft.version, "changes": draft.changes}, lines, as_json)


def show_in_force(home: NodeHome, url: str | None, as_json: bool) -> None:
    """The charter in force, its history and what is proposed, as a node tells it."""
    with connect(home, url) as client:
        answer = client.get_charter()
    charters = read_versions(answer)
    charter = charters[answer.version]
    lines = founding.compute_summary(charter, answer.addresses)
    for amendment in answer.amendments:
        since = (
            f"in force since {format_moment(amendment.in_force_since)}" if amendment.in_force_since else "not in force"
        )
        lines += ["", f"Version {amendment.version}, {since}: {amendment.record}"]
        changes = describe_changes(charters[amendment.version - 1], charters[amendment.version])
        lines += [f"  {line}" for line in changes]
    if answer.proposals:
        lines += ["", *describe_proposals(answer.proposals, charters)]
    document = {
        "federation": answer.federation,
        "version": answer.version,
        "terms": msgspec.to_builtins(founding.describe_charter(charter)),
        "amendments": [_describe_amendment(it) for it in answer.amendments],
        "proposals": [_describe(it, charters) for it in answer.proposals],
    }
    emit(document, lines, as_json)


def say_since(answer: api.Charter) -> str:
    """Since when the version in force holds, as the node saw it; nothing for the founding charter."""
    moments = {amendment.version: amendment.in_force_since for amendment in answer.amendments}
    moment = moments.get(answer.version)
    return f", in force since {format_moment(moment)}" if moment else ""


def _describe_amendment(amendment: api.Amendment) -> dict[str, object]:
    since = amendment.in_force_since
    return {"version": amendment.version, "record": amendment.record, "in_force_since": since}


def _describe(proposal: api.Proposal, charters: Charters) -> dict[str, object]:
    return {
        "record": proposal.record,
        "version": proposal.version,
        "proposed_by": proposal.proposed_by,
        "voted_by": proposal.voted_by,
        "weight": proposal.weight,
        "is_approved_here": proposal.is_approved_here,
        "changes": _list_changes(proposal, charters),
    }


def _list_changes(proposal: api.Proposal, charters: Charters) -> list[str]:
    before = charters[proposal.version - 1]
    try:
        return describe_changes(before, decode_charter(proposal.encoded, before.federation))
    except InvalidInput as error:
        return [f"It holds no valid charter: {error}"]


def describe_proposal(proposal: api.Proposal, charters: Charters) -> list[str]:
    """An open amendment, as lines."""
    before: Charter = charters[proposal.version - 1]
    here = "approved here" if proposal.is_approved_here else "not approved here"
    return [
        f"{proposal.record}: version {proposal.version}, proposed by {proposal.proposed_by}, {here}",
        f"  Votes of weight {proposal.weight}, {before.quorum} needed: {', '.join(proposal.voted_by) or 'none yet'}",
        *(f"  {line}" for line in _list_changes(proposal, charters)),
    ]


def describe_proposals(proposals: Sequence[api.Proposal], charters: Charters) -> list[str]:
    """All open amendments, and how the votes stand between those that compete."""
    lines = [line for proposal in proposals for line in describe_proposal(proposal, charters)]
    return [*lines, *describe_contest(proposals, charters)]


def describe_contest(proposals: Sequence[api.Proposal], charters: Charters) -> list[str]:
    """How the votes are split between amendments that compete for one version, and what then helps."""
    if len(proposals) < 2:
        return []
    charter = charters[proposals[0].version - 1]
    voted = {name for proposal in proposals for name in proposal.voted_by}
    unvoted = sum(member.weight for member in charter.fields.members if member.name not in voted)
    weights = [proposal.weight for proposal in proposals]
    lines = [
        f"{len(proposals)} amendments compete for version {charter.version + 1}, and one can win: votes of weight "
        f"{' and '.join(map(str, weights))}, {charter.quorum} needed, {unvoted} not voted yet."
    ]
    if max(weights) + unvoted < charter.quorum:
        lines.append(
            "The votes are split: none can win by itself any more. Agree on one, let members of weight "
            f"{charter.quorum} approve it (`allmende member vote`), then run `allmende member unlock` for it."
        )
    return lines


@click.command()
@click.argument("file", type=FILE)
@node_home_option
@dry_run_option
@yes_option
@json_option
def propose(file: Path, home: NodeHome, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Propose a drafted amendment to all members, and approve it for this institution.

    \b
    Example:
        allmende member propose next.json
    """
    draft = founding.read_document(file, AmendmentDraft, "draft of an amendment")
    with connect(home) as client:
        after = open_amendment(draft, read_versions(client.get_charter()), file)
        for line in draft.changes:
            click.echo(line, err=True)
        order = api.AmendmentOrder(after.encoded)
        signed = sign_after_asking(lambda dry: client.propose_amendment(order, dry_run=dry), dry_run, yes)
    emit(describe_signed(signed, dry_run), [signed.text], as_json)


@click.command()
@click.argument("amendment", required=False)
@click.option("--list", "is_list", is_flag=True, help="Only list what is proposed.")
@node_home_option
@dry_run_option
@yes_option
@json_option
def vote(amendment: str | None, is_list: bool, home: NodeHome, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Approve a proposed amendment: only then does this institution's member vote for it.

    Without AMENDMENT the only open one is meant.

    \b
    Example:
        allmende member vote --list
        allmende member vote almr1...
    """
    with connect(home) as client:
        if is_list:
            list_proposals(client, as_json)
            return
        record_id = amendment or _find_only(client)
        signed = sign_after_asking(lambda dry: client.approve_amendment(record_id, dry_run=dry), dry_run, yes)
    emit(describe_signed(signed, dry_run), [signed.text], as_json)


@click.command()
@click.argument("amendment")
@node_home_option
@dry_run_option
@yes_option
@json_option
def unlock(amendment: str, home: NodeHome, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Make another attempt at AMENDMENT, when votes are split between two and none gets a quorum.

    First a quorum of members approves the one that is to win (`allmende member vote`). Members take turns in asking.

    \b
    Example:
        allmende member unlock almr1...
    """
    with connect(home) as client:
        signed = sign_after_asking(lambda dry: client.unlock_amendment(amendment, dry_run=dry), dry_run, yes)
    emit(describe_signed(signed, dry_run), [signed.text], as_json)


def _find_only(client: NodeClient) -> str:
    proposals = client.get_charter().proposals
    if len(proposals) != 1:
        what = "nothing is proposed" if not proposals else "several amendments are proposed"
        raise UserError(f"{what}: see `allmende member proposals`")
    return proposals[0].record


@click.command()
@node_home_option
@click.option("--url", help="Ask the node at this address.")
@json_option
def proposals(home: NodeHome, url: str | None, as_json: bool) -> None:
    """List the amendments that are proposed, and who voted for them.

    \b
    Example:
        allmende member proposals
    """
    with connect(home, url) as client:
        list_proposals(client, as_json)


def list_proposals(client: NodeClient, as_json: bool) -> None:
    """What is proposed, as a node tells it."""
    answer = client.get_charter()
    charters = read_versions(answer)
    lines = describe_proposals(answer.proposals, charters)
    emit(
        {"version": answer.version, "proposals": [_describe(it, charters) for it in answer.proposals]},
        lines or ["Nothing is proposed."],
        as_json,
    )
