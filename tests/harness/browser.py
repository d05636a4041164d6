"""A headless Chromium, controlled through a pipe with the DevTools protocol.

https://chromedevtools.github.io/devtools-protocol: commands and answers are JSON objects that end
with a zero byte. This needs only the browser, neither a driver nor a library.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from tests.harness.process import expirable

ROOT: Final = Path(__file__).resolve().parent.parent.parent
#: Timeout of an answer (seconds), for a machine that is busy with other tests.
_PATIENCE: Final = 60.0
_OPTIONS: Final = (
    "--remote-debugging-pipe",
    "--no-sandbox",  # it refuses to run as root with a sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--proxy-server=direct://",
)
#: Lets the browser read descriptor 3 and write 4, as it expects.
_JOINED: Final = 'exec "$0" "$@" 3<&{0} 4>&{1}'


def chromium() -> str:
    """Return the path of a Chromium. Fails with the reason if there is none."""
    done = subprocess.run([ROOT / "bin" / "get-chromium"], capture_output=True, text=True)
    assert done.returncode == 0, f"the tests need Chromium: {done.stderr.strip()}"
    return done.stdout.strip()


class Browser:
    """A browser with one page.

    ``complaints`` has the console messages of the page, and its failed requests.
    """

    def __init__(self, folder: Path) -> None:
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session: dict[str, str] = {}
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = expirable([chromium(), *_OPTIONS, f"--user-data-dir={folder / 'profile'}"])
        self._process = subprocess.Popen(
            ["bash", "-c", _JOINED.format(theirs_in, theirs_out), *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._out)  # it ends when its pipe is closed
        os.close(self._in)
        self._process.wait(timeout=_PATIENCE)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its answer."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters} | self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self._note(message)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            assert left > 0, "the browser does not answer"
            assert select.select([self._in], [], [], left)[0], "the browser does not answer"
            some = os.read(self._in, 1 << 16)
            assert some, "the browser ended by itself"
            self._buffer += some
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))

    def _note(self, message: dict[str, Any]) -> None:
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        if message.get("method") in kinds:
            self.complaints.append(json.dumps(message["params"]))
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])

    def open(self, url: str) -> None:
        """Open a page and wait until it has loaded."""
        self.call("Page.navigate", url=url)
        self.evaluate(
            "new Promise(done => document.readyState === 'complete' ? done() : onload = done)"
        )

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression on the page."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text of an element; empty if it does not exist."""
        return str(self.evaluate(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def resize(self, width: int, height: int) -> None:
        """Set the size of the screen."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark``."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def press(self, key: str) -> None:
        """Press a key."""
        keys = {"key": key, "code": key, "windowsVirtualKeyCode": {"Enter": 13, "Tab": 9}[key]}
        more = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **keys, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        size = "({x: 0, y: 0, scale: 1, width: innerWidth, height: document.body.scrollHeight})"
        clip = self.evaluate(size)
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(taken["data"])
