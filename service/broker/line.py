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
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import hiredis
import redis
import redis.asyncio
from redis.exceptions import NoScriptError

Command = tuple[str | bytes | int, ...]
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
    have no timeout of its own for reads: the reader always reads, so that a lost connection is seen at once.
    """

    def __init__(self, client: redis.asyncio.Redis, timeout_s: float) -> None:
        self._pool: Any = client.connection_pool
        self._timeout_s = timeout_s
        self._connection: Any = None
        self._unsent: list[tuple[bytes, asyncio.Future[Any]]] = []
        self._due: deque[asyncio.Future[Any]] = deque()
        self._work = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._others: set[asyncio.Task[None]] = set()
        self._progress_at = 0.0
        self._watch: asyncio.TimerHandle | None = None

    async def ask(self, *command: str | bytes | int) -> Any:
        """The reply; raises redis-py's errors."""
        return await self._enqueue(command)

    async def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """For each its reply or a `redis.ResponseError`; raises where the connection broke."""
        asked = [self._enqueue(command) for command in commands]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, redis.ResponseError):
                raise reply
        return replies

    async def run(self, script: Script, *arguments: str | bytes | int) -> Any:
        """arguments: the script's one key, then its ARGV."""
        try:
            return await self._enqueue(("EVALSHA", script.sha, 1, *arguments))
        except NoScriptError:
            await self._enqueue(("SCRIPT", "LOAD", script.source))
            return await self._enqueue(("EVALSHA", script.sha, 1, *arguments))

    def drop(self, why: Exception | None = None) -> None:
        """Whatever is not answered fails; the next command opens another connection."""
        error = why or redis.ConnectionError("the connection was given up")
        connection, self._connection = self._connection, None
        waiting = [*self._due, *(future for _, future in self._unsent)]
        self._due.clear()
        self._unsent.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        if connection is not None:
            self._spawn(self._put_away(connection))

    async def close(self) -> None:
        # More than once: redis-py swallows a cancellation that meets an arriving reply.
        while self._writer is not None and not self._writer.done():
            self._writer.cancel()
            await asyncio.wait({self._writer}, timeout=_CANCEL_AGAIN_S)
        self.drop()
        while self._others:  # readers end with their connections
            await asyncio.wait(set(self._others), timeout=_CLOSE_S)
            for task in self._others:
                task.cancel()
        if self._watch is not None:
            self._watch.cancel()

    def _enqueue(self, command: Command) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._unsent.append((hiredis.pack_command(command), future))  # type: ignore[arg-type] # one type a place
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="redis-writer")
        self._work.set()
        return future

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                connection = self._connection or await self._connect()
                batch, self._unsent = self._unsent, []
                self._expect(future for _, future in batch)
                await connection.send_packed_command(b"".join(packed for packed, _ in batch), False)
            except Exception as error:  # whatever it is, nothing is known of what was asked
                self.drop(error)

    async def _connect(self) -> Any:
        async with asyncio.timeout(self._timeout_s):
            connection = await self._pool.get_connection()
        self._connection = connection
        self._spawn(self._read(connection))
        return connection

    async def _read(self, connection: Any) -> None:
        while True:
            reply: Any
            try:
                reply = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
            except redis.ResponseError as error:
                reply = error
            except Exception as error:  # the connection is of no more use
                if self._connection is connection:
                    self.drop(error)
                return
            if self._connection is not connection:
                return
            self._answer(reply)

    def _answer(self, reply: Any) -> None:
        self._progress_at = asyncio.get_running_loop().time()
        future = self._due.popleft()
        if future.done():
            return  # whoever asked has left
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def _expect(self, futures: Iterable[asyncio.Future[Any]]) -> None:
        loop = asyncio.get_running_loop()
        if not self._due:
            self._progress_at = loop.time()
        self._due.extend(futures)
        if self._watch is None:
            self._watch = loop.call_later(self._timeout_s, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._due:
            return
        loop = asyncio.get_running_loop()
        left_s = self._progress_at + self._timeout_s - loop.time()
        if left_s > 0:
            self._watch = loop.call_later(left_s, self._look)
        else:
            self.drop(redis.TimeoutError(f"no reply within {self._timeout_s:g} s"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _put_away(self, connection: Any) -> None:
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)
