#!/usr/bin/env python3
"""Drives the server's pages in a headless Chromium as a person would.

    scripts/check_pages.py MODEL TEXT [--binary build/pronghorn] [--pictures docs/images]

MODEL is an instruction-tuned checkpoint, TEXT a text file to train on for half a minute. Needs the Debian packages
chromium and chromium-driver. Exits with 1 where something is not as it should be. With --pictures it also
writes the pictures of README.md.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import tempfile
import time

from browser import Browser

CONFIGS = ["transformer-1m", "gated-deltanet-1m", "hybrid-1m"]
LOOKS = [(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (390, 844, "dark")]


def check(condition, what):
    if not condition:
        raise SystemExit(f"wrong: {what}")
    print(f"right: {what}", flush=True)


class Command:
    """A command that serves a page, at `address`."""

    def __init__(self, *words):
        self.process = subprocess.Popen([str(word) for word in words], stderr=subprocess.PIPE,
                                        stdout=subprocess.DEVNULL, text=True)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if "http://" in line:
                self.address = "http://" + line.split("http://")[1].split()[0]
                return
        raise SystemExit("no address: " + "".join(self.lines))

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate()
        return self.process.returncode


def check_looks(page, name, pictures):
    """The page in every width and theme: nothing is wider than it."""
    for width, height, theme in LOOKS:
        page.look(width, height, theme)
        page.wait("document.readyState === 'complete'")
        time.sleep(0.5)
        check(page.run("return document.documentElement.scrollWidth") <= width,
              f"{name}: fits {width} pixels, {theme}")
        page.picture(pictures / f"{name}-{width}-{theme}.png")
    page.look(1280, 900, "light")


def check_chat(page, binary, model, folder, pictures):
    server = Command(binary, "serve", model, "--port", 0)
    page.open(server.address)
    page.wait("document.querySelector('#model-0').value")
    ask = """document.getElementById("input").value = arguments[0];
             document.getElementById("form").requestSubmit();"""
    idle = "!document.getElementById('send').hidden"
    page.run("settings.temperature = 0; settings.max_tokens = 60;")
    for turn, question in enumerate(["Hi, my name is Ada.", "What is 2 plus 2?"]):
        page.run(ask, question)
        page.wait(idle + f" && document.querySelectorAll('.answer').length === {turn + 1}")
    answers = page.run("return [...document.querySelectorAll('.answer .body')].map(b => b.textContent)")
    check(len(answers) == 2 and all(answers), "chat: answers")
    facts = page.run("return document.querySelector('.turn:last-child .tools').textContent")
    check("tokens/s" in facts and "from the cache" in facts, f"chat: says {facts!r}")
    if pictures:
        page.look(1000, 520, "light")
        page.run("document.activeElement.blur()")
        page.picture(pictures / "chat.png")
    page.run("document.querySelectorAll('.turn.user')[1].querySelector('[title^=\"A new conv\"]').click()")
    check(page.run("return document.querySelectorAll('#list li').length") == 2, "chat: a fork")
    page.run("document.querySelectorAll('#list .open')[1].click()")
    page.run(ask, "Write a long story about a pronghorn.")
    page.wait("document.querySelectorAll('.answer').length === 3 && "
              "document.querySelectorAll('.answer')[2].textContent.length > 20")
    page.run("document.getElementById('stop').click()")
    page.wait(idle)
    check_looks(page, "chat", folder)
    check(page.problems() == [], "chat: no complaints of the browser")
    check(server.end() == 0, "chat: the server ends")


def check_runs(page, binary, text, folder, pictures):
    configs = [f"configs/{name}.json" for name in CONFIGS]
    out = folder / "compare"
    command = Command(binary, "compare", *configs, "--data", text, "--out", out, "--time", "20s", "--vocab", 0,
                      "--contexts", "512,2048", "--set", "batch_tokens=2048", "--set", "window=256",
                      "--watch", "--watch-port", 0)
    page.open(command.address)
    page.wait("runs.some(run => run.state === 'running' && run.points > 2)", 300)
    before = page.run("return runs.find(run => run.state === 'running').last.step")
    page.wait(f"runs.some(run => run.last.step > {before})")
    check(page.run("return document.querySelectorAll('figure:not([hidden])').length") >= 4,
          "runs: curves grow without a reload")
    page.wait(f"runs.length === {len(CONFIGS)} && runs.filter(run => run.state === 'finished').length === 2"
              " && runs.some(run => run.state === 'running' && run.share > 0.5)", 400)
    check_looks(page, "runs", folder)
    lines = "return charts.get('loss').data.datasets.length"
    check(page.run(lines) == 3, "runs: a line each")
    page.run("document.querySelector('#runs input').click()")
    check(page.run(lines) == 2, "runs: one less")
    page.run("document.querySelector('#runs input').click()")
    tokens = page.run("return charts.get('loss').options.scales.x.max")
    page.run("$('x').value = 'seconds'; $('x').dispatchEvent(new Event('input'));")
    check(page.run("return charts.get('loss').options.scales.x.max") < tokens, "runs: against time")
    page.run("$('x').value = 'tokens'; $('x').dispatchEvent(new Event('input'));")
    check(page.problems() == [], "runs: no complaints of the browser")
    if pictures:
        page.look(1200, 760, "dark")
        time.sleep(3)
        page.picture(pictures / "watch.png")
        page.look(1280, 900, "light")
    command.process.stderr.read()
    check(command.process.wait() == 0, "runs: the comparison ends")
    page.wait("document.getElementById('notice').textContent.includes('does not answer')")
    page.problems()  # among them that nobody answers
    print("right: runs: the page says that its server has ended")
    check_ended_runs(page, binary, out)
    if pictures:
        page.look(1200, 1000, "light")
        page.open((out / "report.html").as_uri())
        page.picture(pictures / "report.png")


def check_ended_runs(page, binary, out):
    log = out / CONFIGS[0] / "log.jsonl"
    text = log.read_text()
    log.write_text(text[:-20])  # as a killed process leaves it
    (out / CONFIGS[0] / ".lock").touch()
    server = Command(binary, "watch", out, "--port", 0)
    page.open(server.address)
    page.wait(f"runs.length === {len(CONFIGS)} && charts.size >= 4")
    states = page.run("return Object.fromEntries(runs.map(run => [run.name, run.state]))")
    print(json.dumps(states))
    steps = page.run(f"return runs.find(run => run.name === '{CONFIGS[0]}').last.step")
    check(steps == len(text.splitlines()) - 1, "runs: a line that was cut short is passed over")
    check(page.problems() == [], "runs: no complaints of the browser afterwards")
    check(server.end() == 0, "runs: the server ends")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--binary", default="build/pronghorn")
    parser.add_argument("--pictures", type=pathlib.Path)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for what is seen on the way")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Browser() as page:
        folder = options.keep or pathlib.Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
        check_chat(page, options.binary, options.model, folder, options.pictures)
        check_runs(page, options.binary, options.text, folder, options.pictures)


if __name__ == "__main__":
    main()
