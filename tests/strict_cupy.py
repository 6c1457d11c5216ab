"""A strict stand-in for CuPy, on NumPy: the tests' device where there is no GPU.

Code that is written once for NumPy and CuPy can pass every test on NumPy and still fail, or crawl,
on a GPU. This module runs the same lines on the CPU and complains where CuPy would. Its ``ndarray``
is a wrapper, so nothing works on it by accident; ``backend.array_module`` finds the module by it.

It offers what **both** NumPy and CuPy 14 have, so a call that passes here is one that both take;
and CuPy's own ``fuse``, see there.

Refused, with ``TypeError``:

- turning a device array into a NumPy array behind one's back: ``np.asarray(a)``, and any
  ``np.f(a)``. (CuPy answers some ``np.f(a)``; a library should say ``array_module(a).f(a)``.)
- NumPy arrays (0-d ones too), lists and tensors as operands, as values to assign, as indices.
  (CuPy takes NumPy arrays and lists as indices, and copies them over at every use: move them once.)
- keywords that CuPy lacks: ``where=``, ``initial=``, ``clip(min=)`` ...; ``out=`` off the device.

Refused, with ``AttributeError``: every name that is not in the tables below.

Imitated, where NumPy does something else:

- reductions, and indexing down to one element, give 0-d arrays (``x[0]`` is a view of ``x``);
- integer *arrays* of indices wrap around when out of range; a Python int out of range raises;
- what an elementwise function or a reduction returns is C-contiguous, whatever went in;
- no floating-point warning is ever given, and there is no ``errstate``.

Counted, inside ``with count() as c:``

- ``c.launches``: kernels that run: one for each call that computes or copies, none for a view. For
  ``matmul``, ``dot``, ``concatenate`` and ``stack`` it is as many as CuPy 14 needs (see
  ``_of_matmul`` and ``_of_concatenate``); for other calls of several kernels, such as ``pad``, one
  is counted, which is the least.
- ``c.syncs``: times that the host waits for the device: ``float()``, ``int()``, ``bool()``,
  ``item()``, ``tolist()``, ``get()``, ``asnumpy()``, printing, and whatever has a shape that
  depends on values: ``a[mask]``, ``nonzero``, one-argument ``where``, ``argwhere``, ``unique`` ...
  Assigning through a mask waits as well, also for ``a[mask] = 0.0``: CuPy looks up how many values
  the mask selects. ``copyto(a, 0.0, where=mask)`` and three-argument ``where`` do not wait.
- ``c.transfers``: copies from host to device: ``asarray`` or ``array`` of a NumPy array or a list,
  and the addresses of more than eight arrays that ``concatenate`` joins.
  A single number travels with the kernel that writes it, which is a launch.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter as P
from types import BuiltinFunctionType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

# ---- counting -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Counts:
    launches: int = 0
    syncs: int = 0
    transfers: int = 0


_counting: list[Counts] = []  # the open `with count()` blocks


@contextmanager
def count() -> Iterator[Counts]:
    """Counts what happens inside the block; blocks may be nested."""
    counts = Counts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting.remove(counts)


def _note(launches: int = 0, syncs: int = 0, transfers: int = 0) -> None:
    if _tracing() and (launches or syncs or transfers):
        raise TypeError(
            "a fused function consists of elementwise functions of its arguments: what makes other "
            "arrays, or waits for the device, comes before or after it"
        )
    for counts in _counting:
        counts.launches += launches
        counts.syncs += syncs
        counts.transfers += transfers


# ---- NumPy's functions, for the stand-in's arrays -----------------------------------------------

# Parameters that take an array on the device, and parameters that take one or a number.
_ARRAYS = frozenset("a b x v ar ary array condition dst".split())
_OPERANDS = _ARRAYS | set("x1 x2 y indices values src where out fill_value value".split())
_OPERANDS |= set("weights sorter min max a_min a_max constant_values".split())


def _unsupported(value: Any) -> TypeError:
    hint = ": move it to the device with asarray" if isinstance(value, np.ndarray | list) else ""
    return TypeError(f"Unsupported type {type(value)}{hint}")


def _is_number(value: Any) -> bool:
    return type(value) in (bool, int, float, complex) or isinstance(value, np.generic)


def _lower(value: Any, operand: bool = False) -> Any:
    """``value`` for NumPy: arrays on the device unwrapped, also in sequences of them."""
    if type(value) is ndarray:
        return value._host
    if isinstance(value, np.ndarray) or (operand and value is not None and not _is_number(value)):
        raise _unsupported(value)
    return type(value)([_lower(v) for v in value]) if isinstance(value, tuple | list) else value


def _wrap(host: Any) -> ndarray:
    array = object.__new__(ndarray)
    array._host = np.asarray(host)  # NumPy's scalars become 0-d arrays
    if array.dtype.kind not in "biufc":
        raise TypeError(f"CuPy has no arrays of {array.dtype}")
    return array


def _lift(result: Any, effect: str, sources: list[ndarray]) -> Any:
    """What NumPy returned, for the device; counts a launch if a "view" had to be a copy."""
    if result is None:
        return None
    if isinstance(result, tuple | list):
        return type(result)([_lift(item, effect, sources) for item in result])
    host = np.asarray(result)
    if effect != "view":
        return _wrap(host if host.flags.c_contiguous else host.copy())
    for source in sources:
        if source._host is host:
            return source  # as a.astype(a.dtype, copy=False) is a
    _note(launches=not any(np.may_share_memory(host, source._host) for source in sources))
    return _wrap(host)


def _routine(name: str, function: Callable, parameters: str, effect: str) -> Callable:
    """NumPy's ``function`` for arrays on the device, with no parameters but ``parameters``.

    ``effect``: "launch" computes; "view" returns a view if it can, else copies; "sync" computes
    and waits for the result's shape; "none" only allocates.
    """
    signature = inspect.signature(eval(f"lambda {parameters}: None"))  # Python does the parsing
    only, either, rest, named = (
        [p.name for p in signature.parameters.values() if p.kind == kind]
        for kind in (P.POSITIONAL_ONLY, P.POSITIONAL_OR_KEYWORD, P.VAR_POSITIONAL, P.KEYWORD_ONLY)
    )
    positional, keywords = only + either, {*either, *named}

    def call(*args: Any, **kwargs: Any) -> Any:
        if (len(args) > len(positional) and not rest) or not keywords.issuperset(kwargs):
            raise TypeError(
                f"{name} does not take {len(args)} positional arguments and the keywords "
                f"{list(kwargs)}: what NumPy and CuPy share is {name}{signature}"
            )
        names = itertools.chain(positional, itertools.cycle(rest))
        given = [*zip(names, args, strict=False), *kwargs.items()]
        host = []
        for key, value in given:
            for item in value if key == "arrays" else [value] if key in _ARRAYS else []:
                if type(item) is not ndarray:
                    raise _unsupported(item)
            host.append(_lower(value, key in _OPERANDS))
        with np.errstate(all="ignore"):
            n = len(args)
            result = function(*host[:n], **dict(zip(kwargs, host[n:], strict=True)))
        if effect != "view":
            _note(launches=effect != "none", syncs=effect == "sync")
        if name in _MORE:
            _note(**_MORE[name](**{key: h for (key, _), h in zip(given, host, strict=True)}))
        for key, value in given:
            if key == "out" and value is not None:
                return value
        return _lift(result, effect, [value for _, value in given if type(value) is ndarray])

    call.__name__, call.__qualname__, call.__signature__ = name, name, signature
    return call


def _ufunc(name: str) -> Callable:
    """An elementwise function. CuPy's have no ``where=``, and few of them have ``at``."""
    function = getattr(np, name)
    operands = "x1, /" if function.nin == 1 else "x1, x2, /"
    in_c_order = functools.partial(function, order="C")  # NumPy would keep the operands' layout
    call = _routine(name, in_c_order, f"{operands}, out, *, dtype, casting", "launch")
    call = _fusible(call, function, function.nin)

    def at(a: ndarray, indices: Any, b: Any) -> None:
        if a.dtype.name not in _AT[name].split():  # CuPy has atomic operations for these
            raise TypeError(f"{name}.at on CuPy takes {_AT[name]}, not {a.dtype}")
        key, _, mask = a._key(indices)
        function.at(a._host, key, _lower(b, operand=True))
        _note(launches=1, syncs=mask)

    if name in _AT:
        call.at = at
    return call


_AT = {
    "add": "int32 int64 float16 float32 float64 uint32 uint64",
    "subtract": "int32 uint32",
    **dict.fromkeys(("maximum", "minimum"), "int32 int64 float32 float64 uint32 uint64"),
}


# ---- calls of several kernels -------------------------------------------------------------------


def _of_matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> dict[str, int]:
    """The kernels of a matrix product beside the product itself.

    From ``matmul`` and ``tensordot_core`` in CuPy's ``cupy/_core/_routines_linalg.pyx``. cuBLAS
    reads a matrix in C or in Fortran order, and another one is copied. A product of more axes reads
    C order alone, and if one operand is repeated, it makes an array of addresses for each of the
    three. A result that goes into an array of another order is copied there.
    """
    axes, dtype = max(a.ndim, b.ndim), np.result_type(a, b)
    copies = 0
    for x in (a, b):
        fits = x.flags.c_contiguous or (axes <= 2 and x.flags.f_contiguous)
        copies += not fits or x.dtype != dtype
    if out is not None:
        copies += not out.flags.c_contiguous or out.dtype != dtype
    batches = [(1,) * (axes - x.ndim) + x.shape[:-2] for x in (a, b)]
    addresses = 3 * (axes - 2) if axes > 2 and batches[0] != batches[1] else 0
    return {"launches": copies + addresses}


def _of_concatenate(arrays: Any, axis: int = 0, out: Any = None, dtype: Any = None) -> dict:
    """The kernels and transfers of ``concatenate`` beside the one kernel that each call has.

    From ``_concatenate`` in CuPy's ``cupy/_core/_routines_manipulation.pyx``: a copy for each
    array. But more than eight arrays of one dtype, of less than 2 MB on average, are copied by a
    single kernel, which first needs their addresses, and if they differ in length or order, their
    places and strides as well.
    """
    count, size = len(arrays), sum(x.nbytes for x in arrays)
    alike = len({x.dtype for x in arrays}) == 1 and (dtype is None or arrays[0].dtype == dtype)
    if count <= 8 or not alike or size >= count << 21:
        return {"launches": count - 1}
    plain = len({x.shape for x in arrays}) == 1 and all(x.flags.c_contiguous for x in arrays)
    return {"transfers": 1 if plain else 3}


_MORE = {
    "matmul": _of_matmul,
    "dot": _of_matmul,
    "concatenate": _of_concatenate,
    "stack": _of_concatenate,
}


# ---- fusing -------------------------------------------------------------------------------------


def fuse(*args: Any, **kwargs: Any) -> Callable:
    """``cupy.fuse``: a function of arrays as one kernel, if CuPy gives what it gives without fuse.

    CuPy calls the function once for each combination of dtypes and numbers of axes, with stand-ins
    for its arguments that write down what happens to them, and compiles that. What follows is read
    from ``cupy/_core/fusion.pyx`` of CuPy 14: ``_FusionVarScalar``, ``_FusionVarArray``,
    ``_FusionHistory.call_ufunc``, ``_FusionHistory.get_fusion`` and ``Fusion.__call__``.

    - Arguments are positional: arrays, Python's numbers, ``None``. With no array among them the
      function is simply called, and so it is within another fused function.
    - Supported are ufuncs, with ``out=`` for an array; the operators, but not ``abs(x)``, ``+x``
      and ``2**x``; ``x += y`` and its like; ``clip`` with both limits; three-argument ``where``
      with a condition of bool; ``astype``, ``copy``, ``x[...] = y``; ``dtype`` and ``ndim``.
    - It returns an array, a tuple of them, or nothing. Results are C-contiguous, whatever went in,
      and all have the shape to which the arguments broadcast. An argument that is written to must
      have that shape, or several threads would write to one place; and it must share no memory with
      other arguments, which may be read before or after.

    Refused with ``TypeError`` is what CuPy takes and does otherwise than without ``fuse``:

    - a number combined with a number, also ``-number``: the result is a float64 that no longer
      gives way to float32 arrays;
    - a closure over a number, an array, or an object that may hold some: it is frozen as it was at
      the first call;
    - NumPy's numbers, such as ``np.float64(2)``: they count as Python's there;
    - what ends the tracing with an error, such as reductions along with other functions, shapes,
      indices, ``if x > 0``. CuPy then turns to a second tracer (``new_fusion.pyx``), which supports
      more and takes several times as long on the host at every call;
    - more arrays than fit into the 4 KB that a kernel's arguments may have.

    A kernel has the name of its function, so a lambda needs another: ``fuse(kernel_name="f")(…)``.
    """
    if len(args) == 1 and callable(args[0]) and not kwargs:
        return _fusion(args[0])
    return lambda f: _fusion(f, *args, **kwargs)


def _fusion(f: Callable, kernel_name: str | None = None) -> Callable:
    if not (kernel_name or f.__name__).isidentifier():
        raise TypeError(f"a kernel cannot be called {f.__name__!r}: use def, or give a kernel_name")
    cells = getattr(f, "__closure__", None) or ()  # a builtin function has none
    names = f.__code__.co_freevars if cells else ()
    for name, value in zip(names, (cell.cell_contents for cell in cells), strict=True):
        if not isinstance(value, ModuleType | FunctionType | BuiltinFunctionType | type | np.ufunc):
            raise TypeError(
                f"{f.__name__} closes over {name} = {value!r}, which CuPy would read only once: "
                "make it an argument"
            )

    @functools.wraps(f)
    def call(*args: Any) -> Any:
        if _tracing() or not any(type(a) is ndarray for a in args):
            return f(*args)
        return _fused(f, args)

    return call


def _fused(f: Callable, args: tuple) -> Any:
    for a in args:
        if not (type(a) is ndarray or a is None or type(a) in (bool, int, float, complex)):
            got = type(a)
            raise TypeError(f"a fused function takes arrays, Python's numbers and None, not {got}")
    arrays = [a for a in args if type(a) is ndarray]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    traced = [a if a is None else _Traced(a._host if type(a) is ndarray else a) for a in args]
    _thread.tracing = True
    try:
        with np.errstate(all="ignore"):
            result = f(*traced)
    finally:
        _thread.tracing = False
    results = result if isinstance(result, tuple) else () if result is None else (result,)
    for part in results:
        if type(part) is not _Traced or part._is_number:
            got = type(part)
            raise TypeError(f"a fused function returns arrays, a tuple of them, or None: {got}")
    for i, a in enumerate(traced):
        if a is not None and a._changed:
            if a._host.shape != shape:
                got = a._host.shape
                raise TypeError(f"a fused function writes to {got}, its arrays are {shape}")
            others = [b for j, b in enumerate(args) if j != i and type(b) is ndarray]
            if any(np.shares_memory(a._host, b._host) for b in others):
                raise TypeError("what a fused function writes to overlaps with another argument")
    size = 8 + 16 * len(shape) + sum(16 + 16 * a.ndim for a in arrays)  # Indexer, CArray
    size += len(results) * (16 + 16 * len(shape))
    if size > 4096:
        raise TypeError(
            f"{len(arrays)} arrays and {len(results)} results are too many for a kernel"
        )
    _note(launches=1)
    results = tuple(_wrap(np.broadcast_to(part._host, shape).copy()) for part in results)
    return results if isinstance(result, tuple) else None if result is None else results[0]


_thread = threading.local()


def _tracing() -> bool:
    return getattr(_thread, "tracing", False)


class _Traced:
    """An argument of a fused function while it is traced, or what was computed from some."""

    __slots__ = ("_changed", "_host")
    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, host: Any):
        self._host, self._changed = host, False

    _is_number = property(lambda self: not isinstance(self._host, np.ndarray))
    dtype = property(lambda self: np.asarray(self._host).dtype)
    ndim = property(lambda self: -1 if self._is_number else self._host.ndim)

    def astype(self, dtype: Any, *, copy: bool = True) -> _Traced:
        if self._is_number:
            raise TypeError("a number in a fused function has no other dtype: convert it outside")
        return self if not copy and self.dtype == dtype else _Traced(self._host.astype(dtype))

    def copy(self) -> _Traced:
        return self.astype(self.dtype)

    def __setitem__(self, key: Any, value: Any) -> None:
        if key is not Ellipsis and key != slice(None):
            raise TypeError("a fused function assigns to x[...] only")
        _call_traced(np.positive, 1, (value,), self)

    def __bool__(self) -> bool:
        raise TypeError("a fused function does not branch on values: use where, maximum, clip")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"in a fused function an array has no {name!r}: do that outside")


def _call_traced(function: Callable, nin: int, args: tuple, out: Any = None) -> _Traced:
    """An elementwise function of what is traced, as ``call_ufunc`` in CuPy's fusion.pyx."""
    operands, outs = args[:nin], [*args[nin:], *([] if out is None else [out])]
    for a in operands:
        if type(a) is not _Traced and type(a) not in (bool, int, float, complex):
            raise TypeError(
                f"a fused function combines its arguments and Python's numbers, not {type(a)}"
            )
    if all(type(a) is not _Traced or a._is_number for a in operands):
        raise TypeError(
            "in a fused function a number is combined with a number, which makes a float64 that "
            "no longer gives way to float32: combine them outside"
        )
    result = function(*[a._host if type(a) is _Traced else a for a in operands])
    if not outs:
        return _Traced(np.asarray(result))
    [target] = outs
    if type(target) is not _Traced or target._is_number:
        raise TypeError(f"a fused function writes to its arrays only, not to {type(target)}")
    if not np.can_cast(result.dtype, target.dtype, "same_kind"):
        raise TypeError(f"{result.dtype} does not fit into {target.dtype}")
    target._host[...] = result
    target._changed = True
    return target


def _traced_operators(function: Callable) -> tuple[Callable, Callable, Callable]:
    """``a + b``, ``b + a`` and ``a += b``, which for a number a is a = a + b."""
    return (
        lambda a, b: function(a, b),
        lambda a, b: function(b, a),
        lambda a, b: NotImplemented if a._is_number else function(a, b, out=a),
    )


def _fusible(call: Callable, function: Callable, nin: int) -> Callable:
    """``call``, or while a function is traced, NumPy's ``function`` of what is traced."""

    @functools.wraps(call)
    def either(*args: Any, **kwargs: Any) -> Any:
        return _call_traced(function, nin, args, **kwargs) if _tracing() else call(*args, **kwargs)

    return either


# ---- the array ----------------------------------------------------------------------------------


class ndarray:
    """An array on the pretended device; the tables below give it most of its methods."""

    __slots__ = ("__weakref__", "_host")  # _host: NumPy's array, for this module only
    __array_priority__ = 100
    __array_ufunc__ = None  # np.f(a) raises TypeError, np.float32(2) * a becomes a.__rmul__
    __hash__ = None

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_function__(self, function: Callable, *args: Any) -> Any:
        name = function.__name__
        raise TypeError(f"numpy.{name} of an array on the device: use array_module(a).{name}")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"strict_cupy.ndarray has no {name!r}: if CuPy's and NumPy's arrays both have it, add "
            "it to the tables of strict_cupy.py; else do without"
        )

    def get(self) -> np.ndarray:
        """The values on the host: everything that waits for them goes through here."""
        _note(syncs=1)
        return self._host.copy()

    def item(self) -> bool | int | float | complex:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __reduce__(self) -> tuple:
        return array, (self.get(),)

    def __deepcopy__(self, memo: Any = None) -> ndarray:
        return self.copy()

    __copy__ = __deepcopy__

    @property
    def T(self) -> ndarray:
        return self.transpose()

    @property
    def flags(self) -> SimpleNamespace:
        names = ("c_contiguous", "f_contiguous", "owndata", "fnc", "forc")
        return SimpleNamespace(**{name: getattr(self._host.flags, name) for name in names})

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))  # views: what is done with them may wait

    def _key(self, key: Any) -> tuple[tuple, bool, bool]:
        """The index for NumPy; whether it has an index array; whether it has a mask."""
        keys = key if isinstance(key, tuple) else (key,)
        is_array = [type(k) is ndarray for k in keys]
        is_mask = [array and k.dtype.kind == "b" for k, array in zip(keys, is_array, strict=True)]
        axes = [  # how many each one indexes
            k.ndim if mask else int(k is not None and k is not Ellipsis)
            for k, mask in zip(keys, is_mask, strict=True)
        ]
        host, axis = [], 0
        for k, array, mask, taken in zip(keys, is_array, is_mask, axes, strict=True):
            if mask:
                k = k._host
            elif array and k.dtype.kind in "iu":
                k = _around(k._host, self.shape[axis] if axis < self.ndim else 0)
            elif k is Ellipsis:
                taken = self.ndim - sum(axes)
            elif _is_number(k) and type(k) is not bool:
                k = operator.index(k)
            elif not (k is None or isinstance(k, slice)):
                raise IndexError("indices are integers or masks") if array else _unsupported(k)
            host.append(k)
            axis += taken
        advanced = any(is_array)
        if not advanced and Ellipsis not in host:
            host.append(Ellipsis)  # or NumPy would return a number, not a 0-d view
        return tuple(host), advanced, any(is_mask)

    def __getitem__(self, key: Any) -> ndarray:
        host, advanced, mask = self._key(key)
        if advanced:
            _note(launches=1, syncs=mask)
        return _lift(self._host[host], "launch", []) if advanced else _wrap(self._host[host])

    def __setitem__(self, key: Any, value: Any) -> None:
        host, advanced, mask = self._key(key)
        new = _lower(value, operand=True)
        if not advanced and type(value) is ndarray and _same_place(self._host[host], new):
            return  # the second half of a[i] += b, which has been done in place already
        with np.errstate(all="ignore"):
            self._host[host] = new
        _note(launches=1, syncs=mask)


def _around(indices: np.ndarray, length: int) -> np.ndarray:
    """CuPy's kernels take indices modulo the axis's length, and check nothing."""
    return indices.astype(np.int64) % length if length else indices


def _same_place(a: np.ndarray, b: np.ndarray) -> bool:
    start, other = (x.__array_interface__["data"][0] for x in (a, b))
    return start == other and a.shape == b.shape and a.strides == b.strides


def _defers(other: Any) -> bool:
    """Whether ``array + other`` is for ``other`` to answer: CuPy's rule, which is NumPy's."""
    if type(other) is ndarray or _is_number(other):
        return False
    if hasattr(other, "__array_ufunc__"):
        return other.__array_ufunc__ is None
    return getattr(other, "__array_priority__", 0) > ndarray.__array_priority__


def _operators(function: Callable) -> tuple[Callable, Callable, Callable]:
    """``a + b``, ``b + a`` and ``a += b``, from ``add``."""
    return (
        lambda a, b: NotImplemented if _defers(b) else function(a, b),
        lambda a, b: NotImplemented if _defers(b) else function(b, a),
        lambda a, b: function(a, b, out=a),
    )


# ---- what is more than NumPy's function ---------------------------------------------------------


def array(obj: Any, dtype: Any = None, copy: bool | None = True) -> ndarray:
    """``obj`` on the device: a transfer from the host, unless it is there already."""
    if isinstance(obj, tuple | list) and any(type(item) is ndarray for item in obj):
        obj = _names["stack"](obj)
    if type(obj) is ndarray:
        return obj.astype(obj.dtype if dtype is None else dtype, copy=bool(copy))
    layout = "F" if isinstance(obj, np.ndarray) and obj.flags.fnc else "C"  # no other arrives
    result = _wrap(np.array(obj, dtype=dtype, order=layout))
    _note(transfers=result.ndim > 0, launches=result.ndim == 0)
    return result


def asarray(a: Any, dtype: Any = None, *, copy: bool | None = None) -> ndarray:
    return array(a, dtype, copy)


def asnumpy(a: Any) -> np.ndarray:
    return a.get() if type(a) is ndarray else np.asarray(a)


def get_array_module(*args: Any) -> Any:
    return sys.modules[__name__] if any(type(a) is ndarray for a in args) else np


def result_type(*arrays_and_dtypes: Any) -> np.dtype:
    return np.result_type(*[a.dtype if type(a) is ndarray else a for a in arrays_and_dtypes])


def where(condition: ndarray, *choices: Any) -> Any:
    if not choices:
        return _names["nonzero"](condition)  # this one waits
    return _names["_where"](condition, *choices)


def _where_of_bool(condition: np.ndarray, a: Any, b: Any) -> np.ndarray:
    if condition.dtype != bool:
        raise TypeError(
            f"where in a fused function takes a condition of bool, not {condition.dtype}"
        )
    return np.where(condition, a, b)


def sliding_window_view(x: ndarray, window_shape: Any, axis: Any = None) -> ndarray:
    """CuPy copies ``window_shape`` to the device, and asks there, one by one, if it is negative."""
    windows = np.size(window_shape)
    _note(launches=windows, syncs=windows, transfers=1)
    return _wrap(np.lib.stride_tricks.sliding_window_view(x._host, window_shape, axis))


def _stable(sort: Callable) -> Callable:
    """CuPy sorts with ``kind="stable"`` and no other."""

    def stable(a: np.ndarray, axis: int | None = -1, kind: str | None = None) -> Any:
        if kind not in (None, "stable"):
            raise ValueError("kind can only be None or 'stable'")
        return sort(a, axis=axis, kind="stable")

    return stable


def _put_along_axis(a: np.ndarray, indices: np.ndarray, values: Any, axis: int) -> None:
    np.put_along_axis(a, _around(indices, a.shape[axis]), values, axis)


_CUPYS_WAY = {
    "sort": _stable(np.sort),
    "argsort": _stable(np.argsort),
    "take": lambda a, i, axis=None, out=None: np.take(a, i, axis, out, mode="wrap"),
    "take_along_axis": lambda a, i, axis: np.take_along_axis(a, _around(i, a.shape[axis]), axis),
    "put_along_axis": _put_along_axis,
    "_where": np.where,
}


# ---- the tables: names, by the parameters that NumPy and CuPy 14 share --------------------------

_UFUNCS = """
abs absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and bitwise_or
bitwise_xor cbrt ceil copysign cos cosh divide equal exp exp2 expm1 fabs floor floor_divide fmax
fmin fmod greater greater_equal hypot invert isfinite isinf isnan left_shift less less_equal log
log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum minimum mod
multiply negative nextafter not_equal positive power reciprocal remainder right_shift rint sign
signbit sin sinh sqrt square subtract tan tanh true_divide trunc
"""

_LAUNCH = {
    "a, axis, dtype, out, keepdims": "sum prod mean",
    "a, axis, out, keepdims": "max min amax amin any all",
    "a, axis, *, out, keepdims": "argmax argmin",
    "a, axis, dtype, out, ddof, keepdims": "var std",
    "a, axis, dtype, out": "cumsum cumprod",
    "a, axis": "count_nonzero",
    "a, axis, kind": "sort argsort",
    "a, a_min, a_max, out": "clip",
    "a, decimals, out": "round around",
    "a, b, /, *, out": "matmul",
    "a, b, out": "dot outer",
    "a, b, /": "vdot inner",
    "a, b, axes": "tensordot",
    "a, y, /, rtol, atol, equal_nan": "isclose allclose",
    "a, b, /, *, equal_nan": "array_equal",
    "a, indices, axis, out": "take",
    "a, indices, /, axis": "take_along_axis",
    "a, indices, values, /, axis": "put_along_axis",
    "a, v, side, sorter": "searchsorted",
    "a, shift, axis": "roll",
    "a, repeats, axis": "repeat",
    "a, n, axis": "diff",
    "a, /, reps": "tile",
    "a, /, k": "tril triu",
    "a, offset, axis1, axis2, dtype, out": "trace",
    "x, *, nan, posinf, neginf": "nan_to_num",
    "condition, x1, x2, /": "_where",
    "dst, src, casting, where": "copyto",
    "array, pad_width, mode, *, constant_values": "pad",
    "arrays, /, axis, out, *, dtype": "concatenate stack",
    "arrays, /": "vstack hstack",
    "*a, indexing, sparse": "meshgrid",
    "shape, dtype, order": "zeros ones",
    "shape, fill_value, dtype, order": "full",
    "N, M, k, dtype, order": "eye",
    "n, dtype": "identity",
    "start, /, stop, step, *, dtype": "arange",
    "start, stop, num, endpoint, *, dtype, axis": "linspace",
    "dimensions, dtype": "indices",
}

_VIEW = {  # a view where NumPy can give one, else a copy: a launch
    "a, shape, /, order": "reshape",
    "a, axes": "transpose permute_dims",
    "a, source, destination": "moveaxis",
    "a, axis1, axis2": "swapaxes",
    "a, axis": "expand_dims squeeze",
    "a, order": "ravel copy",
    "a, offset, axis1, axis2": "diagonal",
    "a, /, k": "diag",
    "a, /, axis": "flip",
    "a, /, k, axes": "rot90",
    "a, /": "matrix_transpose",
    "a, dtype": "ascontiguousarray",
    "a, dtype, /, *, copy": "astype",
    "a, /, dtype, order, *, shape": "zeros_like ones_like",
    "a, /, fill_value, dtype, order, *, shape": "full_like",
    "ary, indices_or_sections, axis": "split array_split",
    "array, shape": "broadcast_to",
    "*a": "broadcast_arrays atleast_1d atleast_2d",
    "*operands, dtype, optimize": "einsum",
}

_SYNC = {
    "a": "nonzero flatnonzero argwhere",
    "ar, return_index, return_inverse, return_counts, axis, *, equal_nan": "unique",
    "x, /, weights, minlength": "bincount",
}

_NONE = {"shape, dtype, order": "empty", "a, /, dtype, order, *, shape": "empty_like"}

_METHODS = """
sum prod mean max min any all argmax argmin var std cumsum cumprod argsort round dot take repeat
trace swapaxes squeeze diagonal ravel nonzero
"""  # as the functions of these names; the methods below have parameters of their own

_OWN_METHODS = {
    "reshape": ("a, *shape, order", "view"),
    "transpose": ("a, *axes", "view"),
    "astype": ("a, dtype, order, *, copy", "view"),
    "view": ("a, dtype", "view"),
    "copy": ("a, order", "view"),
    "flatten": ("a, order", "view"),
    "clip": ("a, min, max, out", "launch"),
    "fill": ("a, value", "launch"),
    "sort": ("a, axis, kind", "launch"),
}

_GENERATOR = {  # CuPy's has no normal, permutation or choice
    "random": "size, dtype",
    "standard_normal": "size, dtype",
    "uniform": "low, high, size",
    "integers": "low, high, size, dtype, endpoint",
}

_NUMPYS = """
pi inf nan e newaxis dtype finfo iinfo issubdtype isscalar can_cast promote_types broadcast_shapes
bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128
generic number integer floating
"""

_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "pow": "power",
    "floordiv": "floor_divide", "mod": "remainder", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift", "matmul": "matmul",
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal",
}  # fmt: skip
_UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


# ---- the tables at work -------------------------------------------------------------------------

# Kept out of the globals, where sum, max and any are Python's; __getattr__ below hands them out.
_names: dict[str, Any] = {name: getattr(np, name) for name in _NUMPYS.split()}
_names |= {name: _ufunc(name) for name in _UFUNCS.split()}
for _effect, _table in {"launch": _LAUNCH, "view": _VIEW, "sync": _SYNC, "none": _NONE}.items():
    for _parameters, _group in _table.items():
        for _name in _group.split():
            _function = _CUPYS_WAY.get(_name) or getattr(np, _name)
            _names[_name] = _routine(_name, _function, _parameters, _effect)
for _function in (np.ndim, np.shape, np.size, np.may_share_memory):  # known without the device
    _names[_function.__name__] = lambda *arrays, f=_function: f(*map(_lower, arrays))

for _name in "shape dtype ndim size strides itemsize nbytes".split():
    setattr(ndarray, _name, property(operator.attrgetter("_host." + _name)))
for _name in _METHODS.split():
    setattr(ndarray, _name, _names[_name])
for _name, (_parameters, _effect) in _OWN_METHODS.items():
    _function = _stable(np.ndarray.sort) if _name == "sort" else getattr(np.ndarray, _name)
    setattr(ndarray, _name, _routine(_name, _function, _parameters, _effect))
for _convert in (bool, int, float, complex, repr, str):
    _name = f"__{_convert.__name__}__"
    setattr(ndarray, _name, lambda self, convert=_convert: convert(self.get()))
for _name, _function in _BINARY.items():
    _plain, _swapped, _in_place = _operators(_names[_function])
    setattr(ndarray, f"__{_name}__", _plain)
    if _name not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__r{_name}__", _swapped)
        if _name != "matmul":  # not in CuPy: there, a @= b makes a new array
            setattr(ndarray, f"__i{_name}__", _in_place)
for _name, _function in _UNARY.items():
    setattr(ndarray, f"__{_name}__", _names[_function])

_names["clip"] = _fusible(_names["clip"], lambda a, low, high: np.clip(a, low, high), 3)
_names["_where"] = _fusible(_names["_where"], _where_of_bool, 3)
for _name in _BINARY.keys() - {"matmul"}:
    _plain, _swapped, _in_place = _traced_operators(_names[_BINARY[_name]])
    setattr(_Traced, f"__{_name}__", _plain)
    if _name not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_Traced, f"__i{_name}__", _in_place)
        if _name != "pow":
            setattr(_Traced, f"__r{_name}__", _swapped)
for _name in ("neg", "invert"):
    setattr(_Traced, f"__{_name}__", _names[_UNARY[_name]])


class _Namespace(SimpleNamespace):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"strict_cupy has no {name!r} here: see whether CuPy and NumPy do")


def _default_rng(seed: Any = None) -> _Namespace:
    """Draws other numbers than NumPy's with the same seed, on CuPy: better draw on the host."""
    rng = np.random.default_rng(seed)
    draw = {n: _routine(n, getattr(rng, n), shared, "launch") for n, shared in _GENERATOR.items()}
    return _Namespace(**draw)


_stream = _Namespace(synchronize=lambda: _note(syncs=1))
_as_strided = _routine("as_strided", np.lib.stride_tricks.as_strided, "x, shape, strides", "view")
_tricks = _Namespace(as_strided=_as_strided, sliding_window_view=sliding_window_view)
lib = _Namespace(stride_tricks=_tricks)
random = _Namespace(default_rng=_default_rng)
cuda = _Namespace(is_available=lambda: True, get_current_stream=lambda: _stream)


def __getattr__(name: str) -> Any:
    if name not in _names or name.startswith("_"):
        raise AttributeError(
            f"strict_cupy has no {name!r}: if NumPy and CuPy both have it, add it to the tables of "
            "strict_cupy.py; if CuPy has not (errstate, say), do without"
        )
    return _names[name]


def __dir__() -> list[str]:
    return sorted(name for name in {*globals(), *_names} if not name.startswith("_"))
