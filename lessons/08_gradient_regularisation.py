# %% [markdown]
"""
# 08 Gradient regularisation: a loss that looks at its own slope

**Question.** An attack follows the gradient of the loss for the pixels. Can a network be trained to
have a small one? And what does it cost to train on a gradient?

**Equation.** The loss, and the squared length of its own gradient,

    min over θ of E[ L(f(x), y) + λ ‖∇ₓL(f(x), y)‖₂² ],

so the descent needs ∂/∂θ of ∇ₓL: the gradient of a gradient, *double backprop*. With ‖∇ₓL‖₁ and
λ = ε it is the min-max training of lesson 07 to first order, because

    max over ‖δ‖∞ ≤ ε of L(x + δ)  ≈  max of L(x) + ∇ₓLᵀδ  =  L(x) + ε ‖∇ₓL‖₁.

**Papers.** Drucker & LeCun (1992), "Improving generalization performance using double
backpropagation"; Ross & Doshi-Velez (2018), "Improving the adversarial robustness and
interpretability of deep neural networks by regularizing their input gradients".

**Run.** `python lessons/08_gradient_regularisation.py`: a minute or more on two cores, with the
embedded printed digits. On handwritten digits, with longer training:
`python lessons/08_gradient_regularisation.py --data mnist --full`, about half an hour.

**What to look for.** Double backprop by hand is the backward pass, gone through backwards once
more: fourteen lines. A ReLU has no second derivative, so part of what a weight does to the penalty
is invisible to its gradient, and yet the training works: at ε = 0.1 the penalty takes the accuracy
on the printed digits from 63 to 84 % under FGSM and from 28 to 73 % under PGD, and costs nothing on
the images. With softplus in the place of ReLU nearly the same is left, within what chance may do;
the penalty gains less there under PGD, for the smooth network begins higher. Farther away it buys
less: at ε = 0.2 PGD leaves 2 %. The penalty knows the slope at the image, and the loss soon
outgrows what that promised. Training on PGD's examples looks there: 90 % under PGD at 0.1, and 19 %
at 0.2. On all handwritten digits, longer and with λ = 8, FGSM at 0.1 leaves 94.5 % instead of
74.9 % (with softplus 94.9 % instead of 76.5 %), and PGD 91.8 % instead of 34.8 %; of every tenth
PGD at 0.2 leaves 42 %, and 62 % after min-max training. With noise on the images, so that it looks
around, the penalty leaves 95.0 % under FGSM at 0.1; noise without a penalty leaves 82.8 %.

**What was shortened.** Printed digits, 6000 of them, and 5 epochs; a few hundred test images. With
`--full` all training images and 10 epochs. One seed for each network.
"""

# %% [markdown]
# ## Names and settings
#
#     x, y    images with values 0 to 1: (N, 1, 28, 28), or rows (N, D), and their labels (N,)
#     e       (N, K)   the labels as rows with a single 1
#     φ                an activation; φ′ and φ″ its derivatives
#     z, p    (N, K)   logits and probabilities
#     L                the cross-entropy of an image
#     g                ∂L/∂x, in the shape of x
#     R                the penalty: the mean of ‖g‖₂² over a batch
#     λ, ε             the weight of the penalty; the radius of the ball, in pixel values 0–1

# %%
import common
import matplotlib.pyplot as plt
import numpy as np

from tinyadv import Tensor, attacks, defenses, evaluate, grad, losses, models, ops, to_numpy
from tinyadv.balls import Linf
from tinyadv.layers import Activation, ReLU

NAME = "08_gradient_regularisation"
args = common.arguments(__doc__)
xp = args.xp  # numpy or cupy

IMAGES = 1500 if args.quick else None if args.full else 6000  # that are trained on
EPOCHS = 3 if args.quick else 10 if args.full else 5  # passes over them
LR = [(0, 0.0005), (0.4 * EPOCHS, 0.005), (EPOCHS, 0.0001)]  # Adam's learning rate, over epochs
EPSILON = 0.1  # at which the networks are compared, and the adversary's in min-max training
WEAK, STRONG = 1.0, 2.0 if args.quick else 8.0 if args.full else 3.0  # λ of ‖g‖₂²
ABSOLUTE = 0.2 if args.full else EPSILON  # λ of ‖g‖₁: ε by the formula, and with --full twice that
NOISE = 0.2  # how far each pixel is moved at random, where the penalty is to look around
WARM_UP = 1.0  # epochs in which λ, or ε, grows from 0
STEPS_IN_TRAINING = 5  # of PGD, in min-max training
RADII = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # ε of the curves
if args.quick:
    RADII = (0.05, 0.1, 0.2)
SHOWN = 100 if args.quick else 1000 if args.full else 300  # test images of the curves
STEPS = 10 if args.quick else 20  # of PGD, there
HIDDEN = 20  # units of the small network

data = common.load_data(args, IMAGES, 500 if args.quick else None)
x, y = common.test_images(args, data, SHOWN)
numbers = {"epsilon": EPSILON, "radii": RADII}  # what is recorded
print(f"{data.name}: {len(data.x_train)} training images, {EPOCHS} epochs, λ = {WEAK}, {STRONG}")

# %% [markdown]
# ## Double backprop by hand
#
# A network with one hidden layer, z = W₂ φ(W₁x + b₁) + b₂, in plain NumPy. The first part is lesson
# 01 with one step more: down to the pixels. What comes out, R, is a function of the weights like
# any other, made in nine steps. So the second part goes back through these nine, last step first.
# A bar over a name means ∂R/∂ of it: `r_` is r̄.
#
# W₁ and W₂ appear twice, on the way forward and on the way back, and get a share from each.


# %%
def sigmoid(a):
    return 1 / (1 + np.exp(-a))


PHI = {  # φ, φ′, φ″
    "softplus": (
        lambda a: np.logaddexp(a, 0),
        sigmoid,
        lambda a: sigmoid(a) * (1 - sigmoid(a)),
    ),
    "tanh": (
        np.tanh,
        lambda a: 1 - np.tanh(a) ** 2,
        lambda a: -2 * np.tanh(a) * (1 - np.tanh(a) ** 2),
    ),
    "relu": (
        lambda a: np.maximum(a, 0),
        lambda a: (a > 0).astype(a.dtype),
        np.zeros_like,
    ),
}


def penalty_by_hand(x, e, weights, activation):
    """R = 1/N Σ ‖∂L/∂x‖² for rows x (N, D), and ∂R/∂W₁, ∂R/∂b₁, ∂R/∂W₂, ∂R/∂b₂."""
    (W1, b1, W2, b2), (phi, dphi, ddphi) = weights, PHI[activation]

    a = x @ W1.T + b1  # a = W₁x + b₁     (N, D) -> (N, H)
    h = phi(a)  # h = φ(a)
    z = h @ W2.T + b2  # z = W₂h + b₂     (N, H) -> (N, K)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p = p / p.sum(axis=1, keepdims=True)  # p = softmax(z)
    r = p - e  # r = ∂L/∂z
    s = r @ W2  # s = ∂L/∂h = W₂ᵀr       (N, K) -> (N, H)
    u = dphi(a) * s  # u = ∂L/∂a = φ′(a) ∘ s
    g = u @ W1  # g = ∂L/∂x = W₁ᵀu       (N, H) -> (N, D)
    R = (g * g).sum() / len(x)  # R = 1/N Σ ‖g‖²

    g_ = 2 * g / len(x)  # of R = 1/N Σ ‖g‖²:   ḡ = 2g/N
    u_ = g_ @ W1.T  # of g = W₁ᵀu:              ū = W₁ḡ
    W1_ = u.T @ g_  # same step:               W̄₁ = Σ u ḡᵀ
    s_ = dphi(a) * u_  # of u = φ′(a) ∘ s:      s̄ = φ′(a) ∘ ū
    a_ = ddphi(a) * s * u_  # same step:       ā = φ″(a) ∘ s ∘ ū
    r_ = s_ @ W2.T  # of s = W₂ᵀr:              r̄ = W₂s̄
    W2_ = r.T @ s_  # same step:               W̄₂ = Σ r s̄ᵀ
    z_ = p * (r_ - (p * r_).sum(axis=1, keepdims=True))  # of p: z̄ = (diag(p) − ppᵀ) r̄
    W2_ = W2_ + z_.T @ h  # of z = W₂h + b₂:    W̄₂ = … + Σ z̄ hᵀ
    b2_ = z_.sum(axis=0)  # same step:         b̄₂ = Σ z̄
    h_ = z_ @ W2  # same step:                 h̄ = W₂ᵀz̄
    a_ = a_ + dphi(a) * h_  # of h = φ(a):      ā = … + φ′(a) ∘ h̄
    W1_ = W1_ + a_.T @ x  # of a = W₁x + b₁:    W̄₁ = … + Σ ā xᵀ
    b1_ = a_.sum(axis=0)  # same step:         b̄₁ = Σ ā
    return R, [W1_, b1_, W2_, b2_]


# %% [markdown]
# With tinyadv, `create_graph=True` makes g a tensor that remembers how it was made, and `grad` is
# called on it again. Here are the two side by side in float64, and finite differences along a
# random direction of all the weights.


# %%
def penalty_by_tinyadv(x, y, model):
    image = Tensor(x)
    loss = losses.cross_entropy(model(image), y, reduction="sum")
    (g,) = grad(loss, [image], create_graph=True)  # an image's pixels act on its own loss alone
    R = ops.sum(g * g) / len(x)
    return float(R), grad(R, model.parameters())


few_x = data.x_train[:50].reshape(50, -1).astype(np.float64)  # (50, 784)
few_y, few_e = data.y_train[:50], np.eye(len(data.classes))[data.y_train[:50]]
sizes = (few_x.shape[1], HIDDEN, len(data.classes))
rng = np.random.default_rng(args.seed)
rows = []
for activation in PHI:
    model = models.mlp(sizes, args.seed, activation=activation).astype(np.float64)
    weights = [w.value for w in model.parameters()]
    R, by_hand = penalty_by_hand(few_x, few_e, weights, activation)
    theirs, by_tinyadv = penalty_by_tinyadv(few_x, few_y, model)
    largest = max(abs(a).max() for a in by_hand)
    apart = max(abs(a - b).max() for a, b in zip(by_hand, by_tinyadv, strict=True)) / largest

    v = [rng.standard_normal(w.shape) for w in weights]  # a direction
    slope = sum((a * b).sum() for a, b in zip(by_hand, v, strict=True))
    up, down = (
        penalty_by_hand(few_x, few_e, [w + t * d for w, d in zip(weights, v, strict=True)],
                        activation)[0]
        for t in (1e-7, -1e-7)
    )  # fmt: skip
    difference = (up - down) / 2e-7
    off = abs(difference - slope) / abs(slope)
    numbers[f"by_hand_{activation}"] = {"tinyadv": apart, "differences": off}
    rows.append([activation, f"{R:.4f}", f"{slope:.5f}", f"{difference:.5f}", f"{apart:.0e}"])
    assert abs(R - theirs) < 1e-6 * R and apart < 1e-6 and off < 1e-4
header = ["φ", "R", "slope, by hand", "finite difference", "by hand against tinyadv"]
common.table(rows, header)

# %% [markdown]
# ## What a ReLU's gradient does not see
#
# All three agree, the ReLU too, whose φ″ is zero: its slopes are exact wherever it has any. But g
# *jumps* when a unit goes on or off, and so does R. No gradient shows a jump.
#
# So let us walk: add t to every bias of the hidden layer, t from −1 to 1, and add up the slopes on
# the way. For a smooth φ the sum is the change of R, by the fundamental theorem of calculus. For
# ReLUs it is what is left when the jumps are taken out.

# %%
T = np.linspace(-1, 1, 201 if args.quick else 801)
walk = {}  # φ -> R on the way, and what the slopes add up to
one_x, one_e = few_x[:1], few_e[:1]
for activation in ("softplus", "relu"):
    model = models.mlp(sizes, args.seed, activation=activation).astype(np.float64)
    W1, b1, W2, b2 = (w.value for w in model.parameters())
    for name, (images, labels) in {"one": (one_x, one_e), "all": (few_x, few_e)}.items():
        steps = [penalty_by_hand(images, labels, (W1, b1 + t, W2, b2), activation) for t in T]
        R = np.array([R for R, _ in steps])
        slope = np.array([b1_.sum() for _, (_, b1_, _, _) in steps])
        seen = R[0] + np.concatenate([[0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(T))])
        walk[activation, name] = R, seen
        numbers[f"walk_{activation}_{name}"] = {
            "change": R[-1] - R[0],
            "seen_by_the_gradient": seen[-1] - seen[0],
        }
    change, seen = numbers[f"walk_{activation}_all"].values()
    print(f"{activation:8}  R of 50 images changes by {change:.3f}", end="")
    print(f"; its slopes add up to {seen:.3f}, {100 * seen / change:.0f} %")

# %% [markdown]
# ## The objective
#
# The same for a whole network, with the loss: this is `defenses.GradientPenalty`, and `fit` takes
# it as its `objective`. A step costs about twice an ordinary one: forward, back to the pixels, and
# back through all of that.


# %%
def penalised(model, x, y, weight, norm=2):
    """L + λ‖g‖₂², or L + λ‖g‖₁: the mean over the images, a tensor."""
    image = Tensor(x)
    loss = losses.cross_entropy(model(image), y, reduction="none")  # (N,)
    (g,) = grad(ops.sum(loss), [image], create_graph=True)  # (N, 1, 28, 28)
    size = ops.sum(g * g if norm == 2 else ops.abs(g), axis=(1, 2, 3))  # (N,)
    return ops.mean(loss + weight * size)


model = models.slides_cnn(args.seed).to(args.backend)
for norm in (2, 1):
    ours = penalised(model, x[:50], y[:50], STRONG, norm)
    theirs, _ = defenses.GradientPenalty(STRONG, norm=norm)(model, x[:50], y[:50])
    pairs = zip(*(grad(loss, model.parameters()) for loss in (ours, theirs)), strict=True)
    apart = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
    numbers[f"objective_norm_{norm}"] = apart
    print(f"norm {norm}: loss {float(ours):.4f}, the library's {float(theirs):.4f}", end="")
    print(f"; largest relative difference of a gradient {apart:.0e}")
    assert abs(float(ours) - float(theirs)) < 1e-4 * float(theirs) and apart < 1e-3

# %% [markdown]
# ## Training
#
# The slides' CNN, always from the same first weights and with the same optimiser; only what is
# minimised differs, and on what. Min-max training with PGD, ε = 0.1, is there to compare with.
# "Smooth" is the same network with softplus in the place of ReLU, trained on images alone and with
# the penalty.
#
# λ grows from 0 in the first epoch, as ε does in min-max training. The gradients of a new network
# are large, and what shrinks them fastest is the same answer for every image; a network that has
# come there may stay.
#
# The penalty looks at the slope at the image, and nowhere else. It can be made to look around: at
# x + u, with each pixel of u drawn anew from [−0.2, 0.2] in every step. How much of what that
# brings is due to the noise alone, a network of its own shows.


# %%
def penalty(weight, norm=2):
    return {"objective": defenses.GradientPenalty(weight, norm=norm, warm_up=WARM_UP)}


def noise():
    """An argument of ``fit``: it trains on x + u, clipped to [0, 1], instead of x."""
    rng = np.random.default_rng(args.seed)

    def noisy(model, x, y):
        return xp.clip(x + xp.asarray(rng.uniform(-NOISE, NOISE, x.shape).astype(x.dtype)), 0, 1)

    return {"perturb": noisy}


OBJECTIVES = {
    "natural": {},
    f"λ = {WEAK:g}": penalty(WEAK),
    f"λ = {STRONG:g}": penalty(STRONG),
    f"‖g‖₁, λ = {ABSOLUTE:g}": penalty(ABSOLUTE, norm=1),
    "noise": noise(),
    f"noise, λ = {STRONG:g}": noise() | penalty(STRONG),
    "smooth, natural": {},
    f"smooth, λ = {STRONG:g}": penalty(STRONG),
    "min-max": {
        "perturb": defenses.MinMax(
            Linf(EPSILON), steps=STEPS_IN_TRAINING, warm_up=WARM_UP, rng=args.seed
        )
    },
}
PENALTY, ONE_NORM, NOISY, SMOOTH = (list(OBJECTIVES)[i] for i in (2, 3, 5, 7))
if args.quick:
    for name in (f"λ = {WEAK:g}", "noise", NOISY, "smooth, natural", SMOOTH):
        del OBJECTIVES[name]


def untrained(name):
    model = models.slides_cnn(args.seed).to(args.backend)
    if name.startswith("smooth"):
        layers = model.layers
        model.layers = [Activation("softplus") if isinstance(a, ReLU) else a for a in layers]
    return model


def trained(name):
    key = {
        "network": "slides_cnn",
        "lesson": NAME,
        "objective": name,
        "epsilon": EPSILON,
        "warm_up": WARM_UP,
    }
    if name == "min-max":
        key["steps"] = STEPS_IN_TRAINING
    if name.startswith("noise"):
        key["noise"] = NOISE
    return common.fitted(args, data, key, lambda: untrained(name), EPOCHS, LR, **OBJECTIVES[name])


networks = {name: trained(name) for name in OBJECTIVES}

# %% [markdown]
# ## The first-order picture
#
# How far does L + ε‖g‖₁ hold? A step of FGSM, x + ε sign(g), is the largest a linear loss can grow.
# Here is what the formula promises beside the loss that is found there. (FGSM without clipping to
# [0, 1], for the formula does not know of it either.) For a small ε the two agree. At ε = 0.1 the
# loss has grown far more than its slope promised, on both networks: the penalty makes the slope at
# the image smaller, and does little about how the slope changes on the way.


# %%
def gradient(model, x, y):
    """∂L/∂x and L for each image: (N, 1, 28, 28), (N,)"""
    image = Tensor(x)
    loss = losses.cross_entropy(model(image), y, reduction="none")
    (g,) = grad(ops.sum(loss), [image])
    return g, loss.value


first_order = {}  # network -> the loss promised and found, for each ε
rows = []
for name in ("natural", ONE_NORM):
    g, loss = gradient(networks[name], x, y)
    here, slope = float(loss.mean()), float(abs(g).sum(axis=(1, 2, 3)).mean())
    first_order[name] = []
    for epsilon in (0.001, 0.01, 0.03, 0.1, 0.2):
        there = float(gradient(networks[name], x + epsilon * xp.sign(g), y)[1].mean())
        promised = here + epsilon * slope
        first_order[name].append([epsilon, promised, there])
        ratio = (there - here) / (promised - here)
        rows.append([name, epsilon, f"{promised:.4f}", f"{there:.4f}", f"{ratio:.2f}"])
numbers["first_order"] = first_order
common.table(rows, ["network", "ε", "L + ε‖g‖₁", "L after FGSM", "growth: found / promised"])


def growth(model, x, y, epsilon):
    """How much the loss grows by FGSM, divided by ε‖g‖₁: the means over the images."""
    g, loss = gradient(model, x, y)
    _, there = gradient(model, x + epsilon * xp.sign(g), y)
    return float((there - loss).mean() / (epsilon * abs(g).sum(axis=(1, 2, 3)).mean()))


grain = np.random.default_rng(args.seed).uniform(0, 0.02, x.shape).astype(np.float32)
plain, grainy = (growth(networks["natural"], v, y, 0.001) for v in (x, x + xp.asarray(grain)))
numbers["growth_at_0.001"] = {"plain": plain, "grainy": grainy}
print(f"natural, ε = 0.001: {plain:.3f}; the same with a faint grain on the images: {grainy:.3f}")

# %% [markdown]
# Why is it not 1 at the smallest ε? An image is not always a point where the loss has a gradient.
# On an even background the four numbers of a pooling window are equal, and which of them is the
# largest depends on the direction one goes: a kink, right at the image. A grain of 0.02 on the
# pixels, far too faint to see, is enough to break the ties.


# %% [markdown]
# ## What it buys
#
# Accuracy on the images, and under FGSM and PGD of growing ε.


# %%
def by_fgsm(model, x, y, epsilon):
    return attacks.fgsm(model, x, y, ball=Linf(epsilon))


def by_pgd(model, x, y, epsilon, steps=STEPS):
    return attacks.pgd(model, x, y, ball=Linf(epsilon), steps=steps, rng=args.seed)


def accuracy(model, x, y, attack, epsilon):
    return evaluate.accuracy(model, x, y, lambda model, x, y: attack(model, x, y, epsilon))


x_test, y_test = xp.asarray(data.x_test), xp.asarray(data.y_test)
x_table, y_table = (x_test, y_test) if args.full else (x, y)
table, curves = {}, {}
for name, model in networks.items():
    g, _ = gradient(model, x, y)
    table[name] = {
        "clean": evaluate.accuracy(model, x_test, y_test),
        "FGSM": accuracy(model, x_table, y_table, by_fgsm, EPSILON),
        "PGD": accuracy(model, x_table, y_table, by_pgd, EPSILON),
        "length": float(xp.sqrt((g * g).sum(axis=(1, 2, 3))).mean()),
    }
for name in ("natural", PENALTY, "min-max"):
    curves[name] = {
        label: [accuracy(networks[name], x, y, attack, epsilon) for epsilon in RADII]
        for label, attack in (("FGSM", by_fgsm), ("PGD", by_pgd))
    }
numbers |= {"table": table, "curves": curves}
header = ["trained with", "clean", f"FGSM, ε = {EPSILON}", f"PGD, ε = {EPSILON}", "mean ‖g‖₂"]
rows = []
for name, row in table.items():
    shares = [f"{100 * row[key]:.1f} %" for key in ("clean", "FGSM", "PGD")]
    rows.append([name, *shares, f"{row['length']:.4f}"])
common.table(rows, header)

# %% [markdown]
# The last column is the mean of ‖g‖₂, and not of its square, which the penalty is about and which a
# few images decide. So it need not be smallest where the most images stand.
#
# A smooth network has a φ″, so its descent sees all of the penalty. Is it better for that? And does
# it help to look around? What the penalty gains, over the natural training of the same network:

# %%
gains = {}
for kind, before, after in (
    ("ReLU", "natural", PENALTY),
    ("with noise", "natural", NOISY),
    ("softplus", "smooth, natural", SMOOTH),
):
    if after in table:
        gains[kind] = {key: table[after][key] - table[before][key] for key in table[after]}
        points = [f"{key} {100 * gains[kind][key]:+.1f}" for key in ("clean", "FGSM", "PGD")]
        print(f"{kind:10}  λ = {STRONG:g}, in points: {', '.join(points)}")
numbers["gains"] = gains

# %% [markdown]
# And what it does not buy. At larger ε, PGD takes the penalty's network apart well before FGSM
# does, and well before the one of min-max training. In numbers, at twice the ε of the comparison:

# %%
at = RADII.index(2 * EPSILON)
for name, curve in curves.items():
    print(f"{name:8}  ε = {RADII[at]}: FGSM {100 * curve['FGSM'][at]:5.1f} %", end="")
    print(f", PGD {100 * curve['PGD'][at]:5.1f} %")

# %% [markdown]
# ## The figure
#
# Left: who is right how often. Above right: g of one image, each scaled by its own largest number.
# Below right: the walk along the biases, for one image.

# %%
COLOURS = {"natural": common.BLUE, PENALTY: common.ORANGE, "min-max": common.RED}
LABELS = {
    "natural": "natural",
    PENALTY: f"gradient penalty, λ = {STRONG:g}",
    "min-max": f"min-max, ε = {EPSILON:g}",
}


def draw_curves(ax):
    for name, curve in curves.items():
        clean = 100 * evaluate.accuracy(networks[name], x, y)
        for label, style in (("FGSM", "-"), ("PGD", "--")):
            values = [clean, *(100 * a for a in curve[label])]
            ax.plot((0, *RADII), values, style, color=COLOURS[name],
                    label=LABELS[name] if label == "FGSM" else None)  # fmt: skip
        ax.plot((0, *RADII), [clean, *(100 * a for a in curve["FGSM"])], "o", markersize=4,
                color=COLOURS[name])  # fmt: skip
    ax.plot([], [], "-", color=common.GREY, label="FGSM")
    ax.plot([], [], "--", color=common.GREY, label="PGD")
    ax.set(xlim=(0, 0.305), ylim=(0, 102), xlabel="ε", ylabel="accuracy, %")
    ax.set_title("Accuracy under attack")


def draw_gradients(axes):
    g = {name: gradient(networks[name], x, y)[0] for name in curves}
    length = to_numpy((g["natural"] ** 2).sum(axis=(1, 2, 3)))
    shown = int(np.argsort(length)[3 * len(length) // 4])  # not one of the many that are tiny
    axes[0].imshow(to_numpy(x[shown, 0]), vmin=0, vmax=1)
    axes[0].set_title("image", fontsize=11, loc="center")
    for ax, name in zip(axes[1:], curves, strict=True):
        picture = to_numpy(g[name][shown, 0])
        top = abs(picture).max()
        ax.imshow(picture, cmap="RdBu_r", vmin=-top, vmax=top)
        ax.set_title("g, " + ("penalty" if name == PENALTY else name), fontsize=11, loc="center")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def draw_walk(ax):
    for activation, colour in (("relu", common.GREEN), ("softplus", common.PURPLE)):
        R, seen = walk[activation, "one"]
        ax.plot(T, R, color=colour, label="ReLU" if activation == "relu" else activation)
        ax.plot(T, seen, "--", color="black", lw=3)
        ax.plot(T, seen, "--", color=colour, lw=1.6)
    ax.plot([], [], "--", color="black", lw=1.6, label="what the slopes add up to")
    ax.set(xlim=(-1, 1), xlabel="t, added to all biases", ylabel="‖g‖₂²")
    ax.set_title("No slope shows the jumps of a ReLU network's ‖g‖²")
    ax.legend(loc="upper left", borderaxespad=0.2, fontsize=10)


fig = plt.figure(figsize=(11, 5.4), layout="constrained")
left, right = fig.subfigures(1, 2, width_ratios=[1, 1.15], wspace=0.03)
above, below = right.subfigures(2, 1, height_ratios=[1, 1.75], hspace=0.03)
draw_curves(left.subplots())
left.legend(loc="outside lower center", ncols=2, fontsize=10)
draw_gradients(above.subplots(1, 4))
draw_walk(below.subplots())
fig.suptitle("A small gradient at the image helps near the image, and less farther away",
             x=0.01, ha="left", fontweight="bold")  # fmt: skip
common.save_figure(fig, args, NAME)

# %% [markdown]
# ## The claims

# %%
bent = [growth(networks[name], x, y, EPSILON) for name in ("natural", ONE_NORM)]
numbers["growth_at_epsilon"] = bent
common.record(args, NAME, numbers)  # before the claims: a number that falls short is kept as well

for activation in PHI:
    found = numbers[f"by_hand_{activation}"]
    common.claim(f"by hand and by tinyadv the same to 1e-6 ({activation})", found["tinyadv"] < 1e-6)
smooth, broken = (numbers[f"walk_{activation}_all"] for activation in ("softplus", "relu"))
off = abs(smooth["seen_by_the_gradient"] / smooth["change"] - 1)
common.claim("with softplus, the slopes add up to the change of the penalty", off < 1e-3)
missed = 1 - broken["seen_by_the_gradient"] / broken["change"]
common.claim("with ReLUs, more than half of it is jumps, which no slope shows", missed > 0.5)

common.claim("off the kinks, at ε = 0.001, the loss grows as ε‖g‖₁ says", abs(grainy - 1) < 0.05)
common.claim(
    f"at ε = {EPSILON:g} it grows {bent[0]:.1f}, with the penalty {bent[1]:.1f} times as much",
    min(bent) > 1.2,
)

natural, strong, minmax = (table[name] for name in ("natural", PENALTY, "min-max"))
shorter = natural["length"] / strong["length"]
common.claim(
    f"the penalty makes g {shorter:.1f} times shorter", shorter > (1 if args.quick else 1.2)
)
least = 0.02 if args.quick else 0.1
most = 0.05 if args.quick else 0.1 if data.name == "fashion" else 0.01 if args.full else 0.03
for kind, gain in gains.items():
    common.claim(
        f"{kind}: {100 * gain['FGSM']:.1f} points are gained under FGSM", gain["FGSM"] >= least
    )
    text = f"and the accuracy on the images themselves changes by {100 * gain['clean']:+.1f} points"
    common.claim(text, -gain["clean"] <= most)
common.claim(
    f"under PGD {100 * strong['PGD']:.1f} % are left, of {100 * natural['PGD']:.1f} %",
    strong["PGD"] >= natural["PGD"] + least,
)
far = {name: curve["PGD"][at] for name, curve in curves.items()}
if not args.quick:  # where min-max training has only begun
    common.claim("min-max training leaves more under PGD", minmax["PGD"] > strong["PGD"])
    common.claim("and far more at twice the ε", far["min-max"] > far[PENALTY] + 0.1)
gaps = [a - b for a, b in zip(curves[PENALTY]["FGSM"], curves[PENALTY]["PGD"], strict=True)]
common.claim(
    "the gap between FGSM and PGD is wider at twice the ε than at half",
    gaps[at] > gaps[RADII.index(0.05)],
)

# %% [markdown]
# ## Try next
#
# - Take λ ten times larger: when does the network prefer one answer for every image?
# - Let λ be whole from the first step (`WARM_UP = 0`). Which networks still learn?
# - Replace φ″ of the ReLU by that of a sharp softplus, log(1 + eᵏᵃ) / k. Which k helps?
# - Penalise the gradient of the margin (`losses.margin`) instead of the loss, which is flat where
#   the network is sure.
# - Check the penalty's network for gradient masking, as in lesson 12.
# - Penalise ‖g‖₁ at λ = 0.2, as `--full` does. Is it as good at ε = 0.2 as min-max training at 0.2
#   is?
