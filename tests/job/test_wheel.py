"""A wheel built from a fresh checkout carries conf/, slurm/, the demo and the page's templates.

It is installed without the checkout and used from another folder, where all of these are needed.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import Place, lines, load

pytestmark = pytest.mark.timeout(120)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """The wheel, built as `pip install` would build it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", str(checkout), "--no-deps", "-w", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_contents(wheel: Path, checkout: Path) -> None:
    """Every file of the package, of conf/ and of slurm/, and nothing from beside them."""
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
    expected = {f.relative_to(checkout) for f in (checkout / "ftjob").rglob("*") if f.is_file()}
    expected |= {"ftjob" / f.relative_to(checkout) for f in (checkout / "conf").rglob("*.yaml")}
    expected |= {"ftjob" / f.relative_to(checkout) for f in (checkout / "slurm").glob("*.sh")}
    assert {str(f) for f in expected} - held == set()
    for name in (
        "ftjob/conf/config.yaml",
        "ftjob/conf/model/gpt345m.yaml",
        "ftjob/slurm/run.sh",
        "ftjob/demo/demo_gpt/model.safetensors",
        "ftjob/demo/demo_t5/model.safetensors",
        "ftjob/demo/lambada_test.jsonl.gz",
        "ftjob/results/page/templates/report.html.j2",
    ):
        assert name in held
    assert {n.split("/")[0] for n in held if ".dist-info/" not in n} == {"ftjob"}


def test_installed_elsewhere(place: Place, wheel: Path) -> None:
    """`plan`, and a run of a model that only the installed conf/ knows."""
    site = place.cwd / "site"
    command = [*PIP, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, timeout=60)
    own = site / "ftjob" / "conf" / "model" / "own.yaml"
    own.write_text("name: own\nfamily: gpt2\ncheckpoint: builtin:demo_gpt\n", encoding="utf-8")
    env = {"PYTHONPATH": str(site)}
    work = Place(place.cwd / "elsewhere")
    tell = work.driver("tell", "import ftjob, sys\nprint(ftjob.__file__, file=sys.stderr)")
    done = tell("plan", "model=gpt345m", "plan.output_len=8", env=env)
    done.expect(0, str(site / "ftjob"))
    assert "24 layers, 16 heads of 64" in done.out
    done = work("plan", "cluster=slurm", env=env).expect(0)
    assert f"\n. {site}/ftjob/slurm/job.sh\n" in done.out
    work("model=own", "dataset.limit=4", "run.dir=run", env=env).expect(0)
    assert len(lines(work.cwd / "run" / "samples.jsonl")) == 4
    assert load(work.cwd / "run" / "results.json")["model"]["name"] == "own"
    page = (work.cwd / "run" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
