import os
import subprocess
import sys

import pytest

from sgmgm.utils.errors import InputError
from sgmgm.utils.files import sole_writer

HOLD = (
    "import sys; from sgmgm.utils.files import sole_writer\n"
    "with sole_writer(sys.argv[1]):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def test_one_process_at_a_time_writes_to_a_place(tmp_path):
    """Another is named in the refusal; when it is killed, the place is free."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held" + os.linesep.encode()
        with (
            pytest.raises(InputError) as caught,
            sole_writer(os.path.relpath(tmp_path / "run")),
        ):
            pytest.fail("two at once")
        wanted = f"process {holder.pid} is writing to {(tmp_path / 'run').resolve()}: "
        assert str(caught.value).startswith(wanted)
        with sole_writer(tmp_path / "other"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    for _ in range(2):
        with sole_writer(tmp_path / "run"):
            assert not list(tmp_path.iterdir())  # nothing lies beside the result


def test_what_fails_in_the_block_is_not_hidden(tmp_path):
    with pytest.raises(InputError, match="of its own"), sole_writer(tmp_path / "run"):
        raise InputError("of its own.")
