"""`python -m ligo_fast info`."""

import sys

from .info import report

if sys.argv[1:] != ["info"]:
    sys.exit("usage: python -m ligo_fast info")
print(report())
