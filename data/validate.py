"""Checks of recorded arrays: every refusal is one sentence naming file, field, value and remedy.

Dimension letters: N rows, D numbers in a row.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offdiff.core.errors import InputError
from offdiff.data.episodes import BoolArray, FloatArray

BLOCK = 1 << 16
"""Rows looked at in one go, where a whole column might not fit the memory."""

RecordedArray = NDArray[Any]
"""An array as a file holds it: any dtype, any shape."""


def rows(source: str, field: str, array: RecordedArray) -> FloatArray:
    """(N, D) float32, finite, N and D at least 1. Raises InputError otherwise."""
    if array.ndim != 2:
        raise InputError(
            f"{source}: {field} has shape {array.shape}, expected two dimensions (rows, numbers); "
            "reshape it to one flat vector per row"
        )
    return _finite(source, field, array)


def column(source: str, field: str, array: RecordedArray) -> FloatArray:
    """(N,) float32, finite, from (N,) or (N, 1). Raises InputError otherwise."""
    return _finite(source, field, _flat(source, field, array))


def flags(source: str, field: str, array: RecordedArray) -> BoolArray:
    """(N,) booleans from (N,) or (N, 1) flags, or numbers 0 and 1. Raises InputError otherwise."""
    array = _flat(source, field, array)
    _require_kind(source, field, array, "biuf")
    strange = np.flatnonzero((array != 0) & (array != 1))
    if len(strange):
        row = strange[0]
        raise InputError(
            f"{source}: {field} holds {array[row]!s} in row {row}, expected only 0 and 1; "
            "store flags"
        )
    return array.astype(bool)


def require_continuous(source: str, field: str, array: RecordedArray) -> None:
    """Raises InputError for actions that count instead of measure."""
    if array.dtype.kind in "biu":
        raise InputError(
            f"{source}: {field} are discrete ({array.dtype}); only continuous actions are "
            "supported, stored as float32"
        )


def require_same_length(source: str, arrays: Mapping[str, RecordedArray]) -> None:
    """Raises InputError unless all arrays have the length of the first."""
    (reference, first), *others = arrays.items()
    for field, array in others:
        if len(array) != len(first):
            raise InputError(
                f"{source}: {field} has {len(array)} rows but {reference} has {len(first)}; "
                "cut the file again so that both have one row per step"
            )


def _flat(source: str, field: str, array: RecordedArray) -> RecordedArray:
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{source}: {field} has shape {array.shape}, expected one number per row")
    return array


def _require_kind(source: str, field: str, array: RecordedArray, kinds: str) -> None:
    if array.dtype.kind not in kinds:
        raise InputError(
            f"{source}: {field} holds {array.dtype}, expected numbers; store it as float32"
        )
    if array.size == 0:
        raise InputError(
            f"{source}: {field} is empty (shape {array.shape}); give a file that holds steps"
        )


def _finite(source: str, field: str, array: RecordedArray) -> FloatArray:
    _require_kind(source, field, array, "iuf")
    # A float64 beyond float32 becomes infinite, and is refused as such below.
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=np.float32)
    for start in range(0, len(cast), BLOCK):
        finite = np.isfinite(cast[start : start + BLOCK])
        if not finite.all():
            row, *rest = (int(i) for i in np.argwhere(~finite)[0])
            raise InputError(
                f"{source}: {field} holds {array[(start + row, *rest)]!s} in row {start + row}, "
                "expected finite float32; remove or repair that episode"
            )
    return cast
