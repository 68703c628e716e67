"""Networks. `*_arch.py` modules register theirs in BasicSR's `ARCH_REGISTRY`, `*_backbone.py` theirs in `BACKBONES`.

Their constructors raise `OptionError` for an argument that is out of its range, of another type, or does not fit.
"""

from importlib import import_module
from pkgutil import iter_modules

from bsr_plugins.archs.aacl_arch import AACLNet as AACLNet
from bsr_plugins.archs.aacl_backbone import BACKBONES as BACKBONES
from bsr_plugins.archs.aacl_backbone import AACLBackbone as AACLBackbone
from bsr_plugins.archs.aacl_backbone import BackboneShape as BackboneShape
from bsr_plugins.archs.contrastive_encoder_arch import ContrastiveEncoder as ContrastiveEncoder
from bsr_plugins.archs.dasr_arch import DASR as DASR
from bsr_plugins.archs.moco_arch import MoCo as MoCo
from bsr_plugins.archs.msrn_arch import MSRN as MSRN
from bsr_plugins.archs.redsr_arch import OracleEncoder as OracleEncoder
from bsr_plugins.archs.redsr_arch import ReDSR as ReDSR
from bsr_plugins.archs.redsr_arch import ReDSRDegrader as ReDSRDegrader
from bsr_plugins.archs.redsr_arch import ReDSREncoder as ReDSREncoder
from bsr_plugins.archs.representation_net import RepresentationNet as RepresentationNet

for _file in iter_modules(__path__):
    if _file.name.endswith(("_arch", "_backbone")):
        import_module(f"{__name__}.{_file.name}")
