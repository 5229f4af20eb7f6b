"""The commands by which an owner says when, to whom and for how much the machine is lent."""

from __future__ import annotations

import json
import time

from node.addresses import Kind, encode_address

ACCOUNT = encode_address(Kind.ACCOUNT, b"a" * 32)


def test_all_preferences_are_shown_with_their_meaning(allmende, lent):
    status, printed = allmende("donor", "prefs")
    assert status == 0
    assert "suspend_seconds_max = 600\n    how long a job may wait" in printed.out
    shown = json.loads(allmende("donor", "prefs", "--json")[1].out)
    assert shown["settings"]["hours"]["value"] == []
    assert shown["changed"] == []


def test_preferences_are_changed_together_or_not_at_all(allmende, lent):
    status, printed = allmende("donor", "prefs", "hours=mon-fri 18:00-08:00, sat-sun", "load_max=0.2")
    assert status == 0
    assert 'hours = ["mon-fri 18:00-08:00", "sat-sun"]' in printed.out
    assert lent.load_settings().load_max == 0.2
    before = lent.load_settings()
    for wrong in (["load_max=0.3", "hours=noon"], ["away_seconds=soon"], ["ours=1"], ["load_max"]):
        status, printed = allmende("donor", "prefs", *wrong)
        assert (status, printed.err.count("\n")) == (1, 1)
    assert lent.load_settings() == before
    assert "next start" in allmende("donor", "prefs", "node_url=http://other")[1].out
    assert "Nothing changed" in allmende("donor", "prefs", "load_max=0.2")[1].out


def test_a_new_use_policy_is_accepted_by_hand(allmende, lent, fake_node):
    policy = fake_node.charter.policy.acceptable_use.hex()
    assert lent.load_settings().acceptable_use == policy
    lent.save_settings(type(lent.load_settings())(**{**json_settings(lent), "acceptable_use": "ab" * 32}))
    status, printed = allmende("donor", "prefs", "--accept-use")
    assert status == 1
    assert "ab" * 32 in printed.err
    assert "needs -y" in printed.err
    assert allmende("donor", "prefs", "--accept-use", "-y")[0] == 0
    assert lent.load_settings().acceptable_use == policy


def json_settings(home):
    settings = home.load_settings()
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def test_lists_name_accounts_programs_and_members_that_there_are(allmende, lent):
    assert allmende("donor", "allow", "Hochschule")[0] == 0
    status, printed = allmende("donor", "deny", ACCOUNT, "--json")
    assert (status, json.loads(printed.out)) == (0, {"allow": ["Hochschule"], "deny": [ACCOUNT]})
    status, printed = allmende("donor", "allow", "Hochschlue")
    assert (status, "1 Hochschule" in printed.err) == (1, True)
    assert allmende("donor", "deny", ACCOUNT[:-1] + "q")[0] == 1
    status, printed = allmende("donor", "allow", ACCOUNT)
    assert (status, "deny --remove" in printed.err) == (1, True)
    assert "Allow: everybody" in allmende("donor", "allow", "Hochschule", "--remove")[1].out
    assert "Deny: nobody" in allmende("donor", "deny", ACCOUNT, "--remove")[1].out


def test_a_pause_may_be_for_a_while(allmende, lent):
    status, printed = allmende("donor", "pause", "--for", "2h", "--json")
    document = json.loads(printed.out)
    assert (status, document["wish"]) == (0, "pause")
    assert 7100 < document["until_seconds"] - time.time() < 7201, "whole seconds"
    assert lent.read_wish_until() == ("pause", document["until_seconds"])
    assert "pause until" in allmende("donor", "status")[1].out
    assert allmende("donor", "pause", "--for", "soon")[0] == 1
    assert allmende("donor", "pause", "--for", "0h")[0] == 1
    assert json.loads(allmende("donor", "resume", "--json")[1].out)["wish"] == "run"
    assert lent.read_wish() == "run"
