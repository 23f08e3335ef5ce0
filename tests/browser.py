"""A headless Chromium, driven over a pipe by its DevTools protocol; needs nothing but the browser itself."""

import json
import os
import shutil
import subprocess
import sys

import pytest

# The browser reads commands from its file 3 and answers on its file 4.
LAUNCH = """import fcntl, os, sys
pipes = [fcntl.fcntl(int(file), fcntl.F_DUPFD, 10) for file in sys.argv[1:3]]
os.dup2(pipes[0], 3)
os.dup2(pipes[1], 4)
os.execv(sys.argv[3], sys.argv[3:])"""


class Browser:
    """One page. messages: the events of the page, the console, the log and the network since open()."""

    def __init__(self, profile):
        programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))
        program = next(filter(None, programs), None)
        if program is None or sys.platform == "win32":
            pytest.skip("no Chromium here that can be driven over a pipe")
        reading, self.commands = os.pipe()
        self.answers, writing = os.pipe()
        command = [
            sys.executable, "-c", LAUNCH, str(reading), str(writing), program, "--headless=new", "--no-sandbox",
            "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe",
            f"--user-data-dir={profile}", "about:blank",
        ]
        self.process = subprocess.Popen(
            command, pass_fds=(reading, writing), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(reading)
        os.close(writing)
        self.number, self.buffer, self.messages, self.session = 0, b"", [], None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of a command of the DevTools protocol; events that come before it go to messages."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self.receive()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self.messages.append(message)

    def receive(self):
        """The next message of the browser."""
        while b"\0" not in self.buffer:
            data = os.read(self.answers, 1 << 16)
            assert data, "the browser has ended"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, path, width=1280, height=900, scheme="light"):
        """Load a file in a window of this size in CSS px, and wait until it is complete. scheme: light or dark."""
        self.messages.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.as_uri())
        while not any(message.get("method") == "Page.loadEventFired" for message in self.messages):
            self.messages.append(self.receive())

    def evaluate(self, expression):
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def events(self, method):
        """The parameters of the messages of one kind, such as `Log.entryAdded`."""
        return [message["params"] for message in self.messages if message.get("method") == method]

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        for file in (self.commands, self.answers):
            os.close(file)
