"""What one would try first in the capstone, to compare with.

python -m lessons.exercises capstone --file lessons/exercises/solutions/capstone_first_attempt.py
"""

from tinyadv import attacks, fit, models, optim
from tinyadv.balls import Linf


def train(digits, epsilon, seconds):
    """Standard training."""
    model = models.slides_cnn(0)
    adam = optim.Adam(model.parameters())
    fit(model, digits, adam, epochs=3, rng=0, validate=False, progress=False)
    return model


def attack(model, x, y, epsilon):
    """Plain PGD."""
    return attacks.pgd(model, x, y, ball=Linf(epsilon), steps=40)
