"""A Redis that takes no writes, as one whose disk is full or a replica: what only reads answers all the same."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import AccountLimits, Accounts, RedisError, connect, silence
from gateway.serving import AUTH, MakeSettings, Start
from gateway.test_health import scrape
from support.full_disk import fill_disk
from support.samples import sample
from support.switch import Switch
from support.until import until


def become_replica(server: ValkeyServer) -> None:
    """Make the server a replica of one that is not there."""
    with redis.Redis.from_url(server.url, socket_timeout=5) as client:
        client.replicaof("127.0.0.1", 1)


def lose_snapshots(server: ValkeyServer) -> None:
    """Have the server make snapshots, which fail, beside its log, which goes well."""
    (server.folder / "dump.rdb").mkdir()
    with redis.Redis.from_url(server.url, socket_timeout=5) as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", seconds=30)
        assert client.info("persistence")["aof_last_write_status"] == "ok"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path / "valkey", appendfsync="no") as found:
        yield found
        found.kill()  # one whose snapshots fail does not end in order


@pytest.mark.parametrize(("refuse", "log_ok"), [(fill_disk, 0), (lose_snapshots, 0), (become_replica, 1)])
def test_what_only_reads_works_on_a_server_that_takes_no_writes(
    make_settings: MakeSettings, start: Start, server: ValkeyServer, refuse: Callable[[ValkeyServer], None], log_ok: int
) -> None:
    settings = make_settings(finetune_redis_url=server.url)
    with FineTuneQueue(settings) as queue, connect(server.url) as client:
        job = queue.submit(sample())
        Accounts(client).configure("default", AccountLimits(calls=50, window=60.0))
        refuse(server)
        with pytest.raises(RedisError, match=r"MISCONF|read only"):
            Accounts(client).configure("default", AccountLimits(calls=5, window=60.0))
        url = start(settings)
        with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as http:
            found = scrape(http)
            overview = http.get("/v1/overview")
            listed = http.get("/v1/jobs")
            read = [http.get(f"/v1/jobs/{job.id}{path}").status_code for path in ("", "/events")]
            load = http.get("/v1/load")
            refused = http.post("/v1/jobs", json=sample())
        with connect(server.url) as fresh:
            assert not silence(fresh)
    assert found["finetune_up", ""] == 1
    assert found["finetune_jobs", "accepted"] == 1
    assert found["finetune_queue_messages", "finetune"] == 1
    assert found["finetune_redis_log_ok", ""] == log_ok
    assert overview.json()["queues"]["finetune"] == 1
    assert [each["job_id"] for each in listed.json()["jobs"]] == [job.id]
    assert read == [200, 200]
    assert load.status_code == 200
    assert refused.status_code == 503


def test_on_a_replica_nothing_can_be_submitted_and_the_gateway_says_so(
    make_settings: MakeSettings, start: Start, server: ValkeyServer
) -> None:
    url = start(make_settings(finetune_redis_url=server.url))
    with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as http:
        assert http.get("/readyz").status_code == 200
        assert scrape(http)["finetune_redis_primary", ""] == 1
        become_replica(server)
        reply = http.get("/readyz")
        assert (reply.status_code, reply.json()["code"]) == (503, "queue-unavailable")
        assert "replica" in reply.json()["detail"]
        assert scrape(http)["finetune_redis_primary", ""] == 0
        with redis.Redis.from_url(server.url, socket_timeout=5) as client:
            client.replicaof("NO", "ONE")
        assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize("trouble", ["memory", "disk"])
def test_on_a_full_server_the_gateway_is_not_ready(
    trouble: str, make_settings: MakeSettings, start: Start, server: ValkeyServer
) -> None:
    url = start(make_settings(finetune_redis_url=server.url))
    with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as http:
        if trouble == "disk":
            fill_disk(server)
        else:
            with redis.Redis.from_url(server.url, socket_timeout=5) as client:
                client.config_set("maxmemory", "1mb")
        assert http.post("/v1/jobs", json=sample()).status_code == 503
        reply = http.get("/readyz")
        assert (reply.status_code, reply.json()["code"]) == (503, "queue-unavailable")
        assert "full" in reply.json()["detail"]


def test_after_a_failover_behind_one_name_the_new_primary_is_found_by_reading_alone(
    make_settings: MakeSettings, start: Start, server: ValkeyServer, valkey: ValkeyServer
) -> None:
    with Switch(server.port) as switch:
        url = start(make_settings(finetune_redis_url=f"redis://127.0.0.1:{switch.port}/0"))
        with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as http:
            assert http.get("/readyz").status_code == 200
            become_replica(server)
            assert http.get("/readyz").status_code == 503
            switch.target = valkey.port
            assert http.get("/readyz").status_code == 200
            assert scrape(http)["finetune_redis_primary", ""] == 1
