# %% [markdown]
"""
# 02 Train a CNN: a network that reads digits

**Question.** A network starts with random weights and knows nothing about digits. How does it
learn to read them, with nothing but the gradient of lesson 01?

**Equation.** A convolution slides a small filter w over an image x,

    y[o, p, q] = b[o] + Σ_{c, i, j} w[o, c, i, j] · x[c, p + i, q + j],

so that the same 25 numbers look for the same pattern everywhere. The loss of a batch of n images
is the cross-entropy of lesson 01, −1/n Σ log out_label, and RMSprop moves each weight against its
gradient g = ∂Loss/∂w, divided by the root of a running mean s of g²:

    s ← ρ s + (1 − ρ) g²,        w ← w − η g / (√s + ε).

**Papers.** LeCun et al. (1998), "Gradient-based learning applied to document recognition";
Tieleman & Hinton (2012), lecture 6.5 of "Neural Networks for Machine Learning" (RMSprop). The
network and its training are those of Shusen Wang's slides "Data Evasion Attacks", written for
Keras.

**Run.** `python lessons/02_train_a_cnn.py`: about 10 seconds on two cores, with the embedded
printed digits. The slides' setting: `python lessons/02_train_a_cnn.py --data mnist --full`, three
trainings on 60,000 handwritten digits, about two and a half minutes.

**What to look for.** The untrained network has a loss above ln 10, the loss of giving each digit
the probability 1/10. The training loop has fifteen lines, and `tinyadv.fit` does the same bit by
bit. After ten epochs the network reads about 99 % of the printed digits, in typefaces that it has
never seen. From epoch to epoch the test accuracy goes up and down, for the learning rate never
gets smaller. On MNIST the slides report 99.5 % in training and 99.1 % in validation. The mean of
three seeds is 99.6 % in training and, on the test images, 99.1 % after the last epoch and 99.2 %
after the best one.

**What was shortened.** Printed digits in the place of MNIST, 10,000 instead of 60,000, unless you
ask for MNIST. Nothing is held back to choose the epoch with: the slides' "validation" is on the
10,000 test images, and so is ours. The accuracy of the best epoch is therefore a little too good,
and that of the last one is the honest number.
"""

# %% [markdown]
# ## Names and settings
#
#     x       (N, C, H, W)   images: number, channels (1: grey), height, width; values 0 to 1
#     y       (N,)           their labels, 0 to 9
#     w       (O, C, 5, 5)   the filters of a convolution, O of them
#     b       (O,)           a bias for each
#     h                      what a layer gives
#     z       (N, K)         logits: a score for each of the K = 10 classes
#     p       (N, K)         probabilities, softmax(z)
#     g, s                   a weight's gradient, and the running mean of its square
#     η, ρ, ε                learning rate, memory of the running mean, guard against 0 / 0

# %%
import math

import common
import matplotlib.pyplot as plt
import numpy as np

import tinyadv
from tinyadv import evaluate, grad, losses, models, ops, optim, to_numpy

NAME = "02_train_a_cnn"
args = common.arguments(__doc__, datasets=("glyphs", "mnist", "fashion"))
xp = args.xp  # numpy or cupy

EPOCHS = 3 if args.quick else 10  # passes over the training images
SEEDS = [args.seed + i for i in range(3 if args.full else 1)]  # of the weights and the shuffling
BATCH = 128  # images in a step
ETA, RHO, EPSILON = 0.001, 0.9, 1e-7  # of RMSprop: Keras's defaults

data = common.load_data(args, *((4000, 500) if args.quick else ()))
x_train, y_train = xp.asarray(data.x_train), xp.asarray(data.y_train)
x_test, y_test = xp.asarray(data.x_test), xp.asarray(data.y_test)
K = len(data.classes)
SAME = 0 if xp is np else 1e-3  # how far equal numbers may lie apart: a GPU may add up otherwise
numbers = {}  # what is recorded
print(f"{data.name}: {len(x_train)} training images, {len(x_test)} test images; seeds {SEEDS}")

# %% [markdown]
# ## The data
#
# An image is an array of numbers from 0 (black) to 1 (white). Here are three of them, the numbers
# written as letters of more and more ink.

# %%
SHADES = np.array(list(" .:-=+*#%@"))


def in_letters(image):
    """(28, 28) -> 14 lines of 28 letters, for letters are about twice as high as wide."""
    pairs = image.reshape(14, 2, 28).mean(axis=1)  # (28, 28) -> (14, 28)
    return ["".join(line) for line in SHADES[(pairs * 9.99).astype(int)]]


first = [np.flatnonzero(data.y_train == k)[0] for k in (2, 4, 5)]
for lines in zip(*[in_letters(data.x_train[i, 0]) for i in first], strict=True):
    print("   ".join(lines).rstrip())
print("labels:", ", ".join(data.classes[data.y_train[i]] for i in first))
print("x_train:", data.x_train.shape, data.x_train.dtype, " y_train:", data.y_train.shape)

# %% [markdown]
# ## The network
#
# Two rounds of convolution, ReLU and pooling turn 28×28 pixels into 20 maps of 4×4; pooling keeps
# the largest of each 2×2 numbers. Two dense layers turn these 320 numbers into ten logits. Here is
# what becomes of the shape of a batch on its way, and how many weights each layer has.

# %%
model = models.slides_cnn(args.seed).to(args.backend)
h = x_train[:BATCH]
rows = [["the batch", h.shape, ""]]
for layer in model.layers:
    h = layer(h)
    rows.append([repr(layer), h.shape, sum(p.size for p in layer.parameters()) or ""])
count = sum(p.size for p in model.parameters())
common.table([*rows, ["together", "", count]], ["layer", "shape of its output", "weights"])
numbers["parameters"] = count
assert count == 38390

# %% [markdown]
# The same for a single image, by the definitions and with no regard for speed: the convolution
# takes a window for every filter and every place, multiplies and adds up.


# %%
def convolve(x, w, b):
    """(C, H, W), (O, C, kh, kw), (O,) -> (O, P, Q)"""
    (_, H, W), (filters, _, kh, kw) = x.shape, w.shape
    y = np.empty((filters, H - kh + 1, W - kw + 1), x.dtype)
    for o, p, q in np.ndindex(y.shape):
        y[o, p, q] = (w[o] * x[:, p : p + kh, q : q + kw]).sum() + b[o]
    return y


def relu(x):
    return np.maximum(x, 0)


def pool(x):
    """The largest of each 2×2 numbers: (C, H, W) -> (C, H/2, W/2)"""
    C, H, W = x.shape
    return x.reshape(C, H // 2, 2, W // 2, 2).max(axis=(2, 4))


def forward(x, weights):
    """The logits of one image, with the weights in the order of the layers."""
    w0, b0, w1, b1, w2, b2, w3, b3 = weights
    h = pool(relu(convolve(x, w0, b0)))  # (1, 28, 28) -> (10, 12, 12)
    h = pool(relu(convolve(h, w1, b1)))  # -> (20, 4, 4)
    h = relu(w2 @ h.ravel() + b2)  # -> (320,) -> (100,)
    return w3 @ h + b3  # -> (10,)


z = forward(data.x_train[0], [to_numpy(w) for w in model.parameters()])
apart = float(abs(z - to_numpy(model(x_train[:1]))[0]).max())
numbers["our_forward_against_tinyadv"] = apart
print("logits:", z.round(3))
print(f"largest difference to the library's: {apart:.1e}")
assert apart < 1e-5

# %% [markdown]
# ## What the untrained network says
#
# It knows nothing, and guesses right one time in ten. Whoever gives each of K classes the
# probability 1/K has a loss of −log(1/K) = ln K. The network's is higher: its first logits are as
# large as its weights happen to make them, so it is sure of some of its guesses, and a sure guess
# that is wrong costs more than a doubtful one.

# %%
untrained_loss = float(losses.cross_entropy(model(x_test[:500]), y_test[:500]))
untrained_accuracy = evaluate.accuracy(model, x_test, y_test)
numbers |= {"untrained_loss": untrained_loss, "untrained_accuracy": untrained_accuracy}
print(f"loss {untrained_loss:.3f}; ln {K} = {math.log(K):.3f}")
print(f"accuracy {100 * untrained_accuracy:.1f} %")
assert untrained_loss > math.log(K) - 0.1 and untrained_accuracy < 0.35

# %% [markdown]
# ## The training loop
#
# One *epoch* shuffles the images and goes through them once, a batch at a time. A batch gives an
# estimate of the gradient at a small part of the cost.
#
# The root of s is about the usual size of a weight's gradient. Divided by it, a gradient of any
# scale becomes a step of about η, so that all layers learn at the same pace. Since s starts at 0,
# the very first step is η / √(1 − ρ) ≈ 3 η for every weight, up or down.


# %%
def train_one_epoch(model, x, y, rng):
    """Changes the weights of ``model``; returns the loss of every step."""
    weights = model.parameters()
    squares = [xp.zeros_like(w.value) for w in weights]  # s, of each weight's own
    order = rng.permutation(len(x))
    curve = []
    for start in range(0, len(x), BATCH):
        batch = xp.asarray(order[start : start + BATCH])  # numbers of images, (n,), n ≤ BATCH
        z = model(x[batch])  # (n, 1, 28, 28) -> (n, K)
        loss = losses.cross_entropy(z, y[batch])
        gradients = grad(loss, weights)  # one array for each weight array, in its shape
        for w, g, s in zip(weights, gradients, squares, strict=True):
            s[...] = RHO * s + (1 - RHO) * g * g
            w.value = w.value - ETA * g / (xp.sqrt(s) + EPSILON)
        curve.append(loss.value)  # float() here would make a GPU wait at every step
    return [float(loss) for loss in curve]


curve = train_one_epoch(model, x_train, y_train, np.random.default_rng(args.seed))
for step in sorted({1, 2, 4, 8, 16, 32, len(curve) // 2, len(curve)}):
    print(f"step {step:3}   loss {curve[step - 1]:.4f}")
print(f"test accuracy after one epoch: {100 * evaluate.accuracy(model, x_test, y_test):.1f} %")

# %% [markdown]
# `tinyadv.fit` is this loop, with what one wants around it: validation, a progress bar, files to
# go on from after an interruption. The same seed gives the same weights and the same shuffling, so
# one epoch of it must arrive at the same place.

# %%
twin = models.slides_cnn(args.seed).to(args.backend)
rmsprop = optim.RMSprop(twin.parameters(), lr=ETA, rho=RHO, epsilon=EPSILON)
once = tinyadv.fit(twin, data, rmsprop, 1, batch_size=BATCH, rng=args.seed, validate=False)
apart = max(
    float(abs(ours.value - theirs.value).max())
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True)
)
numbers["our_training_against_fit"] = apart
print(f"weights, ours against fit's: largest difference {apart:g}")
assert apart <= SAME

# %% [markdown]
# ## Ten epochs
#
# Later lessons start from this network, so its recipe stands in `common.train_cnn`: a call of `fit`
# with the settings above. The training accuracy is Keras's, a mean over the epoch while the weights
# are changing; the test accuracy is that of the weights at the end of the epoch.

# %%
runs = []
for seed in SEEDS:
    model = models.slides_cnn(seed).to(args.backend)
    history = common.train_cnn(model, data, EPOCHS, seed)
    best = int(np.argmax(history.test_accuracy))
    run = {
        "seed": seed,
        "training": history.train_accuracy[-1],  # of the last epoch, as it went
        "training_at_the_end": evaluate.accuracy(model, x_train, y_train),  # of the last weights
        "test_last": history.test_accuracy[-1],
        "test_best": history.test_accuracy[best],
        "best_epoch": history.epoch[best],
        "seconds_per_epoch": float(np.median(history.seconds)),
    }
    runs.append((run, history, model))
numbers["runs"] = [run for run, _, _ in runs]
assert abs(runs[0][1].loss[0] - once.loss[0]) <= SAME  # the recipe is that of the loop above

# %% [markdown]
# ## The result

# %%
shares = ("training", "training_at_the_end", "test_last", "test_best")
mean = {key: float(np.mean([run[key] for run in numbers["runs"]])) for key in shares}
numbers["mean"] = mean
rows = []
for run in [*numbers["runs"], mean]:
    rows.append([
        f"seed {run['seed']}" if "seed" in run else "mean",
        *(f"{100 * run[key]:.2f} %" for key in shares),
        run.get("best_epoch", ""),
        f"{run['seconds_per_epoch']:.1f}" if "seed" in run else "",
    ])  # fmt: skip
header = ["training", "training, end", "test, last", "test, best", "best epoch", "s / epoch"]
common.table(rows if len(SEEDS) > 1 else rows[:1], ["", *header])
print("training: the last epoch, as it went; training, end: the weights at the end of it")

# %% [markdown]
# ## The mistakes
#
# What does it get wrong, and how sure is it then? Its *confidence* is the largest probability.


# %%
run, history, model = runs[0]


def probabilities(x):
    """softmax(z) for images of any number, 500 at a time: (N, 1, 28, 28) -> (N, K)"""
    parts = [ops.softmax(model(x[i : i + 500]), axis=1) for i in range(0, len(x), 500)]
    return np.concatenate([to_numpy(part) for part in parts])


p = probabilities(x_test)
label, answer, confidence = data.y_test, p.argmax(axis=1), p.max(axis=1)
confusion = np.zeros((K, K), int)
np.add.at(confusion, (label, answer), 1)  # row: the label, column: the answer
numbers["confusion"] = confusion
wrong = np.flatnonzero(answer != label)
wrong = wrong[np.argsort(-confidence[wrong])]  # the surest first
right_confidence = float(np.median(confidence[answer == label]))
wrong_confidence = float(np.median(confidence[wrong]))
numbers |= {"confidence_right": right_confidence, "confidence_wrong": wrong_confidence}
assert np.trace(confusion) == len(label) - len(wrong)
assert right_confidence > wrong_confidence

errors = confusion - np.diag(np.diag(confusion))
common_errors = np.argsort(-errors, axis=None, kind="stable")[:3]
print(f"{len(wrong)} of {len(label)} test images are misread")
for k, j in zip(*np.unravel_index(common_errors, errors.shape), strict=True):
    print(f"  {data.classes[k]} read as {data.classes[j]}: {errors[k, j]} times")
print(f"median confidence: {100 * right_confidence:.2f} % where it is right, ", end="")
print(f"{100 * wrong_confidence:.2f} % where it is wrong")

# %% [markdown]
# ## The figure


# %%
def draw_runs(ax, name, colour, marker):
    """A number of the histories over the epochs: thin for each seed, thick for their mean."""
    curves = np.array([getattr(history, name) for _, history, _ in runs])  # (seeds, epochs)
    if len(curves) > 1:
        ax.plot(history.epoch, curves.T, color=colour, linewidth=0.9, alpha=0.6)
    return ax.plot(history.epoch, curves.mean(0), marker, color=colour, markersize=4)[0]


def draw_loss(ax):
    draw_runs(ax, "loss", common.BLUE, "o-")
    ax.axhline(math.log(K), color=common.GREY, linestyle=":")
    ax.text(EPOCHS, 2.1, f"no idea: ln {K}", color=common.GREY, ha="right", va="top")
    ax.set(title="Training loss", xlabel="epoch", yscale="log", xlim=(0.5, EPOCHS + 0.5))


def draw_accuracy(ax):
    curves = [
        draw_runs(ax, "train_accuracy", common.BLUE, "o-"),
        draw_runs(ax, "test_accuracy", common.RED, "s-"),
    ]
    if data.name == "mnist":
        for share, curve in zip((0.995, 0.991), curves[:2], strict=True):
            curves.append(ax.axhline(share, color=curve.get_color(), ls="--", lw=1.2))
    names = ["training", "test", "the slides: 99.5 %", "the slides: 99.1 %"]
    ax.legend(curves, names[: len(curves)], loc="lower right")
    ax.set_yscale("logit")
    ticks = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998]
    ax.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    ax.set_yticks([], minor=True)
    lowest = min(min(history.train_accuracy + history.test_accuracy) for _, history, _ in runs)
    ax.set(ylim=(0.95 * min(lowest, 0.95), 0.9985), xlim=(0.5, EPOCHS + 0.5))
    last, best = 100 * mean["test_last"], 100 * mean["test_best"]
    ax.set(title=f"Test accuracy {last:.1f} %, at best {best:.1f} %")
    ax.set_xlabel("epoch" if len(SEEDS) == 1 else f"epoch (thick: mean of {len(SEEDS)} seeds)")


def draw_confusion(ax):
    shown = np.where(np.eye(K, dtype=bool), np.nan, errors)
    ax.imshow(shown, cmap="Blues", vmin=0, vmax=1.6 * max(1, errors.max()))
    for k, j in np.ndindex(K, K):
        if confusion[k, j]:
            ax.text(j, k, confusion[k, j], ha="center", va="center", fontsize=7.5,
                    color=common.GREY if k == j else "black")  # fmt: skip
    names = [name[:8] for name in data.classes]
    ax.set_xticks(range(K), names, rotation=90 if len(max(names, key=len)) > 1 else 0)
    ax.set_yticks(range(K), names)
    ax.tick_params(length=0, labelsize=9)
    ax.spines[:].set_visible(False)
    ax.set(title=f"{len(wrong)} of {len(label)} test images misread")
    ax.set(xlabel="answer", ylabel="label")


def draw_mistakes(axes):
    for ax, i in zip(axes.flat, wrong, strict=False):
        ax.imshow(data.x_test[i, 0], vmin=0, vmax=1)
        ax.set_title(f"{data.classes[label[i]]} → {data.classes[answer[i]]}", loc="center", pad=3)
        ax.set_xlabel(f"{100 * confidence[i]:.1f} %", fontsize=9, labelpad=2)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], frame_on=False)


def draw_filters(axes, figure):
    filters = to_numpy(model.parameters()[0])[:, 0]  # (10, 1, 5, 5) -> (10, 5, 5)
    largest = abs(filters).max()
    for i, (ax, image) in enumerate(zip(axes.flat, filters, strict=True)):
        drawn = ax.imshow(image, cmap="RdBu_r", vmin=-largest, vmax=largest)
        ax.set(xticks=[], yticks=[], anchor="S" if i < 5 else "N")
        ax.spines[:].set_visible(True)
        ax.spines[:].set_color("0.7")
    figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.03, aspect=14, panchor=False)
    figure.supxlabel("red: bright pixels raise the output; blue: they lower it", fontsize=10)


fig = plt.figure(figsize=(11, 6.6), layout="constrained")
above, below = fig.subfigures(2, 1, height_ratios=[1.25, 1], hspace=0.04)
draw = [draw_loss, draw_accuracy, draw_confusion]
for ax, fill in zip(above.subplots(1, 3, width_ratios=[0.85, 1.15, 1]), draw, strict=True):
    fill(ax)
left, right = below.subfigures(1, 2, width_ratios=[1.25, 1], wspace=0.04)
left.suptitle("The mistakes it is surest of: label → answer, confidence", x=0.01, ha="left")
draw_mistakes(left.subplots(2, 5))
right.suptitle("The ten filters of the first layer", x=0.01, ha="left")
draw_filters(right.subplots(2, 5), right)
common.save_figure(fig, args, NAME)

# %% [markdown]
# ## The claim
#
# The mean over the seeds reaches this at least:

# %%
common.record(args, NAME, numbers)  # before the claim: a number that falls short is kept as well

CLAIM = {  # accuracy in training, in test after the last epoch, and after the best one
    "glyphs": (0.99, 0.85, 0.985),
    "mnist": (0.995, 0.990, 0.991) if args.full else (0.993, 0.983, 0.989),
    "fashion": (0.85, 0.80, 0.85),
}
least = (0.5, 0.3, 0.5) if args.quick else CLAIM[data.name]
for key, share in zip(("training", "test_last", "test_best"), least, strict=True):
    print(f"{key:9}  {100 * mean[key]:.2f} %, claimed {100 * share:g} %")
    assert mean[key] >= share

# %% [markdown]
# ## Try next
#
# - Take `optim.SGD(model.parameters(), lr=0.1)` for RMSprop. Does it get as far in ten epochs?
# - Let the learning rate fall: `fit(…, schedule=optim.cosine(ETA, EPOCHS))`. Do the dips go away?
# - Hold 10,000 training images back, choose the best epoch with them, and look at the test images
#   once only. How much too good was the best epoch?
# - How much of MNIST can the network read that learned printed digits, and the other way round?
# - Ask `grad` for the input instead of the weights: that is lesson 03.
