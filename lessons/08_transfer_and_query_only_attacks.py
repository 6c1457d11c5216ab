# %% [markdown]
r"""
# 08 Transfer and query-only attacks

**Question.** FGSM, PGD and Carlini–Wagner all need the gradient of the network they attack, and
so its weights. A company that offers a classifier on the internet keeps the weights to itself.
Does that protect it?

A *threat model* says what the attacker may change and what the attacker knows. The changes stay
the same: ‖δ‖∞ ≤ ε, with x + δ in [0, 1]. So far the attacker knew the weights (*white box*).
Now the attacker knows less:

- *Transfer.* The attacker knows the task and has similar images, trains a network of their own
  (the *source*), attacks it, and shows the result to the *victim*.
- *Query-only.* The attacker sends images to the victim (*queries*) and gets the logits back.

**Time.** One minute on two cores, and a quarter of that once the networks are trained. **You
need** lessons 04 (the linear explanation) and 06 (PGD). **After this lesson you can** explain
and measure how adversarial examples transfer, estimate a gradient from queries, and write the
Square attack from scratch.
"""

# %%
import numpy as np
from plots import transfer_and_query_only_attacks as plots
from support import cli, zoo

from tinyadv import Tensor, attacks, evaluate, grad, losses, models
from tinyadv.attacks.blackbox import square
from tinyadv.balls import Linf

run = cli.start("08_transfer_and_query_only_attacks", __doc__)
rng = np.random.default_rng(run.seed)
digits = run.load()
half = run.load(train=len(digits.x_train) // 2)  # robust B learns from half, to save time
networks = {  # trained now, in this order, unless an earlier lesson has trained them
    "standard A": zoo.standard(digits), "standard B": zoo.standard(digits, seed=1),
    "robust A": zoo.robust(digits), "robust B": zoo.robust(half, seed=1),
}  # fmt: skip
epsilon = zoo.EPSILON[digits.name]
x, y = cli.spread(digits.x_test, digits.y_test, 30 if run.quick else 120)

# %% [markdown]
# A and B have the same architecture and training images (robust B half of them), but different
# random initial weights and orders of the images. B plays the attacker's network. The robust
# networks were trained on PGD's examples (lesson 10); their training accuracy is on these.
#
# ## Step 1: why should adversarial examples transfer?
#
# Lesson 04 explained adversarial examples by a linear approximation. It also says when they
# transfer. The attacker wants the margin, z_y minus the largest other logit, to fall below
# zero. Let g_v be the gradient of the victim's margin with respect to the pixels, and g_s the
# gradient of the source's margin. The attacker knows only g_s, and takes δ = −ε sign(g_s). To
# first order the victim's margin then changes by g_vᵀδ = −ε g_vᵀ sign(g_s). With the victim's
# own gradient it would change by −ε‖g_v‖₁. The share that transfers is
#
# $$s = \frac{g_v^T \mathrm{sign}(g_s)}{\|g_v\|_1}.$$
#
# It is 1 if all signs agree, and about 0 if the two gradients have nothing to do with each
# other. So adversarial examples transfer if training on similar images leads to similar
# gradients. A simple measure of similarity is the cosine of g_v and g_s. If their entries were
# Gaussian pairs with correlation ρ, cosine and s would be about ρ, as E[g_v sign(g_s)] = ρ
# E|g_v|. Real gradients are not Gaussian, and s depends on which network is the source. For a
# random direction the cosine is 0 ± 1/√n ≈ 0.04, as its n squared components add up to 1.


# %%
def margin(model, x, y):
    """z_y minus the largest other logit: (N,). The library's margin has the opposite sign."""
    return -losses.margin(model(x), y, "none").value


def margin_gradient(model, x, y):
    image = Tensor(x)
    (g,) = grad(-losses.margin(model(image), y, "sum"), [image])
    return g.reshape(len(x), -1)  # (N, 1, 28, 28) -> (N, 784)


def cosine(a, b):
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))  # (N,)


g = {name: margin_gradient(model, x, y) for name, model in networks.items()}  # (N, 784) each
g["random"] = rng.standard_normal(g["standard A"].shape)
rows, similar = [], {}
pairs = ["standard B → standard A", "robust A → standard A", "random → standard A"]
for pair in [*pairs, "standard A → robust A", "robust B → robust A"]:
    g_s, g_v = (g[name] for name in pair.split(" → "))
    share = (g_v * np.sign(g_s)).sum(axis=1) / abs(g_v).sum(axis=1)  # (N,)
    similar[pair] = float(cosine(g_v, g_s).mean()), float(share.mean())
    rows.append([pair, *(f"{value:.2f}" for value in similar[pair])])
cli.table(["source → victim", "cosine", "share s"], rows)
pictures = {name: g[name][0].reshape(28, 28) for name in networks}
run.show(plots.gradients(x[0, 0], pictures), "gradients")
cosines = {pair: c for pair, (c, _) in similar.items()}
assert abs(cosines["random → standard A"]) < 0.05
assert run.quick or 0.08 < cosines["standard B → standard A"] < cosines["robust B → robust A"]

# %% [markdown]
# In the figure, more ink raises the margin where the gradient is orange, and lowers it where it
# is purple. The standard gradients are far from equal, but their mean cosine is clearly above
# the one for a random direction. The robust ones agree much better: both follow the strokes.
#
# ## Experiment: examples crafted on one network, shown to another
#
# The attack is PGD on the source: 20 steps of ε/8, random start. It never sees the victim.
#
# **Predict first.** (a) How many images crafted on standard B does standard A classify
# correctly: almost none, half, or most? (b) And how many crafted on standard A does *robust* A?

# %%
clean = {name: evaluate.accuracy(model, x, y) for name, model in networks.items()}
made, accuracy = {"nothing": x}, {"nothing": clean}
for name, source in networks.items():
    made[name] = attacks.pgd(source, x, y, ball=Linf(epsilon), steps=20)
    accuracy[name] = {to: evaluate.accuracy(f, made[name], y) for to, f in networks.items()}
rows = [[name, *shares.values()] for name, shares in accuracy.items()]
cli.table([f"made on ↓ at ε = {epsilon}, accuracy of →", *networks], rows)
on_a = {name: accuracy[name]["standard A"] for name in networks}
assert on_a["standard A"] + 0.1 < on_a["standard B"]
if not run.quick:
    assert on_a["standard B"] < clean["standard A"] - 0.05
    assert accuracy["standard A"]["robust A"] > clean["robust A"] - 0.06
    assert accuracy["robust B"]["robust A"] > accuracy["robust A"]["robust A"]
    closer = cosines["robust A → standard A"] > cosines["standard B → standard A"]
    assert closer == (on_a["robust A"] < on_a["standard B"])

# %% [markdown]
# <details><summary>Answers</summary>
#
# (a) Most of them. PGD follows the details of its source, and only some of them are shared. On
# handwritten digits (`--data mnist`) more of the examples transfer than on printed ones.
#
# (b) Nearly all of them. A robust network reacts less to its own gradient already, and only the
# share s of that effect transfers. Madry et al. find the same: their robust MNIST network keeps
# more than 95 % accuracy on examples crafted on other networks.
# </details>
#
# In our runs the source with the more similar gradient is the better one: to fool standard A,
# that is robust A on printed digits, and standard B on handwritten ones. A robust network loses
# most to its own examples. The other one's cost it an image or two more than standard B's. So
# accuracy under transfer is weak evidence of robustness: the source may be bad.
#
# ## Step 2: a gradient from queries
#
# The logits that come back give the margin m. (Probabilities would do: log p_y − log p_k = z_y
# − z_k.) Two queries give its slope along a direction u, by finite differences (lesson 01):
#
# $$u^T g \approx \frac{m(x + h u) - m(x)}{h}.$$
#
# If u is 1 at one of n = 784 pixels and 0 elsewhere, this is the derivative with respect to it.
# All pixels share m(x): a gradient takes n + 1 = 785 queries, and 20 steps of PGD take 15,700.
#
# Can fewer queries do? Take M random directions whose entries are independent and standard
# normal, and average the slopes times the directions:
#
# $$\hat g = \frac{1}{M} \sum_{j=1}^{M} (u_j^T g)\, u_j.$$
#
# Since (uᵀg) u = u uᵀ g and E[u uᵀ] is the identity matrix, E[ĝ] = g. But ĝ is noisy, and so
# too long. Exercise 2 derives its length; with E[ĝᵀg] = ‖g‖² the cosine follows:
#
# $$E\|\hat g\|^2 = \left(1 + \frac{n + 1}{M}\right) \|g\|^2,
#   \qquad \cos(\hat g, g) \approx \frac{1}{\sqrt{1 + (n + 1)/M}}.$$
#
# We check this at a random point of the ball. (Where the pixels of an image are exactly 0, max
# pooling chooses among equal values, and the margin has a kink.)


# %%
def slope(model, x, y, u, h=1e-3):
    """The slope of m along u: images (N, 1, 28, 28). An attacker would keep m(x), not query it."""
    return ((margin(model, x + h * u, y) - margin(model, x, y)) / h)[:, None, None, None]


victim, few_y, n = networks["standard A"], y[:10], 28 * 28
few = np.clip(x[:10] + rng.uniform(-epsilon, epsilon, x[:10].shape), 0, 1).astype(x.dtype)
g_few, total, rows = margin_gradient(victim, few, few_y), 0, []
for j in range(1, 101 if run.quick else n + 1):
    u = rng.standard_normal(few.shape).astype(few.dtype)
    total = total + slope(victim, few, few_y, u) * u  # (N, 1, 28, 28)
    if j in (10, 30, 100, 300, 784):
        measured = float(cosine(total.reshape(len(few), -1), g_few).mean())
        predicted = 1 / np.sqrt(1 + (n + 1) / j)
        rows.append([str(j), f"{measured:.2f}", f"{predicted:.2f}"])
        assert abs(measured - predicted) < 0.05
g_b = cosine(margin_gradient(networks["standard B"], few, few_y), g_few)
rows.append(["gradient of standard B", f"{g_b.mean():.2f}", ""])
cli.table(["random directions", "cosine", "predicted"], rows)

# %% [markdown]
# With 784 directions the estimate is worse than pixel by pixel, which costs the same, because
# random directions overlap. But an attacker can stop early: compare a hundred directions with
# the gradient of standard B. Still, every *step* of PGD needs a hundred queries.
#
# ## Step 3: the Square attack
#
# The Square attack (Andriushchenko et al. 2020) does not estimate a gradient. It changes the
# image at random, sends it to the victim, and keeps the change if the margin became smaller.
# This *random search* succeeds because of what it tries:
#
# - *Corners.* On the cube ‖δ‖∞ ≤ ε a linear function is smallest at a corner, where each δ_i is
#   ε or −ε. So the attack tries only the values x + ε and x − ε, clipped to [0, 1].
# - *Squares.* One pixel changes the margin little. A convolution adds up neighbouring pixels,
#   so the attack changes a square at once, all of it to x + ε or all to x − ε. It covers a
#   share p of the n pixels, first 0.8 and halved at fixed fractions of the budget: when large
#   squares no longer help, small ones may. With 500 queries the sides are 25, 18, 13, …, 1.
# - *Stripes.* The first query has vertical stripes, one pixel wide, each +ε or −ε at random.
#   The authors found that convolutional networks are sensitive to such patterns.

# %%
HALVED_AT = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]  # of 10,000 queries


def side(query, queries, p=0.8):
    halvings = sum(int(10_000 * (query - 1) / queries) > at for at in HALVED_AT)
    return max(1, round((p / 2**halvings * 28 * 28) ** 0.5))


def propose(x, best, query, queries, random):
    """The next image to try: (1, 28, 28). ``random`` is a generator of random numbers."""
    if query == 0:
        stripes = np.where(random.random(28) < 0.5, epsilon, -epsilon)  # (28,), for the columns
        return np.clip(x + stripes, 0, 1).astype(x.dtype)  # (1, 28, 28) + (28,) -> (1, 28, 28)
    new, width, draws = best.copy(), side(query, queries), random.random(3)
    row, column = (draws[:2] * (28 - width + 1)).astype(int)  # where the square begins
    window = np.s_[:, row : row + width, column : column + width]
    change = epsilon if draws[2] < 0.5 else -epsilon
    new[window] = np.clip(x[window] + change, 0, 1)
    if (new == best).all():  # this query would be wasted
        new[window] = np.clip(x[window] - change, 0, 1)
    return new


def square_attack(model, x, y, queries, seed, stop=None):
    """The best images, margins, queries spent; ``stop`` ends early, on the same schedule."""
    seeds = np.random.default_rng(seed).integers(2**63, size=len(x))
    randoms = [np.random.default_rng(each) for each in seeds]  # a generator for each image
    best, m, spent = x.copy(), margin(model, x, y), np.zeros(len(x), int)
    m[m > 0] = np.inf  # accept the stripes in any case: x is no corner
    for query in range(stop or queries):
        left = np.flatnonzero(m > 0)  # the images that are still correctly classified
        if len(left) == 0:
            break
        new = np.stack([propose(x[i], best[i], query, queries, randoms[i]) for i in left])
        m_new, spent[left] = margin(model, new, y[left]), query + 1
        better = m_new < m[left]
        best[left[better]], m[left[better]] = new[better], m_new[better]
    return best, m, spent


# %% [markdown]
# ## Check: the library finds the same images
#
# We compare in double precision, because rounding could decide whether a change is kept.

# %%
precise = models.slides_cnn().astype(np.float64)
precise.load_state_dict(victim.state_dict())
few, few_y, most = x[:10].astype(np.float64), y[:10], 30 if run.quick else 100
ours, _, spent = square_attack(precise, few, few_y, most, run.seed)
how = {"queries": most, "rng": run.seed, "details": True}
theirs, details = square(precise, few, few_y, ball=Linf(epsilon), **how)
print(f"queries: {spent}; largest difference to the library: {abs(ours - theirs).max():.0e}")
assert abs(ours - theirs).max() < 1e-12 and (spent == details.queries).all()

# %% [markdown]
# ## Experiment: how many queries does it take?
#
# **Predict first.** Allow 500 queries for each image, fewer than one gradient costs pixel by
# pixel. (a) Is the standard network fooled on a few images, half of them, or nearly all? (b)
# Are there images on which Square succeeds, which uses no gradient, and PGD does not?

# %%
queries, after, found = 60 if run.quick else 500, {}, {}
for name in ("standard A", "robust A"):
    _, m, spent = square_attack(networks[name], x, y, queries, run.seed)
    needed = np.where(m > 0, queries + 1, spent)  # (N,)
    after[name] = [float((needed > q).mean()) for q in range(queries + 1)]
    survives_pgd = margin(networks[name], made[name], y) > 0
    only = int((survives_pgd & (m <= 0)).sum()), int((~survives_pgd & (m > 0)).sum())
    found[name] = [clean[name], after[name][-1], accuracy[name][name], *only]
header = ["accuracy", "clean", "Square", "PGD", "fooled only by Square", "only by PGD"]
cli.table(header, [[name, *row] for name, row in found.items()])
run.show(plots.queries(after, {name: accuracy[name][name] for name in after}), "queries")

# %% [markdown]
# <details><summary>Answers</summary>
#
# (a) Nearly all of them. Hiding the weights hardly protects the standard network.
#
# (b) Yes on robust A, a few; none on standard A. PGD may stop at a local maximum of the loss.
# On handwritten digits with 5,000 queries, Square fools a robust network on *more* images than
# PGD with 40 steps (`python -m lessons.experiments.transfer`).
# </details>
#
# So an evaluation should contain an attack without gradients: it finds what others miss (lesson
# 13). Below is the image that took longest on robust A, with its margin.

# %%
i = int(np.where(m > 0, 0, spent).argmax())  # of robust A: the success after most queries
stages, part = {}, slice(i + 1)  # in its place among the images, i gets the same seed
for stop in (1, 5, 20, 50, queries):
    best, m, _ = square_attack(networks["robust A"], x[part], y[part], queries, run.seed, stop)
    stages[stop] = (best[i, 0], float(m[i]))
run.show(plots.stages(stages), "stages")
assert run.quick or after["standard A"][-1] < min(0.2, after["robust A"][-1])

# %% [markdown]
# ## Limits
#
# Our sources share the victim's architecture and training images. Attacks on a victim that
# returns only the predicted class need more queries (Brendel et al. 2018).
#
# ## Exercises
#
# `python -m lessons.exercises 08` gives you stubs (`lessons/exercises/08.py`), and checks them.
#
# 1. Derive the share that transfers for ‖δ‖₂ ≤ ε. Which measure of similarity is it?
# 2. Derive E‖ĝ‖², also for random signs. (Hint: split u into its part along g and the rest.)
# 3. How much do random stripes change the margin, compared with a random sign for each pixel?
# 4. Give PGD the estimated gradient: 10 steps with 49 directions each. Does it beat Square?
#
# ## References
#
# Transfer: Szegedy et al. (2014), Papernot et al. (2016), Madry et al. (2018). Estimated
# gradients: Chen et al. (2017), "ZOO"; Ilyas et al. (2018), "Black-box adversarial attacks".
# Andriushchenko et al. (2020), "Square attack". Brendel et al. (2018).

# %%
run.record(epsilon=epsilon, gradients=similar, transfer=accuracy, queries=found)
