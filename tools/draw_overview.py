"""Make the pictures of the documentation: `python tools/draw_overview.py` writes docs/overview.png and data_flow.png.

The overview shows a photograph of scikit-image, its LR images under the six degradations of the protocol `six` with
their kernels, and what the three methods do about it. The other picture is the data flow of a training step. Needs the
extra [analysis].
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from PIL import Image

from bsr_plugins.data.decode import decode, to_tensor
from bsr_plugins.data.image_files import demo_photographs
from bsr_plugins.degradations import protocol_degradation, protocol_settings, with_noise_seed
from bsr_plugins.options.command_line import run_tool

DOCS = Path(__file__).resolve().parents[1] / "docs"
PROTOCOL = "six"
SCALE = 4
PHOTOGRAPH = (0, 56, 296)  # of chelsea.png: top, left and side of the square that is shown, in HR pixels
DETAIL = (60, 48, 144)  # of that square: what the LR images show
NOISE_SEED = 1

CAPTIONS = {
    "bicubic": "downsampled",
    "iso": "blurred",
    "aniso": "directional blur",
    "aniso_noise": "… + noise",
    "aniso_jpeg": "… + JPEG",
    "aniso_noise_jpeg": "… + noise + JPEG",
}
INK, FAINT, PAPER = "#1d2733", "#66727f", "white"
RED, BLUE, GREEN, CARD = "#c8553d", "#28618f", "#3c7d4f", "#eef1f4"


class Canvas:
    """A surface of a size in pixels; x goes right and y goes down.

    Args:
        width: Pixels.
        height: Pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor=PAPER)
        self.axes: Any = self._figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, size: float = 12, color: str = INK, **look: Any) -> None:
        """Write lines of text, the first standing at a point, by default to the right of it; sizes are in points."""
        for number, line in enumerate(text.splitlines()):
            self.axes.text(x, y + 1.85 * size * number, line, fontsize=size, color=color, **look)

    def image(self, pixels: Any, x: float, y: float, side: float, cmap: str | None = None) -> None:
        """Show a square image, each of its pixels as a square."""
        self.axes.imshow(pixels, cmap, aspect="auto", interpolation="nearest", extent=(x, x + side, y + side, y))

    def rectangle(self, x: float, y: float, width: float, height: float, fill: str, edge: str = "none") -> None:
        """Fill a rectangle."""
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=edge, linewidth=1.5))

    def frame(self, x: float, y: float, side: float, linewidth: float) -> None:
        """Put a white edge around a square."""
        self.axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=PAPER, linewidth=linewidth))

    def arrow(self, start: tuple[float, float], end: tuple[float, float], color: str = FAINT, **look: Any) -> None:
        """Put an arrow between two points."""
        default: dict[str, Any] = {
            "arrowstyle": "-|>",
            "mutation_scale": 16,
            "linewidth": 1.8,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        self.axes.add_patch(FancyArrowPatch(start, end, color=color, **(default | look)))

    def save(self, file: Path) -> None:
        """Write a PNG of 256 colours, which is the same every time."""
        buffer = BytesIO()
        self._figure.savefig(buffer, format="png")
        with Image.open(buffer) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


class Degraded(NamedTuple):
    """What the overview shows of a setting: the LR detail (h, w, 3) and the blur kernel (k, k), None without blur."""

    name: str
    lq: np.ndarray[Any, Any]
    kernel: np.ndarray[Any, Any] | None


def photograph() -> torch.Tensor:
    """Return the photograph, shape (1, 1, 3, H, W) in [0, 1]."""
    file = demo_photographs("val", "photograph")[0]
    top, left, side = PHOTOGRAPH
    return to_tensor(decode(file.read_bytes(), str(file)))[None, None, :, top : top + side, left : left + side]


def degraded(gt: torch.Tensor) -> list[Degraded]:
    """Degrade the photograph by every setting of the protocol, and cut the detail out."""
    degradation = protocol_degradation(PROTOCOL, SCALE)
    top, left, side = (pixels // SCALE for pixels in DETAIL)
    found = []
    for setting in protocol_settings(PROTOCOL, SCALE):
        params = with_noise_seed(setting.params, NOISE_SEED)
        lq = degradation(gt, params)[0, 0, :, top : top + side, left : left + side]
        blurs = float(params["lambda1"]) > 0
        kernel = degradation.kernels(params)[0].numpy() if blurs else None
        found.append(Degraded(setting.name, lq.permute(1, 2, 0).numpy(), kernel))
    return found


def draw_overview(file: Path) -> None:
    """Show the photograph, its LR images, and the methods."""
    canvas, gt = Canvas(1400, 516), photograph()
    left, top, side = 30, 104, 362
    heading(canvas, left, "A photograph", "what the network is to restore (HR)")
    canvas.image(gt[0, 0].permute(1, 2, 0).numpy(), left, top, side)
    y, x, size = (pixels * side / PHOTOGRAPH[2] for pixels in DETAIL)
    canvas.frame(left + x, top + y, size, 2.4)

    heading(canvas, 450, "degraded in unknown ways", "what it is given (LR), and the blur kernels")
    tile, gap, caption = 156, 16, 50
    for number, shown in enumerate(degraded(gt)):
        row, column = divmod(number, 3)
        draw_tile(canvas, shown, 450 + column * (tile + gap), top + row * (tile + caption), tile)

    heading(canvas, 1016, "restored by one network", "bsr_plugins: three ways of training it")
    for number, (name, color, lines, icon) in enumerate(METHODS):
        y = top + number * 123
        canvas.rectangle(1016, y, 354, 116, CARD)
        canvas.rectangle(1016, y, 7, 116, color)
        canvas.text(1038, y + 30, name, 15.5, color, weight="bold")
        canvas.text(1038, y + 55, lines, 12)
        icon(canvas, 1318, y + 58, color)
    for x in (left + side + 11, 976):
        canvas.arrow((x, top + side / 2), (x + 32, top + side / 2), linewidth=3, mutation_scale=26)
    canvas.save(file)


def heading(canvas: Canvas, x: float, title: str, below: str) -> None:
    """Write the two lines above a column."""
    canvas.text(x, 48, title, 18, weight="bold")
    canvas.text(x, 79, below, 12, FAINT)


def draw_tile(canvas: Canvas, shown: Degraded, x: float, y: float, side: float) -> None:
    """Show an LR image with its caption, and its kernel in a corner."""
    canvas.image(shown.lq, x, y, side)
    canvas.text(x + side / 2, y + side + 23, CAPTIONS[shown.name], 12, ha="center")
    if shown.kernel is not None:
        canvas.image(shown.kernel, x + side - 46, y + 6, 40, cmap="gray")
        canvas.frame(x + side - 46, y + 6, 40, 1)


def draw_contrast(canvas: Canvas, x: float, y: float, color: str) -> None:
    """Show representations: like ones near each other, others far away."""
    spots = {color: (-14, -14), INK: (20, 2), "#9aa6b2": (-10, 22)}
    for shade, (right, down) in spots.items():
        for angle in np.radians((20, 140, 260)):
            center = (x + right + 8.5 * np.cos(angle), y + down + 8.5 * np.sin(angle))
            canvas.axes.add_patch(Circle(center, 5.2, facecolor=shade, edgecolor=CARD, linewidth=0.8))


def draw_redegradation(canvas: Canvas, x: float, y: float, color: str) -> None:
    """Show a large patch becoming a small one."""
    canvas.rectangle(x - 40, y - 20, 40, 40, color)
    canvas.arrow((x + 4, y), (x + 24, y), color, mutation_scale=13)
    canvas.rectangle(x + 27, y - 6, 12, 12, color)


def draw_alignment(canvas: Canvas, x: float, y: float, color: str) -> None:
    """Show two distributions becoming one."""
    ramp = np.linspace(-34, 34, 120)
    for center, shade in ((-8, INK), (8, color)):
        curve = y + 24 - 46 * np.exp(-(((ramp - center) / 13) ** 2))
        canvas.axes.plot(x + ramp, curve, color=shade, linewidth=2.2)
    canvas.axes.plot((x - 36, x + 36), (y + 24, y + 24), color=FAINT, linewidth=1)


METHODS = (
    ("AACL", RED, "learns the degradation\nby contrast, and adapts\neach layer to it", draw_contrast),
    ("ReDSR", BLUE, "learns the degradation\nby repeating it on\nanother patch", draw_redegradation),
    ("Simple-Align", GREEN, "makes features follow\nthe same statistics under\nevery degradation", draw_alignment),
)

PARTS = (
    ("PairedDegradationDataset", INK, "reads HR images and\ncuts V views out of each"),
    ("Degradation", RED, "draws parameters by seed and\niteration, and degrades on\nthe training device"),
    ("network_g", BLUE, "the whole inference network:\nLR in, SR out"),
    ("losses", GREEN, "every block train.*_opt; the\nnames of forward's arguments\nsay what each one takes"),
)
LOWER_PARTS = (
    ("training networks", BLUE, "network_degrader (ReDSR),\nnetwork_moco (AACL, DASR)"),
    ("step", GREEN, "guard against numbers that\nare not finite, clipping,\noptimiser, EMA"),
)
BOX = (286, 122)


def draw_data_flow(file: Path) -> None:
    """Show the data flow of a training step."""
    canvas, (width, height) = Canvas(1400, 474), BOX
    columns, top, low = [30 + 352 * number for number in range(4)], 74, 274
    canvas.text(30, 46, "One training step", 18, weight="bold")
    for x, part in zip(columns, PARTS, strict=True):
        draw_part(canvas, x, top, *part)
    for x, flow in zip(columns[1:], ("gt", "lq", "sr"), strict=True):
        canvas.arrow((x - 61, top + height / 2), (x - 5, top + height / 2))
        canvas.text(x - 34, top + height / 2 - 12, flow, 13, weight="bold", ha="center")
    draw_views(canvas, columns[:2], low)
    for x, part in zip(columns[2:], LOWER_PARTS, strict=True):
        draw_part(canvas, x, low, *part)
    for x, flow in zip(columns[2:], ("representation", "{name: loss}"), strict=True):
        canvas.arrow((x + 60, top + height + 5), (x + 60, low - 5))
        canvas.text(x + 76, (top + height + low) / 2 + 5, flow, 13, weight="bold")
    canvas.arrow((columns[2] + width + 5, low + 24), (columns[3] - 5, top + height - 12))
    canvas.save(file)


def draw_part(canvas: Canvas, x: float, y: float, title: str, color: str, lines: str) -> None:
    """Show a part of the training step."""
    canvas.rectangle(x, y, *BOX, CARD)
    canvas.rectangle(x, y, BOX[0], 6, color)
    canvas.text(x + 14, y + 36, title, 12.5, color, weight="bold")
    canvas.text(x + 14, y + 63, lines, 11.5)


def draw_views(canvas: Canvas, columns: Sequence[float], y: float) -> None:
    """Show two views of the photograph below the dataset, and their LR images below the degradation."""
    gt, width = photograph(), BOX[0]
    views = torch.cat([gt[..., 44:172, 44:172], gt[..., 160:288, 140:268]], dim=1)
    noisy = next(setting for setting in protocol_settings(PROTOCOL, SCALE) if setting.name == "aniso_noise")
    lq = protocol_degradation(PROTOCOL, SCALE)(views, with_noise_seed(noisy.params, NOISE_SEED))
    for x, shape, images in zip(columns, ("(B, V, 3, H, W)", "(B, V, 3, h, w)"), (views, lq), strict=True):
        for number, image in enumerate(images[0]):
            canvas.image(image.permute(1, 2, 0).numpy(), x + 146 * number, y, 140)
        canvas.text(x + width / 2, y + 170, shape, 12, FAINT, ha="center")
        canvas.arrow((x + 60, y - 73), (x + 60, y - 5), arrowstyle="-", linestyle=":")


def draw() -> int:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS, help="folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with style.context("default"):
        draw_overview(args.out / "overview.png")
        draw_data_flow(args.out / "data_flow.png")
    return 0


def main() -> int:
    """Write both pictures, or say why that cannot be."""
    return run_tool(draw)


if __name__ == "__main__":
    raise SystemExit(main())
