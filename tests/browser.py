"""A headless Chromium that tests speak to over a pipe, by the DevTools protocol.

Messages are JSON, each ended by a NUL byte; Chromium reads them from descriptor 3 and answers on 4.
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


class Tab:
    """One open page.

    Attributes:
        events: what the browser told, method and parameters.
    """

    def __init__(self, to_browser: RawIOBase, from_browser: BufferedReader) -> None:
        self._to = to_browser
        self._from = from_browser
        self._session: str | None = None
        self._number = 0
        self._rest = b""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser for something and return its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            told = self._receive()
            if told.get("id") == self._number:
                assert "error" not in told, f"{method}: {told['error']}"
                result: dict[str, Any] = told["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._from.read1(1 << 20)
            assert piece, "the browser ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        if "method" in told:
            self.events.append((told["method"], told["params"]))
        return told

    def show(self, page: Path, width: int, height: int, **media: str) -> None:
        """Open a page in a window of a size in CSS pixels; ``media`` are features of the medium."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.medium(**media)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._receive()

    def medium(self, media: str = "screen", **features: str) -> None:
        """Pretend to be a screen or a printer, with certain features."""
        named = [{"name": name.replace("_", "-"), "value": v} for name, v in features.items()]
        self.call("Emulation.setEmulatedMedia", media=media, features=named)

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; the page itself may have no scripts."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click with the mouse into the middle of the first element that fits."""
        x, y = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Tab]:
    """Start Chromium with a new profile and open a tab."""
    theirs_in, to_browser = os.pipe()
    from_browser, theirs_out = os.pipe()
    command = [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    redirected = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    with subprocess.Popen(
        ["bash", "-c", redirected, "bash", *command],
        pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(profile)},
    ) as process:  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        with (
            os.fdopen(to_browser, "wb", buffering=0) as to,
            os.fdopen(from_browser, "rb") as answers,
        ):
            try:
                yield Tab(to, answers)
            finally:
                process.terminate()
