"""One request as a client sends it: JSON with a picture, the answer streamed and timed event by event.

Blocking in form; under gevent many run at once. Never raises: what goes wrong is the sample's `error`.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from loadtest.sample import Sample
from loadtest.scenarios import Ask

TIMEOUT_S = 320.0  # just over the gateway's own deadline
SLOW_BUFFER_BYTES = 4096


class Client:
    def __init__(self, url: str, pictures: list[str], began: float) -> None:
        """began: `time.monotonic()` at the start of the measurement."""
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._pictures = pictures
        self._began = began

    def send(self, ask: Ask, due_s: float) -> Sample:
        sample = Sample(due_s)
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        try:
            self._exchange(connection, ask, sample)
        except (OSError, http.client.HTTPException) as error:
            sample.error = type(error).__name__
        finally:
            connection.close()
        sample.end_s = self._now()
        return sample

    def _exchange(self, connection: http.client.HTTPConnection, ask: Ask, sample: Sample) -> None:
        connection.connect()
        if ask.read_pause_s:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        connection.request("POST", "/v1/describe", self._body(ask), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            sample.error = _code(response)
            return
        self._read(response, ask, sample)

    def _body(self, ask: Ask) -> str:
        fields: dict[str, Any] = {"image": self._pictures[ask.picture], "prompt": ask.prompt, "stream": True}
        fields["max_tokens"] = ask.max_tokens
        if ask.quality is not None:
            fields["quality"] = ask.quality
        return json.dumps(fields)

    def _read(self, response: http.client.HTTPResponse, ask: Ask, sample: Sample) -> None:
        last_s: float | None = None
        sample.error = "stream_cut"
        for name, data in events(response):
            now_s = self._now()
            if name == "token":
                count = len(data["token_ids"])
                sample.tokens += count
                if last_s is None:
                    sample.ttft_s = now_s - sample.due_s
                elif not ask.read_pause_s and count:
                    sample.gaps_s += [(now_s - last_s) / count] * count
                last_s = now_s
            elif name == "done":
                _take(data, sample)
            elif name == "error":
                sample.error = data["error"]["code"]
            time.sleep(ask.read_pause_s)

    def _now(self) -> float:
        return time.monotonic() - self._began


def events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """(name, data) of each server-sent event; comments are skipped."""
    name = ""
    for raw in iter(response.readline, b""):
        field, _, value = raw.decode().rstrip("\r\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def _take(done: dict[str, Any], sample: Sample) -> None:
    sample.error = None
    details = done["usage"]["prompt_tokens_details"]
    speculation = done["metrics"]["speculative_decoding"]
    sample.image_tokens = details["image_tokens"]
    sample.pruned_tokens = details["pruned_image_tokens"]
    sample.drafted = speculation["num_draft_tokens"]
    sample.accepted = speculation["num_accepted_draft_tokens"]


def _code(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(response.read())["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"http_{response.status}"
