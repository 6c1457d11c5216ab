# %% [markdown]
"""
# 06 The inner maximisation: the worst image within reach

**Question.** Which image within ε of x does the network read worst? And the other way round: how
small an ε is enough for an error?

**Equation.** The inner problem of robust training, over all δ in a ball,

    max L(f(x + δ), y)   so that   ‖δ‖ ≤ ε,   0 ≤ x + δ ≤ 1,

is climbed with projected gradient descent (PGD, on minus the loss):

    δ ← project(δ + α · steepest(∂L/∂x)),      steepest(g) = the d of length 1 with the largest gᵀd.

The smallest perturbation is the reverse: min ‖δ‖ so that argmax z(x + δ) ≠ y.

**Papers.** Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks";
Moosavi-Dezfooli et al. (2016), "DeepFool"; Carlini & Wagner (2017), "Towards evaluating the
robustness of neural networks".

**Run.** `python lessons/06_the_inner_maximisation.py`: about a minute on two cores, once
the two networks are trained and kept. On handwritten digits:
`python lessons/06_the_inner_maximisation.py --data mnist`; with `--full`, more images and starts.

**What to look for.** Gradients of different images differ by many orders of magnitude, so a step
must not be proportional to them. From any random start the loss rises in the same way and ends at
about the same value, on a standard and on a robust network, though the points where it ends are
about as far from each other as the starts were, or farther. And images lie close to a boundary:
several times closer than to the nearest image of another class. How equal the values are differs:
for the printed digits they scatter by 2 to 12 % around their mean, for the robust network of the
handwritten ones by 13 to 35 %, while from image to image the loss differs by factors of up to a
thousand there.

**What was shortened.** A few hundred test images and 50 starts, where Madry et al. use 100,000
starts. Fewer steps for Carlini and Wagner's attack than in the paper.
"""

# %% [markdown]
# ## Names and settings
#
#     x, y    (N, 1, 28, 28), (N,)   images with values 0 to 1, and their labels
#     z       (N, K)                 logits
#     δ, ε                           the perturbation, and how long it may be, in pixel values 0–1
#     α                              the length of a step
#     g       (N, 1, 28, 28)         ∂L/∂x at x + δ
#     margin  (N,)                   z_y − max_{i≠y} z_i: above 0 where the network is right

# %%
import warnings

import common
import matplotlib.pyplot as plt
import numpy as np

from tinyadv import Tensor, attacks, evaluate, grad, losses, ops, to_numpy
from tinyadv.attacks import carlini_wagner, deepfool
from tinyadv.balls import L1, L2, Linf

NAME = "06_the_inner_maximisation"
args = common.arguments(__doc__)
xp = args.xp  # numpy or cupy

IMAGES = 40 if args.quick else 1000 if args.full else 200  # test images that are attacked
STEPS = 10 if args.quick else 40  # of PGD
STARTS = 8 if args.quick else 100 if args.full else 50  # random starts for each image
CW = {"steps": 50 if args.quick else 300, "search_steps": 5, "initial_c": 10.0}  # see below
if args.full:
    CW = {}  # the defaults: 1000 steps for each of 9 values of c

data = common.load_data(args, *((4000, 500) if args.quick else ()))
networks = {"standard": common.trained_cnn(args, data), "robust": common.robust_cnn(args, data)}
EPSILON = common.EPSILON[data.name]  # that of the robust network's training
BALLS = {"‖δ‖∞": Linf(EPSILON), "‖δ‖₂": L2(1.5), "‖δ‖₁": L1(12.0, pixels=20)}
x, y = xp.asarray(data.x_test[:IMAGES]), xp.asarray(data.y_test[:IMAGES])
numbers = {"epsilon": EPSILON}  # what is recorded
for name, model in networks.items():
    share = evaluate.accuracy(model, xp.asarray(data.x_test), xp.asarray(data.y_test))
    numbers[f"clean_{name}"] = share
    print(f"{name}: {100 * share:.1f} % of {len(data.x_test)} test images read rightly")

# %% [markdown]
# ## Gradients of very different sizes
#
# Where the network is sure, its probability p for the label is nearly 1 and the loss is flat: all
# of its gradient has the factor p − 1 or another class's probability, which is nearly 0. How flat
# depends on the image. Here is the largest number of each image's gradient, from the flattest image
# to the steepest.


# %%
def gradient(model, x, y):
    """∂L/∂x and L for each image: (N, 1, 28, 28), (N,)"""
    image = Tensor(x)
    loss = losses.cross_entropy(model(image), y, reduction="none")
    (g,) = grad(ops.sum(loss), [image])  # an image's pixels act on its own loss alone
    return g, loss.value


for name, model in networks.items():
    g, _ = gradient(model, x, y)
    size = to_numpy(abs(g).reshape(len(x), -1).max(axis=1)).astype(float)  # (N,)
    low, middle, high = np.quantile(size, [0.05, 0.5, 0.95])
    numbers[f"gradients_{name}"] = [low, middle, high]
    print(f"{name:8}  5 %: {low:.0e}   median: {middle:.0e}   95 %: {high:.0e}", end="")
    print(f"   a factor of {high / low:.0e}")

# %% [markdown]
# ## The steepest direction
#
# So the gradient says where to go, and not how far. Which direction of length 1 raises a linear
# function gᵀd most? It depends on how length is measured:
#
#     ‖d‖∞ ≤ 1    every pixel by 1, up or down:  d = sign(g)             gain ‖g‖₁
#     ‖d‖₂ ≤ 1    along the gradient:            d = g / ‖g‖₂            gain ‖g‖₂
#     ‖d‖₁ ≤ 1    all on the best pixel:         d = ±1 where |g| is largest     gain ‖g‖∞
#
# That is why FGSM has a sign: it is the steepest step where all pixels may change by ε.


# %%
def steepest_linf(g):
    return xp.sign(g)


def steepest_l2(g):
    g = g / xp.maximum(abs(g).max(axis=(1, 2, 3), keepdims=True), 1e-30)  # squares must not be 0
    return g / xp.sqrt((g * g).sum(axis=(1, 2, 3), keepdims=True))


def steepest_l1(g):
    best = abs(g) == abs(g).max(axis=(1, 2, 3), keepdims=True)
    return xp.where(best, xp.sign(g), 0)


g, _ = gradient(networks["robust"], x[:20], y[:20])
for ball, ours in ((Linf(1), steepest_linf), (L2(1), steepest_l2), (L1(1), steepest_l1)):
    apart = float(abs(ours(g) - ball.steepest(g)).max())
    gain = float((g * ours(g)).sum(axis=(1, 2, 3)).mean())
    print(
        f"{type(ball).__name__:4}  mean gain {gain:8.4f}   largest difference to the library's",
        end="",
    )
    print(f" {apart:.0e}")
    assert apart < 1e-6

# %% [markdown]
# ## The projection
#
# After a step δ may be too long. The nearest point of the ball is: for ‖δ‖∞ each pixel clipped to
# ±ε; for ‖δ‖₂ the same direction, ε long; for ‖δ‖₁ every |δ_i| less by the same λ, down to 0, with
# λ such that ε is left. Here are the three, and λ is found by bisection. The library's projections
# also keep x + δ in [0, 1], by finding the nearest point of ball and box together.


# %%
def project_linf(delta, epsilon):
    return xp.clip(delta, -epsilon, epsilon)


def project_l2(delta, epsilon):
    length = xp.sqrt((delta * delta).sum(axis=(1, 2, 3), keepdims=True))
    return delta * xp.minimum(1, epsilon / length)


def project_l1(delta, epsilon):
    low = 0 * abs(delta).max(axis=(1, 2, 3), keepdims=True)  # λ: too little is taken
    high = abs(delta).max(axis=(1, 2, 3), keepdims=True)  # and too much
    for _ in range(40):
        middle = (low + high) / 2
        length = xp.maximum(abs(delta) - middle, 0).sum(axis=(1, 2, 3), keepdims=True)
        low, high = (
            xp.where(length > epsilon, middle, low),
            xp.where(length > epsilon, high, middle),
        )
    return xp.sign(delta) * xp.maximum(abs(delta) - high, 0)


delta = xp.asarray(np.random.default_rng(args.seed).standard_normal((20, 1, 28, 28)))
for ball, ours in zip(BALLS.values(), (project_linf, project_l2, project_l1), strict=True):
    near = ours(delta, ball.epsilon)
    apart = float(abs(near - ball.project(delta)).max())
    print(
        f"{type(ball).__name__:4}  length {float(ball.norm(near).max()):.3f} of {ball.epsilon}",
        end="",
    )
    print(f"   largest difference to the library's {apart:.0e}")
    assert apart < 1e-6

# %% [markdown]
# ## PGD
#
# Start, gradient, step, project. A step of α = 2.5 ε / steps can reach any point of the ball from
# any other in less than all the steps, and the rest of them is for moving along its surface.


# %%
def climb(model, x, y, ball, delta, steps):
    """x + δ after ``steps`` steps from ``delta``, and the losses on the way: (steps + 1, N)."""
    alpha = 2.5 * ball.epsilon / steps
    curve = []
    for _ in range(steps):
        g, loss = gradient(model, x + delta, y)
        curve.append(loss)
        delta = ball.project(delta + alpha * ball.steepest(g), low=-x, high=1 - x)
    curve.append(gradient(model, x + delta, y)[1])
    return x + delta, np.array([to_numpy(loss) for loss in curve])


few_x, few_y = x[:20], y[:20]
for label, ball in BALLS.items():
    start = ball.random(few_x, np.random.default_rng(args.seed))
    ours, curve = climb(networks["robust"], few_x, few_y, ball, start, STEPS)
    theirs = attacks.pgd(networks["robust"], few_x, few_y, ball=ball, steps=STEPS, rng=args.seed)
    loss = to_numpy(gradient(networks["robust"], theirs, few_y)[1])
    apart = float(abs(loss - curve[-1]).max())
    numbers[f"pgd_against_the_library_{type(ball).__name__}"] = apart
    print(f"{label}  loss {curve[0].mean():.3f} → {curve[-1].mean():.3f}", end="")
    print(f"   largest difference to the library's {apart:.1e}")
    assert apart < 1e-3

# %% [markdown]
# ## Why not the gradient itself?
#
# The same loop with δ ← project(δ + α g), no sign and no normalisation, for several α, from the
# images themselves and on the standard network. A flat image never leaves its place, or a steep
# one leaps from corner to corner.


# %%
def climb_raw(model, x, y, ball, alpha, steps):
    delta = xp.zeros_like(x)
    for _ in range(steps):
        g, _ = gradient(model, x + delta, y)
        delta = ball.project(delta + alpha * g, low=-x, high=1 - x)
    return x + delta


model, ball = networks["standard"], Linf(EPSILON)
raw = {}
for alpha in (0.01, 1.0, 100.0):
    raw[alpha] = evaluate.accuracy(model, climb_raw(model, x, y, ball, alpha, STEPS), y)
    print(f"raw gradients, α = {alpha:6g}: {100 * raw[alpha]:5.1f} % still read rightly")
found = climb(model, x, y, ball, xp.zeros_like(x), STEPS)[0]
normalised = evaluate.accuracy(model, found, y)
numbers |= {"raw": list(raw.values()), "normalised": normalised}
print(f"of length α, 2.5 ε / steps: {100 * normalised:5.1f} %")

# %% [markdown]
# ## The table: three balls, one step (FGSM), more steps, more starts

# %%
rows = []
for label, ball in BALLS.items():
    for name, model in networks.items():
        options = {"ball": ball, "rng": args.seed}
        found = {
            "FGSM": attacks.fgsm(model, x, y, ball=ball),
            "steps": attacks.pgd(model, x, y, steps=STEPS, **options),
            "restarts": attacks.pgd(model, x, y, steps=STEPS, restarts=3, **options),
        }
        share = {key: evaluate.accuracy(model, x_adv, y) for key, x_adv in found.items()}
        numbers[f"accuracy_{type(ball).__name__}_{name}"] = share
        clean = evaluate.accuracy(model, x, y)
        cells = [f"{100 * value:.1f} %" for value in (clean, *share.values())]
        rows.append([f"{label} ≤ {ball.epsilon:g}", name, *cells])
common.table(rows, ["ball", "network", "clean", "FGSM", f"{STEPS} steps", "3 starts"])

# %% [markdown]
# ## The landscape
#
# The problem is not concave, and PGD may end in a local maximum that is a poor one. Madry et al.
# looked: from many random starts in the ∞-ball, how does the loss rise, and where does it end?

# %%
both = np.ones(len(x), bool)
for model in networks.values():
    both &= to_numpy(evaluate.predict(model, x) == y)
labels = data.y_test[:IMAGES]
CHOSEN = [np.flatnonzero(both & (labels == k))[0] for k in np.unique(labels[both])[:4]]
ball = Linf(EPSILON)
some_x = xp.repeat(x[xp.asarray(CHOSEN)], STARTS, axis=0)  # (4 · STARTS, 1, 28, 28)
some_y = xp.repeat(y[xp.asarray(CHOSEN)], STARTS, axis=0)
landscape = {}
for name, model in networks.items():
    start = ball.random(some_x, np.random.default_rng(args.seed))
    end, curve = climb(model, some_x, some_y, ball, start, STEPS)
    curve = curve.reshape(STEPS + 1, len(CHOSEN), STARTS)
    end = to_numpy(end).reshape(len(CHOSEN), STARTS, -1)  # -> (4, STARTS, 784)
    begin = to_numpy(some_x + start).reshape(end.shape)
    landscape[name] = curve, begin, end


def mean_distance(points):
    """The mean ‖a − b‖₂ over all pairs: (n, D) -> float"""
    i, j = np.triu_indices(len(points), 1)
    return float(np.linalg.norm(points[i] - points[j], axis=1).mean())


for name, (curve, begin, end) in landscape.items():
    final = curve[-1]  # (4, STARTS)
    spread = final.std(axis=1) / final.mean(axis=1)
    apart = np.array([mean_distance(p) / mean_distance(q) for p, q in zip(end, begin, strict=True)])
    numbers[f"landscape_{name}"] = {
        "start": curve[0].mean(axis=1),
        "end": final.mean(axis=1),
        "spread": spread,
        "apart": apart,
    }
    for i, k in enumerate(CHOSEN):
        print(f"{name:8}  a {data.classes[labels[k]]}: loss {curve[0, i].mean():8.4f} → ", end="")
        print(f"{final[i].mean():7.3f} ± {100 * spread[i]:4.1f} %   the ends are ", end="")
        print(f"{apart[i]:.2f} times as far apart as the starts")

# %% [markdown]
# ## DeepFool: straight to the nearest boundary
#
# Now without ε. For each other class k, f = z_k − z_y is below 0 and must reach it. If the network
# were linear, f would do so at the distance |f| / ‖w‖₂, w = ∇f, in the direction of w. Go to the
# nearest of these nine boundaries and 2 % beyond, look again, and stop at the first error.


# %%
def deepfool_on_one(model, x, y, steps=50, overshoot=0.02):
    """For a single image (1, 1, 28, 28) and its label, a number."""
    r, x_adv = xp.zeros_like(x), x
    for _ in range(steps):
        image = Tensor(x_adv)
        z = model(image)
        if int(z.value.argmax()) != y:
            break
        nearest, step = np.inf, None
        for k in range(z.shape[1]):
            if k != y:
                f = z[0, k] - z[0, y]
                (w,) = grad(f, [image])
                length = float(xp.sqrt((w * w).sum()))
                if abs(float(f)) / length < nearest:
                    nearest = abs(float(f)) / length
                    step = nearest * w / length
        r = r + step
        x_adv = xp.clip(x + (1 + overshoot) * r, 0, 1)
    return x_adv


model = networks["standard"]
ours = xp.concatenate([deepfool_on_one(model, x[i : i + 1], int(labels[i])) for i in range(5)])
theirs = deepfool(model, x[:5], y[:5])
apart = float(abs(ours - theirs).max())
numbers["deepfool_against_the_library"] = apart
print("lengths:", to_numpy(L2(1).norm(ours - x[:5])).round(3))
print(f"largest difference to the library's: {apart:.1e}")
assert apart < 1e-3

# %% [markdown]
# ## Carlini and Wagner: descend on both at once
#
# DeepFool stops at the first error. To find the shortest δ, make the error a part of the loss,
#
#     ‖δ‖₂² + c · max(margin, 0),      x + δ = (1 + tanh w) / 2,
#
# and let Adam change w: whatever w is, x + δ is an image. Here is the descent for one c; of all
# points on the way that are misread, the nearest is kept.


# %%
def descend(model, x, y, c, steps, rate=0.01, beta1=0.9, beta2=0.999):
    """The nearest misread points that were passed, and their ‖δ‖₂, ∞ if none."""
    w = xp.arctanh((2 * x - 1) * 0.999999)
    m, v = xp.zeros_like(w), xp.zeros_like(w)
    best, best_distance = x, xp.full_like(x[:, 0, 0, 0], xp.inf)
    for t in range(1, steps + 1):
        leaf = Tensor(w)
        x_adv = (1 + ops.tanh(leaf)) / 2
        distance = ops.sum((x_adv - x) ** 2, axis=(1, 2, 3))  # (N,)
        margin = -losses.margin(model(x_adv), y, reduction="none")  # (N,)
        better = (margin < 0) & (distance < best_distance)
        best = xp.where(better[:, None, None, None], x_adv.value, best)
        best_distance = xp.where(better, distance.value, best_distance)
        (g,) = grad(ops.sum(distance + c * ops.relu(margin)), [leaf])
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        rate_t = rate * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        w = w - rate_t * m / (xp.sqrt(v) + 1e-8)
    return best, xp.sqrt(best_distance)


one_c = {"search_steps": 1, "abort_early": False, "start": "image", "details": True}
steps = 50 if args.quick else 150
for c in (0.1, 1.0, 10.0):
    _, ours = descend(model, x[:10], y[:10], c, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", attacks.AttackWarning)  # with a small c it finds nothing
        _, theirs = carlini_wagner(model, x[:10], y[:10], initial_c=c, steps=steps, **one_c)
    ours, theirs = to_numpy(ours), to_numpy(theirs.distance)
    hit = np.isfinite(ours) & np.isfinite(theirs)
    numbers[f"descent_c_{c:g}"] = {
        "found": int(hit.sum()),
        "distance": float(ours[hit].mean()) if hit.any() else None,
    }
    print(f"c = {c:4g}: {hit.sum():2} of 10 found", end="")
    print(f", at a mean distance of {ours[hit].mean():.3f}" if hit.any() else "")
    assert abs(ours[hit] - theirs[hit]).max(initial=0) < 0.01
    assert np.isfinite(ours).sum() == np.isfinite(theirs).sum()

# %% [markdown]
# With a small c little is found, with a large c it is found farther away than need be. So the
# library looks for the smallest c that works, for each image by bisection. And since descent from x
# heads for the class that is second there, which need not be the nearest, it starts from DeepFool's
# point (`start="image"` is the paper's way).
#
# Either may fail: on the robust network of the handwritten digits DeepFool finds an error for some
# 60 % of the images only, since the linear picture is a bad one there.

# %%
n = 20 if args.quick else 200 if args.full else 48  # images


def distances(attack, model, x, y=None, **options):
    """‖δ‖₂ of the smallest perturbations, on the host; ∞ where the attack finds none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", attacks.AttackWarning)  # ∞ says it as well
        return to_numpy(attack(model, x, y, details=True, **options)[1].distance)


far, near = {}, {}
for name, model in networks.items():
    far[name] = distances(deepfool, model, x[:n], y[:n])
    near[name] = distances(carlini_wagner, model, x[:n], y[:n], **CW)
    share = float(np.mean(near[name] <= far[name]))
    numbers[f"smallest_{name}"] = {
        "deepfool": np.median(far[name]),
        "carlini_wagner": np.median(near[name]),
        "not_farther": share,
        "found": [int(np.isfinite(found[name]).sum()) for found in (far, near)],
    }
    print(f"{name:8}  median ‖δ‖₂: DeepFool {np.median(far[name]):.3f}", end="")
    print(f", C&W {np.median(near[name]):.3f}; C&W not farther for {100 * share:.0f} %", end="")
    print("; found for {} and {} of {n} images".format(*numbers[f"smallest_{name}"]["found"], n=n))

# %% [markdown]
# ## Points close to the boundary
#
# Strictly, these are upper bounds: a shorter δ may exist that no attack has found. How close is the
# boundary, then? A yardstick is the distance from each image to the nearest training image of
# another class. Another one is noise: in a random direction, the same way and farther does nothing.
# The boundary is close in a few directions only, and the gradient knows them.


# %%
def as_rows(images):  # (N, 1, 28, 28) -> (N, 784)
    return to_numpy(images).reshape(len(images), -1)


rows_x, rows_train = as_rows(x[:n]), as_rows(data.x_train[:10_000])
squares = (rows_x**2).sum(1)[:, None] + (rows_train**2).sum(1) - 2 * rows_x @ rows_train.T
squares[labels[:n, None] == data.y_train[:10_000]] = np.inf  # (n, 10000)
to_other_class = np.sqrt(squares.min(axis=1))
numbers["to_another_class"] = float(np.median(to_other_class))
print(f"median distance to the nearest image of another class: {np.median(to_other_class):.2f}")

noise = np.random.default_rng(args.seed).standard_normal(rows_x.shape)
noise /= np.linalg.norm(noise, axis=1, keepdims=True)  # of length 1
margins, right = {}, {}
for name, model in networks.items():
    margins[name] = to_numpy(-losses.margin(model(x[:n]), y[:n], reduction="none"))
    right[name] = margins[name] > 0
    keep = np.flatnonzero(right[name] & np.isfinite(near[name]))
    moved = np.clip(rows_x[keep] + 3 * near[name][keep, None] * noise[keep], 0, 1)
    moved = xp.asarray(moved.reshape(-1, 1, 28, 28).astype(rows_x.dtype))
    kept = evaluate.accuracy(model, moved, y[xp.asarray(keep)])
    closer = np.median(to_other_class) / np.median(near[name])
    numbers[f"boundary_{name}"] = {"closer": closer, "noise_thrice_as_far": kept}
    print(f"{name:8}  the boundary is {closer:.1f} times closer than that; ", end="")
    print(f"after noise 3 times as long {100 * kept:.0f} % are still read rightly")

# %% [markdown]
# Who is close to it? Images with a small margin are, so a network's doubt says something about the
# distance. And adversarial examples are: those that PGD finds in the 2-ball have crossed, and lie
# nearer to a boundary than images do. DeepFool measures the way back to a boundary, and, for
# comparison, the images' own distance.

# %%
for name, model in networks.items():
    keep = right[name] & np.isfinite(near[name])
    rank = [np.argsort(np.argsort(v[keep])) for v in (margins[name], near[name])]
    correlation = float(np.corrcoef(*rank)[0, 1])  # of ranks: Spearman's
    x_adv = attacks.pgd(model, x[:n], y[:n], ball=BALLS["‖δ‖₂"], steps=STEPS, rng=args.seed)
    fooled = to_numpy(evaluate.predict(model, x_adv) != y[:n]) & right[name]
    back = distances(deepfool, model, x_adv)[fooled]
    clean = float(np.median(far[name]))
    numbers[f"boundary_{name}"] |= {"rank_correlation": correlation, "fooled": int(fooled.sum())}
    numbers[f"boundary_{name}"]["back"] = float(np.median(back)) if len(back) else None
    print(f"{name:8}  margin and distance: rank correlation {correlation:.2f}", end="")
    print(f"; {fooled.sum()} adversarial examples", end="")
    print(f" at {np.median(back):.2f} from a boundary" if len(back) else "", end="")
    print(f", the images at {clean:.2f}")

# %% [markdown]
# ## The figure

# %%
COLOURS = [common.BLUE, common.ORANGE, common.GREEN, common.PURPLE]


def draw_landscape(ax, name):
    curve = landscape[name][0]  # (STEPS + 1, 4, STARTS)
    bottom, top = max(1e-4, curve[0].min() / 2), 2 * curve.max()
    at = top
    for i in np.argsort(-curve[-1].mean(axis=1)):  # the highest first, for the names at the right
        ax.plot(np.maximum(curve[:, i], 1e-9), color=COLOURS[i], linewidth=0.6, alpha=0.35)
        at = min(curve[-1, i].mean(), at * (bottom / top) ** 0.045)
        ax.text(STEPS * 1.015, at, data.classes[labels[CHOSEN[i]]][:8], color=COLOURS[i],
                va="center", fontweight="bold")  # fmt: skip
    ax.set(yscale="log", ylim=(bottom, top), xlim=(0, STEPS), xlabel="step of PGD")
    ax.set_title(f"{name.capitalize()} network: {STARTS} starts for each of four images")


def draw_pairs(ax):
    """Each dot a pair of maxima of one image: how far apart, and how different in height."""
    for name, colour, marker in (("standard", common.BLUE, "o"), ("robust", common.RED, "^")):
        curve, begin, end = landscape[name]
        i, j = np.triu_indices(STARTS, 1)
        apart, height = [], []
        for image in range(len(CHOSEN)):
            final, ends = curve[-1, image], end[image]
            unit = mean_distance(begin[image])
            apart.append(np.linalg.norm(ends[i] - ends[j], axis=1) / unit)
            height.append(abs(final[i] - final[j]) / final.mean())
        ax.scatter(np.concatenate(apart), 100 * np.concatenate(height), s=3, alpha=0.25,
                   color=colour, marker=marker, linewidths=0, rasterized=True)  # fmt: skip
        ax.scatter([], [], s=25, color=colour, marker=marker, label=name)
    ax.set(xlim=(0, None), ylim=(0, None), title="Local maxima: far apart")
    ax.set(xlabel="distance of two maxima (two starts: 1)", ylabel="difference in loss, %")
    ax.legend(loc="upper left", handletextpad=0.1, borderaxespad=0)


def draw_margins(ax):
    for name, colour, marker in (("standard", common.BLUE, "o"), ("robust", common.RED, "^")):
        keep = right[name]
        ax.scatter(margins[name][keep], near[name][keep], s=14, alpha=0.7, color=colour,
                   marker=marker, linewidths=0, label=name)  # fmt: skip
    ax.set(xlim=(0, None), ylim=(0, None), title="A small margin, a short way")
    ax.set(xlabel="margin of the logits", ylabel="smallest ‖δ‖₂")


def draw_distances(ax):
    curves = [
        ("boundary, standard", near["standard"], common.BLUE, "-"),
        ("boundary, robust", near["robust"], common.RED, "--"),
        ("another class", to_other_class, common.GREY, ":"),
    ]
    for label, values, colour, style in curves:
        ax.plot(np.sort(values), np.linspace(0, 100, len(values)), style, color=colour, label=label)
    ax.set(xlim=(0, 1.5 * to_other_class.max()), ylim=(0, 100))
    ax.set(title="The boundary is near", ylabel="% of images within", xlabel="distance, ‖·‖₂")
    ax.legend(loc="lower right", borderaxespad=0, handlelength=1.3, fontsize=9)


fig = plt.figure(figsize=(11, 7), layout="constrained")
above, below = fig.subfigures(2, 1, height_ratios=[1.1, 1], hspace=0.04)
for ax, name in zip(above.subplots(1, 2), networks, strict=True):
    draw_landscape(ax, name)
    if name == "standard":
        ax.set_ylabel("cross-entropy")
for ax, fill in zip(below.subplots(1, 3), (draw_pairs, draw_margins, draw_distances), strict=True):
    fill(ax)
common.save_figure(fig, args, NAME)

# %% [markdown]
# ## The claims

# %%
common.record(args, NAME, numbers)  # before the claims: a number that falls short is kept as well

for name in networks:
    low, _, high = numbers[f"gradients_{name}"]
    least = 10 if args.quick else 100
    common.claim(f"gradients differ by a factor of {least} or more ({name})", high / low > least)
common.claim(
    "steps along raw gradients leave more images read rightly, whatever α",
    normalised < min(raw.values()),
)
for ball in BALLS.values():
    for name in networks:
        share = numbers[f"accuracy_{type(ball).__name__}_{name}"]
        more = share["restarts"] <= share["steps"] <= share["FGSM"] + 0.02
        common.claim(f"more steps and more starts find more ({type(ball).__name__}, {name})", more)
for name in networks:
    found = numbers[f"landscape_{name}"]
    spread, apart = float(np.mean(found["spread"])), float(np.mean(found["apart"]))
    most = 0.4 if args.quick or name == "robust" else 0.2
    common.claim(f"the ends are about equally high: ± {100 * spread:.0f} % ({name})", spread < most)
    common.claim(f"and {apart:.2f} times as far apart as the starts ({name})", apart > 0.5)
    rises = np.all(found["end"] > found["start"])
    common.claim(f"and higher than the starts ({name})", rises)
for name in networks:
    least = numbers[f"smallest_{name}"]
    common.claim(f"C&W goes no farther than DeepFool ({name})", least["not_farther"] >= 0.95)
    shorter = least["carlini_wagner"] < least["deepfool"]
    common.claim(f"and in the median less far ({name})", shorter)
    close_by = numbers[f"boundary_{name}"]
    common.claim(f"the boundary is closer than another class ({name})", close_by["closer"] > 1.5)
    common.claim(
        f"noise three times as long does little ({name})", close_by["noise_thrice_as_far"] > 0.9
    )
    least = 0.2 if args.quick else 0.4
    common.claim(f"a small margin, a short way ({name})", close_by["rank_correlation"] > least)
    if close_by["fooled"] >= 5:
        nearer = close_by["back"] < numbers[f"smallest_{name}"]["deepfool"]
        common.claim(f"adversarial examples are nearer to a boundary than images ({name})", nearer)
farther = np.median(near["robust"]) > 1.2 * np.median(near["standard"])
common.claim("the robust network's boundary is farther away", farther)

# %% [markdown]
# ## Try next
#
# - Take `alpha` in `climb` ten times smaller and ten times larger. Which of the two hurts more?
# - Climb `losses.margin` instead of the cross-entropy (`attacks.pgd(…, loss=losses.margin)`).
# - `L1(12.0)` puts the whole step on one pixel. Why is it weaker than `pixels=20`?
# - Run DeepFool with `norm="linf"`. How does the median compare to the ε of the training?
# - `carlini_wagner(…, start="image")`: for how many images is it farther than DeepFool, and does it
#   end in another class there?
# - Lesson 07 puts `climb` inside the training loop.
