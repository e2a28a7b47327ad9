"""API keys: who may ask, how often, for what, and whose jobs are whose."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from service.broker.redis import RedisGatewayBroker
from service.callers import Caller
from service.keys import KeyFile, KeyRing, digest, new_key, read_keys, write_keys
from service.settings import GatewaySettings, RedisSettings
from tests.service.gateway_fixture import in_process
from tests.service.keys_fixture import ALICE, BOB, entry
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import PNG64, error_of

URL = "/v1/describe"
BODY = {"image": PNG64}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keyed(settings: GatewaySettings, file: Path) -> GatewaySettings:
    return settings.model_copy(update={"keys_file": file})


# --- the file ---


def test_keys_are_long_random_and_not_in_the_file(file: Path) -> None:
    assert len({new_key() for _ in range(100)}) == 100
    assert len(ALICE) >= 48
    text = file.read_text()
    assert ALICE not in text
    assert digest(ALICE) in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_in_place_of_its_digest_is_not_told() -> None:
    with pytest.raises(ValueError, match="sha256") as caught:
        KeyFile.model_validate_json(json.dumps({"keys": [{"name": "alice", "sha256": ALICE}]}))
    assert ALICE not in str(caught.value)


def test_the_ring_knows_its_callers(file: Path) -> None:
    ring = KeyRing(file)
    assert ring.caller(ALICE) == Caller("alice")
    for wrong in ("", "twig-", ALICE[:-1], ALICE + "x", digest(ALICE), "ключ"):
        assert ring.caller(wrong) is None


def test_a_change_is_seen_and_a_broken_file_changes_nothing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    ring = KeyRing(file, clock=lambda: now[0])
    write_keys(file, read_keys(file).without("alice"))
    assert ring.caller(ALICE) is not None  # not looked at yet
    now[0] = 1.0
    assert ring.caller(ALICE) is None
    file.write_text("{not json")
    now[0] = 2.0
    with caplog.at_level(logging.ERROR):
        assert ring.caller(BOB) == Caller("bob")
    assert "not read again" in caplog.text
    os.remove(file)
    now[0] = 3.0
    assert ring.caller(BOB) == Caller("bob")
    write_keys(file, KeyFile(keys=(entry("alice", ALICE),)))
    now[0] = 4.0
    assert (ring.caller(ALICE), ring.caller(BOB)) == (Caller("alice"), None)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"keys": [{"name": "a"}]}'),
        json.dumps({"keys": [{"name": "a b", "sha256": "0" * 64}]}),
        json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "colour": 1}]}),
        json.dumps({"keys": [{"name": "a", "sha256": "0" * 64}, {"name": "a", "sha256": "1" * 64}]}),
    ],
)
def test_a_file_that_is_not_one_stops_the_gateway(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="valid"):
        KeyRing(path)
    with pytest.raises(OSError, match="nothing"):
        KeyRing(tmp_path / "nothing.json")


# --- at the gateway ---


async def test_without_a_key_nothing_under_v1_answers(keyed: GatewaySettings, worker: ScriptedWorker) -> None:
    async with in_process(keyed) as client:
        for method, path in (("POST", URL), ("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
            answer = await client.request(method, path, json=BODY if method == "POST" else None)
            error = error_of(answer, 401)
            assert (error["code"], answer.headers["WWW-Authenticate"]) == ("missing_api_key", "Bearer")
        for bad in ("Bearer " + new_key(), f"Bearer {ALICE[:-1]}"):
            answer = await client.post(URL, json=BODY, headers={"Authorization": bad})
            assert error_of(answer, 401)["code"] == "invalid_api_key"
        for bad in ("Bearer ", "Basic " + ALICE, ALICE):
            answer = await client.post(URL, json=BODY, headers={"Authorization": bad})
            assert error_of(answer, 401)["code"] == "missing_api_key"
        assert (await client.get("/v1/jobs/desc-" + "0" * 32)).status_code == 401
        for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200, path
    assert worker.jobs == []


async def test_a_key_opens_and_its_jobs_are_its_own(keyed: GatewaySettings, worker: ScriptedWorker) -> None:
    async with in_process(keyed) as client:
        made = await client.post(URL, json=BODY, headers=bearer(ALICE) | {"Prefer": "respond-async"})
        assert made.status_code == 202
        where = made.headers["Location"]
        assert worker.jobs == [] or worker.jobs[0].owner == "alice"
        assert (await client.get(where, headers=bearer(ALICE))).status_code == 200
        for method, path in (("GET", where), ("DELETE", where), ("GET", where + "/events")):
            answer = await client.request(method, path, headers=bearer(BOB))
            assert error_of(answer, 404)["code"] == "job_not_found"
        events = await client.get(where + "/events", headers=bearer(ALICE))
        assert "event: done" in events.text


async def test_an_idempotency_key_is_its_callers_own(keyed: GatewaySettings, worker: ScriptedWorker) -> None:
    async with in_process(keyed) as client:
        answers = [
            await client.post(URL, json=BODY, headers=bearer(key) | {"Idempotency-Key": "same"})
            for key in (ALICE, BOB, ALICE)
        ]
    ids = [answer.json()["id"] for answer in answers]
    assert ids[0] == ids[2] != ids[1]


async def test_requests_a_minute(keyed: GatewaySettings, file: Path, worker: ScriptedWorker) -> None:
    write_keys(file, KeyFile(keys=(entry("alice", ALICE, requests_per_minute=2), entry("bob", BOB))))
    async with in_process(keyed) as client:
        seen = []
        for _ in range(3):
            answer = await client.post(URL, json=BODY, headers=bearer(ALICE))
            seen.append((answer.status_code, answer.headers["x-ratelimit-remaining-requests"]))
        assert seen == [(200, "1"), (200, "0"), (429, "0")]
        error = error_of(answer, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert 1 <= int(answer.headers["Retry-After"]) <= 30
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert 30 <= float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        other = await client.post(URL, json=BODY, headers=bearer(BOB))
        assert other.status_code == 200
        assert "x-ratelimit-limit-requests" not in other.headers
        assert (await client.get("/v1/models", headers=bearer(ALICE))).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert 'twigvlm_admission_rejections_total{reason="rate_limit_exceeded"} 1.0' in metrics


async def test_tokens_in_flight(keyed: GatewaySettings, file: Path, worker: ScriptedWorker) -> None:
    write_keys(file, KeyFile(keys=(entry("alice", ALICE, tokens_in_flight=300), entry("bob", BOB))))
    worker.hold()
    async with in_process(keyed) as client:
        job = {"Prefer": "respond-async"}
        first = await client.post(URL, json=BODY, headers=bearer(ALICE) | job)
        assert first.status_code == 202
        refused = await client.post(URL, json=BODY, headers=bearer(ALICE) | job)
        assert error_of(refused, 429)["code"] == "key_full"
        assert (await client.post(URL, json=BODY, headers=bearer(BOB) | job)).status_code == 202
        large = await client.post(URL, json=BODY | {"max_tokens": 256}, headers=bearer(ALICE) | job)
        assert error_of(large, 429)["code"] == "key_full"
        larger = BODY | {"prompt": "x" * 900}
        never = await client.post(URL, json=larger, headers=bearer(ALICE) | job)
        assert error_of(never, 400)["code"] == "request_too_large"
        await client.delete(first.headers["Location"], headers=bearer(ALICE))


async def test_a_key_without_batch_work_makes_no_batches(keyed: GatewaySettings, file: Path) -> None:
    """It got 403 for the tier, and ran whole files at it."""
    write_keys(file, KeyFile(keys=(entry("alice", ALICE, priorities=("interactive",)), entry("bob", BOB))))
    batch = {"input_file_id": "file-1", "endpoint": URL}
    async with in_process(keyed) as client:
        denied = await client.post("/v1/batches", json=batch, headers=bearer(ALICE))
        assert error_of(denied, 403)["code"] == "service_tier_not_allowed"
        error_of(await client.post("/v1/batches", json=batch, headers=bearer(BOB)), 404)


async def test_priorities(keyed: GatewaySettings, file: Path, worker: ScriptedWorker) -> None:
    write_keys(file, KeyFile(keys=(entry("alice", ALICE, priorities=("batch",)), entry("bob", BOB))))
    async with in_process(keyed) as client:
        for key, tier, priority in (
            *((ALICE, "auto", "batch"), (ALICE, "flex", "batch")),
            *((BOB, "auto", "interactive"), (BOB, "flex", "batch"), (BOB, "default", "interactive")),
        ):
            answer = await client.post(URL, json=BODY | {"service_tier": tier}, headers=bearer(key))
            assert answer.status_code == 200
            assert worker.jobs[-1].priority == priority
        denied = await client.post(URL, json=BODY | {"service_tier": "default"}, headers=bearer(ALICE))
        assert error_of(denied, 403)["param"] == "service_tier"
        unknown = await client.post(URL, json=BODY | {"service_tier": "priority"}, headers=bearer(BOB))
        assert error_of(unknown, 400)["param"] == "service_tier"


async def test_a_refused_upload_is_read_so_that_its_answer_arrives(
    keyed: GatewaySettings, worker: ScriptedWorker
) -> None:
    async with in_process(keyed) as client:
        large = {"image": ("a.png", bytes(1_000_000))}
        assert error_of(await client.post(URL, files=large), 401)["code"] == "missing_api_key"


# --- the bucket ---


async def test_the_bucket_is_shared_by_gateways_and_fills_evenly(redis_settings: RedisSettings) -> None:
    first, second = RedisGatewayBroker(redis_settings), RedisGatewayBroker(redis_settings)
    try:
        taken = [await (first, second)[i % 2].spend_request("a", 6000) for i in range(4)]
        assert [rate.allowed for rate in taken] == [True] * 4
        assert 5996 <= taken[-1].remaining <= 5999
        one = await first.spend_request("b", 1)
        none = await second.spend_request("b", 1)
        assert (one.allowed, one.remaining, none.allowed) == (True, 0, False)
        assert 0 < none.retry_after_s <= 60
        assert none.retry_after_s <= none.reset_s <= 60
    finally:
        await first.close()
        await second.close()


def test_no_key_is_compared_by_equality() -> None:
    """A comparison that stops at the first difference tells an attacker how far it came."""
    source = Path("service/keys.py").read_text()
    assert "compare_digest" in source
    assert "== given" not in source
