"""`sbatch slurm/run.sh` on the cluster: done, refused, drained and back, cancelled, out of time."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from cluster_jobs import Site, wait_until
from harness import ROWS, journal, lines, load

pytestmark = pytest.mark.timeout(150)


def test_two_nodes(site: Site, base: tuple[str, ...], finished: tuple[Path, str, str]) -> None:
    """One rank a node; options of sbatch come before the script's; each device did some work."""
    job = site.sbatch(["-N2", "--time=7"], (*base, "run.dir=run", "batch.max_tokens=256"))
    assert job.over() == 0, job.output
    assert job.ask("TimeLimit") == "00:07:00"
    assert len(lines(job.run / "samples.jsonl")) == ROWS
    ranks = job.status["ranks"]
    assert len({r["host"] for r in ranks}) == 2
    devices = load(job.run / "results.json")["devices"]
    assert len(devices) == 2
    assert all(d["rows"] > 0 and d["tokens"] > 0 for d in devices)
    assert sum(d["rows"] for d in devices) == ROWS
    site("compare", "run", str(finished[0] / "run")).expect(0)
    environment = load(job.run / "environment.json")["variables"]
    assert int(environment["SLURM_JOB_END_TIME"]) > 1e9, "run.sh asks squeue for it"


REFUSED = (2, 128 + signal.SIGTERM, 128 + signal.SIGKILL)


def test_refused(site: Site, base: tuple[str, ...]) -> None:
    """srun and MPI that do not know each other; and a bad key. Neither makes a run folder. The code
    is 2, or what srun makes of it where it ends the other rank first, by TERM or by KILL."""
    site.env["FTJOB_MPI"] = "none"
    strangers = site.sbatch(["-N2"], (*base, "run.dir=one"))
    site.env.pop("FTJOB_MPI")
    unknown = site.sbatch(["-N2"], (*base, "run.dir=two", "model.nane=x"))
    assert strangers.over() in REFUSED
    assert "choose its --mpi" in strangers.output
    assert unknown.over() in REFUSED
    assert "model.nane=x: no such key" in unknown.output
    assert not strangers.run.exists()
    assert not unknown.run.exists()


def test_drained_and_back(
    site: Site, base: tuple[str, ...], finished: tuple[Path, str, str]
) -> None:
    """The drain signal: 75, requeued by the script, the attempt counted, the same answers."""
    arguments = (*base, "run.dir=run", "batch.max_tokens=64")
    job = site.sbatch(["-N2"], arguments, slow=True)
    job.work()
    site.tool("scancel", "-s", "USR2", job.job_id)
    wait_until("a requeue", lambda: job.ask("Restarts") == "1", 30)
    assert (job.status["code"], job.status["attempt"]) == (75, 0)
    assert f"job {job.job_id} is requeued" in job.output
    assert job.over() == 0, job.output
    assert job.codes() == [75, 0]
    assert job.output.count("rows are done") == 1, "both runs wrote into one log"
    keys = [r["key"] for f in (job.run / "journal").glob("*.jsonl") for r in lines(f)[1:]]
    assert len(keys) == len(set(keys)) == ROWS
    site("compare", "run", str(finished[0] / "run")).expect(0)


def test_cancelled(site: Site, base: tuple[str, ...], finished: tuple[Path, str, str]) -> None:
    """scancel drains too, and is not undone; the same command goes on with another node count."""
    arguments = (*base, "run.dir=run", "batch.max_tokens=64")
    job = site.sbatch(["-N3"], arguments, slow=True)
    job.work()
    site.tool("scancel", job.job_id)
    job.wait("CANCELLED")
    assert job.status["code"] == 75
    assert "not requeued from here" in job.output
    first = len(journal(job.run, 0))
    assert first < ROWS
    site(*arguments).expect(0)  # one rank, here
    assert job.codes() == [75, 0]
    site("compare", "run", str(finished[0] / "run")).expect(0)


def test_time_limit(site: Site, base: tuple[str, ...]) -> None:
    """Some time before the job's end it drains, and is requeued."""
    arguments = (*base, "run.dir=run", "batch.max_tokens=64", "run.drain_s=6")
    job = site.sbatch(["-N1"], arguments, slow=True, ends_in_s=18)
    wait_until("a requeue", lambda: job.ask("Restarts") == "1", 40)
    site.tool("scancel", job.job_id)
    assert job.status["code"] == 75
    assert "before the job's time limit (run.drain_s)" in job.status["cause"]
    assert 0 < len(journal(job.run, 0)) < ROWS


def test_a_time_limit_too_short(site: Site, base: tuple[str, ...]) -> None:
    """No attempt gets to a row: the second one is the last."""
    arguments = (*base, "run.dir=run", "batch.max_tokens=64")
    job = site.sbatch(["-N2"], arguments, slow=True, ends_in_s=0)
    assert job.over() == 1, job.output
    assert job.ask("Restarts") == "1"
    assert job.codes() == [75, 1]
    assert "two attempts in a row" in job.status["cause"]


def test_resubmitted_elsewhere(site: Site, tmp_path: Path) -> None:
    """sbatch copies the script away: it finds job.sh through scontrol, also by a hostile path."""
    away = tmp_path / "an odd' place"
    shutil.copytree(Path(__file__).resolve().parents[2] / "slurm", away)
    done = site.tool("sbatch", "--wait", "-N1", str(away / "run.sh"), "x.y=/run.sh b")
    log = next(site.cwd.glob("ftjob-*.log")).read_text(encoding="utf-8")
    assert "x.y=/run.sh b: no such key" in log
    assert done.returncode == 2, done.stderr
