"""The backends that tests run on, and how hard the property-based tests try.

pytest                                  on NumPy and on the strict stand-in for CuPy
pytest --backend numpy|strict|cupy      on one of them; cupy needs a GPU
HYPOTHESIS_PROFILE=thorough pytest      more examples (minutes instead of seconds)
HYPOTHESIS_PROFILE=quick pytest         fewer
"""

import os

import numpy as np
import pytest
import strict_cupy
from hypothesis import HealthCheck, settings

from tinyadv.backend import BackendError, get_backend

ALWAYS = {
    "deadline": None,  # a busy machine is no failure
    "derandomize": bool(os.environ.get("CI")),
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("default", max_examples=50, **ALWAYS)
settings.register_profile("quick", max_examples=5, **ALWAYS)
settings.register_profile("thorough", max_examples=500, **ALWAYS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

BACKENDS = {
    "numpy": lambda: np,
    "strict": lambda: strict_cupy,
    "cupy": lambda: get_backend("cupy"),
}


def pytest_addoption(parser):
    parser.addoption(
        "--backend", choices=BACKENDS, help="run on this backend alone (default: numpy and strict)"
    )


def pytest_configure(config):
    """Look for the GPU once, before any test: its absence is one sentence, not many failures."""
    try:
        BACKENDS[config.getoption("--backend") or "numpy"]()
    except BackendError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc):
    chosen = metafunc.config.getoption("--backend")
    names = [chosen] if chosen else ["numpy", "strict"]
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", names, scope="session")
    if "device_name" in metafunc.fixturenames:
        devices = [name for name in names if name != "numpy"]
        metafunc.parametrize("device_name", devices, scope="session")


@pytest.fixture(scope="session")
def xp(backend):
    """The array module of a backend."""
    return BACKENDS[backend]()


@pytest.fixture(scope="session")
def device(device_name):
    """The array module of a backend other than NumPy: what NumPy's results are compared with."""
    return BACKENDS[device_name]()
