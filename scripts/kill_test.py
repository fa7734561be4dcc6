#!/usr/bin/env python3
"""Kills `pronghorn train` with SIGKILL at random moments, resumes it each time, and compares the
result byte by byte with a run that nobody disturbed.

    scripts/kill_test.py build/pronghorn [--kills 10] [--steps 200] [--seed S] [--ranks N]

With --ranks, mpirun starts the run that is killed, as so many processes; one of them is killed, and
all must end. The undisturbed run is one process.
Exit 0: every file is the same. Needs nothing but Python's own library, and mpirun for --ranks.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

CONFIG = {
    "model_type": "pronghorn",
    "hidden_size": 32,
    "pattern": "a m s g",
    "blocks": {
        "a": {"mixer": {"type": "attention", "heads": 2, "rope": {"theta": 10000}},
              "ffn": {"type": "swiglu", "size": 64}},
        "m": {"mixer": {"type": "mamba2", "heads": 2, "state": 8}},
        "s": {"mixer": {"type": "mamba", "state": 4}},
        "g": {"mixer": {"type": "gated_deltanet", "heads": 2, "head_dim": 8}},
    },
    "train": {"window": 32, "batch_tokens": 256, "micro_batch_tokens": 128, "learning_rate": 0.01},
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pronghorn", type=pathlib.Path, help="the executable")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: the clock)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of the run that is killed")
    return parser.parse_args()


def children(pid):
    """Processes that `pid` started."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has ended
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def kill_one_of(process, moments):
    """Kills a rank that mpirun started, or the process itself if there is none yet."""
    ranks = children(process.pid)
    if not ranks:
        process.kill()
        return
    try:
        os.kill(moments.choice(ranks), signal.SIGKILL)
    except ProcessLookupError:
        pass


def log_without_clock(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["tokens_per_second"]
    return lines


def main():
    options = arguments()
    seed = options.seed if options.seed is not None else time.time_ns() % 10**6
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="pronghorn_kill_") as name:
        folder = pathlib.Path(name)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "text.txt").write_text(
            "".join(f"line {i * i % 89} of the plain, far and wide\n" for i in range(900)))

        def train(out):
            command = [options.pronghorn.resolve(), "train", "config.json", "--data", "text.txt",
                       "--out", out, "--steps", str(options.steps), "--checkpoint-every", "0.05s",
                       "--eval-every", "40", "--resume", "--quiet", "--set",
                       f"gradient_groups={options.ranks}"]
            environment, errors = dict(os.environ), None
            if options.ranks > 1 and out == "killed":
                command = ["mpirun", "-n", str(options.ranks), "--oversubscribe", *command]
                # Containers forbid processes to read one another's memory, which ranks try first.
                environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                                "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
                                "PRONGHORN_THREADS": "1"}
                errors = subprocess.DEVNULL  # mpirun says at length that a rank has died
            return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors,
                                    env=environment)

        begin = time.monotonic()
        if train("whole").wait() != 0:
            return "the undisturbed run failed"
        whole_seconds = time.monotonic() - begin
        step_seconds = whole_seconds / options.steps
        log = folder / "killed" / "log.jsonl"

        def steps_done():
            return log.read_text().count("\n") if log.exists() else 0

        # By steps rather than by the clock, which runs differently when other programs end.
        targets = sorted(moments.randrange(options.steps - 5) for _ in range(options.kills))
        kills, steps = 0, []
        for target in targets:
            process = train("killed")
            if moments.random() < 0.75:
                while process.poll() is None and steps_done() < target:
                    time.sleep(step_seconds / 10)
            # Else before the first step of this process, while it prepares.
            time.sleep(moments.uniform(0, 2 * step_seconds))
            if process.poll() is None:
                if options.ranks > 1:
                    kill_one_of(process, moments)
                else:
                    process.kill()
                process.wait(timeout=60)
                kills += 1
                steps.append(steps_done())
            elif process.returncode != 0:
                return f"a resumed run failed with exit code {process.returncode}"
        if kills == 0:
            return "the run always ends before it can be killed (give more --steps)"
        if train("killed").wait() != 0:
            return "the last resumed run failed"

        print(f"seed {seed}: undisturbed run {whole_seconds:.1f} s; {kills} kills at steps "
              f"{', '.join(map(str, steps))} of {options.steps}")
        for file in ("model.safetensors", "config.json", "best/model.safetensors"):
            if (folder / "whole" / file).read_bytes() != (folder / "killed" / file).read_bytes():
                return f"{file} differs"
        if (log_without_clock(folder / "whole" / "log.jsonl") !=
                log_without_clock(folder / "killed" / "log.jsonl")):
            return "log.jsonl differs"
        left = sorted(path.name for path in (folder / "killed").rglob("*.partial"))
        if left:
            return f"half-written files are left: {', '.join(left)}"
    print("model.safetensors, best/model.safetensors and log.jsonl are the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
