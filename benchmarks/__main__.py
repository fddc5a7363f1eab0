"""`make bench`."""

import sys

from benchmarks.client import main

sys.exit(main())
