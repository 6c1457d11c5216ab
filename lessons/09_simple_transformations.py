# %% [markdown]
r"""
# 09 Simple transformations

**Question.** So far every attack chose the change of every pixel. But images also change when
nobody attacks: a camera is held at an angle, a digit is written off-centre. Does a network with
an accuracy of 99 % survive a rotation by at most 30° and a shift by at most 3 pixels?

The inner maximisation is the one of lesson 06, over another set. With T_t(x) for the image x,
rotated by θ and then shifted by s₁ pixels to the right and s₂ down, t = (θ, s₁, s₂), we look
for

$$\max_{|\theta| \le 30°,\; |s_1| \le 3,\; |s_2| \le 3} L(f(T_t(x)), y).$$

There are three unknowns instead of 784, so we can look at the whole landscape.

**Time.** One minute on two cores, and half of that once the first two networks are trained.
**You need** lesson 06 (PGD). **After this lesson you can** rotate images by bilinear
interpolation, differentiate the result, and explain why a grid is a better attack here than
gradient ascent.
"""

# %%
from functools import partial
from itertools import product

import numpy as np
from plots import simple_transformations as plots
from support import cli, zoo

from tinyadv import Tensor, attacks, defenses, evaluate, fit, grad, models, ops, optim
from tinyadv.attacks import spatial
from tinyadv.attacks.spatial import rotate_translate
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

run = cli.start("09_simple_transformations", __doc__)
rng = np.random.default_rng(run.seed)
digits = run.load()
standard, robust = zoo.standard(digits), zoo.robust(digits, epochs=1 if run.quick else 2)
x, y = cli.spread(digits.x_test, digits.y_test, 30 if run.quick else 70)
LIMITS = np.array([30.0, 3.0, 3.0])  # of t: degrees, pixels to the right, pixels down

# %% [markdown]
# ## Step 1: where does each pixel come from?
#
# For each pixel of the new image we compute where it was in the old one. Let (a, b) be its
# column and row, counted from the centre of the image. Undo the shift first, a′ = a − s₁ and b′
# = b − s₂, and then rotate by −θ:
#
# $$u = \cos\theta\; a' - \sin\theta\; b', \qquad v = \sin\theta\; a' + \cos\theta\; b'.$$
#
# Rows are counted downwards, so a positive θ turns the image counter-clockwise: with θ = 90°,
# what was below the centre is now to its right. (The other direction, from old pixels to new
# ones, would leave holes.)
#
# ## Step 2: what is the value between four pixels?
#
# Count u and v from the first column and row from now on. The point (u, v) is usually not the
# centre of a pixel. Let j = ⌊u⌋ and i = ⌊v⌋ be the pixel to its upper left, and r = u − j and q
# = v − i the remainders, between 0 and 1. *Bilinear interpolation* is linear along the row
# above, along the row below, and between the two:
#
# $$(1-q)\,[(1-r)\,x_{i,j} + r\,x_{i,j+1}] + q\,[(1-r)\,x_{i+1,j} + r\,x_{i+1,j+1}].$$
#
# So each new pixel gathers four old ones, with weights that add up to 1. Outside the image
# everything is 0. The derivative with respect to u is (1−q)(x_{i,j+1} − x_{i,j}) +
# q(x_{i+1,j+1} − x_{i+1,j}), and the chain rule through u and v gives the one with respect to
# t. Where i or j jumps, the value is continuous and only its slope changes.


# %%
def transform(x, t):
    """Images (N, 1, H, W), an array, moved by t (N, 3), a Tensor: (N, 1, H, W)."""
    n, _, height, width = x.shape
    angle, right, down = (ops.reshape(t[:, i], (n, 1, 1)) for i in range(3))
    cos, sin = ops.cos(angle * np.pi / 180), ops.sin(angle * np.pi / 180)  # (N, 1, 1)
    a = np.arange(width) - (width - 1) / 2 - right  # (N, 1, W)
    b = np.arange(height)[:, None] - (height - 1) / 2 - down  # (N, H, 1)
    u = cos * a - sin * b + (width - 1) / 2  # (N, H, W), counted from the first column
    v = sin * a + cos * b + (height - 1) / 2
    j, i = np.floor(u.value), np.floor(v.value)
    r, q = u - j, v - i
    padded = np.pad(x[:, 0], [(0, 0), (2, 2), (2, 2)])  # two black pixels around each image
    i = np.clip(i, -2, height).astype(int) + 2  # a point far outside gathers black pixels
    j = np.clip(j, -2, width).astype(int) + 2
    image = np.arange(n)[:, None, None]
    above = (1 - r) * padded[image, i, j] + r * padded[image, i, j + 1]  # (N, H, W)
    below = (1 - r) * padded[image, i + 1, j] + r * padded[image, i + 1, j + 1]
    return ops.reshape((1 - q) * above + q * below, x.shape)


# %% [markdown]
# ## Step 3: three ways to look for the worst transformation
#
# - *Grid*: all combinations of 31 angles and 5 × 5 shifts, 775 in all.
# - *Worst of ten*: ten random transformations.
# - *First-order*: gradient ascent on the loss with respect to t, as in PGD. It starts at a
#   random t and takes 200 steps along the sign of the gradient, clipped to the limits. A step
#   moves each component of t by 1 % of its limit.
#
# An image survives an attack if the network classifies it correctly at all points that the
# attack visits.


# %%
def grid(angles=31, shifts=5):
    counts = (angles, shifts, shifts)
    return list(product(*(np.linspace(-m, m, k) for m, k in zip(LIMITS, counts, strict=True))))


def climb(model, x, y, t, limits=LIMITS, steps=200):
    """Gradient ascent from t (N, 3): the path (steps + 1, N, 3), the loss and errors on it."""
    path, loss, wrong = [], [], []
    for _ in range(steps + 1):
        point = Tensor(t)
        z = model(transform(x, point))  # (N, K)
        losses = cross_entropy(z, y, reduction="none")  # (N,)
        (g,) = grad(losses.sum(), [point])  # (N, 3)
        path.append(t)
        loss.append(losses.value)
        wrong.append(z.value.argmax(axis=1) != y)
        t = np.clip(t + 0.01 * limits * np.sign(g), -limits, limits)
    return np.stack(path), np.stack(loss), np.stack(wrong)


# %% [markdown]
# ## Check: the library computes the same
#
# `rotate_translate` is our `transform`. The library's grid, which includes t = 0, skips images
# that are misclassified already; the accuracy is the same.

# %%
few, few_y = x[:8].astype(np.float64), y[:8]
t = LIMITS * rng.uniform(-1, 1, (8, 3))
apart = abs(transform(few, Tensor(t)).value - rotate_translate(few, t[:, 0], t[:, 1:])).max()
print(f"transformed images, largest difference to the library: {apart:.0e}")
assert apart < 1e-12

first_order = partial(spatial.spatial_first_order, rng=run.seed, details=True)
_, start = first_order(standard, few, few_y, steps=1, step_size=0.0)
_, theirs = first_order(standard, few, few_y, steps=20)
path, loss, wrong = climb(standard, few, few_y, start, steps=20)
ours = path[(loss + 1e9 * wrong).argmax(axis=0), np.arange(8)]  # errors first, then the loss
print(f"first-order attack, largest difference of t: {abs(ours - theirs).max():.0e}")
assert abs(ours - theirs).max() < 1e-9

survives = np.ones(len(few), bool)
for angle, *shift in grid(7, 3):
    survives &= evaluate.predict(standard, rotate_translate(few, angle, shift)) == few_y
small = spatial.spatial_grid(standard, few, few_y, angles=7, shifts=3)
assert (survives == (evaluate.predict(standard, small) == few_y)).all()

# %% [markdown]
# ## Experiment: the three attacks
#
# **Predict first.** On pixels, random noise hardly fools a network, and gradient ascent nearly
# always does. Which will find more errors here, 200 steps of gradient ascent or ten random
# transformations?

# %%
steps, size = (20, {"angles": 7, "shifts": 3}) if run.quick else (200, {"angles": 31, "shifts": 5})
full_grid = partial(spatial.spatial_grid, **size)
tries = {
    "one random": (1, partial(spatial.spatial_random, k=1, rng=run.seed)),
    "worst of 10": (10, partial(spatial.spatial_random, k=10, rng=run.seed)),
    "first-order": (steps + 1, partial(spatial.spatial_first_order, steps=steps, rng=run.seed)),
    "grid": (len(grid(**size)), full_grid),
}
clean = evaluate.accuracy(standard, x, y)
results = {name: attack(standard, x, y) for name, (_, attack) in tries.items()}
found = {name: evaluate.accuracy(standard, moved, y) for name, moved in results.items()}
rows = [[name, str(tries[name][0]), accuracy] for name, accuracy in found.items()]
cli.table(["standard network", "tries", "accuracy"], [["no attack", "", clean], *rows])
predicted = evaluate.predict(standard, results["grid"])
run.show(plots.worst(x, results["grid"], y, predicted, digits.classes), "worst")
assert found["grid"] <= (0.3 if run.quick else 0.05)
assert found["grid"] <= found["worst of 10"] < found["first-order"] <= clean

# %% [markdown]
# <details><summary>Answer</summary>
#
# Ten random transformations find more errors than 200 steps of gradient ascent, although they
# cost much less. The grid finds an error for all images or almost all. In the figure, a person
# still recognises the digits.
# </details>
#
# ## Why is gradient ascent weak here?
#
# A picture has room for two unknowns, so we fix the shift down at 0 and draw the loss over this
# *slice*. A *local maximum* is a point of the drawn grid that is higher than all its
# neighbours. We count them, and start gradient ascent from 24 random points of the slice. The
# figure shows an image on which ascent succeeds less often than usual.

# %%
A, S = (31, 13) if run.quick else (61, 31)  # angles and shifts that are drawn
slice_limits = LIMITS * [1, 1, 0]  # no shift down
points = np.array(list(product(np.linspace(-30, 30, A), np.linspace(-3, 3, S), [0.0])))  # (A·S, 3)


def landscape(image, label):
    """The loss, and whether the network is wrong, over angle and shift: (A, S) each."""
    many = np.repeat(image[None], len(points), axis=0)  # (A·S, 1, 28, 28)
    moved = rotate_translate(many, points[:, 0], points[:, 1:])
    z = standard(moved).value  # (A·S, K)
    loss = cross_entropy(z, np.full(len(z), label), reduction="none")
    return loss.reshape(A, S), (z.argmax(axis=1) != label).reshape(A, S)


def local_maxima(loss):
    """Whether a point is higher than its neighbours: (A, S) -> (A, S)."""
    around = np.pad(loss, 1, constant_values=-np.inf)  # (A + 2, S + 2)
    neighbours = [around[i : i + A, j : j + S] for i, j in product(range(3), repeat=2)]
    del neighbours[4]  # the point itself
    return np.all([loss > neighbour for neighbour in neighbours], axis=0)


correct = np.flatnonzero(evaluate.predict(standard, x) == y)
slices, maxima, reached, already = [], [], [], []
for k in correct[: 2 if run.quick else 3]:
    loss, wrong = landscape(x[k], y[k])
    start = slice_limits * rng.uniform(-1, 1, (24, 3))
    path, _, errors = climb(
        standard, np.repeat(x[[k]], 24, 0), np.full(24, y[k]), start, slice_limits, steps
    )
    maxima.append(int(local_maxima(loss).sum()))
    if wrong.any():
        already.append(float(errors[0].mean()))
        reached.append(float(errors.any(axis=0).mean()))
        slices.append((loss, wrong, local_maxima(loss), path[..., :2], errors))
print(f"{np.mean(maxima):.0f} local maxima on average; where the slice contains errors, ", end="")
print(f"{np.mean(already):.0%} of the starts and {np.mean(reached):.0%} of the ascents find one")
run.show(plots.landscape(*slices[int(np.argsort(reached)[len(reached) // 3])]), "landscape")
assert np.mean(maxima) > 3 and np.mean(reached) < 0.9

# %% [markdown]
# The loss has many local maxima, and each of them can stop gradient ascent: it climbs the
# nearest bump, whether or not the network is wrong there. For pixels it was different. In
# lesson 06, PGD ended at a similar loss from all random starts. Random points do not follow the
# slope, so bumps do not stop them. If a share p of all transformations fools the network on an
# image, ten random ones find an error with probability 1 − (1 − p)¹⁰. With three unknowns, a
# grid of 775 points covers the whole set rather densely.
#
# ## Experiment: training against transformations
#
# Training on one random transformation of each image is *data augmentation*. Training on the
# worst of k is min-max training with a cheap inner maximisation (lesson 10): among k random
# transformations of an image, the network learns from the one with the largest loss.
#
# **Predict first.** (a) Does the L∞-robust network survive the grid? (b) Does a network trained
# on transformations survive PGD in the L∞ ball?


# %%
def trained_on_worst_of(k, epochs=1 if run.quick else 3):
    part = run.load(None if run.quick else 10_000)  # 10,000 images, to save time
    model = models.slides_cnn(run.seed)
    rate = optim.piecewise_linear([(0, 0.0005), (0.4 * epochs, 0.005), (epochs, 0.0001)])
    fit(
        model, part, optim.Adam(model.parameters()), epochs, defenses.WorstOfK(k, rng=run.seed),
        schedule=rate, rng=run.seed, validate=False,
    )  # fmt: skip
    return model


networks = {"standard": standard, "robust in L∞": robust}
networks |= {"augmented (k = 1)": trained_on_worst_of(1), "worst of 4": trained_on_worst_of(4)}
epsilon = zoo.EPSILON[digits.name]
threats = {"clean": None}
threats |= {name: tries[name][1] for name in ("one random", "worst of 10", "grid")}
threats[f"PGD, ε = {epsilon}"] = partial(attacks.pgd, ball=Linf(epsilon), steps=20)
accuracy = {"standard": {"clean": clean, **{key: found[key] for key in list(threats)[1:-1]}}}
for name, model in networks.items():
    row = accuracy.setdefault(name, {})
    row |= {k: evaluate.accuracy(model, x, y, a) for k, a in threats.items() if k not in row}
cli.table(["accuracy", *threats], [[name, *row.values()] for name, row in accuracy.items()])
if not run.quick:
    *_, on_grid, under_pgd = zip(*(row.values() for row in accuracy.values()), strict=True)
    assert on_grid[1] < 0.1 and under_pgd[3] < 0.1 < under_pgd[1]
    assert on_grid[0] < on_grid[2] < on_grid[3] - 0.1

# %% [markdown]
# <details><summary>Answers</summary>
#
# (a) No. On the grid it fails on almost all images. Rotating by a few degrees moves strokes,
# which changes many pixels by far more than ε, so the result lies outside the ball that the
# network was trained for.
#
# (b) No. Training on transformations did not prepare it for small changes of all pixels.
# Robustness is robustness against a particular set of changes.
# </details>
#
# Augmentation makes a random transformation harmless for most images, but helps much less
# against the grid. Training on the worst of four helps more there. The experiment
# `lessons.experiments.transformations` trains longer, with a larger k.
#
# Nobody has to attack a network for this to matter. Cameras are tilted, and people write
# off-centre. Already under *one random* transformation the standard network makes many more
# errors than on clean images.
#
# ## Limits
#
# The grid may miss errors between its points, so the true worst-case accuracy can only be
# lower. Our networks are small and trained for three epochs. A digit near the border is partly
# moved out of the image.
#
# ## Exercises
#
# `python -m lessons.exercises 09` gives you stubs (`lessons/exercises/09.py`), and checks them.
#
# 1. Step 1 computes where a new pixel came from. Compute where an old one goes.
# 2. From the share of transformations that fools the network on each image, compute the
#    accuracy to expect under the worst of k. (Hint: images differ, so what must be averaged?)
# 3. Apply the chain rule through u and v: what is the derivative with respect to θ, s₁ and s₂?
#    (Hint: the angle is in degrees, and it turns a′ and b′.)
# 4. From which points of a drawn landscape does ascent find an error, and from how many?
#
# ## References
#
# Engstrom et al. (2019), "Exploring the landscape of spatial robustness", first called "A
# rotation and a translation suffice: fooling CNNs with simple transformations". Jaderberg et
# al. (2015), "Spatial transformer networks" (differentiable bilinear interpolation).

# %%
run.record(
    standard={"clean": clean, **found},
    networks=accuracy,
    local_maxima=np.mean(maxima),
    ascents_that_find_an_error=np.mean(reached),
)
