# %% [markdown]
r"""
# 14 Interval bounds

**Question.** If every attack fails on an image, someone may still find a better attack
tomorrow. Can we *prove* that no perturbation within ε changes the predicted class?

An attack finds some x′, and its loss is at most the inner maximum of lesson 10. In this lesson
we compute logits ẑ that are at least as bad as those of any allowed image, so the maximum lies
between two numbers:

$$L(f(x'), y) \;\le\; \max_{\delta \in S(x)} L(f(x + \delta), y) \;\le\; L(\hat z, y).$$

S(x) is the set of lesson 10: ‖δ‖∞ ≤ ε and 0 ≤ x + δ ≤ 1. If ẑ still gives the true class
strictly the largest logit, the image is *certified*: no attack can succeed. (A misclassified
image is never certified, because δ = 0 is allowed.)

**Time.** One minute on two cores. **You need** lessons 06 (PGD) and 10 (min-max training).
**After this lesson you can** compute interval bounds by hand, say why they prove little for
networks not trained for them, and train a network for which they prove something.
"""

# %%
import numpy as np
from plots import interval_bounds as plots
from support import cli, zoo

from tinyadv import attacks, defenses, evaluate, fit, layers, models, optim, verify
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

run = cli.start("14_interval_bounds", __doc__)
digits = run.load(1000 if run.quick else 10_000)
epsilon = zoo.EPSILON[digits.name]
x, y = cli.spread(digits.x_test, digits.y_test, 50 if run.quick else 300)  # (N, 1, 28, 28), (N,)
print(f"{digits.name}, ε = {epsilon}, {len(x)} test images")

# %% [markdown]
# ## Step 1: a linear layer
#
# Suppose that input i lies between l_i and u_i. Write the interval with its centre m = (l +
# u)/2 and its radius r = (u − l)/2, so that every allowed input is m + e with |e_i| ≤ r_i. One
# output of a linear layer is then
#
# $$w^\top (m + e) + b = (w^\top m + b) + \sum_i w_i e_i.$$
#
# Each e_i can be chosen on its own. The sum is largest for e_i = r_i sign(w_i), where it is Σ_i
# |w_i| r_i, and smallest for the opposite. For all outputs together, the centre becomes W m +
# b, and the radius |W| r:
#
# $$W m + b - |W|\, r \;\le\; W x + b \;\le\; W m + b + |W|\, r.$$
#
# A convolution is a linear layer, too: the radius is convolved with the absolute filter.


# %%
def linear(W, b, low, high):  # (O, I), (O,), (N, I), (N, I)
    m, r = (low + high) / 2, (high - low) / 2
    centre, radius = m @ W.T + b, r @ abs(W).T  # (N, O)
    return centre - radius, centre + radius


# %% [markdown]
# ## Step 2: a ReLU
#
# A ReLU never decreases, so the smallest input gives the smallest output, and the largest the
# largest. The bounds l and u become max(l, 0) and max(u, 0). The same is true of max-pooling,
# sigmoid and tanh.
#
# Let us follow a network with two inputs, two hidden neurons and two outputs. Both inputs lie
# between 0.2 and 0.8. We compare the bounds with *brute force*, a fine grid of inputs.

# %%
W1, b1 = np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([0.0, -1.0])
W2, b2 = np.array([[1.0, 1.0], [1.0, -1.0]]), np.zeros(2)
low, high = np.full((1, 2), 0.2), np.full((1, 2), 0.8)
hidden = linear(W1, b1, low, high)
outputs = linear(W2, b2, *(np.maximum(bound, 0) for bound in hidden))

axis = np.linspace(0.2, 0.8, 121)
grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)  # (M, 2)
h = grid @ W1.T + b1
z = np.maximum(h, 0) @ W2.T + b2
for name, (lower, upper), reached in (("hidden", hidden, h), ("output", outputs, z)):
    for j in range(2):
        print(f"{name} {j + 1}: bounds {lower[0, j]:+.2f} to {upper[0, j]:+.2f}, reached ", end="")
        print(f"{reached[:, j].min():+.2f} to {reached[:, j].max():+.2f}")
    assert (lower - 1e-9 <= reached).all() and (reached <= upper + 1e-9).all()
run.show(plots.reachable(h, hidden, z, outputs), "reachable")
assert outputs[1][0, 0] > 1.5 * z[:, 0].max()  # loose

# %% [markdown]
# The bounds of the hidden layer are reached exactly, but the bound of the first output is twice
# the largest value that it can take. It would need both hidden neurons at their maximum, the
# corner (0.6, 0.6) of the hidden box, which is empty: the first is largest for x = (0.8, 0.2),
# the second for x = (0.8, 0.8). Interval arithmetic forgets that both see the same input. Its
# bounds are always valid, but from the second layer on they can be loose.
#
# ## Step 3: the last layer
#
# The predicted class is y for all allowed inputs if z_k − z_y < 0 for all other classes k. The
# bound u_k − l_y of this difference takes z_k and z_y at different inputs. It is better to
# subtract *before* bounding. Let h be the input of the last layer, and m and r the centre and
# radius of its box (m is not the h of the clean image):
#
# $$z_k - z_y = (w_k - w_y)^\top h + b_k - b_y,$$
#
# which is a linear layer, too. A constant added to all logits does not change the
# probabilities, so we may set ẑ_y = 0. The upper bound of the difference is then ẑ_k, and the
# image is certified if ẑ_k < 0 for all k ≠ y:
#
# $$\hat z_k = (w_k - w_y)^\top m + |w_k - w_y|^\top r + b_k - b_y.$$
#
# Gowal et al. (2018) call this *elision of the last layer*. It is never worse, because |w_k −
# w_y| ≤ |w_k| + |w_y|. The cross-entropy is L(z, y) = ln Σ_k exp(z_k − z_y). It increases with
# every difference, so L(ẑ, y) bounds the loss of every allowed image, though no h may reach it.


# %%
def worst_logits(W, b, low, high, y):  # (K, H), (K,), (N, H), (N, H), (N,)
    m, r = (low + high) / 2, (high - low) / 2
    W, b = W - W[y][:, None], b - b[y][:, None]  # of z_k − z_y: (N, K, H), (N, K)
    return np.einsum("nkh,nh->nk", W, m) + np.einsum("nkh,nh->nk", abs(W), r) + b  # (N, K)


# %% [markdown]
# ## Check: the library computes the same
#
# `verify.interval_bounds` goes through the layers, and `verify.worst_logits` ends with the
# elision. We compare on an untrained network; PGD's loss must stay below the bound.

# %%
small = models.mlp((784, 30, 10), rng=run.seed).astype(np.float64)
W1, b1, W2, b2 = (p.value for p in small.parameters())
rows = x.reshape(len(x), -1).astype(np.float64)  # (N, 784)
within = np.clip(rows - epsilon, 0, 1), np.clip(rows + epsilon, 0, 1)
hidden = [np.maximum(bound, 0) for bound in linear(W1, b1, *within)]
ours = worst_logits(W2, b2, *hidden, y)
first = layers.Sequential(*small.layers[:-1])  # all but the last layer
_, theirs = verify.interval_bounds(first, *within, outward=False)
last = verify.worst_logits(small, *within, y, outward=False)
for name, a, b in (("hidden", hidden[1], theirs.value), ("ẑ", ours, last.value)):
    print(f"{name}: largest difference to the library {abs(a - b).max():.0e}")
    assert np.allclose(a, b, atol=1e-9)

z_low, z_high = linear(W2, b2, *hidden)
separate = z_high - np.take_along_axis(z_low, y[:, None], axis=1)  # u_k − l_y
others = np.arange(10) != y[:, None]
print(f"mean of ẑ_k: {ours[others].mean():.1f}; of u_k − l_y: {separate[others].mean():.1f}")
assert (ours[others] <= separate[others] + 1e-9).all()

found = attacks.pgd(small, rows, y, ball=Linf(epsilon), steps=10, rng=run.seed)
below = cross_entropy(small(found), y, reduction="none").value  # (N,)
above = cross_entropy(ours, y, reduction="none")
print(f"mean loss: {below.mean():.2f} found by PGD, {above.mean():.2f} at most")
assert (below <= above).all()

# %% [markdown]
# One detail is missing in our code. Floating-point sums are rounded, so a bound may come out a
# little too tight, and then it proves nothing. By default the library moves every bound outward
# by the largest possible rounding error of the bound and of the network (`outward=True`), and
# the box of the pixels too, because x ± ε is rounded. `verify.certified` uses these bounds, so
# its proofs hold for the network as it is computed.
#
# ## Experiment: what do the bounds prove about networks not trained for them?
#
# A certified image is robust, and a robust image survives PGD. So for every network
#
# $$\text{certified accuracy} \;\le\; \text{robust accuracy} \;\le\; \text{accuracy under PGD}.$$
#
# **Predict first.** The second network below has min-max training, as in lesson 10. Most images
# survive PGD there. What share do the bounds certify?


# %%
def judged(model):
    """Accuracies and mean losses, from below by an attack and from above by the bounds."""
    x_adv = attacks.pgd(model, x, y, ball=Linf(epsilon), steps=10 if run.quick else 40, rng=0)
    within = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    worst = verify.worst_logits(model, *within, y).value  # (N, K)
    proved, found = verify.certified(model, x, y, epsilon), evaluate.predict(model, x_adv) == y
    below = cross_entropy(model(x_adv).value, y, reduction="none")
    above = cross_entropy(worst, y, reduction="none")
    assert found[proved].all() and (below <= above + 1e-4).all()
    return {
        "clean": evaluate.accuracy(model, x, y), "PGD": float(found.mean()),
        "certified": float(proved.mean()), "loss under PGD": float(below.mean()),
        "loss bound": float(above.mean()),
    }  # fmt: skip


def show(table):
    text = lambda row: [f"{v:.2f}" if key[:4] == "loss" else v for key, v in row.items()]
    cli.table(["network", *table["standard"]], [[name, *text(row)] for name, row in table.items()])


networks = {  # min-max: the training accuracy in the log is on perturbed images
    "standard": zoo.standard_fast(digits, epochs=1 if run.quick else 3),
    "min-max": zoo.pgd(digits, epochs=1 if run.quick else 4, steps=4, warm_up=3.0, peak=0.004),
}
table = {name: judged(model) for name, model in networks.items()}
show(table)
assert run.quick or all(found["certified"] < 0.05 for found in table.values())

# %% [markdown]
# <details><summary>Answer</summary>
#
# None or almost none. The upper bound on the loss is far above what PGD reaches. The network
# may still be robust; the bounds cannot tell. (The clean accuracies differ by noise.)
# </details>
#
# ## Why are the bounds so loose?
#
# Take weights of mean 0 and variance 2/n, the usual initialisation. In Σ w_i x_i the products
# mostly cancel, and a layer with its ReLU keeps the size of the activations. In the radius, all
# terms |w_i| r_i are positive, so the linear layer multiplies it by n E|w| = √(4n/π) on
# average. The ReLU halves it, because for centres m and −m the two output widths add up to one
# input width. That leaves √(n/π) per layer, 16 for n = 784 and less for small filters. A figure
# below shows the mean width u − l of each linear layer, divided by the standard deviation of
# its neurons over the images. Above 1, intervals are wider than this spread.
#
# ## Training on the bounds
#
# Bounds are computed by sums, products and absolute values, so they can be differentiated.
# Gowal et al. train a network to keep them narrow. With κ between 0 and 1 they minimise
#
# $$\kappa\, L(z, y) + (1 - \kappa)\, L(\hat z, y).$$
#
# No attack is needed: a bound costs about two forward passes (centre and radius), and each step
# of PGD one forward and one backward pass.
#
# With the usual initialisation L(ẑ, y) is far too large to learn from. So normal weights are
# drawn with E|w| = 2/n: a linear layer doubles the radius, and the ReLU halves it again
# (`init="interval_normal"`, Shi et al., 2021). This scales activations and intervals alike, so
# narrow intervals still have to be learned. Training begins with κ = 1 and ε = 0, to classify
# first. Over the ramp ε grows and κ falls only to ½, to keep the clean accuracy.


# %%
def interval_loss(model, x, y, epsilon, kappa):
    low, high = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    z_hat = verify.worst_logits(model, low, high, y, outward=False)
    return kappa * cross_entropy(model(x), y) + (1 - kappa) * cross_entropy(z_hat, y)


epochs = 1 if run.quick else 4
model = models.fast_cnn(run.seed, init="interval_normal")
objective = defenses.IntervalBound(epsilon, ramp=(0.05 * epochs, 0.6 * epochs))
objective.at(epochs)  # after the ramp, where κ is ½; a call returns the loss and the logits
gap = objective(model, x, y)[0].value - interval_loss(model, x, y, epsilon, 0.5).value
print(f"difference to the library's objective: {abs(float(gap)):.0e}")
assert abs(gap) < 1e-4

adam = optim.Adam(model.parameters())
rate = optim.piecewise_linear([(0, 7e-4), (0.3 * epochs, 7e-3), (epochs, 7e-5)])
fit(
    model, digits, adam, epochs, objective=objective, schedule=rate, batch_size=100, rng=run.seed,
    validate=False, progress=False,
)  # fmt: skip
networks["interval bounds"] = model

# %% [markdown]
# **Predict first.** The new network is as large as the other two. Will it be as accurate on
# clean images as they are?

# %%
table["interval bounds"] = judged(model)
show(table)
run.show(plots.sandwich(table), "sandwich")

growth = {}
for name, network in networks.items():
    growth[name] = []
    within = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    for i, layer in enumerate(network.layers):
        if isinstance(layer, (layers.Conv2d, layers.Dense)):
            part = layers.Sequential(*network.layers[: i + 1])
            lower, upper = verify.interval_bounds(part, *within, outward=False)
            width, spread = (upper - lower).value.mean(), part(x).value.std(axis=0).mean()
            growth[name].append(float(width / spread))
    print(f"{name}: relative width", *(f"{width:.3g}" for width in growth[name]))
run.show(plots.widths(growth), "widths")
if not run.quick:
    assert table["interval bounds"]["certified"] > 0.5 * table["interval bounds"]["PGD"]
    assert growth["interval bounds"][-1] < 0.2 * min(growth["standard"][-1], growth["min-max"][-1])

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. It has to keep all intervals narrow, which leaves it less freedom. Fewer images survive
# PGD, too. (Both accuracies fall partly because training is short: three times the epochs
# regain much of it.) In return the bounds certify most of the images that survive PGD; one in
# ten of all images stays undecided (the grey bar). Here the relative width hardly grows.
# </details>
#
# ## Limits
#
# A certificate is about this network, this image, this norm and this ε, and about nothing else.
# (For ‖δ‖₂ ≤ ε only the first layer changes: the radius of a neuron is ε‖w‖₂.) The bounds are
# one-sided: a correctly classified image that is not certified may be robust. For ReLU networks
# an exact decision is NP-hard (Katz et al., 2017). Between exact methods and intervals lie
# linear relaxations such as CROWN: slower, but they keep track of the common input.
#
# On MNIST at ε = 0.3, Gowal et al. (2018) report that 8.05 % of the images have no certificate
# (2.2 % at ε = 0.1). It is 7.0 % with CROWN-IBP, which combines linear relaxations and
# intervals in training, and 6.4 % with CC-IBP and MTL-IBP, which combine an attack and a bound
# in the loss. These numbers partly rest on tighter verifiers than intervals. Ours, after four
# epochs on glyphs at ε = 0.2, is about a third, give or take three points with 300 images.
#
# ## Exercises
#
# `python -m lessons.exercises 14` gives you stubs (`lessons/exercises/14.py`), and checks them.
# The capstone of the course is `python -m lessons.exercises capstone`.
#
# 1. Derive interval bounds of the absolute value. (Hint: where is |x| smallest?)
# 2. Find the range that two linear layers reach, one after the other with no ReLU in between.
# 3. Derive the standard deviation of normal weights with E|w| = 2/n.
# 4. A network averages the logits of others. Which images does the mean of their ẑ certify?
# 5. Find the largest certified ε of each image by bisection.
#
# ## References
#
# Gowal et al. (2018), "On the effectiveness of interval bound propagation". Katz et al. (2017),
# "Reluplex". Zhang et al. (2018), "Efficient neural network robustness certification" (CROWN).
# Zhang et al. (2020), "Towards stable and efficient training of verifiably robust neural
# networks" (CROWN-IBP). Shi et al. (2021), "Fast certified robust training with short warmup".
# De Palma et al. (2024), "Expressive losses for verified robustness".

# %%
run.record(epsilon=epsilon, networks=table, relative_width=growth)
