"""One connection to Redis that many callers share: their commands go out together, replies come in order.

A client library's pool costs a connection's checks, locks and timers with every command; that was most of a
gateway's time. Here a command costs its packing, a future, and its share of one write and one read.
Invariant: every command gets its own reply, an error, or, when the connection breaks, an error that says so
(whether it was carried out is then not known); none is sent twice. A server that is silent for `timeout_s`
while a reply is due is a broken connection. Nothing that blocks the server's side for longer may be asked
here, and nothing that speaks of its own connection (WAIT).
Knows nothing of jobs or keys.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from service.broker.wire import Command, Wire, packed

__all__ = ["Command", "Line", "Script"]

_CANCEL_AGAIN_S = 0.05
_CLOSE_S = 2.0


@dataclass(frozen=True)
class Script:
    source: str

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Line:
    """client: its pool gives the connection, which is logged in and, behind sentinels, the master's. It must
    have no timeout of its own for reads: the line always reads, so that a lost connection is seen at once.
    """

    def __init__(self, client: redis.asyncio.Redis, timeout_s: float) -> None:
        self._pool: Any = client.connection_pool
        self._timeout_s = timeout_s
        # Known from the first command on. To ask for it each time is a system call (Python 3.11).
        self._loop: Any = None
        self._wire: Wire | None = None
        self._unsent: list[bytes] = []
        self._asked: list[asyncio.Future[Any]] = []  # whose commands are unsent
        self._due: deque[asyncio.Future[Any]] = deque()
        self._sending = False
        self._connecting: asyncio.Task[None] | None = None
        self._others: set[asyncio.Task[None]] = set()
        self._progress_at = 0.0
        self._watch: asyncio.TimerHandle | None = None

    async def ask(self, *command: str | bytes | int) -> Any:
        """The reply; raises redis-py's errors."""
        return await self.send(command)

    async def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """For each its reply or a `redis.ResponseError`; raises where the connection broke."""
        asked = [self.send(command) for command in commands]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, redis.ResponseError):
                raise reply
        return replies

    async def run(self, script: Script, *arguments: str | bytes | int) -> Any:
        """arguments: the script's one key, then its ARGV."""
        try:
            return await self.send(("EVALSHA", script.sha, 1, *arguments))
        except NoScriptError:
            await self.send(("SCRIPT", "LOAD", script.source))
            return await self.send(("EVALSHA", script.sha, 1, *arguments))

    def send(self, command: Command) -> asyncio.Future[Any]:
        """As `ask`, for who has something else to do meanwhile."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._unsent += packed(command)
        self._asked.append(future)
        if self._wire is None:
            if self._connecting is None or self._connecting.done():
                self._connecting = loop.create_task(self._connect(), name="redis-connect")
        elif not self._sending:  # with all that is asked in this turn of the loop
            self._sending = True
            loop.call_soon(self._flush)
        return future

    def drop(self, why: Exception | None = None) -> None:
        """Whatever is not answered fails; the next command opens another connection."""
        error = why or redis.ConnectionError("the connection was given up")
        wire, self._wire = self._wire, None
        waiting = [*self._due, *self._asked]
        self._due.clear()
        self._asked.clear()
        self._unsent.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        if wire is not None:
            wire.leave()
            self._spawn(self._put_away(wire.connection))

    async def close(self) -> None:
        # More than once: redis-py swallows a cancellation that meets an arriving reply.
        while self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
            await asyncio.wait({self._connecting}, timeout=_CANCEL_AGAIN_S)
        self.drop()
        while self._others:
            await asyncio.wait(set(self._others), timeout=_CLOSE_S)
            for task in self._others:
                task.cancel()
        if self._watch is not None:
            self._watch.cancel()

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._pool.get_connection()
            self._wire = Wire(connection, self._answer, self._flush, self.drop)
        except Exception as error:  # whatever it is, nothing of what was asked can be sent
            self.drop(error)
        else:
            self._flush()

    def _flush(self) -> None:
        self._sending = False
        wire = self._wire
        if wire is None or wire.full or not self._asked:
            return  # `room` comes, or `_connect`
        asked, self._asked = self._asked, []
        parts, self._unsent = self._unsent, []
        self._expect(asked)
        try:
            wire.write(parts)
        except Exception as error:
            self.drop(error)

    def _answer(self, reply: Any) -> None:
        if not self._due:  # as where a server has too many clients
            raise reply if isinstance(reply, Exception) else redis.ConnectionError("an unasked reply")
        self._progress_at = self._loop.time()
        future = self._due.popleft()
        if future.done():
            return  # whoever asked has left
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def _expect(self, futures: list[asyncio.Future[Any]]) -> None:
        if not self._due:
            self._progress_at = self._loop.time()
        self._due.extend(futures)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._due:
            return
        left_s = self._progress_at + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._watch = self._loop.call_later(left_s, self._look)
        else:
            self.drop(redis.TimeoutError(f"no reply within {self._timeout_s:g} s"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _put_away(self, connection: Any) -> None:
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)
