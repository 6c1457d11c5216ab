"""Threads change nothing but the time."""

import threading
from contextlib import nullcontext

import numpy as np
import pytest

from tinyadv import Tensor, grad, models, ops, threads
from tinyadv.losses import cross_entropy
from tinyadv.verify import worst_logits


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threads._blas().info()}


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_in_threads_keeps_the_order(cores, monkeypatch):
    monkeypatch.setattr(threads, "CORES", cores)
    assert threads.in_threads(lambda i: i * i, range(20)) == [i * i for i in range(20)]
    assert threads.in_threads(lambda i: i, []) == []


@pytest.mark.parametrize("cores", [1, 3])
def test_an_error_in_any_piece_is_raised(cores, monkeypatch):
    monkeypatch.setattr(threads, "CORES", cores)

    def work(i):
        if i == 3:
            raise ZeroDivisionError(f"piece {i}")

    with pytest.raises(ZeroDivisionError, match="piece 3"):
        threads.in_threads(work, range(8))


def test_after_an_error_no_piece_is_begun(monkeypatch):
    monkeypatch.setattr(threads, "CORES", 1)
    begun = []

    def work(i):
        begun.append(i)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.in_threads(work, range(8))
    assert begun == [0] and not threads.inside()


def test_pieces_are_not_cut_again(monkeypatch):
    monkeypatch.setattr(threads, "CORES", 2)
    sizes = []

    def f(x):
        sizes.append(len(x))
        return x

    x = np.zeros((64, 3))
    threads.in_threads(lambda _: ops.by_examples(f, x), [0, 1])
    assert sizes == [64, 64] and not threads.inside()


@pytest.mark.parametrize("workers, most", [(1, 1), (2, 2), (None, 3)])
def test_no_more_threads_than_workers(workers, most, monkeypatch):
    monkeypatch.setattr(threads, "CORES", 3)
    names = set()
    threads.in_threads(lambda _: names.add(threading.current_thread().name), range(50), workers)
    assert len(names) <= most


def test_several_threads_take_part(monkeypatch):
    monkeypatch.setattr(threads, "CORES", 2)
    both = threading.Barrier(2, timeout=30)  # passed only by two threads at the same time
    threads.in_threads(lambda _: both.wait(), [0, 1])


def test_the_blas_has_one_thread_inside_and_its_own_number_outside():
    before = blas_threads()
    with threads.one_blas_thread:
        with threads.one_blas_thread:
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_a_thread_inside_a_thread_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(threads, "CORES", 2)
    inner = lambda i: threads.in_threads(lambda j: (i, j), range(3))
    assert threads.in_threads(inner, range(4)) == [[(i, j) for j in range(3)] for i in range(4)]


@pytest.mark.parametrize("n", [1, 15, 16, 17, 128, 129, 300])
def test_by_examples_is_the_function_of_the_whole(n, monkeypatch):
    x = np.random.default_rng(0).standard_normal((n, 3))
    pieces = []

    def f(part):
        pieces.append(len(part))
        return ops.tanh(part)

    np.testing.assert_array_equal(ops.by_examples(f, x), np.tanh(x))
    assert sum(pieces) == n and max(pieces) <= 64
    assert len(pieces) == 1 if n < 16 else len(pieces) >= 2
    pieces.clear()
    ops.by_examples(f, x, least=n + 1)
    assert pieces == [n]


@pytest.mark.parametrize("n", [3, 16, 150])
def test_by_examples_cuts_all_its_arrays_alike(n):
    rng = np.random.default_rng(0)
    x, w = Tensor(rng.standard_normal((n, 3))), Tensor(rng.standard_normal((n, 2, 3)))
    y = rng.integers(0, 5, n)
    sizes = []

    def f(x, w, y):
        sizes.append((len(x), len(w), len(y)))
        return ops.sum(x[:, None] * w, axis=2) * y[:, None]

    whole, parts = f(x, w, y), ops.by_examples(f, x, w, y)
    np.testing.assert_allclose(parts.value, whole.value)
    assert all(a == b == c for a, b, c in sizes) and (len(sizes) > 2) == (n >= 16)
    for one, other in zip(*(grad(z.sum(), [x, w]) for z in (parts, whole)), strict=True):
        np.testing.assert_allclose(one, other)


def with_cores(monkeypatch, cores, compute):
    """What ``compute`` returns on so many cores; on a single one the BLAS has one thread, too."""
    monkeypatch.setattr(threads, "CORES", cores)
    with threads.one_blas_thread if cores == 1 else nullcontext():
        return compute()


def test_bounds_and_their_gradients_do_not_depend_on_the_cores(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.random((150, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 150)
    model = models.fast_cnn()
    whole = cross_entropy(worst_logits(model, x - 0.01, x + 0.01, y), y, "none")

    def results():
        worst = worst_logits(model, x - 0.01, x + 0.01, y)
        return [worst.value, *grad(cross_entropy(worst, y), model.parameters())]

    both = (with_cores(monkeypatch, cores, results) for cores in (1, 4))
    for one, several in zip(*both, strict=True):
        np.testing.assert_array_equal(one, several)
    few = [worst_logits(model, a - 0.01, a + 0.01, b) for a, b in [(x[:10], y[:10])]]
    some = cross_entropy(few[0], y[:10], "none")  # too few for pieces
    np.testing.assert_allclose(some.value, whole.value[:10], rtol=1e-4)


def test_gradients_of_first_and_second_order_do_not_depend_on_the_cores(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.random((150, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 150)
    model = models.slides_cnn()

    def gradients():
        image = Tensor(x)
        loss = cross_entropy(model(image), y)
        (g,) = grad(loss, [image], create_graph=True)
        return [g.value, *grad(loss + 0.1 * (g * g).sum(), model.parameters())]

    both = (with_cores(monkeypatch, cores, gradients) for cores in (1, 4))
    for one, several in zip(*both, strict=True):
        np.testing.assert_array_equal(one, several)


def test_an_error_in_a_rule_is_raised_from_a_walk_in_threads(monkeypatch):
    monkeypatch.setattr(threads, "CORES", 3)
    x = Tensor(np.ones((100, 2)))
    y = ops.by_examples(lambda part: ops.where(part, part, 0.0), x)  # a condition has no gradient
    with pytest.raises(TypeError, match="where has no gradient rule for its argument 0"):
        grad(y.sum(), [x])
