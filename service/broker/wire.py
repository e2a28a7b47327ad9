"""A connection of redis-py's, taken over once it is logged in: bytes out, replies in, nothing between.

redis-py makes the connection (addresses, TLS, sentinels, passwords) and names the errors. Its streams, locks
and timers for every command are left behind: what arrives goes through hiredis into `answered` at once.
Invariant: after `lost` nothing is told any more; what redis-py knows of the connection still closes it.
The one file that reaches behind redis-py's public names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import hiredis
import redis
from redis._parsers import BaseParser
from redis.exceptions import InvalidResponse

# Longer arguments are written as they are, where packing would copy them.
LARGE_BYTES = 8 * 1024

Command = tuple[str | bytes | int, ...]


class Wire(asyncio.Protocol):
    """answered: a reply, or a `redis.ResponseError`. room: more may be written. lost: the connection is."""

    def __init__(
        self,
        connection: Any,
        answered: Callable[[Any], None],
        room: Callable[[], None],
        lost: Callable[[Exception], None],
    ) -> None:
        self.connection = connection
        self.full = False
        self._answered, self._room, self._lost = answered, room, lost
        self._open = True
        self._replies: Any = hiredis.Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_UNFINISHED
        )
        self._transport: Any = connection._writer.transport
        self._former: asyncio.BaseProtocol = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def write(self, parts: list[bytes]) -> None:
        self._transport.writelines(parts)

    def leave(self) -> None:
        """Whatever still comes is nobody's."""
        self._open = False

    def data_received(self, data: bytes) -> None:
        try:
            self._replies.feed(data)
            while self._open and (reply := self._replies.gets()) is not _UNFINISHED:
                if isinstance(reply, redis.ConnectionError):  # as LOADING: of no use to anybody
                    raise reply
                self._answered(reply)
        except Exception as error:
            self._end(error)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._open:
            self._room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._former.connection_lost(exc)  # redis-py may be waiting for it
        self._end(exc or redis.ConnectionError("Connection closed by server."))

    def _end(self, error: Exception) -> None:
        if self._open:
            self._open = False
            self._lost(error)


_UNFINISHED = object()


def packed(command: Command) -> Iterable[bytes]:
    """As the server reads it (RESP), in pieces."""
    for part in command:
        if type(part) is bytes and len(part) > LARGE_BYTES:
            return _in_pieces(command)
    return (hiredis.pack_command(command),)  # type: ignore[arg-type] # one type a place


def _in_pieces(command: Command) -> list[bytes]:
    pieces = [b"*%d\r\n" % len(command)]
    for part in command:
        data = part if isinstance(part, bytes) else str(part).encode()
        pieces += (b"$%d\r\n" % len(data), data, b"\r\n")
    return pieces
