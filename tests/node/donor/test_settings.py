"""A donor's file of settings: what is wrong in it is told in one line, and a running agent takes up what changed."""

from __future__ import annotations

import os
import time

import msgspec
import pytest

from node.addresses import Kind, encode_address
from node.donor.preferences import add_to_list, change_settings, remove_from_list
from node.donor.settings import MEANINGS, DonorHome, Settings, SettingsWatch, read_settings
from node.errors import UserError

OLD_FILE = """
node_url = "http://node"
machine = "bench"
cores = 2
memory_bytes = 4000000000
disk_bytes = 1000000000
job_classes = ["batch"]
runtimes = []
"""
SETTINGS = Settings("http://node", "bench", 2, 4 * 10**9, 10**9, ["batch"], [])
ACCOUNT = encode_address(Kind.ACCOUNT, b"a" * 32)


@pytest.fixture
def home(tmp_path):
    return DonorHome(tmp_path)


def test_every_setting_is_explained_and_survives_being_written(home):
    assert {*MEANINGS, "slurm"} == set(Settings.__struct_fields__)  # that is a table, explained in the guide
    changed = change_settings(SETTINGS, ["load_max=0.25", "hours=mon-fri 18:00-08:00, sat-sun", f"allow={ACCOUNT}"])
    home.save_settings(changed)
    assert home.load_settings() == changed
    text = home.settings_path.read_text()
    assert all(f"# {meaning}\n{name} = " in text for name, meaning in MEANINGS.items())


def test_a_file_of_an_older_version_is_as_good_as_one_with_the_defaults(home):
    home.settings_path.write_text(OLD_FILE)
    assert home.load_settings() == SETTINGS


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ours = 3", "line 9: ours is no setting"),
        ("cores = 0", "cores in donor.toml must be above 0"),
        ("load_max = 1.5", "at most 1"),
        ("load_max = nan", "at most 1"),
        ("load_max = -1", "load_max in donor.toml can't be below 0"),
        ("suspend_seconds_max = -1", "can't be below 0"),
        ('suspend_seconds_max = "10"', "line 9: suspend_seconds_max"),
        ('hours = ["noon"]', "mon-fri 18:00-08:00"),
        ('hosts = ["pypi.org"]', "pypi.org:443"),
        ('hosts = ["pypi.org:70000"]', "pypi.org:443"),
        (f'hosts = ["{"h" * 64}:443"]', "longer than 64"),
        ('hosts = ["pypi.org:443"]\nexecutor = "slurm"\n[slurm]\nshared_directory = "/shared"', "on a cluster"),
        (f"hosts = {[f'h{number}.org:1' for number in range(33)]}", "at most 32"),
        ('allow = ["alm1qqqq"]', "alm1qqqq"),
        ('allow = ["1"]\ndeny = ["1"]', "both allows and denies 1"),
        ('acceptable_use = "abc"', "--accept-use"),
        ("= 3", "can't be read"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(home, line, words):
    lines = [kept for kept in OLD_FILE.strip().splitlines() if kept.split()[0] != line.split()[0]]
    home.settings_path.write_text("\n".join([*lines, "", line, ""]))
    with pytest.raises(UserError) as caught:
        home.load_settings()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_running_agent_takes_up_what_may_change_and_once_only(home):
    home.save_settings(SETTINGS)
    watch = SettingsWatch(home.settings_path, home.load_settings())
    assert watch.read_change() is None
    home.save_settings(change_settings(SETTINGS, ["job_credits_max=5", "runtimes=python-ml", "node_url=http://other"]))
    assert watch.read_change() == msgspec.structs.replace(SETTINGS, job_credits_max=5)
    assert watch.read_change() is None
    home.settings_path.write_text("nonsense")
    with pytest.raises(UserError):
        watch.read_change()
    assert watch.read_change() is None
    os.unlink(home.settings_path)
    with pytest.raises(UserError):
        watch.read_change()
    assert watch.settings.job_credits_max == 5
    home.save_settings(SETTINGS)
    assert watch.read_change() == SETTINGS


# -- words of a command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("suspend_seconds_max=10m", 600),
        ("away_seconds = 90", 90),
        ("wall_seconds_max=1d", 86400),
        ("memory_bytes=2.5GB", 2_500_000_000),
        ("job_memory_bytes_max=1 gb", 10**9),
        ("is_idle_gpu_needed=no", False),
        ("load_max=0.5", 0.5),
        ("deny=University A, 3", ["University A", "3"]),
        ("allow=", []),
        ("machine=my bench", "my bench"),
    ],
)
def test_values_are_read_as_people_write_them(assignment, value):
    name = assignment.partition("=")[0].strip()
    assert getattr(change_settings(SETTINGS, [assignment]), name) == value


@pytest.mark.parametrize(
    "assignment", ["cores", "ours=1", "cores=many", "cores=0", "away_seconds=soon", "is_idle_gpu_needed=5", "hours=x"]
)
def test_values_that_make_no_sense_change_nothing(assignment):
    with pytest.raises(UserError):
        change_settings(SETTINGS, [assignment])


def test_a_list_holds_each_once_however_it_is_written_and_no_list_contradicts_the_other():
    once = add_to_list(SETTINGS, "allow", ACCOUNT)
    assert add_to_list(once, "allow", ACCOUNT.upper()) == once
    with pytest.raises(UserError, match="allow --remove"):
        add_to_list(once, "deny", ACCOUNT)
    assert remove_from_list(once, "allow", ACCOUNT.upper()) == SETTINGS
    with pytest.raises(UserError, match="not on the list"):
        remove_from_list(SETTINGS, "deny", "3")


# -- wishes -------------------------------------------------------------------------------------------------------


def test_a_pause_may_end_by_itself(home):
    assert home.read_wish() == "run"
    soon = round(time.time()) + 1000
    home.write_wish("pause", soon)
    assert home.read_wish_until() == ("pause", soon)
    home.write_wish("pause", round(time.time()) - 1)
    assert home.read_wish_until() == ("run", 0)
    for wish in ("pause", "finish"):
        home.write_wish(wish)
        assert home.read_wish() == wish
    home.wish_path.write_text("dance 7\n")
    assert home.read_wish() == "run"


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        read_settings(tmp_path / "donor.toml")
