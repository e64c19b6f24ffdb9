"""A real JupyterLab on loopback, and Debian's Chromium in front of it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import nbformat
import pytest

from sgmgm.course import runner

PATIENCE = 300_000  # milliseconds to wait for anything; an idle machine needs a fraction
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # every cell in the page
}


@pytest.fixture(scope="module")  # playwright's event loop must not run under later tests
def browser():
    """Chromium without a window; the tests are skipped where it or playwright is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        pytest.skip("no chromium on this machine: `apt install chromium`")
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as driver:
        # in a container its sandbox cannot start for root, and shared memory may be scarce
        words = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        yield driver.chromium.launch(executable_path=program, args=words, timeout=PATIENCE)


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """(address, folder) of a server of its own, without any of the user's settings."""
    folder, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    (home / "labconfig").mkdir()
    (home / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    own = {f"JUPYTER_{kind}_DIR": str(home) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"IPYTHONDIR": str(home), "PYTHONPATH": str(runner.ROOT), "TQDM_DISABLE": "1"}
    words = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    words += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words],
            env=os.environ | own,
            stdout=log,
            stderr=log,
        )
    try:
        told = home / f"jpserver-{server.pid}.json"  # where the server writes its port
        for _ in range(PATIENCE // 200):
            with suppress(OSError, ValueError):
                address = f"http://127.0.0.1:{json.loads(told.read_text())['port']}"
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.2)
        yield address, folder
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module")
def open_notebook(browser, lab):
    """Open a notebook and run all of it: `open_notebook(name, notebook)` returns the page."""
    from playwright.sync_api import expect

    address, folder = lab
    pages = []

    def open_and_run(name: str, notebook, width: int = 1366, height: int = 768):
        nbformat.write(notebook, folder / name)
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}/doc/tree/{name}")
        expect(page.get_by_text(re.compile("Python 3.* Idle")).first).to_be_visible()
        expect(page.locator(".jp-Spinner")).to_have_count(0)  # it covers what is being loaded
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        return page

    yield open_and_run
    for page in pages:
        page.close()
