# %% [markdown]
r"""
# 04 The linear explanation

**Question.** Lesson 03 found that a small change to an image can change the prediction of a
network. Is that a strange property of deep networks? Or does it already happen to the simplest
model there is, a weighted sum of the pixels? And how do we find such a change in a single step?

First we need two terms. A *threat model* says what the attacker knows, may do, and wants. In
our threat model the attacker knows the network and all its weights, may add a perturbation δ to
a clean image x, as long as no pixel changes by more than ε and the result is still an image,

$$\|\delta\|_\infty = \max_i |\delta_i| \le \epsilon, \qquad 0 \le x_i + \delta_i \le 1,$$

and wants the network to predict any wrong class. (Such an attack is called *untargeted*. In a
*targeted* attack, as in lesson 03, the attacker chooses the wrong class.) If x is correctly
classified, and x + δ is within these limits and misclassified, then x + δ is an *adversarial
example*.

**Time.** 25 seconds on two cores. **You need** lessons 01 (input gradients) and 02 (the
network). **After this lesson you can** compute the exact worst case of a linear model in three
norms, train a linear model for its worst case, and derive the fast gradient sign method.
"""

# %%
import numpy as np
from plots import the_linear_explanation as plots
from support import cli, zoo

from tinyadv import Tensor, attacks, evaluate, grad, ops
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

run = cli.start("04_the_linear_explanation", __doc__)
rng = np.random.default_rng(run.seed)
digits = run.load()  # 28×28 images of printed digits, unless --data says otherwise

# %% [markdown]
# ## Step 1: many small changes add up
#
# A linear model computes wᵀx. After the perturbation it computes wᵀ(x + δ) = wᵀx + wᵀδ. Pixel i
# contributes w_i δ_i, and may move by ε on its own. So the δ that raises the output most is δ_i
# = ε sign(w_i), and it gains
#
# $$w^\top \delta = \epsilon \sum_i |w_i| = \epsilon\, m\, n,$$
#
# where n is the number of pixels and m is the mean of |w_i|. For fixed ε and m it grows with n.
#
# What does a *random* perturbation do? If the signs of the δ_i are random, the terms ±ε w_i
# mostly cancel. Their sum has mean 0 and variance ε² Σ w_i², so its typical size is ε‖w‖₂. That
# grows only as √n.

# %%
epsilon = 0.2
rows = []
for n in (10, 100, 1000, 10_000, 100_000):
    w, x = rng.standard_normal(n), rng.random(n)
    gain = w @ (x + epsilon * np.sign(w)) - w @ x
    formula = epsilon * abs(w).mean() * n
    signs = rng.choice([-1.0, 1.0], (50, n))  # 50 random perturbations
    chance = np.sqrt(np.mean((epsilon * signs @ w) ** 2))  # their typical gain or loss
    rows.append([n, f"{gain:.1f}", f"{formula:.1f}", f"{chance:.2f}", f"{gain / chance:.0f}"])
    assert np.isclose(gain, formula)
cli.table(["n", "gain of ε sign(w)", "ε m n", "random signs", "ratio"], rows)
assert gain / chance > 100

# %% [markdown]
# ## Step 2: the same question in other norms
#
# Let the perturbation be limited in another norm, ‖δ‖ ≤ ε. How much can wᵀδ gain? The answer
# for ε = 1 is called the *dual norm* of w,
#
# $$\|w\|_* = \max_{\|\delta\| \le 1} w^\top \delta,$$
#
# and in general the gain is ε‖w‖_*. Each norm takes one line (Hölder's inequality is the
# general case):
#
# - ‖δ‖∞ ≤ ε: wᵀδ ≤ Σ |w_i| |δ_i| ≤ (Σ |w_i|) max |δ_i| ≤ ε‖w‖₁, equal for δ = ε sign(w). Dual:
#   ‖w‖₁.
# - ‖δ‖₂ ≤ ε: wᵀδ ≤ ‖w‖₂ ‖δ‖₂ ≤ ε‖w‖₂ (Cauchy–Schwarz), equal for δ = ε w/‖w‖₂. Dual: ‖w‖₂.
# - ‖δ‖₁ ≤ ε: wᵀδ ≤ Σ |w_i| |δ_i| ≤ max |w_i| (Σ |δ_i|) ≤ ε‖w‖∞, equal if δ changes only the
#   pixel with the largest |w_i|, by ε sign(w_i). Dual: ‖w‖∞.


# %%
w = rng.standard_normal(784)
one_pixel = np.sign(w) * (abs(w) == abs(w).max())
pairs = ((np.inf, 1, np.sign(w)), (2, 2, w / np.linalg.norm(w)), (1, np.inf, one_pixel))
for p, q, delta in pairs:  # norm p, dual norm q, best δ for ε = 1
    gain, dual = w @ delta, np.linalg.norm(w, q)
    tried = rng.standard_normal((1000, 784))
    tried = tried @ w / np.linalg.norm(tried, p, axis=1)  # wᵀδ of 1000 random δ with ‖δ‖ = 1
    print(f"p = {p}: gain {gain:.2f}, dual norm {dual:.2f}, best random δ {tried.max():.2f}")
    assert np.isclose(gain, dual) and tried.max() < gain

# %% [markdown]
# ## Step 3: the exact worst case of a linear model
#
# Let a linear model tell the digits 0 and 1 apart, z = wᵀx + b, with labels y = −1 and y = +1.
# It predicts the sign of z, so an image is correctly classified if y z > 0. With the logits
# −z/2 and z/2 for the two classes, y z is the *margin*, the logit of the true class minus the
# other one, and the cross-entropy of lesson 01 becomes L(y z) = log(1 + e^(−y z)). It falls as
# y z grows, so the worst perturbation is the one that lowers y z most. The ball ‖δ‖ ≤ ε is
# symmetric, so the minimum of y wᵀδ is minus its maximum, −ε‖w‖_* by step 2, whether y is 1 or
# −1. Therefore
#
# $$\max_{\|\delta\| \le \epsilon} L\big(y\,(w^\top (x + \delta) + b)\big)
#   = L\big(y\,(w^\top x + b) - \epsilon \|w\|_*\big).$$
#
# No search is needed for this maximum. Each image has its own worst δ, but the term ε‖w‖_* is
# the same for all. Standard training minimises the mean of L(y z), and *robust training* the
# mean of the right-hand side. We do both in the ∞-norm, where ‖w‖_* = ‖w‖₁.


# %%
def two_classes(x, y):
    """The images of classes 0 and 1 as rows, and their labels −1 and +1."""
    rows = x[y < 2].reshape(-1, 784)  # (N, 1, 28, 28) -> (N', 784)
    return rows.astype(float), 2.0 * y[y < 2] - 1


def worst_loss(w, b, x, y, epsilon):
    """The mean loss in the worst case ‖δ‖∞ ≤ ε; with ε = 0 the loss of the clean images."""
    worst = y * (x @ w + b) - epsilon * abs(w).sum()
    return ops.softplus(-worst).mean()  # softplus(u) = log(1 + eᵘ)


def train(x, y, epsilon, steps=500 if run.quick else 2500, eta=1.0):
    """Gradient descent with batches of 100 and a learning rate that falls to zero."""
    w, b = rng.uniform(-1, 1, x.shape[1]) / x.shape[1] ** 0.5, np.zeros(())
    for step in range(steps):
        batch = rng.integers(len(x), size=100)
        weights = [Tensor(w), Tensor(b)]
        g_w, g_b = grad(worst_loss(*weights, x[batch], y[batch], epsilon), weights)
        w = w - eta * (1 - step / steps) * g_w
        b = b - eta * (1 - step / steps) * g_b
    return w, b


x, y = two_classes(digits.x_train, digits.y_train)
x_test, y_test = two_classes(digits.x_test, digits.y_test)
linear = {"standard": train(x, y, 0.0), "robust": train(x, y, epsilon)}

# %% [markdown]
# **Predict first.** Standard training gives a model that misclassifies almost no test image.
# How many does it misclassify in the worst case at ε = 0.2? How many after robust training?
#
# The table has two worst cases. *Ball* is the formula, for all δ with ‖δ‖∞ ≤ ε. *Image* adds
# the limits 0 ≤ x + δ ≤ 1. It is exact too: each pixel has an interval of its own, and the sum
# wᵀδ is smallest if every pixel goes to the better end of its interval.


# %%
def errors(w, b, epsilon):
    """The error on clean images, in the worst case of the ball, and of ball and pixel range."""
    delta = -epsilon * y_test[:, None] * np.sign(w)  # (N, 1), (784,) -> (N, 784)
    ball = y_test * (x_test @ w + b) - epsilon * abs(w).sum()  # (N,)
    image = y_test * (np.clip(x_test + delta, 0, 1) @ w + b)
    assert np.allclose(ball, y_test * ((x_test + delta) @ w + b))  # the formula holds
    return [np.mean(margin <= 0) for margin in (y_test * (x_test @ w + b), ball, image)]


found = {name: errors(w, b, epsilon) for name, (w, b) in linear.items()}
norms = {name: abs(w).sum() for name, (w, _) in linear.items()}
rows = [[name, *found[name], f"{norms[name]:.1f}"] for name in found]
cli.table(["training", "clean error", "worst case, ball", "worst case, image", "‖w‖₁"], rows)
radii = np.linspace(0, 0.4, 21)
curves = {name: [errors(w, b, r)[1] for r in radii] for name, (w, b) in linear.items()}
run.show(plots.worst_case(radii, curves, {k: w for k, (w, _) in linear.items()}), "worst case")
assert found["robust"][1] < 0.5 * found["standard"][1] and norms["robust"] < norms["standard"]
if digits.name == "mnist" and not run.quick:  # what Kolter and Madry found
    assert 0.81 < found["standard"][1] < 0.87 and found["robust"][1] < 0.025

# %% [markdown]
# <details><summary>Answers</summary>
#
# Most of them after standard training, few after robust training, at the price of a few more
# errors on clean images. (On MNIST the tutorial of Kolter and Madry finds 83 to 86 % and about
# 2 %; `--data mnist` repeats this.)
# </details>
#
# So adversarial examples are not a peculiarity of deep networks. The pictures of the weights
# show what robust training changes. A red pixel is evidence for a 1, a blue one for a 0. Where
# no training image has ink the gradient is zero, so standard training leaves the random initial
# weights there, and they add to ‖w‖₁. In the worst case every weight costs ε|w_i| of the
# margin, so robust training drives most of them close to 0.
#
# ## Check: the library finds the same worst case
#
# FGSM (the next step) moves every pixel by ε along the sign of the gradient, and PGD (lesson
# 06) takes many small steps. Here ∂L/∂x = −σ(−y z) y w with σ(t) = 1/(1 + e⁻ᵗ) > 0. Its sign is
# −y sign(w) everywhere, so both must find the errors of the column "image", up to rounding.

# %%
label = (y_test > 0).astype(int)  # class 0 or 1
for name, (w, b) in linear.items():
    network = lambda x, w=w, b=b: (x @ w + b)[:, None] * np.array([-0.5, 0.5])  # (N, 2) logits
    for attack in (attacks.fgsm, attacks.pgd):
        x_adv = attack(network, x_test, label, ball=Linf(epsilon))
        error = 1 - evaluate.accuracy(network, x_adv, label)
        print(f"{name}, {attack.__name__}: {error:.2%}, by the formula {found[name][2]:.2%}")
        assert abs(error - found[name][2]) < 0.003

# %% [markdown]
# ## Step 4: FGSM linearises the loss of a network
#
# The loss of a network is not linear in x. But close to x it is approximately
#
# $$L(x + \delta) \approx L(x) + g^\top \delta, \qquad g = \frac{\partial L}{\partial x},$$
#
# and the right-hand side is linear in δ, with the weights g. By step 1, δ = ε sign(g) raises it
# most, and clipping to [0, 1] keeps this exact, as in step 3. This is the *fast gradient sign
# method* (FGSM) of Goodfellow et al. (2015). Their explanation of adversarial examples is that
# networks are close enough to linear for a single such step to work:
#
# $$x_{\mathrm{adv}} = \mathrm{clip}(x + \epsilon\, \mathrm{sign}(g),\; 0,\; 1).$$
#
# The *robust accuracy* under an attack is the share of images that are still correctly
# classified. It is an upper bound for all attacks: a better one may find more.

# %%
model = zoo.standard(digits)  # the network of lesson 02
x, y = cli.spread(digits.x_test, digits.y_test, 100 if run.quick else 500)
epsilon = 0.05 if digits.name == "fashion" else 0.15
image = Tensor(x)
(g,) = grad(cross_entropy(model(image), y, reduction="sum"), [image])  # (N, 1, 28, 28)
x_adv = np.clip(x + epsilon * np.sign(g), 0, 1)
library = attacks.fgsm(model, x, y, ball=Linf(epsilon))
clean, attacked = evaluate.accuracy(model, x, y), evaluate.accuracy(model, x_adv, y)
print(f"accuracy {clean:.1%}, robust accuracy under FGSM at ε = {epsilon}: {attacked:.1%}")
assert np.mean(abs(x_adv - library) > 1e-6) < 0.001 and attacked < clean - 0.2

# %% [markdown]
# The best-known picture of an adversarial example shows a panda: the network gives this class a
# probability of 57.7 %, and after FGSM with ε = 0.007 it predicts a gibbon with 99.3 %. Here is
# the same kind of picture for one of our images, the one with the highest probabilities before
# and after. In the middle, red pixels gain ink and blue pixels lose it.

# %%
p, p_adv = (ops.softmax(model(a), axis=1).value for a in (x, x_adv))  # (N, K)
fooled = (p.argmax(axis=1) == y) & (p_adv.argmax(axis=1) != y)
i = np.where(fooled, np.minimum(p.max(axis=1), p_adv.max(axis=1)), 0).argmax()
before, after = ((digits.classes[q[i].argmax()], q[i].max()) for q in (p, p_adv))
print(f"{before[0]} with p = {before[1]:.2%}, after FGSM {after[0]} with p = {after[1]:.2%}")
run.show(plots.panda(x[i, 0], x_adv[i, 0], epsilon, before, after), "panda")

# %% [markdown]
# ## Experiment: is every small perturbation as bad?
#
# "Imperceptible" usually means a small ∞-norm. We see ε = 0.15 as a grey haze, and still
# recognise the digit. Is it the *size* of the perturbation that fools the network? We compare
# FGSM with perturbations that have the same 2-norm, image by image: a step along g, which by
# step 2 raises the linearised loss most in the 2-norm (the *fast gradient method*, FGM); random
# signs; Gaussian noise; and a few random pixels that turn from white to black or back.
#
# **Predict first.** Which of the five lowers the accuracy most? What do the others do?

# %%
norm2 = lambda delta: np.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))  # (N, 1, 1, 1)


def with_norm(make, length):
    """The perturbations make(s), with the largest s such that ‖make(s)‖₂ ≤ length (bisection)."""
    low, high = np.zeros_like(length), np.full_like(length, 1e6)  # (N, 1, 1, 1): s per image
    for _ in range(80):
        s = (low + high) / 2
        too_long = norm2(make(s)) > length
        low, high = np.where(too_long, low, s), np.where(too_long, s, high)
    return make(low)


x = x.astype(float)
perturbations = {"FGSM": x_adv - x}
length = norm2(perturbations["FGSM"])
directions = {
    "FGM": g / np.maximum(abs(g).max(axis=(1, 2, 3), keepdims=True), 1e-30),
    "random signs": rng.choice([-1.0, 1.0], x.shape),
    "Gaussian noise": rng.standard_normal(x.shape),
}
for name, d in directions.items():
    perturbations[name] = with_norm(lambda s, d=d: np.clip(s * d, -x, 1 - x), length)
u, flip = rng.random(x.shape), np.where(x > 0.5, -x, 1 - x)  # flip a pixel where u < s
perturbations["a few pixels"] = with_norm(lambda s: np.where(u < s, flip, 0), length)
same, rows = {}, []
for name, delta in perturbations.items():
    same[name] = evaluate.accuracy(model, (x + delta).astype(np.float32), y)
    largest = np.median(abs(delta).max(axis=(1, 2, 3)))
    rows.append([name, same[name], f"{largest:.2f}", f"{np.median(norm2(delta)):.2f}"])
cli.table(["perturbation", "accuracy", "median ‖δ‖∞", "median ‖δ‖₂"], rows)
pictures = {name: (x + delta)[i, 0] for name, delta in perturbations.items()}
run.show(plots.same_norm(pictures, same), "same norm")
assert min(accuracy for name, accuracy in same.items() if name[:2] != "FG") > clean - 0.1
assert same["FGM"] <= same["FGSM"] + 0.02 and same["FGSM"] < clean - 0.2

# %% [markdown]
# <details><summary>Answers</summary>
#
# FGM lowers the accuracy most, then FGSM. The random ones do almost nothing. FGM is stronger
# than FGSM here because we compare in the 2-norm, in which the sign is not the best direction.
# In the ∞-norm the perturbation of FGM is several times as large. At equal size, the direction
# decides: a network that tolerates noise can still be fooled.
# </details>
#
# ## Limits
#
# In step 1 the mean weight m was the same for all n. In a trained model m falls as n grows, and
# ε m n need not grow (exercise 2). So, as Tanay and Griffin (2016) object, dimension alone does
# not explain adversarial examples. What remains is the ratio ‖w‖₁/‖w‖₂ between the best
# direction and a random one. It is √n for equal |w_i|, and less otherwise. FGSM trusts the
# linear approximation within the whole ball; lesson 06 takes many small steps.
#
# ## Exercises
#
# `python -m lessons.exercises 04` gives you stubs (`lessons/exercises/04.py`), and checks them.
#
# 1. At which ε does the worst case reach the decision boundary, in each of the three norms?
# 2. Replace each pixel by 2×2 pixels, and keep the model. Do ε m n and ε‖w‖₂ grow?
# 3. By how much does FGSM raise the loss, and what does the linear approximation predict?
# 4. Train for the 2-norm. What is the gradient, and what does it do to a small w_i?
# 5. Find the exact worst case for ‖δ‖₁ ≤ ε and pixels in [0, 1]. (Hint: spend ε greedily.)
#
# ## References
#
# Goodfellow, Shlens & Szegedy (2015), "Explaining and harnessing adversarial examples". Kolter
# & Madry, adversarial-ml-tutorial.org, chapter 2. Tanay & Griffin (2016), "A boundary tilting
# perspective on the phenomenon of adversarial examples".

# %%
panda = {"epsilon": epsilon, "before": before, "after": after}
run.record(errors=found, l1_norm=norms, clean=clean, fgsm=attacked, same_norm=same, panda=panda)
