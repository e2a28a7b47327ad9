"""Ports of this machine: a free one, and whether a process could listen on a given one.

Invariant: what is asked is asked by binding as the servers bind, and let go at once.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from dataclasses import dataclass

PORTS = range(15_000, 32_000)
_ADVICE = {
    errno.EADDRINUSE: "Something listens there already: stop it, or choose another port (0: a free one).",
    errno.EACCES: "Ports below 1024 are root's: choose one above.",
}


@dataclass(frozen=True)
class PortProblem:
    where: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.advice}"


def free_port(host: str) -> int:
    """Below the range from which systems take the ports of outgoing connections: one of those would be gone
    again before a process that is only starting has bound it.
    """
    for port in (*random.sample(PORTS, 100), 0):
        with _socket(host) as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {host}")


def port_problem(host: str, port: int) -> PortProblem | None:
    """None where a server could listen."""
    with _socket(host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "Listen on an address that this machine has.")
            return PortProblem(f"{host}:{port}", error.strerror or str(error), advice)
    return None


def _socket(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:  # beside somebody who has the same port of IPv4
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return probe
