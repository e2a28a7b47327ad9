"""The Python client's parts by themselves: errors, waits, events, options."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import httpx
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st

from service import errors
from service.client import (
    Refused,
    Retry,
    ServerFailed,
    TooBusy,
    Unavailable,
)
from service.client.ask import Options
from service.client.errors import BY_STATUS, of_event, of_response, retry_after_s
from service.client.events import EventDecoder, SentEvent
from service.client.retry import Failures
from service.schemas import DescribeFields


def test_every_status_has_its_error() -> None:
    for status in range(400, 600):
        failure = of_response(httpx.Response(status, text="<html>proxy</html>"))
        assert isinstance(failure, BY_STATUS.get(status, Refused if status < 500 else ServerFailed))
        assert str(status) in str(failure)


def test_an_event_that_says_unavailable_is_told_like_a_503() -> None:
    codes = {kind.code for kind in (errors.Unavailable, *errors.Unavailable.__subclasses__())}
    for code in codes:
        assert isinstance(of_event(f'{{"error": {{"code": "{code}"}}}}', None), Unavailable)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s({"Retry-After": "7"}) == 7
    soon = retry_after_s({"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=60))})
    assert soon is not None
    assert 50 < soon <= 60
    for odd in (
        "",
        "soon",
        "-5",
        "1.5",
        "Wed, 21 Oct 2015 07:28:00 +9999999999999",
        "99 Oct 99999 07:28:00 GMT",
    ):
        assert retry_after_s({"Retry-After": odd}) is None
    assert retry_after_s({}) is None


def test_waits_double_up_to_the_longest_and_begin_anew() -> None:
    failures = Failures(Retry(attempts=10, first_wait_s=1, longest_wait_s=4))
    waits = [failures.again_in_s(TooBusy("busy")) for _ in range(5)]
    for wait_s, full_s in zip(waits, (1, 2, 4, 4, 4), strict=True):
        assert full_s / 2 <= wait_s <= full_s
    failures.count = 0
    assert failures.again_in_s(TooBusy("busy", retry_after_s=3)) >= 3


WIRE = (
    ': hi\n\nid: 1-1\nevent: token\ndata: {"t":"ä\u2028🐝"}\n\n'
    "data: a\r\ndata: b\r\n\r\nid: 1-2\rdata: x\r\rdata: open"
)
EVENTS = [
    SentEvent("1-1", "token", '{"t":"ä\u2028🐝"}'),
    SentEvent("1-1", "message", "a\nb"),
    SentEvent("1-2", "message", "x"),
]


@bounded(max_examples=100)
@given(st.lists(st.integers(0, len(WIRE.encode())), max_size=8))
def test_events_are_read_whatever_the_chunks(cuts: list[int]) -> None:
    wire, decoder = WIRE.encode(), EventDecoder()
    bounds = [0, *sorted(cuts), len(wire)]
    chunks = [wire[begin:end] for begin, end in pairwise(bounds)]
    assert [event for chunk in chunks for event in decoder.feed(chunk)] == EVENTS


def test_a_mark_of_byte_order_is_no_part_of_the_first_field() -> None:
    """At the stream's start alone; its three bytes may come one by one."""
    decoder = EventDecoder()
    wire = b"\xef\xbb\xbfid: 1-1\r\ndata: x\r\n\r\n\xef\xbb\xbfdata: y\ndata: z\n\n"
    events = [event for byte in wire for event in decoder.feed(bytes([byte]))]
    assert events == [SentEvent("1-1", "message", "x"), SentEvent("1-1", "message", "z")]


def test_every_field_of_a_description_can_be_asked_for() -> None:
    """But `stream`, which is a method of its own."""
    assert set(Options.__annotations__) == set(DescribeFields.model_fields) - {"stream"}
