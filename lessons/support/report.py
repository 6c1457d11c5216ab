"""The numbers in the prose: every table and every number that was recorded, held to its file.

    python -m lessons.support.report            rewrites what differs
    python -m lessons.support.report --check    says what differs, and fails

In a Markdown file, or in the Markdown cells of a lesson, a table stands between two comments:

    <!-- table: robust networks -->
    <!-- end of table -->

and a number is followed by one that says where it was recorded: a file in lessons/results without
its suffix, then the keys, one after the other:

    99.1 %<!-- = training-mnist / mean / test_last -->

A share is written in %, seconds in s or min; a number keeps as many digits as it has in the text.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS, BENCHMARKS = ROOT / "lessons" / "results", ROOT / "tests" / "benchmarks"
UNITS = {"%": 100, "s": 1, "min": 1 / 60, "": 1}

NUMBER = re.compile(r"([\d,]+(?:\.\d+)?)((?: (?:%|s|min))?)(\s*<!-- = (.+?) -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every file that may quote a recorded number."""
    lessons = ROOT / "lessons"
    return [ROOT / "README.md", *sorted(lessons.glob("book/*.md")), *sorted(lessons.glob("*.py"))]


@cache
def load(name: str) -> dict:
    """The results of a lesson, or of a benchmark, by the name of its file."""
    for folder in (RESULTS, BENCHMARKS):
        path = folder / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
    raise KeyError(f"no file {name}.json in lessons/results or tests/benchmarks")


def look_up(reference: str) -> float:
    """The number at ``file / key / key``: among a lesson's numbers, else in the file itself."""
    name, *keys = (key.strip() for key in " ".join(reference.split()).split(" / "))
    found = load(name)
    if keys[0] not in found:
        found = found["numbers"]
    for key in keys:
        found = found[int(key) if isinstance(found, list) else key]
    return found


def written(value: float, like: str, unit: str) -> str:
    """A number with as many digits as ``like``: "0.9913" as "99.1" in %."""
    digits = len(like.partition(".")[2])
    comma = "," if "," in like else ""
    return f"{value * UNITS[unit.strip()]:{comma}.{digits}f}"


def renewed(text: str) -> str:
    """The text with the numbers and tables that are recorded now."""

    def number(match):
        like, unit, comment, reference = match.groups()
        return written(look_up(reference), like, unit) + unit + comment

    def table(match):
        begin, name, end = match.groups()
        return f"{begin}{TABLES[name]()}\n{end}"

    return TABLE.sub(table, NUMBER.sub(number, text))


# ------------------------------------------------------------------------------------- tables


def rows(header: list[str], body: list[list]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *body]
    text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    return re.sub(r"\|  (?=\|)", "| ", text)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def mnist_training() -> str:
    """The slides' network on MNIST, beside what the slides report."""
    numbers = load("training-mnist")["numbers"]
    keys = ("training", "test_last", "test_best")
    runs = {f"seed {run['seed']}": run for run in numbers["runs"]} | {"mean": numbers["mean"]}
    body = [[name, *(percent(run[key], 2) for key in keys)] for name, run in runs.items()]
    header = ["", "training accuracy", "test, last epoch", "test, best epoch"]
    return rows(header, [*body, ["the slides", "99.5 %", "", "99.1 %"]])


def robust_accuracy_of_pgd() -> str:
    """Robust accuracy under PGD in three norms."""
    numbers = load("inner_maximisation-mnist")["numbers"]
    balls = {"Linf": "‖δ‖∞ ≤ 0.3", "L2": "‖δ‖₂ ≤ 1.5", "L1": "‖δ‖₁ ≤ 12"}
    body = []
    for network in ("standard", "robust"):
        for ball, name in balls.items():
            found = numbers[f"accuracy_{ball}_{network}"]
            shares = (percent(found[key]) for key in ("one step", "PGD", "PGD, 3 starts"))
            body.append([f"{network}, {name}", *shares])
    return rows(["", "one step", "PGD-40", "PGD-40, 3 starts"], body)


# AutoAttack's figures, and clean accuracies except Madry's, as the authors of AutoAttack list
# them; the other numbers are the papers' own.
PUBLISHED = [
    ["Madry et al. (2018)", "98.8 %", "95.6 %", "93.2 %", "89.3 %", "88.5 %", ""],
    ["Wong et al. (2020), fast", "98.5 %", "", "", "", "82.9 %", ""],
    ["Zhang et al. (2019), TRADES", "99.5 %", "", "", "", "92.8 %", ""],
    ["Gowal et al. (2018), interval bounds", "98.3 %", "", "", "", "92.8 %", "92.0 %"],
    ["Zhang et al. (2020), CROWN-IBP", "98.4 %", "", "", "", "94.0 %", "93.0 %"],
    ["Gowal et al. (2020), larger networks", "99.3 %", "", "", "", "96.3 %", ""],
]
NETWORKS = {
    "standard": "standard training",
    "gradient penalty": "gradient penalty",
    "fast": "fast (one step)",
    "PGD": "PGD",
    "TRADES": "TRADES",
    "interval bounds": "interval bounds",
    "PGD, larger": "PGD, larger network",
    "interval bounds, thresholds": "interval bounds, thresholds †",
    "interval bounds, thresholds, ensemble": "ensemble of two such networks †",
}


def robust_networks() -> str:
    """The networks of the min-max experiment, beside published ones."""
    networks = load("min_max_training-mnist")["numbers"]["networks"]
    columns = ["clean", "FGSM", "PGD-40", "PGD-100", "AutoAttack", "certified"]
    body = []
    for name, label in NETWORKS.items():
        row = networks[name]
        minutes = f"{row['cpu_seconds'] / 60:.1f} min"
        body.append([label, *(percent(row[c]) for c in columns), f"{row['images']:,}", minutes])
    body += [[*row, "10,000", ""] for row in PUBLISHED]
    names = ["FGSM", "PGD-40", "PGD-100×20", "AutoAttack", "certified", "images", "training"]
    return rows(["", "clean", *names], body)


def behind_thresholds() -> str:
    """Bounds on the robust accuracy of the networks behind thresholds."""
    numbers, body = load("thresholds-mnist")["numbers"], []
    for name in ("first member", "ensemble"):
        row = numbers[name]
        shares = (percent(row[key], 2) for key in ("clean", "certified", "adapted"))
        body.append([name, *shares, ", ".join(row["alarms"])])
    return rows(["", "clean", "certified", "under the adapted attack", "alarms"], body)


def attacks_and_bounds() -> str:
    """What survives PGD, what is proved, and what bounds certify."""
    body = []
    for name, row in load("bounds-mnist")["numbers"]["networks"].items():
        least, most = row["proved"], row["proved"] + row["open"]
        exact = percent(least, 0) if least == most else f"{100 * least:.0f}–{percent(most, 0)}"
        shares = (percent(row[key], 0) for key in ("α-CROWN", "CROWN", "intervals"))
        network, _, epsilon = name.rpartition(", ε = ")
        seconds = f"{row['seconds']:.1f} s"
        body.append([network, epsilon, percent(row["PGD"], 0), exact, *shares, seconds])
    columns = ["ε", "PGD", "exact", "α-CROWN", "CROWN", "intervals", "exact takes"]
    return rows(["", *columns], body)


def randomised_smoothing() -> str:
    """Certified accuracy at several L2 radii."""
    found, body = load("bounds-mnist")["numbers"]["smoothed"], []
    for sigma, row in found.items():
        shares = [percent(share, 0) for share in row["certified"].values()]
        body.append([sigma, *shares, percent(row["abstains"], 0), f"{row['largest']:.2f}"])
    radii = [f"r = {r}" for r in next(iter(found.values()))["certified"]]
    return rows(["σ", *radii, "abstains", "largest r"], body)


def certified_training() -> str:
    """Trainings for certificates, and what they reach."""
    body = []
    for name, row in load("certified_training-mnist")["numbers"]["networks"].items():
        shares = (percent(row[key]) for key in ("clean", "PGD", "certified"))
        body.append([name, row["epochs"], f"{row['seconds'] / 60:.1f} min", *shares])
    return rows(["", "epochs", "processor time", "clean", "PGD-20", "certified"], body)


def speed() -> str:
    """Ratios to PyTorch eager."""
    tasks = load("speed")["tasks"]
    nets = dict.fromkeys(key.split(": ")[0] for key in tasks)
    names = dict.fromkeys(key.split(": ")[1] for key in tasks)
    body = [[f"`{n}`", *(f"{tasks[f'{n}: {t}']['ratio']:.2f}" for t in names)] for n in nets]
    return rows(["", *names], body)


def speed_of_training() -> str:
    """Steps of adversarial training: milliseconds and ratios."""
    body = []
    for key, found in load("speed")["defenses"].items():
        net, task = key.split(": ")
        times = (f"{found[name]:.1f}" for name in ("tinyadv", "torch"))
        body.append([f"`{net}`", task, *times, f"{found['ratio']:.2f}"])
    return rows(["", "", "tinyadv, ms", "PyTorch, ms", "ratio"], body)


def speed_of_attacks() -> str:
    """Seconds of the attacks, and their ratios to PyTorch."""
    keys = ("tinyadv", "torch", "torch, batches", "ratio")
    tasks = load("attacks")["tasks"].items()
    body = [[task, *(f"{found[key]:.2f}" for key in keys)] for task, found in tasks]
    return rows(["", "tinyadv, s", "PyTorch, s", "in batches of 250, s", "ratio"], body)


TABLES = {
    "training on MNIST": mnist_training,
    "robust accuracy under PGD": robust_accuracy_of_pgd,
    "robust networks": robust_networks,
    "networks behind thresholds": behind_thresholds,
    "attacks and bounds": attacks_and_bounds,
    "randomised smoothing": randomised_smoothing,
    "certified training": certified_training,
    "speed": speed,
    "speed of training": speed_of_training,
    "speed of attacks": speed_of_attacks,
}


def differences(path: Path) -> list[str]:
    """One line for each number or table of a file that is not what was recorded."""
    text = path.read_text(encoding="utf-8")
    found = []
    for pattern in (NUMBER, TABLE):
        for match in pattern.finditer(text):
            try:
                now = renewed(match.group())
            except (KeyError, IndexError) as error:
                now = f"a reference that leads nowhere: {error}"
            if now != match.group():
                line = text[: match.start()].count("\n") + 1
                found.append(f"{path.relative_to(ROOT)}:{line}: {match.group()!r:.90}: {now:.90}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lessons.support.report",
        description="Hold the numbers in README, book and lessons to the recorded results.",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if one differs")
    if parser.parse_args(arguments).check:
        found = [line for path in pages() for line in differences(path)]
        print(*found, sep="\n", file=sys.stderr)
        return 1 if found else 0
    for path in pages():
        text = path.read_text(encoding="utf-8")
        new = renewed(text)
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"rewritten: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
