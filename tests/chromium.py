"""A headless Chromium, driven over its DevTools pipe: no driver and no web socket are needed."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    PROGRAM is None, reason="no chromium here (Debian's package chromium has it)"
)

FLAGS = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--no-proxy-server", "--disable-extensions",
    "--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-pipe",
)  # fmt: skip

TEXT = """(() => {
  const read = node => {
    if (node.nodeType === Node.TEXT_NODE) return node.textContent;
    if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName)) return '';
    const inner = [...(node.shadowRoot || node).childNodes].map(read).join(' ');
    return node.nodeName === 'SLOT' ? node.assignedNodes().map(read).join(' ') + inner : inner;
  };
  return document.body && read(document.body).replace(/\\s+/g, ' ');
})()"""
"""JavaScript: all the text of the page, that of web components included."""


class Page:
    """One page; its console errors and exceptions are collected in ``errors``."""

    def __init__(self, inbox, outbox, width, height):
        self._inbox, self._outbox = inbox, outbox
        self._numbers, self._buffer, self._session = itertools.count(1), b"", None
        self.errors = []
        target = self.send("Target.createTarget", url="about:blank")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip

    def send(self, method, seconds=60, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._outbox, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + seconds
        while True:
            answer = self._read(until)
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._notice(answer)

    def goto(self, url):
        self.send("Page.navigate", url=url)

    def evaluate(self, expression):
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self):
        return self.evaluate(TEXT) or ""

    def wait(self, ready, seconds=60):
        """Until ``ready(self)`` is true; its last answer."""
        until = time.monotonic() + seconds
        while not (answer := ready(self)) and time.monotonic() < until:
            time.sleep(0.25)
        return answer

    def screenshot(self, path):
        shot = self.send("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def _read(self, until):
        while b"\0" not in self._buffer:
            left = until - time.monotonic()
            assert left > 0, "chromium did not answer in time"
            if select.select([self._inbox], [], [], left)[0]:
                chunk = os.read(self._inbox, 1 << 16)
                assert chunk, "chromium ended"
                self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _notice(self, event):
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", str(details)))
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.errors.append(" ".join(str(arg.get("value")) for arg in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@contextlib.contextmanager
def opened(width=1400, height=900):
    """A browser with one blank page, ended with the block."""
    command_end, ours_out = _pipe()
    ours_in, answer_end = _pipe()

    def wire():  # in the child: chromium reads commands from 3 and answers on 4
        os.dup2(command_end, 3)
        os.dup2(answer_end, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={profile}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,  # what Python opened is not inherited; 3 and 4 must be
            preexec_fn=wire,
        )
        os.close(command_end)
        os.close(answer_end)
        try:
            yield Page(ours_in, ours_out, width, height)
        finally:
            os.close(ours_out)  # chromium ends when its pipe does
            try:
                browser.wait(5)
            except subprocess.TimeoutExpired:
                browser.kill()
                browser.wait(10)
            os.close(ours_in)


def _pipe():
    """A pipe whose ends are numbered from 10: 3 and 4 are left free for the child."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends
