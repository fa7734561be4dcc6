#!/usr/bin/env python3
"""How long a training step would take on many ranks, by formulas and measured rates.

    scripts/simulate_ranks.py --parameters 20e6 --batch-tokens 65536 --tokens-per-second 1990

The rate is what one rank reaches alone (`pronghorn bench --train`, or log.jsonl). Links are those
between ranks: what a rank sends and receives a second, and the time of an empty message. The step is
that of `mpirun -n N pronghorn train`: forward and backward of a rank's sequences, gradients to their
owners, the owners' update, parameters from their owners (docs/distributed.md). Nothing overlaps.

With --sequence-parallel all ranks share each sequence; what layers send then depends on their shapes:

    scripts/simulate_ranks.py --parameters 1e9 --batch-tokens 262144 --window 262144 \\
        --tokens-per-second 100 --sequence-parallel ulysses --layers 24 --heads 32 --kv-heads 8 \\
        --state-layers 0 --ranks 1 8 32

With --sequence-parallel-ranks N, so many ranks share a sequence, and teams of as many have others: N may
stay within what heads and links allow while the batch feeds more ranks.

The rate is then that of one rank at this window, and what a way adds in work is not in it (a recurrence's
pieces by `ring` are about three times its operator).

Prints for each number of ranks the time of a step, how it is spent, tokens a second, and the share
of N times one rank; and the bytes that a rank holds (without activations) and sends. Ranks that cannot
be used are named with the reason: a rank needs one sequence at least, or two pieces of one.
"""

import argparse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, required=True)
    parser.add_argument("--batch-tokens", type=float, required=True, help="of a step, all ranks")
    parser.add_argument("--window", type=float, default=512, help="tokens of a sequence")
    parser.add_argument("--tokens-per-second", type=float, required=True, help="of one rank")
    parser.add_argument("--groups-per-rank", type=int, default=1,
                        help="how often gradients are sent in a step: gradient_groups over ranks, or over "
                             "teams with --sequence-parallel")
    parser.add_argument("--gigabytes-per-second", type=float, default=1.25,
                        help="of a rank's link, each way (default: 10 Gbit/s)")
    parser.add_argument("--latency", type=float, default=30e-6, help="seconds of a message")
    parser.add_argument("--memory-gigabytes-per-second", type=float, default=10,
                        help="of a rank, for the update")
    parser.add_argument("--weak", action="store_true",
                        help="the batch grows with the ranks: --batch-tokens is that of one rank")
    parser.add_argument("--sequence-parallel", choices=("ulysses", "ring"),
                        help="ranks share each sequence")
    parser.add_argument("--sequence-parallel-ranks", type=int, default=0, metavar="N",
                        help="so many of them; the others have sequences of their own (default: all)")
    shapes = parser.add_argument_group("layers, for --sequence-parallel")
    shapes.add_argument("--layers", type=int, default=0, help="with attention")
    shapes.add_argument("--heads", type=int, default=16)
    shapes.add_argument("--kv-heads", type=int, default=None, help="default: --heads")
    shapes.add_argument("--head-dim", type=int, default=64)
    shapes.add_argument("--state-layers", type=int, default=0,
                        help="with outer-product states (Mamba-2, Gated DeltaNet, GLA, ...)")
    shapes.add_argument("--state-heads", type=int, default=16, help="of keys and of values")
    shapes.add_argument("--key-dim", type=int, default=64)
    shapes.add_argument("--value-dim", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="*",
                        default=[1, 8, 32, 128, 512, 2048, 8000])
    options = parser.parse_args()
    if options.kv_heads is None:
        options.kv_heads = options.heads
    if options.sequence_parallel and options.layers + options.state_layers == 0:
        parser.error("--sequence-parallel needs --layers or --state-layers")
    if options.sequence_parallel_ranks < 0 or (options.sequence_parallel_ranks and
                                               not options.sequence_parallel):
        parser.error("--sequence-parallel-ranks is a number of ranks, for --sequence-parallel")
    return options


BUCKET = 4 * (1 << 22)  # bytes that are exchanged together


def together(options, ranks):
    """How many of the ranks share a sequence."""
    if not options.sequence_parallel:
        return 1
    return options.sequence_parallel_ranks or ranks


def sequence_numbers(options, ranks, tokens):
    """Numbers that a rank sends in a step for the sequences that so many ranks share, and its
    messages. tokens: of these sequences."""
    if not options.sequence_parallel or ranks == 1:
        return 0, 0
    own = tokens / ranks
    if options.sequence_parallel == "ulysses":
        # There and back, forward and backward.
        away = own * (ranks - 1) / ranks
        keys = max(options.kv_heads, ranks) * options.head_dim  # one at least to each
        attention = 2 * away * 2 * (options.heads * options.head_dim + keys)
        state = 2 * away * options.state_heads * 2 * (options.key_dim + options.value_dim + 1)
        turns = state_turns = 4 * (ranks - 1)
    else:
        # Keys and values go around, and in the backward pass with their gradients.
        turns = (ranks - 1) + (2 * ranks - 1)
        attention = turns * own * 2 * options.kv_heads * options.head_dim
        sequences = tokens / options.window
        state = 2 * 2 * sequences * options.state_heads * options.key_dim * options.value_dim
        state_turns = 2 * 2 * ranks  # from piece to piece, one after the other
    return (options.layers * attention + options.state_layers * state,
            options.layers * turns + options.state_layers * state_turns)


def why_not(options, ranks, tokens):
    """Why so many ranks cannot be used, or nothing."""
    sharing = together(options, ranks)
    if ranks % sharing:
        return f"no multiple of the {sharing} that share a sequence"
    if tokens / options.window < ranks // sharing:
        return "fewer sequences than " + ("ranks" if sharing == 1 else "teams of ranks")
    if options.sequence_parallel and options.window < 2 * sharing:
        return "a sequence has fewer than two pieces for each"
    heads = ((options.heads, options.layers), (options.state_heads, options.state_layers))
    if options.sequence_parallel == "ulysses" and any(h % sharing for h, layers in heads if layers):
        return "heads are no multiple of the ranks"
    return ""


def step_of(options, ranks):
    """Seconds of the parts of a step, and the bytes that a rank sends."""
    tokens = options.batch_tokens * (ranks if options.weak else 1)
    compute = tokens / ranks / options.tokens_per_second
    sent_once = 4 * options.parameters * (ranks - 1) / ranks
    sharing = together(options, ranks)
    numbers, turns = sequence_numbers(options, sharing, tokens * sharing / ranks)
    sent = sent_once * (options.groups_per_rank + 1) + 4 * numbers
    # In each bucket a message to every other rank.
    buckets = max(1, 4 * options.parameters / BUCKET)
    messages = buckets * (ranks - 1) * (options.groups_per_rank + 1) + turns
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
        tokens = options.batch_tokens * (ranks if options.weak else 1)
        if reason := why_not(options, ranks, tokens):
            print(f"{ranks:>6} {reason}")
            continue
        tokens, compute, link, update, sent = step_of(options, ranks)
        step = compute + link + update
        rate = tokens / step
        held = options.parameters * (8 + 8 / ranks + (4 / ranks if ranks > 1 else 0))
        print(f"{ranks:>6} {step:>8.3f}s {compute:>8.3f}s {link:>8.3f}s {update:>8.4f}s "
              f"{amount(rate):>9} {100 * rate / (ranks * options.tokens_per_second):>5.1f}% "
              f"{amount(held, 'B'):>8} {amount(sent, 'B'):>8}")


if __name__ == "__main__":
    main()
