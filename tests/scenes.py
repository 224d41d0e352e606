"""Photographs that are made of images: of each a garment on paper, on a wall, in shadow."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

HEIGHT, WIDTH, SIDE = 210, 280, 112
"""The size of a photograph, and of the garment in it: 40 % of its width."""

Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
WHITE = np.full((HEIGHT, WIDTH), 255.0)


def blurred(values, radius):
    picture = Image.fromarray((255 * values).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=float) / 255


def opacity(garment):
    """A garment of the test set as that of an object: 1 takes away all light."""
    return np.asarray(Image.fromarray(garment).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255


def at(values, rng):
    """The values somewhere in a picture of zeros."""
    y, x = rng.integers(15, HEIGHT - SIDE - 15), rng.integers(15, WIDTH - SIDE - 15)
    whole = np.zeros((HEIGHT, WIDTH))
    whole[y : y + SIDE, x : x + SIDE] = values
    return whole


def picture(values):
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def white(garment, rng):
    return picture(WHITE * (1 - at(opacity(garment), rng)))


def black(garment, rng):
    return picture(255 * at(opacity(garment), rng))


def jpeg(garment, rng):
    file = io.BytesIO()
    white(garment, rng).save(file, "JPEG", quality=15)
    return Image.open(file)


def noise(sigma):
    def scene(garment, rng):
        photo = 245 * (1 - at(opacity(garment), rng))
        return picture(photo + rng.normal(0, sigma, photo.shape))

    return scene


def gradient(garment, rng):
    along = (X * np.cos(0.5) + Y * np.sin(0.5)) / (WIDTH * np.cos(0.5) + HEIGHT * np.sin(0.5))
    return picture((140 + 110 * along) * (1 - at(opacity(garment), rng)))


def wall(garment, rng):
    """A beige wall with vignette, in colour, with the noise of a camera."""
    from_middle = (2 * X / WIDTH - 1) ** 2 + (2 * Y / HEIGHT - 1) ** 2
    light = np.array([225.0, 205.0, 175.0]) * (1 - 0.18 * from_middle)[..., None]
    photo = light * (1 - at(opacity(garment), rng))[..., None]
    return picture(photo + rng.normal(0, 5, photo.shape))


def shadow(garment, rng):
    """A soft shadow below and to the right, and not on the garment."""
    garment = at(opacity(garment), rng)
    thrown = blurred(np.roll(garment > 0.06, (6, 8), (0, 1)), 7) * (1 - blurred(garment > 0.06, 1))
    return picture(247 * (1 - 0.35 * thrown) * (1 - garment))


def any_shadow(garment, rng):
    """A shadow of any strength, softness and direction, on coloured paper, with noise."""
    garment, towards = at(opacity(garment), rng), tuple(rng.integers(-12, 13, 2))
    thrown = blurred(np.roll(garment > 0.06, towards, (0, 1)), rng.uniform(5, 12))
    thrown *= 1 - blurred(garment > 0.06, 1)
    light = (1 - rng.uniform(0.15, 0.45) * thrown) * (1 - garment)
    photo = 255 * rng.uniform(0.6, 1, 3) * light[..., None]
    return picture(photo + rng.normal(0, 3, photo.shape))


def any_gradient(garment, rng):
    angle = rng.uniform(0, 2 * np.pi)
    along = X * np.cos(angle) + Y * np.sin(angle)
    dark, light = sorted(rng.uniform(110, 250, 2))
    ground = np.interp(along, (along.min(), along.max()), (dark, light))
    return picture(ground * (1 - at(opacity(garment), rng)))


def tint(garment, rng):
    colour = rng.uniform(0.55, 1, 3)
    photo = 255 * colour / colour.max() * (1 - at(opacity(garment), rng))[..., None]
    return picture(photo)


def turned(angle):
    def scene(garment, rng):
        return white(garment, rng).rotate(angle, Image.Resampling.BICUBIC, fillcolor=255)

    return scene


SCENES = {
    "white": white, "black": black, "poor JPEG": jpeg, "noise 6": noise(6), "noise 12": noise(12),
    "gradient": gradient, "wall": wall, "shadow": shadow, "tint": tint,
    "any shadow": any_shadow, "any gradient": any_gradient,
    "turned left": turned(15), "turned right": turned(-15),
}  # fmt: skip
