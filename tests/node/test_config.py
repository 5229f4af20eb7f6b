"""Settings that people write: read back as written, and an error says which line is wrong."""

import os
import stat

import pytest

from node.config import (
    NodeConfig,
    NodeHome,
    check_p2p_address,
    find_own_number,
    make_home,
    read_config,
    split_p2p_address,
    write_config,
)
from node.errors import UserError
from scripts.benchmarks.federation_in_memory import Cast

GOOD = NodeConfig(
    'University "Ä" \\ 1',
    "/ip4/0.0.0.0/tcp/4001",
    "[::1]:8080",
    "https://node.example.org",
    ("/dns/b.example.org/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",),
    "debug",
    ("http://10.0.0.7:8080",),
)


def write(path, **changes):
    lines = {"name": '"A"', "p2p": '"/ip4/127.0.0.1/tcp/4001"', "http": '"127.0.0.1:8080"', **changes}
    file = path / "config.toml"
    file.write_text("# settings\n\n" + "".join(f"{key} = {value}\n" for key, value in lines.items()))
    return file


def test_settings_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "config.toml"
    write_config(file, GOOD)
    assert read_config(file) == GOOD
    assert file.read_text().count("\n# ") >= 4, "each setting is explained"
    assert GOOD.split_http() == ("::1", 8080)


def test_existing_settings_are_never_replaced(tmp_path):
    write_config(tmp_path / "config.toml", GOOD)
    with pytest.raises(UserError, match="exists already"):
        write_config(tmp_path / "config.toml", GOOD)


@pytest.mark.parametrize(
    ("changes", "line", "told"),
    [
        ({"name": '""'}, 3, "name must be"),
        ({"name": '"a\\u001bb"'}, 3, "name must be"),
        ({"name": "7"}, 3, "name: expected str, got int"),
        ({"p2p": '"127.0.0.1:4001"'}, 4, "no network address"),
        ({"private_nodes": '["10.0.0.7"]'}, 6, "private_nodes must hold addresses"),
        ({"p2p": '"/ip4/127.0.0.999/tcp/4001"'}, 4, "no ip4 address"),
        ({"p2p": '"/ip4/127.0.0.1/tcp/70000"'}, 4, "no network address"),
        ({"p2p": '"/dns/node.example.org/tcp/1"'}, 4, "IP address and port of this machine"),
        ({"http": '"8080"'}, 5, "HOST:PORT"),
        ({"http": "[1]"}, 5, "http: expected str"),
        ({"url": '"node.example.org"'}, 6, "https://node.example.org"),
        ({"url": '"https://node:99999"'}, 6, "url must be"),
        ({"peers": '["/ip4/192.0.2.1/tcp/4001"]'}, 6, "peer's id"),
        ({"peers": "[1]"}, 6, "peers: expected str"),
        ({"log_level": '"loud"'}, 6, "log_level must be"),
        ({"prt": "1"}, 6, "prt is no setting"),
        ({"name": '"unclosed'}, None, "no valid TOML"),
    ],
)
def test_an_error_names_the_file_the_line_and_the_field(tmp_path, changes, line, told):
    file = write(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        read_config(file)
    message = str(caught.value)
    assert told in message
    assert "\n" not in message
    assert str(file) in message
    assert f"line {line or 3}" in message


def test_a_missing_setting_is_named(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('name = "A"\n')
    with pytest.raises(UserError, match="p2p is missing"):
        read_config(file)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * ((1 << 20) + 1)])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(UserError, match="is it another file"):
        read_config(tmp_path / "config.toml")


def test_settings_that_anybody_may_write_are_refused_with_the_remedy(tmp_path):
    home = make_home(tmp_path / "node")
    write_config(home.config, GOOD)
    assert home.load_config() == GOOD
    home.config.chmod(0o666)
    with pytest.raises(UserError, match=f"chmod 600 {home.config}"):
        home.load_config()
    home.config.chmod(0o600)
    home.path.chmod(0o777)
    with pytest.raises(UserError, match=f"chmod 700 {home.path}"):
        home.load_config()


def test_a_pipe_in_the_place_of_settings_is_refused_without_waiting(tmp_path):
    home = make_home(tmp_path / "node")
    os.mkfifo(home.config)
    with pytest.raises(UserError, match="not a plain file"):
        home.load_config()


def test_addresses_of_all_kinds_are_understood():
    for text, place in {
        "/ip4/192.0.2.7/tcp/4001": ("192.0.2.7", 4001),
        "/ip6/2001:db8::1/tcp/4001": ("2001:db8::1", 4001),
        "/dns4/node.example.org/tcp/0": ("node.example.org", 0),
    }.items():
        check_p2p_address(text)
        assert split_p2p_address(text) == place
    for text in ("", "/ip6/192.0.2.7/tcp/1", "/dns/-/tcp/1", "/ip4/1.2.3.4/udp/1", "/ip4/1.2.3.4/tcp/1/p2p/Qm"):
        with pytest.raises(UserError):
            check_p2p_address(text)


def test_a_new_home_is_for_its_owner_alone(tmp_path):
    home = make_home(tmp_path / "new" / "home")
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_a_home_without_a_node_or_federation_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="allmende node init"):
        NodeHome(tmp_path).load_config()
    with pytest.raises(UserError, match="--federation"):
        NodeHome(tmp_path).load_federation()


def test_a_node_finds_its_number_by_either_long_lived_key_in_any_version():
    cast = Cast(4, 0)
    charter = cast.founded.charter
    second = charter.members[2]
    assert find_own_number([charter], second.member_key, bytes(32)) == 2
    assert find_own_number([charter], bytes(32), second.peer_key) == 2
    with pytest.raises(UserError, match="no version of the charter knows"):
        find_own_number([charter], bytes(32), bytes([1]) * 32)
