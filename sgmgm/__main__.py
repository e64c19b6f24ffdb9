"""`python -m sgmgm` is the command `sgmgm`."""

import sys


def main() -> int:
    """The command line; if it cannot even be imported, what the doctor says about that."""
    try:
        from .commands.cli import main as run
    except Exception:  # torch, torchvision or another library is missing or broken
        from . import doctor

        findings = doctor.examine(doctor.ROOT, names=doctor.QUICK)
        if all(finding.state == "ok" for finding in findings):
            raise  # the fault is ours
        sys.stderr.write(doctor.describe(findings) + "\n")
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
