"""`convert convert.settings=FILE`: a settings file of FasterTransformer's as overrides of ours.

Reads config.pbtxt of the Triton backend, a folder's config.ini or the examples' gpt_config.ini, and
prints the command line that means the same, then each setting with what became of it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from types import MappingProxyType

from ftjob.checkpoint.fastertransformer import CONFIG_NAME
from ftjob.checkpoint.ini import Section, read_ini
from ftjob.commands.layout import columns
from ftjob.config.old_settings import BY_CONVENTION, FT_CONVENTION, names, translate
from ftjob.config.pbtxt import Message, parse_pbtxt
from ftjob.errors import CheckpointError

_LARGEST = 1 << 20
_ROWS = MappingProxyType(
    {
        f"model={family}": f"dataset={dataset} dataset.path=FILE"
        for family, dataset in (("gpt2", "prompts"), ("t5", "translation"))
    }
)


def settings_page(file: Path) -> str:
    """The page for one file.

    Raises:
        CheckpointError: for a file that is none of the three, with the line.
    """
    settings, family, dumped = read_settings(file)
    lines = translate(settings)
    found = [line.override for line in lines if line.override]
    chosen = [o for o in found if o.startswith("model=")] or [f"model={family}"]
    rows = [["setting", "override", "remark"]]
    rows += [[f"{x.name}={x.value}", x.override or "-", x.remark or "-"] for x in lines]
    if any(o.partition("=")[0] in BY_CONVENTION for o in found):
        found.append(FT_CONVENTION)
        remark = "FasterTransformer's rules where transformers has others"
        rows.append(["all of these", FT_CONVENTION, remark])
    if file.name == CONFIG_NAME and any(file.parent.glob("*.bin")):
        found.append(f"model.checkpoint={file.parent}")
        rows.append(["the folder", found[-1], "weights lie beside the file"])
    overrides = dict.fromkeys([*chosen, *found])
    command = " ".join(["python -m ftjob", *map(shlex.quote, overrides)])
    more = f"\n{dumped} more keys are a dump of transformers' configuration.\n" if dumped else ""
    weights = any(o.startswith("model.checkpoint=") for o in found)
    what = "the rows" if weights else "the weights and the rows"
    path = "" if weights else "model.checkpoint=PATH "
    last = f"Add {what} to run: {path}{_ROWS[chosen[0]]}."
    return f"{command}\n\n" + "\n".join(columns(rows)) + f"\n{more}\n{last}\n"


def read_settings(file: Path) -> tuple[dict[str, str], str, int]:
    """The settings of a file by name, the family where none of them says it, and the number of
    keys that are none of FasterTransformer's.

    Raises:
        CheckpointError: for a file that cannot be read or is none of the three.
    """
    if file.suffix == ".pbtxt":
        return _of_pbtxt(file), "gpt2", 0
    sections = read_ini(file)
    if "ft_instance_hyperparameter" in sections:
        return _of_example(sections), "gpt2", 0
    if "gpt" in sections:
        return dict(sections["gpt"].values), "gpt2", 0
    if "encoder" in sections and "decoder" in sections:
        parts = [sections[n].values for n in ("encoder", "decoder", "structure") if n in sections]
        every = {k: v for part in parts for k, v in part.items()}
        known = {k: v for k, v in every.items() if k in names()}
        return known, "t5", len(every) - len(known)
    raise CheckpointError(
        f"{file}: has the sections {', '.join(sections) or 'of no model'}; read are config.pbtxt, "
        "config.ini with [gpt] or with [encoder] and [decoder], and gpt_config.ini with "
        "[ft_instance_hyperparameter]"
    )


def _of_pbtxt(file: Path) -> dict[str, str]:
    """The parameters of a Triton model, and what of its other fields FasterTransformer used."""
    try:
        if file.stat().st_size > _LARGEST:
            raise CheckpointError(f"{file}: is larger than {_LARGEST} bytes")
        message = parse_pbtxt(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: is no config.pbtxt: {error}") from None
    found: dict[str, str] = {}
    for name in ("max_batch_size", "default_model_filename"):
        if (value := message.text(name)) is not None:
            found[name] = value
    for parameter in message.all("parameters"):
        if isinstance(parameter, Message) and (key := parameter.text("key")) is not None:
            found[key] = parameter.message("value").text("string_value") or ""
    if message.message("model_transaction_policy").text("decoupled") is not None:
        found["decoupled"] = message.message("model_transaction_policy").text("decoupled") or ""
    if count := message.message("instance_group").text("count"):
        found["instance_group"] = count
    if message.all("dynamic_batching"):
        found["dynamic_batching"] = "{}"
    if "model_checkpoint_path" in found:  # else the default file below the model's folder counts
        found.pop("default_model_filename", None)
    return found


def _of_example(sections: dict[str, Section]) -> dict[str, str]:
    """The settings of the examples: those of the instance, of the request, and of the model that
    model_name chooses."""
    found = dict(sections["ft_instance_hyperparameter"].values)
    if "request" in sections:
        found |= sections["request"].values
    chosen = sections.get(found.get("model_name", ""))
    return found | (dict(chosen.values) if chosen else {})
