"""The README: its code runs as printed, its numbers are those of the recorded runs.

python tests/test_readme.py        # prints the tables to put into the README
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def mnist_table() -> str:
    """Lesson 02 on MNIST, from its results file."""
    file = ROOT / "lessons" / "results" / "02_train_a_cnn-mnist-full.json"
    numbers = json.loads(file.read_text())["numbers"]
    lines = ["| | training | test, last epoch | test, best epoch |", "|---|---|---|---|"]
    for run in numbers["runs"]:
        lines.append(f"| seed {run['seed']} | {accuracies(run)} |")
    lines += [f"| mean | {accuracies(numbers['mean'])} |", "| the slides | 99.5 % | | 99.1 % |"]
    return "\n".join(lines)


def accuracies(run: dict) -> str:
    keys = ("training", "test_last", "test_best")
    return " | ".join(f"{100 * run[key]:.2f} %" for key in keys)


def speed_table() -> str:
    """Ratios to PyTorch eager, from the file that the benchmark wrote."""
    tasks = json.loads((ROOT / "tests" / "benchmarks" / "speed.json").read_text())["tasks"]
    nets = list(dict.fromkeys(key.split(": ")[0] for key in tasks))
    names = list(dict.fromkeys(key.split(": ")[1] for key in tasks))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for net in nets:
        ratios = [f"{tasks[f'{net}: {name}']['ratio']:.2f}" for name in names]
        lines.append(f"| `{net}` | {' | '.join(ratios)} |")
    return "\n".join(lines)


def training_table() -> str:
    """Steps of adversarial training, from the same file: milliseconds and ratios."""
    found = json.loads((ROOT / "tests" / "benchmarks" / "speed.json").read_text())["defenses"]
    lines = ["| | | tinyadv, ms | PyTorch, ms | ratio |", "|---" * 5 + "|"]
    for key, numbers in found.items():
        net, task = key.split(": ")
        times = [f"{numbers[name]:.1f}" for name in ("tinyadv", "torch")]
        lines.append(f"| `{net}` | {task} | {' | '.join(times)} | {numbers['ratio']:.2f} |")
    return "\n".join(lines)


def found_table() -> str:
    """What the attacks of lesson 06 find on MNIST, from its results file."""
    file = ROOT / "lessons" / "results" / "06_the_inner_maximisation-mnist-full.json"
    numbers = json.loads(file.read_text())["numbers"]
    balls = {"Linf": "‖δ‖∞ ≤ 0.3", "L2": "‖δ‖₂ ≤ 1.5", "L1": "‖δ‖₁ ≤ 12"}
    lines = ["| | FGSM | PGD-40 | 3 starts |", "|---|---|---|---|"]
    for network in ("standard", "robust"):
        for ball, name in balls.items():
            found = numbers[f"accuracy_{ball}_{network}"]
            shares = [f"{100 * found[key]:.1f} %" for key in ("FGSM", "steps", "restarts")]
            lines.append(f"| {network}, {name} | {' | '.join(shares)} |")
    return "\n".join(lines)


# The ensemble, and the clean shares but for Madry's, as AutoAttack's authors list them; the others
# are the papers' own.
PUBLISHED = [
    "| Madry et al. (2018) | 98.8 % | 95.6 % | 93.2 % | 89.3 % | 88.5 % | | 10000 | |",
    "| Wong et al. (2020), fast | 98.5 % | | | | 82.9 % | | 10000 | |",
    "| Zhang et al. (2019), TRADES | 99.5 % | | | | 92.8 % | | 10000 | |",
    "| Gowal et al. (2018), interval bounds | 98.3 % | | | | 92.8 % | 92.0 % | 10000 | |",
    "| Zhang et al. (2020), CROWN-IBP | 98.4 % | | | | 94.0 % | 93.0 % | 10000 | |",
    "| Gowal et al. (2020), larger networks | 99.3 % | | | | 96.3 % | | 10000 | |",
]


def robust_table() -> str:
    """The networks of lesson 07 on MNIST, from its results file, beside published ones."""
    file = ROOT / "lessons" / "results" / "07_min_max_training-mnist-full.json"
    networks = json.loads(file.read_text())["numbers"]["networks"]
    columns = ["clean", "FGSM", "PGD-40", "PGD-100", "ensemble", "certified"]
    names = ["FGSM", "PGD-40", "PGD-100×20", "ensemble", "certified", "images", "training"]
    lines = [f"| | clean | {' | '.join(names)} |", "|---" * 9 + "|"]
    for name, row in networks.items():
        shares = [f"{100 * row[column]:.1f} %" for column in columns]
        lines.append(f"| {name} | {' | '.join(shares)} | {row['images']} | {minutes(row)} |")
    return "\n".join(lines + PUBLISHED)


def minutes(row: dict) -> str:
    seconds = row["cpu_seconds"]  # not known if the training was interrupted
    return "–" if seconds is None else f"{seconds / 60:.1f} min"


def attacks_table() -> str:
    """Seconds of the attacks, and their ratios to PyTorch, from the benchmark's file."""
    tasks = json.loads((ROOT / "tests" / "benchmarks" / "attacks.json").read_text())["tasks"]
    lines = ["| | tinyadv, s | PyTorch, s | in batches of 250, s | ratio |"]
    lines.append("|---" * 5 + "|")
    for task, found in tasks.items():
        times = [f"{found[key]:.2f}" for key in ("tinyadv", "torch", "torch, batches", "ratio")]
        lines.append(f"| {task} | {' | '.join(times)} |")
    return "\n".join(lines)


TABLES = [mnist_table, found_table, robust_table, speed_table, training_table, attacks_table]


def test_the_code_runs_as_printed():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2  # the second goes on where the first ends
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    clean, fgsm, pgd, robust = map(
        float, re.findall(r"(?:clean|FGSM|PGD|robust): +([\d.]+)", done.stdout)
    )
    assert clean > 0.9 > 0.5 > fgsm > pgd and robust > 0.5


@pytest.mark.parametrize("table", TABLES)
def test_a_table_holds_the_recorded_numbers(table):
    assert table() in README


def test_the_sentence_about_turned_digits():
    file = ROOT / "lessons" / "results" / "11_simple_transformations-mnist-full.json"
    networks = json.loads(file.read_text())["numbers"]["networks"]
    assert networks["standard"]["full grid"] == 0
    assert f"keeps {100 * networks['worst of 10']['full grid']:.1f} %" in README


def test_the_sentences_about_the_robust_networks():
    file = ROOT / "lessons" / "results" / "07_min_max_training-mnist-full.json"
    numbers = json.loads(file.read_text())["numbers"]
    row, seeds = numbers["networks"]["PGD, larger"], numbers["seeds"].values()
    kept = sorted(seed["ensemble"] for seed in seeds)
    assert len(kept) == 3
    text = " ".join(README.split())
    assert f"keeps {100 * kept[0]:.1f} to {100 * kept[-1]:.1f} %" in text
    assert f"trained in {row['seconds'] / 60:.1f} minutes on two cores" in text
    assert f"it took {numbers['networks']['fast']['seconds']:.0f} seconds" in text
    for name in ("PGD", "PGD, larger", "interval bounds"):
        first, second, third = (
            f"{100 * a['stand']:.1f}" for a in numbers["more_time"][name].values()
        )
        assert f"{first}, {second} and {third} %" in text
    plain, cut = (numbers["networks"][n] for n in ("interval bounds", "bounds, thresholds"))
    proved = f"prove {100 * cut['certified']:.1f} % instead of {100 * plain['certified']:.1f} %"
    assert f"{proved}, at {100 * cut['clean']:.1f} % clean" in text
    assert f"on two cores, keeps {100 * row['ensemble']:.1f} %" in text
    committee = numbers["networks"]["bounds, committee"]
    assert committee["images"] == row["images"] == 10_000
    assert f"it keeps {100 * committee['ensemble']:.1f} % of all 10,000 test images" in text
    assert f"for {100 * committee['certified']:.1f} % bounds prove" in text
    assert f"each took {committee['cpu_seconds'] / 60 / 2:.0f} minutes of one core" in text


def test_the_sentence_about_a_gpu():
    found = json.loads((ROOT / "tests" / "benchmarks" / "speed-h200.json").read_text())
    slides, fast, madry = (
        found["tasks"][f"{net}: training step"]["ratio"]
        for net in ("slides_cnn", "fast_cnn", "madry_cnn")
    )
    text = " ".join(README.split())
    assert f"on that {found['device'].split()[-1]}, a training step took" in text
    assert f"{slides:.1f} times as long on `slides_cnn`, {fast:.1f} times on `fast_cnn`" in text
    assert f"{madry:.0f} times on `madry_cnn`" in text


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_scripts_that_it_names_exist():
    for script in re.findall(r"python ((?:lessons|tests)/\S+\.py)", README):
        assert (ROOT / script).is_file()


if __name__ == "__main__":
    print(*(table() for table in TABLES), sep="\n\n")
