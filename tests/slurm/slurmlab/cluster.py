"""One cluster: up, down, and what can happen to its nodes. All its files lie under one folder."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from slurmlab.daemons import Daemons
from slurmlab.files import Wanted, write_files
from slurmlab.network import Network, hosts
from slurmlab.packages import missing
from slurmlab.processes import ClusterError, run, tail, wait_until

MARK = "slurmlab"


class Cluster:
    """A cluster by its name; several can be up side by side. As a context it is up inside."""

    def __init__(
        self, wanted: Wanted | None = None, *, name: str = "lab", folder: Path | None = None
    ) -> None:
        self.wanted = wanted or Wanted()
        self.name = name
        self.folder = (folder or Path(tempfile.gettempdir()) / f"slurm-{name}").resolve()
        if not 1 <= self.wanted.nodes <= 64:
            raise ClusterError("the number of nodes must be from 1 to 64")
        if not (name.isalnum() and name.isascii() and len(name) <= 6):
            raise ClusterError("the name must be 1 to 6 letters or digits")
        if len(str(self.folder)) > 60:  # Unix sockets lie in it, whose paths end at 107 characters
            raise ClusterError(f"the folder's path is too long: {self.folder}")
        self.network = Network(name)
        self.daemons = Daemons(self.folder, self.network)

    def env(self) -> dict[str, str]:
        """The environment in which srun, sbatch, ... reach this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def node_states(self) -> dict[str, str]:
        """Node -> its state in sinfo's words."""
        command = ["sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"]
        printed = run(*command, check=False, env=self.env()).stdout
        return dict(line.split() for line in printed.splitlines() if len(line.split()) == 2)

    def all_idle(self) -> bool:
        """Whether every node waits for a job.

        Raises:
            ClusterError: where a daemon has ended.
        """
        for role in self.daemons.state["procs"]:
            if self.daemons.alive(role) is None:
                raise ClusterError(f"{role} ended{tail(self.daemons.log(role))}")
        states = self.node_states()
        return len(states) == self.wanted.nodes and set(states.values()) == {"idle"}

    def up(self) -> bool:
        """Start it; False where the same cluster is up already.

        Raises:
            ClusterError: without root or the packages, or where a daemon does not come up.
        """
        if os.geteuid() != 0:
            raise ClusterError("must be root (network namespaces, slurmd)")
        if absent := missing():
            raise ClusterError(f"Debian packages are missing: {' '.join(absent)}")
        if self._is_up():
            return False
        self.down()
        try:
            self._start()
        except BaseException:
            if (self.folder / "log").exists():
                kept = f"{self.folder}.failed-log"
                shutil.copytree(self.folder / "log", kept, dirs_exist_ok=True)
                print(f"slurmlab: its logs are in {kept}", file=sys.stderr)
            self.down()
            raise
        return True

    def _is_up(self) -> bool:
        state = self.daemons.state
        if state.get("wanted") != self.wanted.as_dict():
            return False
        if not all(map(self.daemons.alive, state["procs"])):
            return False
        states = self.node_states()
        return len(states) == self.wanted.nodes and all(map(_is_well, states.values()))

    def _start(self) -> None:
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ClusterError(f"{self.folder} is not empty, and no cluster's")
        names = self.wanted.names
        net = self.network.make(names)
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"made_by": MARK, "wanted": self.wanted.as_dict(), "procs": {}}
        self.daemons.save(facts)
        write_files(self.name, self.folder, net, self.wanted, hosts(net, names))
        self.daemons.start_munge()
        if self.wanted.accounting:
            self.daemons.start_accounting(self.name)
        self.daemons.start_controller()
        for node in names:
            self.daemons.start_node(node)
        wait_until("all nodes idle", self.all_idle, 60, self.folder / "log" / "slurmctld.log")

    def down(self) -> None:
        """Stop it, and leave nothing behind."""
        if shutil.which("ip") is None:  # then nothing can be up
            return
        self.daemons.stop("slurmctld")  # first, so that it takes nothing for a node's failure
        for host in self.network.hosts_up():
            self.network.kill_all(host)
        roles = list(self.daemons.state["procs"])
        for role in sorted(roles, key=lambda r: r == "munged"):
            self.daemons.stop(role)
        self.daemons.reap()
        self.network.remove()
        if self.daemons.state.get("made_by") == MARK:
            shutil.rmtree(self.folder)

    def _known(self, node: str) -> str:
        count = self.daemons.state.get("wanted", {}).get("nodes", self.wanted.nodes)
        if node not in replace(self.wanted, nodes=count).names:
            raise ClusterError(f"no node {node!r}")
        return node

    def crash(self, node: str) -> None:
        """Power a node off: every process on it dies, and nobody hears of it."""
        self.network.set_cable(self._known(node), "down")
        self.network.kill_all(node)
        self.daemons.reap()

    def cut(self, node: str) -> None:
        """Pull a node's cable: its processes live on, alone."""
        self.network.set_cable(self._known(node), "down")

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's slurmd alone; the job's processes live on."""
        pid = self.daemons.alive(self._known(node))
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until(node, lambda: self.daemons.alive(node) is None, 10)
            self.daemons.reap()

    def restore(self, node: str) -> None:
        """Bring a crashed or cut node, or one without slurmd, back."""
        self.network.set_cable(self._known(node), "up")
        # a new slurmd registers at once; the old one's node would be looked at after a minute
        self.daemons.stop(node)
        self.daemons.start_node(node)

        def back() -> bool:
            state = self.node_states().get(node, "down")
            return _is_well(state) and not state.startswith("completing")

        wait_until(f"{node} back", back, 60, self.folder / "log" / f"slurmd.{node}.log")

    def inside(self, node: str) -> list[str]:
        """What to put before a command that is to run on a node, outside of Slurm."""
        pid = self.daemons.alive(self._known(node))
        if pid is None:
            raise ClusterError(f"{node} is not running")
        options = ["--net", "--uts", "--mount", f"--wd={Path.cwd()}"]
        return ["nsenter", f"--target={pid}", *options]

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ClusterError):
            self.down()


def _is_well(state: str) -> bool:
    return not state.startswith(("down", "unk", "drain", "fail")) and not state.endswith("*")
