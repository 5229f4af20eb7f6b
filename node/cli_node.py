"""The commands that make, run and look after an institution's node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from node.cli_audit import audit
from node.config import (
    Federation,
    NodeConfig,
    NodeHome,
    check_config,
    check_p2p_address,
    encode_json,
    find_own_member,
    find_own_number,
    make_home,
    read_federation,
    split_p2p_address,
    write_config,
)
from node.errors import UserError
from node.files import write_atomically
from node.keystore import Key, Passphrase, load_key, new_key, save_key
from node.operator.cli_ledger import checkpoint, fetch_archive, prune
from node.operator.founding import FounderCard, name_federation, write_document
from node.operator.homes import load_keys, node_home_option, passphrase_option
from node.terminal import emit, json_option

if TYPE_CHECKING:
    from node.operator.doctor import Check

UNSPECIFIED_HOSTS = ("0.0.0.0", "::")
EXIT_FAILED = 1


@click.group("node")
def group() -> None:
    """Run an institution's node and look after it.

    \b
    Example:
        allmende node init --name "University A" --p2p /ip4/192.0.2.7/tcp/4001 --http 127.0.0.1:8080
        allmende node doctor
        allmende node run --federation federation.json
    """


@group.command()
@node_home_option
@click.option("--name", required=True, help="This institution's name in the charter.")
@click.option("--p2p", required=True, help="Listen for other members here: /ip4/192.0.2.7/tcp/4001.")
@click.option("--announce", help="Where others reach that, if elsewhere: /dns/node.example.org/tcp/4001.")
@click.option("--http", default="127.0.0.1:8080", show_default=True, help="HOST:PORT of the HTTP API.")
@click.option("--url", default="", help="Public address of the HTTP API: https://node.example.org.")
@passphrase_option
@json_option
def init(
    home: NodeHome,
    name: str,
    p2p: str,
    announce: str | None,
    http: str,
    url: str,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make a node: its directory, three keys, its settings and the card for the other founders.

    Without --passphrase-file the keys are plain files of mode 0600, so that the node can start unattended.

    \b
    Example:
        allmende node init --name "University A" --p2p /ip4/192.0.2.7/tcp/4001 --url https://node.a.example
    """
    config = NodeConfig(name, p2p, http, url)
    check_config(config)
    address = announce or p2p
    check_p2p_address(address)
    if split_p2p_address(address)[0] in UNSPECIFIED_HOSTS:
        raise UserError(f"others can't call {address}: add --announce with this node's public address")
    if home.config.exists():
        raise UserError(f"there is a node in {home.path} already: name another place with --home")
    passphrase = Passphrase(passphrase_file).choose("the node's keys") if passphrase_file else None
    make_home(home.path)
    member, vote, peer = (make_or_load_key(path, purpose, passphrase) for purpose, path in home.keys)
    card = FounderCard(name, member.public_key, vote.public_key, peer.public_key, address, url)
    write_document(home.founder_card, card, replace=True)
    write_config(home.config, config)
    lines = [
        f"The node of {name} is in {home.path}. Its keys can't be made again: back them up now, off this machine.",
        f"Next: send {home.founder_card} (nothing secret) to who drafts the charter; then allmende charter sign.",
    ]
    emit({"home": str(home.path), "founder": msgspec.to_builtins(card)}, lines, as_json)


def make_or_load_key(path: Path, purpose: str, passphrase: str | None) -> Key:
    """A new key in its file, or the one of an attempt that was interrupted: a key is never replaced."""
    if path.exists():
        return load_key(path, passphrase, purpose=purpose)
    key = new_key(purpose)
    save_key(path, key.seed, passphrase, purpose=purpose)
    return key


@group.command()
@node_home_option
@click.option("--federation", type=click.Path(dir_okay=False, path_type=Path),
              help="Founding document; needed at a founder's first start only.")  # fmt: skip
@click.option("--join", metavar="FEDERATION", help="Join this federation (almf1...) whose charter names this node.")
@click.option("--from", "node_url", metavar="URL", help="With --join: any member's node, http(s)://...")
@passphrase_option
def run(
    home: NodeHome, federation: Path | None, join: str | None, node_url: str | None, passphrase_file: Path | None
) -> None:
    """Run the node until it is told to stop (SIGTERM or Ctrl-C).

    \b
    Example:
        allmende node run --federation federation.json
        allmende node run --join almf1... --from https://node.a.example
    """
    passphrase = Passphrase(passphrase_file)
    home.load_config()
    if (join is None) != (node_url is None) or (join is not None and federation is not None):
        raise UserError("to join a federation give --join and --from, and no --federation")
    if federation is not None:
        install_federation(home, federation, passphrase)
    if join is not None and node_url is not None:
        join_federation(home, join, node_url, passphrase)
    home.load_federation()
    from node.daemon import run_node

    run_node(home.path, passphrase)


def install_federation(home: NodeHome, file: Path, passphrase: Passphrase) -> None:
    """Keep the founding document in the home, once we are in it. Raises: UserError, also for another federation."""
    federation = read_federation(file)
    charter = federation.decode().charter
    if not _is_installed(home, name_federation(charter), str(file)):
        keys = load_keys(home, passphrase)
        find_own_member(charter, keys.member.public_key, keys.vote.public_key, keys.peer.public_key)
        write_atomically(home.federation, encode_json(federation), 0o644, replace=False)


def _is_installed(home: NodeHome, federation: str, source: str) -> bool:
    """True when the home belongs to this federation already. Raises: UserError when to another one."""
    if not home.federation.exists():
        return False
    installed, _ = home.load_federation()
    if installed.federation != federation:
        raise UserError(
            f"{home.path} belongs to the federation {installed.federation}, and {source} is for {federation}: a node "
            "serves one federation, make another home"
        )
    return True


def join_federation(home: NodeHome, federation: str, node_url: str, passphrase: Passphrase) -> None:
    """Fetch the charter with all that proves it, the members' addresses and the last certified state from any node;
    keep them in the home.

    Raises: UserError when it does not hold or does not name this node; Unreachable.
    """
    from node.joining import begin_with_checkpoint, fetch_checkpoint
    from node.served_charter import fetch_charter
    from node.vote_keys import read_passphrase

    federation = federation.strip()
    if _is_installed(home, federation, "--join"):
        return
    founded, charters, answer = fetch_charter(node_url, federation)
    newest = charters[max(charters)]
    text = read_passphrase(home.member_key, passphrase)
    public_keys = (load_key(path, text, purpose=it).public_key for it, path in home.keys if it != "vote")
    try:
        find_own_number([newest], *public_keys)
    except UserError:
        raise UserError(
            f"version {newest.version} of the charter does not name this node: send {home.founder_card} to a member, "
            "who drafts an amendment with `allmende charter amend --add`; when it is in force, run this again"
        ) from None
    addresses = {}
    for name, address in answer.addresses.items():
        check_p2p_address(address)
        addresses[name] = address
    receipts = [amendment.receipt for amendment in answer.amendments]
    if not home.ledger.exists() and (snapshot := fetch_checkpoint(node_url, charters)) is not None:
        begin_with_checkpoint(home.ledger, home.snapshots, founded.charter, snapshot, receipts)
    joined = Federation(founded.encode(), federation, addresses, amendments=receipts)
    write_atomically(home.federation, encode_json(joined), 0o644, replace=False)


@group.command()
@node_home_option
@click.option("--url", help="Ask the node at this address instead of the one on this machine.")
@json_option
def status(home: NodeHome, url: str | None, as_json: bool) -> None:
    """Show what the node is doing: epoch, records, peers.

    \b
    Example:
        allmende node status
        allmende node status --url https://node.a.example --json
    """
    from node.operator.connection import connect

    with connect(home, url) as client:
        found = client.get_status()
    connected = sum(peer.is_connected for peer in found.peers)
    lines = [
        f"Member    {found.member}, {found.name} (allmende {found.version})",
        f"Ledger    {found.federation}",
        f"Epoch     {found.epoch}, charter version {found.charter_version}",
        f"Batches   {found.batches}",
        f"Records   {found.records_final} final, {found.records_waiting} waiting",
        f"State     {found.state_root[:16]}  frontier {found.frontier[:16]}",
        f"Peers     {connected} of {len(found.peers)} connected",
        *(f"  {'up  ' if peer.is_connected else 'down'}  {peer.name}  {peer.peer_id}" for peer in found.peers),
    ]
    if found.frozen_count:
        what = f"{found.frozen_count} of all accounts, holds and tags"
        lines.append(f"Frozen    {what}: two records final that exclude each other")
    if found.evidence:
        more = f" and {len(found.evidence) - 1} more" if len(found.evidence) > 1 else ""
        lines.append(f"Evidence  {found.evidence[0]}{more}; see allmende evidence ls")
    if found.notice:
        lines.append(f"Notice    {found.notice}")
    emit(msgspec.to_builtins(found), lines, as_json)


@group.command()
@node_home_option
@passphrase_option
@json_option
@click.pass_context
def doctor(context: click.Context, home: NodeHome, passphrase_file: Path | None, as_json: bool) -> None:
    """Check everything that the node needs; exit status 1 when something fails.

    \b
    Example:
        allmende node doctor
    """
    from node.operator.connection import read_server_clock
    from node.operator.doctor import examine

    checks = list(examine(home, Passphrase(passphrase_file), read_server_clock))
    failed = sum(check.state == "failed" for check in checks)
    lines = [line for check in checks for line in _describe_check(check)]
    lines.append(f"{len(checks)} checks, {failed} failed." if failed else f"{len(checks)} checks, none failed.")
    emit({"failed": failed, "checks": msgspec.to_builtins(checks)}, lines, as_json)
    if failed:
        context.exit(EXIT_FAILED)


def _describe_check(check: Check) -> list[str]:
    lines = [f"{check.state:8}{check.name}: {check.actual}"]
    if check.state != "ok":
        lines += [
            f"{'':8}required: {check.required}",
            f"{'':8}purpose:  {check.purpose}",
            f"{'':8}remedy:   {check.remedy}",
        ]
    return lines


for command in (checkpoint, prune, fetch_archive, audit):
    group.add_command(command)
