"""Makes the launchers of Triton's kernels one at a time, for device threads that share a process.

Triton (3.6) loads each launcher as an extension module of one name, which keeps its state in the
process: Python gives such a module, loaded a second time, the object of the last one of that name
(CPython, `import_find_extension`), and Triton takes `launch` from it a moment later. Another thread
may have put its own there, of another kernel's arguments. `device` asks for this before its threads
start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class OneAtATime:
    """What makes launchers, for one thread after the other."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make, self._lock = make, threading.Lock()

    def __call__(self, *about: Any) -> Any:
        """A launcher."""
        with self._lock:
            return self._make(*about)


def one_at_a_time() -> None:
    """From now on no two threads make a launcher at once. Asked again it does nothing."""
    from triton.runtime import driver

    if not isinstance(driver.active.launcher_cls, OneAtATime):
        driver.active.launcher_cls = OneAtATime(driver.active.launcher_cls)
