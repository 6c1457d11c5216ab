"""Solutions of the exercises of lesson 02."""

import numpy as np


def receptive_field(layers):
    """A layer widens the field by k − 1 times the distance of its inputs, in pixels of the image.

    Each stride multiplies this distance for all later layers. In the lesson's network a number of
    the last maps depends on 16×16 of the 28×28 pixels: only the dense layers see the whole image.
    """
    width, distance = 1, 1
    for kernel, stride in layers:
        width += (kernel - 1) * distance
        distance *= stride
    return width


def average_pool_backward(g):
    """Each of the four inputs has the derivative 1/4, so the gradient is shared equally.

    Max pooling hands the whole gradient to one pixel. With the mean, all pixels of a block get a
    gradient, but a smaller one.
    """
    return np.repeat(np.repeat(g / 4, 2, axis=1), 2, axis=2)


def rmsprop_steps(g, steps, eta, rho):
    """The first step is the longest, η / √(1 − ρ), and the steps fall to η, whatever g is.

    For a constant g the running mean is s = (1 − ρᵗ) g² after t steps, so step t has the length
    η / √(1 − ρᵗ). Multiplying the loss by a hundred multiplies g by a hundred and changes nothing
    (but for the 10⁻⁷), whereas the steps of gradient descent get a hundred times longer. Nor need
    the steps shrink when g does, so RMSprop with a constant η may keep moving about a minimum.
    """
    t = np.arange(1, steps + 1)[:, None]  # (steps, 1)
    s = (1 - rho**t) * g**2  # (steps, M)
    return -eta * g / (np.sqrt(s) + 1e-7)


def strided_backward(g, w, size, stride):
    """Each g_opq adds g_opq times the filter to the window that y_opq was computed from.

    Where windows overlap the contributions add up. The stride only says where the windows lie. As a
    full convolution with flipped filters, this needs t − 1 zeros between the numbers of g.
    """
    kh, kw = w.shape[2:]
    dx = np.zeros((w.shape[1], *size))
    for o, p, q in np.ndindex(g.shape):
        top, left = stride * p, stride * q
        dx[:, top : top + kh, left : left + kw] += g[o, p, q] * w[o]
    return dx
