"""`python -m offdiff`: the same as the command `offdiff`."""

import sys

from offdiff.cli import main

sys.exit(main())
