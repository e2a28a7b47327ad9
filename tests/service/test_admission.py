"""Admission's arithmetic: predicted tokens, throughput, when to come back, how long the queue is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import Admission, check_possible, expected_wait_s, refusal, retry_after_s
from service.broker.base import Claim, Full, Lease, Reservation
from service.callers import Caller, priority_of
from service.errors import BadField, Forbidden, TooBusy
from service.prediction import predicted_tokens
from service.protocol import JobParams, QueueStats, WorkerInfo
from service.running import RunningJob
from service.throughput import Throughput
from tests.service.scripted_worker import CARD
from tests.service.worker_fixture import make_job


def info(tokens_per_s: float) -> WorkerInfo:
    return WorkerInfo(
        worker_id="w", started_at=0, card=CARD, max_slots=1, free_slots=1, tokens_per_s=tokens_per_s
    )


@pytest.mark.parametrize(
    ("rates", "expected"), [([], 5), ([0.0], 5), ([50.0], 3), ([100.0, 28.0], 1), ([0.1], 60)], ids=str
)
def test_retry_after(rates: list[float], expected: int) -> None:
    assert retry_after_s(128, [info(rate) for rate in rates]) == expected


def test_refusals_tell_which_limit_and_when() -> None:
    asked = Reservation("j", "a", 300, 1000, 400)
    queue = refusal(asked, Full("queue", 900), [info(50.0)])
    assert (queue.code, queue.retry_after_s) == ("queue_full", 4)
    own = refusal(asked, Full("owner", 400), [info(50.0)])
    assert (own.code, own.retry_after_s) == ("key_full", 6)


def test_what_can_never_be_admitted_is_no_429() -> None:
    check_possible(Reservation("j", "a", 300, 300, 300))
    for limits in ((299, None), (1000, 299)):
        with pytest.raises(BadField, match="at most 299"):
            check_possible(Reservation("j", "a", 300, *limits))


def test_the_expected_wait() -> None:
    queue = QueueStats(waiting_tokens=500, oldest_age_s=3.0)
    assert expected_wait_s(queue, [info(200.0), info(50.0)]) == 2.0
    assert expected_wait_s(queue, [info(0.0)]) == 3.0
    assert expected_wait_s(QueueStats(), []) == 0.0


def test_open_requests_are_counted_and_let_go() -> None:
    admission = Admission(max_open=1)
    with admission:
        with pytest.raises(TooBusy) as refused, admission:
            pass
        assert refused.value.code == "gateway_full"
        assert admission.in_flight == 1
    with admission:
        assert admission.in_flight == 1


def test_a_prediction_counts_prompt_picture_and_answer() -> None:
    def predicted(prompt: str = "", images: int = 0, **params: int) -> int:
        return predicted_tokens(prompt, images, JobParams(**params), CARD)

    base = predicted(max_tokens=1)
    assert base >= 1
    assert predicted(max_tokens=101) == base + 100
    assert predicted("abc" * 10, max_tokens=1) == base + 10
    assert predicted("你好", max_tokens=1) == base + 2
    assert predicted(images=2, max_tokens=1) == base + 2 * CARD.default_retained
    assert predicted(images=2, max_tokens=1, retained_tokens=30) == base + 30


@given(prompt=st.text(max_size=200), images=st.integers(0, 3), max_tokens=st.integers(1, 5000))
def test_a_prediction_never_falls_as_more_is_asked(prompt: str, images: int, max_tokens: int) -> None:
    params = JobParams(max_tokens=max_tokens)
    less = predicted_tokens(prompt, images, params, CARD)
    assert less > max_tokens
    assert predicted_tokens(prompt + "x", images + 1, params, CARD) >= less


def test_throughput_is_of_busy_time_and_follows_change() -> None:
    rate = Throughput(horizon_s=10)
    assert rate.per_s() == 0
    for _ in range(50):
        rate.add(100, busy_s=1)
    assert rate.per_s() == pytest.approx(100, rel=0.06)
    for _ in range(50):
        rate.add(10, busy_s=1)
    assert rate.per_s() == pytest.approx(10, rel=0.2)


@given(st.lists(st.integers(0, 20), max_size=20))
def test_a_job_works_off_what_was_predicted_of_it(rounds: list[int]) -> None:
    job = make_job(max_tokens=50, predicted_tokens=90)
    running = RunningJob(Claim(job, Lease(job.id, 1, "1-1", "run"), 0, ()), "w")
    credits = [running.work_off(count, ended=False) for count in rounds]
    credits.append(running.work_off(0, ended=True))
    assert min(credits) >= 0
    assert sum(credits) == 90
    if rounds:
        assert credits[0] == min(40 + rounds[0], 90)  # the prefill comes with the first round


def test_priorities_follow_the_tier_and_the_key() -> None:
    batch_only = Caller("b", priorities=("batch",))
    assert [priority_of(tier, Caller()) for tier in ("auto", "default", "flex")] == [
        "interactive",
        "interactive",
        "batch",
    ]
    assert priority_of("auto", batch_only) == "batch"
    with pytest.raises(Forbidden) as refused:
        priority_of("default", batch_only)
    assert (refused.value.status, refused.value.param) == (403, "service_tier")
