"""The one error that is the user's to mend."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class DivergedError(InputError):
    """Training met infinite numbers or NaN: these hyperparameters do not work on this data."""


class MissingExtraError(InputError):
    """An optional package is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package; run: pip install 'offdiff[{extra}]'")


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> InputError:
    """An error that offers the nearest names: "unknown learner 'iqll'; did you mean 'iql'?"."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if near:
        offer = "did you mean " + " or ".join(repr(n) for n in near) + "?"
    elif len(choices) <= 20:
        offer = "known: " + ", ".join(choices)
    else:
        offer = f"none of the {len(choices)} known names is close"
    return InputError(f"unknown {kind} {name!r}; {offer}{' ' + hint if hint else ''}")
