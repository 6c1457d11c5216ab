"""Glyphs: an MNIST-like dataset that needs no download.

The digits 0-9 in 16 type faces (DejaVu, STIX and Computer Modern, which come with matplotlib),
each example bent in its own way. What is stored is small: one 28×28 bitmap per face and digit
(``glyphs.npz``), rendered once and committed, because the rendering of fonts changes between
versions. What is made from it, once and then cached:

    bitmap -> random affine map and elastic distortion -> random stroke width and brightness

Whole faces are held out for the test images, so a network is tested on shapes that it has not
seen, as with the writers of MNIST.

Source of the elastic distortion: Simard, Steinkraus & Platt, "Best practices for convolutional
neural networks applied to visual document analysis", ICDAR 2003.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from tinyadv.checkpoint import replacing

SIZE = 28  # pixels, as in MNIST
CLASSES = tuple("0123456789")

# Files in matplotlib's own font folder; in glyphs.npz in this order. DejaVu Sans Mono is left out:
# its zero has a dot inside and, distorted, reads as an eight.
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
TEST_FACES = ("DejaVuSans-Oblique", "DejaVuSerif-BoldItalic", "STIXGeneral", "cmss10")
BASE_FILE = Path(__file__).with_name("glyphs.npz")

# Everything that decides what the images look like. "Uniform" means in [-value, value].
SETTINGS = {
    "train": 10_000,  # images, a tenth of them of each digit
    "test": 2_000,
    "seed": 0,
    "rotation": 15.0,  # degrees, uniform
    "shear": 0.2,  # horizontal pixels per vertical one, uniform
    "log_scale": 0.15,  # of width and of height, uniform: exp(0.15) = 1.16 times
    "shift": 1.5,  # pixels, horizontal and vertical, uniform
    "elastic_sigma": 4.0,  # pixels: how far neighbours move together
    "elastic_rms": (0.3, 1.15),  # pixels: how far they move; its range over images
    "blur": 0.6,  # pixels, before the threshold
    "threshold": (0.05, 0.3),  # of the blurred ink: what lies below is background
    "edge": 0.3,  # of the blurred ink above the threshold: from background to full ink
    "brightness": (0.85, 1.0),  # of full ink
}
VERSION = 1  # counts changes of the code below that change the images


def make_base_bitmaps(path: str | os.PathLike[str]) -> np.ndarray:
    """Render every digit of every face and write them to ``path``, as ``glyphs.npz`` was made.

    A digit is scaled to fit 20×20 pixels and its centre of mass goes to the centre of the 28×28
    image: what was done to the digits of MNIST. The committed file was made with matplotlib
    3.11 by ::

        python -c "from tinyadv.data import glyphs; glyphs.make_base_bitmaps(glyphs.BASE_FILE)"

    Parameters
    ----------
    path : str or path
        A ``.npz`` file with the array ``bitmaps``.

    Returns
    -------
    uint8 array (16 faces, 10 digits, 28, 28)
        Ink, from 0 to 255, in 16 levels (which halves the size of the file).
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    fine = 8  # rendered 8 times finer, then averaged
    size = SIZE * fine
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

    def render(face: str, digit: str) -> np.ndarray:
        font = FontProperties(fname=fonts / f"{face}.ttf")
        outline = TextPath((0, 0), digit, size=100, prop=font)
        box = outline.get_extents()
        to_pixels = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
        to_pixels.scale(20 * fine / max(box.width, box.height)).translate(size / 2, size / 2)
        figure = Figure(figsize=(size / 100, size / 100), dpi=100)
        canvas = FigureCanvasAgg(figure)
        shape = to_pixels.transform_path(outline)
        figure.add_artist(PathPatch(shape, color="black", linewidth=0, transform=None))
        canvas.draw()
        ink = 255.0 - np.asarray(canvas.buffer_rgba())[..., 0]  # (28·8, 28·8)
        middle = np.arange(size) - (size - 1) / 2
        off_centre = [round(ink.sum(axis) @ middle / ink.sum()) for axis in (1, 0)]
        ink = np.roll(ink, [-pixels for pixels in off_centre], axis=(0, 1))
        return ink.reshape(SIZE, fine, SIZE, fine).mean((1, 3))  # (28, 28)

    bitmaps = np.array([[render(face, digit) for digit in CLASSES] for face in FACES])
    bitmaps = (np.rint(bitmaps / 17) * 17).astype(np.uint8)  # 0, 17, ..., 255
    np.savez_compressed(path, bitmaps=bitmaps)
    return bitmaps


def base_bitmaps() -> np.ndarray:
    """The committed bitmaps: uint8 (16 faces, 10 digits, 28, 28)."""
    with np.load(BASE_FILE, allow_pickle=False) as file:
        return file["bitmaps"]


def distort(bitmaps: np.ndarray, rng: np.random.Generator | int) -> np.ndarray:
    """Bend each bitmap in its own way, by ``SETTINGS``.

    Parameters
    ----------
    bitmaps : uint8 array (N, 28, 28)
    rng : numpy.random.Generator or int

    Returns
    -------
    uint8 array (N, 28, 28)
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    rng = np.random.default_rng(rng)
    n, s = len(bitmaps), SETTINGS

    def draw(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, n).astype(np.float32)

    # For each pixel of the result, the place in the bitmap that it comes from, as (row, column):
    # an affine map of its offset from the centre, plus a smooth random field.
    angle = np.radians(draw(-s["rotation"], s["rotation"]))
    shear = draw(-s["shear"], s["shear"])
    height, width = (np.exp(draw(-s["log_scale"], s["log_scale"])) for _ in range(2))
    cos, sin = np.cos(angle), np.sin(angle)
    zero = np.zeros(n, np.float32)
    rotate = np.array([[cos, -sin], [sin, cos]])  # (2, 2, N)
    shrink = np.array([[1 / height, zero], [shear / height, 1 / width]])  # (2, 2, N)
    affine = np.einsum("ijn,jkn->nik", shrink, rotate)  # (N, 2, 2)
    shift = np.stack([draw(-s["shift"], s["shift"]), draw(-s["shift"], s["shift"])], 1)  # (N, 2)
    centre = (SIZE - 1) / 2
    pixel = np.indices((SIZE, SIZE), np.float32) - centre  # (2, 28, 28)
    offset = pixel - shift[:, :, None, None]  # (N, 2, 28, 28)
    source = np.einsum("nij,njpq->nipq", affine, offset) + centre  # (N, 2, 28, 28)

    noise = rng.standard_normal((n, 2, SIZE, SIZE), dtype=np.float32)
    sigma = s["elastic_sigma"]
    field = gaussian_filter(noise, (0, 0, sigma, sigma), mode="wrap", truncate=3.0)
    field *= 2 * np.sqrt(np.pi) * sigma  # smoothing left a standard deviation of 1 / (2 √π σ)
    source += field * draw(*s["elastic_rms"])[:, None, None, None]

    # One call for all images: the first coordinate is the number of the image, a whole number,
    # so that linear interpolation never mixes two of them.
    which = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None], (n, SIZE, SIZE))
    coordinates = np.stack([which, source[:, 0], source[:, 1]])  # (3, N, 28, 28)
    ink = map_coordinates(bitmaps.astype(np.float32) / 255, coordinates, order=1)

    # The edge of a stroke is where the blurred ink passes a threshold: a lower one, a thicker pen.
    ink = gaussian_filter(ink, (0, s["blur"], s["blur"]))
    ink = (ink - draw(*s["threshold"])[:, None, None]) / s["edge"]
    ink = np.clip(ink, 0, 1) * draw(*s["brightness"])[:, None, None]
    return np.rint(ink * 255).astype(np.uint8)


def make_split(
    faces: tuple[str, ...], count: int, rng: np.random.Generator | int
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images of the digits in ``faces``, each digit and face about equally often.

    Returns
    -------
    images : uint8 array (count, 1, 28, 28)
    labels : int64 array (count,)
    """
    rng = np.random.default_rng(rng)
    order = rng.permutation(count)
    labels = order % 10
    rows = np.array([FACES.index(face) for face in faces])[order // 10 % len(faces)]
    bitmaps = base_bitmaps()[rows, labels]  # (count, 28, 28)
    chunks = np.split(bitmaps, range(1000, count, 1000))  # keeps temporaries small
    images = np.concatenate([distort(chunk, rng) for chunk in chunks])
    return images[:, None], labels  # (count, 28, 28) -> (count, 1, 28, 28)


def make() -> dict[str, np.ndarray]:
    """Make the whole dataset by ``SETTINGS``; about a second.

    Returns
    -------
    arrays : dict
        ``x_train``, ``x_test``: uint8 (N, 1, 28, 28), and ``y_train``, ``y_test``: int64 (N,)
    """
    rng = np.random.default_rng(SETTINGS["seed"])
    train_faces = tuple(face for face in FACES if face not in TEST_FACES)
    x_train, y_train = make_split(train_faces, SETTINGS["train"], rng)
    x_test, y_test = make_split(TEST_FACES, SETTINGS["test"], rng)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def cache_file(folder: Path) -> Path:
    """Where ``load`` keeps the images: the name changes with everything that decides them."""
    recipe = repr((VERSION, SETTINGS, FACES, TEST_FACES)).encode() + BASE_FILE.read_bytes()
    return folder / "glyphs" / f"glyphs-{hashlib.sha256(recipe).hexdigest()[:16]}.npz"


def load(folder: Path) -> dict[str, np.ndarray]:
    """What ``make`` returns, from the cache in ``folder`` if it is there and sound."""
    path = cache_file(folder)
    try:
        # Opened here, because np.load(path) leaves a broken file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except Exception:  # missing or broken in whatever way: it costs a second to make it again
        arrays = make()
    # If the folder cannot be written, it is made again next time.
    with contextlib.suppress(OSError), replacing(path) as file:
        np.savez(file, **arrays)
    return arrays
