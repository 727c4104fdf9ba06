"""`python tests/slurm/slurmlab up 4`: the cluster by hand; `install` brings Debian's packages."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

if __package__ == "":  # started as a folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slurmlab.cluster import Cluster
from slurmlab.files import Wanted
from slurmlab.packages import install
from slurmlab.processes import ClusterError

NODE_VERBS = ("crash", "cut", "kill-slurmd", "restore")


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="slurmlab", description=__doc__)
    parser.add_argument("--name", default="lab", help="name of the cluster (default: lab)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start it, and wait until all nodes are idle")
    up.add_argument("nodes", nargs="?", type=int, default=2)
    up.add_argument("--cpus", type=int, default=8, help="CPUs that a node claims")
    up.add_argument("--gpus", type=int, default=2, help="pretended GPUs of a node")
    up.add_argument("--memory", type=int, default=8000, help="MB of memory that a node claims")
    up.add_argument("--accounting", action="store_true", help="also slurmdbd, for sacct")
    up.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    verbs.add_parser("down", help="stop it, and leave nothing behind")
    verbs.add_parser("status", help="sinfo and squeue")
    verbs.add_parser("install", help="install the Debian packages").add_argument("more", nargs="*")
    for verb in NODE_VERBS:
        verbs.add_parser(verb).add_argument("node")
    on = verbs.add_parser("exec", help="run a command on a node, outside of Slurm")
    on.add_argument("node")
    on.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Do what the command line says. Returns the exit code."""
    asked = parse(words)
    try:
        if asked.verb == "install":
            install(*asked.more)
            return 0
        if asked.verb == "up":
            return _up(asked)
        cluster = Cluster(name=asked.name)
        if asked.verb == "down":
            cluster.down()
        elif asked.verb == "status":
            for command in (["sinfo", "-N", "-l"], ["squeue"]):
                subprocess.run(command, check=False, env=cluster.env())
        elif asked.verb == "exec":
            command = [*cluster.inside(asked.node), *asked.command]
            return subprocess.run(command, check=False, env=cluster.env()).returncode
        else:
            getattr(cluster, asked.verb.replace("-", "_"))(asked.node)
    except ClusterError as error:
        print(f"slurmlab: {error}", file=sys.stderr)
        return 1
    return 0


def _up(asked: argparse.Namespace) -> int:
    sizes = asked.nodes, asked.cpus, asked.gpus, asked.memory
    cluster = Cluster(Wanted(*sizes, asked.accounting, tuple(asked.settings)), name=asked.name)
    began = time.monotonic()
    what = "up" if cluster.up() else "were up already"
    print(f"# {asked.nodes} nodes {what} ({time.monotonic() - began:.1f} s); use it with:")
    print(f". {cluster.folder}/env.sh\n#   sinfo; srun -N{asked.nodes} hostname")
    return 0


if __name__ == "__main__":
    sys.exit(main())
