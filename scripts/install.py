"""Install the course from this folder, without a network: python install.py"""

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
WANTED = ()  # `scripts/bundle.py` puts its own Python here
if sys.version_info[:2] != WANTED:
    made_for, found = (".".join(map(str, each)) for each in (WANTED, sys.version_info[:2]))
    sys.exit(f"this bundle is for Python {made_for}, not {found}")
print("installing into", HERE / "course" / ".venv", "(minutes; torch is large)", flush=True)
venv.create(HERE / "course" / ".venv", with_pip=True)
bin = HERE / "course" / ".venv" / ("Scripts" if os.name == "nt" else "bin")
offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (HERE / "packages").as_uri()}
environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | offline
python = str(bin / "python")
what = str(HERE / "course") + "[course]"
install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", what]
if subprocess.run(install, env=environment).returncode:
    sys.exit("this bundle was made for another machine: make one on a computer like this")
done = subprocess.run([python, "-m", "sgmgm", "doctor"], cwd=HERE / "course").returncode
print("Now: cd", HERE / "course", "and run", bin / "jupyter", "lab notebooks")
sys.exit(done)
