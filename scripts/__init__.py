"""Work around the package: `python -m scripts.NAME` from the repository's folder."""

import sys
from collections.abc import Callable


def exit_code(work: Callable, *arguments) -> int:
    """Call `work`: 0, or 2 and its one sentence on standard error where the input was bad."""
    from sgmgm.utils.errors import SgmgmError  # some scripts run where the package does not

    try:
        work(*arguments)
    except SgmgmError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
