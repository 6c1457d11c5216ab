# %% [markdown]
"""
# 10 Transfer and black box: attacks on a network that one cannot look into

**Question.** PGD needs the network's gradient. Is a network safe that does not show it? There are
two ways around: take the gradient of another network, or do without and only ask questions.

**Equation.** An example made on a source g, shown to the victim f: with
δ* = argmax L(g(x + δ), y) over ‖δ‖∞ ≤ ε, is argmax f(x + δ*) still y? And random search for the
same maximum on f itself, with nothing but its answers:

    x̂ ← x̂ with a random square changed,   if that raises the margin   max_{i≠y} f_i − f_y.

**Papers.** Szegedy et al. (2014), "Intriguing properties of neural networks"; Papernot et al.
(2016), "Transferability in machine learning"; Madry et al. (2018), "Towards deep learning models
resistant to adversarial attacks"; Andriushchenko et al. (2020), "Square Attack: a query-efficient
black-box adversarial attack via random search".

**Run.** `python lessons/10_transfer_and_black_box.py`: about a minute on two cores the first time,
most of it for training five networks, and half a minute after that. On handwritten digits:
`python lessons/10_transfer_and_black_box.py --data mnist`, with more images and queries `--full`.

**What to look for.** Standard networks are wrong about nearly every image that was made on
themselves. Images made on a twin, trained from other random weights, fool them far less often: 83 %
are still read rightly. Robust networks keep 96 % against images from standard networks, as Madry's
MNIST network kept more than 95 %. Images from robust networks do fool standard ones, which keep
73 %: less than of the twin's images, but on MNIST (`--data mnist`) it is the other way round, 75 %
against 48 %. And two standard networks that answer 500 questions about each image are almost as
lost (4 % and 2 %) as if they had shown their gradients. With 5000 questions (`--data mnist --full`)
Square even gets farther than PGD on the robust MNIST network: 87.6 % against 90.7 %.

**What was shortened.** The second robust network learns from half of the images, so it is the
weaker one. Madry et al. have larger networks. Square has 500 queries for each image here, and one
run; for MNIST the paper has up to 20,000 queries and 50 runs.
"""

# %% [markdown]
# ## Names and settings
#
#     x, y    (N, 1, 28, 28), (N,)   images with values 0 to 1, and their labels
#     ε                              how far a pixel may change, in pixel values 0–1
#     x̂       (1, 28, 28)            the best image that Square has found so far
#     p                              the share of the pixels that a square covers
#     h                              its side in pixels; r, s: its first row and column
#     margin                         largest other logit minus the label's: above 0, it is fooled
#                                    (lesson 06 has it the other way round)

# %%
import dataclasses

import common
import matplotlib.pyplot as plt
import numpy as np

from tinyadv import attacks, evaluate, models, to_numpy
from tinyadv.attacks.blackbox import square, transfer
from tinyadv.balls import Linf

NAME = "10_transfer_and_black_box"
args = common.arguments(__doc__)
xp = args.xp  # numpy or cupy

IMAGES = 60 if args.quick else 1000 if args.full else 500  # test images that are attacked
STEPS = 10 if args.quick else 40  # of PGD
QUERIES = 60 if args.quick else 5000 if args.full else 500  # of Square, for each image
P = 0.8  # the share of the first squares: the authors' choice for MNIST
EPOCHS = 2 if args.quick else 4  # of the standard networks besides that of lesson 02
OTHER = args.seed + 1  # the seed of the twins
EPSILON = common.EPSILON[args.data]  # that of the robust networks' training

data = common.load_data(args, *((4000, 500) if args.quick else ()))
half = dataclasses.replace(
    data,
    x_train=data.x_train[: len(data.x_train) // 2],
    y_train=data.y_train[: len(data.y_train) // 2],
)
x, y = xp.asarray(data.x_test[:IMAGES]), xp.asarray(data.y_test[:IMAGES])
ball = Linf(EPSILON)
numbers = {"epsilon": EPSILON, "images": len(x), "queries": QUERIES}  # what is recorded
print(f"{data.name}: {len(x)} test images, ε = {EPSILON}")

# %% [markdown]
# ## Five networks
#
# A standard network and its twin, the same but for the seed; one of another architecture; a robust
# network, trained on PGD's examples of this ε (lesson 07), and its twin. A twin has other weights
# from the first step on. What the two have in common is the task.


# %%
def standard(name, seed):
    """A network of ``models`` by its name, trained like that of lesson 02, and then kept."""

    def build():
        return getattr(models, name)(seed).to(args.backend)

    key = {
        "network": name,
        "optimizer": "RMSprop",
        **common.RMSPROP,
        "batch_size": common.BATCH,
        "data": data.name,
        "images": len(data.x_train),
        "epochs": EPOCHS,
        "seed": seed,
        "backend": args.backend,
    }
    return common.cached_model(
        key, build, lambda model: common.train_cnn(model, data, EPOCHS, seed)
    )


networks = {
    "standard A": common.trained_cnn(args, data),
    "standard B": standard("slides_cnn", OTHER),
    "other shape": standard("fast_cnn", args.seed),
    "robust A": common.robust_cnn(args, data),
    "robust B": common.robust_cnn(args, half, OTHER),
}
NAMES = list(networks)
clean = {name: evaluate.accuracy(model, x, y) for name, model in networks.items()}
numbers["clean"] = clean
for name, share in clean.items():
    print(f"{name:11}  {100 * share:5.1f} % of the test images read rightly")

# %% [markdown]
# ## Made on one network, shown to another
#
# PGD makes an image of each test image on each network, and every network reads all of them. On the
# diagonal the attacker has the victim's own gradient: *white box*. Elsewhere the victim is a *black
# box*, which plays no part in the making.

# %%
made, matrix = {}, []
for name, source in networks.items():
    made[name] = attacks.pgd(source, x, y, ball=ball, steps=STEPS, rng=args.seed)
    matrix.append([evaluate.accuracy(victim, made[name], y) for victim in networks.values()])
matrix = np.array(matrix)  # (sources, victims)
numbers["matrix"] = dict(zip(NAMES, matrix, strict=True))  # by source
rows = [["no attack", *(f"{100 * clean[name]:.1f} %" for name in NAMES)]]
rows += [
    [f"made on {name}", *(f"{100 * share:.1f} %" for share in shares)]
    for name, shares in zip(NAMES, matrix, strict=True)
]
common.table(rows, ["accuracy of", *NAMES])

# %% [markdown]
# Read by groups, it says: what fools one standard network is to some part what fools any, and to
# some part its own affair. A robust network is hardly impressed by either: what is made on standard
# networks is much weaker than what its own gradient finds. Images made on robust networks look for
# changes that matter to another kind of reader, and standard networks have no defence against
# those either; whether they are the better or the worse source depends on the data.

# %%
A, B, SHAPE, RA, RB = range(5)


def mean_of(*cells):
    return float(np.mean([matrix[cell] for cell in cells]))


groups = {
    "white box, standard": mean_of((A, A), (B, B), (SHAPE, SHAPE)),
    "white box, robust": mean_of((RA, RA), (RB, RB)),
    "standard → its twin": mean_of((A, B), (B, A)),
    "another shape → standard": mean_of((SHAPE, A), (SHAPE, B)),
    "robust → standard": mean_of((RA, A), (RA, B), (RB, A), (RB, B)),
    "standard → robust": mean_of(*((i, j) for i in (A, B, SHAPE) for j in (RA, RB))),
    "robust → its twin": mean_of((RA, RB), (RB, RA)),
}
numbers["groups"] = groups
for name, share in groups.items():
    print(f"{name:25}  {100 * share:5.1f} % still right")

# %% [markdown]
# An attacker with several networks shows the victim an image from each, and needs only one to work.
# `transfer` does that. What it keeps is at least as bad for the victim as the images from any
# single source.

# %%
ensemble = {}
for victim in (A, RA):
    sources = [networks[NAMES[i]] for i in range(5) if i != victim]
    x_adv, found = transfer(
        networks[NAMES[victim]], x, y, sources=sources, details=True, ball=ball, steps=STEPS
    )
    left = evaluate.accuracy(networks[NAMES[victim]], x_adv, y)
    best_single = min(matrix[i, victim] for i in range(5) if i != victim)
    ensemble[NAMES[victim]] = left
    print(f"{NAMES[victim]}: {100 * left:.1f} % against the worst of four sources, ", end="")
    print(f"{100 * best_single:.1f} % against the best single one")
    assert abs(left - (1 - float(found.success.mean()))) < 1e-6
    assert left <= best_single
numbers["worst_of_four_sources"] = ensemble

# %% [markdown]
# ## Queries only: the Square Attack
#
# No gradient, of no network: change something at random, ask, and keep it if the margin has grown.
# What makes it work is *what* is changed. In the ball ‖δ‖∞ ≤ ε the worst images lie in corners,
# where each pixel is x + ε or x − ε; so these two values are all that it tries. It begins with
# vertical stripes, and then turns whole squares to one of the two, large ones at first, for
# convolutions respond to patches more than to single pixels. Here it is for a single image.


# %%
HALVED_AT = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]  # of 10,000 queries


def side_of_square(move, queries):
    """h for the move of that number, from 0: its area starts at p·28·28 and is halved again."""
    halvings = sum(int(10_000 * move / queries) > at for at in HALVED_AT)
    return max(1, round((P / 2**halvings * 28 * 28) ** 0.5))


def margin(model, image, label):
    z = to_numpy(model(xp.asarray(image[None])))[0]  # (1, 1, 28, 28) -> (K,)
    return max(z[i] for i in range(len(z)) if i != label) - z[label]


def our_square(model, x, label, rng, queries):
    """Square in L∞ for one image (1, 28, 28): x̂ and the number of queries."""
    if margin(model, x, label) > 0:
        return x, 0  # misread as it is
    stripes = np.where(rng.random(28) < 0.5, EPSILON, -EPSILON)  # a sign for each column
    best = np.clip(x + stripes, 0, 1)
    largest = margin(model, best, label)
    for query in range(1, queries):
        if largest > 0:
            return best, query
        h = side_of_square(query - 1, queries)
        u = rng.random(3)  # for the row, the column and the sign
        r, s = int(u[0] * (29 - h)), int(u[1] * (29 - h))
        sign = 1 if u[2] < 0.5 else -1
        window = np.s_[:, r : r + h, s : s + h]
        new = best.copy()
        new[window] = np.clip(x[window] + sign * EPSILON, 0, 1)
        if (new == best).all():  # it was so before: the question would be wasted
            new[window] = np.clip(x[window] - sign * EPSILON, 0, 1)
        value = margin(model, new, label)
        if value > largest:
            best, largest = new, value
    return best, queries


# %% [markdown]
# `tinyadv`'s `square` does this for a whole batch: every image has a generator of its own, whose
# seed is drawn from `rng`, and leaves the batch when it fools the network. With the same random
# numbers the two must find the same images. (In float64, since otherwise rounding, which depends on
# the size of a batch, could turn a comparison of two margins around.)

# %%
FEW, SOME = (5, 30) if args.quick else (10, 100)  # images, queries
precise = models.slides_cnn().to(args.backend).astype(np.float64)
precise.load_state_dict(networks["standard A"].state_dict())
few_x, few_y = to_numpy(x[:FEW]).astype(np.float64), data.y_test[:FEW]
seeds = np.random.default_rng(args.seed).integers(2**63, size=FEW)
ours = [
    our_square(precise, image, label, np.random.default_rng(seed), SOME)
    for image, label, seed in zip(few_x, few_y, seeds, strict=True)
]
theirs, details = square(
    precise, xp.asarray(few_x), xp.asarray(few_y), ball=ball, queries=SOME, p=P, rng=args.seed,
    details=True,
)  # fmt: skip
apart = float(abs(np.stack([image for image, _ in ours]) - to_numpy(theirs)).max())
numbers["our_square_against_tinyadv"] = apart
asked = [count for _, count in ours]
print("queries for each image:", *asked)
print(f"largest difference between our images and the library's: {apart:g}")
assert apart < 1e-12 and asked == to_numpy(details.queries).tolist()

# %% [markdown]
# ## Accuracy over queries
#
# An image counts as right as long as no answer was wrong. To be compared: what PGD leaves, which
# asks for a gradient 40 times.


# %%
def accuracy_over_queries(details):
    """The share of images that is still right after 0, 1, 2, … queries: (QUERIES + 1,)"""
    queries, success = to_numpy(details.queries), to_numpy(details.success)
    fell = np.bincount(queries[success], minlength=QUERIES + 1)  # how many fell at which query
    return 1 - fell.cumsum() / len(queries)


curves, squared = {}, {}
for name in ("standard A", "other shape", "robust A"):
    squared[name], details = square(
        networks[name], x, y, ball=ball, queries=QUERIES, p=P, rng=args.seed, details=True
    )
    curves[name] = accuracy_over_queries(details)
    i, success = NAMES.index(name), to_numpy(details.success)
    needed = to_numpy(details.queries)[success]
    numbers[f"square_{name}"] = {
        "accuracy": curves[name][-1],
        "median_queries": float(np.median(needed)) if len(needed) else None,
    }
    assert abs(evaluate.accuracy(networks[name], squared[name], y) - curves[name][-1]) < 1e-9

marks = [mark for mark in (1, 10, 30, 100, 300, 1000, 5000) if mark < QUERIES] + [QUERIES]
common.table(
    [
        [
            name,
            *(f"{100 * curve[mark]:.1f} %" for mark in [0, *marks]),
            f"{100 * matrix[NAMES.index(name), NAMES.index(name)]:.1f} %",
        ]
        for name, curve in curves.items()
    ],
    ["Square, after queries:", "0", *map(str, marks), f"PGD-{STEPS}"],
)

# %% [markdown]
# ## The figure


# %%
def draw_matrix(ax):
    shown = 100 * np.vstack([list(clean.values()), matrix])
    ax.imshow(shown, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for (i, j), share in np.ndenumerate(shown):
        white_box = i == j + 1
        ax.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=12,
                weight="bold" if white_box else "normal",
                color="black" if share > 60 else "white")  # fmt: skip
    ax.axhline(0.5, color="white", linewidth=4)
    ax.set_xticks(range(5), [name.replace(" ", "\n") for name in NAMES], fontsize=10)
    ax.set_yticks(range(6), ["no attack", *NAMES], fontsize=10)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("made on", labelpad=8)
    ax.set(xlabel="shown to: accuracy in %, white box bold")
    ax.set_title("Shown to others, attacks lose force;\nrobust networks hardly notice")


def draw_queries(ax):
    colours = {"standard A": common.RED, "other shape": common.ORANGE, "robust A": common.BLUE}
    at, last = np.arange(1, QUERIES + 1), QUERIES**1.13
    for (name, curve), marker in zip(curves.items(), "os^", strict=True):
        ax.plot(at, 100 * curve[1:], color=colours[name], label=name)
        i = NAMES.index(name)
        size = 11 if marker == "o" else 6  # one is seen behind the other
        ax.plot(last, 100 * matrix[i, i], marker, color=colours[name], ms=size, clip_on=False)
    ticks = [tick for tick in (1, 10, 100, 1000) if tick < 0.5 * QUERIES] + [QUERIES, last]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [*(f"{tick:,}" for tick in ticks[:-1]), "PGD"])
    ax.set_xticks([], minor=True)
    ax.set(xlim=(1, QUERIES**1.16), ylim=(0, 104), ylabel="accuracy in %")
    ax.set_xlabel("questions asked about each image")
    ax.set_title("Square asks questions only, and gets\nabout as far as PGD with its gradients")
    ax.legend(loc="lower left")


def draw_pictures(axes):
    """For three digits: the image, and what fools standard A, and how it reads it."""
    victim = networks["standard A"]
    kinds = {
        "image": x,
        "white box": made["standard A"],
        "from robust A": made["robust A"],
        "queries": squared["standard A"],
    }
    answers = {kind: to_numpy(evaluate.predict(victim, images)) for kind, images in kinds.items()}
    labels = data.y_test[: len(x)]
    right = answers["image"] == labels
    fooled = sum((answers[kind] != labels).astype(int) for kind in list(kinds)[1:])
    first = np.argsort(-(fooled * right), kind="stable")
    chosen = []  # of different classes
    for i in first:
        if labels[i] not in labels[chosen] and len(chosen) < 3:
            chosen.append(i)
    for ax in axes:
        ax.axis("off")
    for column, (i, kind) in enumerate((i, kind) for i in chosen for kind in kinds):
        ax = axes[column + column // len(kinds)]  # past the gaps
        ax.imshow(to_numpy(kinds[kind][i, 0]), vmin=0, vmax=1)
        ax.axis("on")
        ax.set(xticks=[], yticks=[], frame_on=False)
        ax.set_title(kind, loc="center", fontsize=9, pad=3)
        answer = answers[kind][i]
        ax.set_xlabel(
            f"“{data.classes[answer]}”", fontsize=11, labelpad=2,
            color="black" if answer == labels[i] else common.RED,
        )  # fmt: skip


fig = plt.figure(figsize=(11, 6.2), layout="constrained")
above, below = fig.subfigures(2, 1, height_ratios=[3.4, 1], hspace=0.02)
left, right = above.subplots(1, 2, width_ratios=[1.15, 1])
draw_matrix(left)
draw_queries(right)
below.suptitle(f"What fools standard A, ε = {EPSILON}, and how it reads it", x=0.01, ha="left")
draw_pictures(below.subplots(1, 14, width_ratios=[5, 5, 5, 5, 1, 5, 5, 5, 5, 1, 5, 5, 5, 5]))
common.save_figure(fig, args, NAME)

# %% [markdown]
# ## The claims

# %%
common.record(args, NAME, numbers)  # before the claims: a number that falls short is kept as well

CLAIM = {  # accuracy, at most: white box, Square; at least and at most: twin; at least: robust
    "glyphs": {"white box": 0.03, "twin": (0.5, 0.92), "standard → robust": 0.93, "Square": 0.15},
    "mnist": {"white box": 0.03, "twin": (0.05, 0.9), "standard → robust": 0.94, "Square": 0.05},
    "fashion": {"white box": 0.1, "twin": (0.05, 0.8), "standard → robust": 0.6, "Square": 0.2},
}
if args.quick:
    claim = {"white box": 0.3, "twin": (0.2, 1.0), "standard → robust": 0.4, "Square": 0.9}
else:
    claim = CLAIM[data.name]


def percent(share):
    return f"{100 * share:.1f} %"


white, twin, robust = (
    groups[name] for name in ("white box, standard", "standard → its twin", "standard → robust")
)
low, high = claim["twin"]
common.claim(f"white box, standard networks keep {percent(white)}", white <= claim["white box"])
common.claim(f"shown to the twin, {percent(twin)}: a part transfers", low <= twin <= high)
common.claim(f"standard → robust keeps {percent(robust)}", robust >= claim["standard → robust"])
if not args.quick:
    share, own = groups["robust → its twin"], groups["white box, robust"]
    common.claim(f"robust → its twin keeps {percent(share)}, more than {percent(own)}", share > own)
    share = groups["robust → standard"]
    least = np.mean([clean[NAMES[i]] for i in (A, B)]) - 0.1
    common.claim(f"robust → standard keeps {percent(share)}: a part transfers", share < least)
    common.claim(f"standard → robust is weaker than white box: {percent(robust)}", robust > own)
for name in ("standard A", "other shape"):
    share = float(curves[name][-1])
    common.claim(f"Square leaves {name} {percent(share)}", share <= claim["Square"])
share = float(curves["robust A"][-1])
common.claim(f"Square leaves robust A {percent(share)}", share > curves["standard A"][-1])

# %% [markdown]
# ## Try next
#
# - Let ε grow: `attacks.pgd(…, ball=Linf(0.3))` on printed digits. At which ε do robust networks
#   begin to be fooled by images from others, and which source is the strongest then?
# - Fewer steps of PGD, or one (`attacks.fgsm`): does a weaker attack transfer better, because it
#   has not adapted so closely to its source?
# - Show the victim a targeted attack (`target=3`): does it answer with the target, or just wrongly?
# - Change P, or begin Square with uniform noise of ±ε instead of stripes: how many more queries?
# - `square(…, ball=L2(1.5))`: the same search in another ball.
