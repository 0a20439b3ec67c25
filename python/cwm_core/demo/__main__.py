"""`python -m cwm_core.demo`."""

from . import main

raise SystemExit(main())
