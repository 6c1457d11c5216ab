# %% [markdown]
r"""
# 11 Gradient regularisation

**Question.** Min-max training (lesson 10) runs an attack of several steps for every update of
the weights. But a perturbation does harm only if the loss rises on the way, and near the image
the input gradient says how fast it rises. Can we skip the attack, and train the network to have
a *small input gradient*?

With g = ∂L/∂x, the gradient with respect to the pixels, the objective is

$$\min_\theta\; \mathbb{E}\left[ L(f_\theta(x), y) + \lambda \|g\|_2^2 \right].$$

Drucker & LeCun (1992) proposed it, and Ross & Doshi-Velez (2018) used it against adversarial
examples. The second term is the *gradient penalty*. Its derivative with respect to the weights
is the gradient of a gradient, by *double backprop*.

**Time.** One minute on two cores, and half that once the networks of lessons 02 and 10 are
trained. **You need** lessons 01 (backprop), 04 (dual norms, FGSM), 06 (PGD) and 10 (min-max
training). **After this lesson you can** derive a gradient penalty from the robust loss, write
double backprop, and say what the penalty buys, and what it misses in a ReLU network.
"""

# %%
import numpy as np
from plots import gradient_regularisation as plots
from support import cli, zoo

from tinyadv import Tensor, attacks, data, defenses, evaluate, grad, models, ops, optim
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

run = cli.start("11_gradient_regularisation", __doc__)
rng = np.random.default_rng(run.seed)
digits = run.load()
standard, robust = zoo.standard(digits), zoo.robust(digits)
epsilon = zoo.EPSILON[digits.name]  # the radius that lesson 10 trained for
x, y = cli.spread(digits.x_test, digits.y_test, 40 if run.quick else 200)  # (N, 1, 28, 28), (N,)

# %% [markdown]
# ## Step 1: where does the penalty come from?
#
# The robust loss of lesson 10 is the maximum of L(x + δ) over the ball ‖δ‖ ≤ ε. In a small ball
# the loss is almost linear, L(x + δ) ≈ L(x) + gᵀδ, and the maximum of a linear function is
# known exactly. It is ε times the *dual norm* of g (lesson 04):
#
# $$\max_{\|\delta\| \le \epsilon} g^T \delta = \epsilon \|g\|_*.$$
#
# In the ∞-norm the best δ is ε sign(g), so the maximum is ε Σ |g_i| = ε‖g‖₁. In the 2-norm it
# is ε‖g‖₂, and in the 1-norm, where one pixel gets all of the budget, it is ε max |g_i|. So the
# robust loss is approximately L(x) + ε‖g‖_*. A penalty on the dual norm of the input gradient
# is min-max training with a *linearised* inner maximum, which needs no search.
#
# How good is the approximation? FGSM maximises the linearised loss, so after FGSM, without the
# clip to [0, 1], the loss should be L + ε‖g‖₁. We compare this with the loss that is found.


# %%
def loss_and_gradient(model, x, y):
    """L and g of each image, as arrays: (N,), (N, 1, 28, 28)."""
    image = Tensor(x)
    loss = cross_entropy(model(image), y, reduction="none")
    (g,) = grad(loss.sum(), [image])
    return loss.value, g


reach = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 1]) * epsilon  # radii
loss, g = loss_and_gradient(standard, x, y)
promised = loss.mean() + reach * abs(g).sum(axis=(1, 2, 3)).mean()  # one for each radius
actual = [loss_and_gradient(standard, x + r * np.sign(g), y)[0].mean() for r in reach]
growth = (np.array(actual) - loss.mean()) / (promised - loss.mean())
for r, ratio in zip(reach, growth, strict=True):
    print(f"ε = {r:.3f}: the loss grows {ratio:.1f} times as much as L + ε‖g‖₁ says")
run.show(plots.tangent(reach, promised, actual), "tangent")
assert run.quick or (0.5 < growth[0] < 1.6 and growth[-1] > 3)

# %% [markdown]
# The two roughly agree at a small radius only. Where the network is confident, p − y ≈ 0, so
# the loss is flat at the image and steeper further away. The penalty sees only the slope at the
# image. The experiment will show how far that carries.
#
# The usual penalty is the *square* of the 2-norm. It belongs to an attacker who may choose any
# δ, but pays for its length: in max over δ of gᵀδ − ‖δ‖₂²/(4λ), the derivative g − δ/(2λ) is
# zero at δ = 2λg, and the maximum is 2λ‖g‖₂² − λ‖g‖₂² = λ‖g‖₂². So λ fixes no radius. Unlike
# ‖g‖₂, the square has no kink at g = 0.
#
# ## Step 2: the gradient of a gradient
#
# What does backpropagation have to do for ∂‖g‖₂²/∂θ? Take a network with one hidden layer and a
# single output, f(x) = vᵀφ(a) with a = Wx + b, and let g be ∂f/∂x for now. By lesson 01,
#
# $$g = W^T u, \qquad u = v \circ \varphi'(a),$$
#
# where ∘ multiplies element by element. Now let the weights change by small amounts dW and db.
# The penalty R = ‖g‖₂² changes by dR = 2gᵀdg, and g changes in two ways: because W appears in
# it, and because u depends on a, which depends on W and b.
#
# $$dg = dW^T u + W^T (v \circ \varphi''(a) \circ da), \qquad da = dW\,x + db.$$
#
# Insert dg into dR. The first part gives 2gᵀdWᵀu = 2uᵀdW g, the second 2(Wg)ᵀ(v ∘ φ″(a) ∘ da).
# What multiplies dW and db is the derivative (v changes only u, and ∂R/∂v = 2φ′(a) ∘ (Wg)):
#
# $$\frac{\partial R}{\partial b} = 2\, v \circ \varphi''(a) \circ (W g), \qquad
# \frac{\partial R}{\partial W} = 2\, u g^T + \frac{\partial R}{\partial b}\, x^T.$$
#
# `grad(…, create_graph=True)` returns g as a tensor that remembers how it was computed, so
# `grad` can be applied to it again. Both ways must agree.

# %%
PHI = {  # the first and second derivative of each activation; softplus(a) is log(1 + eᵃ)
    "relu": (lambda a: (a > 0) * 1.0, lambda a: 0 * a),
    "softplus": (lambda a: 1 / (1 + np.exp(-a)), lambda a: 1 / (2 + np.exp(a) + np.exp(-a))),
    "tanh": (lambda a: 1 / np.cosh(a) ** 2, lambda a: -2 * np.tanh(a) / np.cosh(a) ** 2),
}


def penalty_by_hand(image, W, b, v, activation):
    """R = ‖g‖², ∂R/∂W and ∂R/∂b for one image (D,), W (H, D), b (H,), v (H,)."""
    first, second = PHI[activation]
    a = W @ image + b  # (H, D) @ (D,) -> (H,)
    u = v * first(a)
    g = u @ W  # Wᵀu: (H,) @ (H, D) -> (D,)
    b_bar = 2 * v * second(a) * (W @ g)  # (H, D) @ (D,) -> (H,)
    return g @ g, 2 * np.outer(u, g) + np.outer(b_bar, image), b_bar


image, H = x[0].reshape(-1).astype(np.float64), 20  # (784,)
W, b, v = rng.standard_normal((H, 784)) / 28, rng.standard_normal(H) / 10, rng.standard_normal(H)
rows = []
for activation in PHI:
    by_hand = penalty_by_hand(image, W, b, v, activation)
    pixels, W_, b_ = Tensor(image[None]), Tensor(W), Tensor(b)  # (1, 784), (H, 784), (H,)
    output = (getattr(ops, activation)(ops.dense(pixels, W_, b_)) * v).sum()
    (g,) = grad(output, [pixels], create_graph=True)
    R = (g * g).sum()
    by_grad = float(R), *grad(R, [W_, b_])
    assert all(np.allclose(p, q, atol=1e-10) for p, q in zip(by_hand, by_grad, strict=True))
    rows.append([activation, *(f"{abs(a).max():.4f}" for a in by_hand)])
cli.table(["φ", "R", "largest |∂R/∂W|", "largest |∂R/∂b|"], rows)

# %% [markdown]
# ## Step 3: what is different about a ReLU?
#
# The second derivative of a ReLU is zero almost everywhere, and undefined at the kink a = 0. So
# the terms with φ″ vanish, and ∂R/∂b is zero. But ∂R/∂W is not zero, because 2ugᵀ contains only
# the first derivative: as long as no unit switches on or off, g = Wᵀu is a polynomial in the
# weights, and smaller weights make a smaller g. So the penalty can train ReLU networks.
#
# What the derivative misses is the effect of the switching. When a unit switches, g jumps, and
# so does R. To see it, we add the same number t to every bias and compare R with R(−1) plus the
# integral of its derivative, R′(t) = Σ_i ∂R/∂b_i. For a smooth φ the two are equal.

# %%
T = np.linspace(-1, 1, 801)
walks = {}
for activation in ("relu", "softplus"):
    R, _, b_bar = zip(*(penalty_by_hand(image, W, b + t, v, activation) for t in T), strict=True)
    slope = np.sum(b_bar, axis=1)  # R′(t): (T, H) -> (T,)
    parts = (slope[1:] + slope[:-1]) / 2 * np.diff(T)  # trapezoidal rule
    walks[activation] = np.array(R), R[0] + np.concatenate([[0], np.cumsum(parts)])
    print(f"{activation}: R changes by {R[-1] - R[0]:.3f}; ∫ R′(t) dt = {parts.sum():.3f}")
run.show(plots.walk(T, walks), "walk along the biases")
assert np.allclose(*walks["softplus"], rtol=1e-3)
assert np.ptp(walks["relu"][1]) == 0 and np.ptp(walks["relu"][0]) > 0.5

# %% [markdown]
# For the ReLU, R is a staircase, flat between the jumps, and gradient descent would not move
# the biases. In a classifier with logits Vφ(a) + c, however, v is replaced by Vᵀ(p − y), with
# the softmax p and the one-hot label y. Since p changes smoothly with every bias, the biases
# have a derivative there although φ″ = 0. The jumps of φ′ are still missed.
#
# ## Step 4: the training step
#
# For a whole network `grad` does both passes. Images do not interact, so the gradient of the
# *summed* loss contains the g of every image. Without `create_graph=True`, g would be a
# constant array, and the penalty would have no derivative.


# %%
def penalised_loss(model, x, y, lam):
    """The mean of L + λ‖g‖₂² over the images, a tensor."""
    image = Tensor(x)
    loss = cross_entropy(model(image), y, reduction="none")  # (N,)
    (g,) = grad(loss.sum(), [image], create_graph=True)  # (N, 1, 28, 28)
    return (loss + lam * (g * g).sum(axis=(1, 2, 3))).mean()


def train(model, lam, epochs):
    """Lesson 10's optimiser and schedule; λ grows from 0 in the first epoch."""
    adam, order = optim.Adam(model.parameters()), np.random.default_rng(run.seed)
    rate = optim.piecewise_linear([(0, 5e-4), (0.4 * epochs, 5e-3), (epochs, 1e-4)])
    epoch = 0.0
    while epoch < epochs - 1e-6:
        for xb, yb in data.batches(digits.x_train, digits.y_train, 128, order):
            adam.lr = rate(epoch)
            objective = penalised_loss(model, xb, yb, lam * min(1, epoch))
            adam.step(grad(objective, model.parameters()))  # back through both passes
            epoch += len(xb) / len(digits.x_train)
    return model


# %% [markdown]
# ## Check: finite differences, and the library
#
# Is the gradient right for the whole CNN? We move all weights along a random direction, in
# double precision. The step h must be small, so that no unit switches on the way. For the same
# reason the images are random: on an evenly white background the inputs of a max pooling tie,
# and rounding decides which is the largest. In the library, `defenses.GradientPenalty` is this
# objective, for `fit(…, objective=…)`.

# %%
lam, h, model = 3.0, 1e-8, models.slides_cnn(run.seed).astype(np.float64)
few, few_y = rng.uniform(size=x[:4].shape), y[:4]
gradients = grad(penalised_loss(model, few, few_y, lam), model.parameters())
direction = [rng.standard_normal(p.shape) for p in model.parameters()]
values = []
for t in (h, -2 * h, h):  # to +h, to −h, and back again
    for parameter, d in zip(model.parameters(), direction, strict=True):
        parameter.value[...] += t * d
    values.append(float(penalised_loss(model, few, few_y, lam)))
slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
difference = (values[0] - values[1]) / (2 * h)
print(f"derivative of the objective: {slope:.6f}; finite difference: {difference:.6f}")
assert abs(slope - difference) < 1e-4 * abs(slope)

library, _ = defenses.GradientPenalty(lam)(model, few, few_y)
print(f"our objective {values[2]:.6f}, the library's {float(library):.6f}")
pairs = zip(gradients, grad(library, model.parameters()), strict=True)
assert all(np.allclose(ours, theirs, atol=1e-6) for ours, theirs in pairs)

# %% [markdown]
# ## Experiment: what does the penalty gain?
#
# We train the CNN of lesson 02 with the penalty. The networks to compare with are the standard
# one, and the network of lesson 10, which was trained with PGD at the radius ε.
#
# **Predict first.** The penalty makes the loss flat *at* the training images. At which radii
# will it help: ε/10, ε/2, ε? And will it help more against FGSM or against PGD?

# %%
epochs = 1 if run.quick else 4 if digits.name == "glyphs" else 2
penalised = train(models.slides_cnn(run.seed), lam, epochs)
networks = {"standard": standard, "penalty": penalised, "min-max": robust}
radii = [epsilon / 10, epsilon / 4, epsilon / 2, epsilon]


def under_attack(model, radius):
    """The accuracy under FGSM and under PGD."""
    one = attacks.fgsm(model, x, y, ball=Linf(radius))
    many = attacks.pgd(model, x, y, ball=Linf(radius), steps=7 if run.quick else 20)
    return {"FGSM": evaluate.accuracy(model, one, y), "PGD": evaluate.accuracy(model, many, y)}


found, rows = {}, []
for name, model in networks.items():
    _, g = loss_and_gradient(model, x, y)
    curve = [under_attack(model, radius) for radius in radii]
    length = np.sqrt((g * g).sum(axis=(1, 2, 3))).mean()
    found[name] = {"clean": evaluate.accuracy(model, x, y), "length": length, "curve": curve}
    shares = [found[name]["clean"], *curve[2].values(), *curve[3].values()]
    rows.append([name, f"{length:.3f}", *shares])
under = [f"{attack} {radius:g}" for radius in radii[2:] for attack in ("FGSM", "PGD")]
cli.table(["training", "mean ‖g‖₂", "clean", *under], rows)
run.show(plots.radii(radii, found), "robust accuracy")
before, after, minmax = found.values()
if not run.quick:
    assert after["length"] < before["length"] and after["clean"] > before["clean"] - 0.03
    assert after["curve"][2]["PGD"] > before["curve"][2]["PGD"] + 0.1
    assert minmax["curve"][3]["PGD"] > after["curve"][3]["PGD"] + 0.1

# %% [markdown]
# <details><summary>Answer</summary>
#
# It helps most at ε/2. At ε/10 (see the figure) the standard network needs little help. At ε/2
# the gain is larger under PGD than under FGSM, and the clean accuracy hardly changes. At ε the
# gain under PGD is small, whereas the min-max network survives on most images. The penalty
# controls the slope *at* the image, and min-max training the loss where the attack ends. That
# is what the extra passes of PGD buy.
# </details>
#
# ## Experiment: smooth activations
#
# A smooth activation has a second derivative, so gradient descent sees all of the penalty. Does
# this make a difference? We train small networks with one hidden layer, because max pooling is
# piecewise linear as well and would spoil the comparison.
#
# **Predict first.** Which gains more from the penalty: ReLU, softplus or tanh?

# %%
smooth, rows = {}, []
for activation in PHI:
    for weight in (0.0, lam):
        model = train(models.mlp((784, 50, 10), run.seed, activation=activation), weight, epochs=2)
        row = {"clean": evaluate.accuracy(model, x, y), **under_attack(model, epsilon / 4)}
        rows.append([f"{activation}, λ = {weight:g}", *row.values()])
        smooth[rows[-1][0]] = row
    assert run.quick or rows[-1][-1] > rows[-2][-1]  # under PGD
cli.table(["", "clean", f"FGSM {epsilon / 4:g}", f"PGD {epsilon / 4:g}"], rows)

# %% [markdown]
# <details><summary>Answer</summary>
#
# None stands out. With one seed and few images, differences of a few points mean nothing. The
# ReLU network gains although its gradient misses the switching: φ′ and p − y are enough here.
# </details>
#
# ## Limits
#
# Each network was trained once, with one λ, for a few epochs. Accuracies under PGD are upper
# bounds. A defence that makes gradients small may only make attacks fail (lesson 13).
# `python -m lessons.experiments.gradient_regularisation` trains longer, with more penalties.
#
# ## Exercises
#
# `python -m lessons.exercises 11` gives you stubs (`lessons/exercises/11.py`), and checks them.
#
# 1. For which λ does the attacker of step 1, who pays for ‖δ‖₂², move exactly as far as ε?
# 2. What is the maximum of gᵀδ if x + δ must lie between 0 and 1, too?
# 3. Write the gradient of a training step with the penalty ε‖g‖₁. (Hint: `ops.abs`.)
# 4. Derive ∂R/∂b for a linear classifier with a softmax. (Hint: how does p change with b?)
# 5. Compute ∂‖g‖₂²/∂θ without double backprop, from ∂L/∂θ at x + h g and at x − h g.
#
# ## References
#
# Drucker & LeCun (1992), "Improving generalization performance using double backpropagation".
# Ross & Doshi-Velez (2018), "Improving the adversarial robustness and interpretability of deep
# neural networks by regularizing their input gradients".

# %%
run.record(epsilon=epsilon, radii=radii, networks=found, growth=growth, activations=smooth)
