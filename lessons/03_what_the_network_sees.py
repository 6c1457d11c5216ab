# %% [markdown]
r"""
# 03 What the network sees

**Question.** "What must change in this image so that the network thinks it is an airplane?" We
have no airplanes, so we ask the question for digits: what must change in this 3 so that the
network of lesson 02 predicts an 8? Which pixels does its prediction depend on? And what does it
predict for an image that shows nothing at all?

Training moves the weights against the gradient of a loss. Now the weights are frozen, and the
*image* x moves against the gradient of the cross-entropy L of the logits f(x) and a target
class t that we choose (η: learning rate):

$$x \leftarrow x - \eta\, \frac{\partial L(f(x), t)}{\partial x}.$$

Szegedy et al. (2014) found that on photographs a change which is hard to notice can be enough.
An image that was deliberately changed to make the network misclassify it is called an
*adversarial example*; lesson 04 makes the term precise.

**Time.** 20 seconds on two cores, most of it for training the network. **You need** lessons 01
(the gradient of the cross-entropy, p − y) and 02 (the network). **After this lesson you can**
compute a saliency map, change an image until the network predicts a class of your choice, and
explain which losses lose their gradient when a softmax saturates.
"""

# %%
import numpy as np
from plots import what_the_network_sees as plots
from support import cli, zoo

from tinyadv import Tensor, attacks, evaluate, grad, losses, ops

run = cli.start("03_what_the_network_sees", __doc__)
rng = np.random.default_rng(run.seed)
digits = run.load()  # 28×28 images of printed digits, unless --data says otherwise
model = zoo.standard(digits)  # the network of lesson 02
K = len(digits.classes)
predicted = evaluate.predict(model, digits.x_test)
print(f"test accuracy {np.mean(predicted == digits.y_test):.1%}")

correct = [np.flatnonzero((digits.y_test == k) & (predicted == k))[0] for k in range(K)]
x, y = digits.x_test[correct], digits.y_test[correct]  # (K, 1, 28, 28), (K,): one of each class

# %% [markdown]
# ## Step 1: which pixels does the prediction depend on?
#
# The network computes a logit z_k for each class k. If pixel i changes by a small δ_i, the
# logit of the true class y changes by approximately
#
# $$\sum_i g_i \delta_i, \qquad g_i = \frac{\partial z_y}{\partial x_i}.$$
#
# So |g_i| says how much pixel i matters to this logit. (The prediction also depends on the
# other logits.) The picture of all |g_i| is called a *saliency map* (Simonyan et al., 2014).
#
# To test the map, we move 20 pixels of each image by 0.1, each against its gradient: once the
# 20 with the largest |g_i|, and once 20 at random. By the formula, the logit falls by
# approximately 0.1 times the sum of |g_i| over these pixels.


# %%
def true_logit(x):
    """The logit of the true class of each image: (K, 1, 28, 28) -> (K,)."""
    return (np.eye(K)[y] * model(x)).sum(axis=1)  # (K, K), one-hot rows -> (K,)


image = Tensor(x)
(g,) = grad(true_logit(image).sum(), [image])  # (K, 1, 28, 28): each from its own logit
saliency = abs(g).reshape(K, -1)  # (K, 784)

falls = {}
for name, score in (("most salient", saliency), ("random", rng.random(saliency.shape))):
    lowest = np.sort(score, axis=1)[:, -20:-19]  # (K, 1): the 20th largest score
    mask = (score >= lowest).reshape(x.shape)  # 20 pixels of each image
    fall = true_logit(x) - true_logit(x - 0.1 * np.sign(g) * mask)
    falls[name] = float(fall.mean())
    print(f"20 {name} pixels: the logit falls by {falls[name]:.2f} on average; ", end="")
    print(f"the gradient says {0.1 * (abs(g) * mask).sum() / K:.2f}")
assert falls["most salient"] > 3 * falls["random"]

# %% [markdown]
# The salient pixels matter several times as much as random ones. The formula is close, but not
# exact, because a logit is only approximately linear in the pixels.
#
# ## Step 2: the gradient of a loss with respect to the pixels
#
# To change the prediction, the logit of the target t must become the largest of all. Our loss
# is the cross-entropy L = −log p_t of the *target*, where p = softmax(z). By lesson 01 its
# gradient with respect to the logits is p − e, where e is the one-hot vector of the target. By
# the chain rule
#
# $$\frac{\partial L}{\partial x} = \sum_k (p_k - e_k) \frac{\partial z_k}{\partial x}.$$
#
# Suppose that the network is sure of the true class: p_y ≈ 1 and all other p_k ≈ 0. Then p − e
# is approximately 1 for the true class, −1 for the target and 0 elsewhere. A small descent step
# raises z_t − z_y by η‖∇z_t − ∇z_y‖², however small p_t is. (The gradient of the *true* class's
# cross-entropy vanishes here, because then p − e ≈ 0. Lesson 05 meets this problem.)


# %%
def loss_and_gradient(loss, x, target):
    """The loss of each image, its gradient with respect to the pixels, and p, (N, K)."""
    image = Tensor(x)
    z = model(image)
    value = loss(z, target, reduction="none")  # (N,)
    (g,) = grad(value.sum(), [image])  # the loss of one image does not depend on the others
    return value.value, g, ops.softmax(z.value, axis=1)


# %% [markdown]
# ## Step 3: change the image until the prediction changes
#
# We take one image of each digit and each of the other nine classes as target: 90 pairs. An
# image stops as soon as the network predicts the target, and its pixels are clipped to [0, 1].
# In the picture of the change, red pixels gain ink and blue pixels lose it.
#
# **Predict first.** With η = 0.1, how many of the 90 pairs reach their target, and in how many
# steps? Will the changed images look like the target?


# %%
def change(x, target, eta=0.1, steps=50):
    """Descend the loss of the target; returns the images and the steps each of them took."""
    taken = np.zeros(len(x), int)
    for _ in range(steps):
        _, g, p = loss_and_gradient(losses.cross_entropy, x, target)
        under_way = p.argmax(axis=1) != target  # (N,)
        x = np.where(under_way[:, None, None, None], np.clip(x - eta * g, 0, 1), x)
        taken += under_way
    return x, taken


source, target = np.nonzero(~np.eye(K, dtype=bool))  # (90,), (90,): all pairs of two classes
changed, taken = change(x[source], target)
reached = evaluate.predict(model, changed) == target
size = abs(changed - x[source]).sum(axis=(1, 2, 3))  # (90,)
print(
    f"{reached.sum()} of {len(source)} pairs reach the target; median {np.median(taken):.0f} steps"
)
shown = [np.flatnonzero((source == 3) & (target == 8))[0]]  # the pair of the question
shown += list(np.argsort(size)[[45, 81]])  # a typical change, and a large one
rows = [a[shown] for a in (x[source], saliency[source], changed, source, target)]
run.show(plots.what_must_change(*rows, digits.classes), "what must change")
assert run.quick or reached.mean() > 0.95

# %% [markdown]
# <details><summary>Answers</summary>
#
# All or almost all pairs reach their target, most of them in a few steps. We still see the
# original digit, and not the target. The changes are spread over many pixels, and most of them
# are faint.
# </details>
#
# These images are adversarial examples, but not the *closest* ones: nothing in the loss keeps
# the change small. Lesson 05 adds such a term.
#
# ## Step 4: an image of nothing
#
# Now x starts as noise: each pixel is uniform between 0 and 1. The softmax cannot say "none of
# them", because its probabilities always add up to 1. The closest to that would be 1/K each.

# %%
noise = rng.random((20 if run.quick else 100, 1, 28, 28)).astype(np.float32)
p_noise = ops.softmax(model(noise), axis=1).value  # (N, K)
counts = np.bincount(p_noise.argmax(axis=1), minlength=K)
print("predictions for noise:", dict(zip(digits.classes, counts.tolist(), strict=True)))
print(f"median probability of the predicted class: {np.median(p_noise.max(axis=1)):.1%}")

# %% [markdown]
# The network favours a few classes, so it answers even where there is nothing to see. Shusen
# Wang's slides "Data Evasion Attacks" turn noise into a *fake image* of the class 0 with ten
# steps of η = 0.5 and no clipping. They print the loss before each step. Their loss is Keras's
# `binary_crossentropy`, which is meant for independent yes-or-no questions, one for each class.
# For a label y_k (0 or 1) and a predicted probability q_k it is
#
# $$-\frac{1}{K} \sum_k \left[ y_k \log q_k + (1 - y_k) \log(1 - q_k) \right].$$
#
# The slides pass the two arguments in the wrong order. The predictions p_k take the place of
# the labels y_k, and the one-hot target e_k takes the place of q_k. To avoid log 0, Keras clips
# q_k to the range from 10⁻⁷ to 1 − 10⁻⁷, in 32-bit numbers.
#
# At the target q_t becomes 1 − 10⁻⁷. Then log q_t ≈ 0, and log(1 − q_t) = −15.94 (not −16.12,
# because 32-bit numbers round 1 − 10⁻⁷ to 1 − 1.19·10⁻⁷), so the bracket is −15.94 (1 − p_t).
# Every other q_k becomes 10⁻⁷. Then log q_k = −16.12 and log(1 − q_k) ≈ 0, so the bracket is
# −16.12 p_k. These p_k add up to 1 − p_t, and K = 10, so the whole loss is
#
# $$L_{\mathrm{swapped}} = \frac{15.94 + 16.12}{10} (1 - p_t) = 3.206\, (1 - p_t).$$
#
# It is linear in the probability of the target, whereas the cross-entropy is −log p_t.


# %%
def swapped(z, target, reduction="none"):
    """Keras's ``binary_crossentropy(prediction, target)`` of each image: (N, K), (N,) -> (N,)."""
    p = ops.softmax(z, axis=1)
    e = np.eye(K, dtype=np.float32)[target]  # (N, K): one-hot rows
    q = np.clip(e, np.float32(1e-7), np.float32(1) - np.float32(1e-7))
    return -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean(axis=1)


def fake_images(loss, x, target, eta=0.5, steps=10):
    """Descend without clipping; returns the images, and loss and p_t at each step."""
    trace = []
    for step in range(steps + 1):
        loss_now, g, p = loss_and_gradient(loss, x, target)
        trace.append((loss_now, p[np.arange(len(x)), target]))
        if step < steps:
            x = x - eta * g
    return x, np.array(trace)  # (N, 1, 28, 28), (steps + 1, 2, N)


# %% [markdown]
# The slides' first loss is 3.039, so by the formula their noise had p₀ = 1 − 3.039/3.206 ≈
# 0.05. We compare with the noise image whose p_t is closest to this: for the target 0 on MNIST,
# as in the slides, and otherwise for any target.

# %%
SLIDES = [3.039, 2.647, 1.007, 0.2219, 0.01752, 0.01354, 0.01131, 0.00976, 0.00869, 0.00788]
SLIDES += [3.206 * (1 - 0.99777)]  # by the formula, from their p₀ after the last step
allowed = [0] if digits.name == "mnist" else list(range(K))
distance = abs(np.log(p_noise[:, allowed] / (1 - SLIDES[0] / 3.206)))
i, j = np.unravel_index(distance.argmin(), distance.shape)
target = np.array([allowed[j]])
fake, trace = fake_images(swapped, noise[[i]], target)
loss, p = trace[:, :, 0].T  # (11,), (11,)
columns = zip(SLIDES, loss, p, 3.206 * (1 - p), strict=True)
rows = [[step, *(f"{value:.4f}" for value in row)] for step, row in enumerate(columns)]
cli.table(["step", "slides' loss", "our loss", "our p_t", "3.206 (1 − p_t)"], rows)
print(f"target {digits.classes[target[0]]}; pixels from {fake.min():.2f} to {fake.max():.2f}")
assert abs(loss - 3.206 * (1 - p)).max() < 1e-4 and (run.quick or p[-1] > 0.99)

# %% [markdown]
# Our loss and 3.206 (1 − p_t) agree up to the rounding of 3.206. The formula also continues the
# slides' trace: their final p₀ = 0.99777 gives 0.0071, whereas the cross-entropy would be
# 0.0022. The two traces differ on the way, because the networks and the noise differ, but in
# the end both networks are almost certain of the target.
#
# ## Check: the library computes the same

# %%
theirs = attacks.fake_image(model, target, noise[[i]], learning_rate=0.5, steps=10)
print(f"largest difference to the library's image: {abs(fake - theirs).max():.0e}")
assert abs(fake - theirs).max() < 1e-4

# %% [markdown]
# ## Experiment: which loss reaches all ten classes?
#
# Both losses depend on the image only through p_t, so the chain rule relates their gradients.
# The cross-entropy −log p_t has the derivative −1/p_t with respect to p_t, and the swapped loss
# has −3.206. Therefore
#
# $$\nabla_x L_{\mathrm{swapped}} = 3.206\, p_t\, \nabla_x L.$$
#
# **Predict first.** We run ten steps from each noise image towards each of the ten classes, and
# count a fake image as made if p_t ≥ 0.99 at the end. For which pairs of noise image and target
# will the swapped loss fail? And the cross-entropy?

# %%
starts = np.tile(noise, (K, 1, 1, 1))  # (K·N, 1, 28, 28)
target = np.repeat(np.arange(K), len(noise))  # (K·N,)
fakes, ends, gradients = {}, {}, {}
for name, loss in (("cross-entropy", losses.cross_entropy), ("swapped", swapped)):
    gradients[name] = loss_and_gradient(loss, starts, target)[1]
    fakes[name], steps = fake_images(loss, starts, target)
    p_start, ends[name] = steps[0, 1], steps[-1, 1]  # (K·N,), (K·N,)
by_formula = 3.206 * p_start[:, None, None, None] * gradients["cross-entropy"]
assert abs(gradients["swapped"] - by_formula).max() < 1e-3 * abs(by_formula).max()

made = {name: p >= 0.99 for name, p in ends.items()}
groups = {digits.classes[k]: target == k for k in range(K)}
low, high = p_start <= np.quantile(p_start, 0.1), p_start >= np.quantile(p_start, 0.9)
groups |= {"all": target >= 0, "least likely tenth": low, "most likely tenth": high}
cli.table(
    ["target", "median p_t of the noise", *(f"made, {name}" for name in made)],
    [[k, f"{np.median(p_start[g]):.1e}", *(m[g].mean() for m in made.values())]
     for k, g in groups.items()],
)  # fmt: skip
ten = fakes["cross-entropy"], ends["cross-entropy"]
run.show(plots.ten_fakes(*ten, digits.classes), "fakes")
run.show(plots.saturation(p_start, ends), "saturation")
if not run.quick and digits.name != "fashion":
    assert made["cross-entropy"].mean() > 0.95 and made["swapped"][high].mean() > 0.9
    assert made["swapped"][low].mean() < 0.1

# %% [markdown]
# <details><summary>Answers</summary>
#
# The swapped loss fails for pairs with a very small p_t. The factor p_t makes its gradient so
# small that ten steps hardly move the image. The softmax is *saturated*: from L = −log p_t
# follows ∂p_t/∂z = −p_t ∂L/∂z = −p_t (p − e), so p_t hardly depends on the logits. The
# logarithm in the cross-entropy cancels this factor. So it reaches all or almost all targets,
# however unlikely they are.
# </details>
#
# The left panel of the last figure shows the size of the gradient at the logit of the target,
# |∂L/∂z_t|. For the cross-entropy it is |p_t − 1| = 1 − p_t and vanishes only at the goal. For
# the swapped loss it is 3.206 p_t (1 − p_t) and vanishes at both ends. Remember this when an
# attack makes no progress: its softmax may be saturated, and the network not robust.
#
# We see no digit in any of the ten fake images, so a high probability alone is no evidence that
# an image resembles the class. (A fake image is not an adversarial example as defined above:
# noise belongs to no class, so no prediction is a misclassification.)
#
# ## Limits
#
# A saliency map is a linear approximation at one image, not an explanation of the prediction.
# The fake images may leave the range [0, 1] of pixel values. We used printed digits;
# `--data mnist` takes the slides' images and target, with noise and a network of our own.
#
# ## Exercises
#
# `python -m lessons.exercises 03` gives you stubs (`lessons/exercises/03.py`), and checks them.
#
# 1. How many pixels must move by 0.1 for the formula of step 1 to predict a given fall of z_y?
# 2. Which factor replaces 3.206 p_t for the loss (1 − p_t)²? (Hint: compare the derivatives.)
# 3. Is `binary_crossentropy` saturated if its arguments are in the right order?
# 4. For a linear network, find the closest image whose classes all have the probability 1/K.
#
# ## References
#
# Szegedy et al. (2014), "Intriguing properties of neural networks". Simonyan, Vedaldi &
# Zisserman (2014), "Deep inside convolutional networks". Nguyen, Yosinski & Clune (2015), "Deep
# neural networks are easily fooled". Shusen Wang, "Data Evasion Attacks" (slides).

# %%
run.record(
    saliency=falls,
    change={"reached": reached.mean(), "median_steps": np.median(taken)},
    trace={"target": int(allowed[j]), "loss": trace[:, 0, 0], "p": trace[:, 1, 0]},
    made={name: {key: m[g].mean() for key, g in groups.items()} for name, m in made.items()},
)
