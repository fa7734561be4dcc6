#!/usr/bin/env python3
"""Starts `pronghorn serve` and shows what it does under load.

    scripts/load_server.py MODEL... --turns
    scripts/load_server.py MODEL --soak 10000 --clients 64
    scripts/load_server.py MODEL.gguf --throughput 1,8,32 --peer PATH/llama-server

--turns       a chat with a long first message: its second turn must read the new message alone, and be
              answered as a server that knows nothing would, to the byte; once more after a restart.
--soak N      N requests of mixed kinds and lengths, some of them cut off by closing the socket: every
              text must be the one of an idle server, none lost or stalled, places freed, memory flat,
              and times between tokens even while a long prompt is read.
--throughput  tokens a second with so many clients, and the time to the first token of a second turn;
              with --peer also those of llama.cpp's server on the same file, in rounds that alternate.

Standard library only. Progress goes to stderr, tables (or, with --json, one document) to stdout. Exits
with 1 where a check fails, 2 where a server does not start.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

# For models in a directory without one.
TEMPLATE = ("{% for message in messages %}{{ message.role }}:\n{{ message.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:\n{% endif %}")
WORDS = ("river stone lantern quiet amber letter window garden seven winter paper market copper island "
         "morning thread silver engine harbour orchard number signal velvet bridge ladder candle").split()


class ServerFailed(Exception):
    """A server did not start, or ended by itself."""


class Lost(Exception):
    """A request was not answered as it should have been. status: of HTTP, if that is what is wrong."""

    def __init__(self, text, status=None):
        super().__init__(text)
        self.status = status


def say(text):
    print(text, file=sys.stderr, flush=True)


def prose(rng, words):
    """Text that no other call has, about a token and a bit for each word."""
    text = " ".join(rng.choice(WORDS) for _ in range(max(1, words)))
    return text[:1].upper() + text[1:] + "."


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


# One server's process.

class Server:
    def __init__(self, name, command, port, ready_path, folder):
        self.name, self.command, self.port, self.ready_path = name, command, port, ready_path
        self.log = pathlib.Path(folder) / f"{name}-{port}.log"
        self.process = None

    async def __aenter__(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL)
        try:
            return await self.until_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    async def until_ready(self):
        end = time.monotonic() + 600
        while time.monotonic() < end:
            if self.process.poll() is not None:
                self.fail("ended before it was ready")
            try:
                status, _ = await ask(self, "GET", self.ready_path, timeout=5)
                if status == 200:
                    return self
            except (OSError, Lost):
                pass
            await asyncio.sleep(0.2)
        self.fail("was not ready after ten minutes")

    async def __aexit__(self, *_):
        if self.process.poll() is not None:
            self.fail("ended by itself")
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self.process.wait, 120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ServerFailed(f"{self.name} did not end within two minutes of SIGTERM") from None

    def fail(self, why):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        tail = self.log.read_text(errors="replace")[-1500:]
        raise ServerFailed(f"{self.name} {why} (status {self.process.returncode}): "
                           f"{' '.join(self.command)}\n{tail}")

    def memory(self):
        """Resident bytes of the process."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Servers:
    """How the servers of a run are started."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder

    def ours(self, model, *more):
        port = free_port()
        command = [self.options.program, "serve", model, "--port", str(port), "--alias", "model",
                   "--parallel", str(self.options.parallel),
                   "--threads", str(self.options.threads), *self.options.serve_options.split(), *more]
        return Server("pronghorn", command, port, "/ready", self.folder)

    def peer(self, model, slots, context):
        port = free_port()
        command = [self.options.peer, "-m", model, "--host", "127.0.0.1", "--port", str(port),
                   "-np", str(slots), "-c", str(slots * context), "-t", str(self.options.threads),
                   *self.options.peer_options.split()]
        return Server("peer", command, port, "/health", self.folder)


# The client: one connection for each request, over bare streams.

class Answer:
    def __init__(self):
        self.text, self.scores, self.times = "", [], []
        self.begin = time.monotonic()
        self.last = {}  # of the last chunk, and of the document: usage, cache
        self.ended = False

    @property
    def first_token(self):
        return self.times[0] - self.begin

    def gaps(self, begin=0.0, end=float("inf")):
        return [b - a for a, b in zip(self.times, self.times[1:]) if begin <= a and b <= end]

    def take(self, document):
        if "error" in document:
            raise Lost(f"an error: {document['error']}")
        for choice in document.get("choices", []):
            part = choice.get("delta") or choice.get("message") or choice
            text = (part.get("text") or part.get("content") or "") + (
                part.get("reasoning_content") or "")
            if text:
                self.times.append(time.monotonic())
            self.text += text
            scores = choice.get("logprobs") or {}
            self.scores += scores.get("content") or scores.get("token_logprobs") or []
        for key in ("usage", "cache", "timings"):
            if document.get(key):
                self.last[key] = document[key]

    def tokens(self):
        return self.last.get("usage", {}).get("completion_tokens", 0)

    def cached(self):
        usage = self.last.get("usage", {})
        return (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)

    def said(self):
        """What must be the same whoever is asked: text and log-probabilities."""
        return self.text, json.dumps(self.scores)


async def open_request(server, method, path, body):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    data = b"" if body is None else json.dumps(body).encode()
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                 f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                 + data)
    await writer.drain()
    return reader, writer


async def read_head(reader):
    line = await reader.readline()
    parts = line.split()
    if len(parts) < 2 or not parts[1].isdigit():
        raise Lost(f"no answer: {line[:80]!r}")
    headers = {}
    while (line := (await reader.readline()).strip()):
        key, _, value = line.decode("latin-1").partition(":")
        headers[key.lower()] = value.strip()
    return int(parts[1]), headers


async def body_parts(reader, headers):
    """The body as it comes."""
    if headers.get("transfer-encoding", "") == "chunked":
        while size := int((await reader.readline()).strip() or b"0", 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while part := await reader.read(1 << 16):
            yield part


async def ask(server, method, path, body=None, timeout=600):
    """Status and text of a short answer."""
    async def whole():
        reader, writer = await open_request(server, method, path, body)
        try:
            status, headers = await read_head(reader)
            return status, b"".join([part async for part in body_parts(reader, headers)]).decode()
        except asyncio.IncompleteReadError as error:
            raise Lost(f"{path}: the answer broke off") from error
        finally:
            writer.transport.abort()

    task = asyncio.ensure_future(whole())
    try:
        await asyncio.wait([task], timeout=timeout)
        if not task.done():
            raise Lost(f"{path}: no answer in {timeout} s")
        return task.result()
    finally:
        task.cancel()


async def ask_json(server, path, body):
    status, text = await ask(server, "POST", path, body)
    if status != 200:
        raise Lost(f"{path}: {status} {text[:300]}")
    return json.loads(text)


async def generate(server, path, body, silence=600.0, cut=None, on_token=None):
    """The answer to a request. silence: seconds without a byte after which it counts as stalled; cut:
    the socket is closed after so many pieces of text, or so many seconds where that is a float."""
    answer = Answer()
    end = answer.begin + cut if isinstance(cut, float) else float("inf")
    reader, writer = await open_request(server, "POST", path, body)

    async def follow():
        status, headers = await read_head(reader)
        parts = body_parts(reader, headers)
        if status != 200:
            text = b"".join([part async for part in parts]).decode(errors="replace")
            raise Lost(f"{path}: {status} {text[:300]}", status)
        rest = b""
        async for part in parts:
            touched[0] = time.monotonic()
            rest += part
            if not body.get("stream"):
                continue
            *events, rest = rest.split(b"\n\n")
            for event in events:
                if not event.startswith(b"data: "):
                    continue  # a comment
                if event == b"data: [DONE]":
                    answer.ended = True
                    continue
                answer.take(json.loads(event[6:]))
                if on_token is not None:
                    on_token(answer)
            if isinstance(cut, int) and len(answer.times) >= cut:
                return
        if not body.get("stream"):
            answer.take(json.loads(rest))
            answer.ended = True

    touched = [time.monotonic()]
    task = asyncio.ensure_future(follow())
    try:
        while not task.done():
            await asyncio.wait([task], timeout=min(0.05 if cut else 1.0, silence))
            now = time.monotonic()
            if now >= end:
                return answer
            if now - touched[0] > silence:
                raise Lost(f"{path}: stalled, nothing came for {silence:.0f} s")
        try:
            task.result()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            raise Lost(f"{path}: broken off: {error!r}") from error
        if not answer.ended and not isinstance(cut, int):
            raise Lost(f"{path}: ended without its last event")
        return answer
    finally:
        task.cancel()
        # Half of those that are cut end by a reset, the others by a plain close.
        (writer.transport.abort if random.random() < 0.5 else writer.close)()


async def metrics(server):
    """Values by name, summed over labels."""
    status, text = await ask(server, "GET", "/metrics")
    if status != 200:
        raise Lost(f"/metrics: {status}")
    values = {}
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        key, value = line.rsplit(" ", 1)
        name = key.split("{")[0].removeprefix("pronghorn_")
        values[name] = values.get(name, 0) + float(value)
    return values


# What is found out.

class Results:
    def __init__(self):
        self.tables, self.checks = [], []

    def table(self, title, columns, rows):
        self.tables.append({"title": title, "columns": columns, "rows": rows})

    def check(self, name, holds, detail):
        self.checks.append({"name": name, "holds": bool(holds), "detail": detail})
        say(f"  {'holds' if holds else 'FAILS'}: {name}: {detail}")

    def print(self):
        for table in self.tables:
            rows = [table["columns"]] + [[shown(cell) for cell in row] for row in table["rows"]]
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            print(table["title"])
            for row in rows:
                print("  " + "  ".join([row[0].ljust(widths[0])] + [
                    cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]))
            print()
        width = max((len(check["name"]) for check in self.checks), default=0)
        for check in self.checks:
            print(f"{'holds' if check['holds'] else 'FAILS'}  {check['name'].ljust(width)}  "
                  f"{check['detail']}")


def shown(value):
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return str(value)


# A long chat and its second turn.

async def long_text(server, rng, tokens):
    """A text of about so many tokens, by the server's own tokenizer."""
    words = prose(rng, tokens).split(" ")
    counted = len((await ask_json(server, "/tokenize", {"content": " ".join(words)}))["tokens"])
    return " ".join(words[:max(1, int(len(words) * tokens / counted))])


def chat_body(messages, tokens, **more):
    return {"model": "model", "messages": messages, "max_tokens": tokens, "stream": True,
            "temperature": 0.8, "seed": 11, "stream_options": {"include_usage": True}, **more}


def with_template(model, folder):
    """The model, or, of a directory without a chat template, one beside it that has one."""
    source = pathlib.Path(model).resolve()
    config = source / "tokenizer_config.json"
    if not source.is_dir() or (source / "chat_template.jinja").exists() or (
            config.exists() and "chat_template" in config.read_text()):
        return model
    copy = pathlib.Path(folder) / "model"
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    return str(copy)


async def turns_of(model, options, servers, results):
    """Rows of the table of one model."""
    chat = "/v1/chat/completions"
    name = pathlib.Path(model).name
    rng = random.Random(options.seed)
    scored = {"logprobs": True, "top_logprobs": 2}
    with tempfile.TemporaryDirectory() as folder:
        model = with_template(model, folder)
        cache = ["--cache-dir", str(pathlib.Path(folder) / "cache")]
        async with servers.ours(model, *cache) as server:
            messages = [{"role": "user", "content": await long_text(server, rng, options.tokens)}]
            # The likeliest tokens are those that their text is read in when it comes back.
            first = await generate(server, chat,
                                   chat_body(messages, options.answer, temperature=0, **scored))
            messages.append({"role": "assistant", "content": first.text})
            asked = [messages + [{"role": "user", "content": text}] for text in
                     ("And what follows from that?", "Say it again, in one sentence.")]
            news = []  # tokens behind the end of the first answer
            for turn in asked:
                read = await ask_json(server, "/apply-template", {"messages": turn})
                if len(read["message_ends"]) < 3:
                    raise Lost("the template rewrites its messages: nothing can be kept at their ends")
                news.append(len(read["tokens"]) - read["message_ends"][1])
                came_back = read["message_ends"][1] - first.last["usage"]["prompt_tokens"]
            warm = await generate(server, chat, chat_body(asked[0], options.answer, **scored))
        async with servers.ours(model, *cache) as server:
            again = await generate(server, chat, chat_body(asked[1], options.answer, **scored))
        async with servers.ours(model) as server:
            cold = [await generate(server, chat, chat_body(turn, options.answer, cache_prompt=False,
                                                           **scored)) for turn in asked]
    for kind, answer, reference, new in [("second turn", warm, cold[0], news[0]),
                                         ("second turn after a restart", again, cold[1], news[1])]:
        read = answer.last["usage"]["prompt_tokens"] - answer.cached()
        # What closes the answer is new as well: its last token, an end mark, a line end.
        results.check(f"{name}: {kind} reads the new message alone", read <= new + 4,
                      f"{read} tokens read, {new} of them new (of the answer {first.tokens()} were "
                      f"written, {came_back} came back); first token after "
                      f"{answer.first_token:.3f} s, cold {reference.first_token:.3f} s")
        results.check(f"{name}: {kind} is a cold server's to the byte",
                      answer.said() == reference.said() and answer.tokens() > 0,
                      f"{answer.tokens()} tokens with their log-probabilities")
    rows = []
    for kind, answer in [("first turn", first), ("second turn", warm),
                         ("second turn, cold server", cold[0]),
                         ("other second turn, after a restart", again),
                         ("other second turn, cold server", cold[1])]:
        prompt = answer.last["usage"]["prompt_tokens"]
        rows.append([name, kind, prompt, answer.cached(), prompt - answer.cached(), answer.first_token])
    return rows


async def turns(options, servers, results):
    rows = []
    for model in options.models:
        name = pathlib.Path(model).name
        say(f"second turns of {name}")
        try:
            rows += await turns_of(model, options, servers, results)
        except Lost as error:
            results.check(f"{name}: every request is answered", False, str(error))
    results.table("Turns of a long chat", ["model", "turn", "prompt", "cached", "read",
                                           "first token s"], rows)


# Many requests at once.

def make_pool(options):
    """Different requests of mixed kinds and lengths."""
    rng = random.Random(options.seed)
    pool = []
    for i in range(options.pool):
        length = int(2 ** rng.uniform(1, options.longest_prompt.bit_length() - 1))
        body = {"model": "model", "max_tokens": int(2 ** rng.uniform(0, 6)), "seed": i,
                "temperature": rng.choice([0, 0.7, 1]), "stream": rng.random() < 0.8}
        if rng.random() < 0.3:
            body["ignore_eos"] = True
        if rng.random() < 0.2:
            body["frequency_penalty"] = 0.5
        if rng.random() < 0.15:
            body["cache_prompt"] = False
        if i % 2:
            path = "/v1/completions"
            body["prompt"] = prose(rng, length)
            if rng.random() < 0.3:
                body["grammar"] = 'root ::= [a-z ]{1,40} "."'
            if rng.random() < 0.4:
                body["logprobs"] = 2
        else:
            path = "/v1/chat/completions"
            body["messages"] = [{"role": "user", "content": prose(rng, length)}]
            if rng.random() < 0.5:  # a second turn
                body["messages"] += [{"role": "assistant", "content": prose(rng, 12)},
                                     {"role": "user", "content": prose(rng, 5)}]
            if rng.random() < 0.4:
                body.update({"logprobs": True, "top_logprobs": 2})
        if rng.random() < 0.2:
            body["stop"] = [rng.choice(WORDS), "\n\n"]
        pool.append((path, body))
    return pool


class Soak:
    def __init__(self, options, server):
        self.options, self.server = options, server
        self.rng = random.Random(options.seed + 1)
        self.pool = make_pool(options)
        self.idle, self.problems, self.memory = [], [], []
        self.done = self.cut = self.refused = 0

    async def ask_idle(self):
        for i, (path, body) in enumerate(self.pool):
            answer = await generate(self.server, path, body, self.options.stall)
            self.idle.append(answer)
            if (i + 1) % 10 == 0:
                say(f"  {i + 1} of {len(self.pool)} requests answered by the idle server")

    async def one(self, number):
        at = self.rng.randrange(len(self.pool))
        path, body = self.pool[at]
        wanted = self.idle[at]
        cut = None
        if self.rng.random() < self.options.cancel:
            pieces = len(wanted.times)
            cut = (self.rng.randint(1, pieces) if body["stream"] and pieces > 0 and
                   self.rng.random() < 0.6 else self.rng.uniform(0, 1.0))
        try:
            answer = await self.patiently(path, body, cut)
        except (Lost, OSError) as error:
            self.problems.append(f"request {number} ({at}): {error!r}")
            return
        finally:
            self.done += 1
        if answer.ended:
            if answer.said() != wanted.said():
                self.problems.append(f"request {number} ({at}): {answer.text[:200]!r} instead of "
                                     f"{wanted.text[:200]!r}")
        else:
            self.cut += 1
            if not wanted.text.startswith(answer.text):
                self.problems.append(f"request {number} ({at}), cut: {answer.text[:200]!r} is not "
                                     f"how {wanted.text[:200]!r} begins")

    async def patiently(self, path, body, cut):
        while True:
            try:
                return await generate(self.server, path, body, self.options.stall, cut)
            except Lost as error:
                if error.status not in (429, 503):
                    raise
                self.refused += 1
                await asyncio.sleep(1)

    async def client(self, numbers):
        for number in numbers:
            await self.one(number)

    async def watch(self):
        while True:
            self.memory.append(self.server.memory())
            await asyncio.sleep(self.options.sample)

    async def run(self):
        numbers = iter(range(self.options.soak))
        begin = shown_at = time.monotonic()
        watcher = asyncio.ensure_future(self.watch())
        clients = [asyncio.ensure_future(self.client(numbers)) for _ in range(self.options.clients)]
        try:
            while not all(client.done() for client in clients):
                await asyncio.wait(clients, timeout=1)
                if time.monotonic() - shown_at > 10:
                    shown_at = time.monotonic()
                    say(f"  {self.done} of {self.options.soak} requests, {len(self.problems)} problems, "
                        f"{self.memory[-1] / 2**20:.0f} MiB")
            for client in clients:
                client.result()
        finally:
            watcher.cancel()
        return time.monotonic() - begin


async def until(server, holds, seconds=30.0):
    """The metrics once they are so; None if they never are."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        values = await metrics(server)
        if holds(values):
            return values
        await asyncio.sleep(0.005)
    return None


async def check_places(server, options, results):
    """Closed sockets free their place within a step: steps go on meanwhile for one client who stays."""
    count = max(1, min(options.clients, options.parallel) - 1)
    steps, seconds = [], []
    for kind in ("writing", "reading"):
        body = {"model": "model", "prompt": "Once upon a time", "max_tokens": 4000, "stream": True,
                "ignore_eos": True, "cache_prompt": False}
        stays = asyncio.ensure_future(generate(server, "/v1/completions", body, options.stall))
        if kind == "reading":
            body = {**body, "prompt": prose(random.Random(5), options.prompt)}
        sockets = []
        for _ in range(count):
            sockets.append(await open_request(server, "POST", "/v1/completions", body))
        if kind == "writing":
            for reader, _ in sockets:
                await reader.readuntil(b"data: ")
        if await until(server, lambda now: now["requests_running"] == count + 1) is None:
            stays.cancel()
            raise Lost("the clients of the test of closed sockets never ran together")
        begin = time.monotonic()
        for _, writer in sockets:
            writer.transport.abort()
        before = await metrics(server)
        after = await until(server, lambda now: now["requests_running"] <= 1)
        if after is None:
            steps.append(float("inf"))
        else:
            steps.append(int(after["steps_total"] - before["steps_total"]))
        seconds.append(time.monotonic() - begin)
        stays.cancel()
        await until(server, lambda now: now["requests_running"] == 0)
    return [["writing", count, steps[0], seconds[0]], ["reading", count, steps[1], seconds[1]]]


async def check_gaps(server, options):
    """Times between the tokens of other texts, quiet and while a long prompt is read."""
    count = max(1, min(options.clients, options.parallel) - 1)  # a place is left for the prompt
    body = {"model": "model", "prompt": "Once upon a time", "max_tokens": 8000, "stream": True,
            "ignore_eos": True, "temperature": 0, "cache_prompt": False}
    answers = []

    def note(answer):
        if answer not in answers:
            answers.append(answer)

    writers = [asyncio.ensure_future(generate(server, "/v1/completions", body, options.stall,
                                              on_token=note)) for _ in range(count)]
    quiet, busy = [], []
    try:
        while len(answers) < count:
            await asyncio.sleep(0.05)
        for i in range(options.prompts):
            begin = time.monotonic()
            await asyncio.sleep(2)
            middle = time.monotonic()
            prompt = prose(random.Random(100 + i), options.prompt)
            await generate(server, "/v1/completions",
                           {**body, "prompt": prompt, "max_tokens": 1}, options.stall)
            end = time.monotonic()
            for answer in answers:
                quiet += answer.gaps(begin, middle)
                busy += answer.gaps(middle, end)
    finally:
        for writer in writers:
            writer.cancel()
    await until(server, lambda now: now["requests_running"] == 0)
    if not quiet or not busy:
        raise Lost("too few tokens came while a long prompt was read")
    return count, quiet, busy


async def soak(options, servers, results):
    model = options.models[0]
    say(f"{options.soak} requests by {options.clients} clients of {pathlib.Path(model).name}")
    more = ["--cache-bytes", str(options.cache_bytes), "--queue", str(max(256, 4 * options.clients))]
    async with servers.ours(model, *more) as server:
        run = Soak(options, server)
        await run.ask_idle()
        idle_memory = server.memory()
        seconds = await run.run()
        settled = await until(server, lambda now: now["requests_running"] == 0 and
                              now["requests_waiting"] == 0 and now["state_bytes"] == 0 and
                              now["http_requests_running"] <= 1)
        results.check("every text is an idle server's", not run.problems and run.done == options.soak,
                      f"{run.done} requests, {run.cut} cut off, {run.refused} told to come again, "
                      f"{len(run.problems)} wrong, lost or stalled")
        for problem in run.problems[:10]:
            say("  problem: " + problem)
        results.check("nothing is left running", settled is not None,
                      "no request, no state" if settled else f"{await metrics(server)}")
        check_memory(options, run.memory, results)
        places = await check_places(server, options, results)
        count, quiet, busy = await check_gaps(server, options)
        memory = server.memory()
    results.table("Requests of many clients",
                  ["clients", "requests", "cut off", "seconds", "requests/s", "MiB idle", "MiB at most",
                   "MiB after"],
                  [[options.clients, run.done, run.cut, seconds, run.done / seconds,
                    idle_memory / 2**20, max(run.memory) / 2**20, memory / 2**20]])
    results.table("Closed sockets", ["while", "closed", "passes until freed", "seconds"], places)
    for kind, _, steps, passed in places:
        # Passes of the model: counters are read behind the step that runs when the socket is closed
        # and behind the next, and either may write and read a prompt. A server that writes nothing
        # to a socket looks at it each tenth of a second.
        results.check(f"places of closed sockets are freed ({kind})", steps <= 4 or passed <= 0.2,
                      f"{steps} passes of the model, {passed:.3f} s")
    median, high, calm = statistics.median(busy), percentile(busy, 0.99), statistics.median(quiet)
    results.table(f"Seconds between tokens of {count} texts",
                  ["while", "gaps", "median", "p99", "longest"],
                  [["nobody else asks", len(quiet), calm, percentile(quiet, 0.99), max(quiet)],
                   [f"a prompt of {options.prompt} words is read", len(busy), median, high, max(busy)]])
    results.check("p99 between tokens is at most 3 medians while a long prompt is read",
                  high <= 3 * calm,
                  f"{high:.4f} s, {high / calm:.2f} of the median {calm:.4f} s while nobody else asks, "
                  f"{high / median:.2f} of the one meanwhile")


def check_memory(options, samples, results):
    """Flat: the last quarter is not above the second, in which the cache has filled."""
    quarter = len(samples) // 4
    if quarter < 5:
        say(f"  too short a run to judge memory ({len(samples)} samples)")
        return
    early = statistics.median(samples[quarter:2 * quarter])
    late = statistics.median(samples[-quarter:])
    results.check("memory is flat", late <= early * 1.05 + (16 << 20),
                  f"{early / 2**20:.0f} MiB in the second quarter, {late / 2**20:.0f} in the last, "
                  f"{len(samples)} samples")


# Tokens a second, beside another server.

async def one_round(options, server, clients, rng):
    """Tokens a second, and the median time to the first token."""
    bodies = [{"model": "model", "prompt": prose(rng, options.round_prompt), "stream": True,
               "max_tokens": options.round_tokens, "ignore_eos": True, "temperature": 0,
               "stream_options": {"include_usage": True}} for _ in range(clients * options.repeats)]
    answers = []

    async def client(own):
        for body in own:
            answers.append(await generate(server, "/v1/completions", body, options.stall))

    begin = time.monotonic()
    await asyncio.gather(*[client(bodies[i::clients]) for i in range(clients)])
    seconds = time.monotonic() - begin
    tokens = sum(answer.tokens() for answer in answers)
    wanted = len(answers) * options.round_tokens
    if tokens != wanted:
        raise Lost(f"{server.name} wrote {tokens} tokens, not {wanted}")
    return tokens / seconds, statistics.median(answer.first_token for answer in answers)


async def second_turn(options, server, rng):
    """Seconds to the first token of the first and the second turn of a long chat."""
    messages = [{"role": "user", "content": prose(rng, options.turn_words)}]
    first = await generate(server, "/v1/chat/completions", chat_body(messages, options.answer))
    messages += [{"role": "assistant", "content": first.text},
                 {"role": "user", "content": "And what follows from that?"}]
    second = await generate(server, "/v1/chat/completions", chat_body(messages, options.answer))
    return first.first_token, second.first_token


async def throughput(options, servers, results):
    counts = options.throughput
    most = max(counts)
    for model in options.models:
        name = pathlib.Path(model).name
        say(f"throughput of {name}")
        context = max(2 * options.round_prompt + options.round_tokens, 512)
        # A slot of the peer must hold the long chat as well.
        context = max(context, 2 * options.turn_words + 4 * options.answer + 256)
        speeds, firsts, chats = {}, {}, {}
        async with servers.ours(model) as ours:
            if options.peer:
                async with servers.peer(model, most, context) as peer:
                    await measure(options, [ours, peer], counts, speeds, firsts, chats)
            else:
                await measure(options, [ours], counts, speeds, firsts, chats)
        columns = ["clients", "tokens/s", "first token s"]
        if options.peer:
            columns += ["peer tokens/s", "peer first token s", "ratio", "ratios of rounds"]
        rows = []
        for count in counts:
            own = statistics.median(speeds["pronghorn", count])
            row = [count, own, statistics.median(firsts["pronghorn", count])]
            if options.peer:
                other = statistics.median(speeds["peer", count])
                ratios = [a / b for a, b in zip(speeds["pronghorn", count], speeds["peer", count])]
                row += [other, statistics.median(firsts["peer", count]), own / other,
                        f"{min(ratios):.2f} to {max(ratios):.2f}"]
                results.check(f"{name}: {count} clients, at least {options.ratio} times the peer",
                              own / other >= options.ratio, f"{own / other:.2f} times")
            rows.append(row)
        results.table(f"Tokens a second of {name}, medians of {options.rounds} rounds of "
                      f"{options.repeats} requests a client, {options.round_prompt} words read and "
                      f"{options.round_tokens} tokens written each", columns, rows)
        turns_rows = []
        for server, own in chats.items():
            first, second = (statistics.median(times) for times in zip(*own))
            turns_rows.append([server, first, second, first / second])
        results.table(f"Seconds to the first token in a chat of {options.turn_words} words, {name}",
                      ["server", "first turn", "second turn", "ratio"], turns_rows)
        if options.peer:
            results.check(f"{name}: a second turn begins no later than the peer's",
                          turns_rows[0][2] <= turns_rows[1][2],
                          f"{turns_rows[0][2]:.3f} s, peer {turns_rows[1][2]:.3f} s")


async def measure(options, servers, counts, speeds, firsts, chats):
    rng = random.Random(options.seed)
    for server in servers:  # neither begins cold
        await one_round(options, server, 1, rng)
    for number in range(options.rounds):
        for count in counts:
            for server in servers if number % 2 == 0 else servers[::-1]:
                speed, first = await one_round(options, server, count, rng)
                speeds.setdefault((server.name, count), []).append(speed)
                firsts.setdefault((server.name, count), []).append(first)
                say(f"  round {number + 1} of {options.rounds}, {count} clients, {server.name}: "
                    f"{speed:.1f} tokens/s")
        for server in servers:
            chats.setdefault(server.name, []).append(await second_turn(options, server, rng))


def counts(text):
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of clients are wanted, as 1,8,32")
    return values


def read_options():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="as for pronghorn serve; --soak takes the first")
    add("--program", default="build/pronghorn", help="the program (default build/pronghorn)")
    add("--threads", type=int, default=os.cpu_count(), help="threads of each server")
    add("--parallel", type=int, default=32, help="texts at most in a step")
    add("--serve-options", default="", help="more for pronghorn serve, in one word")
    add("--seed", type=int, default=1)
    add("--stall", type=float, default=120, help="seconds of silence that are too many")
    add("--json", action="store_true", help="one JSON document instead of tables")
    one = parser.add_argument_group("second turns").add_argument
    one("--turns", action="store_true")
    one("--tokens", type=int, default=8000, help="of the first message")
    one("--answer", type=int, default=32, help="tokens of an answer in a chat")
    two = parser.add_argument_group("many clients").add_argument
    two("--soak", type=int, default=0, metavar="N", help="so many requests")
    two("--clients", type=int, default=64)
    two("--pool", type=int, default=40, help="different requests")
    two("--longest-prompt", type=int, default=1024, help="words")
    two("--cancel", type=float, default=0.25, help="part of the requests that are cut off")
    two("--cache-bytes", type=int, default=256 << 20)
    two("--sample", type=float, default=1, help="seconds between samples of memory")
    two("--prompt", type=int, default=4000, help="words of the prompt that arrives beside others")
    two("--prompts", type=int, default=3, help="how many of them")
    three = parser.add_argument_group("throughput").add_argument
    three("--throughput", type=counts, metavar="CLIENTS", help="for example 1,8,32")
    three("--peer", help="llama.cpp's llama-server")
    three("--peer-options", default="", help="more for the peer, in one word")
    three("--rounds", type=int, default=5)
    three("--repeats", type=int, default=2, help="requests of each client in a round")
    three("--round-prompt", type=int, default=64, help="words read")
    three("--round-tokens", type=int, default=128, help="tokens written")
    three("--turn-words", type=int, default=2000, help="words of the first message of a chat")
    three("--ratio", type=float, default=1.5, help="wanted of the peer's tokens a second")
    options = parser.parse_args()
    if not (options.turns or options.soak or options.throughput):
        parser.error("nothing to do: --turns, --soak N or --throughput 1,8,32 is wanted")
    return options


async def run(options, results):
    # A script that is told to end ends its servers first.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    with tempfile.TemporaryDirectory() as folder:
        servers = Servers(options, folder)
        if options.turns:
            await turns(options, servers, results)
        if options.soak:
            await soak(options, servers, results)
        if options.throughput:
            await throughput(options, servers, results)


def main():
    options = read_options()
    results = Results()
    try:
        asyncio.run(run(options, results))
    except (ServerFailed, FileNotFoundError, PermissionError) as error:
        say(f"error: {error}")
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("ended before its time")
        return 130
    except Lost as error:
        results.check("every request is answered", False, str(error))
    if options.json:
        print(json.dumps({"checks": results.checks, "tables": results.tables}, indent=2))
    else:
        results.print()
    return 0 if all(check["holds"] for check in results.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
