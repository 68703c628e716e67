"""A backbone from outside the package: MLPs on tokens, steered by DRF. Use it as `backbone: {type: mine, width: 3}`."""

from torch import Tensor, nn

from bsr_plugins.archs import BACKBONES, AACLBackbone, BackboneShape
from bsr_plugins.archs.drf import DRF
from bsr_plugins.blocks import integer


class TokenBlock(nn.Module):
    """Normalise, fuse the representation into tokens, apply an MLP; a residual."""

    def __init__(self, shape: BackboneShape, width: int) -> None:
        super().__init__()
        self.norm, self.fuse = nn.LayerNorm(shape.num_feat), DRF(shape.representation_dim, shape.num_feat)
        hidden = width * shape.num_feat
        self.mlp = nn.Sequential(nn.Linear(shape.num_feat, hidden), nn.GELU(), nn.Linear(hidden, shape.num_feat))

    def forward(self, maps: Tensor, representation: Tensor) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)  # (B, h·w, num_feat)
        tokens = tokens.add(self.mlp(self.fuse(self.norm(tokens), representation)))
        return tokens.transpose(1, 2).reshape(maps.shape)


@BACKBONES.register("mine")
class MyBackbone(AACLBackbone):
    def __init__(self, shape: BackboneShape, width: int) -> None:
        integer(width, "width", 1, 16)
        super().__init__(TokenBlock(shape, width) for _ in range(shape.num_group * shape.num_block))
        self.conv_first = nn.Conv2d(shape.num_in_ch, shape.num_feat, 3, padding=1)
        self.conv_last = nn.Conv2d(shape.num_feat, shape.num_out_ch * shape.upscale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(shape.upscale)

    def head(self, image: Tensor) -> Tensor:
        features: Tensor = self.conv_first(image)
        return features

    def tail(self, features: Tensor) -> Tensor:
        image: Tensor = self.shuffle(self.conv_last(features))
        return image
