"""Every kernel compiles for Ampere and for Hopper, within what their processors share, on a machine
without either: what Triton's interpreter does not say.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ftjob.kernels import __path__ as folder

SCRIPT = Path(__file__).with_name("compile_all.py")


def kernels_in(files: list[Path]) -> set[str]:
    """The kernels that are launched: those with a grid."""
    texts = [file.read_text(encoding="utf-8") for file in files]
    return {name for text in texts for name in re.findall(r"\b(_\w+)\[\(", text)}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles(capability: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(capability)],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {line.split()[0] for line in done.stdout.splitlines()}
    assert found == kernels_in([*Path(folder[0]).glob("*.py")])
