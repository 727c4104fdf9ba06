"""Makes the launchers of Triton's kernels one at a time, for device threads that share a process.

Triton (3.6) loads each launcher as an extension module of one name, which keeps its state in the
process: Python gives such a module, loaded a second time, the object of the last one of that name
(CPython, `import_find_extension`), and Triton takes `launch` from it a moment later. Another thread
may have put its own there, of another kernel's arguments. `device` asks for this before its
threads start.
"""

from __future__ import annotations

import threading
from typing import Any

_LOCK = threading.Lock()


def one_at_a_time() -> None:
    """From now on no two threads make a launcher at once. Asked again it does nothing."""
    from triton.runtime import driver

    with _LOCK:
        active = driver.active
        make = active.launcher_cls
        if getattr(make, "one_at_a_time", False):
            return

        def alone(*about: Any) -> Any:
            with _LOCK:
                return make(*about)

        alone.one_at_a_time = True  # type: ignore[attr-defined]
        active.launcher_cls = alone
