# %% [markdown]
r"""
# 13 Evaluating honestly

**Question.** A new defence is attacked with PGD, and PGD fails. Is the network robust, or was
the attack bad? An image counts as robust if *no* perturbation within ε makes the network
misclassify it. Attacks try only a few, so they bound the robust accuracy from above:

$$\text{robust accuracy} \;\le\; \frac1N \sum_{i=1}^{N} \min_{\text{attacks } a}
\mathbf 1\left[f(a(x_i)) = y_i\right].$$

Here f(x) is the predicted class, and a(x) is within ε of x. The right-hand side is the *worst
case image by image*: one success counts, whichever attack achieved it.

**Time.** One minute on two cores, most of it for training networks. **You need** lessons 06
(PGD), 07 (margin loss) and 08 (Square, a query-only attack). **After this lesson you can**
write AutoAttack as a loop, detect masked gradients, and adapt an attack to a defence.
"""

# %%
import numpy as np
from plots import evaluating_honestly as plots
from support import cli, zoo

from tinyadv import attacks, broken_defenses, checks, defvjp, evaluate, losses, models, primitive
from tinyadv.balls import Linf
from tinyadv.inputs import all_logits, quiet
from tinyadv.layers import Sequential
from tinyadv.ops import softmax

run = cli.start("13_evaluating_honestly", __doc__, data=("glyphs", "mnist"))
digits = run.load()
standard = zoo.standard(digits)  # lesson 02
robust = zoo.robust(digits)  # lesson 10
epsilon = zoo.EPSILON[digits.name]
ball = Linf(epsilon)
x, y = cli.spread(digits.x_test, digits.y_test, 8 if run.quick else 40)  # (N, 1, 28, 28), (N,)
print(f"{digits.name}, ε = {epsilon}: {len(x)} images, so one image is {1 / len(x):.1%}")

# %% [markdown]
# ## Step 1: four different attacks, image by image
#
# *AutoAttack* (Croce & Hein 2020) runs four attacks, none of which has to be tuned. **APGD-CE**
# is PGD on the cross-entropy with a step size α that adapts itself. A fixed α is too short to
# cross the ball or too long to settle at a maximum. APGD starts with α = 2ε. At a few
# checkpoints, if the loss rose in fewer than three quarters of the steps since the last one, or
# if neither α nor the best loss has changed, it halves α and returns to the best point.
#
# **APGD-T** maximises another loss, for one target class t at a time. The cross-entropy has the
# gradient p − e_y with respect to the logits, where p = softmax(z) and e_y is one-hot. If the
# true class leads by far, p equals e_y in floating point, and the gradient is zero. The
# *difference of logits ratio* (DLR) avoids this. With sorted logits z₍₁₎ ≥ z₍₂₎ ≥ …,
#
# $$\mathrm{DLR}_t(z, y) = -\frac{z_y - z_t}{z_{(1)} - \frac12 (z_{(3)} + z_{(4)})}.$$
#
# The numerator is the lead of the true class over t, so the image is fooled if DLR_t > 0. A
# constant added to all logits cancels in each difference, and a common factor in the quotient.
# So rescaling the logits changes neither the loss nor its gradient with respect to the image.
# (With z₍₂₎ or z₍₃₎ alone below, the loss is constant if y is first and t second or third.)
#
# **FAB** looks for the smallest perturbation. Like DeepFool (lesson 07) it steps to the nearest
# linearised decision boundary, but is drawn back towards the image in every step. **Square**
# uses no gradient (lesson 08). **AutoAttack is a loop:** each attack is given the images that
# survived those before it. A result counts if it lies in the ball and is misclassified.


# %%
def dlr(z, y, t):
    """The loss of each image: logits (N, K), true and target classes (N,) -> (N,)."""
    i = np.arange(len(y))
    first, _, third, fourth = np.sort(z, axis=1)[:, :-5:-1].T  # the four largest, each (N,)
    return -(z[i, y] - z[i, t]) / (first - (third + fourth) / 2)


z, t = all_logits(standard, x), (y + 1) % 10  # (N, K), (N,)
for name, changed in (("z", z), ("z + 7", z + 7), ("100 z", 100 * z)):
    size, ratio = abs(softmax(changed) - np.eye(10)[y]).max(axis=1), dlr(changed, y, t)
    print(f"{name:6} median |p − e_y| {np.median(size):.1e}, median DLR {np.median(ratio):.4f}")
    assert np.allclose(ratio, losses.dlr_targeted(z, y, t, "none"), atol=1e-3)

# %%
steps, targets, queries = (5, 2, 10) if run.quick else (15, 2, 150)  # the authors: 100, 9, 5000


def auto_attack(model, x, y):
    """Which images survive every attack, (N,) of bool, and the accuracy after each attack."""
    rng = np.random.default_rng(run.seed)
    z = all_logits(model, x)  # (N, K)
    survives = z.argmax(axis=1) == y
    z[np.arange(len(y)), y] = -np.inf
    likely = np.argsort(-z, axis=1, kind="stable")[:, :targets]  # (N, targets)
    apgd_t = {"steps": steps, "loss": losses.dlr}  # with a target, its targeted form
    plan = [("APGD-CE", attacks.apgd, {"steps": steps})]
    plan += [("APGD-T", attacks.apgd, apgd_t | {"target": t}) for t in likely.T]
    plan += [("FAB", attacks.fab, {"steps": steps, "targets": targets})]
    plan += [("Square", attacks.square, {"queries": queries, "rescale": False})]  # see step 4
    after = {"no attack": survives.mean()}
    for name, attack, settings in plan:
        left = np.flatnonzero(survives)  # the indices of the images that are left
        if len(left):
            if "target" in settings:
                settings["target"] = settings["target"][left]
            with quiet():  # no warning if a single attack fails
                seed = int(rng.integers(2**63))
                x_adv = attack(model, x[left], y[left], ball=ball, rng=seed, **settings)
            inside = abs(x_adv - x[left]).max(axis=(1, 2, 3)) <= epsilon + 1e-6
            survives[left] = ~(inside & (evaluate.predict(model, x_adv) != y[left]))
        after[name] = survives.mean()
    return survives, after


survives, after = auto_attack(robust, x, y)
cli.table(["robust network after", *after], [["accuracy", *after.values()]])

# Check: attacks.auto_attack is this loop.
effort = {"steps": steps, "targets": targets, "queries": queries}
with quiet():
    _, report = attacks.auto_attack(robust, x, y, ball=ball, rng=run.seed, details=True, **effort)
print(f"images on which ours and the library's differ: {(report.survived != survives).sum()}")
assert (report.survived == survives).all()

# %% [markdown]
# FAB and Square find nothing more here; on the fast network of the last table, Square does.
#
# ## Step 2: three ways to mask the gradient
#
# A gradient is *masked* if adversarial examples exist but the gradient does not lead to them.
#
# **Defensive distillation** (Papernot et al. 2016) trains a student on the soft predictions of
# a teacher, both with softmax(z/T) at the temperature T = 100. Since z/T reaches the usual size
# in training, z becomes much larger. The student is then used at T = 1. With a margin above
# 104, p equals e_y exactly, because e^−104 is 0 in float32. The sign in PGD makes up for a
# small gradient, but sign(0) = 0, and PGD does not move.
#
# **Rounding the pixels** to eight grey values is the simplest *feature squeezing* (Xu et al.
# 2018). The derivative of a staircase is 0 except at the jumps. **Thresholds** make pixels
# below 0.4 black and those above 0.42 white: s(x) = clip((x − 0.4)/(0.42 − 0.4), 0, 1). The
# slope is 0 on both sides. (The dashed lines in the figure belong to step 4.)
#
# **Predict first.** Multiply the logits of the *standard* network by 100. Nothing is trained,
# and no prediction changes. What robust accuracy does PGD on the cross-entropy report?

# %%
low, high = 0.4, 0.42
rounded = primitive(lambda x: np.rint(7 * x) / 7)
defvjp(rounded, lambda g, y, x: 0 * g)  # the derivative of a staircase
networks = {
    "standard": standard,
    "robust": robust,
    "distilled": zoo.distilled(digits),  # trains the teacher, then the student
    "rounded": broken_defenses.squeezed(standard, rounded),  # the network x ↦ standard(rounded(x))
    "thresholds": Sequential(*models.threshold_layers(low, high), *standard.layers),
}
margins = {}  # z_y − max of the others: the library's margin loss has the other sign
for name in ("standard", "distilled"):
    margins[name] = np.median(-losses.margin(all_logits(networks[name], x), y, "none"))
run.show(plots.masks(margins, low, high), "three masks")
assert run.quick or margins["distilled"] > 104 > margins["standard"]


def under_pgd(model, loss=losses.cross_entropy, victim=None):
    """Which images ``victim``, by default ``model``, still classifies correctly."""
    x_adv = attacks.pgd(model, x, y, ball=ball, steps=steps, loss=loss, rng=run.seed)
    return evaluate.predict(victim or model, x_adv) == y  # (N,)


results = {
    name: {"clean": evaluate.accuracy(model, x, y), "PGD": under_pgd(model).mean()}
    for name, model in networks.items()
}
scaled = under_pgd(lambda x: 100 * standard(x)).mean()
cli.table(["", "clean", "PGD"], [[name, *row.values()] for name, row in results.items()])
print(f"standard network with 100 z, under PGD: {scaled:.1%}")
defences = [] if run.quick else ["distilled", "rounded", "thresholds"]
assert results["standard"]["PGD"] < 0.1
assert run.quick or min(scaled, *(results[name]["PGD"] for name in defences)) > 0.7

# %% [markdown]
# <details><summary>Answer</summary>
#
# Approximately the clean accuracy. If the margin at the random start is above 1.04, the margin
# of 100 z is above 104, the gradient is 0, and PGD stays there. The network is as easy to fool
# as before, so this is no evidence of robustness. Nor is PGD's result for the distilled one.
# </details>
#
# ## Step 3: four checks
#
# Each check is a statement that should hold if the gradient is useful (Athalye et al. 2018).
# The table shows how often it fails; small shares are normal. In quotes: the library's alarm.
#
# 1. *Square finds little that PGD misses* ("black box").
# 2. *The loss is higher after many steps than after one* ("zero gradients").
# 3. *The gradient beats a random direction*: of two steps of length ε, the sign of the gradient
#    lowers the margin more than random signs.
# 4. *At ε = 1 the accuracy is 0*: every image of every class is within reach ("unbounded").


# %%
def symptoms(model):
    """The shares of the correctly classified images for which the four statements fail."""
    correct = evaluate.predict(model, x) == y
    x_c, y_c, from_x = x[correct], y[correct], {"steps": steps, "random_start": False}
    signs = np.random.default_rng(run.seed).choice([-epsilon, epsilon], x_c.shape)
    one = all_logits(model, attacks.fgsm(model, x_c, y_c, ball=ball))  # (n, K)
    many = all_logits(model, attacks.pgd(model, x_c, y_c, ball=ball, **from_x))
    far = all_logits(model, attacks.pgd(model, x_c, y_c, ball=Linf(1), **from_x))
    square = all_logits(model, attacks.square(model, x_c, y_c, ball=ball, queries=queries))
    random = all_logits(model, np.clip(x_c + signs.astype(x.dtype), 0, 1))
    ce, margin = losses.cross_entropy, lambda z, y: -losses.margin(z, y, "none")  # as in step 2
    return {
        "Square only": ((square.argmax(1) != y_c) & (many.argmax(1) == y_c)).mean(),
        "loss flat": (ce(many, y_c, "none") <= ce(one, y_c, "none")).mean(),
        "random better": (margin(random, y_c) < margin(one, y_c)).mean(),
        "correct at ε = 1": (far.argmax(1) == y_c).mean(),
    }


found, alarms = {name: symptoms(model) for name, model in networks.items()}, {}
cli.table(["", *found["robust"]], [[name, *row.values()] for name, row in found.items()])
for name, model in networks.items():
    with quiet():  # the library's checks, with a significance test
        report = checks.masking(model, x, y, ball=ball, steps=steps, queries=queries, rng=run.seed)
    alarms[name] = report.alarms
    print(f"checks.masking, {name}: {', '.join(report.alarms) or 'no alarm'}")
assert run.quick or not (alarms["standard"] or alarms["robust"])
assert all(alarms[name] and max(found[name].values()) > 0.3 for name in defences)

# %% [markdown]
# Where the gradient is 0, PGD (here without a random start) returns the image itself, so its
# loss does not rise, and even at ε = 1 the image is classified correctly. The thresholds raise
# no "black box" alarm: so few images may be chance (exercise 5). An alarm says that PGD is
# unreliable, not how robust the network is, and the absence of an alarm is not a proof.
#
# ## Step 4: adapt the attack to the defence
#
# An *adaptive attack* is designed for one defence (Tramèr et al. 2020): find where the gradient
# is lost, and put something useful there. **Distillation** loses it in the softmax. The margin
# as the loss (lesson 07) leaves the softmax out (Carlini & Wagner 2016); the cross-entropy of
# z/T would also do. **Rounding** loses it in the staircase. A rounded image is close to the
# image, so the backward pass uses the derivative of the identity, a *straight-through*
# estimate. (With two levels it is not close: exercise 2.) **Thresholds** lose it in the flat
# parts, so the backward pass uses the slope 1/(0.42 − 0.4) everywhere; for PGD's sign any
# positive slope would do. The forward pass stays as it is. This is *backward pass
# differentiable approximation*, BPDA (Athalye et al.).
#
# **Predict first.** (a) One defence keeps a good part of its reported robustness. Which one,
# and why? (b) Does AutoAttack, which knows none of the defences, break them too?


# %%
def with_slope(front, slope):
    """The same forward pass, with a constant slope in the backward pass (BPDA)."""
    changed = primitive(front)
    defvjp(changed, lambda g, y, x: slope * g)  # broken_defenses.straight_through does the same
    return broken_defenses.squeezed(standard, changed)


followed = networks | {  # the networks whose gradient PGD follows
    "rounded": with_slope(rounded, 1),
    "thresholds": with_slope(lambda x: np.clip((x - low) / (high - low), 0, 1), 1 / (high - low)),
}
for name, model in networks.items():
    results[name]["AutoAttack"] = auto_attack(model, x, y)[0].mean()
    left = under_pgd(followed[name], losses.margin, victim=model)  # (N,)
    results[name]["adaptive"] = left.mean()
table = [[name, *row.values()] for name, row in results.items()]
cli.table(["", "clean", "PGD as reported", "AutoAttack", "adaptive PGD"], table)

# %% [markdown]
# <details><summary>Answers</summary>
#
# (a) The thresholds. Black and white pixels are more than ε away from them, so no attack can
# cross. Distillation only rescales the logits, and rounding moves a pixel by at most 1/14. (b)
# Distillation, yes, because the DLR loss ignores the scale of the logits. On the other two,
# almost only Square succeeds. Its squares shrink after fixed numbers of queries here
# (`rescale: False`) and are still large after 150; in step 3 they become small, and fool more.
# </details>
#
# The attack on the thresholds can be adapted further: `cross_thresholds` moves only pixels that
# can come between the thresholds, and only there, from many starts.

# %%
tries = {"steps": steps, "starts": 4, "hops": 4, "queries": steps}  # hops: climbs from the best
x_adv = broken_defenses.cross_thresholds(networks["thresholds"], x, y, ball=ball, **tries)
row, crossing = results["thresholds"], evaluate.predict(networks["thresholds"], x_adv) == y
print(f"thresholds: adaptive PGD {left.mean():.1%}, cross_thresholds {crossing.mean():.1%}")
row["adaptive"] = (left & crossing).mean()  # left: of the last network, the thresholds
run.show(plots.reported_and_adaptive(results), "reported and adaptive")
assert all(results[name]["adaptive"] < 0.1 for name in defences[:2])
assert run.quick or results["standard"]["PGD"] + 0.2 < row["adaptive"] < row["PGD"] - 0.02

# %% [markdown]
# It fools no further image here. PGD overestimates the robustness of the thresholds, but most
# pixels cannot cross them. How much is real? The robust accuracy lies between a proof (lesson
# 14) and the best attack. On MNIST (ε = 0.3; certified: trained behind thresholds):
#
# | network | attack or proof | robust accuracy |
# |---|---|---|
# | fast | PGD, 50 steps, 10 starts | ≤ 89.2 %<!-- = evaluation-mnist / networks / fast / PGD --> |
# | | AutoAttack | ≤ 84.6 %<!-- = evaluation-mnist / networks / fast / AutoAttack --> |
# | certified | cross_thresholds | ≤ 93.0 %<!-- = thresholds-mnist / ensemble / adapted --> |
# | | AutoAttack | ≤ 93.2 %<!-- = evaluation-mnist / networks / certified / AutoAttack --> |
# | | proof | ≥ 91.9 %<!-- = thresholds-mnist / ensemble / certified --> |
#
# ## Limits
#
# We attacked few images with few steps and queries. On the fast network of the table (lesson
# 10, experiment `evaluation`) no check raises an alarm, yet PGD overestimates its robustness.
#
# ## Exercises
#
# `python -m lessons.exercises 13` gives you stubs (`lessons/exercises/13.py`), and checks them.
#
# 1. Compute the bound of the introduction from the results of several attacks.
# 2. Which pixels can leave their grey level? What if none can? (Hint: try two levels.)
# 3. Write a step of PGD with BPDA.
# 4. Write one against a defence that adds noise. (Hint: what is its *expected* loss?)
# 5. Square beats PGD on a few images: compute the probability that this is chance.
#
# ## References
#
# Papernot et al. (2016), "Distillation as a defense to adversarial perturbations". Carlini &
# Wagner (2016), "Defensive distillation is not robust to adversarial examples". Xu et al.
# (2018), "Feature squeezing". Athalye et al. (2018), "Obfuscated gradients". Croce & Hein
# (2020), "Reliable evaluation of adversarial robustness". Tramèr et al. (2020), "On adaptive
# attacks".

# %%
networks = {name: row | found[name] | {"alarms": alarms[name]} for name, row in results.items()}
run.record(effort=effort, robust_after=after, scaled_by_100=scaled, networks=networks)
