"""Options that the commands of an institution share, and the way to a node's home and keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from node.config import HOME_DEFAULT, HOME_VARIABLE, NodeHome
from node.errors import UserError
from node.keystore import Key, Passphrase, load_key

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])


def node_home_option(command: CommandFunction) -> CommandFunction:
    """`--home`, handed over as the `NodeHome` `home`."""
    return click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        envvar=HOME_VARIABLE,
        default=HOME_DEFAULT,
        show_default=True,
        show_envvar=True,
        callback=_open_home,
        help="Directory of the node: settings, keys, ledger.",
    )(command)


def _open_home(context: click.Context, parameter: click.Parameter, value: Path) -> NodeHome:
    try:
        return NodeHome(value.expanduser())
    except RuntimeError as error:
        raise UserError(f"{value}: no such home directory; name it with --home") from error


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
