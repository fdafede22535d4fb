"""`python -m landscape` is the command `landscape`."""

import sys

from landscape.cli import main

sys.exit(main())
