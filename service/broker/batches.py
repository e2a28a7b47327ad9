"""Where batches live: their files, their state and the result of each line, in Redis, until they expire.

Invariant: a line's result is written under its number, so that writing it twice counts once; a batch has
at most one runner, as long as that runner renews its claim. Knows nothing of what a line asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from service.broker.connection import async_client, translated
from service.protocol import Keys
from service.settings import RedisSettings

# KEYS[1]: the batch. ARGV: new state, unix seconds, the states it may be left from. Returns 1 if it changed.
_MOVE = """
local state = redis.call('HGET', KEYS[1], 'state')
for i = 3, #ARGV do
  if state == ARGV[i] then
    redis.call('HSET', KEYS[1], 'state', ARGV[1], 'at:' .. ARGV[1], ARGV[2])
    return 1
  end
end
return 0
"""
# KEYS[1]: the runner of a batch. ARGV: runner, ms. Returns 1 where it is ours now.
_TAKE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# KEYS[1]: the runner of a batch. ARGV: runner.
_LET_GO = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""


# KEYS: the file, sizes of all files. ARGV: what begins any file's key; name, owner's prefix, bytes of this;
# the limit of all; what is known of it, its ttl. Returns 1 where there is room, and takes it.
_TAKE_ROOM = """
local all, own = tonumber(ARGV[4]), tonumber(ARGV[4])
local sizes = redis.call('HGETALL', KEYS[2])
for i = 1, #sizes, 2 do
  local name, bytes = sizes[i], tonumber(sizes[i + 1])
  if redis.call('EXISTS', ARGV[1] .. name) == 0 then
    redis.call('HDEL', KEYS[2], name)
  else
    all = all + bytes
    if string.sub(name, 1, #ARGV[3]) == ARGV[3] then own = own + bytes end
  end
end
local limit = tonumber(ARGV[5])
if all > limit or own > limit / 2 then return 0 end
redis.call('HSET', KEYS[1], 'about', ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
return 1
"""
_LEAST_BYTES = 64 * 1024  # that a file counts: bounds how many there are to be summed


def stored_name(owner: str, name: str) -> str:
    """Files and batches are kept under their owner's name, so that no other key finds them."""
    return f"{owner}/{name}"


def owner_of(name: str) -> str:
    """By the name that something is stored under."""
    return name.partition("/")[0]


@dataclass(frozen=True)
class StoredFile:
    about: str
    size_bytes: int


@dataclass(frozen=True)
class StoredBatch:
    """about: what it was made with. at: when it came into each state, unix seconds."""

    about: str
    state: str
    at: Mapping[str, int]
    completed: int
    failed: int


class BatchStore(Protocol):
    """Every method may raise `BrokerUnavailable`."""

    async def put_file(self, file_id: str, about: str, content: bytes, ttl_s: int, room_bytes: int) -> bool:
        """room_bytes: for the files of all owners, for one's a half of it. False where there is none left."""

    async def file(self, file_id: str) -> StoredFile | None: ...
    async def content(self, file_id: str) -> bytes | None: ...
    async def delete_file(self, file_id: str) -> bool: ...

    async def create(self, batch_id: str, about: str, state: str, now: int, ttl_s: int, file_id: str) -> None:
        """In progress, it is found by runners among `open_batches`; its file is kept as long as it is."""

    async def batch(self, batch_id: str) -> StoredBatch | None: ...

    async def move(self, batch_id: str, state: str, now: int, *sources: str) -> bool:
        """To another state, where it is in one of these."""

    async def close_batch(self, batch_id: str) -> None:
        """No runner will look for it any more."""

    async def open_batches(self) -> list[str]: ...

    async def take(self, batch_id: str, runner: str, ttl_s: float) -> bool:
        """Claims or renews; False where another runner has it."""

    async def let_go(self, batch_id: str, runner: str) -> None:
        """Of a batch that another runner has by now, nothing changes."""

    async def put_line(self, batch_id: str, number: int, line: str, ttl_s: int, *, failed: bool) -> None: ...
    async def done_lines(self, batch_id: str) -> set[int]: ...

    async def results(self, batch_id: str, *, failed: bool) -> bytes:
        """JSONL, in the order of the lines."""

    async def aclose(self) -> None: ...


class RedisBatchStore:
    def __init__(self, settings: RedisSettings) -> None:
        self._prefix = Keys(settings.shard).prefix
        self._client = async_client(settings)
        self._move = self._client.register_script(_MOVE)
        self._take = self._client.register_script(_TAKE)
        self._take_room = self._client.register_script(_TAKE_ROOM)
        self._let_go = self._client.register_script(_LET_GO)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def put_file(self, file_id: str, about: str, content: bytes, ttl_s: int, room_bytes: int) -> bool:
        key, owner = self._key("file", file_id), stored_name(owner_of(file_id), "")
        size_bytes = max(len(content), _LEAST_BYTES)
        with translated():
            keys, args = [key, self._prefix + "batch:sizes"], [self._key("file", ""), file_id, owner]
            if not await self._take_room(keys=keys, args=[*args, size_bytes, room_bytes, about, ttl_s]):
                return False
            try:
                writing: Any = self._client.hset(key, "content", content)
                await writing
            except BaseException:
                await self._client.delete(key)  # and with it its room
                raise
        return True

    async def file(self, file_id: str) -> StoredFile | None:
        key = self._key("file", file_id)
        with translated():
            pipe = self._client.pipeline()
            pipe.hget(key, "about")
            pipe.hstrlen(key, "content")
            about, size_bytes = await pipe.execute()
        return None if about is None else StoredFile(about.decode(), size_bytes)

    async def content(self, file_id: str) -> bytes | None:
        with translated():
            found: Any = self._client.hget(self._key("file", file_id), "content")
            content: bytes | None = await found
        return content

    async def delete_file(self, file_id: str) -> bool:
        with translated():
            return bool(await self._client.delete(self._key("file", file_id)))

    async def create(self, batch_id: str, about: str, state: str, now: int, ttl_s: int, file_id: str) -> None:
        key = self._key("batch", batch_id)
        with translated():
            pipe = self._client.pipeline()
            pipe.hset(key, mapping={"about": about, "state": state, f"at:{state}": now})
            pipe.expire(key, ttl_s)
            pipe.expire(self._key("file", file_id), ttl_s)
            if state == "in_progress":
                pipe.sadd(self._open, batch_id)
            await pipe.execute()

    async def batch(self, batch_id: str) -> StoredBatch | None:
        with translated():
            pipe = self._client.pipeline()
            pipe.hgetall(self._key("batch", batch_id))
            for kind in ("output", "errors"):
                pipe.hlen(self._key(kind, batch_id))
            raw, completed, failed = await pipe.execute()
        if not raw:
            return None
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        at = {name[3:]: int(value) for name, value in fields.items() if name.startswith("at:")}
        return StoredBatch(fields["about"], fields["state"], at, completed, failed)

    async def move(self, batch_id: str, state: str, now: int, *sources: str) -> bool:
        with translated():
            return bool(await self._move(keys=[self._key("batch", batch_id)], args=[state, now, *sources]))

    async def close_batch(self, batch_id: str) -> None:
        with translated():
            removal: Any = self._client.srem(self._open, batch_id)
            await removal

    async def open_batches(self) -> list[str]:
        with translated():
            members: Any = self._client.smembers(self._open)
            return sorted(member.decode() for member in await members)

    async def take(self, batch_id: str, runner: str, ttl_s: float) -> bool:
        with translated():
            key = self._key("runner", batch_id)
            return bool(await self._take(keys=[key], args=[runner, int(ttl_s * 1000)]))

    async def let_go(self, batch_id: str, runner: str) -> None:
        with translated():
            await self._let_go(keys=[self._key("runner", batch_id)], args=[runner])

    async def put_line(self, batch_id: str, number: int, line: str, ttl_s: int, *, failed: bool) -> None:
        key = self._key("errors" if failed else "output", batch_id)
        with translated():
            pipe = self._client.pipeline()
            pipe.hset(key, str(number), line)
            pipe.expire(key, ttl_s)
            await pipe.execute()

    async def done_lines(self, batch_id: str) -> set[int]:
        with translated():
            pipe = self._client.pipeline()
            for kind in ("output", "errors"):
                pipe.hkeys(self._key(kind, batch_id))
            return {int(number) for numbers in await pipe.execute() for number in numbers}

    async def results(self, batch_id: str, *, failed: bool) -> bytes:
        with translated():
            lines: Any = self._client.hgetall(self._key("errors" if failed else "output", batch_id))
            found = {int(number): line for number, line in (await lines).items()}
        return b"".join(found[number] + b"\n" for number in sorted(found))

    @property
    def _open(self) -> str:
        return self._prefix + "batches"

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}batch:{kind}:{name}"
