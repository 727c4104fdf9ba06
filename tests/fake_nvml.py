"""Builds `fake_nvml.c` into a library that ftjob loads like NVIDIA's own, with this machine's C
compiler.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ftjob.launch.nvml import LIBRARY

SOURCE = Path(__file__).with_suffix(".c")


def build(folder: Path) -> Path:
    """The library, in `folder`; the test is skipped where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the fake management library with")
    made = folder / LIBRARY
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(made), str(SOURCE)],
        check=True,
        timeout=60,
    )
    return made
