"""What do the same milliseconds buy, from a generator that knows them? And do they hold?

    python -m benchmarks.measured_latency models/zoo/cifar10-cnn --data cifar10/ --out runs/ms

``--step tables``, ``hold`` and ``http`` are what must be alone on the machine.
For each number of threads: a table (`models measure`), a bundle that answers by it (`models
retarget`, without images), the accuracy of its answers on the test images, as they are served,
beside that of what a server without the table answers, how long answers take, and whether a server
keeps budgets in milliseconds with the table and without it. What is there already in --out is not
done again; a folder of another bundle, data or settings is refused. --calibrate N: another bundle,
for which the generator's answers are tried on N training images.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np

from benchmarks.parts.kept import refuse_other
from benchmarks.parts.load import Connections, Sample, http_request, serving
from benchmarks.parts.plot import Panel, plot_panels
from benchmarks.parts.timing import machine
from models.bundle.costs import CostAnswers
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.costs.table import read_table
from models.interval import paired
from models.measure.measure import measure as measure_table
from models.measure.timing import Setup, level, subnet_call, time_in_turn
from models.outputs import plot_file
from models.retarget import retarget
from models.space.arch import Arch
from models.space.quantity import positive
from shiftnas_serve.latency import MARGIN, LatencyTable
from trainer.data.reading import read_source
from trainer.evaluate import labels_in
from trainer.served import measure

STEPS = ("tables", "retarget", "accuracy", "hold", "http")
BUDGETS = 12
HELD = 24
_PAUSE = 4.0  # of the budget that was asked before


def flops_answer(bundle: Bundle, ms: CostAnswers, budget: float) -> Arch:
    """What a server without the table answers: milliseconds follow FLOPs between five subnets.

    Those five take what the table says, so that the two differ by nothing else.
    """
    five = [bundle.answer(f) for f in np.linspace(bundle.min_flops, bundle.max_flops, 5)]
    points = [(float(bundle.space.flops(a)), ms.cost.value(ms.cost.of(a))) for a in five]
    bound = LatencyTable.of(points).flops_inferred_within(budget)
    return bundle.answer(max(bound, bundle.min_flops))


def budgets_of(ms: CostAnswers, bundle: Bundle, count: int) -> list[float]:
    """Milliseconds within the range of both; the ends, which are the same archs, left out."""
    low = min(ms.cost.of(arch) for arch in bundle.archs())
    return [ms.cost.value(b) for b in np.linspace(low, ms.cost.max, count + 2)[1:-1]]


def accuracies(
    bundle: Bundle, flavours: dict[str, Bundle], data: Path, threads: int
) -> dict[str, object]:
    """Test accuracy by budget: of FLOPs answers, and of each flavour of retargeted ones."""
    source = read_source(str(data))
    rows = source.train if source.test is None else source.test
    labels = labels_in(bundle, source.classes, rows)
    first = next(iter(flavours.values())).costs["latency_ms"]
    budgets = budgets_of(first, bundle, BUDGETS)

    def right_of(of: Bundle, archs: Sequence[Arch]) -> dict[Arch, np.ndarray]:
        distinct = [(0.0, arch) for arch in dict.fromkeys(archs)]
        found, _, _ = measure(of, distinct, rows, labels, threads=threads, skip_broken=True)
        return {one.arch: one.scores.right for one in found}

    def ms_of(arch: Arch) -> float:
        return first.cost.value(first.cost.of(arch))

    by_flops = [flops_answer(bundle, first, budget) for budget in budgets]
    base = right_of(bundle, by_flops)
    answered = {
        name: [one.costs["latency_ms"].answer(budget) for budget in budgets]
        for name, one in flavours.items()
    }
    right = {name: right_of(one, answered[name]) for name, one in flavours.items()}
    lines = []
    for place, budget in enumerate(budgets):
        theirs = base[by_flops[place]]
        line: dict[str, object] = {
            "budget_ms": budget,
            "images": len(theirs),
            "flops": {
                "flops": bundle.space.flops(by_flops[place]),
                "accuracy": float(theirs.mean()),
                "over": ms_of(by_flops[place]) / budget - 1,
            },
        }
        for name in flavours:
            mine = right[name][answered[name][place]]
            gain, half = paired(mine.astype(float) - theirs)
            line[name] = {
                "flops": bundle.space.flops(answered[name][place]),
                "accuracy": float(mine.mean()),
                "gain": gain,
                "gain_95": half,
            }
        lines.append(line)
    return {"rows": lines, "mean": _mean_gains(base, by_flops, answered, right)}


def _mean_gains(
    base: dict[Arch, np.ndarray],
    by_flops: list[Arch],
    answered: dict[str, list[Arch]],
    right: dict[str, dict[Arch, np.ndarray]],
) -> dict[str, object]:
    """Over all budgets, with the interval that pairs give: one number an image."""
    means: dict[str, object] = {}
    for name, archs in answered.items():
        each = np.mean(
            [
                right[name][mine].astype(float) - base[theirs]
                for mine, theirs in zip(archs, by_flops, strict=True)
            ],
            axis=0,
        )
        gain, half = paired(each)
        means[name] = {"gain": gain, "gain_95": half}
    return means


def hold(bundle: Bundle, threads: int, rounds: int) -> dict[str, object]:
    """How long answers to even budgets take, and which share keeps its budget.

    By the table alone; by the table times one factor, that all answers gave before, as a server
    follows what it observes; and with the margin that a server adds.
    """
    ms, setup = bundle.costs["latency_ms"], Setup(threads=threads)

    def timed(archs: Sequence[Arch]) -> dict[Arch, float]:
        found: dict[Arch, float] = {}
        for start in range(0, len(archs), 20):
            some = archs[start : start + 20]
            calls = [subnet_call(bundle, arch, setup) for arch in some]
            timings = level(time_in_turn(calls, rounds, np.random.default_rng(start)))
            found |= {arch: one.ms for arch, one in zip(some, timings, strict=True)}
        return found

    def by_table(arch: Arch) -> float:
        return ms.cost.value(ms.cost.of(arch))

    # beside the others, as they are served: alone, a subnet's weights stay in the cache
    before = timed(ms.archs())
    factor = float(np.median([taken / by_table(arch) for arch, taken in before.items()]))
    low, high = ms.cost.value(ms.min), ms.cost.value(ms.cost.max)
    budgets = MARGIN * max(factor, 1.0) * np.linspace(low, high, HELD)
    stretched = {"table": 1.0, "factor": factor, "served": MARGIN * factor}
    asked = {name: [ms.answer(b / by) for b in budgets] for name, by in stretched.items()}
    taken = timed(list(dict.fromkeys(arch for some in asked.values() for arch in some)))
    told: dict[str, object] = {"budgets": HELD, "rounds": rounds, "factor": factor}
    for name, answers in asked.items():
        use = np.array([taken[arch] for arch in answers]) / budgets
        told[name] = {
            "kept": float((use <= 1).mean()),
            "mean_use": float(use.mean()),
            "worst": float(use.max()),
        }
    errors = np.array([abs(factor * by_table(arch) / real - 1) for arch, real in taken.items()])
    told["error"] = {"median": float(np.median(errors)), "worst": float(errors.max())}
    return told


def over_http(folder: Path, photo: bytes, threads: int, rounds: int) -> dict[str, object]:
    """Which share of latency budgets a server keeps, asked in random order.

    One at a time, with a pause after each: images that come often become smaller. Budgets are even,
    from what the server says that its smallest subnet takes to twice what the largest takes
    (decoding comes on top of both). In time is what is not 504 (too late) nor 429 (it would be);
    ``by_client``: where the client, too, had it within the budget.
    """
    bundle = load_bundle(folder)
    command = ["-m", "shiftnas_serve", "--bundle", str(folder), "--threads", str(threads)]

    async def ask(port: int, budgets: Sequence[float]) -> list[tuple[float, Sample]]:
        connections = Connections(port)
        samples: list[tuple[float, Sample]] = []
        rng = np.random.default_rng(0)
        for place in range(rounds + 2):
            for budget in rng.permutation(budgets).tolist():
                headers = {"Latency-Budget": f"{budget:.4f}"}
                sample = await connections.ask(0, http_request("/classify", photo, headers))
                await asyncio.sleep(_PAUSE * budget / 1000)
                if place >= 2:  # until then sessions are built
                    samples.append((budget, sample))
        connections.close()
        await asyncio.sleep(0)  # until they are
        return samples

    with serving(command, "/readyz", None) as server:
        said = httpx.get(f"http://127.0.0.1:{server.port}/budgets").json()["latency_ms"]
        low, high = 1.05 * MARGIN * said["min"], 2 * MARGIN * said["largest_subnet"]
        budgets = np.linspace(low, high, HELD).tolist()
        samples = asyncio.run(ask(server.port, budgets))
    statuses = np.array([sample.status for _, sample in samples])
    in_time = statuses == 200
    by_client = np.array([sample.latency_ms <= budget for budget, sample in samples]) & in_time
    flops = np.array([sample.served_flops for _, sample in samples])[in_time]
    return {
        "requests": len(samples),
        "budgets_ms": [low, high],
        "in_time": float(in_time.mean()),
        "late": float((statuses == 504).mean()),
        "refused": float((statuses == 429).mean()),
        "by_client": float(by_client.mean()),
        "mean_flops": float(flops.mean() / bundle.max_flops) if len(flops) else 0.0,
    }


def some_photos(data: Path, count: int, folder: Path) -> Path:
    """Training images as files, evenly over the set."""
    rows = read_source(str(data)).train
    for place in np.linspace(0, len(rows) - 1, count).astype(int):
        (folder / f"{place:06}.jpg").write_bytes(rows.read(int(place)))
    return folder


def work(options: argparse.Namespace) -> dict[str, object]:
    """Whatever is not there yet of the steps; then everything in one document."""
    bundle, out = load_bundle(options.bundle), options.out
    out.mkdir(parents=True, exist_ok=True)
    settings = {"version": bundle.version, "data": str(options.data.absolute())}
    settings |= {name: getattr(options, name) for name in ("minutes", "rounds", "calibrate")}
    made = out / "settings.json"
    if not any(out.iterdir()):
        _write(made, settings)
    if made.exists():  # older ones do not say
        refuse_other(out, settings | json.loads(made.read_text()), settings)
    steps = [options.step] if options.step else STEPS
    told: dict[str, object] = {
        "benchmark": "measured_latency",
        "bundle": bundle.name,
        "version": bundle.version,
        "machine": machine(),
    }
    for threads in options.threads:
        table = out / f"table-{threads}.json"
        if "tables" in steps and not table.exists():
            measure_table(bundle, Setup(threads=threads), table, minutes=options.minutes)
        names = {"retargeted": out / f"bundle-{threads}"}
        if options.calibrate:
            names["tried"] = out / f"bundle-{threads}-tried"
        for name, folder in names.items():
            if "retarget" in steps and not folder.exists():
                _retarget(options, table, folder, tried=name == "tried")
        kept = out / f"accuracy-{threads}.json"
        if "accuracy" in steps and not kept.exists():
            flavours = {name: load_bundle(folder) for name, folder in names.items()}
            _write(kept, accuracies(bundle, flavours, options.data, options.threads[0]))
        held = out / f"hold-{threads}.json"
        if "hold" in steps and not held.exists():
            _write(held, hold(load_bundle(names["retargeted"]), threads, options.rounds))
        asked = out / f"http-{threads}.json"
        if "http" in steps and not asked.exists():
            photo = read_source(str(options.data)).train.read(0)
            both = {"without": options.bundle, "by the table": names["retargeted"]}
            found = {
                name: over_http(folder, photo, threads, options.rounds)
                for name, folder in both.items()
            }
            _write(asked, found)
        told[f"threads {threads}"] = {
            "prediction": {k: v for k, v in read_table(table).prediction.items() if k != "rows"},
            **{
                file.name.partition("-")[0]: json.loads(file.read_text())
                for file in (kept, held, asked)
                if file.exists()
            },
        }
    return told


def _retarget(options: argparse.Namespace, table: Path, folder: Path, *, tried: bool) -> None:
    read = read_table(table)
    if not tried:
        retarget(options.bundle, read, folder)
        return
    scratch = Path(tempfile.mkdtemp())
    try:
        photos = some_photos(options.data, options.calibrate, scratch)
        retarget(options.bundle, read, folder, data=photos)
    finally:
        shutil.rmtree(scratch)


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def show(told: dict[str, object], threads: Sequence[int]) -> None:
    """For people."""
    for count in threads:
        part = told[f"threads {count}"]
        assert isinstance(part, dict)
        found = part["prediction"]
        print(
            f"{count} thread(s): {found['archs']} unseen subnets are predicted with a median error "
            f"of {100 * found['median_error']:.1f} % (worst {100 * found['worst_error']:.1f} %; a "
            f"line over FLOPs: median {100 * found['median_error_of_flops']:.1f} %)"
        )
        if "hold" in part:
            for name in ("table", "factor", "served"):
                one = part["hold"][name]
                budgets = part["hold"]["budgets"]
                print(
                    f"  {name}: {100 * one['kept']:.0f} % of {budgets} budgets kept, "
                    f"{100 * one['mean_use']:.1f} % used, at worst {100 * one['worst']:.1f} %"
                )
        for name, one in part.get("http", {}).items():
            print(
                f"  over HTTP, {name}: of {one['requests']} budgets of "
                f"{one['budgets_ms'][0]:.2f} to {one['budgets_ms'][1]:.2f} ms "
                f"{100 * one['in_time']:.2f} % in time, {100 * one['late']:.2f} % late, "
                f"{100 * one['refused']:.2f} % refused, "
                f"{100 * one['by_client']:.2f} % in time for the client; "
                f"{100 * one['mean_flops']:.1f} % of the largest subnet on average"
            )
        if "accuracy" not in part:
            continue
        names = list(part["accuracy"]["mean"])
        print(
            "  budget ms  by FLOPs: MFLOPs  right % over %" + "".join(f"  {n:>28}" for n in names)
        )
        for row in part["accuracy"]["rows"]:
            line = f"  {row['budget_ms']:9.3f} {row['flops']['flops'] / 1e6:17.2f} "
            line += f"{100 * row['flops']['accuracy']:8.2f} {100 * row['flops']['over']:+6.1f}"
            for name in names:
                one = row[name]
                line += f"  {one['flops'] / 1e6:9.2f} {100 * one['accuracy']:7.2f} "
                line += f"{100 * one['gain']:+5.2f}±{100 * one['gain_95']:4.2f}"
            print(line)
        for name, one in part["accuracy"]["mean"].items():
            print(f"  {name}: {100 * one['gain']:+.2f} ± {100 * one['gain_95']:.2f} on average")


def plot(path: Path, told: dict[str, object], threads: Sequence[int]) -> None:
    """Wrong answers over milliseconds, a panel for each number of threads."""
    panels = []
    for count in threads:
        part = told[f"threads {count}"]
        assert isinstance(part, dict)
        if "accuracy" not in part:
            continue
        rows = part["accuracy"]["rows"]
        series = {
            {
                "flops": "without the table",
                "retargeted": "by the table",
                "tried": "tried on images",
            }[name]: [(row["budget_ms"], 100 * (1 - row[name]["accuracy"])) for row in rows]
            for name in ("retargeted", "flops", "tried")
            if name in rows[0]
        }
        panels.append(Panel(f"{count} thread(s)", "ms by the table", "wrong, %", series))
    if not panels:
        raise ValueError("the step accuracy was not done, so there is nothing to plot")
    plot_panels(path, f"{told['bundle']}: what the same milliseconds buy", [panels])


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.measured_latency", __doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="labelled images, with a test set")
    parser.add_argument("--out", type=Path, required=True, help="a folder for what is found")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--minutes", type=positive, default=2.0, help="measure for about so long for each table"
    )
    parser.add_argument("--rounds", type=int, default=60, help="rounds in which answers are timed")
    parser.add_argument(
        "--calibrate",
        type=int,
        default=0,
        metavar="N",
        help="measure BatchNorm on so many images; 0 does not",
    )
    parser.add_argument("--step", choices=STEPS, help="do this step alone")
    parser.add_argument("--plot", type=plot_file, help="write a plot to this file")
    options = parser.parse_args(arguments)
    told = work(options)
    if not options.json:
        show(told, options.threads)
    print(json.dumps(told))
    if options.plot is not None:
        plot(options.plot, told, options.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
