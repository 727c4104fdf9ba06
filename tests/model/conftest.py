"""What the model tests share: no hub, and one compute thread, so that the group tests do not crowd
the cores; both are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_compute_thread() -> Iterator[None]:
    """Run each test with a single compute thread per tensor operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the hub's clients off the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
