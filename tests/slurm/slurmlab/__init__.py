"""A real multi-node Slurm cluster on one Debian machine: `with Cluster(nodes=4) as cluster: ...`.

munged, slurmctld and a slurmd for each node are ordinary processes here, no systemd, no containers.
A node is a network namespace with its own host name, address, /etc/hosts and /dev/shm, so that MPI
sees separate hosts and talks TCP between them; the file system is shared, as on a real cluster.
Needs root and the Debian packages of `packages.py`; `python tests/slurm/slurmlab up 4` by hand.
"""

from slurmlab.cluster import Cluster
from slurmlab.packages import install, missing
from slurmlab.processes import ClusterError

__all__ = ["Cluster", "ClusterError", "install", "missing"]
