"""The wire: what was written is read back, newer fields are ignored, a newer meaning is refused."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.card import DynamicSize as EngineDynamicSize
from model.card import ImageSpec as EngineImageSpec
from model.card import ModelCard as EngineCard
from service.protocol import (
    WIRE_VERSION,
    DoneData,
    Event,
    ImageRef,
    Job,
    JobParams,
    Keys,
    Message,
    ModelCard,
    UnsupportedVersion,
    parse_event_id,
)

texts = st.text(max_size=20)
params = st.builds(
    JobParams,
    max_tokens=st.integers(1, 4096),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(0, 2**63),
    stop=st.lists(texts, max_size=3).map(tuple),
    retained_tokens=st.none() | st.integers(0, 576),
    token_map=st.booleans(),
)
images = st.lists(st.builds(ImageRef, sha256=texts, height=st.integers(1, 9), width=st.integers(1, 9)))
jobs = st.builds(
    Job,
    id=texts,
    created_at=st.floats(0, 1e10),
    prompt=texts,
    images=images.map(tuple),
    params=params,
    deadline_at=st.none() | st.floats(0, 1e10),
)


@given(jobs)
def test_a_job_is_read_as_it_was_written(job: Job):
    assert Job.decode(job.encode()) == job


def test_an_older_reader_ignores_fields_it_does_not_know():
    job = Job(id="a", created_at=1.0, prompt="p")
    newer = json.loads(job.encode()) | {"colour": "blue"}
    newer["params"]["beams"] = 4
    assert Job.decode(json.dumps(newer)) == job


def test_a_newer_meaning_is_refused_by_name():
    newer = Event(v=WIRE_VERSION + 1, seq=1, attempt=1, type="token")
    with pytest.raises(UnsupportedVersion, match="Event has wire version"):
        Event.decode(newer.encode())


def test_a_message_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Job(id="a", created_at=1.0, prompt="p").prompt = "other"  # type: ignore[misc]


def test_event_ids_order_like_events():
    event = Event(seq=12, attempt=3, type="done")
    assert event.id == "3-12"
    assert event.terminal
    assert parse_event_id(event.id) == (3, 12)


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "1-2-3", "a-b", "1-2\n", "1" * 40 + "-1"])
def test_what_is_not_an_event_id_is_refused(text: str):
    with pytest.raises(ValueError, match="not an event id"):
        parse_event_id(text)


def test_the_card_is_the_engines_card():
    """Field by field, so that a field added to one side is not forgotten on the other."""
    assert set(ModelCard.model_fields) == set(EngineCard.__dataclass_fields__)
    card = EngineCard(
        "m", "llava", EngineImageSpec(8, 8, "pad"), 4, (2, 2), 2, 1, 64, {"fast": 1}, 0, 3, 2, True
    )
    assert EngineCard.from_dict(json.loads(ModelCard.model_validate(card.to_dict()).encode())) == card


def test_an_older_gateway_reads_a_card_of_dynamic_resolution():
    """It knows the first four fields of a spec alone, and prepares a picture that the worker takes."""
    spec = EngineImageSpec(96, 96, "crop", dynamic=EngineDynamicSize(8, 64, 9216))
    card = EngineCard("m", "qwen2_5_vl", spec, 144, (12, 12), 2, 1, 64, {"exact": 144})
    told = json.loads(ModelCard.model_validate(card.to_dict()).encode())
    assert EngineCard.from_dict(told) == card

    class OlderSpec(Message):
        height: int
        width: int
        fit: Literal["stretch", "crop", "pad"]
        pad_color: tuple[int, int, int]

    class OlderCard(Message):
        image: OlderSpec
        image_tokens: int

    older = OlderCard.model_validate(told)
    assert older.image == OlderSpec(height=96, width=96, fit="crop", pad_color=spec.pad_color)
    assert older.image_tokens == 144


def test_all_keys_share_the_hash_tag():
    keys = Keys("shard")
    named = [keys.jobs, keys.dead, keys.wake, keys.workers]
    made = [make("x") for make in (keys.job, keys.events, keys.blob, keys.worker, keys.inbox)]
    assert all(key.startswith("{shard}:") for key in named + made)
    assert len(set(named + made)) == 9


def test_done_data_keeps_the_token_map_only_where_given():
    plain = DoneData(text="t", token_ids=(1,), finish_reason="stop")
    assert plain.kept_indices is None
    assert DoneData.decode(plain.encode()) == plain
