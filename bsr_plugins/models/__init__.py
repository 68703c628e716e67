"""Training models; importing this package registers them with BasicSR."""

from bsr_plugins.models.aacl_model import AACLModel
from bsr_plugins.models.blind_sr_model import BlindSRModel

__all__ = ["AACLModel", "BlindSRModel"]
