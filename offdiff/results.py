"""What a record says of its run beyond numbers: configuration, versions, machine."""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def changed(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from its defaults, as plain JSON; "part.field" inside."""
    return _differences(config, type(config)())


def _differences(config: Any, default: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value, usual = getattr(config, f.name), getattr(default, f.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{f.name}.{k}": v for k, v in _differences(value, usual).items()}
        elif value != usual:
            found[f.name] = plain(value)
    return found


def config_hash(values: dict[str, Any]) -> str:
    """Eight hexadecimal digits that name a configuration."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def plain(value: object) -> Any:
    """A value as JSON: dataclasses become dictionaries, paths text, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def code_version(command: str = "") -> dict[str, Any]:
    """Version, commit and command; by default the command line of this `offdiff` process."""
    return {
        "offdiff_version": version("offdiff"),
        "git_commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": command or " ".join(["offdiff", *sys.argv[1:]]),
    }


def system(device: torch.device, kernels: str) -> dict[str, Any]:
    """Hardware and library versions. kernels: the matrix product in use."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "matmul": kernels,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "os": platform.platform(),
        "mujoco": version("mujoco"),
        "gymnasium": version("gymnasium"),
    }


def peak_memory_mb(device: torch.device) -> float:
    """Most memory so far, in megabytes: what torch held on a GPU, else all of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1.024e-3 if sys.platform != "darwin" else 1e-6)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*args: str) -> str | None:
    """Output of git in the source checkout; None where offdiff is installed without one."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
