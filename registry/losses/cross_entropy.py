"""Cross-entropy with label smoothing: --hard ce,smoothing=0.1"""

from kd import losses
from registry import register

register("loss", "ce", "cross_entropy")(losses.cross_entropy)
