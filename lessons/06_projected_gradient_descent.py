# %% [markdown]
r"""
# 06 Projected gradient descent

**Question.** Lesson 04 changed an image in a single step. How much more damage can an attacker
do with the same radius ε but many small steps? And how do we know that the attack has come
close to the worst perturbation there is?

The threat model is the one of lesson 04: the perturbation δ must lie in a ball ‖δ‖ ≤ ε, and x +
δ must be an image, with pixel values between 0 and 1. Within this set the attacker looks for

$$\max_{\|\delta\| \le \epsilon,\; 0 \le x + \delta \le 1} L(f(x + \delta), y).$$

This is the *inner maximisation*; lesson 10 will minimise it over the weights of the network.
Madry et al. (2018) approximate it by *projected gradient descent* (PGD), which has become the
standard first attack on any defence.

**Time.** One minute on two cores, and a quarter of that once the networks are trained. **You
need** lessons 01 (input gradients) and 04 (FGSM). **After this lesson you can** write PGD from
scratch for three norms, choose its step size, and explain why many random starts are evidence
that PGD is close to the maximum, but not a proof.
"""

# %%
import numpy as np
from plots import projected_gradient_descent as plots
from support import cli, zoo

from tinyadv import Tensor, attacks, evaluate, grad, to_numpy
from tinyadv.balls import L1, L2, Linf
from tinyadv.losses import cross_entropy

run = cli.start("06_projected_gradient_descent", __doc__, backend=True)
xp = run.xp  # numpy, or cupy with --backend cupy
rng = np.random.default_rng(run.seed)
digits = run.load()  # 28×28 images of printed digits, unless --data says otherwise
standard = zoo.standard(digits, backend=run.backend)  # the network of lesson 02
robust = zoo.robust(digits, backend=run.backend)  # lesson 10; training accuracy on PGD's examples
epsilon = zoo.EPSILON[digits.name]
images, labels = cli.spread(digits.x_test, digits.y_test, 30 if run.quick else 150)
x, y = xp.asarray(images), xp.asarray(labels)  # (N, 1, 28, 28), (N,)

for name, model in (("standard", standard), ("robust", robust)):
    print(f"accuracy of the {name} network on clean images: {evaluate.accuracy(model, x, y):.1%}")

# %% [markdown]
# ## Step 1: which direction raises the loss most?
#
# Close to an image the loss is almost linear: L(x + δ) ≈ L(x) + gᵀδ, where L(x) is short for
# L(f(x), y) and g = ∂L/∂x is the gradient with respect to the pixels. Among all steps of length
# α, which one raises gᵀδ most?
#
# *In the ∞-norm* each pixel may move by α on its own. Pixel i contributes g_i δ_i, so its best
# move is α if g_i > 0 and −α if g_i < 0, which is α sign(g).
#
# *In the 2-norm* the Cauchy–Schwarz inequality says gᵀδ ≤ ‖g‖₂ ‖δ‖₂, with equality if δ points
# along g. The best step is α g/‖g‖₂.
#
# *In the 1-norm* the changes of all pixels share one budget. A unit of it gains |g_i| at pixel
# i, so all of it goes to the pixel with the largest |g_i|.
#
# The three answers are the directions of *steepest ascent*: the sign in FGSM is the steepest
# direction when the largest pixel measures length. Unless g is rounded to zero, its length,
# which varies by orders of magnitude between images, does not affect the step (exercise 1).


# %%
def per_image(a):
    """The sum over the pixels of each image: (N, 1, 28, 28) -> (N, 1, 1, 1)."""
    return a.sum(axis=(1, 2, 3), keepdims=True)


def steepest_linf(g):
    return xp.sign(g)


def steepest_l2(g):
    g = g / xp.maximum(abs(g).max(axis=(1, 2, 3), keepdims=True), 1e-30)  # tiny g² would underflow
    return g / xp.maximum(xp.sqrt(per_image(g * g)), 1e-30)


def steepest_l1(g):
    largest = abs(g).max(axis=(1, 2, 3), keepdims=True)
    return xp.where(abs(g) == largest, xp.sign(g), 0)


# %% [markdown]
# ## Step 2: how do we stay inside the set?
#
# After a step, δ may have left the ball. We *project* it: we take the closest point of the
# ball, in the Euclidean distance. In the ∞-norm each pixel is limited on its own, so the
# projection clips each pixel to [−ε, ε]. In the 2-norm it shortens a longer δ to ε.
#
# In the 1-norm the projection p minimises ½‖p − δ‖₂² subject to ‖p‖₁ ≤ ε. With a multiplier λ ≥
# 0 the derivative is p_i − δ_i + λ = 0 for a pixel with p_i > 0, and p_i − δ_i − λ = 0 for one
# with p_i < 0. The kink p_i = 0, with the slopes −δ_i + λ on its right and −δ_i − λ on its
# left, is the minimum if |δ_i| ≤ λ. So all |δ_i| shrink by the same λ, but not below 0:
#
# $$p_i = \mathrm{sign}(\delta_i) \max(|\delta_i| - \lambda, 0).$$
#
# The length ‖p‖₁ falls as λ grows, so bisection finds the λ with ‖p‖₁ = ε.


# %%
def project_linf(delta, epsilon):
    return xp.clip(delta, -epsilon, epsilon)


def project_l2(delta, epsilon):
    length = xp.sqrt(per_image(delta * delta))
    return delta * xp.minimum(1, epsilon / xp.maximum(length, 1e-30))


def project_l1(delta, epsilon):
    high = abs(delta).max(axis=(1, 2, 3), keepdims=True)  # this λ leaves nothing
    low = xp.zeros_like(high)  # this λ leaves everything
    for _ in range(40):
        lam = (low + high) / 2
        too_long = per_image(xp.maximum(abs(delta) - lam, 0)) > epsilon
        low, high = xp.where(too_long, lam, low), xp.where(too_long, high, lam)
    within = per_image(abs(delta)) <= epsilon
    shorter = xp.sign(delta) * xp.maximum(abs(delta) - high, 0)  # with high, ‖p‖₁ ≤ ε surely
    return xp.where(within, delta, shorter)


# %% [markdown]
# ## The algorithm
#
# Start at a random point of the ball. Then repeat: take a step of steepest ascent, project to
# the ball, and clip to the range of pixel values. The clip moves δ_i towards 0, so δ stays
# inside.


# %%
def loss_and_gradient(model, x, y):
    """The loss of each image and its gradient with respect to the pixels: (N,), (N, 1, 28, 28)."""
    image = Tensor(x)
    loss = cross_entropy(model(image), y, reduction="none")
    (g,) = grad(loss.sum(), [image])  # the loss of one image does not depend on the others
    return loss.value, g


def pgd(model, x, y, delta, epsilon, alpha, steps, steepest=steepest_linf, project=project_linf):
    """PGD from ``delta``; returns x + δ, and the loss at the start and after each step."""
    losses = []
    for _ in range(steps):
        loss, g = loss_and_gradient(model, x + delta, y)
        losses.append(loss)
        delta = project(delta + alpha * steepest(g), epsilon)
        delta = xp.clip(delta, -x, 1 - x)  # x + δ is an image
    losses.append(loss_and_gradient(model, x + delta, y)[0])
    return x + delta, xp.stack(losses)  # (N, 1, 28, 28), (steps + 1, N)


def random_start(x, epsilon):
    delta = xp.asarray(rng.uniform(-epsilon, epsilon, x.shape), x.dtype)
    return xp.clip(delta, -x, 1 - x)


# %% [markdown]
# How long should a step be? To cross the ball takes a distance of 2ε. With α = 2.5 ε/steps, any
# point can be reached from any start, and a few steps remain to move along the surface. (In the
# 1-norm, where a step moves few pixels, it is a rule of thumb.)

# %%
x_adv, _ = pgd(standard, x, y, random_start(x, epsilon), epsilon, 2.5 * epsilon / 20, steps=20)
print(f"PGD with 20 steps, ε = {epsilon}: accuracy {evaluate.accuracy(standard, x_adv, y):.1%}")
assert abs(x_adv - x).max() <= epsilon + 1e-6

# %% [markdown]
# ## Check: the library computes the same
#
# `attacks.pgd` is this loop for all norms: a ball has the methods `steepest` and `project`.
# `L1(ε, pixels=20)` divides a step among 20 pixels, as one pixel at a time takes many steps.
# The library projects to the closest point in ball *and* box. Ours does so in the ∞-norm only,
# where both limit each pixel, so in the other norms we compare the ingredients.

# %%
few, few_y = x[:20], y[:20]
ours, _ = pgd(standard, few, few_y, xp.zeros_like(few), epsilon, epsilon / 4, steps=10)
how = {"ball": Linf(epsilon), "step_size": epsilon / 4, "steps": 10, "random_start": False}
library = attacks.pgd(standard, few, few_y, **how)
print(f"PGD, largest difference to the library: {float(abs(ours - library).max()):.0e}")
assert abs(ours - library).max() < 1e-5

_, g = loss_and_gradient(robust, few, few_y)
delta = xp.asarray(rng.standard_normal(few.shape))
for ball, steepest, project in (
    (Linf(0.3), steepest_linf, project_linf),
    (L2(1.5), steepest_l2, project_l2),
    (L1(12.0, pixels=1), steepest_l1, project_l1),
):
    direction = float(abs(steepest(g) - ball.steepest(g)).max())
    nearest = float(abs(project(delta, ball.epsilon) - ball.project(delta)).max())
    print(f"{ball}: direction differs by {direction:.0e}, projection by {nearest:.0e}")
    assert direction < 1e-5 and nearest < 1e-6

# %% [markdown]
# ## Experiment: one large step or many small ones?
#
# **Predict first.** (a) FGSM is PGD from δ = 0 with a single step of length ε. Will twenty
# steps fool the network on a few more images, or on many more? (b) How small must ε be before
# the two attacks are equally good?

# %%
radii = [epsilon / 10, epsilon / 4, epsilon / 2, 3 * epsilon / 4, epsilon]
single, many = [], []
for radius in radii:
    one_step, _ = pgd(standard, x, y, xp.zeros_like(x), radius, radius, steps=1)
    twenty, _ = pgd(standard, x, y, random_start(x, radius), radius, radius / 8, steps=20)
    single.append(evaluate.accuracy(standard, one_step, y))
    many.append(evaluate.accuracy(standard, twenty, y))
cli.table(["ε", "FGSM", "PGD-20"], [*zip((f"{r:.3f}" for r in radii), single, many, strict=True)])
run.show(plots.attack_strength(radii, single, many), "attack strength")
assert many[-1] <= single[-1] and many[-1] < 0.05

# %% [markdown]
# <details><summary>Answers</summary>
#
# (a) Many more. The loss is curved, and the direction that is best at x is no longer the best a
# little further on. At the largest radius, one step leaves some images correctly classified,
# and twenty steps almost none. (So do 20 steps of ε/20 from δ = 0, without PGD's random start
# and longer path.)
#
# (b) At the smallest radius the two agree to within a few images. The loss is nearly linear
# within so small a ball, but both attacks also fool few images there, and that alone makes the
# accuracies agree. A test of linearity would compare the losses.
# </details>
#
# ## Experiment: three norms
#
# One loop serves every norm, with another `steepest` and `project`. Radii in different norms
# cannot be compared (we took 1.5 and 12, where PGD fools the standard network on most images),
# so compare the two networks within one norm: does `robust`, trained in the ∞-norm, also resist
# the other two? PGD takes 40 steps of 2.5 ε/40, "one step" has the length ε (FGSM, and FGM in
# the other norms). With 3 starts, an image counts as robust only if it survives all three runs.

# %%
balls = {"‖δ‖∞": Linf(epsilon), "‖δ‖₂": L2(1.5), "‖δ‖₁": L1(12.0, pixels=20)}
rows, norms = [], {}
for label, ball in balls.items():
    for name, model in (("standard", standard), ("robust", robust)):
        options = {"ball": ball, "steps": 10 if run.quick else 40, "rng": run.seed}
        adversarial = {
            "one step": attacks.fgsm(model, x, y, ball=ball),
            "PGD": attacks.pgd(model, x, y, **options),
            "PGD, 3 starts": attacks.pgd(model, x, y, restarts=3, **options),
        }
        found = {key: evaluate.accuracy(model, x_adv, y) for key, x_adv in adversarial.items()}
        norms[f"{name}, {label}"] = found
        rows.append([f"{name}, {label} ≤ {ball.epsilon:g}", *found.values()])
cli.table(["robust accuracy", *found], rows)
assert all(found["PGD, 3 starts"] <= found["PGD"] for found in norms.values())

# %% [markdown]
# Partly: it keeps most of its accuracy in the 2-norm, and much less in the 1-norm. One step is
# much weaker than PGD, and further starts find a few more adversarial examples.
#
# ## Experiment: have we found the maximum?
#
# The loss is not concave in δ, so gradient ascent may stop at a local maximum. Madry et al.
# looked at many random starts. If their final losses agree, more starts would hardly help.
#
# **Predict first.** Do the runs also end at the same *point*?

# %%
starts, steps = (6, 20) if run.quick else (30, 60)
correct = [to_numpy(evaluate.predict(model, x) == y) for model in (standard, robust)]
chosen = int(np.flatnonzero(correct[0] & correct[1])[0])  # an image that both classify correctly
image, label = xp.repeat(x[[chosen]], starts, axis=0), xp.repeat(y[[chosen]], starts)
curves, landscape = {}, {}
for name, model in (("standard", standard), ("robust", robust)):
    start = random_start(image, epsilon)
    ends, losses = pgd(model, image, label, start, epsilon, epsilon / 10, steps)
    first, last = (to_numpy(a).reshape(starts, -1) for a in (start, ends - image))
    i, j = np.triu_indices(starts, 1)  # all pairs of runs
    apart = np.linalg.norm(last[i] - last[j], axis=1) / np.linalg.norm(first[i] - first[j], axis=1)
    curves[name], final = to_numpy(losses), to_numpy(losses[-1])
    landscape[name] = {"mean": final.mean(), "deviation": final.std(), "apart": np.median(apart)}
    print(f"{name}: final loss {final.mean():.2f} ± {final.std():.2f}; the end points are ", end="")
    print(f"{np.median(apart):.2f} times as far apart as the starts")
run.show(plots.landscape(curves), "landscape")
assert all(found["deviation"] < 0.25 * found["mean"] for found in landscape.values())

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. In units of ε², the mean squared difference of a pixel is 2/3 for two uniform starts, and
# 2 for two unrelated corners of the ball. Such ends would be √3 ≈ 1.7 times as far apart as the
# starts (1.5 times for pixels at 0, where the clip cuts both). Corners that differ in a
# fraction q of the pixels have a mean of 4q, and the ratio √(6q), so a ratio near 1 means that
# they differ in about a fifth. There the runs may be at different maxima of nearly the same
# height, or the loss hardly depends on these pixels; the distance cannot tell which.
# </details>
#
# The final losses are similar (mind the scales), but a few are lower, and the robust network's
# agree less well: report the worst of several starts, as in the table. (The standard network's
# loss starts near 0, where the gradient is tiny, but its sign is not.) The agreement of the
# losses is Madry's reason to trust PGD as a strong *first-order* adversary, one that uses only
# gradients: if gradients led to a much better maximum, some of the starts should have found it.
#
# ## Limits
#
# PGD gives a *lower* bound on the inner maximum, and so an *upper* bound on the robust
# accuracy: every image that it fools is a counterexample. The argument above fails if gradients
# are rounded to zero or misleading: then every run stops at the same low loss (lesson 13), and
# an attack without gradients may do better (lesson 08). Lesson 14 bounds the maximum from the
# other side. We used 30 starts on one image, Madry et al. 100,000. `--data mnist` takes
# handwritten digits.
#
# ## Exercises
#
# `python -m lessons.exercises 06` gives you stubs (`lessons/exercises/06.py`), and checks them.
#
# 1. Take steps along g itself, with one α for all images. Which images hardly move at an α that
#    suits the others? (Hint: how long is the step of the pixel with the largest |g_i|?)
# 2. Without the clip to [0, 1] the loss rises more. Why is that not a better attack?
# 3. Let the loss be minus the margin z_y − max_{k≠y} z_k instead of the cross-entropy. For
#    which images does that help? (Hint: compare the gradients with respect to the logits.)
# 4. With 20 steps, what is the smallest step size with which PGD can cross the whole ball?
#
# ## References
#
# Madry, Makelov, Schmidt, Tsipras & Vladu (2018), "Towards deep learning models resistant to
# adversarial attacks". Duchi, Shalev-Shwartz, Singer & Chandra (2008), "Efficient projections
# onto the l1-ball for learning in high dimensions".

# %%
single, many = (dict(zip(map(str, radii), found, strict=True)) for found in (single, many))
run.record(epsilon=epsilon, one_step=single, PGD=many, norms=norms, landscape=landscape)
