"""The keys of `python -m ftjob convert`, a group of the configuration as those of `groups`.

`commands/convert.py` reads them; a run ignores them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftjob.config.keys import at_least, key


@dataclass(frozen=True)
class ConvertConfig:
    """What `python -m ftjob convert` writes, from model.checkpoint."""

    to: Literal["hf", "fastertransformer", "megatron"] | None = key(None, "format to write")
    out: str | None = key(None, "folder to write, which must not exist yet")
    tensor: int = key(1, "tensor ranks to cut for (fastertransformer, megatron)", rule=at_least(1))
    pipeline: int = key(1, "pipeline ranks to cut for (megatron)", rule=at_least(1))
    dtype: Literal["auto", "f32", "bf16", "f16"] = key(
        "auto", "dtype to write; auto is the stored one"
    )
    settings: str | None = key(
        None,
        "config.pbtxt or config.ini of FasterTransformer to translate into overrides, instead of "
        "weights",
    )
