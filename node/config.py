"""What an operator decides about one node, and where everything that belongs to it lies.

Settings are TOML that people write: an error names the file, the line and what would be right. Who the members are
and what they may do stands in no settings but in the founding document, which all founders signed.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from node.addresses import Kind, encode_address
from node.errors import UserError
from node.files import check_directory_is_guarded, read_plain, write_atomically
from protocol.charter import Charter, Charters, FoundedCharter, Member, decode_founded_charter
from protocol.errors import InvalidInput
from protocol.limits import NAME_BYTES_MAX
from protocol.receipts import verify_amendments

HOME_VARIABLE = "ALLMENDE_NODE_HOME"
HOME_DEFAULT = "~/.allmende-node"
PEERS_MAX = 1000

P2P_EXAMPLE = "write it like /ip4/192.0.2.7/tcp/4001 or /dns/node.example.org/tcp/4001"
_P2P_FORM = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/([0-9]{1,5})(?:/p2p/(12D3KooW[1-9A-HJ-NP-Za-km-z]{44}))?")
_HOST_FORM = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_BIND_FORM = re.compile(r"(\[[^\]]+\]|[^:\[\]]+):([0-9]{1,5})")

_TEMPLATE = """\
# Settings of an Allmende node. Restart the node after a change.

# This institution's name, as it stands in the charter.
name = {name}

# Where this node listens for the other members' nodes: an IP address and a TCP port of this machine.
p2p = {p2p}

# Where people, donors and browsers reach the HTTP API. For the world outside, put a TLS proxy before it.
http = {http}

# The address of the HTTP API as others see it (https://...). Empty: the API is for this machine alone.
url = {url}

# Members' nodes to call besides those that the founding document names,
# each with its peer id: "/dns/node.example.org/tcp/4001/p2p/12D3KooW..."
peers = {peers}

# Nodes at private addresses ("http://10.0.0.7:8080") at which jobs of people who are away may be followed.
# Their computers are switched off, and this node answers the donor; without an entry it calls public addresses only.
private_nodes = {private_nodes}

# What is written to the log: "debug", "info", "warning" or "error".
log_level = {log_level}
"""


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of one node."""

    name: str
    p2p: str
    http: str = "127.0.0.1:8080"
    url: str = ""
    peers: tuple[str, ...] = ()
    log_level: str = "info"
    private_nodes: tuple[str, ...] = ()

    def split_http(self) -> tuple[str, int]:
        """Host and port that the HTTP server binds to."""
        host, _, port = self.http.rpartition(":")
        return host.strip("[]"), int(port)


class Federation(msgspec.Struct, frozen=True):
    """The founding document with what founders told each other beside it: `federation.json`."""

    founded: bytes
    federation: str
    addresses: dict[str, str]
    """Member name -> network address of its node. Not signed: a wrong one can be mended, a key can't be faked."""
    acceptable_use: str = ""
    """Text whose SHA-256 stands in the charter."""
    amendments: list[bytes] = []
    """Receipts of the amendments that were known when this file was written, the first one first."""

    def decode(self) -> FoundedCharter:
        """The founding document, all signatures checked. Raises: UserError."""
        try:
            founded = decode_founded_charter(self.founded)
        except InvalidInput as error:
            raise UserError(f"the federation file is no valid founding document: {error}") from None
        if encode_address(Kind.FEDERATION, founded.charter.id) != self.federation:
            raise UserError("the federation file names another federation than its founding document: ask for it anew")
        return founded

    def decode_charters(self) -> Charters:
        """The founding charter and what the amendments made of it, every signature checked. Raises: UserError."""
        founded = self.decode()
        try:
            return verify_amendments({0: founded.charter}, self.amendments)
        except InvalidInput as error:
            raise UserError(f"the amendments in the federation file do not hold: {error}") from None


class NodeHome:
    """Where the parts of one node lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.member_key = path / "member.key"
        self.vote_key = path / "vote.key"
        """The first one; those of later charter versions lie in `vote_keys`."""
        self.vote_keys = path / "vote-keys"
        self.peer_key = path / "peer.key"
        self.founder_card = path / "founder.json"
        self.federation = path / "federation.json"
        self.ledger = path / "ledger.sqlite"
        self.socket = path / "operator.sock"
        self.blobs = path / "blobs"
        self.outbox = path / "outbox"
        """Records that this member signed and that are not final yet."""
        self.snapshots = path / "snapshots"
        """States that a quorum certified."""
        self.archive = path / "archive"
        """Batches that were taken out of the database."""

    @property
    def keys(self) -> tuple[tuple[str, Path], ...]:
        """(purpose, file) of the three keys."""
        return (("member", self.member_key), ("vote", self.vote_key), ("peer", self.peer_key))

    def load_config(self) -> NodeConfig:
        """Raises: UserError, also when there is no node here, or when others may change it."""
        if not self.config.exists():
            raise UserError(f"there is no node in {self.path}: make one with `allmende node init`, or name --home")
        check_directory_is_guarded(self.path)
        return read_config(self.config)

    def load_federation(self) -> tuple[Federation, FoundedCharter]:
        """The federation that this node belongs to. Raises: UserError."""
        if not self.federation.exists():
            raise UserError(
                f"{self.path} belongs to no federation yet: start with `allmende node run --federation federation.json`"
            )
        federation = read_federation(self.federation)
        return federation, federation.decode()


def find_own_member(charter: Charter, member_key: bytes, vote_key: bytes, peer_key: bytes) -> Member:
    """The founder whose three public keys these are. Raises: UserError when one is missing or another's."""
    number = charter.members_by_key.get(member_key)
    if number is None:
        raise UserError(
            "the charter does not know this node's member key: is it the right home directory, and was the charter "
            "drafted with this node's founder.json?"
        )
    member = charter.members[number]
    for what, ours, chartered in (("vote", vote_key, member.vote_key), ("peer", peer_key, member.peer_key)):
        if ours != chartered:
            raise UserError(
                f"the charter names another {what} key for {member.name} than this node's: restore {what}.key from its "
                "backup or, before the founding, have the charter drafted anew with this node's founder.json"
            )
    return member


def find_own_number(charters: Iterable[Charter], member_key: bytes, peer_key: bytes) -> int:
    """The number of the member that these keys belong to, in whatever version: a number outlives every key.

    Raises: UserError when no version knows them.
    """
    for charter in charters:
        for member in charter.fields.members:
            if member_key == member.member_key or peer_key == member.peer_key:
                return member.number
    raise UserError(
        "no version of the charter knows this node's keys: is it the right home directory, and did the members amend "
        "the charter with this node's founder.json?"
    )


# -- settings ---------------------------------------------------------------------------------------------------


def read_config(path: Path) -> NodeConfig:
    """The settings in a file. Raises: UserError that names the line at fault."""
    text = _read_text(path)
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no valid TOML: {error}") from None
    try:
        config = msgspec.convert(document, NodeConfig)
    except msgspec.ValidationError as error:
        raise UserError(explain_conversion(path, text, str(error))) from None
    try:
        check_config(config)
    except _FieldFault as fault:
        raise UserError(f"{path}{_find_line(text, fault.field)}: {fault}") from None
    return config


def write_config(path: Path, config: NodeConfig) -> None:
    """Write settings with an explanation of each. Raises: UserError when they are wrong or the file exists."""
    check_config(config)
    values = {name: format_toml(getattr(config, name)) for name in NodeConfig.__struct_fields__}
    write_atomically(path, _TEMPLATE.format(**values).encode(), replace=False)


class _FieldFault(UserError):
    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field} {text}")
        self.field = field


def check_config(config: NodeConfig) -> None:
    """Raises: UserError that names the setting at fault."""
    name_bytes = len(config.name.encode("utf-8", "surrogatepass"))
    if not 1 <= name_bytes <= NAME_BYTES_MAX or not config.name.isprintable() or config.name != config.name.strip():
        raise _FieldFault("name", f"must be 1 to {NAME_BYTES_MAX} bytes of plain text")
    for field, addresses in (("p2p", (config.p2p,)), ("peers", config.peers)):
        for address in addresses:
            try:
                check_p2p_address(address)
            except UserError as error:
                raise _FieldFault(field, f"holds an error: {error}") from None
            if field == "peers" and "/p2p/" not in address:
                raise _FieldFault(field, f"must name each peer's id: {address}/p2p/12D3KooW...")
    if "/p2p/" in config.p2p or config.p2p.startswith("/dns"):
        raise _FieldFault("p2p", "must be an IP address and port of this machine, like /ip4/0.0.0.0/tcp/4001")
    if len(config.peers) > PEERS_MAX:
        raise _FieldFault("peers", f"names more than {PEERS_MAX} peers")
    match = _BIND_FORM.fullmatch(config.http)
    if match is None or not _is_port(match[2]):
        raise _FieldFault("http", f"must be HOST:PORT, like 127.0.0.1:8080, not {config.http!r}")
    if config.url and not _is_url(config.url):
        raise _FieldFault("url", f"must be like https://node.example.org, not {config.url!r}")
    for node in config.private_nodes:
        if not _is_url(node):
            raise _FieldFault("private_nodes", f"must hold addresses like http://10.0.0.7:8080, not {node!r}")
    if config.log_level not in ("debug", "info", "warning", "error"):
        raise _FieldFault("log_level", 'must be "debug", "info", "warning" or "error"')


def check_p2p_address(text: str) -> None:
    """Raises: UserError unless the text is an address of the libp2p network over TCP."""
    match = _P2P_FORM.fullmatch(text)
    if match is None or not _is_port(match[3]):
        raise UserError(f"{text!r} is no network address: {P2P_EXAMPLE}")
    kind, host = match[1], match[2]
    try:
        is_host = bool(_HOST_FORM.fullmatch(host)) if kind.startswith("dns") else _is_ip(host, int(kind[-1]))
    except ValueError:
        is_host = False
    if not is_host:
        raise UserError(f"{host!r} in {text!r} is no {kind} address: {P2P_EXAMPLE}")


def split_p2p_address(text: str) -> tuple[str, int]:
    """Host and TCP port of a checked address."""
    match = _P2P_FORM.fullmatch(text)
    assert match is not None, "the address was checked"
    return match[2], int(match[3])


def _is_ip(host: str, version: int) -> bool:
    return ipaddress.ip_address(host).version == version


def _is_port(digits: str) -> bool:
    return 0 <= int(digits) <= 65535


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0 and not parts.query
    except ValueError:  # an impossible port
        return False


def explain_conversion(path: Path, text: str, message: str) -> str:
    """A failed conversion in words: msgspec says `Expected `str`, got `int` - at `$.http``."""
    what, _, where = message.partition(" - at `$.")
    field = re.split(r"[.\[`]", where)[0]
    for form in (r"unknown field `([^`]*)`", r"missing required field `([^`]*)`"):
        if match := re.search(form, what):
            field = match[1]
            what = f"{field} is no setting" if "unknown" in form else f"{field} is missing"
            return f"{path}{_find_line(text, field)}: {what}"
    return f"{path}{_find_line(text, field)}: {field}: {what[:1].lower()}{what[1:].replace('`', '')}"


def _find_line(text: str, field: str) -> str:
    """` line 7`, where the setting stands; nothing when it stands nowhere."""
    pattern = re.compile(rf'\s*"?{re.escape(field)}"?\s*=')
    for number, line in enumerate(text.splitlines(), 1):
        if field and pattern.match(line):
            return f" line {number}"
    return ""


def format_toml(value: str | int | Sequence[str]) -> str:
    """A setting's value as TOML."""
    # A JSON string is a TOML string, but for the one control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# -- JSON files -------------------------------------------------------------------------------------------------


def read_federation(path: Path) -> Federation:
    """A `federation.json`. Raises: UserError."""
    text = _read_text(path)
    try:
        federation = msgspec.json.decode(text, type=Federation)
        for address in federation.addresses.values():
            check_p2p_address(address)
    except (msgspec.ValidationError, msgspec.DecodeError, UserError) as error:
        raise UserError(f"{path} is no federation file: {error}") from None
    return federation


def encode_json(document: msgspec.Struct) -> bytes:
    """A document for people and programs: indented, with a line break at the end."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def make_home(path: Path) -> NodeHome:
    """The directory of a new node, for its owner's eyes alone. Raises: UserError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path, 0o700)
    except OSError as error:
        raise UserError(f"cannot make the directory {path}: {error.strerror}") from error
    return NodeHome(path)


def _read_text(path: Path) -> str:
    content = read_plain(path, stat.S_IWOTH, "says what a node does, and anybody may write to it", "600")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text (UTF-8): is it another file?") from None
