"""Networks. `*_arch.py` modules register theirs in BasicSR's `ARCH_REGISTRY`; the others are shared parts."""

from bsr_plugins.archs.aacl_arch import AACLNet
from bsr_plugins.archs.contrastive_encoder_arch import ContrastiveEncoder
from bsr_plugins.archs.dasr_arch import DASR
from bsr_plugins.archs.moco_arch import MoCo
from bsr_plugins.archs.msrn_arch import MSRN
from bsr_plugins.archs.redsr_arch import ReDSR
from bsr_plugins.archs.redsr_degrader_arch import ReDSRDegrader
from bsr_plugins.archs.redsr_encoder_arch import OracleEncoder, ReDSREncoder
from bsr_plugins.archs.representation_net import RepresentationNet

__all__ = [
    "DASR",
    "MSRN",
    "AACLNet",
    "ContrastiveEncoder",
    "MoCo",
    "OracleEncoder",
    "ReDSR",
    "ReDSRDegrader",
    "ReDSREncoder",
    "RepresentationNet",
]
