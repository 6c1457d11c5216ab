# %% [markdown]
r"""
# 15 Many machines

**Question.** Min-max training computes many gradients where standard training computes one
(lesson 10), and AutoAttack thousands for each image (lesson 13). What can P machines share, what
must they tell each other, and at what batch size does it pay off?

The loss of a batch is a mean over its images, and no image needs another one. So each machine
can take some of the images. *Synchronous data parallelism* does this in every training step:

1. All machines have the same weights.
2. Each one computes the gradient of its own images, and attacks them first in min-max training.
3. The gradients are added up over all machines.
4. All take the same step with the sum, and so their weights stay the same.

A process that takes part is called a *rank*. Several ranks may run on one machine. They
communicate through *MPI*, the message passing interface of scientific computing.

**Time.** Twenty seconds on two cores. **You need** lessons 02 (training) and 10 (min-max
training). **After this lesson you can** write data-parallel training and the ring algorithm
that adds up its gradients, count the bytes that it sends, and predict when more machines help.
"""

# %%
import multiprocessing
import threading
from itertools import pairwise

import numpy as np
from plots import many_machines as plots
from support import cli, ranks

from tinyadv import fit, grad, models, optim
from tinyadv.losses import cross_entropy

run = cli.start("15_many_machines", __doc__)
rng = np.random.default_rng(run.seed)
digits = run.load(600, 200)
x, y = digits.x_train[:200], digits.y_train[:200]  # (N, 1, 28, 28), (N,)
model = models.fast_cnn(run.seed)
n = sum(p.size for p in model.parameters())
print(f"{n:,} parameters, {4 * n / 1e6:.2f} MB in float32")

# %% [markdown]
# ## Step 1: the gradient of a mean
#
# Let rank r have n_r of the N images, and let L_r be the mean loss over them. The sum over all
# images can be taken rank by rank, and a gradient is linear:
#
# $$L = \frac1N \sum_{i=1}^N L(f(x_i), y_i) = \sum_{r=1}^P \frac{n_r}{N} L_r,
# \qquad \nabla L = \sum_{r=1}^P \frac{n_r}{N} \nabla L_r.$$
#
# If all ranks have the same number of images, this is the mean of the ranks' gradients. Otherwise
# the gradients must be *weighted*. The plain mean would give too much weight to the images of a
# rank that has few.


# %%
def gradient(model, x, y):
    """The gradient of the mean loss with respect to all weights, as one vector: (n,)."""
    loss = cross_entropy(model(x), y)
    return np.concatenate([g.ravel() for g in grad(loss, model.parameters())])


whole = gradient(model, x, y)
edges = [0, 110, 180, 200]  # three ranks with 110, 70 and 20 images
gradients = [gradient(model, x[a:b], y[a:b]) for a, b in pairwise(edges)]
weighted = sum((b - a) / 200 * g for (a, b), g in zip(pairwise(edges), gradients, strict=True))
relative = lambda g: float(np.linalg.norm(g - whole) / np.linalg.norm(whole))
differs = {"weighted": relative(weighted), "plain": relative(sum(gradients) / 3)}
print("relative distance to the gradient of the batch: ", end="")
print(f"weighted sum {differs['weighted']:.0e}, plain mean {differs['plain']:.2f}")
assert differs["weighted"] < 1e-5 and differs["plain"] > 0.05

# %% [markdown]
# The remaining difference is rounding: 110 + 70 + 20 images are added up in another order than 200.
#
# The formula needs a loss that is a mean of terms with one image each. Batch normalisation
# breaks it, because its output for an image depends on the whole batch (exercise 4).
#
# ## Step 2: adding up over the ranks
#
# Each rank has a vector of n numbers, and each must get the sum. This is an *allreduce*. If all
# send their vectors to rank 0, which sends the sum back, rank 0 receives P − 1 vectors and sends
# P − 1 vectors, while the others wait.
#
# The *ring* shares this work. Cut each vector into P chunks, and let each rank send to its right
# neighbour only.
#
# - *First round trip.* In each of P − 1 steps, every rank sends one chunk to the right, and adds
#   the chunk that it receives from the left to its own. On its way around the ring a chunk
#   collects the terms of all ranks. After P − 1 steps each rank has one complete chunk.
# - *Second round trip.* In P − 1 more steps the complete chunks travel around the ring.
#
# All links are in use all the time. Each rank sends 2(P − 1) chunks of n/P numbers, that is
#
# $$2\,\frac{P-1}{P} \cdot 4n \;\text{bytes}$$
#
# in float32. **Predict first.** (a) How does this number change from 32 ranks to 64?


# %%
def ring_allreduce(vectors):
    """The sum, as each rank gets it, and how many numbers each rank has sent: P × (n,), (P,)."""
    size = len(vectors)
    chunks = [np.array_split(vector, size) for vector in vectors]  # chunks[rank][k]
    sent = np.zeros(size, int)
    for first, receive in ((0, np.add), (1, lambda old, new: new)):  # the two round trips
        for step in range(size - 1):
            index = [(rank + first - step) % size for rank in range(size)]  # who sends which
            messages = [chunks[rank][index[rank]] for rank in range(size)]  # all at once
            for rank, message in enumerate(messages):
                right, k = (rank + 1) % size, index[rank]
                chunks[right][k] = receive(chunks[right][k], message)
                sent[rank] += len(message)
    return [np.concatenate(own) for own in chunks], sent


rows = []
for size in (2, 4, 32, 64):
    vectors = list(rng.standard_normal((size, n), dtype=np.float32))
    sums, sent = ring_allreduce(vectors)
    assert all(np.array_equal(total, sums[0]) for total in sums)  # the same bits for all
    assert abs(sums[0] - sum(vectors)).max() < 1e-4
    bytes_sent, formula = 4 * sent.max(), 2 * (size - 1) / size * 4 * n
    rows.append([size, f"{bytes_sent / 1e6:.3f}", f"{formula / 1e6:.3f}"])
    rows[-1].append(f"{(size - 1) * 4 * n / 1e6:.2f}")
    assert abs(bytes_sent / formula - 1) < 0.01
cli.table(["ranks", "sent by each, MB", "formula", "sent by rank 0 without ring"], rows)

# %% [markdown]
# <details><summary>Answer</summary>
#
# (a) Hardly: from 31/32 to 63/64 of 8n bytes. However many ranks there are, none sends more than
# twice its vector. Only the number of *messages* grows with P, and with it the time that is lost
# to latency.
# </details>
#
# ## Step 3: the training loop
#
# Here the ranks take turns in one process. The weights exist only once, because they would be
# the same everywhere.


# %%
def data_parallel_training(model, optimizer, batches, size):
    shapes = [p.shape for p in model.parameters()]
    ends = np.cumsum([p.size for p in model.parameters()])[:-1]
    for x, y in batches:
        edges = [len(x) * rank // size for rank in range(size + 1)]  # sizes differ by 1 at most
        vectors = [
            (b - a) / len(x) * gradient(model, x[a:b], y[a:b]) for a, b in pairwise(edges)
        ]  # in turn, where real ranks work at the same time
        sums, _ = ring_allreduce(vectors)
        parts = np.split(sums[0], ends)
        optimizer.step([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])


order = np.random.default_rng(run.seed).permutation(600)  # as fit shuffles
batches = [(digits.x_train[i], digits.y_train[i]) for i in np.array_split(order, 6)]
ours = models.fast_cnn(run.seed)
data_parallel_training(ours, optim.SGD(ours.parameters(), lr=0.05), batches, size=2)

# %% [markdown]
# ## Check: the library trains the same network
#
# `fit(…, comm=…)` is this loop, with one process for each rank. `comm` is a *communicator*, such
# as `MPI.COMM_WORLD` of mpi4py: it knows the ranks and has a method `Allreduce`. Save a script
# that calls `fit` with it, and start it with
#
#     pip install 'tinyadv[mpi]' && mpiexec -n 4 python -m mpi4py script.py
#
# The gradient, the loss and the number of correct predictions travel in one array, because one
# long message costs less than three. Rank 0 writes the checkpoints, and any number of ranks can
# resume from them. To see it work without MPI, we run two ranks in two threads and connect them
# by a pipe: `ranks.Pair` is a communicator of twenty lines. The third network is trained in one
# process.


# %%
def library(comm=None):
    network = models.fast_cnn(run.seed)
    how = {"batch_size": 100, "rng": run.seed, "validate": False, "progress": False, "comm": comm}
    fit(network, digits, optim.SGD(network.parameters(), lr=0.05), 1, **how)
    return np.concatenate([p.value.ravel() for p in network.parameters()])


ends, found = multiprocessing.Pipe(), {}
work = lambda rank: found.update({rank: library(ranks.Pair(rank, ends[rank]))})
threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
mine, alone = np.concatenate([p.value.ravel() for p in ours.parameters()]), library()
print(f"two ranks differ from our loop by {abs(found[0] - mine).max():.0e}, ", end="")
print(f"and from one process by {abs(found[0] - alone).max():.0e}")
assert np.array_equal(found[0], found[1])
assert abs(found[0] - mine).max() < 1e-5 > abs(found[0] - alone).max()

# %% [markdown]
# ## Experiment: two ranks on two cores
#
# There are two ways to use twice as many ranks.
#
# - *Strong scaling.* The batch stays the same and each rank gets half of it. Ideally a step
#   takes half the time.
# - *Weak scaling.* Each rank keeps its number of images and the batch is twice as large. Ideally
#   a step takes the same time. The *efficiency* is the time on one rank divided by the time now.
#
# Let T(P, m) be the time of a step on P ranks with m images each. Strong scaling compares T(1, 2m)
# with T(2, m), weak scaling T(1, m) with T(2, m). We measure all three, with standard training and
# with 10 steps of PGD for each training step. Where the steps are short, expect noise.
# **Predict first.** (b) Which of the two trainings scales better?

# %%
per_rank = [4, 16] if run.quick else [4, 16, 64, 256]
trainings = {"standard": 0, "PGD-10": 10}
how = {"attack_steps": list(trainings.values()), "epsilon": 0.2}
one = ranks.measure(1, sorted({*per_rank, *(2 * m for m in per_rank)}), **how)
two = ranks.measure(2, per_rank, **how)
print("two processes, " + ("with MPI" if ranks.has_mpi() else "connected by a pipe"))
scaling, rows = {}, []
for name, steps in trainings.items():
    for m in per_rank:
        single, double = one["step"][steps], two["step"][steps][m]
        found = {"strong": single[2 * m] / double, "weak": single[m] / double}
        scaling[f"{name}, {m}"] = found
        times = [f"{1e3 * t:.1f}" for t in (single[m], single[2 * m], double)]
        rows.append([name, m, *times, f"{found['strong']:.2f}×", f"{found['weak']:.2f}"])
header = ["training", "m", "T(1, m), ms", "T(1, 2m), ms", "T(2, m), ms"]
cli.table([*header, "speed-up", "efficiency"], rows)

# %% [markdown]
# <details><summary>Answer</summary>
#
# (b) Min-max training, if sending takes time. It sends the same gradient once in a step, but
# computes eleven gradients for it instead of one; the attack itself sends nothing, because each
# rank attacks its own images. On one machine sending costs so little that the two hardly differ.
# Both gain only if the ranks have enough images: Python's overhead in each gradient does not shrink
# with the batch. An *evaluation* sends even less: `evaluate.robustness` and `attacks.auto_attack`
# also have an argument `comm`.
# </details>
#
# ## A model of 64 ranks
#
# We have two cores, but can predict what 64 machines would do. A step on one rank takes about
# a + b m for m images: b is the work for an image, and a the rest, such as Python's overhead in
# each gradient and the step of the optimizer. A line through the measured times gives both. A
# network sends a message of k bytes in λ + k/β, with the latency λ and the bandwidth β. The ring
# sends 2(P − 1) messages, one after another, so
#
# $$T(P, m) = a + b\,m + 2(P-1)\,\lambda + 2\,\frac{P-1}{P}\,\frac{4n}{\beta}.$$
#
# One rank needs a + b P m for the same batch, so the speed-up is S = (a + b P m)/T(P, m). It grows
# with m. Let us say that P ranks pay off if S ≥ P/2: each is then at least half as useful as one
# rank alone. Call the time of the ring t. Solving a + b P m = P/2 · (a + b m + t) for m gives
#
# $$m = \frac{a + t}{b} - \frac{2\,a}{P\,b}.$$

# %%
latency, bandwidth, size = 20e-6, 1.25e9, 64  # 20 µs, and 10 Gbit/s in bytes/s
t = 2 * (size - 1) * latency + 2 * (size - 1) / size * 4 * n / bandwidth
print(f"the ring of {size} ranks takes {1e3 * t:.1f} ms, {1e3 * two['allreduce']:.1f} ms here")
grid, curves, rows, pays, model_of = 2.0 ** np.arange(0, 13), {}, [], {}, {}
for name, steps in trainings.items():
    m, seconds = (np.array(column) for column in zip(*one["step"][steps].items(), strict=True))
    b, a = np.polyfit(m, seconds, 1, w=1 / seconds)  # relative errors count
    a = max(a, 0.0)
    curves[name] = (a + b * size * grid) / (a + b * grid + t)
    pays[name] = max(1, int(np.ceil((a + t) / b - 2 * a / (size * b))))
    model_of[name] = {"a": a, "b": b}
    rows.append([name, f"{1e3 * a:.1f}", f"{1e6 * b:.0f}", pays[name], size * pays[name]])
cli.table(["training", "a, ms", "b, µs", f"images per rank for S = {size // 2}", "batch"], rows)
run.show(plots.speed_up(grid, curves, size), "speed-up")
assert run.quick or model_of["PGD-10"]["a"] > 3 * model_of["standard"]["a"]

# %% [markdown]
# Two things cost: the overhead a, which every rank has, and the ring's time t. In standard training
# both take about as long, and a rank needs
# 51<!-- = 15_many_machines / images_per_rank / standard --> images. With PGD-10 the overhead is
# about ten times as large, and the ring hardly counts. But b is larger as well, so a rank needs
# about as many, 50<!-- = 15_many_machines / images_per_rank / PGD-10 -->. On a GPU a and b might be
# a hundred times smaller. With as many images for each rank, the ring would then take nearly all
# of the time of standard training, and a large part of PGD-10's.
#
# ## Limits
#
# The model leaves out that ranks wait for the slowest one, that messages can be sent while the
# backward pass still computes earlier layers, and that two cores share the bandwidth of one
# memory. It says how many images pass per second, not how much a network learns from them. A
# batch that is 64 times larger means 64 times fewer steps per epoch, and needs another learning
# rate: Goyal et al. (2017) multiply it by the same factor, after a warm-up, and report that
# beyond some batch size accuracy falls nevertheless.
#
# The sum is rounded differently with each number of ranks. PGD amplifies this, because the sign
# of an almost zero gradient may flip. `fit(…, exact=True)` computes fixed pieces of the batch
# and adds them in a fixed order, which gives the bits of one process. It sends more.
#
# ## Exercises
#
# `python -m lessons.exercises 15` gives you stubs (`lessons/exercises/15.py`), and checks them.
#
# 1. Combine the gradients of ranks that have different numbers of images.
# 2. How many bytes does rank 0 send and receive in an allreduce without a ring, and with one?
# 3. At how many ranks does latency begin to cost more than bandwidth? (Hint: set the terms equal.)
# 4. Batch normalisation needs the mean and the variance of the whole batch. Compute them from
#    what each rank knows about its own images. (Hint: E[(x − μ)²] = E[x²] − μ².)
#
# ## References
#
# Patarasuk & Yuan (2009), "Bandwidth optimal all-reduce algorithms for clusters of workstations".
# Goyal et al. (2017), "Accurate, large minibatch SGD: training ImageNet in 1 hour". Message
# Passing Interface Forum (2021), "MPI: a message-passing interface standard", version 4.0.

# %%
run.record(
    parameters=n, differs=differs, scaling=scaling, images_per_rank=pays, line=model_of,
    ring_seconds=t, allreduce_seconds=two["allreduce"],
    connected_by="MPI" if ranks.has_mpi() else "pipe",
)  # fmt: skip
