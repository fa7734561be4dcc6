#!/usr/bin/env python3
"""Has a running `pronghorn serve` write under random JSON schemas, and judges the texts by jsonschema.

    scripts/check_grammars.py [URL] [--count N] [--seed N] [--tokens N]

Every answer that ended by itself must parse and be valid; schemas that are refused must be such that
nothing fits them. Any model will do: one without training writes the oddest texts. Needs the package
jsonschema. Exits with 1 where a text is not valid.
"""

import argparse
import collections
import json
import random
import sys
import urllib.error
import urllib.request

import jsonschema


def string(rng):
    made = {"type": "string"}
    kind = rng.randrange(4)
    if kind == 0:
        made["pattern"] = rng.choice(["^[a-c]{2,4}$", "^(ab|c)*$", "b[0-9]$", "^[^\"\\\\]{1,9}$"])
    elif kind == 1:
        made["format"] = rng.choice(["date", "time", "date-time", "uuid", "ipv4"])
    elif kind == 2:
        made.update(minLength=rng.randrange(4), maxLength=4 + rng.randrange(40))
    else:
        made["maxLength"] = 12
    return made


def number(rng):
    made = {"type": rng.choice(["integer", "number"])}
    low = rng.randrange(-20, 20)
    if rng.random() < 0.5:
        made[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.5:
        made[rng.choice(["maximum", "exclusiveMaximum"])] = low + 3 + rng.randrange(200)
    return made


def obj(rng, depth):
    made = {"type": "object", "properties": {}, "required": []}
    for i in range(1 + rng.randrange(4)):
        name = rng.choice(["p", "name with space", "qu\"ote", "\u00e9\u6f22"]) + str(i)
        made["properties"][name] = schema(rng, depth - 1)
        if rng.random() < 0.5:
            made["required"].append(name)
    made["additionalProperties"] = rng.choice([False, False, {"type": "boolean"}])
    return made


def array(rng, depth):
    made = {"type": "array", "items": schema(rng, depth - 1), "maxItems": 4}
    if rng.random() < 0.3:
        made["prefixItems"] = [schema(rng, 0), schema(rng, depth - 1)]
    if rng.random() < 0.5:
        made["minItems"] = rng.randrange(3)
    return made


def schema(rng, depth):
    simple = [lambda: string(rng), lambda: number(rng), lambda: {"type": ["boolean", "null"]},
              lambda: {"enum": ["red", "green", 3, None, {"a": [1]}]}, lambda: {"const": "x\ny"}]
    nested = [lambda: obj(rng, depth), lambda: array(rng, depth),
              lambda: {"anyOf": [schema(rng, depth - 1), schema(rng, depth - 1)]},
              lambda: {"oneOf": [{"type": "string", "maxLength": 5}, number(rng)]},
              lambda: {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
              lambda: {"$ref": "#/$defs/node"}]
    return rng.choice(simple + (nested * 2 if depth > 0 else []))()


def document(rng):
    made = obj(rng, 3)
    made["$defs"] = {"node": {
        "type": "object", "properties": {"value": schema(rng, 0), "next": {"anyOf": [
            {"type": "null"}, {"$ref": "#/$defs/node"}]}},
        "required": ["next"], "additionalProperties": False}}
    return made


def ask(url, body):
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8080")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=600)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    counts, failed = collections.Counter(), 0
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for i in range(options.count):
        wanted = document(rng)
        status, answer = ask(options.url, {
            "prompt": "The answer as JSON:\n", "max_tokens": options.tokens, "seed": i,
            "temperature": rng.choice([0, 0.7, 1.5]), "response_format": {
                "type": "json_schema", "json_schema": {"name": "n", "schema": wanted}}})
        if status != 200:
            counts["refused"] += 1
            if "no text ends" not in answer["error"]["message"]:
                failed += 1
                print(f"refused: {answer}\n{json.dumps(wanted)}")
            continue
        choice = answer["choices"][0]
        counts[choice["finish_reason"]] += 1
        if choice["finish_reason"] == "length":
            continue
        try:
            jsonschema.validate(json.loads(choice["text"]), wanted,
                                jsonschema.Draft202012Validator, format_checker=checker)
        except (ValueError, jsonschema.ValidationError) as error:
            failed += 1
            print(f"{error}\n{choice['text']!r}\n{json.dumps(wanted)}")
    print(dict(counts), f"{failed} not valid")
    sys.exit(1 if failed or not counts["stop"] else 0)


if __name__ == "__main__":
    main()
