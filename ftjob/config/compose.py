"""From the command line to a `JobConfig`: checks the overrides, lets Hydra compose, then builds.

The only place that imports Hydra. Hydra's own exceptions never reach the user: overrides are
checked here first, against the declared keys and the files in conf/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftjob.config.build import build
from ftjob.config.groups import GROUPS, JobConfig
from ftjob.config.keys import Key, keys_of, union_options
from ftjob.config.old_settings import names
from ftjob.errors import ConfigError, closest, nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def packed_dir(name: str) -> Path:
    """The folder `name` (conf): inside an installed wheel, else beside the package."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def compose(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> JobConfig:
    """The checked configuration for `overrides`; `config_dirs` are searched besides conf/.

    Raises:
        ConfigError: one message with key, value, rule and nearest legal choice.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir {folder}: no such folder.")
    arguments = check_overrides(overrides, config_dirs)
    if config_dirs:
        paths = ",".join(f"'file://{Path(d).resolve()}'" for d in config_dirs)
        arguments.append(f"hydra.searchpath=[{paths}]")
    store_defaults()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(packed_dir("conf")), version_base="1.3"):
            composed = hydra_compose("config", overrides=arguments)
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"configuration: {' '.join(str(error).split())}") from None
    assert isinstance(values, dict)
    return build({str(k): v for k, v in values.items()})


def store_defaults() -> None:
    """Give Hydra the dataclasses' defaults as the node `ftjob_defaults` that config.yaml names."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="ftjob_defaults", node=JobConfig().as_dict())


def check_overrides(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """The overrides as Hydra shall see them, each key and group choice known to exist.

    Raises:
        ConfigError: for what cannot be parsed, an unknown key or choice, or a sweep.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    checked: list[str] = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            text = _quoted(text)
            override = parser.parse_override(text)
        if override.is_sweep_override():
            raise ConfigError(f"{text}: several values make several jobs; add -m to run them all.")
        checked.append(_checked(text, override, config_dirs))
    return checked


def choices(group: str, config_dirs: Sequence[str] = ()) -> list[str]:
    """The names that can be chosen for a group: its files in conf/ and `config_dirs`."""
    folders = [packed_dir("conf"), *map(Path, config_dirs)]
    return sorted({f.stem for folder in folders for f in (folder / group).glob("*.yaml")})


def _checked(text: str, override: Override, config_dirs: Sequence[str]) -> str:
    name: Any = override.key_or_group
    leaves = {k.name: k for k in keys_of(JobConfig)}
    if name in GROUPS:
        value, known = str(override.value()), choices(name, config_dirs)
        if value not in known:
            raise ConfigError(
                f"{name}={value}: no such {name} in conf/{name}. {nearest(value, known)}"
            )
        return text
    if name in leaves:
        return _as_written(text, override, leaves[name])
    parent, _, _ = name.rpartition(".")
    if parent in leaves and isinstance(leaves[parent].default, dict):
        return f"++{text.lstrip('+')}"  # open mappings such as dataset.expect take any name
    if (old := name.split(".")[-1]) in names():
        raise ConfigError(f"{text}: {_new_name(old)}")
    raise ConfigError(f"{text}: no such key. {_known(name, list(leaves))}")


def _new_name(old: str) -> str:
    new, remark = names()[old]
    if not new:
        return f"FasterTransformer's {old} is no key here: {remark}."
    return f"FasterTransformer's {old} is {new} here{f' ({remark})' if remark else ''}."


def _quoted(text: str) -> str:
    """An override that Hydra cannot parse, with its value quoted where the key takes any word:
    paths hold spaces, brackets and tildes.

    Raises:
        ConfigError: where the key takes no words, or there is no key.
    """
    name, equals, value = text.partition("=")
    leaf = next((k for k in keys_of(JobConfig) if k.name == name.lstrip("+")), None)
    old = name.lstrip("-")
    if old != name and old in names():  # a flag of FasterTransformer's examples
        raise ConfigError(f"{text}: {_new_name(old)}")
    if leaf is None or not equals or str not in union_options(leaf.type):
        raise ConfigError(
            f"{text!r} is not an override: write key=value, quoted where the shell or "
            "the value needs it, such as 'dataset.expect={acc: 0.09}'."
        )
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{name}='{escaped}'"


def _as_written(text: str, override: Override, leaf: Key) -> str:
    """The override as Hydra shall see it: a word that reads as a number stays a word, and an open
    mapping may be given names it did not have."""
    if isinstance(leaf.default, dict):
        return f"++{text.lstrip('+')}"
    words = str in union_options(leaf.type)
    value: Any = override.value()
    if words and isinstance(value, (int, float)) and not isinstance(value, bool):
        key, _, written = text.partition("=")
        return f"{key}='{written}'"
    return text


def _known(name: str, leaves: Sequence[str]) -> str:
    """What there is in place of an unknown key: the keys of its group or, where there is no such
    group, any key or group, with the groups listed."""
    words = name.split(".")
    for depth in range(len(words), 0, -1):
        group = f"{'.'.join(words[:depth])}."
        if same := [leaf for leaf in leaves if leaf.startswith(group)]:
            ends = [leaf.removeprefix(group) for leaf in same]
            return f"{closest('.'.join(words[depth:]), ends, group)}Known: {', '.join(same)}."
    return f"{closest(name, [*GROUPS, *leaves])}Known groups: {', '.join(GROUPS)}."
