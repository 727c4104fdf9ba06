"""`python -m ftjob cluster=slurm` on the cluster: submitted, followed, left alone, refused."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from cluster_jobs import BatchJob, Site, wait_until
from harness import ROWS, ended, lines, load

pytestmark = pytest.mark.timeout(120)
SLURM = ("cluster=slurm", "cluster.nodes=2", "cluster.time=9")


def printed(out: str) -> list[tuple[str, Path]]:
    """The job ids and run folders that a submission prints."""
    return [(j, Path(f)) for j, f in re.findall(r"^job (\d+)\nrun folder (.+)$", out, re.MULTILINE)]


def test_followed_to_the_end(
    site: Site, base: tuple[str, ...], finished: tuple[Path, str, str]
) -> None:
    """Options reach Slurm, words with quotes do no harm; the end is the job's, and its table."""
    name = "it's a; touch pwned"
    options = (*SLURM, f"cluster.comment={name}", "cluster.cpus_per_node=2", "cluster.exclusive=1")
    more = (f"run.dir=runs/{name}", "run.progress_s=1", "dataset.expect={acc: 0.9}")
    process = site.ftjob(*base, *options[:-1], "cluster.exclusive=true", *more)
    done = ended(process, 90)
    done.expect(5, "state=RUNNING", "is over: FAILED", "code 5", "dataset.expect asks for 0.9")
    ((job_id, folder),) = printed(done.out)
    assert folder == site.cwd / "runs" / name
    job = BatchJob(site, job_id, folder)
    asked = {f: job.ask(f) for f in ("TimeLimit", "NumNodes", "CPUs/Task", "OverSubscribe")}
    assert asked == {
        "TimeLimit": "00:09:00",
        "NumNodes": "2",
        "CPUs/Task": "2",
        "OverSubscribe": "NO",
    }
    assert f"Comment={name}" in site.tool("scontrol", "show", "job", job_id).stdout
    assert job.ask("ExitCode") == "5:0", "the batch script ends with the job's code"
    assert not list(site.cwd.rglob("pwned*"))
    assert len(lines(folder / "samples.jsonl")) == ROWS
    assert len({r["host"] for r in load(folder / "status.json")["ranks"]}) == 2
    assert re.search(r" rows=\d+/240 rows_per_s=[\d.]+ tokens_per_s=\d+ eta=", done.err)
    site("compare", str(folder), str(finished[0] / "run")).expect(0)


def test_plan_shows_the_script(site: Site, base: tuple[str, ...]) -> None:
    """What `plan` prints is what is submitted; printing submits nothing."""
    arguments = (*base, *SLURM, "run.dir=a run", "cluster.follow=false", "model.name=m")
    plan = ended(site.ftjob("plan", *arguments)).expect(0)
    script = plan.out.partition("batch script (not submitted):\n\n")[2]
    assert not (site.cwd / "a run").exists()
    ((job_id, folder),) = printed(ended(site.ftjob(*arguments)).expect(0).out)
    (submitted,) = (folder / "submit").rglob("*submission.sh")
    assert submitted.read_text(encoding="utf-8").strip() == script.strip()
    site.tool("scancel", job_id)
    BatchJob(site, job_id, folder).over()


def test_ctrl_c_leaves_the_job_alone(site: Site) -> None:
    """Detached with 130; the job runs on, and drains and comes back as any other."""
    arguments = ("batch.max_tokens=256", "run.dir=run", "cluster=slurm", "dataset.limit=200")
    process = site.ftjob(*arguments)
    job_id = process.stdout.readline().split()[1] if process.stdout else ""
    job = BatchJob(site, job_id, site.cwd / "run")
    job.work()
    process.send_signal(signal.SIGINT)
    done = ended(process)
    done.expect(130, f"job {job_id} goes on without us", "python -m ftjob report")
    assert job.state == "RUNNING"
    site.tool("scancel", "-s", "USR2", job_id)  # submitit would call that a time-out
    wait_until("a requeue", lambda: job.ask("Restarts") == "1", 30)
    assert job.status["code"] == 75
    assert job.over() == 0
    assert job.codes() == [75, 0]


def test_a_cancelled_job(site: Site) -> None:
    """Who follows a job that is cancelled hears of its drain; of one that never ran, that too."""
    started = time.monotonic()
    process = site.ftjob("run.dir=run", "batch.max_tokens=256", "cluster=slurm")
    waiting = site.ftjob("run.dir=never", "cluster=slurm", "cluster.nodes=7")  # of 6
    never = waiting.stdout.readline().split()[1] if waiting.stdout else ""
    job_id = process.stdout.readline().split()[1] if process.stdout else ""
    job = BatchJob(site, job_id, site.cwd / "run")
    job.work()
    site.tool("scancel", never)
    ended(waiting).expect(130, "state=PENDING", "is over: CANCELLED", "it answered nothing")
    site.tool("scancel", job_id)
    ended(process).expect(75, "is over: CANCELLED", "code 75", "drained on SIGTERM")
    assert time.monotonic() - started < 60


def test_refused(site: Site, base: tuple[str, ...]) -> None:
    """Before a job is submitted, by Slurm, and within the job."""
    known = ("squeue", "-h", "-t", "all", "-o", "%i")
    before = sorted(site.tool(*known).stdout.split())
    ended(site.ftjob(*base, *SLURM, "parallel.tensor=3")).expect(2, "parallel.tensor=3")
    ended(site.ftjob(*base, *SLURM, "cluster.partition=no")).expect(2, "invalid partition")
    ended(site.ftjob(*base, *SLURM, "run.dir=100%")).expect(2, "run.dir=", "%")
    assert sorted(site.tool(*known).stdout.split()) == before
    bad = site.cwd / "rows.jsonl"
    bad.write_text("", encoding="utf-8")
    inside = (*base, "cluster=slurm", f"dataset.path={bad}", "run.dir=run")
    ended(site.ftjob(*inside)).expect(3, str(bad), "is over: FAILED")


def test_sweep_and_report(site: Site, base: tuple[str, ...]) -> None:
    """-m submits independent jobs and returns; `report PARENT` tabulates what they found."""
    arguments = ("-m", *base, "cluster=slurm", "dataset.limit=9,12", "model.name=m")
    done = ended(site.ftjob(*arguments)).expect(0)
    jobs = [BatchJob(site, j, f) for j, f in printed(done.out)]
    assert len({job.job_id for job in jobs}) == len({job.run for job in jobs}) == 2
    assert [job.over() for job in jobs] == [0, 0]
    table = site("report", "runs").expect(0).out.splitlines()
    assert [line.split()[0] for line in table[1:]] == sorted(job.run.name for job in jobs)
    assert {"9", "12"} <= set(" ".join(table).split())
