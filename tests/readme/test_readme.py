"""The README is true: its commands run, its links lead somewhere, its tables are the code's.

Blocks of ```bash test are run line by line, in order, in one copy of the checkout, as a reader
would; blocks of ```bash setup make environments and are held to the two documented lines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VENV = "python3 -m venv .venv && . .venv/bin/activate && "
SETUP = [
    f"{VENV}pip install -e . && python -m ftjob",
    f"{VENV}pip install -e '.[test]' && pytest -n 2 --dist loadfile",
]


def blocks(info: str) -> list[str]:
    """The fenced blocks whose info string is exactly this."""
    return re.findall(rf"^```{re.escape(info)}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The command lines of a block: a trailing backslash joins, comments and blanks are none."""
    joined = block.replace("\\\n", " ")
    stripped = [line.strip() for line in joined.splitlines()]
    return [line for line in stripped if line and not line.startswith("#")]


COMMANDS = [line for block in blocks("bash test") for line in commands(block)]


def shell(command: str, folder: Path) -> None:
    """Run a line in bash, with the `python` that runs the tests; it must exit 0."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert ran.returncode == 0, f"exit {ran.returncode}: {command}\n{ran.stdout}\n{ran.stderr}"


class Reader:
    """Follows the README in a checkout of their own, a command after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = folder, 0

    def read_to(self, number: int) -> None:
        """Run the commands up to this one that have not run yet."""
        while self.begun <= number:
            self.begun += 1
            shell(COMMANDS[self.begun - 1], self.folder)


@pytest.fixture(scope="module")
def reader(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(shutil.copytree(checkout, tmp_path_factory.mktemp("reader") / "ftjob"))


def test_there_is_something_to_run() -> None:
    """A changed fence must not switch the tests below off."""
    assert len(COMMANDS) >= 5
    assert any(c.startswith("python -m ftjob plan") for c in COMMANDS)
    assert any(c.startswith("python -m ftjob compare") for c in COMMANDS)
    assert README.count("```") % 2 == 0
    known = {"bash", "bash test", "bash setup", "text", "json", "yaml", "python", ""}
    fences = re.findall(r"^```(.*)$", README, re.MULTILINE)[::2]
    assert set(fences) <= known


def test_setup_lines() -> None:
    assert [line for block in blocks("bash setup") for line in commands(block)] == SETUP


def test_no_setup_elsewhere() -> None:
    """What installs something stands in a setup block, so that the two lines are all of it."""
    for line in COMMANDS:
        assert not re.search(r"\b(pip|venv|conda|apt(-get)?)\b", line), line


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda n: COMMANDS[n])
def test_command(reader: Reader, number: int) -> None:
    reader.read_to(number)


def test_generated_parts_are_up_to_date(reader: Reader) -> None:
    shell("python -m eval.readme", reader.folder)
    assert (reader.folder / "README.md").read_text(encoding="utf-8") == README


def links() -> list[str]:
    """Link and image targets outside of code."""
    text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "code", text)
    found = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", text)
    found += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
    return found + re.findall(r"(?:href|src)=\"([^\"]+)\"", text)


def anchors(path: Path) -> set[str]:
    """The anchors GitHub gives to the headings of a Markdown file."""
    headings = re.findall(r"^#+\s+(.+?)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings)
    return set(plain)


def test_links(checkout: Path) -> None:
    """Relative links lead to files a clone has, anchors to headings."""
    targets = [t for t in links() if not re.match(r"[a-z]+:", t)]
    assert len(targets) >= 10
    for target in targets:
        name, _, anchor = target.partition("#")
        assert not name.startswith("/"), f"{target}: leads out of the checkout"
        path = checkout / name if name else checkout / "README.md"
        assert path.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(path), f"{target}: no such heading"
