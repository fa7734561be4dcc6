#!/usr/bin/env python3
"""How long a training step would take on many ranks, by formulas and measured rates.

    scripts/simulate_ranks.py --parameters 20e6 --batch-tokens 65536 --tokens-per-second 1990

The rate is what one rank reaches alone (`pronghorn bench --train`, or log.jsonl). Links are those
between ranks: what a rank sends and receives a second, and the time of an empty message. The step is
that of `mpirun -n N pronghorn train`: forward and backward of a rank's sequences, gradients to their
owners, the owners' update, parameters from their owners (docs/distributed.md). Nothing overlaps.

Prints for each number of ranks the time of a step, how it is spent, tokens a second, and the share
of N times one rank; and the bytes that a rank holds and sends. A row with more ranks than sequences
is left out: a rank needs one sequence at least.
"""

import argparse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, required=True)
    parser.add_argument("--batch-tokens", type=float, required=True, help="of a step, all ranks")
    parser.add_argument("--window", type=float, default=512, help="tokens of a sequence")
    parser.add_argument("--tokens-per-second", type=float, required=True, help="of one rank")
    parser.add_argument("--groups-per-rank", type=int, default=1,
                        help="gradient_groups over ranks: how often gradients are sent")
    parser.add_argument("--gigabytes-per-second", type=float, default=1.25,
                        help="of a rank's link, each way (default: 10 Gbit/s)")
    parser.add_argument("--latency", type=float, default=30e-6, help="seconds of a message")
    parser.add_argument("--memory-gigabytes-per-second", type=float, default=10,
                        help="of a rank, for the update")
    parser.add_argument("--weak", action="store_true",
                        help="the batch grows with the ranks: --batch-tokens is that of one rank")
    parser.add_argument("--ranks", type=int, nargs="*",
                        default=[1, 8, 32, 128, 512, 2048, 8000])
    return parser.parse_args()


BUCKET = 4 * (1 << 22)  # bytes that are exchanged together


def step_of(options, ranks):
    """Seconds of the parts of a step, and the bytes that a rank sends."""
    tokens = options.batch_tokens * (ranks if options.weak else 1)
    compute = tokens / ranks / options.tokens_per_second
    sent_once = 4 * options.parameters * (ranks - 1) / ranks
    sent = sent_once * (options.groups_per_rank + 1)
    # In each bucket a message to every other rank.
    buckets = max(1, 4 * options.parameters / BUCKET)
    messages = buckets * (ranks - 1) * (options.groups_per_rank + 1)
    link = sent / (options.gigabytes_per_second * 1e9) + messages * options.latency
    # An update reads and writes parameter, both moments, and reads the gradient.
    update = 28 * options.parameters / ranks / (options.memory_gigabytes_per_second * 1e9)
    return tokens, compute, link, update, sent


def amount(value, unit=""):
    for name, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{name}{unit}"
    return f"{value:.3g}{unit}"


def main():
    options = arguments()
    print(f"{'ranks':>6} {'step':>9} {'compute':>9} {'link':>9} {'update':>9} {'tokens/s':>9} "
          f"{'share':>6} {'held':>8} {'sent':>8}")
    for ranks in options.ranks:
        tokens, compute, link, update, sent = step_of(options, ranks)
        if tokens / options.window < ranks:
            print(f"{ranks:>6} fewer sequences than ranks")
            continue
        step = compute + link + update
        rate = tokens / step
        held = options.parameters * (8 + 8 / ranks + (4 / ranks if ranks > 1 else 0))
        print(f"{ranks:>6} {step:>8.3f}s {compute:>8.3f}s {link:>8.3f}s {update:>8.4f}s "
              f"{amount(rate):>9} {100 * rate / (ranks * options.tokens_per_second):>5.1f}% "
              f"{amount(held, 'B'):>8} {amount(sent, 'B'):>8}")


if __name__ == "__main__":
    main()
