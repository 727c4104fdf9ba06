"""The daemons of a cluster: started in the foreground, found again by state.json, stopped.

state.json in the cluster's folder says what the cluster is and which process plays which role, so
that another process can go on with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from slurmlab.network import CONTROLLER, Network
from slurmlab.processes import ClusterError, run, start_time, wait_until

SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# on a host: its own name, names of the others, memory files; then the daemon itself
ENTER = (
    'hostname "$1" && mount --bind "$2" /etc/hosts'
    ' && mount -t tmpfs tmpfs /dev/shm && shift 2 && exec "$@"'
)


class Daemons:
    """The processes of the cluster in `folder`, by role."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder, self.network = folder, network

    @property
    def state(self) -> dict[str, Any]:
        """What state.json holds."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "state.json").read_bytes())
        except (OSError, ValueError):
            return {"procs": {}}
        return found

    def save(self, state: dict[str, Any]) -> None:
        """Replace state.json."""
        new = self.folder / "state.json.new"
        new.write_text(json.dumps(state, indent=1), encoding="utf-8")
        new.replace(self.folder / "state.json")

    def log(self, role: str) -> Path:
        """What the role's process printed."""
        return self.folder / "log" / f"{role}.out"

    def alive(self, role: str) -> int | None:
        """The role's process id; None where it does not live."""
        pid, started = self.state["procs"].get(role, (0, None))
        return pid if started is not None and start_time(pid) == started else None

    def start(self, role: str, *command: str, host: str | None = None, **extra: str) -> None:
        """Start a daemon that stays in the foreground, on a host or on this machine."""
        words = list(command)
        if host is not None:
            space, names = self.network.namespace(host), str(self.folder / "hosts")
            inside = ["unshare", "--uts", "--mount", "sh", "-c", ENTER, "sh", host, names]
            words = ["ip", "netns", "exec", space, *inside, *words]
        env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        env |= extra | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        env["PATH"] = f"{SBIN}:{env.get('PATH', '')}"
        with self.log(role).open("ab") as out:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=env,
                cwd="/",
            )
        state = self.state
        state["procs"][role] = (process.pid, start_time(process.pid))
        self.save(state)

    def stop(self, role: str) -> None:
        """End a daemon: asked first, then killed."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = self.alive(role)
            if pid is None:
                return
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            with suppress(ClusterError):
                wait_until(role, lambda: self.alive(role) is None, 10)
            self.reap()

    def reap(self) -> None:
        """Take away those of this process's children that are zombies."""
        for pid, _ in self.state["procs"].values():
            with suppress(ChildProcessError, OSError):
                os.waitpid(pid, os.WNOHANG)

    def start_munge(self) -> None:
        """munged, with a key of its own."""
        place = self.folder / "munge"
        place.chmod(0o755)
        key = place / "key"
        key.touch(0o400)
        key.write_bytes(os.urandom(128))
        files = [f"--{kind}-file={place}/{kind}" for kind in ("key", "pid", "seed", "log")]
        socket = f"{place}/socket"
        self.start("munged", "munged", "--foreground", f"--socket={socket}", *files)

        def answers() -> bool:
            return run("munge", "-n", "-S", socket, check=False).returncode == 0

        wait_until("munged", answers, 20, self.log("munged"))

    def start_accounting(self, cluster: str) -> None:
        """slurmdbd on a MariaDB of its own (a socket in our folder, no port), for sacct."""
        db, env = self.folder / "db", {**os.environ, "SLURM_CONF": f"{self.folder}/slurm.conf"}
        (db / "data").mkdir(parents=True)
        common = ["--no-defaults", "--user=root", f"--datadir={db}/data"]
        options = ["--skip-test-db", "--auth-root-authentication-method=normal"]
        run("mariadb-install-db", *common, *options)
        options = [f"--socket={db}/socket", f"--pid-file={db}/pid", "--skip-networking"]
        options += ["--skip-log-bin", "--innodb-buffer-pool-size=32M"]
        options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]
        self.start("mariadbd", "mariadbd", *common, *options)
        client = ["mariadb", "--no-defaults", f"--socket={db}/socket", "-uroot", "-e", "select 1"]
        show = ["sacctmgr", "-i", "-Q", "show", "cluster"]

        def answers(command: list[str]) -> bool:
            return run(*command, check=False, env=env).returncode == 0

        wait_until("mariadbd", lambda: answers(client), 60, self.log("mariadbd"))
        # the database library finds a server on 'localhost' by this variable
        self.start("slurmdbd", "slurmdbd", "-D", host=CONTROLLER, MYSQL_UNIX_PORT=f"{db}/socket")
        wait_until("slurmdbd", lambda: answers(show), 60, self.log("slurmdbd"))
        run("sacctmgr", "-i", "-Q", "add", "cluster", cluster, env=env, check=False)

    def start_node(self, node: str) -> None:
        """slurmd of a node."""
        conf = str(self.folder / "slurm.conf")
        self.start(node, "slurmd", "-D", "-N", node, "-f", conf, host=node)

    def start_controller(self) -> None:
        """slurmctld."""
        conf = str(self.folder / "slurm.conf")
        self.start("slurmctld", "slurmctld", "-D", "-f", conf, host=CONTROLLER)
