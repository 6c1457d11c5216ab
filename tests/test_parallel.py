"""Pieces and threads change nothing but the time: values and gradients stay the same."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyadv import (
    Tensor,
    attacks,
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


def run_script(code: str) -> str:
    """What a program prints that must end by itself, and without an error."""
    path = os.pathsep.join([str(Path(parallel.__file__).parents[1]), *sys.path])
    no_warning = ["-W", "ignore:This process:DeprecationWarning"]  # is multi-threaded, and forks
    done = subprocess.run(
        [sys.executable, *no_warning, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, "TINYADV_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


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
    parallel.in_threads(work, range(broken))  # nothing is left of the error
    assert not parallel.inside() and not parallel._blas_users


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("in_helper", [False, True])
def test_an_error_stops_the_other_thread_within_a_step(in_helper, error, cores):
    cores(2)
    begun, both = [], threading.Barrier(2, timeout=30)

    def work(i):
        begun.append(i)
        both.wait()  # each thread has an item
        if in_helper != (threading.current_thread() is threading.main_thread()):
            raise error("the first")
        for _ in range(3000):
            parallel.stop_point()
            with suppress(Exception):  # as a model may catch errors
                parallel.in_threads(lambda _: time.sleep(0.01), [0])
        raise AssertionError("not stopped")

    with pytest.raises(error, match="the first"):
        parallel.in_threads(work, range(100))
    assert sorted(begun) == [0, 1]
    parallel.stop_point()  # does nothing outside


def test_nested_calls_and_networks_stop_too(cores):
    cores(2)
    both, model = threading.Barrier(2, timeout=30), layers.Sequential(lambda x: time.sleep(0.01))
    work_on = [
        lambda: parallel.in_threads(lambda _: time.sleep(0.01), range(3000)),
        lambda: [model(np.zeros((2, 3))) for _ in range(3000)],
        lambda: [parallel.by_examples(lambda x: time.sleep(0.01), [0]) for _ in range(3000)],
    ]
    for some in work_on:
        ended = []

        def work(i, some=some, ended=ended):
            both.wait()
            if i == 0:
                raise ZeroDivisionError
            some()
            ended.append(i)

        with pytest.raises(ZeroDivisionError):
            parallel.in_threads(work, [0, 1])
        assert not ended


ATTACKS = {
    "pgd": lambda f, x, y: attacks.pgd(f, x, y, steps=300),
    "apgd": lambda f, x, y: attacks.apgd(f, x, y, steps=300),
    "square": lambda f, x, y: attacks.square(f, x, y, queries=300),
    "spatial_grid": lambda f, x, y: attacks.spatial_grid(f, x, y, exhaustive=True),
    "spatial_random": lambda f, x, y: attacks.spatial_random(f, x, y, k=300),
    "spatial_first_order": lambda f, x, y: attacks.spatial_first_order(f, x, y, steps=300),
    "deepfool": lambda f, x, y: attacks.deepfool(f, x, y, steps=300),
    "carlini_wagner": lambda f, x, y: attacks.carlini_wagner(f, x, y, steps=300, start="image"),
    "fab": lambda f, x, y: attacks.fab(f, x, y, steps=300),
    "untargeted": lambda f, x, y: attacks.untargeted(f, x, y, steps=300),
    "targeted": lambda f, x, y: attacks.targeted(f, x, y, target=(y + 1) % 3, steps=300),
    "fake_image": lambda f, x, y: attacks.fake_image(f, y, x=x, steps=300),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_ctrl_c_stops_an_attack_within_a_step(name, cores):
    cores(2)
    rng = np.random.default_rng(0)
    x, w = rng.random((200, 1, 6, 6)), rng.standard_normal((36, 3))
    both, interrupted, later = threading.Barrier(2, timeout=30), threading.Event(), []
    logits = lambda x: ops.matmul(ops.reshape(x, (len(x), -1)), w)

    def model(x):
        """After its first passes in the attack, Ctrl-C in the main thread."""
        if parallel.inside():
            main = threading.current_thread() is threading.main_thread()
            if interrupted.is_set():
                later.append(main)
            else:
                both.wait()
                if main:
                    interrupted.set()
                    raise KeyboardInterrupt
                assert interrupted.wait(30)
        return logits(x)

    model.by_example = True
    before, y = blas_threads(), logits(x).argmax(1)
    with pytest.raises(KeyboardInterrupt):
        ATTACKS[name](model, x, y)
    assert True not in later and len(later) <= 2  # the step that had begun, and perhaps one more
    assert blas_threads() == before and not parallel.inside()


def test_an_attack_without_a_bar_takes_no_lock_of_tqdm(monkeypatch):
    """Ctrl-C may leave that lock locked, and an attack in another thread would wait for ever."""
    monkeypatch.setattr("tqdm.tqdm", None)
    x = np.full((2, 1, 28, 28), 0.5, np.float32)
    assert attacks.pgd(models.slides_cnn(), x, steps=1).shape == x.shape


def test_a_second_ctrl_c_does_not_wait_and_the_program_ends():
    printed = run_script(
        """
        import signal, threading, time
        from tinyadv import parallel

        count = lambda: [x.num_threads for x in parallel._blas().lib_controllers]
        before = count()
        interrupt = lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        both, caught = threading.Barrier(2), threading.Event()

        def work(i):
            both.wait()
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt  # the first one; now this thread waits for the other
            while not caught.wait(0.2):
                interrupt()
            time.sleep(3600)

        try:
            parallel.in_threads(work, [0, 1])
        except KeyboardInterrupt:
            caught.set()
        print(count() == before)
        """
    )
    assert printed == "True\n"


@pytest.mark.parametrize("daemon", [False, True])
def test_the_interpreter_ends(daemon):
    """With a cut forward pass in an exit handler, and in threads that outlive the main one."""
    printed = run_script(
        f"""
        import atexit, threading, time
        import numpy as np
        from tinyadv import models, parallel

        x, model = np.zeros((64, 1, 28, 28), "f"), models.slides_cnn()
        forward = lambda: print(model(x).shape)
        forward()
        atexit.register(forward)
        both, main = threading.Barrier(3), threading.main_thread()

        def last(i):
            both.wait()
            main.join()
            while {daemon}:
                time.sleep(1)
            return forward()

        later = lambda: parallel.in_threads(last, [0, 1])
        threading.Thread(target=later, daemon={daemon}).start()
        both.wait()
        """
    )
    assert printed.count("(64, 10)") == (2 if daemon else 4)


def test_without_a_further_thread_this_one_does_all_the_work(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(parallel, "_idle", [])
    with parallel.limit(3):
        assert parallel.in_threads(lambda i: i * i, range(5)) == [0, 1, 4, 9, 16]


def test_helpers_are_used_again_and_hold_nothing(cores):
    cores(3)
    alive, held = [], []

    class Item:
        def __del__(self):
            held.append(self)

    for _ in range(20):
        parallel.in_threads(lambda item: item, [Item() for _ in range(6)])
        alive.append(threading.active_count())
    assert alive[0] == alive[-1] and len(held) == 120


def test_all_threads_see_the_context_of_the_caller(cores):
    cores(4)
    both = threading.Barrier(2, timeout=30)

    def look(_):
        both.wait()
        return parallel.threads(), np.geterr()["divide"]

    with parallel.limit(2), np.errstate(divide="raise"):
        assert parallel.in_threads(look, [0, 1]) == [(2, "raise")] * 2


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


def test_a_call_within_a_thread_does_not_wait_for_ever(cores):
    cores(2)
    inner = lambda i: parallel.in_threads(lambda j: (i, j), range(3))
    assert parallel.in_threads(inner, range(4)) == [[(i, j) for j in range(3)] for i in range(4)]


# ---- the threads of the BLAS ---------------------------------------------------------------------


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


def test_attacks_at_the_same_time_restore_the_blas(cores):
    cores(2)
    before, seen = blas_threads(), set()
    model, x = models.slides_cnn(), np.full((32, 1, 28, 28), 0.5, np.float32)

    def attack():
        for _ in range(5):
            attacks.pgd(model, x, steps=3)
            with parallel.one_blas_thread():
                seen.update(blas_threads())

    users = [threading.Thread(target=attack) for _ in range(3)]
    for user in users:
        user.start()
    attack()
    for user in users:
        user.join()
    assert seen == {1} and blas_threads() == before and not parallel._blas_users


@pytest.fixture
def library(monkeypatch):
    """A BLAS of 8 threads, whatever this machine has."""

    class Library:
        num_threads = 8

        def set_num_threads(self, count):
            self.num_threads = count

    library = Library()
    monkeypatch.setattr(parallel, "_blas", lambda: SimpleNamespace(lib_controllers=[library]))
    return library


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_at_any_line_leaves_nothing_behind(count, cores, library):
    """KeyboardInterrupt at the first line of the module that this thread executes, the second …"""
    cores(count)
    work = lambda i: library.num_threads

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename == parallel.__file__:
            left -= event != "return"
            if left == 0:
                raise KeyboardInterrupt
            return trace

    number, left = 0, 0
    while left <= 0:  # until the call has fewer lines
        number, previous = number + 1, sys.gettrace()
        left = number
        sys.settrace(trace)
        try:
            with suppress(KeyboardInterrupt):
                parallel.in_threads(work, range(3))
        finally:
            sys.settrace(previous)
        assert library.num_threads == 8, number
        thread = threading.Thread(target=parallel.in_threads, args=(work, [0, 1]), daemon=True)
        thread.start(), thread.join(30)  # another thread can limit it, too
        assert not thread.is_alive()
        assert not parallel.inside() and not parallel._blas_users and not parallel._blas_before
        assert parallel.in_threads(work, range(3)) == [1, 1, 1] and library.num_threads == 8
    assert number > 50


def test_fifty_signals_leave_nothing_behind():
    printed = run_script(
        """
        import random, signal, threading, time
        import numpy as np
        from tinyadv import attacks, models, parallel

        count = lambda: {x.num_threads for x in parallel._blas().lib_controllers}
        before, main = count(), threading.main_thread().ident
        model, x = models.slides_cnn(), np.full((16, 1, 28, 28), 0.5, "f")
        expected, rng = attacks.pgd(model, x, steps=2), random.Random(0)

        def interrupt():
            time.sleep(0.02 * rng.random())
            signal.pthread_kill(main, signal.SIGINT)

        for _ in range(50):
            try:
                threading.Thread(target=interrupt).start()
                while True:
                    attacks.pgd(model, x, steps=2)
            except KeyboardInterrupt:
                pass
            assert count() == before and not parallel.inside()
        seen = parallel.in_threads(lambda i: count(), [0, 1])
        assert seen == [{1}, {1}] and count() == before
        assert (attacks.pgd(model, x, steps=2) == expected).all()
        print("done")
        """
    )
    assert printed == "done\n"


# ---- forked processes ----------------------------------------------------------------------------

FORK = """
    import multiprocessing, os, resource, sys, threading, time
    import numpy as np
    from tinyadv import grad, models, parallel
    from tinyadv.losses import cross_entropy

    x, y = np.random.default_rng(0).random((64, 1, 28, 28), "f"), np.arange(64) % 10
    model = models.slides_cnn()

    def gradients():
        return grad(cross_entropy(model(x), y), model.parameters())

    def check():
        for one, other in zip(gradients(), expected):
            np.testing.assert_array_equal(one, other)

    def in_child(check=check):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                check()
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    count = lambda: {x.num_threads for x in parallel._blas().lib_controllers}
    before, expected = count(), gradients()
"""

FORKS = {
    "between calls": """
        def flat_memory():
            check()
            first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(15):
                check()
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first
            assert grown < 40_000, grown  # kilobytes
            in_child()  # a child of the child

        in_child(flat_memory)
        check()
    """,
    "multiprocessing": """
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for result in pool.starmap(gradients, [()] * 4):
                for one, other in zip(result, expected):
                    np.testing.assert_array_equal(one, other)
    """,
    "while other threads work on pieces": """
        inside, leave = threading.Barrier(3), threading.Event()

        def other():
            parallel.in_threads(lambda i: (inside.wait(), leave.wait()), [0, 1])

        thread = threading.Thread(target=other)
        thread.start()
        inside.wait()

        def fresh():
            assert count() == before and not parallel.inside()
            check()
            assert count() == before

        in_child(fresh)
        leave.set()
        thread.join()
        assert count() == before
    """,
    "while another thread limits the BLAS": """
        stop = threading.Event()

        def other():
            while not stop.is_set():
                with parallel.one_blas_thread():
                    pass

        thread = threading.Thread(target=other)
        thread.start()

        def fresh():
            assert count() == before
            parallel.in_threads(lambda i: i, [0, 1])
            assert count() == before

        for _ in range(15):
            in_child(fresh)
        stop.set()
        thread.join()
    """,
    "within pieces": """
        both = threading.Barrier(2)
        whole = lambda i: gradients()[0]

        def work(i):
            both.wait()
            in_child(lambda: (parallel.inside() or 1 / 0, count() == {1} or 1 / 0, whole(i)))
            return i

        assert parallel.in_threads(work, [0, 1]) == [0, 1]
        assert count() == before
    """,
    "within a piece, and the child goes on": """
        both, parent = threading.Barrier(2), os.getpid()

        def work(i):
            if os.getpid() == parent:
                both.wait()
                if threading.current_thread() is threading.main_thread():
                    os.fork()
            return i

        results = parallel.in_threads(work, [0, 1])
        assert results == [0, 1] and count() == before
        if os.getpid() != parent:
            check()
            os._exit(0)
        assert os.wait()[1] == 0
    """,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forked_processes():
    parts = [f"print({name!r}, flush=True)\n" + textwrap.dedent(FORKS[name]) for name in FORKS]
    printed = run_script("\n".join([textwrap.dedent(FORK), *parts]))
    assert printed.splitlines() == list(FORKS)


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


def test_a_tuple_of_tensors_and_arrays_with_all_gradients():
    rng = np.random.default_rng(0)
    x, w = Tensor(rng.standard_normal((40, 3))), Tensor(rng.standard_normal((3, 2)))

    def f(x):
        h = ops.tanh(ops.matmul(x, w))
        return h, ops.sum(h * h, axis=1), x.value[:, 0]

    def both(parts):
        h, size, first = parts
        return (h * h * h).sum() + (size * size).sum(), first

    (whole, _), (cut, first) = both(f(x)), both(parallel.by_examples(f, x))
    same(first, x.value[:, 0])
    for options in ({}, {"create_graph": True}):
        for one, other in zip(*(grad(y, [x, w], **options) for y in (cut, whole)), strict=True):
            close(tensor.value_of(one), tensor.value_of(other))
    second = [grad(sum((g * g).sum() for g in grad(y, [x, w], create_graph=True)), [x, w])
              for y in (cut, whole)]  # fmt: skip
    for one, other in zip(*second, strict=True):
        close(one, other)


@pytest.mark.parametrize("n", [8, 40])  # left whole, and cut
def test_arrays_of_different_lengths_are_refused(n):
    with pytest.raises(ValueError, match=f"same length.*{n}, {n + 1}"):
        parallel.by_examples(lambda x, nothing, y: x, np.ones((n, 2)), None, np.ones(n + 1))
    same(parallel.by_examples(lambda nothing, y: y, None, np.ones(n)), np.ones(n))


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda x: x.sum(0), r"\(3,\)"),
        (lambda x: Tensor(x).sum(), r"\(\)"),
        (lambda x: [x, x], "list"),
        (lambda x: (x, x[1:]), r"\(19, 3\)"),
        (lambda x: None, "NoneType"),
    ],
)
def test_f_must_return_a_row_for_each_example(wrong, got):
    with pytest.raises(ValueError, match=f"for 20 examples.*{got}"):
        parallel.by_examples(wrong, np.ones((40, 3)))


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


@settings(max_examples=15)
@given(n=st.integers(2, 4), d=st.integers(1, 3), seed=st.integers(0, 99))
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
    x, y = rng.random((70, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 70)
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
