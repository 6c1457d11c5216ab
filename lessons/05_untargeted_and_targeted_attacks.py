# %% [markdown]
r"""
# 05 Untargeted and targeted attacks

**Question.** The attack of lesson 04 takes a single step, and it does not matter to the
attacker which wrong class comes out. What if the attacker takes many small steps and watches
what the network predicts? And can the attacker choose the wrong class?

We build the two attacks of Shusen Wang's slides "Data Evasion Attacks". Both change an image x*
with the label y step by step into an image x̃. There is no radius ε: only the number of steps,
or a penalty on the distance, keeps x̃ close to x*. At the end we test a claim of the slides:
that deep networks are easier to attack than shallow ones.

**Time.** Less than a minute on two cores, most of it for training. **You need** lessons 01
(input gradients), 03 (changing the pixels until a class is predicted) and 04 (FGSM). **After
this lesson you can** write an untargeted and a targeted attack from scratch, avoid the division
0/0 in them, and say which penalty keeps pixels unchanged.
"""

# %%
import numpy as np
from plots import untargeted_and_targeted_attacks as plots
from support import cli, zoo

from tinyadv import Tensor, attacks, evaluate, grad, ops
from tinyadv.losses import cross_entropy

run = cli.start("05_untargeted_and_targeted_attacks", __doc__)
digits = run.load()  # 28×28 images of printed digits, unless --data says otherwise
K = len(digits.classes)
standard = zoo.standard(digits)  # the network of lesson 02
correct = evaluate.predict(standard, digits.x_test) == digits.y_test  # (N,)
x_correct, y_correct = digits.x_test[correct], digits.y_test[correct]
original, y = cli.spread(x_correct, y_correct, 20 if run.quick else 200)  # (N, 1, 28, 28), (N,)
print(f"accuracy {correct.mean():.1%}; {len(y)} correctly classified images are attacked")

# %% [markdown]
# ## Untargeted: raise the loss of the label
#
# An *untargeted* attack succeeds as soon as the network predicts any class but y. It raises the
# loss of y, which the slides call Dist(y, f(x̃)) and which is the cross-entropy here. The
# attack is gradient ascent with respect to the pixels,
#
# $$g = \partial\, \mathrm{Dist}(y, f(\tilde x))/\partial \tilde x, \qquad
# \tilde x \leftarrow \tilde x + \alpha\, g / \max_i |g_i|,$$
#
# followed by clipping each pixel to the range from 0 to 1.
#
# Why divide by the largest |g_i|? With respect to the logits, the gradient of the cross-entropy
# is p − y (with y as a one-hot vector), so g is tiny where the network is sure of the label.
# The size of g differs by orders of magnitude from image to image, and no learning rate suits
# all of them. After the division, the pixel with the largest gradient moves by exactly α, and
# the others in proportion to theirs. FGSM would move every pixel by the same amount.


# %%
def loss_and_gradient(model, x, y):
    """Each image's loss, its gradient with respect to the pixels, and the logits."""
    image = Tensor(x)
    z = model(image)  # (N, K)
    loss = cross_entropy(z, y, reduction="none")  # (N,)
    (g,) = grad(loss.sum(), [image])  # (N, 1, 28, 28): an image's pixels affect its own loss only
    return loss.value, g, z.value


def unit_max(g):
    """g / max|g|, for each image on its own."""
    largest = abs(g).max(axis=(1, 2, 3), keepdims=True)  # (N, 1, 1, 1)
    return g / np.where(largest > 0, largest, 1)  # the section on 0/0 says why


def untargeted(model, x, y, alpha=0.05, steps=20, stop=False):
    """Gradient ascent on the loss of y; with ``stop``, only until the first error."""
    for _ in range(steps):
        _, g, z = loss_and_gradient(model, x, y)
        moved = np.clip(x + alpha * unit_max(g), 0, 1)
        if stop:
            wrong = z.argmax(axis=1) != y  # (N,)
            moved = np.where(wrong[:, None, None, None], x, moved)
        x = moved
    return x


points = {0: original}  # with the slides' settings: the images after every five steps
for steps in (5, 10, 15, 20):
    points[steps] = untargeted(standard, points[steps - 5], y, steps=5)
probabilities = {steps: ops.softmax(standard(x), axis=1).value for steps, x in points.items()}
rows = []
for steps, x in points.items():
    change, confidence = abs(x - original), np.median(probabilities[steps].max(axis=1))
    rows.append([steps, evaluate.accuracy(standard, x, y), confidence, f"{change.mean():.4f}"])
cli.table(["steps", "accuracy", "median confidence", "mean |x̃ − x*|"], rows)
run.show(plots.climb(points, probabilities, digits.classes), "untargeted")
assert rows[-1][1] < 0.1

# %% [markdown]
# ## Stop at the first error, or go on?
#
# The attack does not notice that it has succeeded. After the first error it still raises the
# loss: the confidence grows, and the image changes more than it had to. If each image stops at
# its first error (`stop=True`), the perturbation is smaller and the confidence lower. A small
# change is harder to notice, but it may fail on a network that differs slightly.

# %%
stopped = untargeted(standard, original, y, stop=True)
p = ops.softmax(standard(stopped), axis=1).value  # (N, K)
less = abs(stopped - original).mean() / abs(points[20] - original).mean()
stopping = {
    "accuracy": evaluate.accuracy(standard, stopped, y),
    "median confidence": float(np.median(p.max(axis=1))),
    "share of the change after 20 steps": float(less),
}
cli.table(["until the first error", ""], list(stopping.items()))
assert less < 0.8

# %% [markdown]
# ## What happens when the loss is flat: 0/0
#
# In exact arithmetic p − y is never zero. In float32, though, exp(−104) is rounded to 0. If the
# logit of the label is more than 104 ahead of all the others, their probabilities are exactly 0
# and the label's is exactly 1. Then g = 0, and g / max|g| is 0/0: the whole image becomes NaN.
# Our `unit_max` divides by 1 in this case, so the image stays as it is.
#
# **Predict first.** Multiply all logits of our network by 100. (a) Does its accuracy change?
# (b) Does the attack still work? (c) Has the network become more robust?


# %%
def saturated(x):
    return 100 * standard(x)


_, g, _ = loss_and_gradient(saturated, original, y)
flat = abs(g).max(axis=(1, 2, 3)) == 0  # (N,)
with np.errstate(invalid="ignore"):
    as_in_the_slides = g / abs(g).max(axis=(1, 2, 3), keepdims=True)
attacked = untargeted(saturated, original, y)
shares = {
    "gradient exactly 0": float(flat.mean()),
    "g / max|g| is NaN": float(np.isnan(as_in_the_slides).any(axis=(1, 2, 3)).mean()),
    "accuracy without attack": evaluate.accuracy(saturated, original, y),
    "accuracy under this attack": evaluate.accuracy(saturated, attacked, y),
    "accuracy on the images found before": evaluate.accuracy(saturated, points[20], y),
}
cli.table(["logits times 100", "share"], list(shares.items()))
assert shares["accuracy under this attack"] > 0.5
assert shares["accuracy on the images found before"] < 0.1
assert (attacked[flat] == original[flat]).all() and not np.isnan(attacked).any()

# %% [markdown]
# <details><summary>Answers</summary>
#
# (a) No. The largest logit is the same one.
#
# (b) For most images it does not. Their gradient is exactly zero, and they stay where they are.
#
# (c) No. Both networks predict the same class for every image, so the adversarial examples that
# we found before fool this one too. A failed attack is not evidence of robustness. Lesson 13
# returns to networks whose gradients are useless.
# </details>
#
# ## Targeted: towards a class of the attacker's choice
#
# A *targeted* attack wants the network to predict a given class ỹ. It lowers Dist(ỹ, f(x̃)), as
# in lesson 03. To keep the image close to x*, the slides add the distance as a penalty and
# descend on
#
# $$J(\tilde x) = \mathrm{Dist}(\tilde y, f(\tilde x)) + \lambda\, d(\tilde x - x^*).$$
#
# For the perturbation δ = x̃ − x* of D pixels, they choose one of
#
# $$d_1(\delta) = \|\delta\|_1 / D \quad\text{and}\quad d_2(\delta) = \|\delta\|_2^2 / D,$$
#
# which are the means of |δ_i| and of δ_i², with λ = 30.
#
# Which one leaves more pixels unchanged? Let g = ∂Dist(ỹ, f(x̃))/∂x̃, and look at a minimum of
# J inside the range of pixel values.
#
# - With d₂, the derivative g_i + 2λδ_i/D must be zero, so δ_i = −D g_i / 2λ. Every pixel with a
#   gradient is changed, most of them a little.
# - With d₁, the penalty has a kink at δ_i = 0: it rises by λ/D per unit in both directions. If
#   |g_i| ≤ λ/D, no move pays off, and the pixel keeps its value exactly. The changes
#   concentrate on the pixels with the largest gradients.
#
# The step is the same as before, but downhill, and at the kink we take the derivative 0. Once
# the network is confident in ỹ, g is nearly zero and the penalty alone decides: the image moves
# back towards x* by a full α, which may cross the boundary again. The image goes to and fro,
# and it is a matter of chance where it is after the last step. So we keep the best point: of
# all points that are classified as ỹ, the one with the smallest J.


# %%
def d1(delta):
    """The mean |δ_i| of each image and its gradient: (N,), (N, 1, 28, 28)."""
    return abs(delta).mean(axis=(1, 2, 3)), np.sign(delta) / delta[0].size


def d2(delta):
    return (delta**2).mean(axis=(1, 2, 3)), 2 * delta / delta[0].size


def targeted(model, original, target, distance, lam=30.0, alpha=0.1, steps=50):
    """Descent on J: the best point (x* if the target is never reached), and the last one."""
    x = best = original
    best_J = np.full(len(x), np.inf)
    for step in range(steps + 1):
        loss, g, z = loss_and_gradient(model, x, target)
        d, pull = distance(x - original)
        J = loss + lam * d  # (N,)
        better = (z.argmax(axis=1) == target) & (J < best_J)
        best = np.where(better[:, None, None, None], x, best)
        best_J = np.where(better, J, best_J)
        if step < steps:
            x = np.clip(x - alpha * unit_max(g + lam * pull), 0, 1)
    return best, x


# %% [markdown]
# ## Check: the library computes the same
#
# `attacks.untargeted` and `attacks.targeted` are these two loops. We compare single images:
# rounding errors depend on the size of the batch, and at a kink one of them can send two runs
# apart.

# %%
agree = []
for i in range(4):
    one, label, target = original[[i]], y[[i]], (y[[i]] + 1) % K
    theirs = attacks.untargeted(standard, one, label, step_size=0.05, steps=20)
    agree.append(abs(untargeted(standard, one, label) - theirs).max() < 1e-4)
    for distance, norm in ((d1, "l1"), (d2, "l2")):
        theirs = attacks.targeted(standard, one, label, target=target, distance=norm, weight=30)
        ours, _ = targeted(standard, one, target, distance)
        agree.append(abs(ours - theirs).max() < 1e-4)
print(f"the same image as the library's in {sum(agree)} of {len(agree)} cases")
assert sum(agree) >= 10

# %% [markdown]
# ## Experiment: every digit as every other digit
#
# One image of each class is turned into each of the other classes: without a penalty (λ = 0),
# with d₁, and with d₂. Look at three things in the table. With a penalty, the last point may
# miss the target although an earlier one reached it. With d₁ more pixels are unchanged than
# with d₂, as derived. And a larger λ keeps the image closer to x*, until the penalty costs more
# than the target is worth.

# %%
sources = np.array([x_correct[y_correct == k][0] for k in range(K)])  # (K, 1, 28, 28)
source, target = np.nonzero(~np.eye(K, dtype=bool))  # all K (K − 1) pairs of classes
distances, found, rows = {"d₁": d1, "d₂": d2}, {}, []
settings = [("d₁", 0), ("d₁", 30), ("d₂", 30), ("d₁", 1000), ("d₂", 1000)]
for name, lam in settings[1:3] if run.quick else settings:
    best, last = targeted(standard, sources[source], target, distances[name], lam)
    reached = [evaluate.accuracy(standard, point, target) for point in (best, last)]
    delta, name = abs(best - sources[source]), f"{name}, λ = {lam}"
    unchanged = float((delta < 1e-6).mean())
    found[name] = {"reached": reached, "mean": float(delta.mean()), "unchanged": unchanged}
    rows.append([name, *reached, f"{delta.mean():.4f}", unchanged])
    if name == "d₁, λ = 30":
        pictures, success = best, evaluate.predict(standard, best) == target
cli.table(["", "reached, best", "reached, last", "mean |δ|", "unchanged pixels"], rows)
run.show(plots.grid(sources, pictures, success, digits.classes), "targeted")
assert all(found[f"{d}, λ = 30"]["reached"][0] >= 0.95 for d in ("d₁", "d₂"))
assert found["d₁, λ = 30"]["unchanged"] > found["d₂, λ = 30"]["unchanged"]

# %% [markdown]
# ## Experiment: are deep networks easier to attack?
#
# For a fair test, only the depth should vary. We train two families on the same images: *dense*
# networks of layers with 100 units, and *convolutional* networks of layers with 10 maps and one
# dense layer at the end. The untargeted attack runs in small steps (α = 0.02) until the first
# error. We compare the median of ‖δ‖₂: the larger it is, the harder the network is to attack.
#
# **Predict first.** Is the claim right for the dense networks? And for the convolutional ones?

# %%
few = run.load() if run.quick else run.load(4000, 500)
victims, labels = cli.spread(few.x_test, few.y_test, 20 if run.quick else 100)
kinds = [("dense", 1), ("dense", 4), ("dense", 8), ("convolutional", 2), ("convolutional", 6)]
rows, depth = [], {}
for family, hidden in kinds[::3] if run.quick else kinds:
    recipe = zoo.dense_net if family == "dense" else zoo.conv_net
    for seed in [run.seed, run.seed + 1][: 1 if run.quick else 2]:
        model = recipe(few, hidden=hidden, seed=seed, epochs=1 if run.quick else 8)
        accuracy = evaluate.accuracy(model, few.x_test, few.y_test)
        x_adv = untargeted(model, victims, labels, alpha=0.02, steps=50, stop=True)
        length = np.sqrt(((x_adv - victims) ** 2).sum(axis=(1, 2, 3)))  # (N,)
        median = float(np.median(length[length > 0]))  # of those correct at first
        depth.setdefault(f"{family}, {hidden}", []).append(median)
        rows.append([f"{family}, {hidden} hidden, seed {seed}", accuracy, f"{median:.2f}"])
cli.table(["", "accuracy", "median ‖δ‖₂"], rows)
run.show(plots.depth(depth), "depth")
if not run.quick:
    shallow, deep = np.mean(depth["dense, 1"]), np.mean(depth["dense, 8"])
    assert deep < 0.9 * shallow and deep < np.mean(depth["convolutional, 6"])

# %% [markdown]
# <details><summary>Answers</summary>
#
# For the dense networks the claim is right: with more layers, shorter perturbations suffice.
# For the convolutional networks we find no such trend, and the deepest of them is harder to
# attack than the deepest dense network, although it is more accurate as well. So depth alone
# does not decide. `python -m lessons.experiments.slides_attacks` repeats the test on
# handwritten digits, with five seeds and with an attack in the ∞-norm.
# </details>
#
# ## Limits
#
# The slides give λ but no step rule for the targeted attack; α = 0.1 and 50 steps are ours.
# Neither attack finds the smallest perturbation (lesson 07) or stays within a given radius
# (lesson 06). Two seeds and a few thousand images do not settle the question of depth.
#
# ## Exercises
#
# `python -m lessons.exercises 05` gives you stubs (`lessons/exercises/05.py`), and checks them.
#
# 1. Find the best point of a targeted attack from the logits and the J of all points.
# 2. Compute (p − y) / max|p − y| without 0/0, for a margin of any size.
# 3. Shorten the perturbation of a successful attack by bisection between x* and x̃.
# 4. Let Dist be gᵀδ + (c/2) ‖δ‖₂². Which δ minimises J for d₁, and which for d₂?
# 5. In which pixels is J at a minimum for d₁? Compare |g_i| with λ/D. (Hint: a pixel at 0 or 1
#    can move one way only.)
#
# ## References
#
# Shusen Wang, "Data Evasion Attacks" (slides). Szegedy et al. (2014), "Intriguing properties of
# neural networks", with the targeted objective.

# %%
run.record(stopping=stopping, saturated=shares, targeted=found, depth=depth)
