"""From an ml_collections ConfigDict, once, to frozen dataclasses: the only place where a config is untyped."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import enum
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import ml_collections
from ml_collections.config_flags import config_path

T = TypeVar("T")
KIND = "kind"  # names the dataclass where a field is a union of several and the given fields fit more than one

_DICTS = (Mapping, ml_collections.ConfigDict)


class ConfigError(ValueError):
    """A field of a configuration is unknown, missing or of the wrong type; the message names its dotted path."""


def from_config(cls: type[T], config: Mapping[str, Any] | ml_collections.ConfigDict, path: str = "") -> T:
    """Builds the dataclass `cls` from `config`, field by field and strictly.

    Nested dataclasses, unions of dataclasses (told apart by their fields, or by an extra field `kind` with the class's
    name), Optional, Literal, Enum, tuple, list and dict fields are converted; an int is taken for a float, but a bool
    not for an int. A value that already is an instance of the expected dataclass is kept.

    Args:
        cls: a dataclass type.
        config: field name -> value; fields with a default may be absent.
        path: dotted path of `config` in the whole configuration, for messages.

    Raises:
        ConfigError: naming the path of the field, its value and what was expected.
    """
    if not _is_record(cls):
        raise TypeError(f"from_config builds dataclasses, not {cls!r}")
    if not isinstance(config, _DICTS):
        raise ConfigError(f"{path or 'config'}: expected the fields of {cls.__name__}, got {_show(config)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in config:
        if name not in fields:
            raise ConfigError(_unknown_field(_join(path, name), str(name), cls.__name__, fields))
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in config:
            values[name] = _convert(hints[name], config[name], _join(path, name))
        elif _is_required(field):
            raise ConfigError(
                f"{_join(path, name)}: required field of {cls.__name__} is missing ({_expected(hints[name])})"
            )
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:  # raised by the dataclass's own __post_init__
        raise ConfigError(f"{path or cls.__name__}: {error}") from error


def with_room(config: ml_collections.ConfigDict, paths: Iterable[str]) -> ml_collections.ConfigDict:
    """The configuration with an empty mapping wherever a path leads below a field that the file leaves at its default.

    Overrides on the command line are written into what the file has, and a file need not list its defaults: so of
    `steps[2].config.mesh.fsdp` the `mesh` is made, and mappings in lists take new fields as the whole does. Whether
    there is such a field is for `from_config` to say. A path that leads nowhere (no such item or mapping) adds nothing.
    """
    opened: ml_collections.ConfigDict = _opened(config)
    for path in paths:
        try:
            *parents, _ = config_path.split(path)
        except ValueError:  # no path: whoever reads it next says so
            continue
        node: Any = opened
        for part in parents:
            if isinstance(node, ml_collections.ConfigDict) and isinstance(part, str):
                if part not in node:
                    node[part] = ml_collections.ConfigDict()
                node = node[part]
            elif isinstance(node, (list, tuple)) and isinstance(part, int) and part < len(node):
                node = node[part]
            else:
                break
    return opened


def _opened(value: Any) -> Any:
    """Mappings in lists too as ConfigDicts, their keys in the order in which they came."""
    if isinstance(value, (list, tuple)):
        return type(value)(_opened(item) for item in value)
    if isinstance(value, _DICTS):
        opened = ml_collections.ConfigDict(allow_dotted_keys=True, sort_keys=False)
        for key in value:
            opened[key] = _opened(value[key])
        return opened
    return value


def to_plain(value: Any) -> Any:
    """The same configuration as JSON holds it: ConfigDict and dataclass to dict, tuple to list, Enum to its value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, _DICTS):
        return {str(key): to_plain(value[key]) for key in value}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, pathlib.Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"a configuration holds numbers, strings, lists and dicts, not {_show(value)}")


def _convert(expected: Any, value: Any, path: str) -> Any:
    if expected is Any:
        return value
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(expected), value, path)
    if origin is typing.Literal:
        return _convert_literal(typing.get_args(expected), value, path)
    if origin is not None:
        return _convert_container(expected, origin, value, path)
    if expected is None or expected is type(None):
        return _check(value is None, expected, value, path)
    if _is_record(expected):
        return value if isinstance(value, expected) else from_config(expected, value, path)
    if isinstance(expected, type) and issubclass(expected, enum.Enum):
        return _convert_enum(expected, value, path)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected in (int, float):
        return _check(isinstance(value, expected) and not isinstance(value, bool), expected, value, path)
    if expected is pathlib.Path and isinstance(value, str):
        return pathlib.Path(value)
    if expected in (tuple, list):
        return expected(_check(isinstance(value, (list, tuple)), expected, value, path))
    if expected is dict:
        return dict(_check(isinstance(value, _DICTS), expected, value, path))
    return _check(isinstance(value, expected), expected, value, path)


def _convert_container(expected: Any, origin: Any, value: Any, path: str) -> Any:
    args = typing.get_args(expected)
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        _check(isinstance(value, (list, tuple)) and len(value) == len(args), expected, value, path)
        return tuple(_convert(arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
    if origin in (tuple, list, collections.abc.Sequence):
        _check(isinstance(value, (list, tuple)), expected, value, path)
        items = [_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin in (dict, collections.abc.Mapping):
        _check(isinstance(value, _DICTS), expected, value, path)
        return {_convert(args[0], key, path): _convert(args[1], value[key], _join(path, key)) for key in value}
    raise TypeError(f"{path}: fields of type {_expected(expected)} cannot come from a config")


def _convert_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    records = [option for option in options if _is_record(option)]
    for option in records:
        if isinstance(value, option):
            return value
    if records and isinstance(value, _DICTS):
        return _convert_record_union(records, value, path)
    # Exact types first, so that an int stays an int in `int | float`.
    ordered = sorted(options, key=lambda option: type(value) is not option)
    for option in ordered:
        if option in records:
            continue
        try:
            return _convert(option, value, path)
        except ConfigError:
            continue  # the next member of the union may fit; if none does, the error below names them all
    raise ConfigError(f"{path}: expected {' or '.join(map(_expected, options))}, got {_show(value)}")


def _convert_record_union(records: list[Any], value: Any, path: str) -> Any:
    names = {record.__name__: record for record in records}
    if KIND in value and not any(KIND in _field_names(record) for record in records):
        if value[KIND] not in names:
            raise ConfigError(_unknown_choice(_join(path, KIND), value[KIND], names))
        return from_config(names[value[KIND]], {key: value[key] for key in value if key != KIND}, path)
    if len(records) == 1:
        return from_config(records[0], value, path)
    given = set(value)
    known = [record for record in records if given <= _field_names(record)]
    fitting = [record for record in known if _required_names(record) <= given]
    if len(fitting) == 1:
        return from_config(fitting[0], value, path)
    if fitting:
        raise ConfigError(
            f"{path}: the fields {sorted(given)} fit {' and '.join(record.__name__ for record in fitting)}; "
            f"say which by the field {KIND!r}"
        )
    # The likeliest meaning: most given fields known, fewest required ones missing; its own message names what is wrong.
    best = max(records, key=lambda r: (len(given & _field_names(r)), -len(_required_names(r) - given)))
    return from_config(best, value, path)


def _convert_literal(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    raise ConfigError(_unknown_choice(path, value, choices))


def _convert_enum(expected: type[enum.Enum], value: Any, path: str) -> enum.Enum:
    if isinstance(value, expected):
        return value
    for member in expected:
        if type(member.value) is type(value) and member.value == value:
            return member
    raise ConfigError(_unknown_choice(path, value, [member.value for member in expected]))


def _check(fits: bool, expected: Any, value: Any, path: str) -> Any:
    if not fits:
        raise ConfigError(f"{path}: expected {_expected(expected)}, got {_show(value)}")
    return value


def _unknown_field(path: str, name: str, owner: str, allowed: Iterable[str]) -> str:
    return f"{path}: unknown field of {owner}.{_suggestion(name, allowed)} Allowed: {', '.join(sorted(allowed))}"


def _unknown_choice(path: str, value: Any, allowed: Iterable[Any]) -> str:
    listed = ", ".join(repr(choice) for choice in allowed)
    return f"{path}: unknown value {_show(value)}.{_suggestion(str(value), map(str, allowed))} Allowed: {listed}"


def _suggestion(name: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _is_record(expected: Any) -> typing.TypeGuard[type[Any]]:
    return isinstance(expected, type) and dataclasses.is_dataclass(expected)


def _field_names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls) if field.init}


def _required_names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls) if field.init and _is_required(field)}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _expected(expected: Any) -> str:
    if expected is type(None):
        return "None"
    return expected.__name__ if isinstance(expected, type) and not typing.get_args(expected) else str(expected)


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)
