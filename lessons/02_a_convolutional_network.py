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
# (a grey image has one). A *convolution* places its top left corner at every position (p, q)
# where it fits into the image, and computes the weighted sum of the pixels under it. Each of
# several filters o, with a bias b_o, gives one *map*:
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


image = digits.x_train[0].astype(float)  # (1, 28, 28)
w, b = rng.standard_normal((3, 1, 5, 5)), rng.standard_normal(3)
y = convolve(image, w, b)
moved = convolve(np.roll(image, 2, axis=2), w, b)  # the image, two pixels further to the right
assert np.allclose(moved[:, :, 2:], y[:, :, :-2])  # the output moves with the image

# %% [markdown]
# ## The gradients of a convolution
#
# Let g = ∂L/∂y. In the forward pass each y_opq used one window of the image and one filter. Its
# derivative with respect to a weight is the pixel under this weight, and its derivative with
# respect to a pixel is the weight on top of it. Gradients are sums over all uses (lesson 01),
# so the backward pass is the same loop: each g_opq adds g_opq times the window to the gradient
# of the filter, and g_opq times the filter to the gradient of the window.


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
# window reaches 4 pixels beyond the border of g, so we surround g with zeros: a *full*
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
# *Max pooling* keeps the largest number of each 2×2 block of a map. Only the winner, the
# largest number of a block, has an influence on the output. So the winner gets the whole
# gradient, and the three others get 0. (In a tie, as in a block of zeros after a ReLU, the
# first of them counts as the winner.)


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
# Two rounds of convolution, ReLU and pooling turn 28×28 pixels into 20 maps of 4×4 numbers. Two
# dense layers (lesson 01) turn these 320 numbers into ten logits.
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
# 576 in the first. A shared weight is stored once, but multiplied at every position.
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
            s[...] = rho * s + (1 - rho) * g * g
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
# label. With equally frequent digits its mean loss is about the mean of −(1/10) Σ_k ln p_k, and
# as ln is concave, this is at least ln 10.
# </details>
#
# ## Check: `fit` is this loop
#
# `tinyadv.fit` has the same loop, with the test accuracy after each epoch, a progress bar and
# checkpoints around it. With the same seed it starts from the same weights and shuffles the
# images in the same way, so its first epoch must be ours. We let it continue for the slides'
# ten epochs.

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
least = {"glyphs": 0.9, "mnist": 0.98, "fashion": 0.8}[digits.name]
assert history.test_accuracy[-1] > (0.4 if run.quick else least)

# %% [markdown]
# The training accuracy is averaged over the epoch, during which the weights change. The test
# accuracy belongs to the weights at the end of the epoch, and it fluctuates from epoch to epoch
# (exercise 4). On MNIST, handwritten digits, the slides report a training accuracy of 99.5 %
# and a validation accuracy of 99.1 %. `python -m lessons.experiments.training` trains three
# networks there. Their mean test accuracy agrees with the slides' to within a tenth of a
# percentage point.
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
# The network is typically less confident when it is wrong. But the warning is not reliable: its
# most confident mistake has a confidence of more than 90 %. Lesson 04 changes images only
# slightly, and yet makes the network misclassify many more of them.
#
# ## Limits
#
# The slides' "validation" images are the test images, and so are ours. The accuracy of the best
# epoch therefore overestimates the quality of the network, because this epoch was chosen with
# the test images. By default we train on printed digits; `--data mnist` takes handwritten ones.
#
# ## Exercises
#
# 1. Compute the loss and all gradients of one image with `convolve`, `pool` and their backward
#    functions, and compare them with `grad`. (Hint: go through the layers in the opposite
#    order. The rules of the dense layers and of the ReLU are those of lesson 01.)
# 2. Write the forward and backward pass of average pooling by loops, and check them.
# 3. Replace RMSprop by `optim.SGD(model.parameters(), lr=0.1)`, which is gradient descent. Then
#    multiply the loss by a hundred. Which of the two training runs changes? (Hint: `fit` takes
#    an `objective`.)
# 4. Let the learning rate fall with `fit(…, schedule=optim.cosine(0.001, 10))`. Does the test
#    accuracy still go up and down?
#
# ## References
#
# LeCun, Bottou, Bengio & Haffner (1998), "Gradient-based learning applied to document
# recognition". Tieleman & Hinton (2012), lecture 6.5 of "Neural networks for machine learning"
# (RMSprop). Wang, "Data evasion attacks" (slides).

# %%
run.record(
    untrained_loss=untrained,
    training=history.train_accuracy,
    test=history.test_accuracy,
    misclassified=len(wrong),
    confidence={"correct": medians[0], "misclassified": medians[1]},
)
