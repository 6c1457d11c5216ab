# %% [markdown]
"""
# 07 Min-max training: learn from the worst images within reach

**Question.** Lesson 06 found the worst image within ε of x. What if a network is trained on those,
instead of on x itself? And what is the gradient of a maximum?

**Equation.** Ordinary training minimises E[L(f_θ(x), y)]. Robust training minimises

    φ(θ) = E[ max over x′ in P(x) of L(f_θ(x′), y) ],     P(x) = all images within ε of x,

a saddle point: the attack raises L by the pixels, the training lowers it by the weights. The label
stays the true one. By **Danskin's theorem** the gradient of the maximum is the gradient at the
maximiser, if there is only one: ∇φ(θ) = ∇_θ L(f_θ(x*), y), with x* held fixed, as if it did not
depend on θ.

**Papers.** Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks".
The cheaper and the other ways: Wong et al. (2020), "Fast is better than free"; Zhang et al. (2019),
"Theoretically principled trade-off between robustness and accuracy" (TRADES); Gowal et al. (2018),
"On the effectiveness of interval bound propagation"; Ross & Doshi-Velez (2018), "Improving the
adversarial robustness and interpretability of deep neural networks by regularizing their input
gradients".

**Run.** `python lessons/07_min_max_training.py`: one to two minutes on two cores, with the embedded
printed digits. Most of it is training; the networks are kept, and the next run takes less than a
minute. On handwritten digits
`python lessons/07_min_max_training.py --data mnist --full`: some twelve hours of one core, four of
them for the attacks on the largest network alone (`--robust-images 1000` does with a tenth of its
images, and of the committee's). What is done is kept, so it can be stopped and started again. With
`--keep` rows are taken from the recorded results unless their settings have changed since, and only
the three networks of the pictures are trained, in twenty minutes of one core. (Without `--full`,
`--data mnist` trains the same networks, in an hour and a half of one core, and attacks them less.)

**What to look for.** Robust training is ordinary training and a loop inside. The full ε from the
first step on leaves the loss at ln 10 = 2.30 for as long as we look. A network trained on single
steps is right where those end, and much less on the way there. What a defence is worth depends on
who asks: FGSM says little, several strong attacks one after the other (lesson 12) say more, and a
proof is the last word. The gradients of a robust network look like strokes of a pen, or with
handwritten digits like a few points on them; those of an ordinary network look like noise.

**What was shortened.** By default small networks, a few epochs, 200 test images, one start in place
of 20 and a short ensemble. With `--data mnist --full` the attacks are as the table says, but some
networks are attacked on every tenth of the 10,000 test images.
"""

# %% [markdown]
# ## Names and settings
#
#     x, y     (N, 1, 28, 28), (N,)   images with values 0 to 1, and their labels
#     x*, x′   (N, 1, 28, 28)         the worst image within reach, and what an attack finds
#     δ, ε                            the perturbation, |δ| ≤ ε for each pixel
#     α                               the length of a step of PGD
#     θ                               all weights; φ(θ) the robust loss
#     p(x)     (N, K)                 the network's probabilities
#     l, u     (N, …)                 the least and the greatest that a number can be within reach
#     m, r     (N, …)                 the middle, (l + u) / 2, and the radius, (u − l) / 2
#     ẑ        (N, K)                 the worst logits that these bounds allow
#     λ, β, κ                         weights of the terms of a loss

# %%
import dataclasses
import functools
import warnings

import common
import judge
import matplotlib.pyplot as plt
import numpy as np

import tinyadv
from tinyadv import Tensor, attacks, defenses, grad, layers, models, ops, optim, to_numpy, verify
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

NAME = "07_min_max_training"
args = common.arguments(__doc__, keep=True, robust_images=common.ROBUST_IMAGES)
xp = args.xp  # numpy or cupy

data = common.load_data(args, *((2000, 300) if args.quick else ()))
EPSILON = common.EPSILON[data.name]
IMAGES = 60 if args.quick else 1000 if args.full else 200  # test images of the table
# Where images fall at once, or are nearly all certified, it may as well be all of them.
ALL_IMAGES = ()
if args.full:
    ALL_IMAGES = ("natural", "gradient penalty", "interval bounds", "bounds, thresholds")
STARTS = 20 if args.full else 1  # of PGD-100
SHORT = {"steps": 20, "targets": 3, "queries": 200}  # an ensemble with less patience
if args.quick:
    SHORT = {"steps": 5, "targets": 1, "queries": 20}
ENSEMBLE = {} if args.full else SHORT
SEEDS = range(args.seed, args.seed + (3 if args.full else 2 if args.quick else 1))
LENGTHS = {}  # epochs of the same training
if args.full and data.name == "mnist":
    LENGTHS = {"PGD": (3, 6, 12), "PGD, larger": (6, 12, 24), "interval bounds": (12, 25, 50)}
elif args.full or args.quick:
    LENGTHS = {"PGD": (1, 2), "interval bounds": (1, 2)}
numbers = {"epsilon": EPSILON}  # what is recorded

# %% [markdown]
# ## The gradient of a maximum
#
# To train, φ has to be differentiated, and x* depends on θ. Danskin's theorem says that this
# dependence drops out: at a maximum, moving x* a little changes nothing to first order (or it is
# held by the edge of P(x), which does not depend on θ). Here is a case where x* can be written
# down, a linear network with two classes, z = W x + b. With w the difference of its two rows, away
# from the label,
#
#     x* = x + ε sign(w), clipped to [0, 1],
#
# raises the loss more than any other image within ε.
#
# On the left side of the check, φ is computed with x* solved again for every θ, and differentiated
# by finite differences. On the right, ∇_θ L at one fixed x*.

# %%
rng = np.random.default_rng(args.seed)
linear = models.linear(inputs=20, outputs=2, rng=args.seed).astype(np.float64)
xs, ys = rng.random((50, 20)), rng.integers(0, 2, 50)


def worst(x, y):
    """x*: the exact solution of the inner problem, for the weights as they are."""
    weight = linear.parameters()[0].value  # (2, 20)
    w = weight[1 - y] - weight[y]  # (N, 20)
    return np.clip(x + EPSILON * np.sign(w), 0, 1)


def phi():
    return float(cross_entropy(linear(worst(xs, ys)), ys).value)


def finite_differences(f, p, h=1e-6):
    """∂f/∂p for each number of the parameter p, by moving it up and down."""
    result = np.zeros(p.shape)
    for i in np.ndindex(p.shape):
        kept = p.value[i]
        p.value[i] = kept + h
        up = f()
        p.value[i] = kept - h
        result[i], p.value[i] = (up - f()) / (2 * h), kept
    return result


def gradient_at(x):
    return grad(cross_entropy(linear(Tensor(x)), ys), linear.parameters())


def apart(gradients, reference):
    """The norm of the difference, as a share of the norm."""
    a, b = (np.concatenate([part.ravel() for part in parts]) for parts in (gradients, reference))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


measured = [finite_differences(phi, p) for p in linear.parameters()]
danskin, clean = apart(gradient_at(worst(xs, ys)), measured), apart(gradient_at(xs), measured)
numbers["danskin"] = {"at_x_star": danskin, "at_x": clean}
print(f"relative error of ∇L at x*: {danskin:.1e}      at x, without the attack: {clean:.2f}")
assert danskin <= 1e-5 < 0.1 < clean

# %% [markdown]
# For a real network nobody can solve the inner problem, and PGD's x′ stands in for x*. If x′ is not
# the worst, the step lowers a lower bound on φ. That is why a weak attack makes a weak defence.
#
# ## The two loops
#
# Training, line by line. Without the lines marked by ◂, and with x for x_adv, it is that of lesson
# 02.


# %%
def train(model, optimizer, batches, steps, rng):
    for x, y in batches:
        low, high = np.maximum(-x, -EPSILON), np.minimum(1 - x, EPSILON)  # ◂ within reach:
        delta = low + (high - low) * rng.random(x.shape)  # ◂ start anywhere there,
        for _ in range(steps):  # ◂ the inner maximum: up, by the pixels …
            image = Tensor(x + delta)  # ◂
            (g,) = grad(cross_entropy(model(image), y), [image])  # ◂
            delta = np.clip(delta + 2.5 * EPSILON / steps * np.sign(g), low, high)  # ◂
        x_adv = x + delta  # ◂
        loss = cross_entropy(model(x_adv), y)
        optimizer.step(grad(loss, model.parameters()))  # … the outer minimum: down, by the weights


# %% [markdown]
# In the library the inner maximisation is an argument of the one loop:
# `fit(…, perturb=defenses.MinMax(Linf(ε), steps=5))`. Both ways, from the same start, in float64
# on the CPU:

# %%
few = tinyadv.data.Dataset(
    "few", data.x_train[:300].astype(float), data.y_train[:300], None, None, data.classes
)
ours, librarys = (models.fast_cnn(args.seed).astype(np.float64) for _ in range(2))
order = np.random.default_rng(args.seed).permutation(300)  # as fit shuffles
batches = [(few.x_train[i], few.y_train[i]) for i in order.reshape(3, 100)]
train(ours, optim.Adam(ours.parameters()), batches, steps=5, rng=np.random.default_rng(args.seed))
tinyadv.fit(
    librarys, few, optim.Adam(librarys.parameters()), 1,
    defenses.MinMax(Linf(EPSILON), steps=5, rng=args.seed),
    batch_size=100, rng=args.seed, validate=False, progress=False,
)  # fmt: skip
difference = max(
    float(abs(a.value - b.value).max())
    for a, b in zip(ours.parameters(), librarys.parameters(), strict=True)
)
print(f"after 3 steps, the largest difference of a weight: {difference:.0e}")
assert difference < 1e-9

# %% [markdown]
# ## Why training can sit at 2.30
#
# A new network that meets all of ε at once learns one thing first: whatever it reacts to, the
# attack turns against it. The same answer for every image costs ln 10 = 2.303 and cannot be
# attacked. There all gradients are small, and it stays. If ε grows from 0, there is something to
# lose by then. `warm_up` says in how many epochs.


# %%
class Watched:
    """The usual objective, which keeps the loss of each step."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, x, y):
        loss, logits = tinyadv.train.cross_entropy_objective(model, x, y)
        self.seen.append(float(loss.value))
        return loss, logits


part = common.load_data(args, 2000 if args.quick else 10_000, 300)
count = 10_000 if args.full else 6000
fewer = dataclasses.replace(part, x_train=part.x_train[:count], y_train=part.y_train[:count])
curves = {}
for name, warm_up in (("all of ε at once", 0.0), ("ε grows", 1.0)):
    model, watched = models.slides_cnn(args.seed).to(args.backend), Watched()
    adversary = defenses.MinMax(Linf(EPSILON), steps=5, warm_up=warm_up, rng=args.seed)
    tinyadv.fit(
        model, fewer, optim.Adam(model.parameters(), lr=0.002), 2, adversary, objective=watched,
        batch_size=100, rng=args.seed, validate=False, progress=False,
    )  # fmt: skip
    curves[name] = watched.seen
    # Is it the same answer for every image?
    differ = float(to_numpy(model(xp.asarray(part.x_test[:100])).value).std(axis=0).mean())
    numbers.setdefault("warm_up", {})[name] = {
        "loss": float(np.mean(watched.seen[-10:])), "logits_differ_by": differ,
    }  # fmt: skip
    print(f"{name:22} loss after 2 epochs {np.mean(watched.seen[-10:]):.3f},", end=" ")
    print(f"logits of different images differ by {differ:.3f}")

# %% [markdown]
# ## One step, and what it hides
#
# An inner maximum of 5 steps makes training six times as expensive. Wong et al. take one step of
# 1.25 ε from a random start, which costs as much as two ordinary epochs for each. But one step can
# be outwitted: the network learns to be right where the step ends, and not on the way there. That
# is *catastrophic overfitting*. `defenses.Fast(watch=…)` looks at images that are not trained on,
# attacked with the training's own step, with the same step from a start within [0, 1], and with
# ten steps of PGD. If a gap opens between the last two, which are about equally strong as long as
# all is well, it trains on a few steps of PGD until the gap is closed.

# %%
held_out = (fewer.x_train[-200:], fewer.y_train[-200:])
rest = dataclasses.replace(fewer, x_train=fewer.x_train[:-200], y_train=fewer.y_train[:-200])
looks = {}
for name, gap in (("left alone", 1.0), ("rescued", 0.2)):
    fast = defenses.Fast(
        Linf(EPSILON), warm_up=1.0, watch=held_out, every=25, gap=gap,
        rng=args.seed,
    )  # fmt: skip
    model = models.fast_cnn(args.seed).to(args.backend)
    with warnings.catch_warnings():  # that of overfitting, which is what we are here for
        warnings.simplefilter("ignore", attacks.AttackWarning)
        tinyadv.fit(
            model, rest, optim.Adam(model.parameters(), lr=0.002), 3, fast, batch_size=100,
            rng=args.seed, validate=False, progress=False,
        )  # fmt: skip
    looks[name] = fast.looks  # (step, accuracy under the training's own step, FGSM and PGD)
    single, _, full = np.mean([look[1:] for look in fast.looks[-4:]], axis=0)
    print(f"{name:10}  right under its own step {100 * single:.0f} %, under PGD {100 * full:.0f} %")
    numbers.setdefault("overfitting", {})[name] = {"one_step": float(single), "PGD": float(full)}

# %% [markdown]
# ## Without any attack
#
# An attack finds some x′, so its loss is *at most* the inner maximum. One can also come from the
# other side. If each pixel lies between l and u, between which numbers does each neuron lie? A
# linear layer takes the middle to W m + b, and the radius to |W| r, as if every pixel moved in its
# worst direction. A ReLU, which never falls, takes l and u to their own values. For the last layer
# one needs the difference of each logit to that of the label. Its upper bound is ẑ, and L(ẑ, y) is
# *at least* the inner maximum. If every ẑ of another class is below 0, that of the label, nothing
# within reach changes the answer: the image is *certified*. Gowal et al. train on L(ẑ, y).


# %%
def worst_by_hand(W1, b1, W2, b2, x, y):
    """ẑ of a network with one hidden layer, for rows x (N, D): (N, K)"""
    low, high = np.maximum(x - EPSILON, 0), np.minimum(x + EPSILON, 1)
    m, r = (low + high) / 2, (high - low) / 2  # (N, D)
    m, r = m @ W1.T + b1, r @ abs(W1).T  # a linear layer: (N, H)
    low, high = np.maximum(m - r, 0), np.maximum(m + r, 0)  # ReLU
    m, r = (low + high) / 2, (high - low) / 2
    W, b = W2 - W2[y][:, None], b2 - b2[y][:, None]  # of z_k − z_y: (N, K, H), (N, K)
    return np.einsum("nkh,nh->nk", W, m) + np.einsum("nkh,nh->nk", abs(W), r) + b


small = models.mlp((784, 30, 10), args.seed).astype(np.float64)
few_x, few_y = few.x_train.reshape(300, -1), few.y_train  # rows
within = np.maximum(few_x - EPSILON, 0), np.minimum(few_x + EPSILON, 1)
by_hand = worst_by_hand(*(w.value for w in small.parameters()), few_x, few_y)
librarys = verify.worst_logits(small, *within, few_y).value
found = attacks.pgd(small, few_x, few_y, ball=Linf(EPSILON), rng=args.seed)
below, above = (float(cross_entropy(z, few_y).value) for z in (small(found), Tensor(by_hand)))
numbers["bounds"] = {"pgd": below, "interval": above}
print(f"largest difference to tinyadv: {abs(by_hand - librarys).max():.0e}")
print(f"a new network's loss within reach: PGD finds {below:.2f}, and it is {above:.2f} at most")
assert np.allclose(by_hand, librarys, atol=1e-9) and below <= above

# %% [markdown]
# That leaves much room between the two, in this network; one that was trained for it keeps the
# bounds narrow.
#
# The intervals are wide from the first pixel on: even one that is plainly black or white has one.
# On drawn digits that can be undone before the first filter. clip((x − 0.35) / 0.3, 0, 1) takes
# what is below 0.35 to 0 and what is above 0.65 to 1, with two ReLUs for each pixel. It stretches
# what is between, and so it makes the intervals of grey pixels wider. But those are few.

# %%
first = layers.Sequential(*models.threshold_layers(0.35, 0.65)).astype(np.float64)
images = [bound.reshape(-1, 1, 28, 28) for bound in within]
before = images[1] - images[0]
low, high = verify.interval_bounds(first, *images)
width = high.value - low.value
numbers["width"] = {
    "pixels": before.mean(), "thresholds": width.mean(),
    "zero": (width < 1e-9).mean(), "wider": (width > before + 1e-9).mean(),
}  # fmt: skip
print(f"mean width of a pixel's interval: {before.mean():.3f}, and after the thresholds", end=" ")
print(f"{width.mean():.3f}: 0 for {100 * numbers['width']['zero']:.0f} % of the pixels, ", end="")
print(f"wider than before for {100 * numbers['width']['wider']:.0f} %")
assert data.name == "fashion" or width.mean() < before.mean() / 2  # clothes are grey

# %% [markdown]
# ## Six ways to train
#
#     natural            E[L(f(x), y)]
#     gradient penalty   E[L(f(x), y) + λ ‖∂L/∂x‖]                       lesson 08
#     fast               E[L(f(x′), y)], x′ from one step of 1.25 ε
#     PGD                E[L(f(x′), y)], x′ from PGD
#     TRADES             E[L(f(x), y) + β max KL(p(x) ‖ p(x′))]
#     interval bounds    E[κ L(f(x), y) + (1 − κ) L(ẑ, y)]
#
# The penalty is on the squared 2-norm, or with handwritten digits on the 1-norm. TRADES starts its
# inner PGD at a small random distance: at x itself p(x′) = p(x), the divergence has its minimum,
# and its gradient is 0. With interval bounds κ starts at 1 and sinks as ε grows. The settings stand
# in `common.RECIPES` and `MNIST_RECIPES`.
#
# For handwritten digits there are three more. PGD once more: on a network with ten times the
# weights, with images moved by up to a pixel, and at an ε of 0.33 to be judged at 0.3. Then bounds
# once more, on a network that begins with the two thresholds, which training goes on changing like
# all other weights, and that has 256 neurons before the last layer in place of 100. Thresholds are
# knowledge about these images, and do nothing for images that are grey all over. Where they are
# flat there is no gradient either, which flatters that network under FGSM and PGD; look at the
# ensemble, and at what is certified.
#
# And a committee: two networks of that kind, from two seeds, which answer by the mean of their
# logits. What one of them alone gets wrong the other often outweighs, and one δ has to move the
# mean of both. Each ẑ is a bound for all δ, so the mean of the two is one for the mean of the
# logits, and the committee is certified like any other network.
#
# With `--record` the weights of the larger network and of the committee are kept beside the
# lessons, in half precision. All their figures are those of the weights so rounded. The fast
# training raises ε over the first epoch there, moves the images by up to a pixel, watches itself,
# and is rescued if need be.

# %%
recipes = common.recipes(args, data)


@functools.cache
def trained(name, seed):
    """A network, and the seconds that its training took."""
    model, seconds = common.defended(args, data, name, seed)
    if name in common.KEPT and args.record and args.full and seed == 0:
        common.keep_weights(args, name, model)
    return model, seconds


# %% [markdown]
# ## Who is right, and who asks
#
# An image counts as robust if it is read rightly after every attack of its column:
#
#     FGSM         one step of ε from x
#     PGD-40       Madry's: 40 steps of ε/30 from one random start
#     PGD-100      100 steps from many random starts
#     ensemble     AutoAttack's four (lesson 12), and all of the above
#     certified    no attack: the share for which interval bounds prove that none exists
#
# What has fallen once has fallen: each attack is given those images alone that still stand, and
# an attack's column holds all those to its left. The loop over them stands in `judge.py`.

# %%
x, y = common.test_images(args, data, IMAGES)


def row_of(name, seed, images):
    """The row of a network in the table, accuracies as shares of the images."""
    how = {"starts": STARTS, "ensemble": ENSEMBLE, "seed": seed}

    def measured():
        model, took = trained(name, seed)
        shares = judge.judged(model, *common.test_images(args, data, images), EPSILON, **how)
        return shares | {"seconds": took["wall"], "cpu_seconds": took["cpu"]}

    key = judge.key_of({"recipe": recipes[name]}, images, EPSILON, **how)
    return common.recorded(args, NAME, key, measured)


def images_for(name):
    """How many test images it is judged by."""
    if name in common.KEPT and args.full:
        return args.robust_images
    return len(data.x_test) if name in ALL_IMAGES else IMAGES


result = {name: row_of(name, args.seed, images_for(name)) for name in recipes}
numbers["networks"] = result
rows = [
    [
        name,
        *(f"{100 * row[c]:.1f} %" for c in judge.COLUMNS),
        row["images"],
        f"{row['cpu_seconds']:.0f}",
    ]
    for name, row in result.items()
]
if data.name == "mnist":
    # Their own figures, PGD-100 from 20 starts; and AutoAttack's of Croce & Hein (2020).
    rows.append(["Madry et al., natural", "99.2 %", "6.4 %", "", "", "", "", 10000, ""])
    rows.append(["Madry et al.", "98.8 %", "95.6 %", "93.2 %", "89.3 %", "88.5 %", "", 10000, ""])
print(f"random starts of PGD-100: {STARTS}; seconds of training, added up over the cores")
common.table(rows, ["trained", *judge.COLUMNS, "images", "seconds"])

# %% [markdown]
# How much of this is luck? The same training with other random numbers.

# %%
spread = {seed: row_of("PGD", seed, IMAGES) for seed in SEEDS} if len(SEEDS) > 1 else {}
numbers["seeds"] = spread
rows = [
    [f"PGD, seed {s}", *(f"{100 * row[c]:.1f} %" for c in judge.COLUMNS)]
    for s, row in spread.items()
]
if rows:
    common.table(rows, ["trained", *judge.COLUMNS])
else:
    print("with --full: three of them")

# %% [markdown]
# ## What more time buys
#
# Some of these trainings once more, in fewer or more epochs, with the warm-up in proportion. What
# stands is counted after an ensemble with less patience (`SHORT`, and no PGD-100 before it), which
# leaves more than the table's; after training on interval bounds, what is certified. From what the
# last doubling brought one can guess what the next would.


# %%
def after(name, epochs):
    """How long that training takes, and what stands then."""
    how = {"starts": 0, "ensemble": SHORT, "seed": args.seed}
    proved = recipes[name]["defence"][0] == "IntervalBound"
    many = common.test_images(args, data, 10_000) if proved else (x, y)

    def measured():
        model, took = common.defended(args, data, name, epochs=epochs)
        if proved:
            stand = verify.certified_accuracy(model, *many, EPSILON)
        else:
            stand = judge.judged(model, *many, EPSILON, **how)["ensemble"]
        return {"cpu_seconds": took["cpu"], "stand": stand}

    network = {"recipe": common.of_length(recipes[name], epochs), "certified": proved}
    key = judge.key_of(network, len(many[0]), EPSILON, **how)
    return common.recorded(args, NAME, key, measured)


growing, rows = {}, []
for name, lengths in LENGTHS.items():
    growing[name], before = {}, None
    for epochs in lengths:
        found = growing[name][epochs] = after(name, epochs)
        seconds, stand = found["cpu_seconds"], found["stand"]
        gain = "" if before is None else f"{100 * (stand - before):+.1f}"
        rows.append([name, epochs, f"{seconds:.0f}", f"{100 * stand:.1f} %", gain])
        before = stand
numbers["more_time"] = growing
if rows:
    common.table(rows, ["trained", "epochs", "seconds", "stand", "more by"])
else:
    print("with --full: the table, and a third figure below")

# %% [markdown]
# ## What robust networks look at
#
# The gradient of the loss for the pixels, ∂L/∂x, says what would make a digit worse. For a robust
# network that has to look like a change of the digit: it lies on the strokes and beside them. And
# training on interval bounds makes the filters of the first layer sparse. One strong weight, or a
# few, and a bias cut off all that is below a threshold, and so small changes do not add up. On
# handwritten digits at ε = 0.3, PGD finds the same: a filter is a single pixel and a threshold, as
# Madry et al. saw in theirs.

# %%
shown = [int(np.flatnonzero(to_numpy(y) == digit)[0]) for digit in (2, 3, 5, 7)]
faces = {name: trained(name, args.seed)[0] for name in ("natural", "PGD", "interval bounds")}


def pixel_gradient(model, x, y):
    image = Tensor(x)
    (g,) = grad(cross_entropy(model(image), y, reduction="sum"), [image])
    return to_numpy(g)


gradients = {n: pixel_gradient(m, x[xp.asarray(shown)], y[xp.asarray(shown)])
             for n, m in faces.items()}  # fmt: skip
on_strokes = {}
for name, model in faces.items():
    g, image = abs(pixel_gradient(model, x[:200], y[:200])), to_numpy(x[:200])
    # The strokes and their surroundings, two pixels wide: a change of the digit itself.
    near = to_numpy(ops.max_pool2d(np.pad(image, ((0, 0), (0, 0), (2, 2), (2, 2))),
                                   kernel_size=5, stride=1)) > 0.5  # fmt: skip
    on_strokes[name] = float(((g * near).sum((1, 2, 3)) / (g.sum((1, 2, 3)) + 1e-30)).mean())
    on_strokes["all pixels"] = float(near.mean())
    weights = abs(to_numpy(model.parameters()[0].value)).reshape(-1)
    share = np.sort(weights)[::-1][: len(weights) // 10].sum() / weights.sum()
    print(f"{name:16} {100 * on_strokes[name]:3.0f} % of the gradient is on or beside strokes,")
    print(f"{'':16} {100 * share:3.0f} % of the first layer's weights are in their largest tenth")
    numbers.setdefault("largest_tenth", {})[name] = float(share)
numbers["gradient_on_strokes"] = on_strokes
print(f"{100 * on_strokes['all pixels']:.0f} % of all pixels are on or beside strokes")

# %% [markdown]
# ## The figure

# %%
LOOKS = {  # column: marker, colour, label
    "clean": ("o", common.GREY, "clean"),
    "FGSM": ("D", common.SKY, "FGSM"),
    "PGD-40": ("s", common.ORANGE, "PGD-40"),
    "ensemble": ("o", common.RED, "ensemble"),
    "certified": ("|", "black", "certified"),
}
fig = plt.figure(figsize=(11, 5.6), layout="constrained")
left, right = fig.subfigures(1, 2, width_ratios=(1.2, 1))
right.get_layout_engine().set(h_pad=0.01, w_pad=0.01)
above, below = left.subfigures(2, 1, height_ratios=(1.7, 1))
ax, below = above.subplots(), below.subplots(1, 3 if growing else 2)
for i, (name, row) in enumerate(result.items()):
    ax.plot([100 * row["ensemble"], 100 * row["clean"]], [i, i], color="0.85", lw=3, zorder=0)
    for column, (marker, colour, label) in LOOKS.items():
        if column == "certified" and row[column] < 0.005:
            continue
        size = 120 if marker == "|" else 55
        ax.scatter(100 * row[column], i, s=size, marker=marker, color=colour, lw=2,
                   label=label if name == "interval bounds" else None)  # fmt: skip
    # The number that counts, and before it what is proved.
    stands, proved = 100 * row["ensemble"], 100 * row["certified"]
    at = min(stands, proved or stands), i
    how = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 10}
    ax.annotate(f"{stands:.1f} %", at, (-9, 0), color=common.RED, weight="bold", **how)
    if proved >= 20:  # or there is no room
        ax.annotate(f"{proved:.1f} %", at, (-55, 0), **how)
ax.set(xlim=(-16, 103), xticks=range(0, 101, 20))  # and room for the numbers
ax.set(xlabel=f"% of test images read rightly, |δ| ≤ {EPSILON}")
ax.set_yticks(range(len(result)), list(result), fontsize=10)
ax.set_ylim(len(result) - 0.4, -0.5)
ax.tick_params(axis="y", length=0)
ax.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.45, 1.0), handletextpad=0.1,
          columnspacing=1.0)  # fmt: skip
best = max(result, key=lambda name: result[name]["ensemble"])
above.suptitle(f"What stands depends on who asks; most stands after “{best}”",
              x=0.02, ha="left")  # fmt: skip
ax = below[0]
for (name, seen), colour in zip(curves.items(), (common.RED, common.BLUE), strict=True):
    smooth = np.convolve(seen, np.ones(9) / 9, "valid")
    ax.plot(smooth, color=colour, label=name)
ax.axhline(np.log(10), color=common.GREY, lw=1, ls=":")
ax.text(len(smooth), np.log(10) + 0.05, "ln 10", ha="right", va="bottom", color=common.GREY)
ax.set(ylim=(0, 3.1), xlabel="step of training", title="loss at x′")
ax.legend(loc="lower left", fontsize=10, borderaxespad=0, handlelength=1)
ax = below[1]
at, single, _, full = np.array(looks["left alone"]).T
rescued_at, _, _, rescued_full = np.array(looks["rescued"]).T
for steps, line, style, colour, label in (
    (at, single, "-", common.SKY, "its step"),
    (at, full, "-", common.RED, "PGD"),
    (rescued_at, rescued_full, "--", common.RED, "rescued"),
):
    ax.plot(steps, 100 * line, style, color=colour)
    ax.annotate(label, (steps[-1], 100 * line[-1]), (3, 0), textcoords="offset points",
                color=colour, va="center", fontsize=10)  # fmt: skip
ax.set(xlim=(0, 1.5 * at[-1]), ylim=(0, 108), yticks=(0, 50, 100))  # and room for the labels
ax.set(xlabel="step of training", title="% right, fast")
CURVES = {  # colour, label, and where it stands: how far from the first or the last point
    "PGD": (common.PURPLE, "PGD", 0, (8, -4)),
    "PGD, larger": (common.GREEN, "larger", -1, (-8, 7)),
    "interval bounds": ("black", "certified", 0, (6, -9)),
}
for name, curve in growing.items():
    ax, (colour, label, at, offset) = below[2], CURVES[name]
    minutes = [found["cpu_seconds"] / 60 for found in curve.values()]
    stand = [100 * found["stand"] for found in curve.values()]
    ax.plot(minutes, stand, "o-", ms=4, color=colour)
    ax.annotate(label, (minutes[at], stand[at]), offset, textcoords="offset points",
                ha="right" if at else "left", color=colour, fontsize=10)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="minutes of training")
    ax.set_title("% left, or certified", x=-0.15)
    ax.set_ymargin(0.2)

rows = 1 + len(faces)
grid = right.subplots(rows, len(shown) + 1)
for ax in grid.flat:
    ax.set_axis_off()
for j, i in enumerate(shown):
    grid[0, j].imshow(to_numpy(x[i, 0]))
for r, (name, g) in enumerate(gradients.items(), 1):
    for j in range(len(shown)):
        limit = np.quantile(abs(g[j]), 0.995) or 1
        grid[r, j].imshow(g[j, 0], cmap="RdBu_r", vmin=-limit, vmax=limit)
    filters = to_numpy(faces[name].parameters()[0].value)[:, 0]
    filters = filters[np.argsort(-abs(filters).max(axis=(1, 2)))][:9]
    side = filters.shape[-1]
    tiles = np.full((3 * (side + 1) - 1,) * 2, np.nan)
    for k, tile in enumerate(filters):
        a, b = divmod(k, 3)
        tiles[a * (side + 1) :, b * (side + 1) :][:side, :side] = tile / abs(tile).max()
    grid[r, -1].imshow(tiles, cmap="RdBu_r", vmin=-1, vmax=1)
    grid[r, 0].text(-0.1, 0.5, name.replace(" ", "\n"), transform=grid[r, 0].transAxes,
                    ha="right", va="center")  # fmt: skip
grid[0, 0].text(-0.1, 0.5, "x", transform=grid[0, 0].transAxes, ha="right", va="center")
grid[0, -1].text(0.5, 0.02, "first layer's\nfilters", transform=grid[0, -1].transAxes,
                 ha="center", va="bottom", fontsize=10)  # fmt: skip
pen = "points on the strokes" if data.name == "mnist" else "strokes"
right.suptitle(f"∂L/∂x: noise if natural, {pen} if robust", x=0.1, ha="left")
common.save_figure(fig, args, NAME)
common.record(args, NAME, numbers)

# %% [markdown]
# ## The claims

# %%
stuck, grown = numbers["warm_up"].values()
alone, rescued = numbers["overfitting"].values()
natural, bounds = result["natural"], result["interval bounds"]
robust_ones = ("PGD", "TRADES", "interval bounds")


def claims():
    """Pairs of what is said and whether it holds."""
    for name in robust_ones:
        stand, before = result[name]["ensemble"], natural["ensemble"]
        text = f"{name}: {100 * stand:.1f} % stand, and {100 * before:.1f} % of the natural one"
        yield text, stand > before + 0.1
    on_pen = 100 * on_strokes["PGD"], 100 * on_strokes["natural"]
    text = "on or beside strokes: {:.0f} % of the robust network's gradient, {:.0f} % of the other"
    yield text.format(*on_pen), on_pen[0] > on_pen[1]
    tenth = numbers["largest_tenth"]
    yield "bounds make the first layer sparse", tenth["natural"] < 0.5 < tenth["interval bounds"]
    if data.name == "fashion":  # whose ε is smaller
        return
    at_chance = abs(stuck["loss"] - np.log(10)) < 0.05
    yield f"the full ε at once: the loss sits at {stuck['loss']:.2f}, near ln 10", at_chance
    alike = stuck["logits_differ_by"] < 0.1 * grown["logits_differ_by"]
    yield "and all images get nearly the same answer", alike
    yield f"a growing ε: it comes down, to {grown['loss']:.2f}", grown["loss"] < 2.0
    single, full = alone["one_step"], alone["PGD"]
    text = f"overfitted: {100 * single:.0f} % right under its step, {100 * full:.0f} % under PGD"
    yield text, single > 0.6 and single - full > 0.3
    text = f"rescued: {100 * rescued['PGD']:.0f} % under PGD"
    yield text, rescued["PGD"] > full + 0.1
    proved = bounds["certified"]
    text = f"nothing of the natural network stands; {100 * proved:.1f} % are proved after bounds"
    yield text, natural["PGD-40"] < 0.02 < proved
    hidden = result["fast"]["FGSM"] - result["fast"]["ensemble"]
    yield f"FGSM had missed {100 * hidden:.1f} points of the fast network", hidden > 0.05
    for name in robust_ones:
        yield f"{name}: clean accuracy above 90 %", result[name]["clean"] > 0.9
    if args.full and data.name == "mnist":
        stand = result["PGD, larger"]["ensemble"]
        yield f"more stands than of Madry's network, 88.5 %: {100 * stand:.1f} %", stand > 0.885
        more = result["bounds, thresholds"]["certified"] - proved
        text = f"thresholds, and more neurons behind them: {100 * more:.1f} points more are proved"
        yield text, more > 0
        for column, verb in (("ensemble", "stand"), ("certified", "are proved")):
            one, two = (result[f"bounds, {n}"][column] for n in ("thresholds", "committee"))
            yield f"two of them together: {100 * (two - one):.1f} points more {verb}", two > one


for text, holds in claims():
    if args.quick:  # when nothing is trained long enough
        print(("holds, " if holds else "not yet, ") + "with --quick: " + text)
    else:
        common.claim(text, holds)

# %% [markdown]
# ## Try next
#
# - `common.RECIPES`, or `MNIST_RECIPES`: fewer steps of PGD in training, and PGD-100 in the table.
#   Where does the difference show?
# - `step_size=EPSILON`, or another learning rate, in the cell about single steps. A gap?
# - `defenses.Free(Linf(ε), replays=8)` as `perturb=`, with an eighth of the epochs.
# - Train at 1.2 ε and judge at ε. Is it worth its clean accuracy?
# - Put `models.threshold_layers(0.35, 0.65)` in front of a network, and train it on PGD's examples.
#   Does PGD leave more of it? Does the ensemble? Where did the gradient go?
