# %% [markdown]
"""
# 04 The linear explanation: why small changes add up

**Question.** A change that does not hide a digit from us makes a network read it wrongly, and be
sure of it. Is that a strange property of deep networks? Or does it happen to the simplest model
there is, a weighted sum of the pixels?

**Equation.** A linear model sees wᵀx. Change each pixel by at most ε, x̃ = x + η with ‖η‖∞ ≤ ε, and
it sees wᵀx̃ = wᵀx + wᵀη. The worst η is ε·sign(w), and with n pixels and a mean weight
m = mean |w_i| it gains

    wᵀη = ε ‖w‖₁ = ε · m · n.

A network is linear nearly everywhere, piece by piece, and its gradient says which w it has here.
That makes the *fast gradient sign method* (FGSM), an attack in one step:

    x̃ = x + ε · sign(∂L/∂x).

For a linear model and labels y = ±1 the worst case of the loss is exact, and can be trained on:

    max over ‖η‖∞ ≤ ε of  L(y · (wᵀ(x + η) + b))  =  L(y · (wᵀx + b) − ε ‖w‖₁).

**Papers.** Goodfellow, Shlens & Szegedy (2015), "Explaining and harnessing adversarial examples";
Tanay & Griffin (2016), "A boundary tilting perspective on the phenomenon of adversarial examples",
who doubt that the dimension is the reason; Kolter & Madry, adversarial-ml-tutorial.org, chapter 2.

**Run.** `python lessons/04_the_linear_explanation.py`: about 10 seconds on two cores, and 10 more
the first time, when the network is trained. On handwritten digits, as in the tutorial:
`python lessons/04_the_linear_explanation.py --data mnist`, about 20 seconds, and the first time
another minute. With `--full` all test images, and three seeds of the linear model.

**What to look for.** With weights of a fixed size the gain grows as n. With weights that were
trained it does not: the same digits in more pixels get smaller weights. But the effect of *random*
signs falls as 1/√n, so the worst change stays as strong as ever while chance stops finding it. FGSM
turns 60 of 100 digits, noise of the same length about one, a few black or white pixels two. A
linear model that tells 0 from 1 with hardly an error is wrong on 69 % of them in the worst case at
ε = 0.2; trained for that case, on 11 %, and then most of its weights are nearly zero.

**What was shortened.** Printed digits in the place of MNIST, unless you ask for it. On MNIST the
tutorial reports 83 to 86 % errors in the worst case after standard training, about 2 % after robust
training, and then 0.4 to 0.5 % with no attack; here it is 83.3, 1.8 and 0.47 %. Our learning rate
falls to zero, so that the weights come to rest. FGSM runs on the first 1000 test images.
"""

# %% [markdown]
# ## Names and settings
#
#     x       (N, C, H, W)   images: values 0 to 1
#     y       (N,)           their labels: 0 to 9; for the linear model −1 and +1
#     w, b    (n,), ()       the weights of a linear model of n pixels, and its bias
#     m                      the mean size of a weight, mean |w_i|
#     η       (N, …)         a perturbation; x̃ = x + η is what the model sees
#     ε                      its largest allowed change of a pixel: ‖η‖∞ ≤ ε
#     g       (N, …)         the gradient of the loss for the pixels, ∂L/∂x

# %%
from functools import partial

import common
import matplotlib.pyplot as plt
import numpy as np

from tinyadv import Tensor, attacks, evaluate, grad, losses, ops, optim, to_numpy, viz
from tinyadv.balls import Linf

NAME = "04_the_linear_explanation"
args = common.arguments(__doc__, datasets=("glyphs", "mnist", "fashion"))
xp = args.xp  # numpy or cupy

data = common.load_data(args, *((4000, 500) if args.quick else ()))
TEST = 300 if args.quick else len(data.x_test) if args.full else 1000  # images under attack
EPSILON = {"glyphs": 0.15, "mnist": 0.15, "fashion": 0.05}[data.name]  # for the network
EPSILON_LINEAR = 0.2  # for the linear model, the tutorial's
EPOCHS = 5 if args.quick else 20  # passes of the linear model over its images
BATCH, RATE = 100, 1.0  # its images in a step, and its learning rate at first
SEEDS = [args.seed + i for i in range(3 if args.full else 1)]  # of its weights and shuffling

x_test, y_test = xp.asarray(data.x_test[:TEST]), xp.asarray(data.y_test[:TEST])
numbers = {"epsilon": EPSILON, "epsilon_linear": EPSILON_LINEAR, "test_images": TEST}
print(f"{data.name}: {TEST} test images, ε = {EPSILON} for the network")

# %% [markdown]
# ## Many small changes make a large one
#
# A random w, its numbers of the same mean size whatever n is, and a random image. We add
# η = ε·sign(w) and look at what wᵀx gains; then we add ε times random signs, and look at how far
# that moves wᵀx on average.

# %%
rng = np.random.default_rng(args.seed)
rows, worst, by_chance = [], [], []
for n in (10, 100, 1000, 10_000, 100_000):
    w, x = rng.standard_normal(n), rng.random(n)
    gain = w @ (x + EPSILON_LINEAR * np.sign(w)) - w @ x
    formula = EPSILON_LINEAR * abs(w).mean() * n
    signs = rng.choice([-1.0, 1.0], (100, n))  # 100 draws
    chance = EPSILON_LINEAR * abs(signs @ w).mean()  # (100, n), (n,) -> (100,)
    assert abs(gain - formula) < 1e-9 * n
    worst.append(gain)
    by_chance.append(chance)
    rows.append([n, f"{gain:.2f}", f"{formula:.2f}", f"{chance:.2f}", f"{gain / chance:.0f}"])
common.table(rows, ["n", "gain", "ε m n", "random signs", "ratio"])
numbers["random_weights"] = {"gain": worst, "random_signs": by_chance}
print("The gain grows as n, the effect of random signs as √n.")
assert 0.5 < worst[-1] / worst[1] / 1000 < 2
assert 0.5 < by_chance[-1] / by_chance[1] / 1000**0.5 < 2

# %% [markdown]
# ## A linear model of digits
#
# Do trained weights keep their size when the images get more pixels? We need a linear model: it
# tells the first two classes apart, y = −1 and y = +1, with the loss
#
#     L(y · z) = log(1 + e^(−y·z)),    z = wᵀx + b.
#
# For later it can be trained on the worst case as well: all that changes is − ε ‖w‖₁.


# %%
def two_classes(x, y):
    """The images of classes 0 and 1 as rows, (N, n), and their labels as −1 and +1, (N,)."""
    chosen = np.flatnonzero(y < 2)
    rows = x[chosen].reshape(len(chosen), -1)  # (N, 1, 28, 28) -> (N, 784)
    return xp.asarray(rows), xp.asarray((2 * y[chosen] - 1).astype(rows.dtype))


def linear_loss(w, b, x, y, epsilon=0.0):
    """The mean loss under the worst η with ‖η‖∞ ≤ ε, in closed form; with ε = 0 the usual loss."""
    margin = y * (x @ w + b)  # (N, n), (n,) -> (N,)
    return ops.mean(ops.softplus(-(margin - epsilon * ops.sum(ops.abs(w)))))


def train_linear(x, y, start, epsilon=0.0, *, rate=RATE, epochs=EPOCHS, seed=args.seed):
    """Gradient descent from the weights ``start``; returns w and b."""
    w, b = Tensor(xp.asarray(start, dtype=x.dtype)), Tensor(xp.zeros((), x.dtype))
    descent = optim.SGD([w, b], lr=rate)
    rate_at = optim.cosine(rate, epochs)  # falls to 0, so that the weights come to rest
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(len(x))
        for i in range(0, len(x), BATCH):
            batch = xp.asarray(order[i : i + BATCH])
            descent.lr = rate_at(epoch + i / len(x))
            descent.step(grad(linear_loss(w, b, x[batch], y[batch], epsilon), [w, b]))
    return w.value, b.value


x01, y01 = two_classes(data.x_train, data.y_train)
x01_test, y01_test = two_classes(data.x_test, data.y_test)
names01 = data.classes[:2]
print(f"{names01[0]} against {names01[1]}: {len(x01)} training images, {len(x01_test)} test images")

# %% [markdown]
# Now with images of 7×7, 14×14, 28×28 and 56×56 pixels: means of neighbours, or each pixel four
# times. Weights start at zero. The learning rate is divided by the number of pixels, so that each
# model learns at the same pace.


# %%
def with_side(x, side):
    """The images (N, 784) with side × side pixels, as rows."""
    x = x.reshape(-1, 28, 28)
    if side > 28:
        k = side // 28
        return xp.repeat(xp.repeat(x, k, axis=1), k, axis=2).reshape(len(x), -1)
    k = 28 // side
    return x.reshape(-1, side, k, side, k).mean(axis=(2, 4)).reshape(len(x), -1)


rng = np.random.default_rng(args.seed)
few = slice(0, 4000)
sizes = []
for side in (7, 14, 28, 56):
    n = side * side
    rate = RATE * 784 / n
    x, x_t = with_side(x01[few], side), with_side(x01_test, side)
    w, b = train_linear(x, y01[few], np.zeros(n), rate=rate, epochs=5)
    margin = to_numpy(y01_test * (x_t @ w + b))
    w = to_numpy(w).astype(float)
    signs = rng.choice([-1.0, 1.0], (200, n))
    sizes.append({
        "n": n,
        "m": abs(w).mean(),
        "worst": EPSILON_LINEAR * abs(w).sum(),
        "random_signs": EPSILON_LINEAR * abs(signs @ w).mean(),
        "median_margin": np.median(margin),
        "clean_error": (margin <= 0).mean(),
    })  # fmt: skip
numbers["by_size"] = sizes
common.table(
    [
        [s["n"], f"{s['m']:.3f}", *(f"{s[k]:.2f}" for k in ("median_margin", "worst")),
         f"{s['random_signs']:.2f}", f"{s['worst'] / s['random_signs']:.0f}"]
        for s in sizes
    ],
    ["n", "m", "median y·z", "worst gain ε m n", "random signs", "ratio"],
)  # fmt: skip
print("The weights shrink as n grows, the worst gain stays about as large as y·z itself,")
print("and what random signs do falls as 1/√n.")

# %% [markdown]
# So the dimension alone does not make a model easy to fool: Tanay & Griffin's objection holds here.
# What it does is hide the fooling direction. There is a change that undoes what the model sees in
# about half of the images, and a random change of the same size has some 1/√n of its effect. (These
# weights start at zero. With random ones more images fall: see below.)
#
# ## FGSM
#
# A network's loss is not linear in x, but nearly so for small steps, and then the worst step is
# again a sign: that of the gradient. Pixels must stay in [0, 1].

# %%
model = common.trained_cnn(args, data)


def fast_gradient_sign(model, x, y, epsilon):
    """x̃ = x + ε · sign(∂L/∂x), clipped; also returns the gradient."""
    image = Tensor(x)
    loss = losses.cross_entropy(model(image), y, reduction="sum")
    (g,) = grad(loss, [image])  # the shape of x
    return xp.clip(x + epsilon * xp.sign(g), 0, 1), g


parts = [slice(i, i + 1000) for i in range(0, TEST, 1000)]  # as many as fit into the memory
found = [fast_gradient_sign(model, x_test[part], y_test[part], EPSILON) for part in parts]
x_adv, g = (xp.concatenate(arrays) for arrays in zip(*found, strict=True))
theirs = attacks.fgsm(model, x_test, y_test, ball=Linf(EPSILON))
# A gradient of 1e-20 has a sign too, and the order of a sum may turn it.
differ = float((abs(x_adv - theirs) > 1e-6).mean())
numbers["our_fgsm_against_tinyadv"] = differ
clean = evaluate.accuracy(model, x_test, y_test)
attacked = evaluate.accuracy(model, x_adv, y_test)
print(f"pixels in which tinyadv's fgsm differs: {100 * differ:.4f} %")
print(f"accuracy {100 * clean:.1f} %, under FGSM {100 * attacked:.1f} %")
assert differ < 1e-3

# %% [markdown]
# The picture that made these examples famous: a panda, 57.7 % sure; plus 0.007 times a sign; is a
# gibbon, 99.3 % sure. Ours is the image that the network is surest of before and after, taken
# together: of the two confidences the smaller one is the largest.


# %%
def probabilities(x):
    """softmax of the logits, 500 images at a time: (N, …) -> (N, K)"""
    parts = [ops.softmax(model(x[i : i + 500]), axis=1) for i in range(0, len(x), 500)]
    return np.concatenate([to_numpy(part) for part in parts])


p, p_adv = probabilities(x_test), probabilities(x_adv)
label = to_numpy(y_test)
turned = (p.argmax(1) == label) & (p_adv.argmax(1) != label)
panda = int(np.argmax(np.where(turned, np.minimum(p.max(1), p_adv.max(1)), -1)))
answers = [data.classes[q[panda].argmax()] for q in (p, p_adv)]
confidences = [float(q[panda].max()) for q in (p, p_adv)]
numbers["panda"] = {"image": panda, "answers": answers, "confidences": confidences}
numbers["median_confidence_when_turned"] = float(np.median(p_adv.max(1)[turned]))
for what, answer, confidence in zip(("before", "after"), answers, confidences, strict=True):
    words = "> 99.99" if confidence > 0.9999 else f"{100 * confidence:.2f}"
    print(f"{what}: {answer}, {words} % sure")
print(f"median confidence in the wrong answers: {numbers['median_confidence_when_turned']:.1%}")

# %% [markdown]
# ## Is any small change as bad?
#
# "Imperceptible" means a small ‖η‖∞ in the papers: on photographs with their noise ε = 0.007 cannot
# be seen. On black ground one sees ε = 0.15 well, as a grey haze, and still reads the digit.
# Each perturbation here has, image by image, the same 2-norm as FGSM's, and stays in [0, 1]: steps
# along the gradient itself, random signs, Gaussian noise, and a few random pixels that go from
# black to white or from white to black.


# %%
def of_length(x, direction, length):
    """η = s · direction, clipped to keep x + η in [0, 1], with s such that ‖η‖₂ = length."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    low, high = np.zeros(len(x)), np.full(len(x), 1e6)
    for _ in range(60):  # halve the interval that s lies in
        s = (low + high) / 2
        eta = np.clip(s.reshape(shape) * direction, -x, 1 - x)
        too_long = np.linalg.norm(eta.reshape(len(x), -1), axis=1) > length
        low, high = np.where(too_long, low, s), np.where(too_long, s, high)
    return eta


def few_pixels(x, length, rng):
    """For each image as many random pixels as it takes, each towards its farther end."""
    rows = x.reshape(len(x), -1)
    far = np.where(rows > 0.5, -rows, 1 - rows)
    order = np.argsort(rng.random(rows.shape), axis=1)
    squares = np.take_along_axis(far**2, order, axis=1)
    before = np.cumsum(squares, axis=1) - squares  # ‖η‖₂² without this pixel
    chosen = np.zeros_like(rows)
    np.put_along_axis(chosen, order, (before < length[:, None] ** 2).astype(float), axis=1)
    return (chosen * far).reshape(x.shape)


host, host_g = to_numpy(x_test).astype(float), to_numpy(g).astype(float)
sign_eta = to_numpy(x_adv).astype(float) - host
length = np.linalg.norm(sign_eta.reshape(len(host), -1), axis=1)
host_g /= np.maximum(abs(host_g).reshape(len(host), -1).max(1), 1e-30).reshape(-1, 1, 1, 1)
rng = np.random.default_rng(args.seed)
directions = {
    "the gradient": host_g,
    "random signs": rng.choice([-1.0, 1.0], host.shape),
    "Gaussian noise": rng.standard_normal(host.shape),
    "a few pixels": few_pixels(host, length, rng),
}
etas = {"FGSM": sign_eta}
etas |= {name: of_length(host, direction, length) for name, direction in directions.items()}
same_length, rows = {"nothing": clean}, [["nothing", "0", "0", f"{100 * clean:.1f} %"]]
for name, eta in etas.items():
    flat = eta.reshape(len(eta), -1)
    x = xp.asarray((host + eta).astype(np.float32))
    same_length[name] = evaluate.accuracy(model, x, y_test)
    rows.append([
        name, f"{np.median(abs(flat).max(1)):.2f}",
        f"{np.median(np.linalg.norm(flat, axis=1)):.2f}", f"{100 * same_length[name]:.1f} %",
    ])  # fmt: skip
numbers["same_length"] = same_length
common.table(rows, ["perturbation", "median ‖η‖∞", "median ‖η‖₂", "accuracy"])

# %% [markdown]
# ## The worst case of a linear model
#
# Back to the model of two classes, now with all its pixels, and with weights that start at random,
# uniform in ±1/√n, as PyTorch starts them and so the tutorial's. Is the closed form right? We take
# η = −y ε sign(w) for each image and compare the losses. Their gradients for w and b must be equal
# too: the worst η depends on w, but at a maximum this dependence adds nothing. Lesson 07 comes back
# to this under the name of Danskin's theorem.


# %%
def worst_eta(w, y, epsilon):
    return -epsilon * y[:, None] * xp.sign(w)[None, :]  # (N,), (n,) -> (N, n)


start = np.random.default_rng(args.seed).uniform(-1, 1, 784) / 28
w, b = Tensor(xp.asarray(start)), Tensor(xp.asarray(0.1))
x, y = x01[:100].astype(np.float64), y01[:100].astype(np.float64)
exact = linear_loss(w, b, x, y, EPSILON_LINEAR)
attacked_loss = linear_loss(w, b, x + worst_eta(w.value, y, EPSILON_LINEAR), y)
print(f"loss: closed form {float(exact):.10f}, at the worst η {float(attacked_loss):.10f}")
assert abs(float(exact) - float(attacked_loss)) < 1e-9
for ours, theirs in zip(grad(exact, [w, b]), grad(attacked_loss, [w, b]), strict=True):
    assert float(abs(ours - theirs).max()) < 1e-9
print("gradients for w and b: equal")

# %% [markdown]
# Train both ways and count errors. *In the ball* is the closed form: the tutorial's number, in
# which pixels may leave [0, 1], below black for instance. *Legal images* clips the worst η, and is
# exact too, for each pixel is at its own worst. Attacks of the library produce legal images and
# know nothing of closed forms; of a linear model they should find the same.


# %%
def errors(w, b, epsilon):
    """The shares of test images that are wrong: as they are, in the ball, and in ball and box."""
    eta = worst_eta(w, y01_test, epsilon)
    legal = xp.clip(x01_test + eta, 0, 1)
    margin = y01_test * (x01_test @ w + b)
    values = (
        margin,
        margin - epsilon * abs(w).sum(),
        y01_test * (legal @ w + b),
        y01_test * ((x01_test + eta) @ w + b),  # what the second one claims, as a forward pass
    )
    return [float((v <= 0).mean()) for v in values]


def as_network(w, b):
    """The logits (N, 2) whose cross-entropy is L(y·z)."""

    def network(x):
        z = x @ w + b
        return ops.stack([-0.5 * z, 0.5 * z], axis=1)

    return network


label01 = ((y01_test + 1) / 2).astype(np.int64)
linear_attacks = {
    "FGSM": partial(attacks.fgsm, ball=Linf(EPSILON_LINEAR)),
    "PGD, 10 steps": partial(attacks.pgd, ball=Linf(EPSILON_LINEAR), steps=10),
}
trained, rows, numbers["linear"] = {}, [], {}
for name, epsilon in {"standard": 0.0, "robust": EPSILON_LINEAR}.items():
    runs = []
    for seed in SEEDS:
        start = np.random.default_rng(seed).uniform(-1, 1, 784) / 28
        w, b = train_linear(x01, y01, start, epsilon, seed=seed)
        found = evaluate.robustness(as_network(w, b), x01_test, label01, linear_attacks)
        by_attack = [1 - result.accuracy for result in found.attacks.values()]
        runs.append([*errors(w, b, EPSILON_LINEAR), *by_attack])
        trained.setdefault(name, (w, b))
        assert abs(runs[-1][1] - runs[-1][3]) < 0.002  # the closed form, and a forward pass
        assert max(abs(error - runs[-1][2]) for error in by_attack) < 0.002
    clean_error, ball, legal, _, fgsm, pgd = np.mean(runs, axis=0)
    numbers["linear"][name] = {
        "clean": clean_error, "ball": ball, "legal": legal, "fgsm": fgsm, "pgd": pgd,
        "l1_norm": float(abs(trained[name][0]).sum()), "runs": runs,
    }  # fmt: skip
    rows.append([name, *(f"{100 * e:.2f} %" for e in (clean_error, ball, legal, fgsm, pgd))])
header = ["training", "no change", "in the ball", "legal images", "FGSM", "PGD"]
common.table(rows, header)
print(f"errors of the linear model at ε = {EPSILON_LINEAR}; the last three are of legal images")

# %% [markdown]
# Where do the weights stand? The adversary's gain is ε ‖w‖₁, each weight counts. Standard training
# leaves the random weights where no training image has ink, for they cost nothing there. The robust
# loss has a price for every weight, so only those remain that earn it.

# %%
share_small = {}
for name, (w, _) in trained.items():
    share_small[name] = float((abs(w) < 0.01 * abs(w).max()).mean())
    l1 = numbers["linear"][name]["l1_norm"]
    print(f"{name:8}  ‖w‖₁ = {l1:.1f}, {share_small[name]:.0%} of the weights are nearly zero")
numbers["share_of_weights_nearly_zero"] = share_small

grid = np.linspace(0, 0.4, 21)
over_epsilon = {name: np.array([errors(w, b, e) for e in grid]) for name, (w, b) in trained.items()}
numbers["over_epsilon"] = {"epsilon": grid} | {k: v[:, 1] for k, v in over_epsilon.items()}

# %% [markdown]
# ## The figure


# %%
def draw_sizes(ax):
    n = [s["n"] for s in sizes]
    for key, colour, marker, words in [
        ("worst", common.RED, "o", "worst η"),
        ("median_margin", common.GREY, "s", "median y·z"),
        ("random_signs", common.BLUE, "^", "random signs"),
    ]:
        values = [s[key] for s in sizes]
        ax.plot(n, values, marker + ("--" if key == "median_margin" else "-"), color=colour,
                markersize=6, label=words)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="pixels n", ylabel="how far y·z moves")
    ax.set_xticks(n, [str(v) for v in n])
    ax.set_xticks([], minor=True)
    ax.set_ylim(0.5 * min(s["random_signs"] for s in sizes), 3 * max(s["worst"] for s in sizes))
    ax.legend(loc="lower left")
    ax.set_title("More pixels tame only noise")


def draw_same_length(ax):
    names = list(same_length)[::-1]
    shares = [100 * same_length[name] for name in names]
    colours = [
        common.RED if n in ("FGSM", "the gradient") else common.GREY if n == "nothing"
        else common.BLUE for n in names
    ]  # fmt: skip
    ax.barh(names, shares, color=colours, height=0.7)
    for i, share in enumerate(shares):
        inside = share > 25
        ax.text(share + (-1.5 if inside else 1.5), i, f"{share:.1f} %", va="center",
                ha="right" if inside else "left", color="white" if inside else "black")  # fmt: skip
    ax.set(xlim=(0, 100), xlabel="accuracy, % (changes of the same ‖η‖₂)")
    ax.tick_params(axis="y", length=0)
    ax.set_title("Gradients harm, noise does not")


def draw_errors(ax):
    colours = {"standard": common.RED, "robust": common.BLUE}
    for name, curve in over_epsilon.items():
        ax.plot(grid, 100 * curve[:, 1], color=colours[name], label=name)
        ax.plot(grid[::2], 100 * curve[::2, 3], "o", color=colours[name], markersize=5)
    ax.axvline(EPSILON_LINEAR, color=common.GREY, linestyle=":", linewidth=1.2)
    ax.set(xlabel="ε (lines: exact, dots: the attack)", ylabel="error, %")
    ax.set(ylim=(-3, 103), xlim=(0, grid[-1]))
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.76), handlelength=1.2)
    before, after = (100 * numbers["linear"][k]["ball"] for k in ("standard", "robust"))
    ax.set_title(f"At ε = {EPSILON_LINEAR}: {before:.0f} % → {after:.0f} % errors")


def draw_weights(figure):
    for ax, (name, (w, _)) in zip(figure.subplots(1, 2), trained.items(), strict=True):
        image = to_numpy(w).reshape(28, 28)
        largest = abs(image).max()
        ax.imshow(image, cmap="RdBu_r", vmin=-largest, vmax=largest)
        ax.set(xticks=[], yticks=[], xlabel=f"{share_small[name]:.0%} of w nearly zero")
        ax.spines[:].set(visible=True, color="0.7")
        ax.set_title(f"{name} training", loc="center")


fig = plt.figure(figsize=(11, 6.7), layout="constrained")
above, below = fig.subfigures(2, 1, height_ratios=[1, 1.02], hspace=0.06)
left, right = above.subfigures(1, 2, width_ratios=[1.5, 1], wspace=0.05)
viz.triptych(
    data.x_test[panda], to_numpy(x_adv)[panda],
    answers=answers, confidences=confidences, figure=left,
)  # fmt: skip
left.suptitle(f"FGSM: x + {EPSILON} · sign(∂L/∂x)", x=0.01, ha="left")
draw_weights(right)
right.suptitle(
    f"A linear model's weights: for {names01[1]} (red), for {names01[0]} (blue)", x=0.01, ha="left"
)
panels = below.subplots(1, 3, width_ratios=[1, 0.95, 1.05])
for ax, fill in zip(panels, [draw_same_length, draw_sizes, draw_errors], strict=True):
    fill(ax)
common.save_figure(fig, args, NAME)

# %% [markdown]
# ## The claims

# %%
common.record(args, NAME, numbers)  # before the claims: a number that falls short is kept as well

smallest, largest = sizes[0], sizes[-1]
weaker = smallest["random_signs"] / largest["random_signs"]
stays = largest["worst"] / smallest["worst"]
print(f"from {smallest['n']} to {largest['n']} pixels, √n grows by a factor 8:")
print(f"  random signs do {weaker:.1f} times less; the worst change {stays:.2f} times as much")
assert 4 < weaker < 16 and (0.3 if args.quick else 0.5) < stays < 1.5
assert all(0.5 < s["worst"] / s["median_margin"] < 2 for s in sizes)

NOISE = ("random signs", "Gaussian noise", "a few pixels")
most = clean - min(same_length[name] for name in NOISE)
print(f"accuracy lost to FGSM {100 * (clean - same_length['FGSM']):.1f} points,", end=" ")
print(f"to noise of the same length {100 * most:.1f} at most")
lost, kept = (0.3, 0.1) if data.name == "fashion" else (0.4, 0.05)
assert clean - same_length["FGSM"] > lost and most < kept
assert same_length["the gradient"] < same_length["FGSM"]  # in the 2-norm the sign is not the best

CLAIM = {  # errors: standard in the worst case from, to; robust in the worst case, with no change
    "glyphs": (0.6, 0.8, 0.15, 0.02),
    "mnist": (0.81, 0.87, 0.025, 0.006),
    "fashion": (0.5, 1.0, 0.4, 0.1),
}
low, high, robust, no_change = (0.4, 0.9, 0.3, 0.05) if args.quick else CLAIM[data.name]
standard_run, robust_run = numbers["linear"]["standard"], numbers["linear"]["robust"]
worst_standard, worst_robust = standard_run["ball"], robust_run["ball"]
print(f"errors in the worst case at ε = {EPSILON_LINEAR}:")
print(f"  standard  {100 * worst_standard:.1f} %, claimed {100 * low:g} to {100 * high:g} %")
print(f"  robust    {100 * worst_robust:.1f} %, claimed {100 * robust:g} % at most", end="; ")
print(f"with no change {100 * robust_run['clean']:.2f} %, claimed {100 * no_change:g} % at most")
assert low <= worst_standard <= high
assert worst_robust <= robust and robust_run["clean"] <= no_change
assert standard_run["legal"] < standard_run["ball"]  # the box takes part of the adversary's room
assert share_small["standard"] < 0.5 < share_small["robust"]

# %% [markdown]
# ## Try next
#
# - Start the linear model from zero: `train_linear(x01, y01, np.zeros(784))`. How much of ‖w‖₁, and
#   of the adversary's gain, was only ever noise?
# - Train with a larger ε than the one you test with, and with a smaller one. What does it cost on
#   images that nobody has changed?
# - In the ball of the 2-norm the worst case is −ε ‖w‖₂. Change `linear_loss` and `worst_eta`, and
#   look at w again: is it still sparse?
# - Replace `xp.sign(g)` in FGSM by the signs of another network's gradient. How many images turn?
#   Lesson 10 is about that.
# - One step assumes that the loss is linear between x and x̃. `viz.loss_on_plane` shows where it is
#   not, and lesson 06 takes many small steps instead.
