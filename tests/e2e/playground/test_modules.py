"""Modules of the page by themselves, as they are served."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")


from tests.e2e.playground.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="package")]


async def test_events_are_read_whatever_the_chunks(stage: Stage) -> None:
    page = await stage.open()
    events = await page.evaluate(
        """async () => {
          const { readEvents } = await import("/static/sse.js");
          const text = ": hello\\n\\nid: 1-1\\nevent: token\\ndata: {\\"t\\":\\"ä🐝\\"}\\n\\n"
            + "data: a\\r\\ndata: b\\r\\n\\r\\nid: 1-2\\revent: done\\rdata: x\\r\\rdata: never closed";
          const bytes = new TextEncoder().encode(text);
          const seen = [];
          for (const size of [1, 2, 3, 7, bytes.length]) {
            const body = new ReadableStream({ start(controller) {
              for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
              controller.close();
            } });
            const events = [];
            for await (const event of readEvents(body)) events.push(event);
            seen.push(JSON.stringify(events));
          }
          return [...new Set(seen)].map((one) => JSON.parse(one));
        }"""
    )
    assert events == [
        [
            {"id": "1-1", "type": "token", "data": '{"t":"ä🐝"}'},
            {"id": "1-1", "type": "message", "data": "a\nb"},
            {"id": "1-2", "type": "done", "data": "x"},
        ]
    ]


TEXTS = [
    ("a b c", "a b c", "are the same, word for word."),
    ("a b c d e f", "a b c d x", "part after “a b c d”: A goes on “e f”, B goes on “x”."),
    ("a b", "a b c", "part after “a b”: A ends, B goes on “c”."),
    ("a", "b", "differ from the first word on."),
]


async def test_a_comparison_says_where_the_answers_part(stage: Stage) -> None:
    page = await stage.open()
    for a, b, told in TEXTS:
        said = await page.evaluate(
            """async (texts) => {
              const { tellVerdict } = await import("/static/verdict.js");
              tellVerdict(texts.map((text, i) => [{ type: "done", data: { text }, at: 1000 * (i + 1) }]));
              return document.getElementById("verdict").textContent;
            }""",
            [a, b],
        )
        assert told in said
        assert "A was done after 1.0 s, B after 2.0 s" in said


ROUNDS = [
    ({"text": "a b", "drafted": [True, False], "pieces": ["a", " b"]}, [("a", "drafted"), (" b", "own")]),
    ({"text": "a b", "drafted": [True, False]}, [("a b", "mixed")]),
    ({"text": "a b", "drafted": [True, True]}, [("a b", "drafted")]),
    ({"text": "a", "drafted": [False]}, [("a", "own")]),
    ({"text": "a b", "drafted": [True, False], "pieces": ["a", "b"]}, [("a b", "mixed")]),
    ({"text": "", "drafted": [True]}, []),
    ({"text": "ä", "drafted": [True, False], "pieces": ["", "ä"]}, [("ä", "own")]),
]


async def test_a_round_is_split_only_where_its_pieces_are_given(stage: Stage) -> None:
    page = await stage.open()
    for event, expected in ROUNDS:
        parts = await page.evaluate(
            """async (event) => (await import("/static/tokens.js")).coloured(event)
              .map((piece) => [piece.text, piece.kind])""",
            event,
        )
        assert [tuple(part) for part in parts] == expected
