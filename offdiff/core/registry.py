"""Names on the command line -> config classes, found in installed packages' entry points."""

import importlib
import inspect
from importlib.metadata import entry_points

from offdiff.core.errors import InputError, unknown_name


def names(kind: str) -> list[str]:
    """Registered names of one kind ("learners"), ours and those of installed plug-ins."""
    return sorted({point.name for point in entry_points(group=f"offdiff.{kind}")})


def resolve(kind: str, name: str) -> type:
    """The config class behind a registered name or a `module:Class`.

    Raises InputError for an unknown name (nearest offered), a module that does not import, or
    something that is not a class.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except ImportError as error:
            raise InputError(
                f"cannot import {module_name!r} of {name!r} ({error}); install it first"
            ) from error
        except AttributeError as error:
            raise InputError(f"module {module_name!r} has no {attribute!r}") from error
    else:
        points = {point.name: point for point in entry_points(group=f"offdiff.{kind}")}
        if name not in points:
            raise unknown_name(kind.removesuffix("s"), name, points, "or give module:Class")
        found = points[name].load()
    if not inspect.isclass(found):
        raise InputError(f"{name!r} is no class; give the config class that builds a {kind[:-1]}")
    return found


def name_of(kind: str, config: type) -> str:
    """The registered name of a config class, or its `module:Class`: what `resolve` finds it by."""
    path = f"{config.__module__}:{config.__qualname__}"
    points = entry_points(group=f"offdiff.{kind}")
    return next((point.name for point in points if point.value == path), path)
