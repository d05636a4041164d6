"""``python -m tests.simulation`` is ``python -m tests.simulation.soak``."""

import sys

from tests.simulation.soak import main

if __name__ == "__main__":
    sys.exit(main())
