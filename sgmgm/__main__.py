"""`python -m sgmgm` is the command `sgmgm`."""

import sys

from .cli import main

sys.exit(main())
