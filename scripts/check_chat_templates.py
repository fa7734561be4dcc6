#!/usr/bin/env python3
"""Renders the chat templates of some 70 published models with `pronghorn template` and with
transformers' own renderer, for conversations with and without system message, tools, reasoning and
several turns, and compares them byte by byte; where the template refuses, its words.

    python -m venv venv && venv/bin/pip install transformers jinja2
    venv/bin/python scripts/check_chat_templates.py build/pronghorn [TEMPLATES]

Without a folder of .jinja files, the templates are taken from models/templates of llama.cpp's
source, as the source package llama-cpp-python 0.3.36 on PyPI carries it; it is downloaded into a
temporary folder. Exit status 1 if anything differs.
"""
import datetime
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import jinja2
import transformers.utils.chat_template_utils as reference

NOW = 1764150000
PACKAGE = "llama-cpp-python==0.3.36"


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)


reference.datetime = FixedTime


def call(name, arguments):
    function = {"name": name, "arguments": arguments}
    return {"id": "abcdef123", "type": "function", "function": function}


def result(text):
    return {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather", "content": text}


SYSTEM = {"role": "system", "content": " You are <helpful>. "}
USER = {"role": "user", "content": "Hi  there\n"}
MORE = {"role": "user", "content": "Größe? 你好 🙂"}
ANSWER = {"role": "assistant", "content": "Hello!\n\n"}
REASONED = {"role": "assistant", "content": "4", "reasoning_content": "2+2 is\n4"}
THOUGHT = {"role": "assistant", "content": "<think>\nlet me see\n</think>\n\nIt is 4."}
ARGUMENTS = {"city": 'Paris "x"', "days": 2, "ok": True, "n": None, "f": 1.5, "l": [1, "a"]}
CALL = {"role": "assistant", "content": "", "tool_calls": [call("get_weather", ARGUMENTS)]}
CALL_TEXT = {"role": "assistant", "content": None,
             "tool_calls": [call("get_weather", '{"city": "Rome"}')]}
CALL_TWICE = {"role": "assistant", "content": "two", "reasoning_content": "both",
              "tool_calls": [call("get_weather", {"city": "A"}), call("noop", {})]}
PARTS = {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"},
                                     {"type": "text", "text": "there"}]}
CONVERSATIONS = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, MORE],
    "system and turns": [SYSTEM, USER, ANSWER, MORE, ANSWER, USER],
    "reasoning": [SYSTEM, USER, REASONED, MORE],
    "reasoning last": [USER, REASONED],
    "thoughts": [USER, THOUGHT, MORE, THOUGHT],
    "tool call": [SYSTEM, USER, CALL, result('{"t": 20}'), ANSWER, MORE],
    "tool call as text": [USER, CALL_TEXT, result("cold")],
    "two tool calls": [USER, CALL_TWICE, result("1"), result("2")],
    "parts": [PARTS, ANSWER],
    "developer": [{"role": "developer", "content": "dev"}, USER],
    "two users": [USER, USER],
    "answer first": [ANSWER, USER],
    "empty": [],
    "unknown role": [{"role": "narrator", "content": "x"}],
    "no content": [{"role": "user"}],
}
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": 'Current weather <of> a "place" & more',
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "Größe ☃"},
            "unit": {"type": "string", "enum": ["c", "f"]},
            "days": {"type": "integer", "minimum": 1, "default": 3},
            "deep": {"type": "object", "properties": {
                "a": {"type": "array", "items": {"type": "number"}},
                "b": {"type": ["string", "null"]}}},
            "f": {"type": "number", "default": 0.5}}},
        "return": {"type": "string"}}},
    {"type": "function", "function": {
        "name": "noop", "description": "Nothing",
        "parameters": {"type": "object", "properties": {}}}},
]
EXTRAS = [
    {},
    {"enable_thinking": False},
    {"enable_thinking": True, "reasoning_effort": "high", "thinking": True},
    {"documents": [{"title": "T", "text": "doc text"}]},
]


def templates(folder):
    if folder is None:
        folder = pathlib.Path(tempfile.mkdtemp())
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                        "--no-binary", ":all:", "--no-build-isolation", "--dest", folder, PACKAGE],
                       check=True)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            for member in archive.getmembers():
                if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                    name = pathlib.Path(member.name).name
                    (folder / name).write_bytes(archive.extractfile(member).read())
    return sorted(pathlib.Path(folder).glob("*.jinja"))


def contexts():
    for (name, messages), extra, tools, prompt in itertools.product(
            CONVERSATIONS.items(), EXTRAS, (None, TOOLS), (True, False)):
        label = f"{name}, {'tools' if tools else 'no tools'}, {sorted(extra)}, prompt {prompt}"
        aliased = reference._alias_reasoning_fields(json.loads(json.dumps(messages)))
        yield label, {"messages": aliased, "tools": tools, "documents": None,
                      "add_generation_prompt": prompt, "bos_token": "<s>", "eos_token": "</s>",
                      **extra}


def wanted(path, context):
    """What the reference makes of it: a text, or an exception."""
    try:
        return reference._compile_jinja_template(path.read_text()).render(
            **json.loads(json.dumps(context)))
    except Exception as failure:  # whatever the template or Jinja2 throws
        return failure


def rendered(binary, path, folder):
    """A text or an error for each context."""
    variables = folder / f"{path.stem}.json"
    variables.write_text(json.dumps([context for _, context in contexts()], ensure_ascii=False))
    run = subprocess.run([binary, "template", path, "--variables", variables, "--now", str(NOW),
                          "--json"], capture_output=True, env={**os.environ, "TZ": "UTC"})
    if run.returncode != 0:
        raise SystemExit(f"{path.name}: {run.stderr.decode()}")
    return json.loads(run.stdout)


def same(reference_result, ours):
    if isinstance(reference_result, str):
        return ours.get("text") == reference_result
    if "error" not in ours:
        return False
    # What the template itself says must be said; other errors are Python's own words.
    refused = type(reference_result) is jinja2.exceptions.TemplateError
    return not refused or (ours["refused"] and ours["error"] == str(reference_result))


def main():
    binary = str(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build/pronghorn").resolve())
    paths = templates(sys.argv[2] if len(sys.argv) > 2 else None)
    total = different = refused = 0
    with tempfile.TemporaryDirectory() as name:
        for path in paths:
            for (label, context), ours in zip(contexts(), rendered(binary, path,
                                                                   pathlib.Path(name))):
                expected = wanted(path, context)
                total += 1
                refused += not isinstance(expected, str)
                if not same(expected, ours):
                    different += 1
                    print(f"{path.name}: {label}\n  wanted {expected!r:.1000}\n  got {ours!r:.1000}")
    print(f"{len(paths)} templates, {total} renderings ({refused} refused), {different} different")
    return 1 if different or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
