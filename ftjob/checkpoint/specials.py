"""The token ids that begin and end a sequence, from config.json and generation_config.json.

Where both state an id the latter's counts, as in transformers' generate. The family says what is
meant where neither does; the job's decoding starts and stops rows by them.
"""

from __future__ import annotations

from ftjob.checkpoint.index import CheckpointIndex, read_json
from ftjob.errors import CheckpointError
from ftjob.model.arch import Specials
from ftjob.model.families import Family

GENERATION_NAME = "generation_config.json"
_START, _END = "decoder_start_token_id", "eos_token_id"


def read_specials(kind: Family, index: CheckpointIndex, vocab: int) -> Specials:
    """The ids that a checkpoint states, checked.

    Raises:
        CheckpointError: for what is no id of the vocabulary, with file, key, value and rule.
    """
    stated, files = dict(index.config), dict.fromkeys((_START, _END), index.stated_in)
    path = index.folder / GENERATION_NAME
    for key, value in (read_json(path) if path.is_file() else {}).items():
        if key in files and value is not None:
            stated[key], files[key] = value, path

    found = kind.specials(stated)
    for key, ids in ((_START, () if found.start is None else (found.start,)), (_END, found.ends)):
        if any(type(i) is not int or not 0 <= i < vocab for i in ids):
            several = ", or a list of such" if key == _END else ""
            raise CheckpointError(
                f"{files[key]}: {key}={stated.get(key)!r} must be an id of the vocabulary, 0 to "
                f"{vocab - 1}{several}"
            )
    return found
