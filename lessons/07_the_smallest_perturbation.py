# %% [markdown]
r"""
# 07 The smallest perturbation

**Question.** Lesson 06 fixed a radius ε and asked which images survive. Often no ε is given.
Then the natural question is the reverse: how far is the nearest misclassified image?

$$d(x) = \min \|\delta\| \quad\text{subject to}\quad x + \delta \text{ is a misclassified image}.$$

This distance answers the question for all radii at once: an image survives every attack of
radius ε exactly if d(x) > ε. So the robust accuracy at ε is the share of images with d(x) > ε,
where d = 0 for an image that is misclassified already. An attack finds *some* perturbation that
works, whose length is an upper bound on d(x). We build two: DeepFool takes a few steps, and the
attack of Carlini and Wagner takes thousands and finds shorter perturbations.

**Time.** One minute on two cores. **You need** lessons 04 (dual norms) and 06 (PGD). **After
this lesson you can** compute the distance to a linear decision boundary in any norm, write both
attacks from scratch, and read the robust accuracy at any radius from their distances.
"""

# %%
import itertools
import warnings

import numpy as np
from plots import the_smallest_perturbation as plots
from support import cli, zoo

from tinyadv import Tensor, attacks, evaluate, grad, ops, optim
from tinyadv.balls import L2

run = cli.start("07_the_smallest_perturbation", __doc__)
digits = run.load()  # 28×28 images of printed digits, unless --data says otherwise
networks = {"standard": zoo.standard(digits), "robust": zoo.robust(digits)}
standard = networks["standard"]
x, y = cli.spread(digits.x_test, digits.y_test, 10 if run.quick else 60)  # (N, 1, 28, 28), (N,)
correct = evaluate.predict(standard, x) == y
few, few_y = x[correct][:8], y[correct][:8]
warnings.simplefilter("ignore", attacks.AttackWarning)  # a distance of ∞ says it as well

# %% [markdown]
# ## Step 1: the distance to a hyperplane
#
# Let f = z_y − z_k be the lead of the true class y over another class k, so that class k
# overtakes where f reaches 0. Suppose first that the network is linear: f(x + δ) = f(x) + wᵀδ,
# with f(x) > 0. The points with f = 0 form a hyperplane, and δ leads there if wᵀδ = −f(x). By
# the Cauchy–Schwarz inequality
#
# $$f(x) = |w^\top \delta| \le \|w\|_2 \|\delta\|_2, \qquad \|\delta\|_2 \ge f(x) / \|w\|_2.$$
#
# The perturbation δ = −f(x) w / ‖w‖₂² has exactly this length. It is the shortest way to the
# hyperplane, straight against the gradient.
#
# Any other norm works in the same way. Its dual norm ‖w‖_* is the largest wᵀd with ‖d‖ ≤ 1, the
# gain of a steepest step in lesson 06. Then |wᵀδ| ≤ ‖w‖_* ‖δ‖, and the distance is f/‖w‖_*:
# f/‖w‖₁ in the ∞-norm, and f/‖w‖∞ in the 1-norm.
#
# There are K − 1 such functions f, one for each other class. The smallest of them is the
# *margin* z_y − max of the other logits, and an image is misclassified where its margin is
# negative. The nearest hyperplane is the one with the smallest f/‖w‖₂, which need not be the
# one with the smallest f.


# %%
def per_image(a):
    return a[:, None, None, None]  # (N,) -> (N, 1, 1, 1)


def length(delta):
    return np.sqrt((delta**2).sum(axis=(1, 2, 3)))  # ‖δ‖₂: (N, 1, 28, 28) -> (N,)


def nearest_hyperplane(model, x, y):
    """The shortest step to a boundary of the linearised network, and its length."""
    image = Tensor(x)
    z = model(image)  # (N, K)
    step, nearest = np.zeros_like(x), np.full(len(x), np.inf)
    for k in range(z.shape[1]):
        f = z[np.arange(len(x)), y] - z[:, k]  # (N,)
        (w,) = grad(f.sum(), [image])  # (N, 1, 28, 28)
        norm = np.maximum(length(w), 1e-12)
        distance = np.where(y == k, 1e9, f.value / norm)  # the label is not another class
        step = np.where(per_image(distance < nearest), -per_image(distance / norm) * w, step)
        nearest = np.minimum(distance, nearest)
    return step, nearest


# %% [markdown]
# ## Step 2: DeepFool linearises again and again
#
# For a real network this is only an estimate. Moosavi-Dezfooli et al. (2016) take the step,
# linearise again at the new point, and go on until the prediction changes. Each is a Newton
# step, for the class whose hyperplane is nearest. The steps add up to r. A point on the
# boundary is not yet misclassified, so the network is evaluated beyond it, at x + 1.02 r.


# %%
def deepfool(model, x, y, steps=50, overshoot=0.02):
    r, x_adv = np.zeros_like(x), x
    for _ in range(steps):
        correct = model(x_adv).value.argmax(axis=1) == y  # (N,)
        if not correct.any():
            break
        step, _ = nearest_hyperplane(model, x_adv, y)
        r = r + np.where(per_image(correct), step, 0)  # misclassified images stop
        x_adv = np.clip(x + (1 + overshoot) * r, 0, 1).astype(x.dtype)
    return x_adv


_, estimate = nearest_hyperplane(standard, few, few_y)
ours = length(deepfool(standard, few, few_y) - few)
print(f"one linearisation: {estimate.round(2)}\nDeepFool:          {ours.round(2)}")

# %% [markdown]
# ## Step 3: Carlini and Wagner minimise the length
#
# DeepFool stops at the first error it meets, which need not be the nearest one. To *minimise*
# the length, Carlini & Wagner (2017) turn the constraint into a penalty on the margin m, with a
# weight c > 0:
#
# $$\min_\delta\ \|\delta\|_2^2 + c \max(m(x + \delta), 0).$$
#
# Why the margin and not the cross-entropy? The penalty ends exactly where the constraint is
# met, and its gradient does not vanish where the network is sure (lesson 05).
#
# What does c do? Take again a linear margin m(x + δ) = f + wᵀδ. As long as it is positive, the
# gradient 2δ + cw is zero at δ = −cw/2, and the margin there is f − c‖w‖₂²/2.
#
# - If c < 2f/‖w‖₂², this margin is positive: the penalty is too weak, and the attack fails.
# - If c ≥ 2f/‖w‖₂², the objective falls up to the boundary and rises beyond it. So the minimum
#   is at the kink, on the boundary: the shortest perturbation of step 1.
#
# In theory, then, any c above a threshold is right. In practice, a large c carries the descent
# far beyond the boundary, where only the small gradient 2δ leads back. So each image gets its
# own search for the smallest c that works: multiply c by ten until an attack succeeds, then
# bisect.
#
# To keep the pixels between 0 and 1 without clipping, we optimise over u instead of δ, with
#
# $$x + \delta = (1 + \tanh u) / 2.$$
#
# The descent uses Adam, which is RMSprop (lesson 02) with a running mean of the gradients. It
# crosses the boundary in both directions, so we keep the nearest misclassified point.


# %%
def margin(z, y):
    """z_y − max of the other logits: (N, K), (N,) -> (N,)."""
    label = np.arange(z.shape[1]) == y[:, None]  # (N, K)
    return ops.where(label, z, 0).sum(axis=1) - ops.max(ops.where(label, -np.inf, z), axis=1)


def descend(model, x, y, c, steps):
    """The nearest misclassified point on the way, and its ‖δ‖₂², ∞ if there is none."""
    u = Tensor(np.arctanh(0.999999 * (2 * x - 1)))  # arctanh(±1) would be infinite
    adam = optim.Adam([u], lr=0.01)
    best, best_square = x, np.full(len(x), np.inf)
    for _ in range(steps):
        image = (1 + ops.tanh(u)) / 2
        square = ((image - x) ** 2).sum(axis=(1, 2, 3))  # (N,)
        m = margin(model(image), y)  # (N,)
        better = (m.value < 0) & (square.value < best_square)
        best = np.where(per_image(better), image.value, best)
        best_square = np.where(better, square.value, best_square)
        adam.step(grad((square + c * ops.relu(m)).sum(), [u]))
    return best, best_square


def carlini_wagner(model, x, y, c, steps, searches):
    """The nearest misclassified point over all c, and its ‖δ‖₂."""
    c = np.full(len(x), c, x.dtype)
    low, high = np.zeros_like(c), np.full_like(c, np.inf)
    best, best_square = x, np.full(len(x), np.inf)
    for _ in range(searches):
        x_adv, square = descend(model, x, y, c, steps)
        better, found = square < best_square, np.isfinite(square)
        best = np.where(per_image(better), x_adv, best)
        best_square = np.where(better, square, best_square)
        low, high = np.where(found, low, c), np.where(found, c, high)
        c = np.where(np.isfinite(high), (low + high) / 2, 10 * c).astype(x.dtype)
    return best, np.sqrt(best_square)


# %% [markdown]
# ## Check: the library computes the same
#
# `attacks.deepfool` and `attacks.carlini_wagner` are these two attacks. By default, the second
# one starts where DeepFool ends, and stops a descent that no longer improves. For the
# comparison we switch both off.

# %%
theirs = attacks.deepfool(standard, few, few_y, details=True)[1].distance
print(f"DeepFool, largest difference in length: {abs(ours - theirs).max():.0e}")
assert abs(ours - theirs).max() < 1e-3
steps, searches = (40, 2) if run.quick else (150, 5)
plain = {"start": "image", "abort_early": False, "search_steps": searches, "details": True}
_, found = attacks.carlini_wagner(standard, few, few_y, initial_c=10.0, steps=steps, **plain)
_, lengths = carlini_wagner(standard, few, few_y, 10.0, steps, searches)
print(f"Carlini–Wagner, ours: {lengths.round(2)}")
print(f"        the library's: {found.distance.round(2)}")
both = np.isfinite(lengths) & np.isfinite(found.distance)
assert both.any() and np.median(abs(lengths[both] - found.distance[both])) < 0.01

# %% [markdown]
# Some of these are *longer* than DeepFool's. Pixels at exactly 0 or 1 start at u ≈ ±7, where
# tanh is flat, and Adam, at 0.01 per step, needs hundreds of steps to leave. From now on we use
# the library's attack, which starts at DeepFool's point.
#
# ## Experiment: how near is the boundary?
#
# **Predict first.** As a yardstick take *half* the distance to the nearest training image of
# another class: somewhere on the way there the label must change. (a) Is the boundary of the
# standard network about as far away, or much nearer? (b) For which network will DeepFool, which
# trusts the linearisation, be longer in proportion to Carlini and Wagner's result?

# %%
budget = {"initial_c": 10.0, "steps": steps, "search_steps": searches}
adversarial, near, rows, medians = {}, {}, [], {}
for name, model in networks.items():
    far = attacks.deepfool(model, x, y, details=True)[1].distance
    adversarial[name], found = attacks.carlini_wagner(model, x, y, details=True, **budget)
    near[name] = found.distance
    linear = np.maximum(nearest_hyperplane(model, x, y)[1], 0)
    medians[name] = [float(np.median(d)) for d in (linear, far, near[name])]
    found = [int(np.isfinite(d).sum()) for d in (far, near[name])]
    rows.append([name, *(f"{median:.2f}" for median in medians[name]), *found])
    assert (near[name] <= far + 1e-4).mean() > 0.95
cli.table(["median ‖δ‖₂", "one step", "DeepFool", "C–W", "found: DeepFool", "C–W"], rows)

train, train_y = digits.x_train[:10_000], digits.y_train[:10_000]
other_class = np.array([length(train[train_y != y[i]] - x[i]).min() for i in range(len(x))])
print(f"half the distance to another class: {np.median(other_class) / 2:.2f}")
_, far, least = zip(*medians.values(), strict=True)  # standard, robust
assert run.quick or least[0] < least[1] < np.median(other_class) / 2
assert run.quick or far[1] / least[1] > far[0] / least[0]

# %% [markdown]
# <details><summary>Answers</summary>
#
# (a) Much nearer. The robust network's boundary is further away, but nearer than the yardstick.
#
# (b) For the robust one: its boundary is further away, where a linearisation is less accurate.
# </details>
#
# ## Experiment: near in which directions?
#
# Why does a little noise not fool the network, then? We cut through the space of images with a
# plane through one of them. One axis leads along the perturbation of Carlini and Wagner's
# attack, the other along a random direction. Then we add noise that is three times as long as
# the smallest perturbation of each image.

# %%
i = int(np.argsort(near["standard"])[len(x) // 2])  # the image with the median distance
noise = np.random.default_rng(run.seed).standard_normal(x.shape).astype(x.dtype)
noise /= per_image(length(noise))  # of length 1
a = np.linspace(-1.1, 1.1, 23 if run.quick else 61) * other_class[i]
down, right = (b[..., None, None, None].astype(x.dtype) for b in np.meshgrid(a, a, indexing="ij"))
planes = {}
for name, model in networks.items():
    delta = adversarial[name][[i]] - x[i]
    delta /= max(length(delta)[0], 1e-6)  # (1, 1, 28, 28), of length 1
    across = noise[i] - (noise[i] * delta).sum() * delta  # at a right angle
    points = (x[i] + right * delta + down * across / length(across)).reshape(-1, 1, 28, 28)
    planes[name] = margin(model(points), np.repeat(y[i], len(points))).value.reshape(len(a), -1)
run.show(plots.planes(a, planes, {k: d[i] for k, d in near.items()}, other_class[i]), "planes")

thrice = {}
for name, model in networks.items():
    some = (near[name] > 0) & np.isfinite(near[name])
    noisy = np.clip(x[some] + 3 * per_image(near[name][some]) * noise[some], 0, 1).astype(x.dtype)
    thrice[name] = evaluate.accuracy(model, noisy, y[some]) if some.any() else 1.0
    assert run.quick or thrice[name] > 0.8
cli.table(["network", "accuracy under noise"], list(thrice.items()))

# %% [markdown]
# The boundary is near in few directions, and the gradient finds them. Noise of length 1 has a
# component of only about 1/√784 = 1/28 along any one of them.
#
# Are adversarial examples "points close to the boundary"? PGD only raises the loss in an L2
# ball. DeepFool measures how far its results are from the region of another class.

# %%
x_adv = attacks.pgd(standard, x, y, ball=L2(1.5), steps=20, rng=run.seed)
fooled = evaluate.predict(standard, x_adv) != y
back = attacks.deepfool(standard, x_adv[fooled], details=True)[1].distance
print(f"median distance to the boundary: images {medians['standard'][1]:.2f}, ", end="")
print(f"adversarial examples {np.median(back):.2f}")
assert run.quick or np.median(back) < medians["standard"][1]

# %% [markdown]
# ## Experiment: robust accuracy at every ε from one run
#
# The curve is the share of images whose distance exceeds ε; the crosses are PGD runs, one for
# each radius. Both overestimate the robust accuracy, since any attack can miss. A cross above
# the curve shows errors that PGD missed; a cross below it, distances that are too long.

# %%
radii, pgd = (0.5, 1.0, 1.5, 2.0, 3.0), {"standard": [], "robust": []}
for name, radius in itertools.product(networks, radii):
    x_adv = attacks.pgd(networks[name], x, y, ball=L2(radius), steps=20, rng=run.seed)
    pgd[name].append(evaluate.accuracy(networks[name], x_adv, y))
    assert run.quick or (near[name] > radius).mean() <= pgd[name][-1] + 0.1
run.show(plots.every_radius(near, other_class, radii, pgd), "every radius")

# %% [markdown]
# ## Limits
#
# All distances here are upper bounds; lesson 14 gives lower bounds. Both attacks need useful
# gradients, as PGD does. We used few images and steps, and the 2-norm, in which the robust
# network was not trained. The planes leave the range of pixel values.
#
# ## Exercises
#
# `python -m lessons.exercises 07` gives you stubs (`lessons/exercises/07.py`), and checks them.
#
# 1. Compute the robust accuracy at every radius from the distances that one attack found.
# 2. Write `nearest_hyperplane` for the ∞-norm. (Hint: which step has the length f/‖w‖₁?)
# 3. Which δ minimises Carlini and Wagner's objective, for a linear margin and any c?
# 4. Shorten adversarial examples by bisection on the way back to x, without a gradient.
#
# ## References
#
# Moosavi-Dezfooli et al. (2016), "DeepFool". Carlini & Wagner (2017), "Towards evaluating the
# robustness of neural networks".

# %%
run.record(
    medians=medians, other_class=float(np.median(other_class)), noise=thrice,
    back=float(np.median(back)), radii=radii, pgd=pgd,
)  # fmt: skip
