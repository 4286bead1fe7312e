"""What a search may choose: "algo.expectile=0.5:0.9", "algo.learning_rate=1e-4:1e-3:log"."""

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offdiff.config import RunConfig
from offdiff.core.errors import InputError, unknown_name
from offdiff.grid import flag

Value = bool | int | float | str
PARTS = ("algo", "planner", "augment")
"""Fields of a run's configuration whose fields may be searched."""
PUBLISHED = {
    "iql": ("algo.inverse_temperature=0.5,3,10", "algo.expectile=0.5,0.7,0.9"),
    "rebrac": (
        "algo.actor_penalty=0.0005,0.001,0.002,0.003,0.03,0.1,0.3,1",
        "algo.critic_penalty=0,0.0001,0.0005,0.001,0.005,0.01,0.1",
    ),
    "td3bc": ("algo.alpha=1,2,2.5,3,4",),
    "cql": (
        "algo.critic_learning_rate=1e-4,3e-4",
        "algo.actor_learning_rate=3e-5,1e-4,3e-4",
    ),
}
"""Grids of Jackson et al. (2025), "A Clean Slate for Offline Reinforcement Learning"."""


@dataclass(frozen=True)
class Parameter:
    """One hyperparameter and its possible values: some choices, or a range with both ends."""

    name: str
    """As of the command line, with underscores: "algo.expectile"."""
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Of a range: uniform in the logarithm."""
    whole: bool = False
    """Of a range: whole numbers only."""

    def extremes(self) -> tuple[Value, ...]:
        """Values to check: if they are allowed, all are."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name}={','.join(map(str, self.choices))}"
        return f"{self.name}={self.low}:{self.high}" + ":log" * self.log


def read_space(texts: Sequence[str], config: RunConfig) -> tuple[Parameter, ...]:
    """The space of some texts or TOML files, for runs like `config`; a learner's own without any.

    Raises InputError that lists everything that is wrong: unknown names, values that the
    configuration refuses.
    """
    texts = tuple(texts) or PUBLISHED.get(config.name, ())
    if not texts:
        raise InputError(
            f"no search space is known for {config.name}; give one, e.g. --space "
            f'"{"planner" if config.planner else "algo"}.batch_size=64,256"'
        )
    space: list[Parameter] = []
    problems: list[str] = []
    for text in itertools.chain.from_iterable(map(_lines, texts)):
        try:
            parameter = _parameter(text, config)
            for value in parameter.extremes():
                apply(config, {parameter.name: value})
        except ValueError as error:
            problems.append(str(error))
            continue
        space.append(parameter)
    names = [parameter.name for parameter in space]
    problems += [f"{n} is named twice" for n in dict.fromkeys(names) if names.count(n) > 1]
    if problems:
        raise InputError(f"--space: {'; '.join(problems)}")
    return tuple(space)


def grid(space: Sequence[Parameter]) -> Iterator[dict[str, Value]]:
    """All combinations of the choices. Raises InputError for ranges."""
    if ranges := [str(parameter) for parameter in space if not parameter.choices]:
        raise InputError(
            f"a grid has no ranges, got {'; '.join(ranges)}; list values or use --sampler tpe"
        )
    for values in itertools.product(*(parameter.choices for parameter in space)):
        yield {parameter.name: value for parameter, value in zip(space, values, strict=True)}


def apply(config: RunConfig, values: Mapping[str, Value]) -> RunConfig:
    """The configuration with other values. Raises ValueError for those that it refuses."""
    parts: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        part, _, field = name.partition(".")
        parts.setdefault(part, {})[field] = value
    return dataclasses.replace(
        config,
        **{part: _replaced(getattr(config, part), fields) for part, fields in parts.items()},
    )


def options(values: Mapping[str, Value]) -> list[str]:
    """The values as `offdiff run` takes them."""
    return [word for name, value in values.items() for word in flag(name, value)]


def _replaced(config: Any, fields: Mapping[str, Value]) -> Any:
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        field, _, inner = name.partition(".")
        if inner:
            changes[field] = _replaced(changes.get(field, getattr(config, field)), {inner: value})
        else:
            changes[field] = value
    return dataclasses.replace(config, **changes)


def _lines(text: str) -> list[str]:
    """A text itself, or the lines of a TOML file of names -> lists or ranges."""
    if not text.endswith(".toml"):
        return [text]
    try:
        values = tomllib.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the search space {text} ({error}); mend the file") from error
    flat = _flat(values)
    return [
        f"{name}={','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in flat.items()
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`"algo.alpha" = [1]` and `[algo] alpha = [1]` are the same."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inside = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return found


def _parameter(text: str, config: RunConfig) -> Parameter:
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not values:
        raise InputError(f"{text!r} is no NAME=LOW:HIGH or NAME=A,B,C")
    known = _fields(config)
    if name not in known:
        raise unknown_name("hyperparameter", name, known)
    usual = known[name]
    if ":" not in values:
        choices = tuple(_value(name, word.strip(), usual) for word in values.split(","))
        return Parameter(name, choices)
    low, high, *more = values.split(":")
    ends = [_value(name, word.strip(), usual) for word in (low, high)]
    if more not in ([], ["log"]) or any(isinstance(end, bool | str) for end in ends):
        raise InputError(f"{text!r} is no range LOW:HIGH or LOW:HIGH:log of numbers")
    first, last = float(ends[0]), float(ends[1])
    if not (math.isfinite(first) and math.isfinite(last) and first < last):
        raise InputError(f"{text!r} must go from a finite number to a greater one")
    if more and first <= 0:
        raise InputError(f"{text!r} begins at {first:g}, whose logarithm does not exist")
    whole = isinstance(usual, int)
    if whole:
        return Parameter(name, low=int(first), high=int(last), log=bool(more), whole=True)
    return Parameter(name, low=first, high=last, log=bool(more))


def _fields(config: RunConfig) -> dict[str, Value]:
    """Names that may be searched -> their values in `config`."""
    found: dict[str, Value] = {}
    used = "planner" if config.planner else "algo"
    for part in PARTS:
        inner = getattr(config, part)
        if inner is not None and part in (used, "augment"):
            found |= _scalars(inner, f"{part}.")
    return found


def _scalars(config: Any, prefix: str) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= _scalars(value, f"{prefix}{field.name}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{field.name}"] = value
    return found


def _value(name: str, word: str, usual: Value) -> Value:
    """A word as the kind of value that the field has."""
    if isinstance(usual, str):
        return word
    if isinstance(usual, bool):
        if word.lower() not in ("true", "false"):
            raise InputError(f"{name} takes true and false, got {word!r}")
        return word.lower() == "true"
    try:
        return int(word) if isinstance(usual, int) else float(word)
    except ValueError as error:
        kind = "whole numbers" if isinstance(usual, int) else "numbers"
        raise InputError(f"{name} takes {kind}, got {word!r}") from error
