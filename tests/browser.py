"""A headless Chromium, driven through chromedriver in the words of WebDriver (w3.org/TR/webdriver2)."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PATIENCE = 30.0
"""Seconds for a command."""


class Browser:
    """A session: what was said on the console of the pages that it shows is kept."""

    def __init__(self, port: int) -> None:
        self._at = f"http://127.0.0.1:{port}/session"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        wanted = {
            "goog:chromeOptions": {"binary": BROWSER, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self._at += f"/{self._post('', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"

    def _post(self, path: str, told: dict[str, Any]) -> Any:
        return self._asked(urllib.request.Request(self._at + path, json.dumps(told).encode()))

    def _asked(self, request: urllib.request.Request) -> Any:
        request.add_header("Content-Type", "application/json")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
            return json.load(answer)["value"]

    def _chromium(self, command: str, **told: Any) -> Any:
        return self._post("/goog/cdp/execute", {"cmd": command, "params": told})

    def show(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page in a window of this size, and in this theme."""
        self._chromium(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._chromium("Emulation.setEmulatedMedia", features=[theme])
        self._post("/url", {"url": page.resolve().as_uri()})

    def js(self, text: str) -> Any:
        """What JavaScript returns; the page itself may have none."""
        return self._post("/execute/sync", {"script": text, "args": []})

    def press(self, key: str) -> None:
        """Press and leave a key, such as "\\ue004", the tabulator."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._post("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def console(self) -> list[str]:
        """What was said since the last time."""
        return [entry["message"] for entry in self._post("/se/log", {"type": "browser"})]

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG file of the window, or of all that can be scrolled to."""
        shot = self._chromium("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._asked(urllib.request.Request(self._at, method="DELETE"))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser on a port that the driver chooses."""
    assert DRIVER is not None
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            lines = iter(driver.stdout.readline, "")
            port = next(
                int(found[1]) for line in lines if (found := re.search(r"started successfully on port (\d+)", line))
            )
            started = Browser(port)
            try:
                yield started
            finally:
                started.close()
        finally:
            driver.terminate()
            driver.wait(PATIENCE)
