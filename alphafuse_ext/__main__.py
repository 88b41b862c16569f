"""``python -m alphafuse_ext``: the same command line as the script ``alphafuse``."""

from alphafuse_ext.cli import main

raise SystemExit(main())
