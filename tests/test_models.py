"""models.summary. The networks themselves are tested where they are used."""

import numpy as np
import pytest

from tinyadv import models, ops
from tinyadv.layers import Average, Dense, Flatten, MaxPool2d, Module, ReLU, Sequential


class Doubled(Module):
    """Notes the batches that it is called with."""

    def __init__(self):
        self.seen = []

    def __call__(self, x):
        self.seen.append(x)
        return ops.multiply(x, 2)


def printed(capsys, model, shape=(1, 28, 28)):
    """The rows of the summary, each as (layer, output shape, number)."""
    assert models.summary(model, shape) is None
    rows = [line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()]
    return [(*(part.strip() for part in row.rsplit("  (", 1)), n.strip()) for row, n in rows]


def test_a_line_for_each_layer_and_the_total(capsys):
    rows = printed(capsys, models.slides_cnn())
    assert rows[0] == ("Conv2d(1, 10, (5, 5), stride=1, padding=0)", "N, 10, 24, 24)", "260")
    assert rows[5] == ("MaxPool2d(2, stride=None)", "N, 20, 4, 4)", "0")
    assert rows[-2] == ("Dense(100, 10)", "N, 10)", "1,010")
    assert rows[-1] == ("total", "38,390") and len(rows) == 11


@pytest.mark.parametrize(
    "build, total",
    [
        (models.fast_cnn, 166_406), (models.interval_cnn, 329_606),
        (models.madry_cnn, 3_274_634), (models.linear, 7_850), (lambda: Sequential(), 0),
    ],
)  # fmt: skip
def test_the_totals_are_the_sums_of_the_lines(capsys, build, total):
    *rows, last = printed(capsys, build())
    assert last == ("total", f"{total:,}")
    assert sum(int(row[-1].replace(",", "")) for row in rows) == total


def test_nested_containers_are_flattened_and_other_modules_have_one_line(capsys):
    class Twice(Sequential):
        def __call__(self, x):
            return super().__call__(super().__call__(x))

    inner = Sequential(Doubled(), Sequential(ReLU(), lambda x: x))
    twice, both = Twice(MaxPool2d(2)), Average(models.mlp((49, 10)), models.mlp((49, 10)))
    rows = printed(capsys, Sequential(inner, twice, both))
    assert rows == [
        ("Doubled", "N, 1, 28, 28)", "0"),
        ("ReLU()", "N, 1, 28, 28)", "0"),
        ("<lambda>", "N, 1, 28, 28)", "0"),
        ("Twice", "N, 1, 7, 7)", "0"),
        ("Average", "N, 10)", "1,000"),
        ("total", "1,000"),
    ]
    assert printed(capsys, Doubled()) == [("Doubled", "N, 1, 28, 28)", "0"), ("total", "0")]


def test_a_shared_parameter_counts_once_in_the_total(capsys):
    layer = Dense(4, 4)
    rows = printed(capsys, Sequential(layer, layer), shape=(4,))
    assert [row[-1] for row in rows] == ["20", "20", "20"]


def test_one_image_of_zeros_on_the_backend_and_in_the_precision_of_the_model(capsys, xp):
    noting = Doubled()
    model = Sequential(noting, Flatten(), Dense(16, 3)).astype(np.float64)
    for p in model.parameters():
        p.value = xp.asarray(p.value)
    printed(capsys, model, shape=(1, 4, 4))
    (x,) = noting.seen
    assert type(x) is type(xp.zeros(1)) and x.shape == (1, 1, 4, 4) and x.dtype == np.float64
    assert not (x != 0).any()


@pytest.mark.parametrize(
    "shape, layer, expected, got",
    [
        ((3, 28, 28), r"Conv2d\(1, 10", r"\(10, 1, 5, 5\)", r"\(N, 3, 28, 28\)"),
        ((1, 32, 32), r"Dense\(320, 100\)", r"\(N, 320\)", r"\(N, 500\)"),
        ((1, 3, 3), r"Conv2d\(1, 10", r"size \(5, 5\)", r"\(N, 1, 3, 3\)"),
        ((28, 28), r"Conv2d\(1, 10", r"\(N, C, H, W\)", r"\(N, 28, 28\)"),
    ],
)
def test_a_wrong_shape_is_an_error_that_names_the_layer(capsys, shape, layer, expected, got):
    with pytest.raises(ValueError, match=rf"^{layer}.* does not take {got}: .*{expected}"):
        models.summary(models.slides_cnn(), shape)
    assert capsys.readouterr().out == ""
