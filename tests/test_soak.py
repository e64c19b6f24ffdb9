"""Load, for minutes."""

import subprocess
import sys
import time

import psutil
import pytest
from jupyter_client.manager import start_new_kernel

from sgmgm.course.views import QUIET

from .test_properties import folder, pipe  # noqa: F401

pytestmark = pytest.mark.check

FRECHET = """
import torch
from sgmgm.utils.devices import peak_memory
from sgmgm.metrics import GaussianStats, frechet_distance

def peak():
    return peak_memory(torch.device("cpu")) / 2**30

start = peak()
torch.manual_seed(0)
features = torch.randn(50_000, 2048)
real = GaussianStats().update(features)
features.mul_(2).add_(1)
distance = frechet_distance(GaussianStats().update(features), real)
print(peak() - start, distance)
"""


def test_the_frechet_distance_of_50000_samples_fits_into_2_gib():
    """Features of Inception's width, in memory at once; in a process of its own."""
    run = subprocess.run([sys.executable, "-c", FRECHET], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    gib, distance = map(float, run.stdout.split())
    assert gib < 2, f"{gib:.2f} GiB"
    # twice as wide and moved by 1 in each of 2048 dimensions: 2048 (1 + (2 - 1)^2)
    assert distance == pytest.approx(2 * 2048, rel=0.02)


def test_200_calls_take_no_more_memory_than_50(pipe):  # noqa: F811
    used = []
    for call in range(200):
        guidance = ("none", "self", "cfg", "auto")[call % 4]
        pipe([0, 1, 2] * 5, seeds=range(call, call + 15), guidance=guidance, steps=4)
        used.append(psutil.Process().memory_info().rss / 2**20)
    assert max(used[150:]) - max(used[:50]) < 4, f"{used[::20]} MiB"


EXPLORER = """
import psutil
from sgmgm.course import views as view
from sgmgm.pipeline import Pipeline
from sgmgm.course.widgets import Explorer
view.ANSWER = 0.05  # no page is open that could answer
explorer = Explorer(Pipeline.from_pretrained({folder!r}, "cpu"), count=2, steps=3)
renders, usual = [], explorer.render
explorer.render = lambda: (renders.append(explorer.controls["scale"].value), usual())
print(explorer.controls["scale"].model_id)
"""
STATE = """
print(len(renders), explorer.controls["scale"].value, psutil.Process().memory_info().rss / 2**20,
      repr(explorer.status.value))
"""


def test_a_kernel_survives_500_moves_of_a_slider(folder):  # noqa: F811
    """As a browser moves it: by messages, faster than the kernel can render."""
    manager, client = start_new_kernel()

    def say(code):
        lines = []
        reply = client.execute_interactive(
            code, timeout=120, output_hook=lambda m: lines.append(m["content"].get("text", ""))
        )
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(lines).split()

    def move(slider, count):
        for i in range(count):
            data = {"method": "update", "state": {"value": (i % 40) / 10}, "buffer_paths": []}
            client.shell_channel.send(
                client.session.msg("comm_msg", {"comm_id": slider, "data": data})
            )
            time.sleep(3 * QUIET if i % 10 == 9 else 0.005)

    try:
        slider = say(EXPLORER.format(folder=str(folder)))[-1]
        move(slider, 100)
        first = say(STATE)
        move(slider, 400)
        renders, value, used, *status = say(STATE)
        assert manager.is_alive() and float(value) == 3.9
        assert int(renders) > int(first[0]) > 3  # it rendered now and then, not at every move
        assert int(renders) <= 500 and "Error" not in " ".join(status)
        assert float(used) - float(first[2]) < 30, f"{first[2]} to {used} MiB"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
