"""`python -m transferseg`."""

import sys

from transferseg.load.cli import main

if __name__ == "__main__":
    sys.exit(main())
