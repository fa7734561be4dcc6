#!/usr/bin/env python3
"""A stream far beyond a transformer's training length, in constant memory: with sinks and without.

  bench/attention_sinks.py --data book.txt --tokens 20000000      # trains transformer-20m first
  bench/attention_sinks.py --model runs/transformer-20m --data book.txt --stream 1000000

Reads the text as one sequence with `pronghorn eval --stream`, keeping the last --window tokens,
once with the first --sinks tokens in sight (StreamingLLM, arXiv 2309.17453) and once without any,
and shows the loss of each part of the stream: both curves. A text that is shorter than the stream
is read over and over.
"""

import pathlib

import measuring

BYTES = 8  # of a token, more than any tokenizer makes of them on average
MOST_BYTES = 60 << 20  # eval --stream reads no more


def stream_file(options):
    """A file with the text as often as the stream needs it."""
    text = "\n".join(pathlib.Path(file).read_text(errors="replace")
                     for file in options.stream_data or options.data)
    if not text:
        raise measuring.Failure("--stream-data: is empty")
    size = len(text.encode())
    times = min(-(-BYTES * options.stream // size), MOST_BYTES // size)
    file = pathlib.Path(options.out) / "stream.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([text] * max(1, times)))
    return file


def curve(pronghorn, options, model, file, sinks):
    measuring.say(f"a stream of {options.stream} tokens with {sinks} sinks")
    return pronghorn.json("eval", model, "--data", file, "--stream", options.stream,
                          "--attention-window", options.window, "--attention-sinks",
                          sinks)["parts"]


def mean(parts):
    return sum(part["loss"] for part in parts) / len(parts)


def measure(options):
    if not options.data and not (options.model and options.stream_data):
        raise measuring.Failure("--data: is missing, the text to learn and to read")
    file = stream_file(options)
    pronghorn = measuring.Pronghorn(options)
    model = pronghorn.transformer()
    curves = {sinks: curve(pronghorn, options, model, file, sinks)
              for sinks in (options.sinks, 0)}

    rows = []
    for kept, without in zip(curves[options.sinks], curves[0]):
        rows.append([str(kept["tokens"]), kept["loss"], without["loss"],
                     kept["tokens_per_second"], without["tokens_per_second"], kept["state_bytes"],
                     kept["peak_bytes"]])
    headers = ["tokens", f"loss, {options.sinks} sinks", "loss, none", "tokens/s", "tokens/s, none",
               "state bytes", "memory"]
    # The window is full after the first part; then a quarter of the stream beside the last one.
    rises, states = {}, [part["state_bytes"] for part in curves[options.sinks][1:]]
    for sinks, parts in curves.items():
        quarter = max(1, len(parts) // 4)
        rises[sinks] = mean(parts[-quarter:]) - mean(parts[1:1 + quarter])
    apart = mean(curves[0][1:]) - mean(curves[options.sinks][1:])
    verdicts = [
        (rises[options.sinks] <= options.tolerance,
         f"with {options.sinks} sinks the loss rises by {rises[options.sinks]:.4f} nats from the "
         f"first quarter to the last, at most {options.tolerance}"),
        (apart > options.tolerance,
         f"without sinks it is {apart:.4f} nats higher (it rises by {rises[0]:.4f})"),
        (max(states) <= min(states) * 1.01, f"{min(states)} to {max(states)} bytes of state")]
    results = {"stream": options.stream, "window": options.window, "sinks": options.sinks,
               "with_sinks": curves[options.sinks], "without": curves[0],
               "rises": rises[options.sinks], "rises_without": rises[0]}
    measuring.finish(options, headers, rows, results, verdicts)
    return results


def prepare_check(options, folder):
    measuring.prepare_transformer(options, folder)
    options.stream_data, options.stream, options.window = [], 8192, 128


def check(results):
    for name in ("with_sinks", "without"):
        if not results[name] or results[name][-1]["tokens"] != results["stream"]:
            return f"{name}: the stream was not read to its end"
        if not all(part["loss"] > 0 and part["state_bytes"] > 0 for part in results[name]):
            return f"{name}: a part without a loss or a state"
    return None


def parser():
    options = measuring.parser_of(__doc__)
    measuring.add_transformer(options, "the text to learn")
    options.add_argument("--stream-data", nargs="+", default=[],
                         help="the text that is read as a stream (default: --data)")
    options.add_argument("--stream", type=int, default=1_000_000)
    options.add_argument("--window", type=int, default=508,
                         help="last tokens kept; with the sinks, the training length")
    options.add_argument("--sinks", type=int, default=4)
    options.add_argument("--tolerance", type=float, default=0.02,
                         help="nats by which text differs from place to place")
    return options


if __name__ == "__main__":
    measuring.main(parser(), measure, prepare_check, check)
