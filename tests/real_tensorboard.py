"""The real TensorBoard on a free loopback port, asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

STATES = [f"STATUS_{name}" for name in ("SUCCESS", "FAILURE", "RUNNING", "UNKNOWN")]


class Board:
    """A running server; calling it asks for something below ``/data`` and parses the answer."""

    def __init__(self, address):
        self.address = address
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path, body=None, **query):
        url = f"{self.address}/data/{path}?{urllib.parse.urlencode(query)}"
        data = body and json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with self._opener.open(request, timeout=60) as reply:
            return reply.read()

    def __call__(self, path, body=None, **query):
        return json.loads(self.get(path, body, **query))

    def wait(self, ready, seconds=30):
        """Ask until ``ready(self)`` is true; the last answer."""
        until = time.monotonic() + seconds
        while not (answer := ready(self)) and time.monotonic() < until:
            time.sleep(0.1)
        return answer

    def groups(self, size=1000):
        """The rows of the HParams table: name -> session group."""
        experiment = self("plugin/hparams/experiment", {"experimentName": ""})
        columns = [{"metric": info["name"]} for info in experiment["metricInfos"]]
        query = {"allowedStatuses": STATES, "colParams": columns, "startIndex": 0,
                 "sliceSize": size}  # fmt: skip
        answer = self("plugin/hparams/session_groups", query)
        return {group["name"]: group for group in answer["sessionGroups"]}


@contextlib.contextmanager
def served(root, *flags):
    """A TensorBoard of the runs below ``root``, until the block ends."""
    command = ["-m", "tensorboard.main", "--logdir", str(root), "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [sys.executable, *command, "--port", "0", *flags], stderr=subprocess.PIPE, text=True
    )
    try:
        lines = iter(server.stderr.readline, "")
        address = next(m[0] for line in lines if (m := re.search(r"http://127[\d.:]+", line)))
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield Board(address)
    finally:
        server.terminate()
        server.wait(10)
        server.stderr.close()
