# %% [markdown]
"""
# 09 Capacity: how large must a network be to be robust?

**Question.** To be right on an image is one thing, to be right on all of a ball around it another.
Does the second need a larger network?

**Equation.** The same two objectives as in lesson 07, for networks f of growing width:

    min over θ of E[L(f(x), y)]      and      min over θ of E[max over ‖δ‖∞ ≤ ε of L(f(x + δ), y)].

A boundary that keeps ε away from all images bends more than one that only has to part them. A
network that is too small for it cannot bring the second objective down, however it is trained.

**Paper.** Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks",
section 4 and figure 4: 2 and 4 filters and 64 hidden units, then doubled four times.

**Run.** `python lessons/09_capacity.py`: one to two minutes on two cores, with the embedded
printed digits and three widths. `python lessons/09_capacity.py --data mnist --full`: five widths
on handwritten digits, about half an hour. Every network is kept as soon as it is trained, so a run
that was interrupted goes on where it stopped.

**What to look for.** Trained on images, the smallest network does nearly as well as the largest:
97.8 and 98.8 % of the printed digits, and 0.0 % under PGD at any width. Trained on PGD's examples,
width pays, the first doubling more than the second: 44, 71 and 74 % under PGD, at a loss of 1.50,
0.99 and 0.76. Trained on FGSM's examples, a network learns FGSM: 29, 62 and 74 % under FGSM, 10 %
or less under PGD, so this was no robustness. And if the smallest network meets the whole ε at once,
its loss stays at ln 10, that of the same probabilities for every image. They are nearly the same:
it reads 40 % of the clean images then, and 4 % of PGD's examples.

**What was shortened.** Printed digits, 6000 of them, three widths and 5 epochs; with `--full`
20,000 training images and 5 epochs, where the paper takes 60,000 and goes through them often. ε
grows from 0 in the first of the epochs, which the paper does not do. One seed for each network: a
difference of a few points between two widths may be chance.
"""

# %% [markdown]
# ## Names and settings
#
#     x, y    (N, 1, 28, 28), (N,)   images with values 0 to 1, and their labels
#     x_adv   (N, 1, 28, 28)         x + δ, ‖δ‖∞ ≤ ε
#     w                              the width: how many times as wide as the smallest network, ×w

# %%
import math

import common
import matplotlib.pyplot as plt
import numpy as np

from tinyadv import attacks, evaluate, losses, models, to_numpy
from tinyadv.balls import Linf
from tinyadv.defenses import MinMax, ramp
from tinyadv.layers import Conv2d, Dense, Flatten, MaxPool2d, ReLU, Sequential

NAME = "09_capacity"
args = common.arguments(__doc__)
xp = args.xp  # numpy or cupy

WIDTHS = (1, 2) if args.quick else (1, 2, 4, 8, 16) if args.full else (1, 2, 4)
IMAGES = 2000 if args.quick else 20_000 if args.full else 6000  # that are trained on
EPOCHS = 3 if args.quick else 5  # passes over them
STEPS = 3 if args.quick else 7 if args.full else 5  # of PGD in training
ONE_STEP = {"random_start": False}  # FGSM in training: from x itself, as in the paper
WARM_UP = 1.0  # epochs in which ε grows from 0
LR = [(0, 0.0005), (0.4 * EPOCHS, 0.005), (EPOCHS, 0.0001)]  # Adam's learning rate, over epochs
SHOWN = 200 if args.quick else 1000 if args.full else 400  # test images that are attacked
TEST_STEPS = 10 if args.quick else 40 if args.full else 20  # of PGD, on them

data = common.load_data(args, IMAGES, 500 if args.quick else None)
EPSILON = common.EPSILON[data.name] / (2 if args.quick else 1)  # pixel values 0–1
BALL = Linf(EPSILON)
x, y = common.test_images(args, data, SHOWN)
x_train, y_train = xp.asarray(data.x_train[:SHOWN]), xp.asarray(data.y_train[:SHOWN])
numbers = {"epsilon": EPSILON, "widths": WIDTHS}  # what is recorded
print(f"{data.name}: {len(data.x_train)} training images, ε = {EPSILON}, widths {WIDTHS}")

# %% [markdown]
# ## The networks
#
# Two convolutions with pooling and two dense layers. ×1 has 2 and 4 filters and 64 hidden units;
# ×w has w times as many of each, so about w² times as many weights. ×16 is the network that the
# paper uses everywhere else.


# %%
def network(w, rng=0):
    """The paper's MNIST network, ``w`` times as wide as the smallest: (N, 1, 28, 28) -> (N, 10)."""
    rng = np.random.default_rng(rng)
    return Sequential(
        Conv2d(1, 2 * w, 5, padding=2, rng=rng),  # (N, 1, 28, 28) -> (N, 2w, 28, 28)
        ReLU(),
        MaxPool2d(2),  # -> (N, 2w, 14, 14)
        Conv2d(2 * w, 4 * w, 5, padding=2, rng=rng),  # -> (N, 4w, 14, 14)
        ReLU(),
        MaxPool2d(2),  # -> (N, 4w, 7, 7)
        Flatten(),  # -> (N, 196w)
        Dense(196 * w, 64 * w, rng=rng),
        ReLU(),
        Dense(64 * w, 10, rng=rng),
    )


def count(model):
    return sum(p.size for p in model.parameters())


common.table([[f"×{w}", f"{count(network(w)):,}"] for w in (1, 2, 4, 8, 16)], ["width", "weights"])
assert count(network(16)) == count(models.madry_cnn()) == 3_274_634

# %% [markdown]
# ## Three ways of training them
#
# What differs is the inner maximisation alone: none, one step of FGSM from the image itself, or
# PGD from a random start (`MinMax`, lesson 07). Optimiser, schedule, shuffling and first weights
# are the same.


# %%
class OneStep:
    """FGSM as the inner maximisation."""

    def __init__(self):
        self.share = 1.0

    def at(self, epoch):  # `fit` calls it before each step
        self.share = ramp(epoch, 0, WARM_UP)

    def __call__(self, model, x, y):
        return attacks.fgsm(model, x, y, ball=Linf(self.share * EPSILON), **ONE_STEP)


TRAININGS = {
    "natural": lambda warm_up: None,
    "FGSM": lambda warm_up: OneStep(),
    "PGD": lambda warm_up: MinMax(BALL, steps=STEPS, warm_up=warm_up, rng=args.seed),
}


def trained(w, training, warm_up=WARM_UP):
    """The network ×w after one of the trainings, or as it was kept after an earlier one."""
    key = {
        "network": f"madry_cnn, width {w} of 16",
        "training": training,
        "epsilon": EPSILON,
        "steps": STEPS,
        "warm_up": warm_up,
    }
    if training == "FGSM":
        key |= ONE_STEP
    return common.fitted(
        args, data, key, lambda: network(w, args.seed).to(args.backend), EPOCHS, LR,
        perturb=TRAININGS[training](warm_up),
    )  # fmt: skip


networks = {(training, w): trained(w, training) for training in TRAININGS for w in WIDTHS}

# %% [markdown]
# ## Three ways of testing them
#
# Each network is tested on the test images, and on examples that FGSM and PGD make against it. Its
# *training loss* is the mean loss on training images of the kind that it was trained on: on images,
# or on examples that the same attack makes for the test, against the network as it is at the end.


# %%
def by_fgsm(model, x, y):
    return attacks.fgsm(model, x, y, ball=BALL)


def by_pgd(model, x, y, steps=TEST_STEPS):
    return attacks.pgd(model, x, y, ball=BALL, steps=steps, rng=args.seed)


TESTS = {"natural": lambda model, x, y: x, "FGSM": by_fgsm, "PGD": by_pgd}


def mean_loss(model, x, y, attack):
    each = [
        to_numpy(losses.cross_entropy(model(attack(model, x[i : i + 200], y[i : i + 200])),
                                      y[i : i + 200], reduction="none"))
        for i in range(0, len(x), 200)
    ]  # fmt: skip
    return float(np.concatenate(each).mean())


share = {}  # (training, test) -> accuracy for each width
loss = {}  # training -> loss for each width
for training in TRAININGS:
    row = [networks[training, w] for w in WIDTHS]
    for test, attack in TESTS.items():
        share[training, test] = [evaluate.accuracy(model, x, y, attack) for model in row]
    loss[training] = [mean_loss(model, x_train, y_train, TESTS[training]) for model in row]
numbers["accuracy"] = {f"{a} training, {b} examples": v for (a, b), v in share.items()}
numbers["training_loss"] = loss

rows = []
for training in TRAININGS:
    for i, w in enumerate(WIDTHS):
        cells = [f"{100 * share[training, test][i]:.1f} %" for test in TESTS]
        rows.append([f"{training} training, ×{w}", f"{loss[training][i]:.3f}", *cells])
common.table(rows, ["", "training loss", *(f"{test} examples" for test in TESTS)])

# %% [markdown]
# ## Does width alone help?
#
# The paper finds that a wider network, trained on images alone, withstands FGSM a little better.
# Here is that row again, as the change from the smallest to the largest, and the standard error of
# a difference of two accuracies measured on so many images.

# %%
fgsm = share["natural", "FGSM"]
change = fgsm[-1] - fgsm[0]
error = math.sqrt(sum(a * (1 - a) for a in (fgsm[0], fgsm[-1])) / len(x))
outcome = "more" if change > 2 * error else "less" if change < -2 * error else "no clear difference"
numbers["width_alone"] = {"change": change, "standard_error": error, "outcome": outcome}
print(f"FGSM, after natural training: {100 * fgsm[0]:.1f} % at ×{WIDTHS[0]}", end="")
print(f", {100 * fgsm[-1]:.1f} % at ×{WIDTHS[-1]}, ± {100 * error:.1f}: {outcome}")
most = max(share["natural", "PGD"])
print(f"and under PGD {100 * most:.1f} % at most: width alone does not make a network robust")

# %% [markdown]
# ## The smallest network, without a growing ε
#
# In the paper the smallest network learns nothing at all under PGD: it gives the same answer for
# every image, for which ln 10 = 2.303 is the lowest loss. Its ε was whole from the first step. Here
# is that training beside ours.

# %%
abrupt = trained(WIDTHS[0], "PGD", warm_up=0.0)
numbers["abrupt"] = {
    "loss": mean_loss(abrupt, x_train, y_train, by_pgd),
    "accuracy": evaluate.accuracy(abrupt, x, y),
    "accuracy_pgd": evaluate.accuracy(abrupt, x, y, by_pgd),
    "answers": len(np.unique(to_numpy(evaluate.predict(abrupt, x)))),
}
rows = [
    ["ε grows from 0", f"{loss['PGD'][0]:.3f}"]
    + [f"{100 * share['PGD', test][0]:.1f} %" for test in ("natural", "PGD")],
    ["the whole ε at once", f"{numbers['abrupt']['loss']:.3f}"]
    + [f"{100 * numbers['abrupt'][key]:.1f} %" for key in ("accuracy", "accuracy_pgd")],
]
common.table(rows, [f"×{WIDTHS[0]}, PGD training", "training loss", "natural", "PGD"])
print(f"different answers that the second one gives: {numbers['abrupt']['answers']} of 10")

# %% [markdown]
# ## Examples of another network
#
# Black-box examples, made on the natural network of the same width and shown to the one that was
# trained on PGD's. They say little about its white-box accuracy (lesson 10).

# %%
transfer = []
for i, w in enumerate(WIDTHS):
    x_adv = by_pgd(networks["natural", w], x, y)
    transfer.append(evaluate.accuracy(networks["PGD", w], x_adv, y))
    print(f"×{w:<2}  examples of the natural network: {100 * transfer[-1]:.1f} % right", end="")
    print(f", its own: {100 * share['PGD', 'PGD'][i]:.1f} %")
numbers["transfer"] = transfer

# %% [markdown]
# ## The figure

# %%
STYLES = {
    "natural": ("o", common.BLUE),
    "FGSM": ("s", common.ORANGE),
    "PGD": ("^", common.RED),
}


def draw(ax, curves, title):
    for name, values in curves.items():
        marker, colour = STYLES[name]
        ax.plot(WIDTHS, values, marker + "-", color=colour, label=name, markersize=6, clip_on=False)
    ax.set_xscale("log", base=2)
    ax.set_xticks(WIDTHS, [f"×{w}" for w in WIDTHS])
    ax.set(title=title, xlabel="width")
    ax.minorticks_off()


fig, axes = plt.subplots(1, 4, figsize=(11, 3.5), layout="constrained")
for ax, training in zip(axes, TRAININGS, strict=False):
    draw(
        ax,
        {t: [100 * a for a in share[training, t]] for t in TESTS},
        f"{training[0].upper()}{training[1:]} training",
    )
    ax.set(ylim=(0, 100))
axes[0].set_ylabel("test accuracy, %")
draw(axes[3], loss, "Loss in each training")
axes[3].axhline(math.log(10), color=common.GREY, linestyle=":")
axes[3].text(WIDTHS[-1], math.log(10) + 0.03, "the same answer for all", fontsize=9,
             color=common.GREY, ha="right", va="bottom")  # fmt: skip
axes[3].set(ylim=(0, 1.08 * max(math.log(10), *loss["PGD"], *loss["FGSM"])))
axes[3].set(ylabel="cross-entropy")
axes[3].legend(loc="upper right", bbox_to_anchor=(1.05, 0.9), fontsize=9, title="training")
handles, labels = axes[0].get_legend_handles_labels()
fig.legend(handles, [f"on {label} examples" for label in labels], loc="outside lower center",
           ncols=3)  # fmt: skip
fig.suptitle(
    f"Robustness takes width, and PGD in training: the wider, the more stands (ε = {EPSILON:g})",
    x=0.01, ha="left", fontweight="bold",
)  # fmt: skip
common.save_figure(fig, args, NAME)

# %% [markdown]
# ## The claims

# %%
common.record(args, NAME, numbers)  # before the claims: a number that falls short is kept as well

least = 0.5 if args.quick else 0.7 if data.name == "fashion" else 0.93
common.claim(
    f"trained on images, even ×1 reads {100 * least:.0f} % of them",
    share["natural", "natural"][0] > least,
)
most = 0.25 if args.quick else 0.05
common.claim(
    f"and no width withstands PGD: {100 * most:.0f} % at most",
    max(share["natural", "PGD"]) <= most,
)
gain = share["PGD", "PGD"][-1] - share["PGD", "PGD"][0]
least = 0.05 if args.quick or data.name == "fashion" else 0.12
print(f"trained on PGD's examples, the largest is {100 * gain:.1f} points better under PGD")
common.claim(f"which is {100 * least:.0f} points or more", gain > least)
rises = max(b - a for a, b in zip(loss["PGD"], loss["PGD"][1:], strict=False))
common.claim(
    "the loss on PGD's examples is lower at the largest width", loss["PGD"][-1] < loss["PGD"][0]
)
common.claim("and with no doubling clearly higher", rises < 0.05)
harder = min(loss["PGD"]) > max(loss["natural"])
common.claim("it is higher at the largest width than the images' loss at the smallest", harder)
numbers_of = share["FGSM", "FGSM"], share["FGSM", "PGD"]
gap = max(a - b for a, b in zip(*numbers_of, strict=True))
least = 0.05 if args.quick or data.name == "fashion" else 0.2
common.claim(
    f"FGSM training looks better under FGSM than it is: by {100 * gap:.1f} points", gap > least
)
if data.name != "fashion":  # whose smaller ε may leave it a way to begin
    worse = numbers["abrupt"]["loss"] > loss["PGD"][0]
    common.claim("the smallest network learns less if it meets the whole ε at once", worse)
    stays = abs(numbers["abrupt"]["loss"] - math.log(10)) < (0.2 if args.quick else 0.05)
    common.claim(f"its loss stays near ln 10, at {numbers['abrupt']['loss']:.2f}", stays)

# %% [markdown]
# ## Try next
#
# - Train ×1 for five times as many epochs. How much of the gap to ×4 is left?
# - Make it narrower still: one filter, two filters, 32 hidden units.
# - `ONE_STEP = {"random_start": True}`. Is FGSM training worth more then?
# - Is it the number of filters, or the width of the dense layer? Widen one of them alone.
# - Take a smaller ε, 0.1. At which width do natural and PGD training reach the same clean accuracy?
