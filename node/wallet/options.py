"""The options that the commands of a person share, and the wallet that they open."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.terminal import CommandFunction

if TYPE_CHECKING:
    from node.keystore import Passphrase

NODE_VARIABLE = "ALLMENDE_NODE"


def node_option(command: CommandFunction) -> CommandFunction:
    """`--node`, handed over as `node_url`: the node that is asked, this time."""
    return click.option(
        "--node",
        "node_url",
        metavar="URL",
        envvar=NODE_VARIABLE,
        show_envvar=True,
        help="Ask this node instead of the wallet's own.",
    )(command)


def passphrase_option(command: CommandFunction) -> CommandFunction:
    """`--passphrase-file`, handed over as `passphrase_file`."""
    return click.option(
        "--passphrase-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Read the passphrase from a file (mode 0600) instead of asking; or set ALLMENDE_PASSPHRASE.",
    )(command)


def wait_option(command: CommandFunction) -> CommandFunction:
    """`--wait`, handed over as `wait_seconds`."""
    return click.option(
        "--wait",
        "wait_seconds",
        type=click.FloatRange(0, 600),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the proof that it is final.",
    )(command)


def make_passphrase(file: Path | None) -> Passphrase:
    """Where the passphrase comes from: the file, else the environment, else the person."""
    from node.keystore import Passphrase

    return Passphrase(file)


def format_date(unix_seconds: int) -> str:
    """A day for people, in universal time, like the epochs."""
    return time.strftime("%Y-%m-%d", time.gmtime(unix_seconds))
