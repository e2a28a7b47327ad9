"""Processes that decode pictures, so that neither a large nor a hostile one can hold the gateway's streams.

Invariant: at most `processes` pictures are decoded at once (the rest wait with their own bytes); a child
that crashes, hangs or is left in the middle is killed and replaced, and touches no picture but its own.
A picture that kills two children is refused. Children are recycled after `MAX_PICTURES`. What a picture may
take is processor time: on a machine that is busy elsewhere a sound picture is late, not broken.
Not a `ProcessPoolExecutor`: a crash there fails every picture in flight, and nothing ends a hung child.
Must not know: how a picture is decoded (`image_child`), HTTP, the queue.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
from multiprocessing.process import BaseProcess
from typing import Any

from service.errors import ApiError, Unavailable, UndecodableImage
from service.image_child import HEADER, answer_of, asked, main
from service.images import ImageLimits, PreparedImage, check_size
from service.protocol import ImageSpec

log = logging.getLogger(__name__)

MAX_PICTURES = 2_000
CPU_S = 30.0
# A child that uses no processor time either is not decoding but stuck, or starved.
SILENCE_FACTOR = 5
RETRY_AFTER_S = 5
EXIT_S = 2.0
# A fork server forks children in milliseconds from a process that has PIL loaded and no threads.
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class ChildLost(Exception):  # noqa: N818 - what happened to it
    """The process died."""


class ChildSilent(ChildLost):
    """It said nothing for too long, though it had not used up its processor time."""


class Pipe(asyncio.Protocol):
    """To one decoder: a request, then its answer; never two at once."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._answer: asyncio.Future[PreparedImage] | None = None
        self._lost: ChildLost | None = None
        self._came: list[bytes] = []
        self._missing = 0  # bytes, known once the answer's header is there

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def ask(self, head: bytes, data: bytes, silence_s: float) -> PreparedImage:
        if self._lost is not None:
            raise self._lost
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[PreparedImage] = loop.create_future()
        self._answer = answer
        silence = loop.call_later(silence_s, self._fail, ChildSilent("silent"))
        try:
            self._transport.writelines((head, data))
            return await answer
        finally:
            silence.cancel()

    def data_received(self, data: bytes) -> None:
        self._came.append(data)
        if self._missing:
            self._missing -= len(data)
        else:
            begun = b"".join(self._came)
            if len(begun) < HEADER.size:
                return
            self._missing = HEADER.size + sum(HEADER.unpack_from(begun)) - len(begun)
        if self._missing < 0:
            self._fail(ChildLost("says more than it was asked"))
        elif self._missing == 0:
            self._told(b"".join(self._came) if len(self._came) > 1 else data)

    def _told(self, answer: bytes) -> None:
        self._came, self._missing = [], 0
        if self._answer is None or self._answer.done():
            return
        try:
            self._answer.set_result(answer_of(answer))
        except ApiError as refused:
            self._answer.set_exception(refused)
        except Exception as nonsense:
            self._fail(ChildLost(type(nonsense).__name__))

    def _fail(self, lost: ChildLost) -> None:
        self._lost = lost
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(lost)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ChildLost(type(exc or EOFError()).__name__))

    def close(self) -> None:
        self._transport.close()


class Child:
    """One decoder process; broken once `prepare` was left by anything but its own answer."""

    def __init__(self, process: BaseProcess, pipe: Pipe) -> None:
        self._process, self._pipe = process, pipe
        self.pictures = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @classmethod
    async def start(cls) -> Child:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.to_thread(_start, theirs)
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        _, pipe = await asyncio.get_running_loop().create_unix_connection(Pipe, sock=ours)
        return cls(process, pipe)

    async def prepare(self, head: bytes, data: bytes, silence_s: float) -> PreparedImage:
        self.pictures += 1
        return await self._pipe.ask(head, data, silence_s)

    async def end(self, *, kill: bool = False) -> None:
        self._pipe.close()
        if kill:
            self._process.kill()
        await asyncio.to_thread(_reap, self._process)


def _start(pipe: socket.socket) -> BaseProcess:
    context: Any = multiprocessing.get_context(METHOD)  # typeshed's base class has no Process
    context.set_forkserver_preload(["service.image_child"])
    process: BaseProcess = context.Process(target=main, args=(pipe,), name="image-decoder", daemon=True)
    process.start()
    return process


def _reap(process: BaseProcess) -> None:
    process.join(EXIT_S)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


async def _new_child() -> Child:
    """Refused where the machine has no process, memory or file left for it now."""
    try:
        return await Child.start()
    except (OSError, EOFError) as error:
        log.error("no image decoder could be started", extra={"error": str(error)})
        message = "The image could not be decoded: the gateway cannot start a decoder now."
        raise Unavailable(message, code="decoder_starved", retry_after_s=RETRY_AFTER_S) from error


class ImagePool:
    """Children start when they are first needed. `close` ends them all."""

    def __init__(self, limits: ImageLimits, processes: int, cpu_s: float = CPU_S) -> None:
        self._limits = limits
        self._cpu_s = cpu_s
        self._slots = asyncio.Semaphore(processes)
        self._idle: list[Child] = []
        self._busy: set[Child] = set()

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in (*self._idle, *self._busy) if child.pid is not None]

    @property
    def busy(self) -> int:
        return len(self._busy)

    async def prepare(self, data: bytes, spec: ImageSpec) -> PreparedImage:
        check_size(data, self._limits)  # before it waits for a slot
        head = asked(spec, self._limits, self._cpu_s, len(data))
        async with self._slots:
            try:
                return await self._try(head, data)
            except ChildLost as first:
                # Whoever killed it, the picture may be innocent: it has a second chance in a fresh process.
                log.warning("image decoder lost", extra={"reason": str(first), "image_bytes": len(data)})
            try:
                return await self._try(head, data, fresh=True)
            except ChildSilent as silent:
                message = "The image could not be decoded in time: the gateway has too little of its machine."
                raise Unavailable(message, code="decoder_starved", retry_after_s=RETRY_AFTER_S) from silent
            except ChildLost as second:
                log.warning("image refused: it ended two decoders", extra={"reason": str(second)})
                message = "The image could not be decoded: its decoder ran out of memory, crashed, or hung."
                raise UndecodableImage(message, param="image") from second

    async def _try(self, head: bytes, data: bytes, *, fresh: bool = False) -> PreparedImage:
        child = self._idle.pop() if self._idle and not fresh else await _new_child()
        self._busy.add(child)
        try:
            picture = await child.prepare(head, data, SILENCE_FACTOR * self._cpu_s)
        except ApiError:
            await self._give_back(child)
            raise
        except BaseException:
            await self._drop(child, kill=True)
            raise
        await self._give_back(child)
        return picture

    async def _give_back(self, child: Child) -> None:
        if child.pictures >= MAX_PICTURES:
            await self._drop(child)
        else:
            self._busy.discard(child)
            self._idle.append(child)

    async def _drop(self, child: Child, *, kill: bool = False) -> None:
        self._busy.discard(child)
        await child.end(kill=kill)

    async def close(self) -> None:
        children, self._idle = [*self._idle, *self._busy], []
        self._busy.clear()
        await asyncio.gather(*(child.end(kill=True) for child in children))
