#!/usr/bin/env python3
"""Sends hostile requests to a running `pronghorn serve` and watches whether it holds.

    scripts/fuzz_server.py [URL] [--seconds N] [--threads N] [--seed N] [--key KEY]

Requests are made from the server's own /openapi.json, with values that fit, that are wrong, huge or
odd; besides broken HTTP, deep JSON, hostile schemas and grammars, sockets that are closed anywhere and
readers that are slow. Meanwhile one honest client asks the same again and again: its answer must stay
the same, and /health must answer. Exits with 1 for an answer of 500, an answer that is not JSON, a
changed answer of the honest client, or a server that is slow to say that it is healthy. Standard
library only.
"""

import argparse
import collections
import http.client
import json
import random
import socket
import sys
import threading
import time
import urllib.parse

ODD_TEXTS = ["", "\u0000", "\ud83d\ude00" * 50, "a" * 5000, "../../etc/passwd", "{{ 7 * 7 }}",
             "<|im_start|>", "\u202e\u0301", "null", "%s%n", "' OR 1=1", "\n" * 300]
ODD_NUMBERS = [0, -1, 1, 2 ** 31, -2 ** 63, 2 ** 64, 1e308, -1e-308, 0.1, 10 ** 30]


def deep(rng):
    depth = rng.choice([10, 63, 70, 1000, 50000])
    return "[" * depth + "]" * depth


def hostile_schema(rng):
    nest = {"type": "integer"}
    for _ in range(rng.randrange(1, 40)):
        nest = rng.choice([
            lambda inner: {"type": "array", "items": inner, "maxItems": rng.choice([1, 10 ** 6])},
            lambda inner: {"anyOf": [inner, {"type": "null"}]},
            lambda inner: {"allOf": [inner, inner]},
            lambda inner: {"type": "object", "properties": {"a": inner, "b": inner}},
            lambda inner: {"oneOf": [inner, {"type": "string"}]}])(nest)
    return rng.choice([
        nest,
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]},
        {"enum": [str(i) * 20 for i in range(rng.randrange(2000))]},
        {"type": "string", "pattern": rng.choice(["(a+)+$", "^(.*){1,1000}$", "((a{1,99}){1,99}){1,99}",
                                                  "(a|aa)+$", "[" + "x" * 2000 + "]"])},
        {"type": "string", "minLength": 10 ** rng.randrange(9)},
        {"properties": {str(i): True for i in range(rng.randrange(1500))}},
        {rng.choice(["not", "if", "$ref", "type", "items", "required"]): value(rng, {}, 2)}])


def hostile_grammar(rng):
    return rng.choice([
        "root ::= root \"a\" | \"b\"",
        "root ::= (\"a\"?)* root | ",
        "root ::= (\"a\" | \"aa\" | \"aaa\"){1,1000000}",
        "root ::= (([a-z]{1,1000}){1,1000}){1,1000}",
        "root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"a\"",
        "root ::= " + "(" * rng.randrange(300) + "\"a\"",
        "root ::= a\n" + "\n".join(f"{chr(97 + i)} ::= {chr(98 + i)} {chr(98 + i)}"
                                   for i in range(20)) + "\nu ::= \"x\"",
        "root ::= [^" + chr(rng.randrange(32, 0xd000)) + "]*",
        "root ::= .{" + str(10 ** rng.randrange(9)) + "}",
        "".join(rng.choice("root :=\"a|()[]{}*+?.\\\n#1,") for _ in range(rng.randrange(200)))])


def value(rng, schema, depth=3, root=None):
    """A value that the schema may or may not allow."""
    if depth <= 0 or rng.random() < 0.15:
        return rng.choice([None, True, [], {}, rng.choice(ODD_TEXTS), rng.choice(ODD_NUMBERS)])
    if "$ref" in schema and root is not None:
        schema = root["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        return value(rng, rng.choice(schema["anyOf"]), depth, root)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "string":
        return rng.choice(ODD_TEXTS + ["hello", "The quick brown fox"] * 4)
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", -5), schema.get("maximum", 5)
        return rng.choice([low, high, low - 1, high + 1, rng.randint(0, 5), rng.choice(ODD_NUMBERS)])
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return [value(rng, schema.get("items", {}), depth - 1, root)
                for _ in range(rng.choice([0, 1, 1, 2, 3, 40]))]
    if kind == "object" or "properties" in schema:
        wanted = schema.get("required", [])
        return {name: value(rng, own, depth - 1, root)
                for name, own in schema.get("properties", {}).items()
                if rng.random() < (0.95 if name in wanted else 0.2)}
    return rng.choice(ODD_TEXTS + ODD_NUMBERS)


class Fuzzer:
    def __init__(self, options):
        self.options = options
        self.address = urllib.parse.urlparse(options.url)
        self.end = time.monotonic() + options.seconds
        self.counts = collections.Counter()
        self.problems = []
        self.lock = threading.Lock()
        self.headers = {"Content-Type": "application/json"}
        if options.key:
            self.headers["Authorization"] = "Bearer " + options.key
        status, body = self.ask("GET", "/openapi.json", None)
        assert status == 200, status
        self.document = json.loads(body)
        self.posts = {path: own["post"]["requestBody"]["content"]["application/json"]["schema"]
                      for path, own in self.document["paths"].items() if "post" in own}

    def ask(self, method, path, body, timeout=120):
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port,
                                                timeout=timeout)
        try:
            connection.request(method, path, body, self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def report(self, problem):
        with self.lock:
            self.problems.append(problem)
            print("problem:", problem[:2000], file=sys.stderr, flush=True)

    def count(self, key):
        with self.lock:
            self.counts[key] += 1

    def body(self, rng):
        path = rng.choice(list(self.posts))
        made = value(rng, self.posts[path], 5, self.document)
        if isinstance(made, dict):
            for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                if name in made or name == "max_tokens":
                    made[name] = rng.choice([0, 1, 3, 8, made.get(name)])
            if rng.random() < 0.8:
                made.pop("model", None)
            if rng.random() < 0.3:
                made["messages"] = [{"role": "user", "content": "Hi"}]
                made["prompt"] = made["input"] = "Hi"
            if rng.random() < 0.25:
                made["response_format"] = {"type": "json_schema", "json_schema": {
                    "name": "n", "schema": hostile_schema(rng)}}
            elif rng.random() < 0.2:
                made["grammar"] = hostile_grammar(rng)
        text = json.dumps(made)
        if rng.random() < 0.1:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(["\0", "}", deep(rng), "\\ud800", "\"", "1e999"]) + text[at:]
        return path, text.encode(errors="replace")

    def whole(self, rng):
        path, body = self.body(rng)
        try:
            status, answer = self.ask("POST", path, body)
        except (http.client.HTTPException, OSError) as error:
            return self.report(f"{path}: no answer ({error!r}) to {body[:500]!r}")
        self.count(status)
        if status == 500:
            self.report(f"{path}: 500 {answer[:300]!r} to {body[:1000]!r}")
        if status >= 400:
            try:
                json.loads(answer)["error"]
            except (ValueError, KeyError):
                self.report(f"{path}: an error that is none: {answer[:300]!r}")

    def raw(self, rng):
        path, body = self.body(rng)
        head = rng.choice([
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n",
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {rng.choice(ODD_NUMBERS)}\r\n\r\n",
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            f"GET {path}\r\n\r\n", "\r\n" * 50, "POST " + "/a" * 9000 + " HTTP/1.1\r\n\r\n",
            f"POST {path} HTTP/1.1\r\n" + "X: y\r\n" * rng.choice([1, 2000]) + "\r\n"]).encode()
        data = head + body
        if rng.random() < 0.3:
            data = bytes(rng.randrange(256) if rng.random() < 0.02 else byte for byte in data)
        data = data[:rng.randrange(len(data) + 1)] if rng.random() < 0.5 else data
        try:
            with socket.create_connection((self.address.hostname, self.address.port), 10) as client:
                client.settimeout(0.5)
                step = rng.choice([len(data) + 1, 1000, 7])
                for at in range(0, min(len(data), 7 * step + 5000), step):
                    client.sendall(data[at:at + step])
                    if step == 7:
                        time.sleep(0.001)
                if rng.random() < 0.5:
                    client.recv(rng.choice([1, 10, 100000]))
                if rng.random() < 0.1:
                    time.sleep(0.4)
        except OSError:
            pass
        self.count("raw")

    def attack(self, number):
        rng = random.Random(self.options.seed * 1000 + number)
        while time.monotonic() < self.end:
            self.raw(rng) if rng.random() < 0.3 else self.whole(rng)

    def honest(self):
        body = json.dumps({"prompt": "Once upon a time", "max_tokens": 8, "seed": 3, "logprobs": 2,
                           "temperature": 0.7}).encode()
        wanted = None
        while time.monotonic() < self.end:
            status, answer = self.ask("POST", "/v1/completions", body)
            if status in (429, 503):
                time.sleep(0.2)
                continue
            if status != 200:
                self.report(f"the honest client got {status}: {answer[:300]!r}")
                continue
            choices = json.loads(answer)["choices"]
            wanted = wanted or choices
            if choices != wanted:
                self.report(f"the honest client got {choices} after {wanted}")
            self.count("honest")
            begin = time.monotonic()
            self.ask("GET", "/health", None, 10)
            seconds = time.monotonic() - begin
            if seconds > 1:
                self.report(f"/health took {seconds:.1f} s")

    def run(self):
        threads = [threading.Thread(target=self.attack, args=(i,))
                   for i in range(self.options.threads)]
        threads.append(threading.Thread(target=self.honest))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(dict(sorted(self.counts.items(), key=str)), f"{len(self.problems)} problems")
        return 1 if self.problems or not self.counts["honest"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8080")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--key", default="")
    sys.exit(Fuzzer(parser.parse_args()).run())


if __name__ == "__main__":
    main()
