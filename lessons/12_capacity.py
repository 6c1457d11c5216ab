# %% [markdown]
r"""
# 12 Capacity

**Question.** A small network classifies digits well. Is the same network large enough to
classify them *robustly*, or does robustness need more filters, more hidden units, more weights?

Madry et al. (2018) doubled the width of a network four times, and trained each width on clean
images, on the FGSM's adversarial examples, and on PGD's adversarial examples. On clean images
the smallest network did nearly as well as the largest. On PGD's adversarial examples it learned
nothing.

This lesson shows on a few points in the plane why robust classification can need a larger
network. Then it repeats Madry's experiment.

**Time.** One minute on two cores, and ten seconds once the networks are trained. **You need**
lessons 04 (the worst case of a linear model, dual norms), 06 (PGD) and 10 (min-max training).
**After this lesson you can** say what capacity means, derive how many units a robust classifier
of given points needs, and say why a high training loss does not prove a network too small.
"""

# %%
import numpy as np
from plots import capacity as plots
from support import cli, zoo

from tinyadv import attacks, evaluate, models, to_numpy
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

run = cli.start("12_capacity", __doc__)
rng = np.random.default_rng(run.seed)

# %% [markdown]
# ## Step 1: points are easier to separate than balls
#
# The *capacity* of a family of classifiers is, loosely, how complicated its decision boundaries
# can be. For a network it grows with the number of units and weights.
#
# Take n points on a zigzag. Point k has first coordinate k = 0, 1, …, n − 1 and second
# coordinate +s or −s, in turn. Those above the axis are class +1, those below are class −1. The
# axis x₂ = 0 separates the two classes, so a linear classifier is enough.

# %%
n, s = 6, 0.1
k = np.arange(n)
sign = np.where(k % 2 == 0, 1, -1)  # (n,): the classes +1, −1, +1, …
points = np.stack([k, s * sign], axis=1)  # (n, 2)

# %% [markdown]
# A *robust* classifier must be correct on the whole ball ‖δ‖∞ ≤ ε around each point, which is a
# square with sides of length 2ε. Let y = ±1 be the class of x. Lesson 04 derived the worst case
# of a linear classifier wᵀx + b: a perturbation can lower y(wᵀx + b) by ε‖w‖₁, and not by more.
# So the line wᵀx + b = 0 separates the squares if
#
# $$y\,(w^T x + b) > \epsilon \|w\|_1 \quad \text{for every point } x \text{ with class } y.$$
#
# Which line separates the largest squares? For a direction w the best threshold −b lies halfway
# between the lowest wᵀx of class +1 and the highest wᵀx of class −1. Half of the gap between
# them, divided by ‖w‖₁, is then the largest ε. In the plane we can simply try many directions.

# %%
angle = np.linspace(0, 2 * np.pi, 3601)
w = np.stack([np.cos(angle), np.sin(angle)])  # (2, A): one direction for each angle
value = points @ w  # wᵀx for every point and direction: (n, 2) @ (2, A) -> (n, A)
gap = value[sign > 0].min(axis=0) - value[sign < 0].max(axis=0)  # (n, A) -> (A,)
largest = gap / 2 / abs(w).sum(axis=0)  # the ε of each direction; negative: not separated
print(f"largest ε for which a line separates the squares: {largest.max():.3f}")

distance = abs(points[sign > 0][:, None] - points[sign < 0][None]).max(axis=2)  # (n/2, n/2)
print(f"largest ε for which squares of different classes do not overlap: {distance.min() / 2:.3f}")
assert abs(largest.max() - s) < 1e-6 and distance.min() / 2 == 0.5

# %% [markdown]
# Between these two values of ε the squares are disjoint, so a robust classifier exists, but a
# linear classifier is not robust. The boundary has to bend.
#
# ## Step 2: how many units does the robust classifier need?
#
# Consider a network with one hidden layer of H ReLUs, f(x) = c + Σᵢ vᵢ relu(wᵢᵀx + bᵢ), with
# the predicted class sign f(x). For ε > s the point (k, 0) of the axis lies in square k. Walk
# along the axis from (0, 0) to (n − 1, 0). A robust f is positive in the first square, negative
# in the second, positive in the third, and so on: its sign changes at least n − 1 times.
#
# How many kinks does that take? f falls between the first two of these points, rises between
# the next two, and so on, so its slope along the axis changes sign at least n − 2 times. At x =
# (t, 0) each relu(wᵢᵀx + bᵢ) is piecewise linear in t, with at most one kink. So f has at most
# H kinks, and its slope is constant between them. Therefore **H ≥ n − 2**.
#
# One unit is enough to classify the points: f(x) = relu(x₂ + 1) − 1. To classify squares with ε
# > s, the number of units has to grow with the number of points.
#
# The bound is nearly sharp: n units suffice. Let h(x₁) be a zigzag that passes through −1 below
# each point of class +1, and through +1 above each point of class −1. Predict the sign of f(x)
# = x₂ − h(x₁). The zigzag takes one unit for its first slope and one for each of its n − 2
# kinks, and one more unit computes x₂. The constant 1 makes f(0, 0) = 1.

# %%
W = np.zeros((n, 2))  # one row of weights for each unit
W[:-1, 0], W[-1, 1] = 1, 1  # the first n − 1 units look at x₁, the last one at x₂
b = np.array([1, *-k[1:-1], 2])  # kinks at x₁ = −1, 1, 2, …, n − 2; x₂ + 2 stays positive
v = np.array([-2, *-4 * sign[1:-1], 1])  # the slope in x₁ is −2, then +2, then −2, …


def f(x):
    """The network with n hidden units: (N, 2) -> (N,)."""
    return 1 + np.maximum(x @ W.T + b, 0) @ v  # (N, 2) -> (N, n) -> (N,)


epsilon = 0.3
corners = epsilon * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
worst = (sign * f((points[None] + corners[:, None]).reshape(-1, 2)).reshape(4, n)).min(axis=0)
print(f"ε = {epsilon}: the smallest y f(x) in each square is", np.round(worst, 3))
assert np.allclose(worst, 1 + s - 3 * epsilon)  # exercise 1

axis = np.stack([np.linspace(0, n - 1, 1002), np.zeros(1002)], axis=1)  # (1002, 2)
changes = (np.diff(np.sign(f(axis))) != 0).sum()
print(f"the sign of f changes {changes} times along the axis")
assert changes == n - 1
run.show(plots.squares(points, sign, epsilon, f), "squares")

# %% [markdown]
# On the left the line classifies all points correctly, but each square reaches across it: the
# coloured parts are adversarial examples. On the right the boundary avoids every square.
#
# The argument shows that a robust classifier *can* need more units than a classifier. Whether
# images of digits are such a case needs an experiment.
#
# ## Step 3: a family of networks
#
# Madry's smallest network has two convolutions with 2 and 4 filters of 5×5 pixels, each
# followed by max pooling, and a hidden layer of 64 units. The network ×w has w times as many of
# each; ×16 is the network that Madry et al. use for all their other results on MNIST. How many
# parameters is that?
#
# | layer | weights | biases |
# |---|---|---|
# | convolution, 1 → 2w channels | 25 · 2w | 2w |
# | convolution, 2w → 4w channels | 25 · 2w · 4w | 4w |
# | dense, 7 · 7 · 4w → 64w | 196w · 64w | 64w |
# | dense, 64w → 10 | 64w · 10 | 10 |
#
# The sum is 12,744 w² + 760 w + 10: doubling the width takes about four times as many
# parameters.

# %%
for width in (1, 2, 4, 8, 16):
    size = 12_744 * width**2 + 760 * width + 10
    print(f"×{width:<2}  {size:9,} parameters")
    assert size == sum(p.size for p in zoo.widened(width).parameters())
assert size == sum(p.size for p in models.madry_cnn().parameters())

# %% [markdown]
# ## Step 4: three trainings, and what to measure
#
# All networks are trained by lesson 10's loop, and only the inner maximisation differs:
#
# - *standard* training has none,
# - *FGSM* training takes one step of length ε from the image itself,
# - *PGD* training takes several steps from a random start in the ball.
#
# The radius ε grows from 0 to its full value during the first epoch (the warm-up of lesson 10).
#
# Capacity limits how well a network can *fit* its training examples. We therefore measure the
# mean loss on a few hundred of the training images, under the kind of attack used in training
# (with more steps of PGD, to come closer to the maximum). A test accuracy alone would mix two
# things, because a network can fit well and still generalise badly. We also measure the
# accuracy on test images, clean and under the two attacks.

# %%
widths = (1, 2) if run.quick else (1, 2, 4)
count = 2500 if run.options.data == "glyphs" else 10_000  # handwriting is harder to fit
digits = run.load(train=600 if run.quick else count)
settings = {"epochs": 2, "steps": 2} if run.quick else {"epochs": 4, "steps": 3, "batch_size": 50}
epsilon = zoo.EPSILON[digits.name]
ball = Linf(epsilon)
x, y = cli.spread(digits.x_test, digits.y_test, 100 if run.quick else 150)
x_train, y_train = digits.x_train[: len(x)], digits.y_train[: len(x)]


def fgsm(model, x, y):
    return attacks.fgsm(model, x, y, ball=ball)


def pgd(model, x, y):
    return attacks.pgd(model, x, y, ball=ball, steps=10 if run.quick else 20, rng=run.seed)


def mean_loss(model, x, y, attack):
    return float(cross_entropy(model(attack(model, x, y) if attack else x), y))


# %% [markdown]
# ## Check: the library computes the same
#
# The network of step 2 is a standard multilayer perceptron, so `models.mlp` with our weights
# must give the same values.

# %%
library = models.mlp((2, n, 1)).astype(np.float64)
for parameter, value in zip(library.parameters(), (W, b, v[None], [1]), strict=True):
    parameter.value[...] = value
anywhere = rng.uniform([-2, -3], [n + 1, 3], (500, 2))  # both sides of every kink
difference = abs(to_numpy(library(anywhere))[:, 0] - f(anywhere)).max()
print(f"largest difference to the library: {difference:.0e}")
assert difference < 1e-12

# %% [markdown]
# ## Experiment: wider networks
#
# **Predict first.** (a) After standard training, does width help on clean images? And under
# PGD? (b) In which of the three trainings does the loss on the training examples fall most when
# the network is widened? (c) A wide network after FGSM training withstands FGSM. Does it
# withstand PGD?

# %%
tests = {"clean": None, "FGSM": fgsm, "PGD": pgd}
loss, accuracy, rows = {}, {}, []
for training, own_attack in zip(("standard", "FGSM", "PGD"), tests.values(), strict=True):
    loss[training], accuracy[training] = [], {test: [] for test in tests}
    for width in widths:
        model = zoo.capacity(digits, width=width, training=training, **settings)
        loss[training].append(mean_loss(model, x_train, y_train, own_attack))
        for test, attack in tests.items():
            accuracy[training][test].append(evaluate.accuracy(model, x, y, attack))
        found = [accuracy[training][test][-1] for test in tests]
        rows.append([f"{training} training, ×{width}", f"{loss[training][-1]:.3f}", *found])
cli.table(["", "training loss", "clean", "FGSM", "PGD"], rows)
run.show(plots.training_loss(widths, loss), "training loss")
run.show(plots.accuracies(widths, accuracy), "accuracies")

assert max(accuracy["standard"]["PGD"]) < 0.1
if not run.quick:
    assert loss["PGD"][-1] < loss["PGD"][0] - 0.1
    assert accuracy["standard"]["clean"][0] > 0.8
    assert accuracy["PGD"]["PGD"][-1] > accuracy["PGD"]["PGD"][0] + 0.05
    assert min(loss["PGD"]) > max(loss["standard"])
    assert accuracy["FGSM"]["FGSM"][-1] > accuracy["FGSM"]["PGD"][-1] + 0.2

# %% [markdown]
# <details><summary>Answers</summary>
#
# (a) On clean images the smallest network is already nearly as good as the others. Under PGD no
# standard network classifies more than a few images correctly. Width alone does not make a
# network robust.
#
# (b) In the two kinds of adversarial training. The clean images can be fitted at every width.
# PGD's adversarial examples are harder to fit: even the widest network has a higher loss on
# them than the smallest network has on clean images.
#
# (c) No. The accuracy under FGSM rises with the width, and the accuracy under PGD stays low. A
# wide network can be correct at the one point of the ball where FGSM ends, and wrong elsewhere.
# </details>
#
# ## Experiment: too small, or badly trained?
#
# In the paper the smallest network learns nothing on PGD's adversarial examples: it predicts
# the same class for every image. Its ε was at its full value from the first step. Ours had a
# warm-up.
#
# What is the lowest loss of a network that ignores the image? An attack cannot change its
# output, and its probabilities p are the same for every image. If class c has a share q_c of
# the images, the mean loss is −Σ q_c ln p_c. It exceeds −Σ q_c ln q_c by Σ q_c ln(q_c/p_c), a
# Kullback–Leibler divergence, which is never negative and is zero for p = q. With ten equally
# frequent classes the lowest loss is ln 10 ≈ 2.303.
#
# **Predict first.** Train the smallest network with the full ε from the first step. Is its
# failure, if it fails, a lack of capacity?

# %%
abrupt = zoo.capacity(digits, width=1, training="PGD", warm_up=0.0, **settings)
q = np.bincount(y_train, minlength=10) / len(y_train)
print(f"lowest loss without looking at the image: {-(q[q > 0] * np.log(q[q > 0])).sum():.3f}")
stuck = {"loss": mean_loss(abrupt, x_train, y_train, pgd)}
stuck |= {test: evaluate.accuracy(abrupt, x, y, tests[test]) for test in ("clean", "PGD")}
grown = {"loss": loss["PGD"][0], "clean": accuracy["PGD"]["clean"][0]}
grown["PGD"] = accuracy["PGD"]["PGD"][0]
rows = [
    [name, f"{row['loss']:.3f}", row["clean"], row["PGD"]]
    for name, row in (("ε grows from 0", grown), ("full ε at once", stuck))
]
cli.table(["×1, PGD training", "training loss", "clean", "PGD"], rows)
assert run.quick or abs(stuck["loss"] - np.log(10)) < 0.25
assert run.quick or grown["loss"] < stuck["loss"] - 0.2

# %% [markdown]
# <details><summary>Answer</summary>
#
# Not by this evidence. With the full ε at once the loss stays near ln 10, so under attack the
# network is no better than one that ignores the image. The *same* network reaches a lower loss
# if ε grows slowly. So weights with a lower loss exist, and this training did not find them. A
# low loss proves that a network is large enough, but a high loss does not prove that it is too
# small.
# </details>
#
# ## Limits
#
# The lower bound of step 2 holds for one hidden layer and for points on a zigzag. Deeper
# networks can make many more linear pieces with the same number of units, and the lesson does
# not say how many bends the digits require. In the experiment each network was trained once,
# for a few epochs, so a difference of a few percentage points may be chance.
# `python -m lessons.experiments.capacity` trains all five widths up to ×16 on 20,000
# handwritten digits. The accuracies under PGD are upper bounds on the robust accuracy.
#
# ## Exercises
#
# `python -m lessons.exercises 12` gives you stubs (`lessons/exercises/12.py`), and checks them.
#
# 1. Derive the smallest y f(x) in a square if the zigzag passes through ±A instead of ±1. Up to
#    which ε is this network correct on all squares? (Hint: y f is concave on each square, so its
#    minimum is at a corner.)
# 2. How many parameters has the network if only the convolutions, or only the hidden layer, are
#    widened?
# 3. At which t does the slope of f(t, 0) change? (Hint: not every unit has a kink there, and
#    kinks can cancel each other.)
# 4. Derive a robust loss that no network can go below, from pairs of images whose balls overlap.
#
# ## References
#
# Madry, Makelov, Schmidt, Tsipras & Vladu (2018), "Towards deep learning models resistant to
# adversarial attacks", section 4 and figure 4. Montúfar, Pascanu, Cho & Bengio (2014), "On the
# number of linear regions of deep neural networks".

# %%
run.record(
    epsilon=epsilon, widths=widths, training_loss=loss, accuracy=accuracy, without_warm_up=stuck
)
