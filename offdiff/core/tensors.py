"""Named tensors with JSON metadata in a file: safetensors, never pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.files import replacing

PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of files that torch.save and pickle write."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors and JSON metadata atomically."""
    from safetensors.torch import save

    plain_tensors = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
    with replacing(path) as temporary:
        # By Python's own write: of a full disk safetensors' raises no OSError.
        temporary.write_bytes(save(plain_tensors, {"offdiff": json.dumps(meta)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote, to the CPU.

    Raises InputError for a missing, damaged or foreign file; a pickle is refused, never loaded.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} does not exist; give the file, or a folder that holds it")
    with path.open("rb") as file_bytes:
        head = file_bytes.read(9)
    # The first bytes of safetensors are the header's length, which may look like a pickle's.
    if head[:2] in PICKLES and head[8:] != b"{":
        raise InputError(
            f"{path} holds a pickle, which can run any code when read, and is refused; "
            "save it as safetensors"
        )
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["offdiff"])
            return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is damaged or not written by offdiff ({error}); train again or restore a copy"
        ) from error
