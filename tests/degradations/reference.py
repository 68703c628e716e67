"""The classical degradation in float64, written as plainly as possible: loops over taps, one grey image at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gaussian_kernel(lambda1: float, lambda2: float, theta: float, size: int = 21) -> Array:
    """Return `exp(−½ pᵀ Σ⁻¹ p)` over the taps p = (x, y), indexed [y, x] and summing to 1; λ = 0 is the impulse."""
    radius = size // 2
    kernel = np.zeros((size, size))
    if lambda1 == 0:
        kernel[radius, radius] = 1
        return kernel
    rotation = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    covariance = rotation @ np.diag([lambda1**2, lambda2**2]) @ rotation.T
    inverse = np.linalg.inv(covariance)
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            tap = np.array([x, y])
            kernel[radius + y, radius + x] = math.exp(-tap @ inverse @ tap / 2)
    kernel /= kernel.sum()
    return kernel


def motion_kernel(length: float, angle: float, size: int = 21) -> Array:
    """Return max(0, 1 − d) over the taps p = (x, y), d their distance from the nearest point of the path, summing to 1.

    The path is a straight line of `length` − 1 pixels through the centre.
    """
    radius, half = size // 2, max(length - 1, 0) / 2
    direction = np.array([math.cos(angle), math.sin(angle)])
    kernel = np.zeros((size, size))
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            tap = np.array([x, y])
            nearest = min(max(float(tap @ direction), -half), half) * direction
            kernel[radius + y, radius + x] = max(0.0, 1 - math.dist(tap, nearest))
    kernel /= kernel.sum()
    return kernel


def blur(image: Array, kernel: Array) -> Array:
    """Blur a grey image, shape (H, W), with borders reflected so that the edge pixel is not doubled."""
    height, width = image.shape
    radius = kernel.shape[0] // 2
    padded = np.pad(image, radius, mode="reflect")
    blurred = np.zeros_like(image)
    for y in range(kernel.shape[0]):
        for x in range(kernel.shape[1]):
            blurred += kernel[y, x] * padded[y : y + height, x : x + width]
    return blurred


def cubic(x: float) -> float:
    """Return Keys' cubic, a = −0.5."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def inside(position: int, size: int, border: str) -> int:
    """Bring a position outside the image back in: to the edge pixel, or mirrored with the edge pixel doubled."""
    if border == "clamp":
        return min(max(position, 0), size - 1)
    while not 0 <= position < size:
        position = -1 - position if position < 0 else 2 * size - 1 - position
    return position


def resize_rows(image: Array, rows: int, border: str) -> Array:
    """Resize along the first axis as MATLAB's `imresize` does: half-pixel centres, a wider cubic when it shrinks."""
    ratio = image.shape[0] / rows
    stretch = max(ratio, 1.0)
    resized = np.zeros((rows, *image.shape[1:]))
    for row in range(rows):
        centre = (row + 0.5) * ratio - 0.5
        taps = range(math.floor(centre - 2 * stretch), math.ceil(centre + 2 * stretch) + 1)
        weights = [cubic((centre - tap) / stretch) for tap in taps]
        for tap, weight in zip(taps, weights, strict=True):
            resized[row] += weight / sum(weights) * image[inside(tap, image.shape[0], border)]
    return resized


def bicubic(image: Array, size: tuple[int, int], border: str = "clamp") -> Array:
    """Resize a grey image to (H, W)."""
    return resize_rows(resize_rows(image, size[0], border).T, size[1], border).T


def blur_bicubic(images: Any, kernel: Array, scale: int, border: str = "clamp") -> Array:
    """Blur and downsample grey images, shape (…, H, W)."""
    images = np.asarray(images, dtype=np.float64)
    size = (images.shape[-2] // scale, images.shape[-1] // scale)
    planes = [bicubic(blur(plane, kernel), size, border) for plane in images.reshape(-1, *images.shape[-2:])]
    return np.stack(planes).reshape(*images.shape[:-2], *size)
