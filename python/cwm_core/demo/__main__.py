"""`python -m cwm_core.demo`."""

import sys

from . import main

try:
    sys.exit(main())
except KeyboardInterrupt:
    print("cwm_core.demo: interrupted", file=sys.stderr)
    sys.exit(130)
