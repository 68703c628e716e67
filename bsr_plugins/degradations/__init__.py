"""Degradations: HR images in, LR images out, as tensors on any device. Knows torch, not BasicSR."""

from bsr_plugins.degradations.base import DEGRADATIONS as DEGRADATIONS
from bsr_plugins.degradations.base import Degradation as Degradation
from bsr_plugins.degradations.base import Params as Params
from bsr_plugins.degradations.base import build_degradation as build_degradation
from bsr_plugins.degradations.base import classical_params as classical_params
from bsr_plugins.degradations.classical import ClassicalDegradation as ClassicalDegradation
from bsr_plugins.degradations.distance import degraded_distance as degraded_distance
from bsr_plugins.degradations.distance import sigma_align as sigma_align
from bsr_plugins.degradations.protocols import PROTOCOLS as PROTOCOLS
from bsr_plugins.degradations.protocols import Protocol as Protocol
from bsr_plugins.degradations.protocols import Setting as Setting
from bsr_plugins.degradations.protocols import protocol_degradation as protocol_degradation
from bsr_plugins.degradations.protocols import protocol_settings as protocol_settings
from bsr_plugins.degradations.protocols import with_noise_seed as with_noise_seed
from bsr_plugins.degradations.samplers import SAMPLERS as SAMPLERS
from bsr_plugins.degradations.samplers import AdaptiveSampler as AdaptiveSampler
from bsr_plugins.degradations.samplers import Sampler as Sampler
from bsr_plugins.degradations.second_order import SecondOrderDegradation as SecondOrderDegradation
from bsr_plugins.degradations.stages import STAGES as STAGES
from bsr_plugins.degradations.stages import Blur as Blur
from bsr_plugins.degradations.stages import LRStage as LRStage
from bsr_plugins.degradations.stages import SeparableBlur as SeparableBlur
from bsr_plugins.degradations.stages import Stage as Stage
