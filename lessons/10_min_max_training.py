# %% [markdown]
r"""
# 10 Min-max training

**Question.** What happens if we train a network on the images that an attack finds? Training
needs a gradient, so another question comes first: what is the gradient of a maximum?

Standard training, as in lesson 02, minimises the expected loss of the images as they are. Madry
et al. (2018) minimise the loss of the worst image that the attacker of lesson 06 may choose,
with its label unchanged:

$$\text{standard:}\quad \min_\theta\; E\big[L(f_\theta(x), y)\big],$$

$$\text{robust:}\quad \min_\theta\; E\Big[\max_{\delta \in S(x)} L(f_\theta(x + \delta), y)\Big],$$

where S(x) contains all δ with ‖δ‖∞ ≤ ε and 0 ≤ x + δ ≤ 1. The inner maximisation is the attack.
The outer minimisation is called *adversarial training* or *min-max training*.

**Time.** One minute on two cores. **You need** lessons 02 (training), 04 (FGSM) and 06 (PGD).
**After this lesson you can** explain why the worst image may be held fixed when the weights
move, write min-max training from scratch, and recognise two ways in which it fails.
"""

# %%
import dataclasses

import numpy as np
from plots import min_max_training as plots
from support import cli, zoo

from tinyadv import Tensor, attacks, defenses, evaluate, fit, grad, models, ops, optim, to_numpy
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

run = cli.start("10_min_max_training", __doc__, backend=True)
xp = run.xp  # numpy, or cupy with --backend cupy
rng = np.random.default_rng(run.seed)
digits = run.load(400 if run.quick else 4000)  # few, because we train six networks
epsilon = zoo.EPSILON[digits.name]
images, labels = cli.spread(digits.x_test, digits.y_test, 30 if run.quick else 200)
x_test, y_test = xp.asarray(images), xp.asarray(labels)  # (N, 1, 28, 28), (N,)

# %% [markdown]
# ## Step 1: the gradient of a maximum
#
# Write φ(θ) for the inner maximum of one image, and x\* for the worst image. When the weights θ
# change, the loss at x\* changes, and x\* itself moves. The chain rule has a term for each:
#
# $$\frac{d\varphi}{d\theta} = \frac{\partial L}{\partial\theta}
# + \frac{\partial L}{\partial x}\,\frac{\partial x^*}{\partial\theta}.$$
#
# But the second term is zero:
#
# - If x\* lies in the interior of the allowed set, ∂L/∂x = 0 there, as at any maximum.
# - If x\* stays on the edge, it moves along the edge, because the set does not depend on θ. If
#   L changed to first order along the edge, one of the two directions would increase it, and
#   x\* would not be the maximum.
#
# This is *Danskin's theorem*: dφ/dθ is ∂L/∂θ at x\*, with x\* held fixed. It needs a single
# maximiser. If two images tie, φ has a kink, and its slopes on the two sides may differ.
#
# We check it on a linear network with two classes, z = W x, where the inner maximum has a
# formula. The loss increases with vᵀx, where v is the row of the wrong class minus the row of
# the true class. So by lesson 06 the worst perturbation is ε sign(v) in the ∞-norm and ε v/‖v‖₂
# in the 2-norm, if we leave out the range of the pixel values.


# %%
W, U = rng.standard_normal((2, 2, 20))  # the weights, and the direction in which they move
x, y, h = rng.random((50, 20)), rng.integers(0, 2, 50), 1e-5


def slopes(step):  # step(v) is the worst perturbation
    loss = lambda W, x: cross_entropy(ops.dense(x, W), y)  # z = x Wᵀ: (N, 2)
    worst = lambda W: x + step(W[1 - y] - W[y])  # x*: (N, D)
    phi = lambda W: loss(W, worst(W))  # x* is solved again for each W
    slope = (phi(W + h * U) - phi(W - h * U)) / (2 * h)
    moved = (worst(W + h * U) - worst(W - h * U)) / (2 * h)  # (∂x*/∂θ) U: (N, D)
    weights, x_star = Tensor(W), Tensor(worst(W))
    g_theta, g_x = grad(loss(weights, x_star), [weights, x_star])  # (2, D), (N, D)
    (g_clean,) = grad(loss(weights, x), [weights])
    second = g_x * moved  # (N, D)
    return [slope, (g_theta * U).sum(), second.sum(), abs(second).sum(), (g_clean * U).sum()]


danskin = {
    "∞-norm": slopes(lambda v: 0.1 * np.sign(v)),
    "2-norm": slopes(lambda v: 0.5 * v / np.linalg.norm(v, axis=1, keepdims=True)),
}
header = ["slope", "dφ/dθ", "∂L/∂θ at x*", "second term", "absolute sum", "∂L/∂θ at x"]
cli.table(header, [[name, *(f"{v:.6f}" for v in found)] for name, found in danskin.items()])
for slope, first, second, _, clean in danskin.values():
    assert abs(first - slope) < 1e-6 and abs(second) < 1e-6 < 0.01 < abs(clean - slope)
assert danskin["2-norm"][3] > 0.001  # x* does move

# %% [markdown]
# The slope of φ is the slope of L at the fixed x\*, and not at the clean image x. In the ∞-norm
# x\* is a corner of the ball and does not move. In the 2-norm it does: the products ∂L/∂x ·
# ∂x\*/∂θ of single pixels are not zero (the absolute sum adds up their absolute values), but
# they cancel.
#
# For a convolutional network we have no formula, and the best image that PGD finds is used
# instead of x\*. If it is not the worst image, training lowers only a lower bound of φ.
#
# ## Step 2: the training loop
#
# A step of min-max training finds x\* by PGD, as in lesson 06, and then takes a standard
# training step on it. Each pixel may change by `low` to `high`.


# %%
def pgd(model, x, y, epsilon, steps, rng):
    low, high = xp.maximum(-epsilon, -x), xp.minimum(epsilon, 1 - x)
    delta = low + (high - low) * xp.asarray(rng.random(x.shape), x.dtype)  # a random start
    for _ in range(steps):
        image = Tensor(x + delta)
        (g,) = grad(cross_entropy(model(image), y), [image])  # with respect to the pixels
        delta = xp.clip(delta + 2.5 * epsilon / steps * xp.sign(g), low, high)
    return x + delta


def standard_training(model, optimizer, batches):
    for x, y in batches:
        loss = cross_entropy(model(x), y)
        optimizer.step(grad(loss, model.parameters()))
        yield float(loss.value)


def min_max_training(model, optimizer, batches, epsilon, steps, rng):
    for (x, y), radius in zip(batches, epsilon, strict=True):  # one ε for each batch
        x = pgd(model, x, y, radius, steps, rng)  # the inner maximisation
        loss = cross_entropy(model(x), y)
        optimizer.step(grad(loss, model.parameters()))
        yield float(loss.value)


# %% [markdown]
# The two loops differ only in the call of `pgd` and its arguments. Signs matter: the attack
# moves the pixels *up* the gradient, and `optimizer.step` moves the weights *down* theirs. The
# attack uses the weights of this very step, so examples made in advance do not replace it. The
# label stays the true one. With 5 attack steps, each training step computes 6 gradients instead
# of 1.
#
# ## Check: the library trains the same network
#
# In the library, the inner maximisation is the argument `perturb=` of `fit`. After three steps
# in double precision, both networks must have the same weights.

# %%
x, y = digits.x_train[:300].astype(float), digits.y_train[:300]
few = dataclasses.replace(digits, x_train=x, y_train=y)
order = np.random.default_rng(run.seed).permutation(300).reshape(3, 100)  # as fit shuffles
batches = [(xp.asarray(x[i]), xp.asarray(y[i])) for i in order]
ours, theirs = (models.fast_cnn(run.seed).astype(np.float64).to(run.backend) for _ in range(2))
by_hand = np.random.default_rng(run.seed)
list(min_max_training(ours, optim.Adam(ours.parameters()), batches, [epsilon] * 3, 5, by_hand))
adversary = defenses.MinMax(Linf(epsilon), steps=5, rng=run.seed)
quiet = {"batch_size": 100, "rng": run.seed, "validate": False, "progress": False}
fit(theirs, few, optim.Adam(theirs.parameters()), 1, adversary, **quiet)
for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
    assert abs(a.value - b.value).max() < (1e-9 if xp is np else 1e-3)
print("our loop and fit give the same weights")

# %% [markdown]
# ## Experiment: the full radius from the first step on
#
# If the loop starts with the full ε, it may learn nothing. The remedy is a *warm-up*: ε grows
# linearly from 0, here during the first of two epochs.
#
# **Predict first.** A network ignores the image and gives each of the ten classes the
# probability 1/10. What is its loss, and what can the attacker do about it?

# %%
per_epoch = len(digits.x_train) // 100  # batches of 100
growing = [epsilon * min(1, step / per_epoch) for step in range(2 * per_epoch)]
curves, differ = {}, {}  # losses, and the standard deviation of the logits over the images
for name, radii in (("full ε", [epsilon] * len(growing)), ("warm-up", growing)):
    model = models.fast_cnn(run.seed).to(run.backend)
    order = [rng.permutation(len(digits.x_train)).reshape(-1, 100) for _ in range(2)]
    batches = (map(xp.asarray, (digits.x_train[i], digits.y_train[i])) for i in np.vstack(order))
    adam = optim.Adam(model.parameters(), lr=0.004)
    curves[name] = list(min_max_training(model, adam, batches, radii, 5, rng))
    differ[name] = round(float(to_numpy(model(x_test).value).std(axis=0).mean()), 3)
final = {name: round(float(np.mean(losses[-10:])), 3) for name, losses in curves.items()}
print("loss at the end:", final)
print("standard deviation of the logits over the images:", differ)
run.show(plots.training_loss(curves), "warm-up")
comparable = not run.quick and digits.name != "fashion"  # whose ε is smaller
assert not comparable or abs(final["full ε"] - np.log(10)) < 0.05 < 2.2 - final["warm-up"]

# %% [markdown]
# <details><summary>Answer</summary>
#
# ln 10 ≈ 2.303. The attacker can do nothing, because the output does not depend on the pixels.
# </details>
#
# This is where the first network ends: its logits are almost the same for all images. A likely
# explanation: while the weights are random, the attack turns whatever the network reacts to
# against it, so ignoring the image is the quickest way down. With a small ε it first learns to
# read digits.
#
# ## Experiment: is one attack step enough?
#
# Wong et al. (2020) train on a single step. From a random u with ‖u‖∞ ≤ ε they take a step of
# length 1.25 ε and project:
#
# $$\delta = \mathrm{project}\big(u + 1.25\,\epsilon\,\mathrm{sign}\,\nabla_x L(f(x + u), y)\big).$$
#
# An epoch then costs as much as two standard ones. But the network can learn to be correct
# where a single step ends, and wrong on the way there. This is *catastrophic overfitting*.
# Accuracy under the attack used in training does not show it; a stronger attack does.
# `defenses.Fast` attacks held-out images every few steps. If PGD fools many more of them than
# single steps do, it trains on PGD until the gap is closed; with `gap=1` it only looks. ε grows
# in the first epoch.

# %%
held_out = digits.x_train[-200:], digits.y_train[-200:]
rest = dataclasses.replace(digits, x_train=digits.x_train[:-200], y_train=digits.y_train[:-200])
fast = defenses.Fast(Linf(epsilon), warm_up=1, watch=held_out, every=10, gap=1, rng=run.seed)
one_step = models.fast_cnn(run.seed).to(run.backend)
epochs = 1 if run.quick else 4
fit(one_step, rest, optim.Adam(one_step.parameters(), lr=0.004), epochs, fast, **quiet)
run.show(plots.overfitting(fast.looks), "catastrophic overfitting")
own, _, under_pgd = map(float, np.mean([look[1:] for look in fast.looks[-4:]], axis=0))
print(f"robust accuracy {own:.0%} under the step of the training, {under_pgd:.0%} under PGD")
assert not comparable or own - under_pgd > 0.3

# %% [markdown]
# ## Experiment: another objective, and which training survives which attack
#
# TRADES (Zhang et al., 2019) has one term for correct predictions, and one for predictions that
# do not change in the ball:
#
# $$\min_\theta\; E\Big[L(f(x), y)
# + \beta \max_{\delta \in S(x)} \mathrm{KL}\big(p(x)\,\|\,p(x + \delta)\big)\Big],$$
#
# where KL(p‖q) = Σ_k p_k ln(p_k/q_k) measures how far two predictions differ; it is zero only
# if they are equal. A larger β favours robustness over accuracy on clean images. The attack
# must not start at x itself, because there KL has its minimum and the gradient is zero.
#
# **Predict first.** Four networks: standard, one step, PGD, TRADES. Which survive FGSM on most
# images, and which of those loses most under PGD?

# %%
length = {"epochs": epochs, "peak": 0.004, "backend": run.backend}
networks = {
    "standard": zoo.standard_fast(digits, epochs=min(epochs, 3), backend=run.backend),
    "one step": one_step,
    "PGD": zoo.pgd(digits, steps=4, warm_up=3.0, **length),
    "TRADES": zoo.trades(digits, steps=3, warm_up=2.5, **length),
}
ball, table = Linf(epsilon), {}
how = {"steps": 10 if run.quick else 40, "restarts": 1 if run.quick else 3, "rng": run.seed}
for name, model in networks.items():
    attacked = {
        "clean": x_test,
        "FGSM": attacks.fgsm(model, x_test, y_test, ball=ball),
        "PGD": attacks.pgd(model, x_test, y_test, ball=ball, **how),
    }
    table[name] = {key: evaluate.accuracy(model, a, y_test) for key, a in attacked.items()}
cli.table(["trained by", *attacked], [[name, *found.values()] for name, found in table.items()])
lost = {name: found["FGSM"] - found["PGD"] for name, found in table.items()}
assert not comparable or table["standard"]["PGD"] < 0.05 < table["PGD"]["PGD"] - 0.2
assert not comparable or lost["one step"] > lost["PGD"] + 0.15

# %% [markdown]
# <details><summary>Answer</summary>
#
# All but the standard network, at least on about half of them. FGSM ranks the network trained
# on one step first, but under PGD it loses far more than the one trained on PGD.
# </details>
#
# These trainings are too short to rank methods;
# `python -m lessons.experiments.min_max_training` trains nine networks on all of MNIST. There
# Madry et al., with 3,274,634 parameters and ε = 0.3, report 98.8 % clean, 95.6 % under FGSM,
# 93.2 % under PGD-40, 91.8 % under PGD-100 and 89.3 % with 20 starts; their standard network
# falls from 99.2 % to 6.4 % under FGSM. Wong et al., with single steps and 166,406 parameters,
# report 98.5 % clean and 88.8 % under PGD-50 with 10 starts. Under AutoAttack, the suite of
# lesson 13, it is 82.9 %.
#
# ## What does a robust network look at?
#
# The gradient with respect to the pixels shows which changes raise the loss most.

# %%
padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
near = ops.max_pool2d(padded, kernel_size=5, stride=1) > 0.5  # ≤ 2 pixels from a stroke
pictures, share = {}, {"of all pixels": float(near.mean())}
for name in ("standard", "PGD"):
    image = Tensor(x_test)
    (g,) = grad(cross_entropy(networks[name](image), y_test, reduction="sum"), [image])
    pictures[name], size = to_numpy(g)[:6, 0], abs(to_numpy(g))  # (6, 28, 28), (N, 1, 28, 28)
    share[name] = float((size * near).sum() / size.sum())
print("on strokes or close to them:", *(f"{name} {value:.0%};" for name, value in share.items()))
run.show(plots.input_gradients(images[:6, 0], pictures), "input gradients")
assert run.quick or share["PGD"] > share["standard"] + 0.05

# %% [markdown]
# In the standard network the gradient is spread over the whole image. In the robust network it
# lies mostly on and beside the strokes: what hurts it is a change of the digit.
#
# ## Limits
#
# Our networks are small and trained briefly, and another seed gives somewhat different numbers.
# Accuracy under PGD is an upper bound on the robust accuracy: lesson 13 attacks harder, lesson
# 14 proves a lower bound. Danskin's theorem is about the exact maximiser, which PGD need not
# find.
#
# ## Exercises
#
# `python -m lessons.exercises 10` gives you stubs (`lessons/exercises/10.py`), and checks them.
#
# 1. At which loss does a network that ignores the images end, if classes are not equally frequent?
# 2. Compute the gradient of the robust loss of z = W x in NumPy. (Hint: where is p evaluated?)
# 3. How much loss do examples miss that were made in advance, with other weights?
# 4. Let φ(θ) be the maximum of θᵀx over a few points x. What is its slope in a given direction if
#    several of them are maximisers? (Hint: φ(θ) = |θ| is the case of the points −1 and 1.)
# 5. How many images are misclassified on the way of a single step only, and not at its ends?
#
# ## References
#
# Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks". Danskin
# (1967), "The theory of max-min". Wong, Rice & Kolter (2020), "Fast is better than free". Zhang
# et al. (2019), "Theoretically principled trade-off between robustness and accuracy".

# %%
run.record(
    epsilon=epsilon, danskin=danskin, loss_at_the_end=final, logits_differ_by=differ,
    overfitting={"own step": own, "PGD": under_pgd}, networks=table, gradient_near_strokes=share,
)  # fmt: skip
