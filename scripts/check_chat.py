#!/usr/bin/env python3
"""Drives `pronghorn chat` in a terminal as a person would, and checks that kept chats go on.

    scripts/check_chat.py MODEL [--binary build/pronghorn]

MODEL is an instruction-tuned checkpoint. Exits with 1 where something is not as it should be.
"""

import argparse
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

QUESTIONS = ["Hi, my name is Ada.", "What is 2 plus 2?", "Name a colour.",
             "And an animal of that colour?", "What is my name?"]
PROMPT = "\n> "  # at the beginning of a line; an editor writes it again within one


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, command, patience):
        self.patience = patience
        self.text = ""
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.environ.update(TERM="xterm", LC_ALL="C.UTF-8")
            os.execv(command[0], command)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))

    def type(self, keys):
        """For the editor, which takes the terminal over a moment after it has written its prompt."""
        end = time.monotonic() + self.patience
        while termios.tcgetattr(self.terminal)[3] & termios.ICANON and time.monotonic() < end:
            time.sleep(0.01)
        self.send(keys)

    def send(self, keys):
        os.write(self.terminal, keys.encode())

    def read(self, seconds):
        if not select.select([self.terminal], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.terminal, 65536)
        except OSError:  # the program has closed its side
            return False
        # Without what moves the cursor and clears lines.
        self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
        return bool(data)

    def expect(self, wanted, what):
        """Waits for a text; returns what came before it, and drops both."""
        end = time.monotonic() + self.patience
        while wanted not in self.text:
            if time.monotonic() > end:
                raise SystemExit(f"{what}: no {wanted!r} in {self.text!r}")
            self.read(0.2)
        before, self.text = self.text.split(wanted, 1)
        return before

    def shows(self, wanted, what, there=True):
        """Whether a text is among what comes before the next prompt."""
        before = self.expect(PROMPT, what)
        check((wanted in before) == there, what, before)

    def finish(self):
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            self.read(0.1)
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.process, signal.SIGKILL)
        raise SystemExit("the program does not end")


def check(condition, what, seen=""):
    if not condition:
        raise SystemExit(f"wrong: {what} {seen!r}")
    print(f"right: {what}", flush=True)


def check_terminal(binary, model, patience):
    chat = Terminal([binary, "chat", model, "-n", "4000"], patience)
    chat.expect(PROMPT, "start")
    chat.type("/helXp\x1b[D\x7f\r")  # left, backspace
    chat.expect("Ctrl-C ends an answer", "a line that was edited")
    chat.expect(PROMPT, "a line that was edited")
    chat.type("\x1b[A\r")
    chat.expect("Ctrl-C ends an answer", "the line before, by the up key")
    chat.expect(PROMPT, "the line before")
    chat.type("/stXats\x1b[D\x1b[D\x1b[D\x7f\x05\r")  # left thrice, backspace, end of the line
    chat.shows("context 0 tokens", "keys of an editor")
    chat.type("caf\u00e9\x7f\x7f\x7f\x7f/stats\r")
    chat.shows("context 0 tokens", "backspace takes a character of two bytes")
    chat.type("not to be sent\x03")
    chat.expect(PROMPT, "Ctrl-C while typing")
    chat.type("/stats\r")
    chat.shows("context 0 tokens", "Ctrl-C while typing drops the line")
    chat.type("Write a long story about a pronghorn.\r")
    chat.expect("\n", "the message")
    while len(chat.text) < 20:
        if not chat.read(patience):
            raise SystemExit(f"no answer: {chat.text!r}")
    begin = time.monotonic()
    chat.send("\x03")
    answer = chat.expect("\n[", "Ctrl-C during an answer")
    chat.expect(PROMPT, "the prompt after it")
    check(time.monotonic() - begin < patience / 2, f"Ctrl-C ends an answer ({answer[:40]!r}...)")
    chat.type("/nothing\r")
    chat.shows("no such command", "unknown commands")
    chat.type("/stats\r")
    chat.shows("context 0 tokens", "what was answered is kept", False)
    chat.type("\x04")
    check(chat.finish() == 0, "Ctrl-D ends the chat")


def run(binary, *arguments, text=None):
    done = subprocess.run([binary, *map(str, arguments)], input=text, capture_output=True,
                          text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{arguments[0]} fails: {done.stderr}")
    return done.stdout


def talk(binary, model, questions, *options):
    lines = "".join(question + "\n" for question in questions)
    return json.loads(run(binary, "chat", model, "-n", "60", "--json", *options, text=lines))


def check_conversation(binary, model, folder):
    whole = talk(binary, model, QUESTIONS)
    answers = [answer["text"] for answer in whole["answers"]]
    for question, answer in zip(QUESTIONS, answers):
        print(f"> {question}\n{answer}")
    check(len(answers) == len(QUESTIONS), "a chat of five turns")
    # The same conversation given as one prompt.
    (folder / "variables").write_text(json.dumps({"messages": whole["messages"]}))
    text = run(binary, "template", model, "--variables", folder / "variables")
    # What stands behind the last answer's end is read with the next message.
    (folder / "text").write_text(text.rstrip("\n"))
    ids = [int(word) for word in run(binary, "tokenize", model, "--file",
                                     folder / "text").split()]
    check(ids == whole["tokens"], f"as one prompt it has the same {len(ids)} ids")
    kept = folder / "kept"
    kept.unlink(missing_ok=True)
    parts = []
    for question in QUESTIONS:  # a program for each turn
        part = talk(binary, model, [question], "--session", kept)
        parts += [answer["text"] for answer in part["answers"]]
    check(parts == answers, "kept and taken up again it goes on as if never stopped")
    check(part["tokens"] == whole["tokens"], "and has read the same ids")
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--binary", default="build/pronghorn")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for an output")
    options = parser.parse_args()
    check_terminal(options.binary, options.model, options.patience)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        answers = check_conversation(options.binary, options.model, folder)
        if options.model.endswith(".gguf"):
            run(options.binary, "convert", options.model, folder / "directory")
            check(check_conversation(options.binary, folder / "directory", folder) == answers,
                  "as a Hugging Face directory it answers the same")


if __name__ == "__main__":
    main()
