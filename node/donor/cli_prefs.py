"""The donor's preferences on the command line: show and change them, and say who may use the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.errors import UserError
from node.terminal import confirm, emit, home_option, json_option, yes_option

if TYPE_CHECKING:
    from node.donor.settings import DonorHome, Settings

remove_option = click.option("--remove", is_flag=True, help="Take WHO off the list.")


@click.command()
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--accept-use", is_flag=True, help="Accept the federation's use policy as it is now.")
@home_option
@yes_option
@json_option
def prefs(changes: tuple[str, ...], accept_use: bool, home: Path, yes: bool, as_json: bool) -> None:
    """Show all preferences with their meaning, or change some. A running agent takes them up within seconds.

    Lists are separated by commas; an empty VALUE empties one. Times may be written 90s, 10m, 2h or 1d, memory and disk
    in GB.

    Example: allmende donor prefs "hours=mon-fri 18:00-08:00, sat-sun" load_max=0.2 job_credits_max=500
    """
    from node.config import format_toml
    from node.donor.preferences import change_settings
    from node.donor.settings import MEANINGS, RESTART_NAMES, open_donor

    donor_home = open_donor(home)
    before = donor_home.load_settings()
    after = change_settings(before, changes)
    if accept_use:
        after = _accept_use(donor_home, after, yes)
    if after != before:
        donor_home.save_settings(after)
    changed = [name for name in MEANINGS if getattr(after, name) != getattr(before, name)]
    shown = changed if changes or accept_use else list(MEANINGS)
    document = {
        "settings": {name: {"value": getattr(after, name), "meaning": MEANINGS[name]} for name in MEANINGS},
        "changed": changed,
    }
    lines = [f"{name} = {format_toml(getattr(after, name))}\n    {MEANINGS[name]}" for name in shown]
    if not shown:
        lines = ["Nothing changed: it was so before."]
    if late := sorted(RESTART_NAMES.intersection(changed)):
        lines.append(f"A running agent takes up {' and '.join(late)} at its next start only.")
    emit(document, lines, as_json)


def _accept_use(donor_home: DonorHome, settings: Settings, yes: bool) -> Settings:
    """The settings with the use policy that is in force now, after asking. Raises: UserError; Unreachable."""
    import msgspec

    from node.addresses import Kind, encode_address
    from node.served_charter import fetch_charter

    founding = donor_home.load_charter().charter
    served = fetch_charter(settings.node_url, encode_address(Kind.FEDERATION, founding.federation))
    newest = served.charters[max(served.charters)]
    policy = newest.policy.acceptable_use.hex()
    accepted = settings.acceptable_use or founding.policy.acceptable_use.hex()
    if policy == accepted:
        return msgspec.structs.replace(settings, acceptable_use=policy)
    click.echo(f"Accepted so far  SHA-256 {accepted}", err=True)
    click.echo(f"In force now     SHA-256 {policy} (charter version {newest.version})", err=True)
    click.echo("Any member's institution gives you the text; compare it with `sha256sum`.", err=True)
    confirm("Let jobs under this use policy run here?", yes)
    return msgspec.structs.replace(settings, acceptable_use=policy)


@click.command()
@click.argument("who")
@remove_option
@home_option
@json_option
def allow(who: str, remove: bool, home: Path, as_json: bool) -> None:
    """Let WHO use this machine, and with the first entry nobody else.

    WHO is an account (alm1...), a program (almp1...: whoever pays with its credits), or a member by name or number:
    whoever that institution has enrolled.

    Example: allmende donor allow "University A"
    """
    _edit_list(home, "allow", who, remove, as_json)


@click.command()
@click.argument("who")
@remove_option
@home_option
@json_option
def deny(who: str, remove: bool, home: Path, as_json: bool) -> None:
    """Don't let WHO use this machine, whatever else is allowed. Jobs that run go on: `pause` ends them.

    WHO is an account (alm1...), a program (almp1...: its credits are not taken), or a member by name or number.

    Example: allmende donor deny alm1...
    """
    _edit_list(home, "deny", who, remove, as_json)


def _edit_list(home: Path, name: str, entry: str, remove: bool, as_json: bool) -> None:
    from node.donor.preferences import add_to_list, remove_from_list
    from node.donor.settings import open_donor

    donor_home = open_donor(home)
    before = donor_home.load_settings()
    if remove:
        after = remove_from_list(before, name, entry)
    else:
        _check_member(donor_home, entry)
        after = add_to_list(before, name, entry)
    after.check()
    if after != before:
        donor_home.save_settings(after)
    everybody = "everybody" if name == "allow" else "nobody"
    entries = getattr(after, name)
    lines = [f"{name.capitalize()}: {', '.join(entries) or everybody}"]
    emit({"allow": after.allow, "deny": after.deny}, lines, as_json)


def _check_member(donor_home: DonorHome, entry: str) -> None:
    """A list with typing errors protects nobody. Raises: UserError when the entry names a member that there isn't."""
    from node.donor.who import parse_who
    from node.known_charters import KnownCharters

    kind, name = parse_who(entry)
    if kind != "member":
        return
    members = KnownCharters(donor_home.load_charter().charter, donor_home.amendments_path).newest.members
    if name not in {*members, *(member.name for member in members.values())}:
        known = ", ".join(f"{number} {member.name}" for number, member in sorted(members.items()))
        raise UserError(f"no member is called {entry!r}, as far as is known here; the members: {known}")
