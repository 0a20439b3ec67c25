"""`python -m cwm_core` is the `cwm` command."""

import sys

from cwm_core.cli import main

sys.exit(main())
