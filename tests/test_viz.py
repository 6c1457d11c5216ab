"""Figures: what is drawn is what was given, nothing is cut off, and numbers agree with a loop."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tinyadv import Tensor, losses, models, to_numpy, viz

RNG = np.random.default_rng(0)
GREY = RNG.random((6, 1, 5, 5), np.float32)
COLOUR = RNG.random((6, 3, 5, 5), np.float32)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def pictures(figure):
    """The pixels of each image in a figure."""
    return [np.asarray(image.get_array()) for ax in figure.axes for image in ax.images]


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def assert_all_is_inside(figure):
    """Draw it, and look whether a label is cut off at the edge."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= -0.02 and box.y0 >= -0.02
    assert box.x1 <= width + 0.02 and box.y1 <= height + 0.02


# ------------------------------------------------------------------------------------- images


def test_a_grid_shows_images_labels_answers_and_confidences(xp):
    figure = viz.image_grid(
        xp.asarray(GREY),
        labels=xp.asarray(np.arange(6)),
        predictions=[0, 1, 7, 3, 4, 5],
        confidences=np.array([0.5, 0.999, 0.9996, 1.0, 0.25, 0.1]),
        columns=4,
    )
    for got, image in zip(pictures(figure), GREY[:, 0], strict=True):
        np.testing.assert_array_equal(got, image)
    assert titles(figure) == ["0", "1", "2 → 7", "3", "4", "5"]
    colours = [ax.title.get_color() for ax in figure.axes[:6]]
    assert colours == ["black"] * 2 + [viz.VERMILLION] + ["black"] * 3
    assert [ax.get_xlabel() for ax in figure.axes[:6]] == [
        "50.0 %", "99.9 %", "99.96 %", "> 99.99 %", "25.0 %", "10.0 %"
    ]  # fmt: skip
    assert len(figure.axes) == 8  # two rows of four, the last two left empty
    assert not figure.axes[6].axison and not figure.axes[7].axison
    assert figure.axes[0].images[0].get_clim() == (0, 1)  # not stretched to what is there
    assert_all_is_inside(figure)


def test_a_grid_of_other_images():
    figure = viz.image_grid(COLOUR)
    np.testing.assert_allclose(pictures(figure)[1], COLOUR[1].transpose(1, 2, 0))
    assert titles(figure) == []
    figure = viz.image_grid(Tensor(GREY[:, 0]), labels=["shirt"] * 6)
    assert titles(figure) == ["shirt"] * 6 and len(figure.axes) == 6
    assert titles(viz.image_grid(GREY, predictions=np.zeros(6, int))) == ["0"] * 6
    assert len(viz.image_grid(np.concatenate([GREY, GREY])).axes) == 20  # ten in a row


def test_pixels_that_are_not_from_0_to_1():
    with pytest.warns(UserWarning, match="0–1 here, got 0 to 255: .* by 255") as caught:
        grid = viz.image_grid(np.arange(256).reshape(1, 16, 16))
    assert caught[0].filename == __file__  # it points at who called
    assert pictures(grid)[0].min() == 0 and pictures(grid)[0].max() == 1
    with pytest.warns(UserWarning, match="got -1 to 0"):
        viz.triptych(0 * GREY[0], 0 * GREY[0] - 1)
    square = np.stack([GREY[:2], 3 + 0 * GREY[2:4]])
    with pytest.warns(UserWarning, match="to 3:") as caught:
        viz.source_target_grid(square)
    assert len(caught) == 1  # not for each row
    viz.image_grid([[[-1e-6, 1 + 1e-6]]])  # rounding; here a warning is an error


def test_names_and_numbers_are_compared_as_text():
    figure = viz.image_grid(GREY[:2], labels=["7", "cat"], predictions=np.array([7, 8]))
    assert titles(figure) == ["7", "cat → 8"]
    assert figure.axes[0].title.get_color() == "black"
    figure = viz.triptych(GREY[0], GREY[1], answers=["7", 7])
    assert figure.axes[4].title.get_color() == "black"


def test_errors_of_a_grid():
    for bad in (GREY[0, 0], RNG.random((2, 4, 5, 5))):
        with pytest.raises(ValueError, match=r"\(N, C, H, W\) with C = 1 or 3.*got shape"):
            viz.image_grid(bad)
    with pytest.raises(ValueError, match="no images"):
        viz.image_grid(GREY[:0])
    with pytest.raises(ValueError, match="columns must be an integer ≥ 1, got 0"):
        viz.image_grid(GREY, columns=0)
    for name in ("labels", "predictions", "confidences"):
        with pytest.raises(ValueError, match=f"{name} must be 6, one for each, got 5"):
            viz.image_grid(GREY, **{name: [0.5] * 5})


def test_a_triptych_is_a_sum(xp):
    x_adv = np.clip(GREY[:1] + 0.125, 0, 1)
    figure = viz.triptych(
        xp.asarray(GREY[:1]), xp.asarray(x_adv), answers=(3, 8), confidences=(0.577, 0.993)
    )
    axes = figure.axes
    assert [t for t in titles(figure) if "change" not in t] == ["3  57.7 %", "8  99.3 %"]
    before, delta, after = (np.asarray(axes[i].images[0].get_array()) for i in (0, 2, 4))
    np.testing.assert_array_equal(before, GREY[0, 0])
    np.testing.assert_array_equal(after, x_adv[0, 0])
    np.testing.assert_allclose(before + delta, after, atol=1e-7)
    assert axes[2].images[0].get_clim() == (-0.125, 0.125)  # white is no change
    assert axes[2].get_title() == "largest change 0.125"
    assert axes[4].title.get_color() == viz.VERMILLION
    assert [ax.texts[0].get_text() for ax in axes if ax.texts] == ["+", "="]
    assert_all_is_inside(figure)


def test_a_triptych_with_other_images_and_no_words():
    figure = viz.triptych(COLOUR[0], COLOUR[0] * np.float32(0.5))
    middle = np.asarray(figure.axes[2].images[0].get_array())
    assert middle.shape == (5, 5, 3) and 0.3 < middle.max() < 0.5 and middle.min() == 0
    assert_all_is_inside(figure)
    figure = viz.triptych(GREY[0, 0], GREY[0, 0], answers=("cat", "cat"))  # nothing has changed
    assert titles(figure) == ["cat", "largest change 0", "cat"]
    assert figure.axes[4].title.get_color() == "black"
    assert figure.axes[2].images[0].get_clim() == (-1, 1)
    assert_all_is_inside(figure)


def test_errors_of_a_triptych():
    with pytest.raises(ValueError, match=r"x must be one image.*got shape"):
        viz.triptych(GREY, GREY)
    with pytest.raises(ValueError, match="one shape, got"):
        viz.triptych(GREY[0], COLOUR[0])
    with pytest.raises(ValueError, match="answers must be 2"):
        viz.triptych(GREY[0], GREY[0], answers=[1])
    with pytest.raises(ValueError, match="confidences must be 2"):
        viz.triptych(GREY[0], GREY[0], confidences=[1, 1, 1])


@pytest.mark.parametrize("images", [GREY[:, None], GREY, COLOUR[:, None]])
def test_a_square_from_sources_to_targets(images):
    square = np.stack([images[:3, 0], images[3:, 0], images[1:4, 0]])  # (3, 3, …)
    reached = np.ones((3, 3), bool)
    reached[0, 2] = False
    figure = viz.source_target_grid(square, classes=["a", "b", "ankle boot"], reached=reached)
    axes = np.array(figure.axes).reshape(3, 3)
    shown = np.asarray(axes[1, 2].images[0].get_array())
    expected = square[1, 2]
    if expected.ndim == 3:
        expected = expected[0] if len(expected) == 1 else expected.transpose(1, 2, 0)
    np.testing.assert_array_equal(shown, expected)
    crossed = [[len(ax.lines) == 2 for ax in row] for row in axes]
    np.testing.assert_array_equal(crossed, ~reached)
    framed = [[ax.spines["top"].get_linewidth() == 3 for ax in row] for row in axes]
    np.testing.assert_array_equal(framed, np.eye(3, dtype=bool))
    assert [ax.get_title() for ax in axes[0]] == ["a", "b", "ankle boot"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["a", "b", "ankle boot"]
    assert_all_is_inside(figure)


def test_a_square_by_default(xp):
    square = xp.asarray(np.stack([GREY[:2], GREY[2:4]]))
    figure = viz.source_target_grid(square)
    assert titles(figure) == ["0", "1"] and not any(ax.lines for ax in figure.axes)
    figure = viz.source_target_grid(square, reached=xp.asarray(np.eye(2, dtype=bool)))
    assert [len(ax.lines) for ax in figure.axes] == [0, 2, 2, 0]


def test_errors_of_a_square():
    for bad in (GREY, GREY[:, 0], np.zeros((2, 3, 1, 5, 5))):
        with pytest.raises(ValueError, match=r"\(K, K, C, H, W\).*got shape"):
            viz.source_target_grid(bad)
    square = np.zeros((2, 2, 5, 5))
    with pytest.raises(ValueError, match="classes must be 2"):
        viz.source_target_grid(square, classes=["a"])
    with pytest.raises(ValueError, match=r"reached must be of shape \(2, 2\), got \(2,\)"):
        viz.source_target_grid(square, reached=np.ones(2, bool))


# -------------------------------------------------------------------------------------- losses


def test_the_loss_on_a_plane_is_that_of_a_loop(xp):
    model = models.mlp((25, 8, 4), rng=1)
    x, d1, d2 = GREY[:2], RNG.standard_normal((2, 1, 5, 5)), RNG.standard_normal((2, 1, 5, 5))
    d1, d2, y = d1.astype("f4"), d2.astype("f4"), np.array([1, 3])
    expected = [
        [float(losses.margin(model(x + s * d1 + t * d2), y)) for s in np.linspace(-2, 2, 5)]
        for t in np.linspace(-2, 2, 5)
    ]
    for p in model.parameters():
        p.value = xp.asarray(p.value)
    on_device = [xp.asarray(a) for a in (x, y, d1, d2)]
    for batch_size in (1, 7, 500):
        a, b, values = viz.loss_on_plane(
            model, *on_device, reach=2, points=5, loss=losses.margin, batch_size=batch_size
        )
        np.testing.assert_array_equal(a, np.linspace(-2, 2, 5))
        np.testing.assert_array_equal(b, a)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


def test_a_plane_by_default_and_the_most_in_one_pass():
    model, sizes = models.mlp((25, 8, 4), rng=1), []

    def counting(x):
        sizes.append(len(x))
        return model(x)

    x = GREY[:2]
    a, _, values = viz.loss_on_plane(counting, x, np.array([1, 3]), x, x, batch_size=100)
    assert values.shape == (41, 41) and (a[0], a[20], a[-1]) == (-1, 0, 1)
    assert max(sizes) == 100 and sum(sizes) == 2 * 41**2
    assert values[20, 20] == pytest.approx(
        float(losses.cross_entropy(model(x), np.array([1, 3]))), rel=1e-5
    )


@pytest.mark.parametrize("given", [Tensor, list, lambda a: a.tolist()])
def test_a_plane_of_tensors_and_lists(given):
    model, d, y = models.mlp((25, 8, 4), rng=1), RNG.random((2, 1, 5, 5), np.float32), [1, 3]
    _, _, expected = viz.loss_on_plane(model, GREY[:2], np.array(y), d, d, points=3)
    _, _, got = viz.loss_on_plane(model, given(GREY[:2]), y, given(d), given(d), points=3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_errors_of_a_plane():
    model, x, y = models.mlp((25, 4)), GREY[:2], np.array([1, 3])
    for bad, words in (
        ({"points": 1}, "points must be an integer ≥ 2, got 1"),
        ({"reach": 0}, "reach must be a number > 0, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer ≥ 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            viz.loss_on_plane(model, x, y, x, x, **bad)
    with pytest.raises(ValueError, match="must have one shape"):
        viz.loss_on_plane(model, x, y, x, x[:1])
    with pytest.raises(ValueError, match="at least one example"):
        viz.loss_on_plane(model, x[:0], y[:0], x[:0], x[:0])


PLANE = (np.linspace(-1, 1, 4), np.linspace(-2, 2, 5), RNG.random((5, 4)))


def test_a_landscape(xp):
    figure = viz.loss_landscape(*map(xp.asarray, PLANE), names=("up", "aside"))
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("up", "aside")
    assert ax.get_xlim() == (-1, 1) and ax.get_ylim() == (-2, 2) and ax.get_box_aspect() == 1
    areas, lines = ax.collections[:2]
    assert lines.levels[0] > areas.levels[0]  # none at the lowest: that would draw the rounding
    assert_all_is_inside(figure)
    figure = viz.loss_landscape(*PLANE, surface=True)
    ax = figure.axes[0]
    assert ax.name == "3d" and ax.get_zlabel() == "loss"
    assert ax.get_xlabel() == "adversarial direction"
    figure.canvas.draw()


def test_a_landscape_has_a_value_for_each_place():
    with pytest.raises(ValueError, match=r"values must be of shape \(5, 4\), got \(4, 5\)"):
        viz.loss_landscape(*PLANE[:2], PLANE[2].T)


# ---------------------------------------------------------------------------------- accuracies


def test_curves_are_in_percent_and_in_order():
    names = [f"model {i}" for i in range(8)]  # more than there are colours
    given = {name: (np.array([0.2, 0.0, 0.1]), np.array([0.1, 0.9, 0.5])) for name in names}
    figure = viz.robustness_curves(given, chance=0.1)
    ax = figure.axes[0]
    chance, *curves = ax.lines
    assert list(chance.get_ydata()) == [10, 10]
    for curve in curves:
        np.testing.assert_allclose(curve.get_xdata(), [0, 0.1, 0.2])
        np.testing.assert_allclose(curve.get_ydata(), [90, 50, 10])
    looks = {(c.get_color(), c.get_marker(), c.get_linestyle()) for c in curves}
    assert len(looks) == 8
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["guessing", *names]
    assert ax.get_ylim() == (0, 100) and ax.get_xlim()[0] == 0
    assert_all_is_inside(figure)
    figure = viz.robustness_curves(given, colours=("red", "blue"))
    assert [line.get_color() for line in figure.axes[0].lines] == ["red", "blue"] * 4


# ------------------------------------------------------------------------------ all of them


def test_they_draw_where_they_are_told_to():
    whole = plt.figure(figsize=(9, 9), layout="constrained")
    parts = whole.subfigures(3, 1).flat
    assert viz.image_grid(GREY, figure=parts[0]) is parts[0]
    assert viz.triptych(GREY[0], GREY[1], figure=parts[1]) is parts[1]
    square = np.stack([GREY[:2], GREY[2:4]])
    assert viz.source_target_grid(square, figure=parts[2]) is parts[2]
    assert_all_is_inside(whole)
    figure, (left, right) = plt.subplots(1, 2)
    assert viz.loss_landscape(*PLANE, axes=left) is figure and left.collections
    assert viz.robustness_curves({"a": ([0, 1], [1, 0])}, axes=right) is figure and right.lines
    assert plt.get_fignums() == [whole.number, figure.number]  # and no other was made


def test_the_colours_of_grey_images():
    square = np.stack([GREY[:2], GREY[2:4]])
    for given in ({}, {"cmap": "gray_r"}):
        for figure in (
            viz.image_grid(GREY, **given),
            viz.triptych(GREY[0], GREY[1], **given),
            viz.source_target_grid(square, **given),
        ):
            found = {image.get_cmap().name for ax in figure.axes[:2] for image in ax.images}
            assert found == {given.get("cmap", "gray")}


def test_one_picture_in_axes_of_ones_own():
    _, ax = plt.subplots()
    drawn = viz.show(ax, 4 * GREY[0, 0] - 2, low=-1, high=1, cmap="RdBu_r")
    assert drawn is ax.images[0] and drawn.get_clim() == (-1, 1)
    np.testing.assert_allclose(drawn.get_array(), np.clip(4 * GREY[0, 0] - 2, -1, 1))
    assert drawn.get_cmap().name == "RdBu_r" and not len(ax.get_xticks())


def test_what_is_drawn_is_not_changed():
    images, kept = GREY.copy(), GREY.copy()
    viz.image_grid(images)
    viz.triptych(images[0], images[1])
    viz.source_target_grid(images[:4].reshape(2, 2, 1, 5, 5))
    np.testing.assert_array_equal(to_numpy(images), kept)
