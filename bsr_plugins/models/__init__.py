"""Training models; importing this package registers them with BasicSR."""

from bsr_plugins.models.aacl_model import AACLModel
from bsr_plugins.models.blind_sr_model import BlindSRModel
from bsr_plugins.models.dasr_model import DASRModel
from bsr_plugins.models.redsr_model import ReDSRModel
from bsr_plugins.models.simple_align_model import SimpleAlignModel

__all__ = ["AACLModel", "BlindSRModel", "DASRModel", "ReDSRModel", "SimpleAlignModel"]
