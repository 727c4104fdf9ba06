"""A wheel built from the checkout carries conf/, the demo and the page's templates, and runs so.

It is installed beside nothing of the checkout and used from another folder.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import Place, lines, load

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `pip install` would build it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    subprocess.run([*pip, str(ROOT), "--no-deps", "-w", str(folder)], check=True, timeout=100)
    (built,) = folder.glob("*.whl")
    return built


def test_contents(wheel: Path) -> None:
    """Every file of conf/ and of the package that is not code, and no tests."""
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
    package = ROOT / "ftjob"
    data = [f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    expected = {str(f.relative_to(ROOT)) for f in data}
    expected |= {f"ftjob/{f.relative_to(ROOT)}" for f in (ROOT / "conf").rglob("*.yaml")}
    assert expected - held == set()
    for name in (
        "ftjob/conf/config.yaml",
        "ftjob/conf/model/gpt345m.yaml",
        "ftjob/demo/demo_gpt/model.safetensors",
        "ftjob/demo/lambada_test.jsonl.gz",
        "ftjob/results/page/templates/report.html.j2",
    ):
        assert name in held
    assert {n.split("/")[0] for n in held if "dist-info" not in n} == {"ftjob"}


def test_installed_elsewhere(place: Place, wheel: Path) -> None:
    target = place.cwd / "site"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    install = [*pip, "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, timeout=60)
    env = {"PYTHONPATH": str(target)}
    work = Place(place.cwd / "elsewhere")
    tell = work.driver("tell", "import ftjob, sys; print(ftjob.__file__, file=sys.stderr)")
    done = tell("plan", "model=gpt345m", "plan.output_len=8", env=env)
    done.expect(0, str(target / "ftjob"))
    assert "24 layers, 16 heads of 64" in done.out
    (target / "ftjob" / "conf" / "model" / "own.yaml").write_text(
        "name: own\nfamily: gpt2\ncheckpoint: builtin:demo_gpt\n", encoding="utf-8"
    )
    work("model=own", "dataset.limit=4", "run.dir=run", env=env).expect(0)
    assert len(lines(work.cwd / "run" / "samples.jsonl")) == 4
    assert load(work.cwd / "run" / "results.json")["model"]["name"] == "own"
    assert (work.cwd / "run" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE")
