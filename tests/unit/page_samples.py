"""What the tests of the report's page share: a recorded result, its variations, and a parser.

page/results.json is a small LAMBADA run as `report` hands it over.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
CONFIG = "model:\n  name: demo_gpt\nrun:\n  max_failed: 2\n"
MACHINE = {"python": "3.11.7", "host": "node1", "torch": {"version": "2.13.0", "cuda": None}}
HERE = Path(__file__).parent / "page"
RESULTS: dict[str, Any] = json.loads((HERE / "results.json").read_text("utf-8"))


class Checker(HTMLParser):
    """Fails on an element that is closed twice, never, or in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def died(results: dict[str, Any], code: int, cause: str) -> dict[str, Any]:
    results.update(code=code, cause=cause, results={"lambada": {}}, expect={})
    results["throughput"] = {}
    results["charts"] = results["tables"] = []
    return results


def many_devices(results: dict[str, Any], ranks: int = 4, each: int = 8) -> dict[str, Any]:
    results["devices"] = [
        {**RESULTS["devices"][0], "rank": r, "device": d, "tokens": 1000 * (r + d), "rows": r + d}
        for r in range(ranks)
        for d in range(each)
    ]
    results["phases"] = [
        {**RESULTS["phases"][2], "rank": d["rank"], "device": d["device"], "attempt": a}
        for d in results["devices"]
        for a in (0, 1)
    ]
    return results


def bars(page: str) -> list[tuple[float, float, str]]:
    """The time line's bars: left and right end in per cent, and what they say."""
    pattern = r'<svg class="p\d+" x="([\d.]+)%".*?width="([\d.]+)%".*?<title>(.*?)</title>'
    found = [(float(x), float(w), said) for x, w, said in re.findall(pattern, page)]
    return [(x, x + w, said) for x, w, said in found]
