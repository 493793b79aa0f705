"""Reads a config: a YAML file or a preset's name, with `--set key.path=value` on top."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from promptmill.configs.errors import ConfigError, describe, nearest, shown
from promptmill.configs.keys import within
from promptmill.configs.own_files import PRESETS
from promptmill.configs.schema import Config
from promptmill.configs.yaml_values import parse, parse_setting

ENDINGS = (".yaml", ".yml")


def load(name: str, settings: Sequence[str] = ()) -> Config:
    """Read, override and check a config.

    Args:
        name: A path that ends in .yaml or .yml, or the name of a preset.
        settings: `key.path=value`; a number in the path is an index into a list. A value is the text as it stands where the key
            takes text, and is written as YAML elsewhere.

    Raises:
        ConfigError: One line for each fault, each beginning with the file.
    """
    path = find(name)
    content = read(path)
    for setting in settings:
        override(content, setting)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        lines = describe(error, Config)
        raise ConfigError([f"{_blamed(line.split(': ')[0], name, path, settings)}: {line}" for line in lines]) from None


def _blamed(key: str, name: str, path: Path, settings: Sequence[str]) -> str:
    """Return the source of a wrong key: the last setting that reaches the key, else the file or preset."""
    for setting in reversed(settings):
        own = setting.partition("=")[0].strip()
        if f"{own}.".startswith(f"{key}.") or f"{key}.".startswith(f"{own}."):
            return f"--set {shown(setting)}"
    return str(path) if name.endswith(ENDINGS) else f"preset {name}"


def find(name: str) -> Path:
    """Return the file of a config that is given by its path or by a preset's name.

    Raises:
        ConfigError: There is no such file or preset.
    """
    if name.endswith(ENDINGS):
        path = Path(name)
        if not path.is_file():
            raise ConfigError([f"{name}: no such file"])
        return path
    presets = preset_names()
    if name not in presets:
        hint = nearest(name, presets)
        raise ConfigError([f"{name}: neither a .yaml file nor a preset{hint}; presets: {', '.join(presets)}"])
    return PRESETS / f"{name}.yaml"


def preset_names() -> list[str]:
    """Return the names of the presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    """Read the mapping that a YAML file holds. A key given twice is an error, since YAML would silently take the last.

    Raises:
        ConfigError: The file is not UTF-8, no YAML, or holds no mapping.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = parse(text, (Config,))
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 (byte {error.start})"]) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError([f"{path}{line}: not YAML: {reason}"]) from None
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: holds {'nothing' if content is None else type(content).__name__}, not keys and values"])
    return content


def override(content: dict[str, Any], setting: str) -> None:
    """Apply one `key.path=value` in place; mappings on the path are made where they are not there.

    Raises:
        ConfigError: The setting has another form, its value is no YAML, or nothing can be set there.
    """
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError([f"--set {setting}: not of the form key.path=value"])
    forms: tuple[Any, ...] = (Config,)
    for key in keys:
        forms = within(forms, key)
    try:
        value = parse_setting(text, forms)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        quoting = f"if it is one text, put it in quotes of its own: --set '{path}=\"…\"'"
        raise ConfigError([f"--set {setting}: {text!r} is not a YAML value; {quoting}"]) from None
    at: Any = content
    for key in keys[:-1]:
        at = at[_index(at, key, setting)] if isinstance(at, list) else at.setdefault(key, {})
        if not isinstance(at, dict | list):
            raise ConfigError([f"--set {setting}: {key} holds {at!r}, nothing can be set inside it"])
    at[_index(at, keys[-1], setting) if isinstance(at, list) else keys[-1]] = value


def _index(at: list[Any], key: str, setting: str) -> int:
    if not key.isdecimal() or int(key) >= len(at):
        raise ConfigError([f"--set {setting}: {key!r} is not one of the {len(at)} entries, counted from 0"])
    return int(key)


def json_schema() -> str:
    """Return the JSON Schema of a config, for editors."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"
