"""A learner that a test can make crash: BC that dies where $CRASH says, by signal or exception."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offdiff.algos.bc import BCConfig


@dataclass(frozen=True)
class CrashingConfig(BCConfig):
    """$CRASH: "raise" always fails; a path: killed once, and the file says so."""

    batch_size: int = 8

    def build(self, *args: Any, **options: Any) -> Any:
        crash = os.environ.get("CRASH", "")
        if crash == "raise":
            raise RuntimeError("this learner always crashes")
        if crash and not Path(crash).exists():
            Path(crash).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().build(*args, **options)
