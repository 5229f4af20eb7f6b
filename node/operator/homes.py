"""Options that the commands of an institution share, and the way to a node's home and keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from node.config import HOME_DEFAULT, HOME_VARIABLE, NodeHome
from node.keystore import Key, Passphrase, load_key
from node.terminal import make_home_option

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])


node_home_option = make_home_option(
    HOME_VARIABLE, HOME_DEFAULT, "Directory of the node: settings, keys, ledger.", NodeHome
)
"""`--home` of an institution: the `NodeHome` `home`."""


def passphrase_option(command: CommandFunction) -> CommandFunction:
    """`--passphrase-file`, handed over as `passphrase_file`."""
    return click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        help="File whose first line is the passphrase of the node's keys.",
    )(command)


class NodeKeys(NamedTuple):
    """The three keys of a node."""

    member: Key
    vote: Key
    peer: Key


def load_keys(home: NodeHome, passphrase: Passphrase) -> NodeKeys:
    """Raises: UserError, also when there is no node in this home."""
    home.load_config()
    return NodeKeys(*(load_key(path, passphrase, purpose=purpose) for purpose, path in home.keys))
