"""`python -m offdiff.worker COMMAND ...`: `offdiff COMMAND ...` that does not outlive its starter.

The starter keeps the other end of standard input open. However it ends, kill -9 and a dead machine
included, the end is closed and this process goes at once: whoever continues the grid finds a run
that was stopped, never one that is still writing.
"""

import os
import sys
import threading

ABANDONED = 75
"""Exit code of a worker whose starter is gone."""


def _leave_with_the_starter() -> None:
    while os.read(0, 4096):
        pass
    os._exit(ABANDONED)


if __name__ == "__main__":
    threading.Thread(target=_leave_with_the_starter, daemon=True).start()
    sys.argv[0] = "offdiff"  # records repeat the command as a person would type it
    from offdiff.cli import main

    sys.exit(main(sys.argv[1:]))
