# %% [markdown]
"""
# 11 Simple transformations: a turn and a shift are enough

**Question.** All attacks so far wrote noise into the image, made with care by an attacker. Is there
a danger without one? What if the image is only turned a little and moved a little, as by a camera
that nobody held straight?

**Equation.** A transformation t = (θ, s) turns the image by θ and shifts it by s. The inner
maximisation is the one of lesson 06, over three numbers in the place of 784:

    max L(f(T_θ,s(x)), y)   over   |θ| ≤ 30°, |s₁| ≤ 3, |s₂| ≤ 3 pixels.

T reads pixel p of the result where it came from, at R(−θ)(p − c − s) + c, c the centre. That place
lies between four pixels of x, which are mixed by how near they are, so the result has a derivative
for θ and for s.

**Papers.** Engstrom et al. (2019), "Exploring the landscape of spatial robustness", first called "A
rotation and a translation suffice: fooling CNNs with simple transformations"; Jaderberg et al.
(2015), "Spatial transformer networks", for the sampling.

**Run.** `python lessons/11_simple_transformations.py`: about a minute on two cores, with the
embedded printed digits. Handwritten digits: `--data mnist`; with `--full` as well, all 60,000 are
trained on, with the worst of 10.

**What to look for.** The network of lesson 02 reads 99 % of the digits as they are, and 83 % after
a random turn and shift. With the worst of ten random ones it is right about one time in four, and
none survives all 775 of a grid. Climbing the gradient, which is what works best on pixels, is the
weaker attack here. A network that is robust in the ℓ∞ ball does not survive the grid either.
Training on random turns and shifts helps (14 %), training on the worst of four more (40 %).

**What was shortened.** The networks are small and trained for three epochs, and 300 test images
stand for all. Where a digit reaches the border, a part of it is moved out of the picture. The
paper's network keeps 26 % of MNIST under the grid; that of the slides keeps none, and about 30 % if
it is shifted by no more than one pixel.
"""

# %% [markdown]
# ## Names and settings
#
#     x       (N, C, H, W)   images: number, channels (1: grey), height, width; values 0 to 1
#     y       (N,)           their labels
#     θ       (N,)           angle in degrees, counter-clockwise
#     s       (N, 2)         shift in pixels: to the right, and down
#     t       (N, 3)         the transformation: θ and s
#     u, v    (H, W)         column and row of x that a pixel of the result is read at
#     c                      the centre of the image
#     g       (N, 3)         ∂L/∂t
#     k                      how many random transformations are tried

# %%
from functools import partial
from itertools import product

import common
import matplotlib.pyplot as plt
import numpy as np

import tinyadv
from tinyadv import Tensor, grad, losses, models, optim, to_numpy
from tinyadv.attacks.spatial import (
    rotate_translate,
    spatial_first_order,
    spatial_grid,
    spatial_random,
)
from tinyadv.evaluate import accuracy, predict

NAME = "11_simple_transformations"
args = common.arguments(__doc__)
xp = args.xp  # numpy or cupy

LIMITS = np.array([30.0, 3.0, 3.0])  # of θ in degrees, of s in pixels
ANGLES, SHIFTS = (7, 3) if args.quick else (31, 5)  # of the grid: 31 · 5 · 5 = 775
K = 10  # random transformations that the attack tries
STEPS = 20 if args.quick else 200  # of the first-order attack
STEP = 0.01  # its steps, as a share of the limits
IMAGES = 60 if args.quick else 1000 if args.full else 300  # test images that are attacked
TRAIN = 2000 if args.quick else None if args.full else 10_000  # images that are trained on
EPOCHS = 1 if args.quick else 10 if args.full else 3  # passes over them
TRAIN_K = 2 if args.quick else 10 if args.full else 4  # random transformations in a training step

data = common.load_data(args, *((4000, 500) if args.quick else ()))
x, y = xp.asarray(data.x_test[:IMAGES]), xp.asarray(data.y_test[:IMAGES])
h, w = x.shape[2:]
numbers = {"images": len(x)}  # what is recorded
model = common.trained_cnn(args, data)
print(f"{data.name}: {len(x)} of {len(data.x_test)} test images are attacked")

# %% [markdown]
# ## Reading between pixels
#
# For each pixel of the result: where in x does it come from? There it reads the four neighbours,
# each with a weight that falls from 1 to 0 over the distance of one pixel. What lies outside is
# black. Here it is in full, one pixel at a time.


# %%
def pixel(image, row, column):
    """A pixel of an image (H, W), 0 outside."""
    inside = 0 <= row < image.shape[0] and 0 <= column < image.shape[1]
    return image[row, column] if inside else 0.0


def transformed(image, angle, right, down):
    """An image (H, W), turned counter-clockwise by ``angle`` degrees, then shifted."""
    theta, result = np.deg2rad(angle), np.zeros_like(image)
    centre_row, centre_column = (np.array(image.shape) - 1) / 2
    for i, j in np.ndindex(image.shape):
        # Back along the way: first the shift, then the turn by -θ. Rows count downwards.
        row, column = i - centre_row - down, j - centre_column - right
        v = np.sin(theta) * column + np.cos(theta) * row + centre_row
        u = np.cos(theta) * column - np.sin(theta) * row + centre_column
        top, left = int(np.floor(v)), int(np.floor(u))
        for r, c in product((top, top + 1), (left, left + 1)):
            result[i, j] += (1 - abs(v - r)) * (1 - abs(u - c)) * pixel(image, r, c)
    return result


image = data.x_test[0, 0].astype(float)
ours = transformed(image, 20, 1.5, -2.25)
theirs = rotate_translate(image[None, None], 20, (1.5, -2.25))[0, 0]
apart = float(abs(ours - theirs).max())
numbers["our_sampling_against_tinyadv"] = apart
print(f"turned by 20°, moved by (1.5, -2.25): largest difference to the library's {apart:.1e}")
assert apart < 1e-12

# %% [markdown]
# ## One transformation for all
#
# The library does this for a whole batch at once. How well does the network of lesson 02 read the
# test images when all are turned alike, or moved alike?


# %%
def right(images):
    """Whether the standard network reads each of the images rightly: (N,) of bool."""
    return to_numpy(predict(model, images) == y)


rows, alike = [], {}
for t in [(0, 0, 0), (15, 0, 0), (30, 0, 0), (0, 3, 0), (0, 0, 3), (0, 3, 3), (30, 3, 3)]:
    angle, *shift = t
    alike[str(t)] = float(right(rotate_translate(x, angle, shift)).mean())
    rows.append([f"{angle}°", *shift, f"{100 * alike[str(t)]:.1f} %"])
numbers["all_alike"] = alike
common.table(rows, ["turned", "right", "down", "accuracy"])
natural = alike["(0, 0, 0)"]
assert alike["(30, 3, 3)"] < natural

# %% [markdown]
# ## The grid
#
# Each image may have its own worst transformation. Three numbers are few enough to try them all, at
# equal distances. There is no gradient in this attack, and no luck.

# %%
ticks = [
    np.linspace(-limit, limit, n) for limit, n in zip(LIMITS, (ANGLES, SHIFTS, SHIFTS), strict=True)
]
grid = list(product(*ticks))
few = slice(min(len(x), 60))  # the first images: enough to compare
survives = np.ones(len(x[few]), bool)
for angle, *shift in grid:
    moved = rotate_translate(x[few], angle, shift)
    survives &= to_numpy(predict(model, moved) == y[few])

grid_search = partial(spatial_grid, angles=ANGLES, shifts=SHIFTS)
x_grid, t_grid = grid_search(model, x, y, details=True)
fooled = ~right(x_grid)
disagree = float((survives == fooled[few]).mean())
numbers["our_grid_against_tinyadv"] = disagree
print(f"{len(grid)} transformations of {len(survives)} images: {survives.sum()} images survive all")
print(f"the library's search ends differently for {100 * disagree:g} % of them")
assert disagree <= 0.02  # a tie between two logits may be rounded either way

# %% [markdown]
# `spatial_grid` stops with an image that is fooled, and begins with the largest transformations. So
# it gives the same accuracy with a small part of the questions. How small may the limits be?

# %%
sizes = {}
for limits in [(30, 1), (10, 3)]:
    small = partial(grid_search, max_angle=limits[0], max_shift=limits[1])
    sizes[f"{limits[0]}°, {limits[1]} px"] = accuracy(model, x, y, small)
sizes["30°, 3 px"] = float(1 - fooled.mean())
numbers["grid_of_size"] = sizes
common.table([[name, f"{100 * a:.1f} %"] for name, a in sizes.items()], ["limits", "full grid"])
assert min(sizes["30°, 1 px"], sizes["10°, 3 px"]) >= sizes["30°, 3 px"]

# %% [markdown]
# ## The worst of ten, and the gradient
#
# Two cheaper attacks. `spatial_random` draws ten transformations for each image and keeps the
# worst. The *first-order* attack is PGD on t: it starts somewhere and follows the sign of
# g = ∂L/∂t, each number in steps of 1 % of its limit. Here it is in full.


# %%
def climb(x, y, t, limits, steps):
    """The points on the way up from t (N, 3): (steps + 1, N, 3), and the losses there."""
    limits, path, heights = xp.asarray(limits.astype(t.dtype)), [], []
    for _ in range(steps + 1):
        here = Tensor(t)
        z = model(rotate_translate(x, here[:, 0], here[:, 1:]))  # (N, K)
        loss = losses.cross_entropy(z, y, "none")  # (N,)
        misread = to_numpy(z.value.argmax(1) != y)
        path.append(to_numpy(t))
        heights.append(to_numpy(loss.value) + 1e9 * misread)  # misread counts more than any loss
        (g,) = grad(loss.sum(), [here])  # (N, 3)
        t = xp.clip(t + STEP * limits * xp.sign(g), -limits, limits)
    return np.array(path), np.array(heights)


# In float64, where rounding does not turn a sign: the two must take the same way.
x64, y64 = x[:8].astype(np.float64), y[:8]
how = {"steps": 20, "rng": args.seed, "details": True}
_, start = spatial_first_order(model, x64, y64, **(how | {"steps": 1, "step_size": 0.0}))
_, theirs = spatial_first_order(model, x64, y64, step_size=STEP, **how)
path, heights = climb(x64, y64, start, LIMITS, 20)
ours = path[heights.argmax(0), np.arange(8)]  # the worst point of each path
apart = float(abs(ours - to_numpy(theirs)).max())
numbers["our_ascent_against_tinyadv"] = apart
print(f"twenty steps of eight images: largest difference to the library's {apart:.1e}")
assert apart < (1e-6 if xp is np else 1)

# %%
x_random, t_random = spatial_random(model, x, y, k=K, rng=args.seed, details=True)
x_first = spatial_first_order(model, x, y, steps=STEPS, step_size=STEP, rng=args.seed)
x_once = spatial_random(model, x, y, k=1, rng=args.seed)
attacked = {
    "as it is": (1, right(x)),
    "one random": (1, right(x_once)),
    f"worst of {K} random": (K, right(x_random)),
    "first order": (STEPS + 1, right(x_first)),
    "full grid": (len(grid), ~fooled),
}
numbers["standard"] = {name: float(ok.mean()) for name, (_, ok) in attacked.items()}
rows = [[name, tries, f"{100 * ok.mean():.1f} %"] for name, (tries, ok) in attacked.items()]
common.table(rows, ["the standard network", "tries", "accuracy"])
first_order = numbers["standard"]["first order"]
assert first_order > numbers["standard"][f"worst of {K} random"]

# %% [markdown]
# Two hundred steps uphill find less than ten shots in the dark. With pixels it was the other way
# round: random noise of the same size hardly fools a network, and the gradient nearly always does.
#
# ## Why the gradient is weak here
#
# With three numbers one can look at the landscape itself. Here is a slice of it, the loss over the
# angle and the shift to the right. A *local maximum* is a point of the slice that is higher than
# its eight neighbours, or than those it has, at the edge. How many are there, and how many ascents
# from random starts pass a point where the network errs, or begin at one?

# %%
A, S = (21, 13) if args.quick else (61, 31)  # points of a slice: angles, shifts to the right
CLIMBERS = 24  # starts for each image
SLICE = LIMITS * (1, 1, 0)  # the limits within the slice: no shift down


def landscape(image, label):
    """The loss over the slice, and whether the network errs there: (A, S), (A, S) of bool."""
    points = np.array(list(product(np.linspace(-30, 30, A), np.linspace(-3, 3, S), [0.0])))
    t = xp.asarray(points.astype(np.float32))  # (A·S, 3)
    many = xp.broadcast_to(image, (len(t), *image.shape))
    z = to_numpy(model(rotate_translate(many, t[:, 0], t[:, 1:])))
    loss = losses.cross_entropy(z, np.full(len(z), label), "none")
    return loss.reshape(A, S), (z.argmax(1) != label).reshape(A, S)


def local_maxima(loss):
    """Points above their neighbours: (A, S) -> (A, S) of bool."""
    around = np.pad(loss, 1, constant_values=-np.inf)
    steps = [step for step in np.ndindex(3, 3) if step != (1, 1)]
    return np.all([loss > around[i : i + A, j : j + S] for i, j in steps], axis=0)


def ascents(image, label, rng):
    """Ascents within the slice, from ``CLIMBERS`` random starts: (STEPS + 1, CLIMBERS, 3)."""
    start = (SLICE * rng.uniform(-1, 1, (CLIMBERS, 3))).astype(np.float32)
    many = xp.broadcast_to(image, (CLIMBERS, *image.shape))
    labels = xp.asarray(np.full(CLIMBERS, label))
    path, heights = climb(many, labels, xp.asarray(start), SLICE, STEPS)
    return path, heights >= 1e9


rng = np.random.default_rng(args.seed)
chosen = np.flatnonzero(right(x))[: 4 if args.quick else 20 if args.full else 10]
slices = []
for i in chosen:
    loss, errs = landscape(x[i], data.y_test[i])
    path, misread = ascents(x[i], data.y_test[i], rng)
    slices.append({
        "image": int(i), "maxima": int(local_maxima(loss).sum()), "errs": float(errs.mean()),
        "ascents": float(misread.any(0).mean()), "drawn": (loss, errs, path, misread),
    })  # fmt: skip
vulnerable = [s for s in slices if s["errs"] > 0]
maxima = float(np.mean([s["maxima"] for s in slices]))
reach = float(np.mean([s["ascents"] for s in vulnerable])) if vulnerable else 1.0
numbers |= {"maxima_of_a_slice": maxima, "slices": len(slices), "vulnerable": len(vulnerable)}
numbers["ascents_that_fool"] = reach
print(f"{len(slices)} slices have {maxima:.1f} local maxima on average")
print(f"in {len(vulnerable)} of them the network errs somewhere;", end=" ")
print(f"there, {100 * reach:.0f} % of the ascents pass such a point")
assert maxima > 1

# %% [markdown]
# ## Training against it
#
# `fit` takes the attack as its inner maximisation. One random transformation, k = 1, maximises
# nothing and is what one calls *data augmentation*. With k > 1 it is min-max training. A third
# network is robust in the ℓ∞ ball: `common.robust_cnn`, trained on PGD.


# %%
def spatial_cnn(k):
    """The same network, trained on the worst of k random transformations of each image."""
    part = common.load_data(args, TRAIN, 500)
    lr = [(0, 0.0005), (0.4 * EPOCHS, 0.005), (EPOCHS, 0.0001)]

    def train(model):
        perturb = partial(spatial_random, k=k, rng=np.random.default_rng(args.seed))
        adam = optim.Adam(model.parameters(), lr=0.005)
        schedule = optim.piecewise_linear(lr)
        tinyadv.fit(model, part, adam, EPOCHS, perturb, schedule=schedule, rng=args.seed)

    key = {
        "network": "slides_cnn", "adversary": f"spatial_random, k = {k}", "optimizer": "Adam",
        "lr": lr, "data": part.name, "images": len(part.x_train), "epochs": EPOCHS,
        "seed": args.seed, "backend": args.backend,
    }  # fmt: skip
    return common.cached_model(key, lambda: models.slides_cnn(args.seed).to(args.backend), train)


networks = {
    "standard": model,
    "robust in ℓ∞": common.robust_cnn(args, data),
    "augmented": spatial_cnn(1),
    f"worst of {TRAIN_K}": spatial_cnn(TRAIN_K),
}

# %%
attacks = {
    "as it is": None,
    "one random": partial(spatial_random, k=1, rng=args.seed),
    f"worst of {K}": partial(spatial_random, k=K, rng=args.seed),
    "full grid": grid_search,
}
result = {
    network: {name: accuracy(f, x, y, attack) for name, attack in attacks.items()}
    for network, f in networks.items()
}
numbers["networks"] = result
rows = [[network, *(f"{100 * a:.1f} %" for a in row.values())] for network, row in result.items()]
common.table(rows, ["trained", *attacks])
standard, linf, augmented, worst = result.values()

# %% [markdown]
# Robust to one thing is not robust to another: the ball is a choice, and whoever chose ℓ∞ has not
# asked about cameras. These are the fluctuations that nature makes by itself. A network that has no
# enemy at all meets them every day, and that is the best reason to care.
#
# ## The figure


# %%
def draw_examples(axes):
    """Images as they are, and below them the worst of the grid."""
    shown = [np.flatnonzero((data.y_test[: len(x)] == k) & right(x) & fooled) for k in range(10)]
    answers = to_numpy(predict(model, x_grid))
    for (above, below), found in zip(axes.T, shown, strict=True):
        for ax in (above, below):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        if len(found) == 0:
            continue
        i = found[0]
        above.imshow(data.x_test[i, 0], vmin=0, vmax=1)
        below.imshow(to_numpy(x_grid[i, 0]), vmin=0, vmax=1)
        label, answer = (data.classes[k][:8] for k in (data.y_test[i], answers[i]))
        above.set_title(label, loc="center", pad=3)
        below.set_xlabel(answer, color=common.RED, fontsize=12, labelpad=3)


def draw_landscape(ax, figure):
    """The slice of an image of which some ascents, but not all, find an error."""
    drawn = min(slices, key=lambda s: abs(s["ascents"] - 0.4) + (s["errs"] == 0))
    loss, errs, path, misread = drawn["drawn"]
    # The hills are steep: in steps of ten, as logarithms, they can be seen.
    shown = ax.imshow(
        np.maximum(loss.T, 1e-5), extent=(-30, 30, -3, 3), origin="lower", aspect="auto",
        cmap="Greys", norm="log", interpolation="bilinear", alpha=0.75,
    )  # fmt: skip
    angles, shifts = np.linspace(-30, 30, A), np.linspace(-3, 3, S)
    if errs.any() and not errs.all():
        ax.contour(angles, shifts, errs.T, [0.5], colors=[common.RED], linewidths=2)
    for k in range(CLIMBERS):
        hit = misread[:, k].any()
        end = misread[:, k].argmax() if hit else len(path) - 1  # up to the first error
        colour = common.ORANGE if hit else common.SKY
        ax.plot(*path[: end + 1, k, :2].T, color=colour, lw=1.2, clip_on=False)
        ax.plot(*path[end, k, :2], "o", color=colour, ms=6, mec="black", mew=0.7, clip_on=False,
                zorder=3)  # fmt: skip
    figure.colorbar(shown, ax=ax, label="loss", shrink=0.9, pad=0.02)
    hits = misread.any(0).sum()
    ax.set(title=f"{hits} of {CLIMBERS} ascents reach an error (red line)")
    ax.set(xlabel="angle, degrees", ylabel="shift to the right, pixels")
    ax.spines[:].set_visible(False)


def draw_networks(ax):
    """A group of bars for each network."""
    colours = [common.GREY, common.SKY, common.BLUE, common.RED]
    for j, (name, colour) in enumerate(zip(attacks, colours, strict=True)):
        heights = [100 * row[name] for row in result.values()]
        places = np.arange(len(result)) + (j - 1.5) * 0.21
        ax.bar(places, heights, 0.19, color=colour, label=name)
        for place, height in zip(places, heights, strict=True):
            ax.text(place, height + 1.5, f"{height:.0f}", ha="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(result)), result)
    ax.tick_params(axis="x", length=0)
    ax.set(ylabel="accuracy, %", ylim=(0, 108), title="Only training on turns and shifts helps")
    ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=10,
              columnspacing=1.2, handlelength=1.2)  # fmt: skip


fig = plt.figure(figsize=(11, 6.6), layout="constrained")
above, below = fig.subfigures(2, 1, height_ratios=[1, 1.45], hspace=0.03)
above.suptitle(
    f"Turned by at most 30°, shifted by at most 3 pixels: {100 * natural:.0f} % read as they are, "
    f"{100 * standard['full grid']:.0f} % at their worst",
    x=0.01, ha="left",
)  # fmt: skip
draw_examples(above.subplots(2, 10))
left, beside = below.subfigures(1, 2, width_ratios=[1, 1.12], wspace=0.03)
draw_landscape(left.subplots(), left)
draw_networks(beside.subplots())
common.save_figure(fig, args, NAME)

# %% [markdown]
# ## The claims

# %%
common.record(args, NAME, numbers)  # before the claims: a number that falls short is kept as well

grid_of = {network: row["full grid"] for network, row in result.items()}
print(f"the grid leaves {100 * standard['full grid']:.1f} % of {100 * natural:.1f} %")
assert standard["full grid"] <= (0.3 if args.quick else 0.05)
print(
    f"the worst of {K} leaves more, {100 * standard[f'worst of {K}']:.1f} %, and so does ", end=""
)
print(f"the first-order attack, {100 * first_order:.1f} %")
assert standard["full grid"] <= standard[f"worst of {K}"] <= standard["one random"]
assert first_order > standard["full grid"] + 0.1
print(f"robust in ℓ∞, yet the grid leaves {100 * linf['full grid']:.1f} %")
assert linf["full grid"] <= (0.3 if args.quick else 0.05)
print(f"augmented {100 * augmented['full grid']:.1f} %, ", end="")
print(f"worst of {TRAIN_K} {100 * worst['full grid']:.1f} %")
if not args.quick:
    assert augmented["full grid"] > standard["full grid"] + 0.05
    assert worst["full grid"] > augmented["full grid"] + 0.05

# %% [markdown]
# ## Try next
#
# - What does the angle alone do, with `max_shift=0`, and what the shift alone, with `max_angle=0`?
# - Give the first-order attack ten starts of 20 steps, instead of one of 200.
# - Take a turn and a shift, and PGD after them. Do the two add up?
# - Answer by a vote over ten random transformations of the image. How much does that help against
#   the grid, and how much if the attacker knows of it?
# - Train a wider network on the worst of ten: lesson 09 says what capacity is for.
