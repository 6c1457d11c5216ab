"""Checks an attempt at an exercise, and answers the usual mistakes with a hint.

An exercise is a function that the reader writes. ``checks/NN.py`` declares it by fixed inputs, the
right answer, and wrong answers that readers are likely to give, each with its hint:

    @exercise(cases=lambda: [(gradient, 0.1)], hint="The length of a step does not depend on g.")
    def steepest(g, alpha):
        return alpha * np.sign(g)

    @steepest.mistake("You scaled the gradient. In the ∞-norm every pixel moves by α.")
    def _(g, alpha):
        return alpha * g

An attempt that returns what a wrong answer returns gets the hint of that wrong answer. Where there
are several right results, ``judge`` decides.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import linecache
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tinyadv import Tensor, to_numpy

EXERCISES = Path(__file__).parent


@dataclass
class Exercise:
    """A function to write.

    Attributes
    ----------
    answer : function
        The right one; the attempt has the same name and the same arguments.
    cases : function
        Returns the inputs, a list of tuples of arguments; called anew for each attempt.
    hint : str
        For an attempt that is wrong in no known way.
    judge : function, optional
        ``judge(result, *arguments)`` returns "" for a right result, and a hint for a wrong one.
        Without it, results are compared with those of ``answer``.
    mistakes : list of (hint, function)
    """

    answer: Callable
    cases: Callable[[], list[tuple]]
    hint: str
    judge: Callable[..., str] | None = None
    mistakes: list[tuple[str, Callable]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.answer.__name__

    def mistake(self, hint: str) -> Callable[[Callable], Callable]:
        """Decorates a wrong answer, which deserves ``hint``."""

        def add(function: Callable) -> Callable:
            self.mistakes.append((hint, function))
            return function

        return add

    def check(self, attempt: Callable) -> str:
        """An empty string if the attempt is right, and otherwise what to do about it."""
        results = []
        for arguments in self.cases():
            given = copy.deepcopy(arguments)
            result = attempt(*given)
            if result is None or result is ...:
                return nothing_returned(attempt)
            for name, before, after in zip(inspect.signature(self.answer).parameters, arguments,
                                           given, strict=True):  # fmt: skip
                if isinstance(before, np.ndarray) and not np.array_equal(before, after):
                    return f"Your function changes its argument `{name}` in place: copy it first."
            results.append(result)
        for number, (arguments, result) in enumerate(zip(self.cases(), results, strict=True), 1):
            wrong = self._wrong(result, arguments)
            if wrong:
                where = f"In case {number} of {len(results)}: " if len(results) > 1 else ""
                return self._known_mistake(results) or f"{where}{wrong} Hint: {self.hint}"
        return ""

    def _wrong(self, result: Any, arguments: tuple) -> str:
        expected = self.answer(*arguments)
        if self.judge is None:
            return difference(result, expected)
        return other_kind(result, expected) or self.judge(result, *arguments)

    def _known_mistake(self, results: list) -> str:
        """The hint of the wrong answer that gives the same results in all cases."""
        for hint, function in self.mistakes:
            expected = [function(*arguments) for arguments in self.cases()]
            if not any(map(difference, results, expected)):
                return hint
        return ""


def exercise(
    cases: Callable[[], list[tuple]], hint: str, judge: Callable[..., str] | None = None
) -> Callable[[Callable], Exercise]:
    """Decorates the right answer; see :class:`Exercise`."""
    return lambda answer: Exercise(answer, cases, hint, judge)


def difference(result: Any, expected: Any) -> str:
    """In what a result differs from the expected one: a sentence, or "" if they agree.

    Numbers and arrays agree if they differ by rounding only, whatever their dtype.
    """
    wrong = other_kind(result, expected)
    if wrong:
        return wrong
    if isinstance(expected, (tuple, list)):
        parts = [difference(r, e) for r, e in zip(result, expected, strict=True)]
        found = [f"result {i}: {part}" for i, part in enumerate(parts, 1) if part]
        return found[0] if found else ""
    if isinstance(expected, str):
        return "" if result == expected else f"{result!r:.60} is not right."
    got, want = as_array(result), as_array(expected)
    largest = np.abs(want[np.isfinite(want)]).max(initial=0.0) or 1.0
    close = np.isclose(got, want, rtol=1e-4, atol=1e-6 * largest, equal_nan=True)
    if close.all():
        return ""
    if np.isnan(got[~close]).any():
        return "the result contains NaN."
    at = tuple(int(i) for i in np.argwhere(~close)[0])
    where = f" at index {at if len(at) > 1 else at[0]}" if at else ""
    return f"expected {want[at]:.5g}{where}, got {got[at]:.5g}."


def other_kind(result: Any, expected: Any) -> str:
    """Says if a result has another shape, or is something else, than the expected one."""
    if isinstance(expected, (tuple, list)):
        if not isinstance(result, (tuple, list)) or len(result) != len(expected):
            return f"expected {len(expected)} results, got {result!r:.60}."
        return ""
    if isinstance(expected, str):
        return "" if isinstance(result, str) else f"expected a string, got {result!r:.60}."
    want = as_array(expected)
    try:
        got = as_array(result)
    except (TypeError, ValueError):
        return f"expected {kind(want)}, got {result!r:.60}."
    return "" if got.shape == want.shape else f"expected {kind(want)}, got {kind(got)}."


def as_array(value: Any) -> np.ndarray:
    """A number, an array of either backend or a tensor, as a float64 array."""
    if np.iscomplexobj(value):
        raise TypeError("expected real numbers")
    return np.asarray(to_numpy(value.value if isinstance(value, Tensor) else value), np.float64)


def kind(array: np.ndarray) -> str:
    return f"an array of shape {array.shape}" if array.shape else "a number"


# ------------------------------------------------------------------------------------- files


def load(path: Path) -> ModuleType:
    """The module in a file, whose name need not be an identifier."""
    linecache.checkcache(str(path))
    spec = importlib.util.spec_from_file_location(f"exercises_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exercises(lesson: str) -> list[Exercise]:
    """The exercises of a lesson, in the order in which it lists them."""
    found = vars(load(EXERCISES / "checks" / f"{lesson}.py")).values()
    return [value for value in found if isinstance(value, Exercise)]


def check(lesson: str, path: Path) -> dict[str, str]:
    """The verdict on each exercise of a lesson: an empty string for a right attempt.

    Parameters
    ----------
    lesson : str
        Its number, "06".
    path : Path
        The file with the attempts.
    """
    listed, path = exercises(lesson), path.resolve()
    try:
        module = load(path)
    except (Exception, SystemExit) as error:
        return dict.fromkeys((e.name for e in listed), sentence(error, path))
    verdicts = {}
    for e in listed:
        attempt = getattr(module, e.name, None)
        if attempt is None:
            stub = f"def {e.name}{inspect.signature(e.answer)}"
            verdicts[e.name] = f"{path.name} has no such function. It begins `{stub}:`"
            continue
        try:
            verdicts[e.name] = e.check(attempt)
        except (Exception, SystemExit) as error:
            verdicts[e.name] = sentence(error, path)
    return verdicts


def sentence(error: BaseException, path: Path) -> str:
    """What went wrong, and in which line of the file."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"


def nothing_returned(function: Callable) -> str:
    """What to do about a function that returned nothing."""
    if is_stub(function):
        return f"not written yet: replace the `...` in {place_of(function)}"
    return f"your function returns nothing: is a `return` missing in {place_of(function)}?"


def is_stub(function: Callable) -> bool:
    """Whether the body of a function is ``...``, below its docstring."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body
    except (AttributeError, OSError, SyntaxError):  # a lambda, or no function
        return False
    return ast.unparse(body[-1]) == "..."


def place_of(function: Callable) -> str:
    """ "06.py, line 12": where a function begins."""
    code = inspect.unwrap(function).__code__
    return f"{Path(code.co_filename).name}, line {code.co_firstlineno}"
