"""The commands by which an institution acts as a member: see who belongs to the federation, vouch for donors."""

from __future__ import annotations

import click
import msgspec

from node import api
from node.addresses import Kind, decode_address
from node.config import NodeHome
from node.operator.cli_amend import describe_proposals, proposals, propose, read_versions, say_since, unlock, vote
from node.operator.cli_program import describe_signed, sign_after_asking
from node.operator.connection import connect
from node.operator.homes import node_home_option
from node.terminal import dry_run_option, emit, json_option, yes_option


@click.group("member")
def group() -> None:
    """Act as a member: see the others, decide on the charter, vouch for donors.

    \b
    Example:
        allmende member ls
        allmende member propose next.json
        allmende member vote --list
        allmende member sponsor alm1... --epochs 3
    """


@group.command("ls")
@node_home_option
@click.option("--url", help="Ask the node at this address.")
@json_option
def list_members(home: NodeHome, url: str | None, as_json: bool) -> None:
    """List the federation's members, their weights and their nodes.

    \b
    Example:
        allmende member ls
    """
    with connect(home, url) as client:
        charter = client.get_charter()
        peers = {peer.name: peer.is_connected for peer in client.get_status().peers}
    lines = [
        f"{charter.name}  {charter.federation}",
        f"Epoch {charter.epoch}, quorum {charter.quorum}, charter version {charter.version}{say_since(charter)}",
    ]
    for member in charter.members:
        reach = {True: "connected", False: "not connected", None: "this node"}[peers.get(member.name)]
        forked = ", proven to have signed two logs" if member.is_forked else ""
        lines.append(f"{member.number:4}  {member.name}: weight {member.weight}, {reach}{forked}  {member.address}")
    charters = read_versions(charter)
    lines += describe_proposals(charter.proposals, charters)
    emit(
        {
            "federation": charter.federation,
            "version": charter.version,
            "members": msgspec.to_builtins(charter.members),
            "proposals": [proposal.record for proposal in charter.proposals],
        },
        lines,
        as_json,
    )


group.add_command(propose)
group.add_command(vote)
group.add_command(unlock)
group.add_command(proposals)


@group.command()
@click.argument("donor")
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="This epoch included.")
@node_home_option
@dry_run_option
@yes_option
@json_option
def sponsor(donor: str, epochs: int, home: NodeHome, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Vouch for a donor's account, so that jobs can be paid to it.

    \b
    Example:
        allmende member sponsor alm1... --epochs 6
    """
    decode_address(Kind.ACCOUNT, donor)
    order = api.SponsorOrder(donor, epochs)
    with connect(home) as client:
        signed = sign_after_asking(lambda dry: client.sponsor(order, dry_run=dry), dry_run, yes)
    emit(describe_signed(signed, dry_run), [signed.text], as_json)
