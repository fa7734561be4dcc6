#!/usr/bin/env python3
"""Runs unchanged clients against a running `pronghorn serve` and prints what works.

    scripts/check_server.py [URL] [--key KEY] [--model NAME] [--tokenizer DIR] [--only WORD]

Needs the packages openai and anthropic, and lm_eval for one more line (with --tokenizer, a directory
that transformers reads). The model should have a chat template. Exits with 1 where a check fails.
"""

import argparse
import base64
import concurrent.futures
import json
import struct
import sys
import time
import traceback

CHECKS = []
QUESTION = [{"role": "user", "content": "Name three colours of a rainbow."}]


class Skipped(Exception):
    """The check needs what is not there."""


def check(function):
    CHECKS.append(function)
    return function


class Clients:
    def __init__(self, options):
        import openai
        key = options.key or "none"
        self.options = options
        self.openai = openai.OpenAI(base_url=options.url + "/v1", api_key=key, max_retries=0)
        self.errors = openai
        self.model = options.model or self.openai.models.list().data[0].id

    @property
    def anthropic(self):
        import anthropic
        return anthropic.Anthropic(base_url=self.options.url, api_key=self.options.key or "none",
                                   max_retries=0)

    def chat(self, **fields):
        fields = {"messages": QUESTION, "max_tokens": 24, "seed": 1, **fields}
        return self.openai.chat.completions.create(model=self.model, **fields)


@check
def openai_chat(clients):
    answer = clients.chat()
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    return f"{answer.usage.completion_tokens} tokens: {answer.choices[0].message.content[:30]!r}"


@check
def openai_chat_streamed(clients):
    whole = clients.chat().choices[0].message.content
    text, chunks, usage = "", 0, None
    for chunk in clients.chat(stream=True, stream_options={"include_usage": True}):
        chunks += 1
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            assert not (choice.finish_reason and choice.delta.content)
    assert text == whole, (text, whole)
    assert usage.completion_tokens > 0
    return f"{chunks} chunks, the same text"


@check
def openai_chat_parameters(clients):
    answer = clients.chat(n=2, temperature=0.9, top_p=0.9, presence_penalty=0.5,
                          frequency_penalty=0.5, logprobs=True, top_logprobs=3,
                          logit_bias={"0": -100}, user="check", stop=["\n\n"])
    assert len(answer.choices) == 2
    content = answer.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 for token in content)
    return f"ignored: {answer.ignored_fields}"


@check
def openai_busy_as_idle(clients):
    alone = [clients.chat(seed=seed).choices[0].message.content for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: clients.chat(seed=seed).choices[0].message.content,
                                 range(6)))
    assert alone == together
    return "6 texts, the same together as alone"


@check
def openai_second_turn(clients):
    first = clients.chat()
    messages = QUESTION + [{"role": "assistant", "content": first.choices[0].message.content},
                           {"role": "user", "content": "And one more?"}]
    usage = clients.chat(messages=messages).usage
    cached = usage.prompt_tokens_details.cached_tokens
    assert cached > 0
    return f"{cached} of {usage.prompt_tokens} prompt tokens from the cache"


@check
def openai_completion_echo(clients):
    answer = clients.openai.completions.create(model=clients.model, prompt="The sky is blue",
                                               max_tokens=1, echo=True, logprobs=1, temperature=0)
    scores = answer.choices[0].logprobs.token_logprobs
    assert scores[0] is None and all(score <= 0 for score in scores[1:])
    top = answer.choices[0].logprobs.top_logprobs[-1]
    assert scores[-1] == max(top.values())
    return f"{len(scores)} tokens scored"


@check
def openai_completion_streamed(clients):
    stream = clients.openai.completions.create(model=clients.model, prompt=["One,", "Two,"],
                                               max_tokens=8, stream=True)
    seen = {choice.index for chunk in stream for choice in chunk.choices}
    assert seen == {0, 1}
    return "2 prompts"


@check
def openai_embeddings(clients):
    answer = clients.openai.embeddings.create(model=clients.model, input=["a cat", "a dog", "tax"])
    vectors = [item.embedding for item in answer.data]
    near, far = (sum(a * b for a, b in zip(vectors[0], other)) for other in vectors[1:])
    raw = clients.openai.embeddings.with_raw_response.create(
        model=clients.model, input="a cat", encoding_format="base64")
    packed = base64.b64decode(json.loads(raw.text)["data"][0]["embedding"])
    unpacked = struct.unpack(f"<{len(packed) // 4}f", packed)
    assert all(abs(a - b) < 1e-6 for a, b in zip(unpacked, vectors[0]))
    return f"{len(vectors[0])} wide; cat to dog {near:.3f}, cat to tax {far:.3f}"


@check
def openai_responses(clients):
    answer = clients.openai.responses.create(model=clients.model, input="Say hello.",
                                             max_output_tokens=16, extra_body={"seed": 1})
    assert answer.usage.output_tokens > 0
    return f"{answer.status}: {answer.output_text[:30]!r}"


@check
def openai_responses_streamed(clients):
    events = list(clients.openai.responses.create(model=clients.model, input="Say hello.",
                                                  max_output_tokens=16, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    return f"{len(events)} events"


@check
def openai_errors(clients):
    found = []
    for fields, kind, code in [
            ({"messages": [{"role": "user", "content": "long " * 300000}]},
             clients.errors.BadRequestError, "context_length_exceeded"),
            ({"response_format": {"type": "xml"}}, clients.errors.BadRequestError,
             "unsupported_response_format"),
            ({"response_format": {"type": "json_schema", "json_schema":
                                  {"name": "n", "schema": {"not": {}}}}},
             clients.errors.BadRequestError, "invalid_schema"),
            ({"temperature": -1}, clients.errors.BadRequestError, "invalid_value")]:
        try:
            clients.chat(**fields)
        except kind as error:
            assert error.code == code, error
            found.append(code)
        else:
            raise AssertionError(f"{code} is missing")
    try:
        clients.openai.chat.completions.create(model="nobody", messages=QUESTION)
    except clients.errors.NotFoundError as error:
        found.append(error.code)
    return ", ".join(found)


@check
def openai_cancel(clients):
    stream = clients.chat(stream=True, max_tokens=2000, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    begin = time.monotonic()
    clients.chat(max_tokens=1)
    return f"the next answer came after {time.monotonic() - begin:.2f} s"


@check
def anthropic_message(clients):
    answer = clients.anthropic.messages.create(model=clients.model, max_tokens=24,
                                               system="Be brief.", messages=QUESTION)
    assert answer.type == "message" and answer.usage.output_tokens > 0
    return f"{answer.stop_reason}: {answer.content[0].text[:30]!r}"


@check
def anthropic_message_streamed(clients):
    with clients.anthropic.messages.stream(model=clients.model, max_tokens=24,
                                           messages=QUESTION) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text
    return f"{final.usage.output_tokens} tokens"


@check
def anthropic_count_tokens(clients):
    count = clients.anthropic.messages.count_tokens(model=clients.model, messages=QUESTION)
    return f"{count.input_tokens} tokens"


@check
def anthropic_error(clients):
    import anthropic
    try:
        clients.anthropic.messages.create(model="nobody", max_tokens=1, messages=QUESTION)
    except anthropic.NotFoundError as error:
        return error.body["error"]["type"]
    raise AssertionError("an unknown model was served")


@check
def lm_eval_loglikelihood(clients):
    if not clients.options.tokenizer:
        raise Skipped("no --tokenizer")
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.openai_completions import LocalCompletionsAPI
    except ImportError as error:
        raise Skipped(str(error)) from error
    model = LocalCompletionsAPI(base_url=clients.options.url + "/v1/completions",
                                model=clients.model, tokenizer=clients.options.tokenizer,
                                tokenizer_backend="huggingface", num_concurrent=1)
    pairs = [("The capital of France is", " Paris"), ("The capital of France is", " cheese")]
    results = model.loglikelihood([Instance("loglikelihood", {}, pair, i)
                                   for i, pair in enumerate(pairs)])
    assert results[0][0] > results[1][0], results
    return f"Paris {results[0][0]:.2f}, cheese {results[1][0]:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8080")
    parser.add_argument("--key")
    parser.add_argument("--model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--only", default="", help="checks with this in their name")
    clients = Clients(parser.parse_args())
    failed = 0
    for one in CHECKS:
        name = one.__name__.replace("_", " ")
        if clients.options.only not in name:
            continue
        try:
            print(f"{name:32} ok       {one(clients)}", flush=True)
        except (Skipped, ImportError) as reason:
            print(f"{name:32} skipped  {reason}", flush=True)
        except Exception:  # a check may fail in any way; the next ones run all the same
            failed += 1
            print(f"{name:32} FAILED   {traceback.format_exc(limit=-1).strip()}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
