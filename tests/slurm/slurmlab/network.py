"""The cluster's network: a bridge on this machine, and a namespace with one cable for each host."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from slurmlab.processes import run, start_time

CONTROLLER = "ctl"
CLIENT = socket.gethostname().split(".")[0]  # this machine is the cluster's login node


def hosts(net: str, nodes: Sequence[str]) -> dict[str, str]:
    """Host name -> address: this machine, the controller, the nodes."""
    addresses = {CLIENT: f"{net}.254", CONTROLLER: f"{net}.253"}
    return addresses | {node: f"{net}.{i}" for i, node in enumerate(nodes, start=1)}


class Network:
    """The bridge and namespaces of the cluster `name`; its nodes are called node1, node2, ..."""

    def __init__(self, name: str) -> None:
        self.bridge = f"sl-{name}"

    def namespace(self, host: str) -> str:
        """The network namespace that is the host."""
        return f"{self.bridge}-{host}"

    def cable(self, host: str) -> str:
        """This machine's end of the host's cable; names have at most 15 characters."""
        return f"{self.bridge}-{host.removeprefix('node')}"

    def make(self, nodes: Sequence[str]) -> str:
        """Make all of it. Returns the first three numbers of its addresses."""
        used = run("ip", "-4", "-o", "addr").stdout
        # 198.18.0.0/15 is set aside for tests of networks: nobody's real address
        net = next(f"198.18.{x}" for x in range(1, 255) if f" 198.18.{x}." not in used)
        run("ip", "link", "add", "name", self.bridge, "type", "bridge")
        run("ip", "addr", "add", f"{net}.254/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        for host, address in hosts(net, nodes).items():
            if host != CLIENT:
                self._plug(host, address)
        return net

    def _plug(self, host: str, address: str) -> None:
        space, cable = self.namespace(host), self.cable(host)
        run("ip", "netns", "add", space)
        run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", cable, "master", self.bridge, "up")
        run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "link", "set", "lo", "up")

    def set_cable(self, host: str, state: str) -> None:
        """Pull the host's cable (`down`), or put it back (`up`)."""
        run("ip", "link", "set", self.cable(host), state)

    def processes(self, host: str) -> list[int]:
        """What lives on the host."""
        listed = run("ip", "netns", "pids", self.namespace(host), check=False).stdout.split()
        return [int(p) for p in listed if int(p) != os.getpid() and start_time(int(p))]

    def kill_all(self, host: str) -> None:
        """Kill whatever lives on the host, until nothing does."""
        for _ in range(100):
            living = self.processes(host)
            if not living:
                return
            for pid in living:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def hosts_up(self) -> list[str]:
        """The hosts that have a namespace, also those of a run that left them."""
        spaces = [line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines()]
        start = f"{self.bridge}-"
        return sorted(s.removeprefix(start) for s in spaces if s.startswith(start))

    def remove(self) -> None:
        """Take all of it away."""
        for host in self.hosts_up():
            run("ip", "netns", "del", self.namespace(host), check=False)
        links = [p.name for p in Path("/sys/class/net").glob(f"{self.bridge}*")]
        for link in links:
            if link == self.bridge or link.startswith(f"{self.bridge}-"):
                run("ip", "link", "del", link, check=False)
