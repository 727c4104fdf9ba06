"""The configuration files of a cluster, as text, with the reason beside each unusual line."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# No cgroups and no CPU binding: the nodes claim more cores than the machine has. Short fuses, so
# that faults are noticed in seconds. cred_expire: a requeued job starts again only after so many
# seconds, 120 by default. A TmpFS each, because the pmix plugin keeps sockets of one name there.
SLURM_CONF = """\
ClusterName={name}
SlurmctldHost=ctl({net}.253)
SlurmctldPort=6817
SlurmdPort=6818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={dir}/munge/socket,cred_expire=5
StateSaveLocation={dir}/ctld
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd.%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
TmpFS={dir}/tmp/%n
GresTypes=gpu
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=5
UnkillableStepTimeout=15
InactiveLimit=0
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PriorityType=priority/basic
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PreemptExemptTime=00:00:00
{accounting}
NodeName=node[1-{last}] CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} NodeAddr={net}.[1-{last}]
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={net}.253
AccountingStoragePass={dir}/munge/socket
AccountingStorageTRES=gres/gpu"""

SLURMDBD_CONF = """\
DbdHost=ctl
DbdAddr={net}.253
DbdPort=6819
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
PidFile={dir}/run/slurmdbd.pid
LogFile={dir}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
"""


@dataclass(frozen=True)
class Wanted:
    """What a cluster shall have: nodes, and of each CPUs, pretended GPUs and MB of memory; sacct;
    KEY=VALUE lines of slurm.conf in place of those of that key."""

    nodes: int = 2
    cpus: int = 8
    gpus: int = 2
    memory: int = 8000
    accounting: bool = False
    settings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"settings": list(self.settings)}

    @property
    def names(self) -> list[str]:
        """The nodes' host names."""
        return [f"node{i}" for i in range(1, self.nodes + 1)]


def slurm_conf(name: str, folder: Path, net: str, wanted: Wanted) -> str:
    """The text of slurm.conf."""
    accounting = "AccountingStorageType=accounting_storage/none"
    if wanted.accounting:
        accounting = ACCOUNTING.format(net=net, dir=folder)
    facts = wanted.as_dict() | {"accounting": accounting}
    text = SLURM_CONF.format(name=name, net=net, dir=folder, last=wanted.nodes, **facts)
    for setting in wanted.settings:
        start = setting.partition("=")[0].lower() + "="
        kept = [li for li in text.splitlines(True) if not li.lower().startswith(start)]
        text = "".join([f"{setting}\n", *kept])
    return text


def write_files(
    name: str, folder: Path, net: str, wanted: Wanted, addresses: Mapping[str, str]
) -> None:
    """Folders and files that the daemons read."""
    subfolders = ["munge", "ctld", "run", "log", "gpu"]
    subfolders += [f"{kind}/{node}" for kind in ("spool", "tmp") for node in wanted.names]
    for sub in subfolders:
        (folder / sub).mkdir(parents=True)
    texts = {
        "slurm.conf": slurm_conf(name, folder, net, wanted),
        "gres.conf": _pretended_gpus(folder / "gpu", wanted.gpus),
        # unused, but slurmd sets the plugin up, and the other one fails in a namespace
        "cgroup.conf": "CgroupPlugin=cgroup/v1\n",
        "hosts": _lines([("127.0.0.1", "localhost"), *((a, h) for h, a in addresses.items())]),
        "env.sh": f"export SLURM_CONF={folder}/slurm.conf\n",
    }
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    if wanted.accounting:  # slurmdbd refuses a file that others may read
        conf = folder / "slurmdbd.conf"
        conf.touch(0o600)
        conf.write_text(SLURMDBD_CONF.format(net=net, dir=folder), encoding="utf-8")


def _pretended_gpus(folder: Path, count: int) -> str:
    """gres.conf. To Slurm a GPU is a device file with a number in its name: twins of /dev/null."""
    for i in range(count):
        os.mknod(folder / f"fakegpu{i}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    if not count:
        return ""
    last = "0" if count == 1 else f"[0-{count - 1}]"
    return f"Name=gpu File={folder}/fakegpu{last}\n"


def _lines(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f"{left} {right}\n" for left, right in pairs)
