"""Nodes are killed at random instants under load: nothing acknowledged is lost, and no node contradicts itself."""

import os
import random
import time

import pytest

from node.addresses import Kind, encode_address
from scripts.benchmarks.federation_in_memory import Cast
from scripts.benchmarks.local_federation import LocalFederation
from tests.load import Load, fund

KILLS = int(os.environ.get("ALLMENDE_KILLS", "30"))
PEOPLE = 24
SEED = int(os.environ.get("ALLMENDE_SEED", "1"))


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_nodes_are_killed_at_random_instants(tmp_path, record_property):
    chance = random.Random(SEED)
    cast = Cast(4, PEOPLE)
    with LocalFederation(tmp_path, cast) as federation:
        fund(federation)
        with Load(federation, PEOPLE, SEED, lambda: {0: cast.founded.charter}) as load:
            for _ in range(KILLS):
                victim = chance.choice(federation.numbers)
                time.sleep(chance.uniform(0.05, 0.6))
                federation.kill(victim)
                federation.start(victim)
                federation.wait_ready(victim)
        status = federation.wait_equal()
        assert len(load.acknowledged) > KILLS
        assert status.forked_members == []
        for number in federation.numbers:
            with federation.client(number) as client:
                for record in load.acknowledged:
                    found = client.get_record(encode_address(Kind.RECORD, record))
                    assert found is not None
                    assert found.state == "applied"
        record_property("kills", KILLS)
        record_property("acknowledged", len(load.acknowledged))
