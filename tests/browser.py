"""A headless Chromium driven through its DevTools pipe, with nothing but the standard library."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")

# The browser reads commands from descriptor 3 and writes answers to 4.
_WIRE = """
import os, sys
kept = [os.dup2(int(end), 100 + i) for i, end in enumerate(sys.argv[1:3])]
os.dup2(kept[0], 3), os.dup2(kept[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Tab:
    """One tab. `problems` collects everything the page complains about: console, exceptions, requests."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        """Speaks JSON, one message a NUL, through the two pipes."""
        self._commands, self._answers = commands, answers
        self._numbers, self._session = itertools.count(1), None
        self._buffer = b""
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._next()).get("id") != number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, path: Path, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Loads a page in a window of that size and colour scheme."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.send("Page.navigate", url=path.resolve().as_uri())
        while (event := self._next()).get("method") != "Page.loadEventFired":
            self._note(event)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Presses and releases a key, such as "Tab" or "Enter"."""
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        text = {"Tab": {}, "Enter": {"text": "\r"}, " ": {"text": " "}}[key]
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, path: Path) -> None:
        """Saves the whole page as a picture."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """Prints the page."""
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._answers.fileno(), 1 << 16)
            if not part:
                raise RuntimeError("the browser has gone")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Log.entryAdded":
            self.problems.append(about["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(about["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(str(about["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"][:100])


@contextlib.contextmanager
def chromium(limit: float = 120) -> Iterator[Tab]:
    """Starts Chromium and ends it.

    Args:
      limit: seconds after which it is ended in any case, so that a test never hangs.

    Yields:
      Its one tab.
    """
    assert CHROMIUM is not None
    from_us, to_us = os.pipe(), os.pipe()
    ends = (from_us[0], to_us[1])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = ["timeout", str(limit), CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"]
        command = [sys.executable, "-c", _WIRE, *map(str, ends), *browser]
        process = subprocess.Popen(command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in ends:
            os.close(end)
        try:
            with os.fdopen(from_us[1], "wb") as commands, os.fdopen(to_us[0], "rb") as answers:
                yield Tab(commands, answers)
        finally:
            process.terminate()
            process.wait()
