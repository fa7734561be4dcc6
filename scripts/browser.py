"""A headless Chromium for scripts: WebDriver by chromedriver (Debian: chromium, chromium-driver)."""

import base64
import json
import subprocess
import time
import urllib.error
import urllib.request


class Browser:
    """A page in a browser. width and height are those of the page; theme is "light" or "dark"."""

    def __init__(self, width=1280, height=800, theme="light"):
        self.driver = subprocess.Popen(["chromedriver", "--port=0"],
                                       stdout=subprocess.PIPE, text=True)
        self.address = "http://127.0.0.1:"
        for line in self.driver.stdout:
            if "successfully on port" in line:
                self.address += line.rstrip().rstrip(".").rsplit(" ", 1)[1]
                break
        options = {"args": ["--headless=new", "--no-sandbox", "--hide-scrollbars",
                            "--force-device-scale-factor=1"]}
        session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"}}}})
        self.session = "/session/" + session["sessionId"]
        self.look(width, height, theme)

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data=data, method=method,
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit("browser: " + json.load(error)["value"]["message"]) from error

    def command(self, name, **parameters):
        """A command of Chromium's DevTools."""
        return self.ask("POST", self.session + "/goog/cdp/execute",
                        {"cmd": name, "params": parameters})

    def look(self, width, height, theme):
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height,
                     deviceScaleFactor=1, mobile=width < 600)
        self.command("Emulation.setEmulatedMedia",
                     features=[{"name": "prefers-color-scheme", "value": theme}])

    def open(self, url):
        self.ask("POST", self.session + "/url", {"url": url})

    def run(self, script, *arguments):
        """What a function of this body returns."""
        return self.ask("POST", self.session + "/execute/sync",
                        {"script": script, "args": list(arguments)})

    def wait(self, condition, seconds=60):
        """Waits until an expression is true in the page."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            if time.monotonic() > end:
                raise SystemExit(f"browser: {condition} does not become true")
            time.sleep(0.2)

    def picture(self, file, whole=False):
        """Writes a PNG of what is seen, or of the whole page."""
        answer = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        with open(file, "wb") as out:
            out.write(base64.b64decode(answer["data"]))

    def problems(self):
        """What the page has complained of since it was last asked."""
        entries = self.ask("POST", self.session + "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ask("DELETE", self.session)
        self.driver.terminate()
        self.driver.wait()
