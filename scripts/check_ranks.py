#!/usr/bin/env python3
"""Several processes of pronghorn on machines that are made up: network namespaces of this one, joined
by a bridge, so that every byte between ranks goes over a link that can be counted and cut.

    sudo scripts/check_ranks.py build/pronghorn [--ranks 4] [--only NAME ...] [--json FILE]

Checks, in this order:
  train        data-parallel training gives the bytes of one process
  bytes        what it sends in a step is what docs/distributed.md says
  ulysses      a text scored over the ranks by heads: what one process finds, but for the order in which
               the tokens' losses are added, for attention (full, window, grouped-query), Mamba,
               Mamba-2 and Gated DeltaNet; and attention's bytes
  ring         the same by pieces, up to rounding
  long         training with each sequence over all ranks, both ways, up to rounding
  teams        two teams of half the ranks, each with sequences of its own, train to the bytes of one team
  generate     a prompt read over the ranks, both ways: the tokens that one process writes; and attention's
               bytes, those of the state that the first rank is left with included
  kill         a rank is killed: all end, and half as many ranks go on to the same bytes
  cut          a link is cut: all end in bounded time, and half as many ranks go on to the same bytes
  ring_cut     the same where the ranks share each sequence: as many go on to the bytes of a run that
               nobody disturbed

All of it ends within --time-limit. Bytes are those of the links without the headers of Ethernet, IP and
TCP (66 a packet), and must be within 5 % of the formula. Exit 0: all is so; 1: something is not; 77: this machine cannot do it
(needs root, iproute2, util-linux and Open MPI), which is said. Python's own library is enough.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

SKIPPED = 77
HEADERS = 66  # of a packet: Ethernet 14, IPv4 20, TCP with timestamps 32
TOLERANCE = 0.05
DETECTION = 90  # seconds in which a cut link must have ended the run
CHECKS = ("train", "bytes", "ulysses", "ring", "long", "teams", "generate", "kill", "cut", "ring_cut")

# Lost links are noticed by keepalive; the defaults of Open MPI take eight minutes.
MPI_OPTIONS = {
    "btl": "tcp,self", "pml": "ob1",
    "oob_tcp_keepalive_time": "5", "oob_tcp_keepalive_intvl": "2", "oob_tcp_keepalive_probes": "3",
}


class Failure(Exception):
    """What is not as it should be."""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pronghorn", type=pathlib.Path, help="the executable")
    parser.add_argument("--ranks", type=int, default=4, help="an even number (default 4)")
    parser.add_argument("--steps", type=int, default=24, help="of training (default 24)")
    parser.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--time-limit", type=float, default=1800, metavar="SECONDS",
                        help="for all checks together; those that are left then fail (default 1800)")
    parser.add_argument("--json", type=pathlib.Path, help="write the results to this file, too")
    options = parser.parse_args()
    if options.ranks < 2 or options.ranks % 2 or options.ranks > 64:
        parser.error("--ranks must be an even number from 2 to 64")
    if not options.pronghorn.is_file():
        parser.error(f"{options.pronghorn} is not there (build it first)")
    return options


def run(*command, **more):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **more)


class Machines:
    """A namespace for each rank with a link to a bridge, which has a namespace of its own; mpirun
    runs there."""

    def __init__(self, ranks, folder):
        mark = os.getpid() % 100000
        self.hub = f"pg{mark}hub"
        self.ranks = [f"pg{mark}r{r}" for r in range(ranks)]
        self.links = [f"pg{mark}v{r}" for r in range(ranks)]
        self.addresses = [f"10.77.0.{r + 1}" for r in range(ranks)]
        self.folder = folder

    def __enter__(self):
        try:
            self.make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def make(self):
        run("ip", "netns", "add", self.hub)
        in_hub = ("ip", "-n", self.hub)
        run(*in_hub, "link", "set", "lo", "up")
        run(*in_hub, "link", "add", "hub", "type", "bridge")
        run(*in_hub, "addr", "add", "10.77.0.254/24", "dev", "hub")
        run(*in_hub, "link", "set", "hub", "up")
        for name, link, address in zip(self.ranks, self.links, self.addresses):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            run(*in_hub, "link", "add", link, "type", "veth", "peer", "name", "net0", "netns", name)
            run(*in_hub, "link", "set", link, "master", "hub", "up")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "net0")
            run("ip", "-n", name, "link", "set", "net0", "up")
        # mpirun calls this in place of ssh: HOST COMMAND... Each machine has a name of its own.
        self.agent = self.folder / "agent.sh"
        cases = "".join(f"  {a}) name={n} ;;\n" for a, n in zip(self.addresses, self.ranks))
        self.agent.write_text(
            "#!/bin/sh\nhost=$1\nshift\ncase $host in\n" + cases +
            "  *) echo \"no machine $host\" >&2; exit 1 ;;\nesac\nexport name command=\"$*\"\n"
            "exec ip netns exec \"$name\" unshare --uts "
            "sh -c 'hostname \"$name\" && exec sh -c \"$command\"'\n")
        self.agent.chmod(self.agent.stat().st_mode | stat.S_IXUSR)

    def end_processes(self):
        """Kills what has not ended on the machines."""
        for name in [*self.ranks, self.hub]:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True,
                                  check=False).stdout
            for pid in map(int, pids.split()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def __exit__(self, *unused):
        self.end_processes()
        for name in [*self.ranks, self.hub]:  # their links go with them
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def mpirun(self, ranks):
        """The beginning of a command line that runs so many ranks, one a machine."""
        command = ["ip", "netns", "exec", self.hub, "mpirun", "-n", str(ranks), "--host",
                   ",".join(f"{address}:1" for address in self.addresses[:ranks]),
                   "-x", "PRONGHORN_THREADS", "--bind-to", "none"]
        network = "10.77.0.0/24"
        for name, value in {**MPI_OPTIONS, "plm_rsh_agent": str(self.agent),
                            "btl_tcp_if_include": network,
                            "oob_tcp_if_include": network}.items():
            command += ["--mca", name, value]
        return command

    def sent(self):
        """Bytes that all ranks have sent, without headers: what the bridge received."""
        links = json.loads(run("ip", "-n", self.hub, "-s", "-j", "link", "show").stdout)
        total = 0
        for link in links:
            if link.get("ifname") in self.links:
                counted = link["stats64"]["rx"]
                total += counted["bytes"] - HEADERS * counted["packets"]
        return total

    def set_link(self, rank, state):
        run("ip", "-n", self.hub, "link", "set", self.links[rank], state)

    def kill(self, rank, program):
        """Kills pronghorn on this machine."""
        for pid in map(int, run("ip", "netns", "pids", self.ranks[rank]).stdout.split()):
            try:
                if os.path.samefile(f"/proc/{pid}/exe", program):
                    os.kill(pid, signal.SIGKILL)
                    return
            except OSError:
                continue  # it has ended
        raise Failure(f"no rank runs on machine {rank}")


def attention(heads, key_heads, window=0):
    mixer = {"type": "attention", "heads": heads, "kv_heads": key_heads, "rope": {"theta": 10000}}
    return mixer | ({"window": window} if window else {})


class Checks:
    WIDTH = 16  # of a head

    def __init__(self, options, machines, folder):
        self.options, self.machines, self.folder = options, machines, folder
        self.program = options.pronghorn.resolve()
        self.count = options.ranks
        self.end = time.monotonic() + options.time_limit
        self.environment = dict(os.environ) | {
            "PRONGHORN_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        self.text(self.folder / "text.txt", 60000)
        n = self.count
        self.layers = {
            "attention": attention(2 * n, 2 * n),
            "window": attention(n, n, 40),
            "grouped-query": attention(2 * n, n),
            "mamba": {"type": "mamba", "state": 4},
            "mamba2": {"type": "mamba2", "heads": n, "state": 8},
            "gated_deltanet": {"type": "gated_deltanet", "heads": n, "head_dim": 16},
        }

    @staticmethod
    def text(path, size):
        lines, length, i = [], 0, 0
        while length < size:
            lines.append(f"line {i * i % 8963} of the plain, far and wide\n")
            length += len(lines[-1])
            i += 1
        path.write_text("".join(lines)[:size])

    def config(self, layers):
        """A configuration of these layers, one after the other; its name."""
        name = "-".join(layers) + ".json"
        letters = "abcdefgh"
        blocks = {letters[i]: {"mixer": self.layers[layer], "ffn": {"type": "swiglu", "size": 96}}
                  for i, layer in enumerate(layers)}
        (self.folder / name).write_text(json.dumps({
            "model_type": "pronghorn", "hidden_size": 2 * self.count * self.WIDTH,
            "pattern": " ".join(letters[:len(layers)]), "blocks": blocks,
            "train": {"window": 64, "batch_tokens": 64 * 2 * self.count, "learning_rate": 0.003,
                      "precision": "f32"}}))
        return name

    def start(self, ranks, *command):
        """Pronghorn, as one process or under mpirun, with a JSON document on stdout."""
        line = [str(self.program), *map(str, command), "--json", "--quiet"]
        line = line if ranks == 1 else self.machines.mpirun(ranks) + line
        return subprocess.Popen(line, cwd=self.folder, env=self.environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def seconds(self, most):
        """So many, or what is left of the time limit."""
        left = min(most, self.end - time.monotonic())
        if left <= 0:
            raise Failure(f"the time limit of {self.options.time_limit:.0f} s has passed")
        return left

    def stop(self, process):
        """Ends mpirun and all ranks, so that the next check finds the machines empty."""
        process.kill()
        self.machines.end_processes()
        process.communicate()

    def result(self, ranks, *command):
        limit = self.seconds(600)
        process = self.start(ranks, *command)
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.stop(process)
            raise Failure(f"{ranks} ranks did not end in {limit:.0f} s: "
                          f"{' '.join(map(str, command))}")
        if process.returncode != 0:
            raise Failure(f"{' '.join(map(str, command))} on {ranks} ranks: {err.strip()[-600:]}")
        return json.loads(out)

    def training(self, config, out, steps, *more):
        return ("train", config, "--data", "text.txt", "--out", out, "--steps", steps,
                "--eval-every", "1000000", *more)

    def grouped(self, out, steps, *more):
        """Training whose bytes do not depend on the number of ranks."""
        return self.training(self.config(["attention", "mamba2"]), out, steps, "--set",
                             f"gradient_groups={self.count}", *more)

    def whole(self):
        """The run of one process that others must equal."""
        if not (self.folder / "whole").exists():
            self.parameters = self.result(1, *self.grouped("whole", self.options.steps))["parameters"]
        return self.folder / "whole"

    def must_equal(self, whole, out, whose="one process"):
        for file in ("model.safetensors", "config.json"):
            if (whole / file).read_bytes() != (self.folder / out / file).read_bytes():
                raise Failure(f"{file} differs from that of {whose}")

    def check_train(self):
        self.whole()
        self.result(self.count, *self.grouped("train", self.options.steps))
        self.must_equal(self.whole(), "train")
        return f"model and configuration of {self.count} ranks are those of one, byte for byte"

    @staticmethod
    def compare_bytes(what, measured, formula):
        share = measured / formula - 1
        text = f"{what}: {measured / 1e6:.2f} MB, by formula {formula / 1e6:.2f} MB ({share:+.1%})"
        if abs(share) > TOLERANCE:
            raise Failure(text)
        return text

    def extra_bytes(self, less, more):
        """What the command `more` sends beyond what `less` does, which starts and ends the same."""
        sent = []
        for command in (less, more):
            before = self.machines.sent()
            self.result(self.count, *command)
            sent.append(self.machines.sent() - before)
        return sent[1] - sent[0]

    def check_bytes(self):
        self.whole()
        n, p, steps = self.count, self.parameters, 4 * self.options.steps
        # --checkpoint-every: both save at their beginnings and ends alone.
        measured = self.extra_bytes(
            self.grouped("bytes_less", self.options.steps, "--checkpoint-every", "10h"),
            self.grouped("bytes_more", self.options.steps + steps, "--checkpoint-every", "10h"))
        # Gradients to their owners, parameters from them, sums of squares.
        formula = n * (2 * 4 * p * (n - 1) / n + 8 * p / 16384 * (n - 1))
        return self.compare_bytes("all ranks, a step", measured / steps, formula)

    def model_of(self, layer):
        """A model of one such layer, hardly trained; its name."""
        model = f"model_{layer}"
        if not (self.folder / model).exists():
            self.result(1, *self.training(self.config([layer]), model, 2))
        return model

    def scored(self, kind, tolerance):
        """Texts scored over the ranks, with relative differences, and bytes of attention."""
        n, window = self.count, 64 * self.count
        said = []
        self.text(self.folder / "score.txt", 8 * window + 1)
        for layer in self.layers:
            model = self.model_of(layer)
            score = ("eval", model, "--data", "score.txt", "--window", window, "--precision", "f32")
            one = self.result(1, *score)["nll"]
            all_ranks = self.result(n, *score, "--sequence-parallel", kind)["nll"]
            difference = abs(all_ranks / one - 1)
            if difference > tolerance:
                raise Failure(f"{layer}: {all_ranks} nats, {one} of one process")
            said.append(f"{layer} {difference:.0e}" if difference else f"{layer} =")
        self.text(self.folder / "short.txt", 8 * window + 1)
        self.text(self.folder / "long.txt", 40 * window + 1)
        score = ("eval", "model_attention", "--window", window, "--precision", "f32",
                 "--sequence-parallel", kind, "--data")
        measured = self.extra_bytes((*score, "short.txt"), (*score, "long.txt"))
        tokens, heads = 32 * window, 2 * n  # as many heads of keys
        if kind == "ulysses":
            formula = (n - 1) / n * tokens / n * 4 * heads * self.WIDTH
        else:
            formula = (n - 1) * tokens / n * 2 * heads * self.WIDTH
        return ", ".join(said) + "; " + self.compare_bytes("attention", measured, 4 * n * formula)

    def check_ulysses(self):
        return self.scored("ulysses", 1e-13)

    def check_ring(self):
        return self.scored("ring", 1e-5)

    def check_long(self):
        said = []
        config = self.config(["attention", "mamba2", "gated_deltanet"])
        one = self.result(1, *self.training(config, "long_one", 12))["held_out_bits_per_byte"]
        for kind in ("ulysses", "ring"):
            command = self.training(config, f"long_{kind}", 12, "--sequence-parallel", kind)
            bits = self.result(self.count, *command)["held_out_bits_per_byte"]
            if abs(bits / one - 1) > 1e-3:
                raise Failure(f"{kind}: {bits} bits/byte held out, {one} of one process")
            said.append(f"{kind} {bits:.6f}")
        return f"bits/byte held out: one process {one:.6f}, " + ", ".join(said)

    def check_teams(self):
        # Of one rank each where there are two: then ranks share no sequence.
        half, config = self.count // 2, self.config(["attention", "mamba2"])

        def command(out):
            return self.training(config, out, 6, "--set", "gradient_groups=2", "--sequence-parallel",
                                 "ring", "--sequence-parallel-ranks", half)
        self.result(half, *command("one_team"))
        self.result(self.count, *command("two_teams"))
        self.must_equal(self.folder / "one_team", "two_teams", "one team")
        return f"two teams of {half} ranks train to the bytes of one"

    def check_generate(self):
        n, window = self.count, 64 * self.count
        config = self.config(["attention", "mamba2", "gated_deltanet"])
        self.result(1, *self.training(config, "writer", 12))
        self.text(self.folder / "prompt.txt", 8 * window + 1)
        self.text(self.folder / "long_prompt.txt", 40 * window + 1)
        write = ("generate", "writer", "--prompt-file", "prompt.txt", "--tokens", 32, "--precision",
                 "f32")
        one = self.result(1, *write)["ids"]
        said = []
        for kind in ("ulysses", "ring"):
            if self.result(n, *write, "--sequence-parallel", kind)["ids"] != one:
                raise Failure(f"{kind}: another text than that of one process")
            read = ("generate", self.model_of("attention"), "--tokens", 1, "--precision", "f32",
                    "--sequence-parallel", kind, "--prompt-file")
            measured = self.extra_bytes((*read, "prompt.txt"), (*read, "long_prompt.txt"))
            tokens, width = 32 * window, 2 * n * self.WIDTH  # as many heads of keys
            if kind == "ulysses":
                numbers = (n - 1) / n * tokens * 4 * width
            else:
                numbers = (n - 1) * tokens * 2 * width
            # Keys and values for the first rank's state, and the tokens from it.
            numbers += (n - 1) / n * tokens * 2 * width + (n - 1) * tokens
            said.append(self.compare_bytes(kind, measured, 4 * numbers))
        return "the text of one process, both ways; " + ", ".join(said)

    def disturbed(self, out, command, disturb, repair, ranks, whole, whose):
        """Disturbs a run in its middle and goes on with so many ranks; what was said, and how long it
        took to end. command(out, steps, ...): of training."""
        steps = self.options.steps
        process = self.start(self.count, *command(out, steps, "--checkpoint-every", "0.1s"))
        log = self.folder / out / "log.jsonl"
        end = time.monotonic() + self.seconds(600)
        while process.poll() is None and (not log.exists() or
                                          log.read_text().count("\n") < steps // 3):
            if time.monotonic() > end:
                self.stop(process)
                raise Failure("it made too few steps in time")
            time.sleep(0.02)
        if process.poll() is not None:
            raise Failure(f"it ended by itself: {process.communicate()[1].strip()[-600:]}")
        disturb()
        begin = time.monotonic()
        limit = self.seconds(DETECTION)
        try:
            _, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.stop(process)
            repair()
            raise Failure(f"it has not ended {limit:.0f} s later")
        took = time.monotonic() - begin
        repair()
        if process.returncode == 0:
            raise Failure("it went on to its end (give more --steps)")
        said = next((line.strip() for line in err.splitlines()
                     if "exited on signal" in line or "lost communication" in line
                     or "pronghorn:" in line or "unable to reach" in line.lower()), "")
        if not said:
            raise Failure(f"it ended without saying why: {err.strip()[-400:]}")
        self.machines.end_processes()  # those behind a cut link may not have heard of it
        self.result(ranks, *command(out, steps, "--resume"))
        self.must_equal(whole, out, whose)
        return (f"ended {took:.1f} s later (\"{said[:90]}\"); went on with {ranks} of {self.count} ranks "
                f"to the bytes of {whose}")

    def check_kill(self):
        return self.disturbed("kill", self.grouped, lambda: self.machines.kill(1, self.program),
                              lambda: None, self.count // 2, self.whole(), "one process")

    def cut(self, out, command, ranks, whole, whose):
        last = self.count - 1
        return self.disturbed(out, command, lambda: self.machines.set_link(last, "down"),
                              lambda: self.machines.set_link(last, "up"), ranks, whole, whose)

    def check_cut(self):
        return self.cut("cut", self.grouped, self.count // 2, self.whole(), "one process")

    def check_ring_cut(self):
        config = self.config(["attention", "mamba2"])

        def command(out, steps, *more):
            return self.training(config, out, steps, "--sequence-parallel", "ring", *more)
        self.result(self.count, *command("ring_whole", self.options.steps))
        return self.cut("ring_cut", command, self.count, self.folder / "ring_whole",
                        "a run that nobody disturbed")


def why_not():
    """Why this machine cannot do it, or nothing."""
    missing = [tool for tool in ("ip", "unshare", "hostname", "mpirun", "orted")
               if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found (scripts/install_packages.sh mpi)"
    if os.geteuid() != 0:
        return "network namespaces need root (sudo)"
    name = f"pg{os.getpid() % 100000}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no network namespaces here: {made.stderr.strip()}"
    bridge = subprocess.run(["ip", "-n", name, "link", "add", "hub", "type", "bridge"],
                            capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"no bridges here: {bridge.stderr.strip()}" if bridge.returncode != 0 else ""


def main():
    options = arguments()
    reason = why_not()
    if reason:
        print(f"check_ranks.py: SKIPPED, nothing was checked: {reason}", file=sys.stderr)
        return SKIPPED
    rows = []
    with tempfile.TemporaryDirectory(prefix="pronghorn_ranks_") as name:
        folder = pathlib.Path(name)
        with Machines(options.ranks, folder) as machines:
            checks = Checks(options, machines, folder)
            for check in (check for check in CHECKS if check in options.only):
                begin = time.monotonic()
                try:
                    passed, said = True, getattr(checks, f"check_{check}")()
                except (Failure, subprocess.CalledProcessError, OSError, ValueError,
                        KeyError) as error:
                    passed, said = False, str(error)
                seconds = time.monotonic() - begin
                rows.append({"check": check, "passed": passed, "seconds": round(seconds, 1),
                             "found": said})
                print(f"{check}: {'done' if passed else 'FAILED'} in {seconds:.0f} s",
                      file=sys.stderr)
    print(f"{options.ranks} ranks, each on a machine of its own\n")
    print(f"{'check':<9} {'':<6} {'time':>6}  found")
    for row in rows:
        print(f"{row['check']:<9} {'ok' if row['passed'] else 'FAILED':<6} {row['seconds']:>5.0f}s"
              f"  {row['found']}")
    if options.json:
        options.json.write_text(json.dumps({"ranks": options.ranks, "checks": rows}, indent=2) + "\n")
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
