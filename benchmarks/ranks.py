"""How much faster do N processes train than one, and what does it cost them?

    python -m benchmarks.ranks
    python -m benchmarks.ranks --ranks 8 --recipe vit-tiny --data PATH --set precision=bf16

Runs `trainer.run` with and without torchrun in turn, at the same batch, each until so many steps
are in its log, and compares images a second (steady ones: the first of a run are left out) and the
processor time of a step, summed over the processes: where the cores do other things too, that is
what to look at. With two processes on two cores, twice the images a second and the same processor
time would be perfect.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from models.command import command_parser, tells_mistakes
from trainer.engine.log import number, read_log
from trainer.engine.provenance import provenance


def command(ranks: int) -> list[str]:
    """What starts ``trainer.run`` in so many processes."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--nproc-per-node", str(ranks), "-m"]
    return [*start, "trainer.run"]


def train_for(ranks: int, arguments: Sequence[str], records: int) -> tuple[float, float]:
    """Images a second, and processor seconds per step over all processes.

    From the first record of steps in the log to the one that comes so many later.
    Raises ValueError if training ends before.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        run = subprocess.Popen(
            [*command(ranks), *arguments, "--out", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        marks: list[tuple[int, float]] = []  # step, processor seconds
        steps: list[tuple[int, float]] = []
        try:
            while len(marks) <= records:
                if run.poll() is not None:
                    assert run.stderr is not None
                    said = [x for x in run.stderr.read().splitlines() if "error:" in x]
                    why = said[0] if said else "training ended; ask for fewer --records"
                    raise ValueError(why.removeprefix("error: "))
                time.sleep(0.02)
                steps = steps_in(folder)
                if steps and (not marks or steps[-1][0] > marks[-1][0]):
                    marks.append((steps[-1][0], processor_s(run.pid)))
        finally:
            run.terminate()  # it stops within a step, with all that it started
            run.communicate()
        rates = [rate for step, rate in steps if marks[0][0] < step <= marks[-1][0]]
    (first, first_s), (last, last_s) = marks[0], marks[-1]
    return statistics.median(rates), (last_s - first_s) / (last - first)


def steps_in(folder: Path) -> list[tuple[int, float]]:
    """Step and images a second of the log's records of steps."""
    if not (folder / "log.jsonl").exists():
        return []
    records = [r for r in read_log(folder / "log.jsonl") if r["kind"] == "step"]
    return [(int(number(r, "step")), number(r, "images_per_s")) for r in records]


def processor_s(pid: int) -> float:
    """Of a process and all that it has started."""
    parent = psutil.Process(pid)
    times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return sum(t.user + t.system for t in times)


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 2 a mistake of the user's."""
    parser = command_parser("benchmarks.ranks", __doc__, json=False)
    parser.add_argument("--ranks", type=int, default=2, help="processes to compare with one")
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=3, help="runs with each number of processes")
    parser.add_argument(
        "--records", type=int, default=10, help="records in a run, of 20 steps each"
    )
    options = parser.parse_args(arguments)
    chosen = ["--recipe", options.recipe]
    if options.data is not None:
        chosen += ["--data", options.data]
    settings = ["epochs=1000", "evaluate_every=1000", "generator.pretrain_steps=50", "threads=1"]
    for setting in (*settings, *options.set):
        chosen += ["--set", setting]
    measured: dict[int, list[tuple[float, float]]] = {1: [], options.ranks: []}
    for turn in range(options.rounds):
        for ranks, found in measured.items():
            found.append(train_for(ranks, chosen, options.records))
            print(
                f"round {turn + 1}, processes: {ranks}: {found[-1][0]:.0f} images/s, "
                f"{1000 * found[-1][1]:.1f} ms of processor time a step",
                file=sys.stderr,
            )
    pairs = list(zip(measured[1], measured[options.ranks], strict=True))
    result = {
        "recipe": options.recipe,
        "set": options.set,
        "ranks": options.ranks,
        "images_per_s": {str(n): [rate for rate, _ in found] for n, found in measured.items()},
        "processor_ms": {str(n): [1000 * s for _, s in found] for n, found in measured.items()},
        "speedup": statistics.median(many[0] / one[0] for one, many in pairs),
        "processor_ratio": statistics.median(many[1] / one[1] for one, many in pairs),
        **provenance(),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
