"""Networks. `*_arch.py` modules register theirs in BasicSR's `ARCH_REGISTRY`, `*_backbone.py` theirs in `BACKBONES`."""

from importlib import import_module
from pkgutil import iter_modules

from bsr_plugins.archs.aacl_arch import AACLNet
from bsr_plugins.archs.aacl_backbone import BACKBONES, AACLBackbone, BackboneShape
from bsr_plugins.archs.contrastive_encoder_arch import ContrastiveEncoder
from bsr_plugins.archs.dasr_arch import DASR
from bsr_plugins.archs.moco_arch import MoCo
from bsr_plugins.archs.msrn_arch import MSRN
from bsr_plugins.archs.redsr_arch import OracleEncoder, ReDSR, ReDSRDegrader, ReDSREncoder
from bsr_plugins.archs.representation_net import RepresentationNet

for _file in iter_modules(__path__):
    if _file.name.endswith(("_arch", "_backbone")):
        import_module(f"{__name__}.{_file.name}")

__all__ = [
    "BACKBONES",
    "DASR",
    "MSRN",
    "AACLBackbone",
    "AACLNet",
    "BackboneShape",
    "ContrastiveEncoder",
    "MoCo",
    "OracleEncoder",
    "ReDSR",
    "ReDSRDegrader",
    "ReDSREncoder",
    "RepresentationNet",
]
