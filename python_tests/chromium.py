"""A headless Chromium that is clicked and typed into, by its debugging pipe."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="NO BROWSER: chromium is not installed")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu")
_SECONDS = 60


class Page:
    """A page of a browser of its own.

    Args:
        folder: for the browser's profile.
    """

    def __init__(self, folder: Path) -> None:
        # Chromium reads file descriptor 3, and writes to 4.
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        script = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
        flags = (*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank")
        assert BROWSER is not None
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", BROWSER, *flags],
            pass_fds=(read_commands, write_answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._numbers, self._buffer = itertools.count(1), b""
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self._session: str | None = None
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        found = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                part = os.read(self._answers, 1 << 16)
                assert part, "the browser has ended"
                self._buffer += part
            line, _, self._buffer = self._buffer.partition(b"\0")
            said = json.loads(line)
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        kind, facts = said.get("method"), said.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requested.append(facts["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.complaints.append(facts["exceptionDetails"]["exception"]["description"])
        elif kind == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.complaints.append(facts["entry"]["text"])

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """What JavaScript evaluates to, as JSON."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """What it evaluates to, once that is true."""
        end = time.monotonic() + _SECONDS
        while not (found := self.value(expression)):
            assert time.monotonic() < end, f"{expression}: {self.value('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first element of a CSS selector."""
        place = self.wait(
            f"(e => {{ if (!e) return null; e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; "
            f"}})(document.querySelector({json.dumps(selector)}))"
        )
        at = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, **at)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self._call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """What it shows, as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._session = None
        try:
            self._call("Browser.close")
        finally:
            self._process.terminate()
            self._process.wait(30)
            os.close(self._commands)
            os.close(self._answers)
