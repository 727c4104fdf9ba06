"""Threads that need new launchers at once get them one after the other, each its own."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from triton.runtime import driver

from ftjob.kernels.launchers import one_at_a_time


def test_launchers_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Triton makes one: it is put where the last one was, and taken from there."""
    place = SimpleNamespace()

    def make(source: int, _: object) -> int:
        place.launch = source
        time.sleep(0.001)
        return int(place.launch)

    active = SimpleNamespace(launcher_cls=make)
    monkeypatch.setattr(driver, "_active", active, raising=False)
    one_at_a_time()
    once = active.launcher_cls
    one_at_a_time()
    assert active.launcher_cls is once, "asked again it does nothing"
    found: dict[int, int] = {}

    def body(number: int) -> None:
        found[number] = active.launcher_cls(number, None)

    threads = [threading.Thread(target=body, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {n: n for n in range(16)}
