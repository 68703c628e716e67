"""Baseline JPEG (4:2:0, the standard tables) as batched tensor operations, one quality per sample.

It does what libjpeg does by default, in the same whole numbers: fixed-point colour conversion, 2×2 chroma averaging,
the accurate integer DCT ("islow"), quantisation, and back with triangle ("fancy") chroma upsampling. The pixels are
those of OpenCV's encoder and decoder. Entropy coding is lossless and left out. Whole numbers are held in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bsr_plugins.blocks import interval
from bsr_plugins.degradations.base import GREY_LEVELS, Params, check_quality
from bsr_plugins.degradations.stages.base import STAGES, Block, Interval, LRStage

_BLOCK = 8
_CENTRE = 128.0

# Tables K.1 and K.2 of ITU-T T.81, the ones that libjpeg scales by quality.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * _BLOCK,) * 4,
)

# ITU-T T.871 (JFIF) in 16-bit fixed point. Before the shift libjpeg adds a half, but a little less for Cb and Cr, whose
# centre is 128.
_COLOUR_BITS = 16
_TO_YCBCR = ((19595, 38470, 7471), (-11058, -21710, 32768), (32768, -27439, -5329))
_YCBCR_OFFSET = (32768, 32767 + (128 << 16), 32767 + (128 << 16))
_CHROMA_TO_RGB = ((0, 91881), (-22554, -46802), (116130, 0))  # of Cb − 128 and Cr − 128, added to Y

# The 8-point DCT-II times √8 in 13-bit fixed point, frequencies in rows. Entries that should be equal differ by one
# here and there because libjpeg sums rounded constants.
_DCT_BITS = 13
_PASS_BITS = 2  # kept by the first pass for the second
_DCT = (
    (8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260, -2260, -6437, -9633, -11363),
    (10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703),
    (9633, -2259, -11362, -6436, 6436, 11362, 2259, -9633),
    (8192, -8192, -8192, 8192, 8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633, -9633, -2261, 11362, -6437),
    (4433, -10704, 10704, -4433, -4433, 10704, -10704, 4433),
    (2260, -6436, 9633, -11363, 11363, -9633, 6436, -2260),
)
_DCT_GAIN = 8  # coefficients come out in eighths


@STAGES.register("jpeg")
class JPEG(LRStage):
    """Baseline JPEG: `jpeg: {quality: [30, 95]}`.

    Args:
        quality: Qualities in [1, 100]; any number in the range is drawn, not whole ones alone, so that a sampler can be
            even.
        sampler: The sampler.
    """

    columns = ("jpeg_quality",)
    order = 200

    def __init__(self, quality: Interval, sampler: Block = "uniform") -> None:
        super().__init__(sampler, interval(quality, "quality", 1, 100))

    @classmethod
    def check(cls, params: Params) -> None:
        check_quality(params, "jpeg_quality")

    @classmethod
    def change(cls, lq: Tensor, params: Params) -> Tensor:
        return jpeg(lq, params["jpeg_quality"])


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress RGB images in [0, 1], shape (B, …, 3, H, W), any size.

    They are rounded to 8 bits first, as by any encoder, and come back on the 8-bit grid, without a gradient. Qualities,
    shape (B,), are in [1, 100] on libjpeg's scale. One between two whole numbers has quantisation tables between
    theirs: a file that libjpeg could write, though OpenCV does not ask for it.
    """
    height, width = x.shape[-2:]
    quality = quality.to(x.device, torch.float64)
    levels = torch.round(x.to(torch.float64).clamp(0, 1) * GREY_LEVELS)
    offset = levels.new_tensor(_YCBCR_OFFSET)[:, None, None]
    planes = torch.floor((_mix(_TO_YCBCR, levels) + offset) / 2**_COLOUR_BITS)
    planes = planes.reshape(x.shape[0], -1, 3, height, width)

    luma = _code(planes[:, :, :1], _table(_LUMA, quality))[..., :height, :width]
    chroma = _code(_halve(planes[:, :, 1:]), _table(_CHROMA, quality))
    chroma = _double(chroma[..., : -(-height // 2), : -(-width // 2)])[..., :height, :width]

    rgb = luma + _shift(_mix(_CHROMA_TO_RGB, chroma - _CENTRE), _COLOUR_BITS)
    return (rgb.clamp(0, GREY_LEVELS) / GREY_LEVELS).to(x.dtype).reshape(x.shape).contiguous()


def _shift(x: Tensor, bits: int) -> Tensor:
    """Divide by 2^bits and round, halves upwards, as libjpeg descales."""
    return torch.floor((x + 2 ** (bits - 1)) / 2**bits)


def _mix(matrix: tuple[tuple[int, ...], ...], planes: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", planes.new_tensor(matrix), planes)


def _table(base: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """Scale a quantisation table by quality as libjpeg does; shape (B, 8, 8)."""
    percent = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    return torch.floor((quality.new_tensor(base) * percent[:, None, None] + 50) / 100).clamp(1, 255)


def _code(planes: Tensor, table: Tensor) -> Tensor:
    """Send planes, shape (B, N, C, h, w), through DCT, quantisation and back; comes out padded to whole blocks."""
    height, width = planes.shape[-2:]
    padding = (0, -width % _BLOCK, 0, -height % _BLOCK)
    padded = F.pad(planes.flatten(0, 1), padding, mode="replicate").unflatten(0, planes.shape[:2])
    blocks = padded.unflatten(-1, (-1, _BLOCK)).unflatten(-3, (-1, _BLOCK)).transpose(-3, -2)  # … rows, cols, 8, 8
    dct = planes.new_tensor(_DCT)
    step = table[:, None, None, None, None] * _DCT_GAIN

    coefficients = _shift((blocks - _CENTRE) @ dct.T, _DCT_BITS - _PASS_BITS)
    coefficients = _shift(dct @ coefficients, _DCT_BITS + _PASS_BITS)
    quantised = torch.sign(coefficients) * torch.floor((coefficients.abs() + step / 2) / step)

    decoded = _shift(dct.T @ (quantised * step / _DCT_GAIN), _DCT_BITS - _PASS_BITS)
    decoded = _shift(decoded @ dct, _DCT_BITS + _PASS_BITS + 3)  # 3: both passes gain √8
    decoded = (decoded + _CENTRE).clamp(0, GREY_LEVELS)
    return decoded.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def _halve(chroma: Tensor) -> Tensor:
    """Average 2×2 pixels; libjpeg alternates its rounding from column to column so as not to drift."""
    height, width = chroma.shape[-2:]
    padding = (0, -width % (2 * _BLOCK), 0, height % 2)
    padded = F.pad(chroma.flatten(0, 1), padding, mode="replicate").unflatten(0, chroma.shape[:2])
    pairs = padded[..., 0::2, :] + padded[..., 1::2, :]
    sums = pairs[..., 0::2] + pairs[..., 1::2]
    bias = 1 + torch.arange(sums.shape[-1], device=chroma.device) % 2
    return torch.floor((sums + bias) / 4)


def _double(chroma: Tensor) -> Tensor:
    """Upsample by 2 with libjpeg's triangle filter: 3/4 the nearer and 1/4 the further sample, per axis."""
    if chroma.shape[-1] <= 2:  # libjpeg repeats pixels of narrow planes
        return chroma.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    above = torch.cat([chroma[..., :1, :], chroma[..., :-1, :]], dim=-2)
    below = torch.cat([chroma[..., 1:, :], chroma[..., -1:, :]], dim=-2)
    rows = torch.stack([3 * chroma + above, 3 * chroma + below], dim=-2).flatten(-3, -2)
    before = torch.cat([rows[..., :1], rows[..., :-1]], dim=-1)
    after = torch.cat([rows[..., 1:], rows[..., -1:]], dim=-1)
    left = torch.floor((3 * rows + before + 8) / 16)
    right = torch.floor((3 * rows + after + 7) / 16)
    return torch.stack([left, right], dim=-1).flatten(-2)
