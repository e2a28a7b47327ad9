"""Hosts as network namespaces, joined by a bridge: `ip netns`, veth pairs, cables that can be pulled.

Invariant: whatever was made is deleted, and the machine's own network gets one interface, no route but the
drill's subnet. Needs root. Knows nothing of what runs on the hosts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

# RFC 2544's range for tests of networks: nobody's own.
PREFIX = "198.18.77"
HERE = f"{PREFIX}.1"


class NotPossibleError(RuntimeError):
    """This machine or user cannot make network namespaces; the message says why."""


class Network:
    """As a context manager: the hosts exist and reach each other, and the machine reaches them."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._tag = f"tw{os.getpid()}"
        self.addresses = {host: f"{PREFIX}.{number}" for number, host in enumerate(hosts, start=10)}

    def __enter__(self) -> Network:
        self._check()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def on(self, host: str) -> list[str]:
        """The words before a command that is to run there."""
        return ["ip", "netns", "exec", self._space(host)]

    @contextlib.contextmanager
    def cut(self, host: str) -> Iterator[None]:
        """The host's cable is pulled: packets vanish, nobody is told."""
        self._in("switch", "link", "set", self._port(host), "down")
        try:
            yield
        finally:
            self._in("switch", "link", "set", self._port(host), "up")

    def _check(self) -> None:
        if shutil.which("ip") is None:
            raise NotPossibleError("no `ip` command here (Debian: iproute2)")
        if os.geteuid() != 0:
            raise NotPossibleError("network namespaces need root: run this with sudo")

    def _build(self) -> None:
        self._ip("netns", "add", self._space("switch"))
        self._in("switch", "link", "add", "bridge", "type", "bridge")
        self._in("switch", "link", "set", "bridge", "up")
        for host, address in self.addresses.items():
            self._ip("netns", "add", self._space(host))
            self._in(host, "link", "set", "lo", "up")
            self._plug(host, "eth0", self._space(host))
            self._in(host, "addr", "add", f"{address}/24", "dev", "eth0")
            self._in(host, "link", "set", "eth0", "up")
        self._plug("machine", self._tag, str(os.getpid()))
        self._ip("addr", "add", f"{HERE}/24", "dev", self._tag)
        self._ip("link", "set", self._tag, "up")

    def _plug(self, host: str, device: str, netns: str) -> None:
        """A cable, made where both its ends stay: one on its way through the machine's own network would be
        left there by whoever stops this in between."""
        port = self._port(host)
        self._in("switch", "link", "add", port, "type", "veth", "peer", "name", device, "netns", netns)
        self._in("switch", "link", "set", port, "master", "bridge", "up")

    def _remove(self) -> None:
        """Deleting the bridge's namespace takes every cable with it."""
        for host in ("switch", *self.addresses):
            subprocess.run(["ip", "netns", "del", self._space(host)], check=False, capture_output=True)

    def _space(self, host: str) -> str:
        return f"{self._tag}-{host}"

    @staticmethod
    def _port(host: str) -> str:
        return f"to-{host}"

    def _in(self, host: str, *words: str) -> None:
        self._ip("-n", self._space(host), *words)

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotPossibleError(f"ip {' '.join(words)}: {done.stderr.strip()}")
