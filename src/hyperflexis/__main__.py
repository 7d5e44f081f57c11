"""`python -m hyperflexis`: the command line without its script."""

import sys

from hyperflexis.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
