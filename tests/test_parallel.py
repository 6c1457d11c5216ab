"""Pieces and threads change nothing but the time: values and gradients stay the same."""

import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyadv import (
    Tensor,
    check_grads,
    defvjp,
    grad,
    layers,
    models,
    ops,
    parallel,
    primitive,
    tensor,
)
from tinyadv.losses import cross_entropy
from tinyadv.verify import worst_logits

close = np.testing.assert_allclose
same = np.testing.assert_array_equal


@pytest.fixture
def cores(monkeypatch):
    """Sets the number of cores that the library sees."""
    return lambda count: monkeypatch.setattr(parallel, "CORES", count)


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in parallel._blas().info()}


# ---- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_in_threads_keeps_the_order(count, cores):
    cores(count)
    assert parallel.in_threads(lambda i: i * i, range(20)) == [i * i for i in range(20)]
    assert parallel.in_threads(lambda i: i, []) == []


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("broken", [0, 3, 7])
def test_an_error_in_any_item_is_raised(count, broken, cores):
    cores(count)

    def work(i):
        if i == broken:
            raise ZeroDivisionError(f"item {i}")

    with pytest.raises(ZeroDivisionError, match=f"item {broken}"):
        parallel.in_threads(work, range(8))
    assert not parallel.inside() and not parallel._blas_users


def test_after_an_error_no_item_is_begun(cores):
    cores(2)
    begun, failed = [], threading.Event()

    def work(i):
        begun.append(i)
        if i == 99:  # this thread begins with the last item
            failed.set()
            raise ZeroDivisionError
        assert failed.wait(30)

    with pytest.raises(ZeroDivisionError):
        parallel.in_threads(work, range(100))
    assert len(begun) < 10


def test_after_an_error_in_a_helper_no_item_is_begun(cores):
    cores(2)
    begun, failed = [], threading.Event()

    def work(i):
        begun.append(i)
        if i == 0:  # a helper begins with the first item
            failed.set()
            raise ZeroDivisionError("item 0")
        assert failed.wait(30)
        time.sleep(0.01)  # the other thread has yet to leave its except clause

    with pytest.raises(ZeroDivisionError, match="item 0"):
        parallel.in_threads(work, range(100))
    assert len(begun) < 20


@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_are_not_cut_again(threads):
    sizes = []

    def f(x):
        sizes.append(len(x))
        return x

    x = np.zeros((64, 3))
    with parallel.limit(threads):
        parallel.in_threads(lambda _: parallel.by_examples(f, x), [0, 1])
    assert sizes == [64, 64] and not parallel.inside()


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_threads_than_the_limit(most, cores):
    cores(3)
    names = set()
    with parallel.limit(most):
        assert parallel.threads() == most
        parallel.in_threads(lambda _: names.add(threading.current_thread().name), range(50))
    assert len(names) <= most
    assert parallel.threads() == 3


def test_limits_nest_and_are_lifted_after_an_error():
    before = parallel.threads()
    with pytest.raises(ZeroDivisionError), parallel.limit(3):
        with parallel.limit(1):
            assert parallel.threads() == 1
        assert parallel.threads() == 3
        raise ZeroDivisionError
    assert parallel.threads() == before


def test_the_environment_limits_the_threads(monkeypatch):
    monkeypatch.setenv("TINYADV_THREADS", "5")
    assert parallel.threads() == 5
    with parallel.limit(2):
        assert parallel.threads() == 2
    for wrong in ("0", "two", "-1", "1.5"):
        monkeypatch.setenv("TINYADV_THREADS", wrong)
        with pytest.raises(ValueError, match=f"TINYADV_THREADS.*{wrong}"):
            parallel.threads()


@pytest.mark.parametrize("wrong", [0, -1, 1.5, None, "many"])
def test_a_limit_is_a_number_of_threads(wrong):
    with pytest.raises(ValueError, match=f"integer ≥ 1.*{wrong}"), parallel.limit(wrong):
        pass


def test_several_threads_take_part(cores):
    cores(2)
    both = threading.Barrier(2, timeout=30)  # passed only by two threads at the same time
    parallel.in_threads(lambda _: both.wait(), [0, 1])


def test_the_blas_has_one_thread_inside_and_its_own_number_outside():
    before = blas_threads()
    with parallel.one_blas_thread():
        with parallel.one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_any_thread_may_limit_the_blas():
    """Also after another one has, and if the last to leave is not the first that came."""
    before, seen = blas_threads(), []

    def look():
        with parallel.one_blas_thread():
            seen.append(blas_threads())

    look()
    thread = threading.Thread(target=look)
    thread.start(), thread.join()
    assert seen == [{1}, {1}] and blas_threads() == before

    inside, leave = threading.Event(), threading.Event()

    def stay():
        with parallel.one_blas_thread():
            inside.set()
            assert leave.wait(30)

    thread = threading.Thread(target=stay)
    with parallel.one_blas_thread():
        thread.start()
        assert inside.wait(30)
    assert blas_threads() == {1}
    leave.set(), thread.join()
    assert blas_threads() == before


def test_a_call_within_a_thread_does_not_wait_for_ever(cores):
    cores(2)
    inner = lambda i: parallel.in_threads(lambda j: (i, j), range(3))
    assert parallel.in_threads(inner, range(4)) == [[(i, j) for j in range(3)] for i in range(4)]


# ---- pieces: values ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 15, 16, 17, 128, 129, 300])
def test_by_examples_is_the_function_of_the_whole(n):
    x = np.random.default_rng(0).standard_normal((n, 3))
    sizes, done = [], []

    def f(part):
        sizes.append(len(part))
        return ops.tanh(part)

    same(parallel.by_examples(f, x, done=done.append), np.tanh(x))
    assert sum(sizes) == sum(done) == n and max(sizes) <= 64
    assert len(sizes) == 1 if n < 16 else len(sizes) >= 2
    sizes.clear()
    parallel.by_examples(f, x, least=n + 1)
    assert sizes == [n]
    sizes.clear()
    parallel.by_examples(f, x, least=1, most=20)
    assert max(sizes) <= 20 and len(sizes) % 2 == 0 if n > 1 else True


def test_a_tuple_of_arrays_and_none():
    x, y = np.arange(40.0), np.arange(40)
    half, label, missing = [], [], []

    def f(x, nothing, y):
        missing.append(nothing)
        return x / 2, y

    half, label = parallel.by_examples(f, x, None, y)
    same(half, x / 2), same(label, y)
    assert missing == [None, None]


def test_pieces_are_stored_as_convolutions_want_them():
    x = np.random.default_rng(0).random((20, 2, 5, 6))
    contiguous = []

    def f(part):
        contiguous.append(part.transpose(1, 2, 3, 0).flags.c_contiguous)
        return part

    same(parallel.by_examples(f, x), x)
    assert contiguous == [True, True]


def test_a_batch_on_a_device_is_left_whole_unless_asked(device):
    x = device.ones((150, 2))
    assert parallel.by_examples(lambda whole: whole, x) is x
    sizes = []
    parallel.by_examples(lambda part: sizes.append(len(part)) or part, x, least=100, most=50)
    assert sum(sizes) == 150 and max(sizes) <= 50


# ---- pieces: gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 16, 150])
def test_by_examples_cuts_all_its_arrays_alike(n):
    rng = np.random.default_rng(0)
    x, w = Tensor(rng.standard_normal((n, 3))), Tensor(rng.standard_normal((n, 2, 3)))
    y = rng.integers(0, 5, n)
    sizes = []

    def f(x, w, y):
        sizes.append((len(x), len(w), len(y)))
        return ops.sum(x[:, None] * w, axis=2) * y[:, None]

    whole, parts = f(x, w, y), parallel.by_examples(f, x, w, y)
    close(parts.value, whole.value)
    assert all(a == b == c for a, b, c in sizes) and (len(sizes) > 2) == (n >= 16)
    for one, other in zip(*(grad(z.sum(), [x, w]) for z in (parts, whole)), strict=True):
        close(one, other)


@given(n=st.integers(2, 5), d=st.integers(1, 3), seed=st.integers(0, 99))
def test_orders_one_to_three_of_a_cut_batch_pass_check_grads(n, d, seed):
    rng = np.random.default_rng(seed)
    x, w, v = (rng.standard_normal(shape) for shape in [(n, d), (d, 2), (d, d)])

    def f(x, w, v):
        inner = ops.tanh(ops.matmul(v, w))  # made outside, used by every piece

        def layer(part):
            size = ops.sum(part * part, axis=1, keepdims=True)
            return ops.tanh(ops.matmul(part, inner)) * size

        return parallel.by_examples(layer, x, least=2, most=1)

    check_grads(f, [x, w, v], order=3, rng=rng)


def test_order_four_of_a_cut_batch():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 2)), rng.standard_normal((2, 2))
    f = lambda x, w: parallel.by_examples(lambda part: ops.tanh(ops.matmul(part, w)), x, least=2)
    check_grads(f, [x, w], order=4, tolerance=(1e-6, 1e-4, 1e-3, 1e-3))


def test_inner_nodes_and_leaves_from_outside_get_their_gradients():
    rng = np.random.default_rng(0)
    v, x = Tensor(rng.standard_normal((3, 2))), Tensor(rng.standard_normal((40, 2)))
    w = ops.tanh(v)  # made outside, used by every piece
    some = ops.exp(v)  # used by a single piece

    def layer(part, first):
        z = ops.dense(part, w)
        return z * some[0, 0] if first else z

    def cut(part):
        return layer(part, first=bool(part.value[0, 0] == x.value[0, 0]))

    def whole(x):
        return ops.concatenate([layer(x[:20], True), layer(x[20:], False)])

    asked = [v, w, some, x]
    got, expected = (grad((z * z).sum(), asked) for z in (parallel.by_examples(cut, x), whole(x)))
    for one, other in zip(got, expected, strict=True):
        close(one, other)
    got, expected = (
        grad(sum((g * g).sum() for g in grad((z * z).sum(), asked, create_graph=True)), asked)
        for z in (parallel.by_examples(cut, x), whole(x))
    )
    for one, other in zip(got, expected, strict=True):
        close(one, other)


def test_what_a_rule_takes_from_outside_gets_its_gradient(monkeypatch):
    monkeypatch.setattr(tensor, "PRIMITIVES", dict(tensor.PRIMITIVES))
    w, x = Tensor(np.arange(1.0, 4.0)), Tensor(2 * np.ones((4, 3)))

    @primitive
    def scaled(x):
        return x * 1.0

    defvjp(scaled, lambda g, y, x: g * w * x)
    both = []
    for f in (scaled, lambda x: parallel.by_examples(lambda part: scaled(part), x, least=2)):
        (g,) = grad(f(x).sum(), [x], create_graph=True)
        both.append(grad(g.sum(), [w, x]))
    for one, other in zip(*both, strict=True):
        close(one, other)


def test_a_function_that_ignores_its_piece_or_returns_it():
    x, w = Tensor(np.ones((40, 2))), Tensor(np.full((20, 2), 3.0))
    y = parallel.by_examples(lambda part: part, x)
    same(grad(y.sum(), [x])[0], np.ones((40, 2)))
    y = parallel.by_examples(lambda part: w, x)
    same(y.value, np.full((40, 2), 3.0))
    gx, gw = grad(y.sum(), [x, w])
    same(gx, 0 * gx), same(gw, 2 + 0 * gw)
    y = parallel.by_examples(lambda part: part.value, x)  # an array: there is no way back
    assert isinstance(y, np.ndarray)


@pytest.mark.parametrize("n", [1, 16, 200])
def test_large_gradients_are_added_up_in_threads(n, monkeypatch):
    x, w = np.random.default_rng(0).standard_normal((n, 3)), Tensor(np.ones((5, 3)))

    def gradient():
        y = parallel.by_examples(lambda part: ops.dense(part, w), x, least=1)
        return grad((y * y).sum(), [w])[0]

    small = gradient()
    monkeypatch.setattr(parallel, "LARGE", 1)
    same(gradient(), small)


def test_the_same_tensor_twice():
    x = Tensor(np.arange(20.0))
    y = parallel.by_examples(lambda a, b: a * b, x, x)
    same(grad(y.sum(), [x])[0], 2 * x.value)


def test_a_tape_of_pieces_has_one_node():
    model, x = models.fast_cnn(), Tensor(np.zeros((40, 1, 28, 28), np.float32))
    z = model(x)
    assert z.operation is parallel.by_examples and "by_examples" in repr(z)
    assert {id(arg) for arg in z.args} == {id(x), *map(id, model.parameters())}


# ---- results do not depend on the cores ----------------------------------------------------------


def with_cores(cores, count, compute):
    """What ``compute`` returns on so many cores; on a single one the BLAS has one thread, too."""
    cores(count)
    with parallel.one_blas_thread() if count == 1 else nullcontext():
        return compute()


def test_bounds_and_their_gradients_do_not_depend_on_the_cores(cores):
    rng = np.random.default_rng(0)
    x, y = rng.random((150, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 150)
    model = models.fast_cnn()
    whole = cross_entropy(worst_logits(model, x - 0.01, x + 0.01, y), y, "none")

    def results():
        worst = worst_logits(model, x - 0.01, x + 0.01, y)
        return [worst.value, *grad(cross_entropy(worst, y), model.parameters())]

    both = (with_cores(cores, count, results) for count in (1, 4))
    for one, several in zip(*both, strict=True):
        same(one, several)
    few = worst_logits(model, x[:10] - 0.01, x[:10] + 0.01, y[:10])  # too few for pieces
    some = cross_entropy(few, y[:10], "none")
    close(some.value, whole.value[:10], rtol=1e-4)


def test_gradients_of_first_and_second_order_do_not_depend_on_the_cores(cores):
    rng = np.random.default_rng(0)
    x, y = rng.random((150, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 150)
    model = models.slides_cnn()

    def gradients():
        image = Tensor(x)
        loss = cross_entropy(model(image), y)
        (g,) = grad(loss, [image], create_graph=True)
        return [g.value, *grad(loss + 0.1 * (g * g).sum(), model.parameters())]

    both = (with_cores(cores, count, gradients) for count in (1, 4))
    for one, several in zip(*both, strict=True):
        same(one, several)


def test_an_error_in_a_rule_is_raised_from_a_thread(cores):
    cores(3)
    x = Tensor(np.ones((100, 2)))
    y = parallel.by_examples(lambda part: ops.where(part, part, 0.0), x)
    with pytest.raises(TypeError, match="where has no gradient rule for its argument 0"):
        grad(y.sum(), [x])


# ---- what may be cut -----------------------------------------------------------------------------


class Opaque(layers.Module):
    def __call__(self, x):
        return x


class PerExample(Opaque):
    by_example = True


def test_cutting_is_opt_in():
    assert not parallel.may_cut(lambda x: x)
    assert not parallel.may_cut(Opaque())
    assert parallel.may_cut(PerExample())
    function = lambda x: x
    function.by_example = True
    assert parallel.may_cut(function)
    relu = layers.ReLU()
    assert parallel.may_cut(layers.Sequential(relu, PerExample()))
    assert not parallel.may_cut(layers.Sequential(relu, Opaque()))
    assert not parallel.may_cut(layers.Sequential(relu, lambda x: x))
    assert not parallel.may_cut(
        layers.Average(relu, layers.Sequential(layers.Sequential(Opaque())))
    )
    outer = PerExample()
    outer.parts = {"inner": [layers.Sequential(Opaque())]}
    assert not parallel.may_cut(outer)
