"""Samplers of the placement search at equal cost, and shared weights against a training per trial.

python benchmarks/samplers.py compare models/digits-vgg9.onnx
python benchmarks/samplers.py compare models/lenet5-mnist.onnx --data mnist.npz NORMALISATION
python benchmarks/samplers.py trainings models/digits-lenet5.onnx
python benchmarks/samplers.py table                                # into docs/search.md

What was trained and measured stays in ``--run``, so that a killed command goes on; a placement is measured on
a model once, whichever sampler and seed proposes it. Results go into benchmarks/samplers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pages import filled

from cnpass import data as datasets
from cnpass.compensation.overhead import weight_keys
from cnpass.document import Document
from cnpass.evaluation import VALIDATION_CHIPS_START
from cnpass.optimization import stages
from cnpass.optimization.effort import Effort
from cnpass.optimization.job import CHECK_CHIPS, Job
from cnpass.optimization.setting import Setting
from cnpass.placement.candidates import find_candidates
from cnpass.placement.measuring import until_worse
from cnpass.placement.search import Found, search
from cnpass.placement.sharing import insert_all
from cnpass.placement.space import Placement
from cnpass.progress import Progress
from cnpass.recipe import Sampler, SearchRecipe
from cnpass.runfolder import RunFolder
from cnpass.runtime.devices import make_device
from cnpass.training.retrain import train
from cnpass.training.schedule import seed_of

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "benchmarks" / "samplers.json"
PAGE = ROOT / "docs" / "search.md"
START = "<!-- made by benchmarks/samplers.py -->"
SIGMA = 0.5
MARKS = (10, 20, 40)
"""Trials after which the best figure is shown."""
BUDGET = 250
"""Measured chips after which it is shown, too: what is given up early costs less than a trial."""
FRESH = range(VALIDATION_CHIPS_START + CHECK_CHIPS, VALIDATION_CHIPS_START + CHECK_CHIPS + 30)
"""Chips that judge what the search's own chips have chosen."""
SHOWN = (4, 8, 12, 16, 24, 32)
"""Trainings after which a search with one per trial is shown, beside the last."""
CHECKS = 4
"""Looks at the validation chips during a training, beside the first."""
STEP = 3
"""Cost of a training sample in forward passes: forward, and backward twice that."""


class Bench(NamedTuple):
    """A model ready to be searched.

    Attributes:
        job: What the stages work on.
        effort: How long they train.
        folder: Where state is kept.
        nodes: Labels of the candidates.
    """

    job: Job
    effort: Effort
    folder: RunFolder
    nodes: Sequence[str]


@contextmanager
def bench(model: Path, flags: Mapping[str, Any], run: Path) -> Iterator[Bench]:
    """Open a model with its data as ``cnpass search`` would."""
    recipe = SearchRecipe.build(None, {"sigma": SIGMA, "workers": 1, **flags})
    document = Document.load(model)
    dataset = datasets.prepare(document.proto, document.path, recipe)
    identity = {"model": document.sha256, "data": dataset.sha256}
    with RunFolder(run / model.stem, "samplers", identity) as folder:
        setting = Setting(
            document,
            dataset,
            make_device("lognormal", sigma=SIGMA),
            recipe=recipe,
            folder=folder,
            output=folder.path / "output.onnx",
            progress=Progress(),
            warnings=(),
            started=0.0,
        )
        job = setting.job("top1")
        effort = setting.effort(job)
        nodes = find_candidates(job.source, job.forward(job.source), job.search_validator).nodes
        yield Bench(job, effort, folder, nodes)


def compare(at: Bench, seeds: int) -> Iterator[dict[str, Any]]:
    """Search with every sampler and several seeds; give the results after each seed."""
    shared = stages.share(at.job, at.job.source, at.nodes, at.effort)
    if shared is None:
        raise SystemExit("no compensation fits the overhead allowed")
    journal = at.folder.journal("figures")
    known = {_key(line["placement"]): tuple(line["figures"]) for line in journal.lines}
    trials = MARKS[-1]
    runs: dict[str, list[dict[str, Any]]] = {sampler: [] for sampler in get_args(Sampler)}
    with stages.measuring(at.job, shared, trials) as measurer:

        def whole(placement: Placement) -> tuple[float, ...]:
            key = _key([asdict(choice) for choice in placement])
            if key not in known:
                known[key] = tuple(next(iter(measurer([placement], ()))))
                journal.append({"placement": [asdict(c) for c in placement], "figures": known[key]})
            return known[key]

        for seed in range(seeds):
            for sampler in get_args(Sampler):
                wrong: list[Placement] = []

                def measure(
                    some: Sequence[Placement], best: Sequence[float], wrong: list[Placement] = wrong
                ) -> Iterator[list[float]]:
                    for placement in some:
                        figures = whole(placement)
                        taken = until_worse(iter(figures), best)
                        if len(taken) < len(figures) and statistics.fmean(figures) > statistics.fmean(best):
                            wrong.append(placement)
                        yield taken

                found = search(shared.space, measure, trials=trials, seed=seed, sampler=sampler)
                runs[sampler].append(_course(found) | {"given up wrongly": len(wrong)})
                print(sampler, seed, runs[sampler][-1], flush=True)
            yield {
                "nothing": found.nothing,
                "best": max(statistics.fmean(figures) for figures in known.values()),
                "measured": len(known),
                "nodes": len(at.nodes),
                "chips": CHECK_CHIPS,
                "samples": len(at.job.search_validator.samples),
                "overhead": at.job.max_overhead,
                "runs": runs,
            }


def _course(found: Found) -> dict[str, Any]:
    """Return the best figure after each mark and within the budget, and the chips measured by each mark."""
    figures = list(found.figures.values())
    spent = list(accumulate(map(len, figures)))

    def best(count: int) -> float:
        return max(statistics.fmean(f) for f in figures[:count] if len(f) == len(figures[0]))

    return {
        "best": [best(mark) for mark in MARKS],
        "chips": [spent[:mark][-1] for mark in MARKS],
        "within budget": best(sum(chips <= BUDGET for chips in spent)),
        "given up": sum(len(f) < len(figures[0]) for f in figures),
    }


def _key(placement: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(placement, sort_keys=True)


def trainings(at: Bench, seeds: int, trials: int) -> Iterator[dict[str, Any]]:
    """Search with shared weights, and with a training per trial, seed after seed; fresh chips judge both."""
    job, effort = at.job, at.effort
    journal = at.folder.journal("trainings")
    known = {(line["seed"], line["trial"]): line for line in journal.lines}
    checks = (CHECKS + 1) * CHECK_CHIPS * len(job.problem.validator.samples)
    training = STEP * effort.compensation * len(job.train) + checks
    evaluation = len(job.search_validator.samples)

    shared = stages.share(job, job.source, at.nodes, effort)
    if shared is None:
        raise SystemExit("no compensation fits the overhead allowed")
    sharing = STEP * effort.shared * len(job.train)
    ways: dict[str, list[dict[str, Any]]] = {"shared": [], "per trial": []}
    for seed in range(seeds):
        with stages.measuring(job, shared, effort.trials) as measurer:
            found = search(shared.space, measurer, trials=effort.trials, seed=seed)
        line = known.get((seed, -1)) or _trained(
            at, found.compensated, seed, shared.supernet.extract(shared.weights, found.compensated)
        )
        if (seed, -1) not in known:
            journal.append({"seed": seed, "trial": -1, **line})
        chips = sum(map(len, found.figures.values()))
        cost = sharing + chips * evaluation + training
        ways["shared"].append({"fresh": [line["fresh"]], "cost": [cost]})
        print("shared", seed, ways["shared"][-1], flush=True)

        lines: list[dict[str, Any]] = []

        def alone(some: Sequence[Placement], best: Sequence[float], seed=seed, lines=lines) -> Iterator[Any]:
            del best  # the paper's way gives nothing up
            for placement in some:
                number = len(lines)
                line = known.get((seed, number))
                if line is None:
                    document, _ = insert_all(job.source, placement, seed=job.recipe.seed)
                    line = _trained(at, placement, seed, document)
                    journal.append({"seed": seed, "trial": number, **line})
                lines.append(line)
                yield line["figures"]

        search(shared.space, alone, trials=trials, seed=seed)
        fresh, costs, spent = [], [], 0
        for number, line in enumerate(lines):
            spent += evaluation * CHECK_CHIPS + (training if line["placement"] else 0)
            best = max(lines[: number + 1], key=lambda one: statistics.fmean(one["figures"]))
            fresh.append(best["fresh"])
            costs.append(spent)
        ways["per trial"].append({"fresh": fresh, "cost": costs})
        print("per trial", seed, ways["per trial"][-1], flush=True)
        yield {"trials": {"shared": effort.trials, "per trial": trials}, "ways": ways}


def _trained(at: Bench, placement: Placement, seed: int, document: Document) -> dict[str, Any]:
    """Train the compensation of a document alone, and measure it on the search's chips and on fresh ones."""
    job = at.job
    forward = job.forward(document)
    if placement:
        options = replace(
            job.options(at.effort.compensation), levels=(1.0,), checks=CHECKS, seed=seed_of(seed, "alone")
        )
        train(forward, job.problem, options, trained=weight_keys(document))
    validator = job.search_validator
    return {
        "placement": [asdict(choice) for choice in placement],
        "figures": validator.values(forward),
        "fresh": replace(validator, chips=FRESH).score(forward),
    }


def _keep(part: str, model: str, result: Mapping[str, Any]) -> None:
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    store.setdefault(part, {})[model] = result
    STORE.write_text(json.dumps(store, indent=1, sort_keys=True) + "\n")


def table() -> str:
    """Render the store."""
    store = json.loads(STORE.read_text())
    head = " | ".join(f"best after {mark}" for mark in MARKS)
    lines = [
        f"| model | sampler | seeds | {head} | within {BUDGET} chips | chips measured | given up | wrongly |",
        "|---|---|---|" + "---|" * (len(MARKS) + 4),
    ]
    for model, result in store.get("compare", {}).items():
        for name, runs in result["runs"].items():
            cells = [_spread([100 * run["best"][i] for run in runs]) for i in range(len(MARKS))]
            cells.append(_spread([100 * run["within budget"] for run in runs]))
            chips = statistics.fmean(run["chips"][-1] for run in runs)
            given_up, wrongly = (sum(run[key] for run in runs) for key in ("given up", "given up wrongly"))
            cells += [f"{chips:.0f}", str(given_up), str(wrongly)]
            lines.append(f"| `{model}` | {name} | {len(runs)} | {' | '.join(cells)} |")
    lines.append("")
    for model, result in store.get("compare", {}).items():
        lines.append(
            f"`{model}`: {100 * result['nothing']:.2f} without compensation; {result['nodes']} candidates, "
            f"{result['samples']} samples on {result['chips']} chips; the best of the {result['measured']} "
            f"placements that any search measured has {100 * result['best']:.2f}."
        )
    for model, result in store.get("trainings", {}).items():
        lines += ["", *_costs(model, result)]
    return "\n".join(lines)


def _costs(model: str, result: Mapping[str, Any]) -> Iterator[str]:
    shared, alone = result["ways"]["shared"], result["ways"]["per trial"]
    goal = statistics.fmean(run["fresh"][-1] for run in shared)
    unit = statistics.fmean(run["cost"][-1] for run in shared)
    yield f"| `{model}` | trials | figure on fresh chips | cost |"
    yield "|---|---|---|---|"
    spread = _spread([100 * run["fresh"][-1] for run in shared])
    yield f"| shared weights, the best trained on | {result['trials']['shared']} | {spread} | 1 |"
    reached = None
    for number in range(result["trials"]["per trial"]):
        # A placement that is proposed again is not trained again, so some searches end before.
        figures = [run["fresh"][: number + 1][-1] for run in alone]
        cost = statistics.fmean(run["cost"][: number + 1][-1] for run in alone) / unit
        if reached is None and number and statistics.fmean(figures) >= goal:  # the first compensates nothing
            reached = number + 1, cost
        if number + 1 in SHOWN or number + 1 == result["trials"]["per trial"]:
            spread = _spread([100 * figure for figure in figures])
            yield f"| a training per trial | {number + 1} | {spread} | {cost:.2f} |"
    yield ""
    what = f"On `{model}` a training per trial reaches the figure of shared weights"
    if reached is None:
        yield f"{what} in none of these trials, at {cost:.2f} times the cost."
    else:
        yield f"{what} after {reached[0]} trials, at {reached[1]:.2f} times the cost."


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {deviation:.2f}"


def render() -> str:
    """Return the page with the tables in their place."""
    return filled(PAGE, START, table())


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("compare", "trainings"):
        command = commands.add_parser(name)
        command.add_argument("model", type=Path)
        command.add_argument("--run", type=Path, default=Path("samplers.run"))
        command.add_argument("--seeds", type=int, default=5)
        for option in ("--data", "--scale", "--mean", "--std"):
            command.add_argument(option)
        if name == "trainings":
            command.add_argument("--trials", type=int, default=16)
    commands.add_parser("table")
    asked = parser.parse_args()
    if asked.command == "table":
        PAGE.write_text(render())
        return
    flags = {name: getattr(asked, name) for name in ("data", "scale", "mean", "std")}
    with bench(asked.model, flags, asked.run) as at:
        results = (
            compare(at, asked.seeds)
            if asked.command == "compare"
            else trainings(at, asked.seeds, asked.trials)
        )
        for result in results:
            _keep(asked.command, asked.model.stem, result)


if __name__ == "__main__":
    main()
