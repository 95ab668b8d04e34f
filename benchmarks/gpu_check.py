"""What works on this machine's GPU? Everything that this project has for one, in one report.

    python -m benchmarks.gpu_check --out gpu-report
    python -m benchmarks.gpu_check --rehearse --out rehearsal    # the same, small, on the CPU

Each step is a command of this project: conformance of the runtimes that are installed, latency
against FLOPs, training steps, one process for each GPU, a training of ten minutes, the server over
HTTP. A step that fails does not stop the others. ``report.md`` in --out says of each what it is
for, the command, how long it took and how it ended; ``STEP.log`` has what it printed. What is not
there (a driver, a library, a second GPU) is named. The exit status is 1 if a step failed.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.parts.bundles import CIFAR10_CNN
from benchmarks.parts.timing import machine
from models.command import command_parser, tells_mistakes
from shiftnas_serve.runtimes import RUNTIMES
from shiftnas_serve.runtimes.auto import no_driver

TAIL_LINES = 12
"""Of a step's output, in the report."""


@dataclass(frozen=True)
class Step:
    """A command, with what it is for and what it needs. ``minutes``: the most that it may take."""

    name: str
    what: str
    command: Sequence[str]
    minutes: float
    needs: Callable[[], str] = lambda: ""
    """Why it cannot run here; empty where it can."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: ``passed``, ``failed``, or ``not run`` with the reason."""

    step: Step
    state: str
    reason: str
    seconds: float
    tail: str


def steps(out: Path, *, rehearse: bool) -> list[Step]:
    """All of them, in the order in which they say most. rehearse: small, and on the CPU."""
    device = "cpu" if rehearse else "cuda"
    here = (sys.executable, "-m")
    runtimes = ["onnxruntime", "torch"] if rehearse else gpu_runtimes()
    few = ("--points", "2", "--rounds", "2") if rehearse else ("--batch", "1", "8", "32")
    train = (*here, "trainer.run", "--json")
    small = ("--set", "epochs=1", "--set", "generator.pretrain_steps=20")
    processes = 2 if rehearse else max(1, torch.cuda.device_count())
    step_sizes = ("--batch", "16") if rehearse else ("--batch", "256")
    more = () if rehearse else ("--beside", "compile", "bf16", "fp16")
    space = "nano-vit" if rehearse else "vit-tiny"
    return [
        Step(
            "conformance",
            "every runtime that is installed gives the logits of torch",
            (
                *(*here, "pytest", "-q", "-p", "no:cacheprovider", "tests/serve/test_runtimes.py"),
                *(("-k", "auto") if rehearse else ("-m", "gpu")),
            ),
            30,
        ),
        Step(
            "latency",
            "latency against FLOPs, for each runtime",
            (
                *(*here, "benchmarks.latency_vs_flops", "--runtime"),
                *(f"{name}:{device}" for name in runtimes),
                *(*few, "--plot", str(out / "latency.png")),
            ),
            20,
        ),
        Step(
            "train-step",
            "what weight sharing costs a training step, compiled and in half precision",
            (*here, "benchmarks.train_step", "--space", space, "--device", device, *step_sizes)
            + (("--rounds", "1") if rehearse else more),
            30,
        ),
        Step(
            "ranks",
            f"one run in {processes} processes, a GPU for each (NCCL)",
            (
                *(*here, "torch.distributed.run", "--nproc-per-node", str(processes)),
                *("-m", "trainer.run", "--out", str(out / "ranks"), *small),
                *("--set", f"device={device}"),
            ),
            20,
            lambda: "" if processes > 1 else "there is one GPU; it takes two",
        ),
        Step(
            "training",
            "a training of ten minutes ends in a bundle",
            (
                *(*train, "--out", str(out / "training"), "--set", f"device={device}"),
                *(small if rehearse else ("--hours", "0.16")),
            ),
            30,
        ),
        Step(
            "server",
            "the server over HTTP on the GPU",
            (
                *(*here, "benchmarks.serve_load", "--bundle", str(CIFAR10_CNN)),
                *(("--seconds", "1", "--rounds", "1", "--budgets", "4") if rehearse else ()),
                *(("--concurrency", "2") if rehearse else ("--concurrency", "1", "32")),
            ),
            20,
            # (auto would fall back to the CPU, and pass)
            environment={"SHIFTNAS_RUNTIME": "onnxruntime", "SHIFTNAS_DEVICE": device},
        ),
    ]


def gpu_runtimes() -> list[str]:
    """Those that are installed and take CUDA."""
    return [n for n, entry in RUNTIMES.items() if entry.is_installed and "cuda" in entry.devices]


def missing() -> list[str]:
    """What this machine lacks, each in a line."""
    absent = [f"runtime {n}: {e.library}" for n, e in RUNTIMES.items() if not e.is_installed]
    driver = no_driver()
    if not torch.cuda.is_available():
        absent.append(f"CUDA in torch {torch.__version__}: {driver or 'torch sees no device'}")
    elif torch.cuda.device_count() < 2:
        absent.append("a second GPU")
    return absent


def run(step: Step, out: Path) -> Outcome:
    """Run one step; its output goes to a file as it comes."""
    reason = step.needs()
    if reason:
        return Outcome(step, "not run", reason, 0.0, "")
    log, started = out / f"{step.name}.log", time.monotonic()
    state, reason = "passed", ""
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                step.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=60 * step.minutes,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **step.environment},
                check=False,
            )
            if done.returncode:
                state, reason = "failed", f"exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            state, reason = "failed", f"not done after {step.minutes:g} minutes"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "\n".join(line[:300] for line in lines[-TAIL_LINES:])
    return Outcome(step, state, reason, time.monotonic() - started, tail)


def report(outcomes: Sequence[Outcome], *, rehearse: bool) -> str:
    """Markdown."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    where = f"{machine()['cpu']}; GPUs: {', '.join(gpus) or 'none'}; torch {torch.__version__}"
    lines = [
        f"# GPU check{': rehearsal on the CPU, which says nothing of a GPU' if rehearse else ''}",
        "",
        f"{where}; ONNX Runtime {machine()['onnxruntime']}; {platform.platform()}",
        "",
        "Not there: " + ("; ".join(missing()) or "nothing that is missed"),
        "",
        "| step | what | state | s |",
        "|---|---|---|--:|",
    ]
    for one in outcomes:
        state = f"{one.state}: {one.reason}" if one.reason else one.state
        lines.append(f"| {one.step.name} | {one.step.what} | {state} | {one.seconds:.0f} |")
    for one in outcomes:
        command = shlex.join(one.step.command)
        lines += ["", f"## {one.step.name}", "", f"`{command}`", "", "```", one.tail, "```"]
    return "\n".join(lines) + "\n"


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 if a step failed; 2 without a GPU, unless it is a rehearsal."""
    parser = command_parser("benchmarks.gpu_check", __doc__, json=False)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of the report")
    parser.add_argument("--rehearse", action="store_true", help="run a small form of it on the CPU")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="do these steps only")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        reason = no_driver() or "torch sees no CUDA device"
        raise ValueError(f"{reason}; --rehearse runs the same on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = steps(options.out, rehearse=options.rehearse)
    unknown = set(options.only or ()) - {step.name for step in chosen}
    if unknown:
        names = ", ".join(step.name for step in chosen)
        raise ValueError(f"--only {' '.join(sorted(unknown))}: there are: {names}")
    outcomes: list[Outcome] = []
    for step in chosen:
        if options.only and step.name not in options.only:
            continue
        print(f"{step.name}: {step.what} ...", file=sys.stderr)
        outcomes.append(run(step, options.out))
        print(f"{step.name}: {outcomes[-1].state} {outcomes[-1].reason}", file=sys.stderr)
        text = report(outcomes, rehearse=options.rehearse)  # whatever happens next, this is there
        (options.out / "report.md").write_text(text, encoding="utf-8")
    states = {one.step.name: one.state for one in outcomes}
    print(json.dumps({"benchmark": "gpu_check", "steps": states, "missing": missing()}))
    return 1 if "failed" in states.values() else 0


if __name__ == "__main__":
    sys.exit(main())
