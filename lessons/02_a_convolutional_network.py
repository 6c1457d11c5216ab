# %% [markdown]
r"""
# 02 A convolutional network

**Question.** The layers of lesson 01 connect every input with every output, and nothing that
they learn about one part of an image helps them in another part. Which layers look for the same
pattern everywhere? What are their gradients? How well does a small network of such layers
recognise digits?

We train the network of Shusen Wang's slides "Data Evasion Attacks". Most attacks of this course
target it.

**Time.** Half a minute on two cores. **You need** lesson 01. **After this lesson you can**
derive and write the forward and backward pass of convolution and pooling, count the weights of
a network, and train it with RMSprop.
"""

# %%
import math

import numpy as np
from plots import a_convolutional_network as plots
from support import cli

from tinyadv import Tensor, evaluate, fit, grad, losses, models, ops, optim, to_numpy

run = cli.start("02_a_convolutional_network", __doc__, backend=True)
xp = run.xp  # numpy, or cupy with --backend cupy
rng = np.random.default_rng(run.seed)
digits = run.load()  # 28×28 images of printed digits, unless --data says otherwise
K = len(digits.classes)
print(f"{len(digits.x_train)} training images {digits.x_train.shape[1:]}, ", end="")
print(f"pixel values {digits.x_train.min():g} to {digits.x_train.max():g}")

# %% [markdown]
# ## Convolution
#
# A *filter* w is a small pattern of weights, here 5×5 pixels, for each channel c of the image
# (a grey image has one). A *convolution* places the filter's top left corner at every position
# (p, q) where it fits into the image, and computes the weighted sum of the pixels under it.
# Each of several filters o, with a bias b_o, gives one *map*:
#
# $$y_{opq} = b_o + \sum_{c,i,j} w_{ocij}\, x_{c,p+i,q+j}.$$
#
# So the same few weights look for the same pattern everywhere, and if the image moves, the
# output moves with it (except at the border). (Mathematicians call this a cross-correlation:
# their convolution flips the filter.)


# %%
def convolve(x, w, b):
    """(C, H, W), (O, C, kh, kw), (O,) -> (O, P, Q) with P = H − kh + 1, Q = W − kw + 1"""
    (_, H, W), (filters, _, kh, kw) = x.shape, w.shape
    y = np.empty((filters, H - kh + 1, W - kw + 1))
    for o, p, q in np.ndindex(y.shape):
        y[o, p, q] = (w[o] * x[:, p : p + kh, q : q + kw]).sum() + b[o]
    return y


image = digits.x_train[0].astype(float)  # (1, 28, 28); finite differences need float64
w, b = rng.standard_normal((3, 1, 5, 5)), rng.standard_normal(3)
y = convolve(image, w, b)
moved = convolve(np.roll(image, 2, axis=2), w, b)  # two pixels further to the right
assert np.allclose(moved[:, :, 2:], y[:, :, :-2])  # so does y, except where it wraps

# %% [markdown]
# ## The gradients of a convolution
#
# Let g = ∂L/∂y. In the forward pass each y_opq used one window of the image and one filter. Its
# derivative with respect to a weight is the pixel under this weight, and its derivative with
# respect to a pixel is the weight on top of it. Gradients are sums over all uses (lesson 01),
# so the backward pass is the same loop: for every (o, p, q), add g_opq times the window to the
# gradient of filter o, and g_opq times the filter to the gradient of the window. Each costs as
# much as the forward pass. (In a batch, all images add to the gradient of the filter.)


# %%
def convolve_backward(g, x, w):
    """∂L/∂x, ∂L/∂w and ∂L/∂b from g = ∂L/∂y, (O, P, Q)"""
    kh, kw = w.shape[2:]
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    for o, p, q in np.ndindex(g.shape):
        dw[o] += g[o, p, q] * x[:, p : p + kh, q : q + kw]
        dx[:, p : p + kh, q : q + kw] += g[o, p, q] * w[o]
    return dx, dw, g.sum(axis=(1, 2))  # the bias is added at every position


def slope(f, a, v, h=1e-6):
    """The derivative of f at the array a along the direction v, by finite differences."""
    return (f(a + h * v) - f(a - h * v)) / (2 * h)


g = rng.standard_normal(y.shape)
loss = lambda x, w, b: (g * convolve(x, w, b)).sum()  # a loss with ∂L/∂y = g
gradients = dict(zip("xwb", convolve_backward(g, image, w), strict=True))
tensors = [Tensor(array) for array in (image[None], w, b)]  # tinyadv takes (N, C, H, W)
theirs = grad((ops.conv2d(*tensors) * g).sum(), tensors)
for name, library, f, a in (
    ("x", theirs[0][0], lambda a: loss(a, w, b), image),
    ("w", theirs[1], lambda a: loss(image, a, b), w),
    ("b", theirs[2], lambda a: loss(image, w, a), b),
):
    v = rng.standard_normal(a.shape)
    exact, numerical = (gradients[name] * v).sum(), slope(f, a, v)
    print(f"∂L/∂{name} along a random direction: {exact:.5f}, finite difference {numerical:.5f}")
    assert abs(exact - numerical) < 1e-5 and np.allclose(gradients[name], library)

# %% [markdown]
# Pixel r lies under weight i of the window at p = r − i. So, with g = 0 outside its range,
#
# $$\frac{\partial L}{\partial w_{ocij}} = \sum_{p,q} g_{opq}\, x_{c,p+i,q+j}, \qquad
# \frac{\partial L}{\partial x_{crs}} = \sum_{o,i,j} w_{ocij}\, g_{o,r-i,s-j}.$$
#
# Both are convolutions. The first slides g over the image, as if g were a filter (once for each
# channel; here C = 1). In the second the index of g *falls* as i and j rise, so the filter is
# flipped in both directions, and since the sum runs over o, inputs and outputs swap roles. The
# window reaches kh − 1 = 4 pixels beyond the border of g, so we surround g with zeros: a *full*
# convolution.

# %%
slid = convolve(image, g[:, None], np.zeros(3))  # g as filters (O, 1, P, Q) -> (O, kh, kw)
flipped = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)  # (O, C, kh, kw) -> (C, O, kh, kw)
wide = np.pad(g, ((0, 0), (4, 4), (4, 4)))  # (O, P, Q) -> (O, P + 8, Q + 8)
full = convolve(wide, flipped, np.zeros(1))  # -> (C, H, W)
assert np.allclose(gradients["w"][:, 0], slid) and np.allclose(gradients["x"], full)

# %% [markdown]
# ## Pooling
#
# *Max pooling* keeps the largest number of each 2×2 block of a map. This quarters the numbers,
# and small shifts change them little. Only the winner, the largest number of a block, has an
# influence on the output. So the winner gets the whole gradient, and the three others get 0.
# (In a tie the first of them counts as the winner. In a block of zeros after a ReLU this does
# not matter: the ReLU stops the gradient.)


# %%
def pool(x):
    """(C, H, W) -> (C, H/2, W/2)"""
    y = np.empty((len(x), x.shape[1] // 2, x.shape[2] // 2))
    for c, p, q in np.ndindex(y.shape):
        y[c, p, q] = x[c, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2].max()
    return y


def pool_backward(g, x):
    dx = np.zeros(x.shape)
    for c, p, q in np.ndindex(g.shape):
        i, j = divmod(x[c, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2].argmax(), 2)  # the winner's place
        dx[c, 2 * p + i, 2 * q + j] = g[c, p, q]  # blocks do not overlap
    return dx


noise, v, g = (rng.standard_normal(shape) for shape in ((3, 8, 8), (3, 8, 8), (3, 4, 4)))
dx, tensor = pool_backward(g, noise), Tensor(noise[None])
numerical = slope(lambda x: (g * pool(x)).sum(), noise, v)
print(f"pooling: {(dx * v).sum():.6f}, by finite differences {numerical:.6f}")
(theirs,) = grad((ops.max_pool2d(tensor, kernel_size=2) * g).sum(), [tensor])
assert abs((dx * v).sum() - numerical) < 1e-5 and np.allclose(dx, theirs[0])

# %% [markdown]
# ## The network
#
# Two rounds of convolution, ReLU and pooling turn 28×28 pixels into 20 maps of 4×4 numbers:
# first 10 filters of 5×5, and then 20 filters of 5×5 over all 10 maps. Two dense layers (lesson
# 01) turn these 320 numbers into 100, and these into ten logits.
#
# **Predict first.** (a) Which layer has the most weights? Which takes the most multiplications?

# %%
layers = [  # name, output, weights + biases, multiplications = weights × positions
    ["convolution, 10 filters 5×5", "10×24×24", 10 * 1 * 25 + 10, 10 * 1 * 25 * 24 * 24],
    ["ReLU, max pooling", "10×12×12", 0, 0],
    ["convolution, 20 filters 10×5×5", "20×8×8", 20 * 10 * 25 + 20, 20 * 10 * 25 * 8 * 8],
    ["ReLU, max pooling", "20×4×4 = 320", 0, 0],
    ["dense, ReLU", "100", 320 * 100 + 100, 320 * 100],
    ["dense", "10", 100 * 10 + 10, 100 * 10],
]
cli.table(["layer", "output", "weights, biases", "multiplications"], layers)
count = sum(row[2] for row in layers)
model = models.slides_cnn(run.seed).to(run.backend)
assert count == sum(weight.size for weight in model.parameters()) == 38390
print(f"together {count} weights and biases")

# %% [markdown]
# <details><summary>Answer</summary>
#
# (a) The first dense layer has more than four fifths of the weights. The second convolution
# takes about two thirds of the multiplications: 5000 weights at 64 positions, against 250 at
# 576 in the first. A shared weight is stored once, but multiplied at every position. A dense
# layer from 784 pixels to 10×24×24 numbers would need 4.5 million weights.
# </details>
#
# ## Training
#
# The gradient over all training images would be expensive. Instead, each step uses a *batch* of
# 128 images, whose mean gradient is an estimate of the full one. One pass through all images,
# in a new random order, is an *epoch*.
#
# How long should a step be? The gradients of different weights may differ by orders of
# magnitude, and then no single learning rate η suits them. *RMSprop* divides each gradient by
# its typical size. For each weight, now with g = ∂L/∂w, it keeps a running mean s of g², which
# starts at 0, with ρ = 0.9 (the 10⁻⁷ avoids a division by 0):
#
# $$s \leftarrow \rho s + (1 - \rho) g^2, \qquad
# w \leftarrow w - \eta \frac{g}{\sqrt{s} + 10^{-7}}.$$
#
# If |g| stays the same, √s approaches |g| and the step approaches η, whatever the size of g.
# The steps need not shrink when the gradients do, so the accuracy may keep fluctuating. The
# settings are Keras's defaults, as in the slides.
#
# **Predict first.** (b) What is the loss of a network that gives each of the ten digits the
# same probability? Will the loss of the untrained network be higher or lower?


# %%
def train_one_epoch(model, x, y, rng, eta=0.001, rho=0.9, batch_size=128):
    """Changes the weights of the model; returns the loss of every step."""
    weights = model.parameters()
    squares = [xp.zeros_like(w.value) for w in weights]  # s
    order, curve = rng.permutation(len(x)), []
    for start in range(0, len(x), batch_size):
        batch = xp.asarray(order[start : start + batch_size])
        loss = losses.cross_entropy(model(x[batch]), y[batch])  # model: (n, 1, 28, 28) -> (n, K)
        for w, g, s in zip(weights, grad(loss, weights), squares, strict=True):
            s[...] = rho * s + (1 - rho) * g * g  # in place: it stays in the list
            w.value = w.value - eta * g / (xp.sqrt(s) + 1e-7)
        curve.append(float(loss))
    return curve


x_train, y_train = xp.asarray(digits.x_train), xp.asarray(digits.y_train)
x_test, y_test = xp.asarray(digits.x_test), xp.asarray(digits.y_test)
untrained = float(losses.cross_entropy(model(x_test[:500]), y_test[:500]))
print(f"loss before training {untrained:.2f}; ln {K} = {math.log(K):.2f}")
curve = train_one_epoch(model, x_train, y_train, np.random.default_rng(run.seed))
print(f"loss of the first steps {np.round(curve[:5], 2)}, of the last {np.round(curve[-5:], 2)}")
print(f"test accuracy after one epoch: {evaluate.accuracy(model, x_test, y_test):.1%}")
assert untrained > math.log(K) - 0.1

# %% [markdown]
# <details><summary>Answer</summary>
#
# (b) It is −ln(1/10) = ln 10 ≈ 2.3. The outputs p of an untrained network hardly depend on the
# label. With equally frequent digits its mean loss is about the mean of −(1/10) Σ_k ln p_k. The
# p_k have the mean 1/10 and ln is concave, so this is at least ln 10. Here it is much more, as
# random initial weights (normal, variance 2/number of inputs) give unequal logits.
# </details>
#
# The test accuracy was much higher one step earlier. The last batch is only the 16 images that
# are left, so its gradient is noisy, and yet its step is not shorter.
#
# ## Check: `fit` is this loop
#
# `tinyadv.fit` has the same loop, with test accuracies, a progress bar and checkpoints around
# it. With the same seed it has the same weights and order of images, so its first epoch must be
# ours. We let it continue for the slides' ten epochs.

# %%
model = models.slides_cnn(run.seed).to(run.backend)
rmsprop = optim.RMSprop(model.parameters(), lr=0.001, rho=0.9, epsilon=1e-7)
history = fit(model, digits, rmsprop, epochs=10, batch_size=128, rng=run.seed, progress=False)
sizes = [128] * (len(curve) - 1) + [len(x_train) - 128 * (len(curve) - 1)]
ours = np.average(curve, weights=sizes)  # the mean over the images; the last batch is smaller
print(f"loss of the first epoch: ours {ours:.6f}, fit's {history.loss[0]:.6f}")
assert abs(ours - history.loss[0]) < 1e-3
print(f"accuracy after ten epochs: training {history.train_accuracy[-1]:.1%}, ", end="")
print(f"test {history.test_accuracy[-1]:.1%} (the best epoch: {max(history.test_accuracy):.1%})")
run.show(plots.curves([history], digits.name), "training")
least = {"glyphs": 0.9, "mnist": 0.98, "fashion": 0.8}.get(digits.name, 0)
assert history.test_accuracy[-1] > (0.4 if run.quick else least)

# %% [markdown]
# The training accuracy is averaged over the epoch, during which the weights change, so it may
# be the lower one. The test accuracy belongs to the weights at the end of the epoch. It
# fluctuates, as the steps stay about η long (exercise 3). On MNIST, handwritten digits, the
# slides report a training accuracy of 99.5 % and a validation accuracy of 99.1 %.
# `python -m lessons.experiments.training` trains three networks on MNIST; their mean test
# accuracy is within a tenth of a percentage point of the slides'.
#
# ## Experiment: which mistakes does it make?
#
# The *confidence* of a network is the largest of its probabilities. Does it warn of mistakes?

# %%
batches = [x_test[i : i + 500] for i in range(0, len(x_test), 500)]
p = np.concatenate([to_numpy(ops.softmax(model(batch), axis=1)) for batch in batches])  # (N, K)
label, predicted, confidence = digits.y_test, p.argmax(axis=1), p.max(axis=1)
wrong = np.flatnonzero(predicted != label)
wrong = wrong[np.argsort(-confidence[wrong])]  # the most confident mistakes first
medians = float(np.median(confidence[predicted == label])), float(np.median(confidence[wrong]))
print(f"{len(wrong)} of {len(label)} test images are misclassified; median confidence: ", end="")
print("correctly classified {:.2%}, misclassified {:.1%}".format(*medians))
names = [f"{digits.classes[label[i]]} → {digits.classes[predicted[i]]}" for i in wrong]
figure = plots.mistakes(digits.x_test[wrong, 0], names, confidence[wrong])
run.show(figure, "mistakes")
assert medians[0] > medians[1] and (run.quick or confidence[wrong[0]] > 0.9)

# %% [markdown]
# The network is typically less confident when it is wrong. But the warning is not reliable: it
# is almost certain of its first mistake in the figure. Lesson 04 changes images only slightly,
# and yet makes the network misclassify many more of them.
#
# ## Limits
#
# The slides' "validation" images are the test images, and so are ours. The accuracy of the best
# epoch therefore overestimates the quality of the network, because this epoch was chosen with
# the test images. By default we train on printed digits; `--data mnist` takes handwritten ones.
#
# ## Exercises
#
# `python -m lessons.exercises 02` gives you stubs (`lessons/exercises/02.py`), and checks them.
#
# 1. How wide is the part of the image that a number of the last maps depends on? (Hint: keep
#    track of how many pixels of the image lie between two neighbours in a map.)
# 2. Write the backward pass of average pooling.
# 3. Let g stay the same. Which steps does RMSprop take, and what happens to them if the loss is
#    multiplied by a hundred? (Hint: find s after t steps.)
# 4. A convolution with stride 2 moves its filters by two pixels at a time. Write its ∂L/∂x.
#
# ## References
#
# LeCun, Bottou, Bengio & Haffner (1998), "Gradient-based learning applied to document
# recognition". Tieleman & Hinton (2012), lecture 6.5 of "Neural networks for machine learning"
# (RMSprop). Wang, "Data evasion attacks" (slides).

# %%
accuracies = {"training": history.train_accuracy, "test": history.test_accuracy}
medians = {"correct": medians[0], "misclassified": medians[1]}
run.record(untrained_loss=untrained, **accuracies, misclassified=len(wrong), confidence=medians)
