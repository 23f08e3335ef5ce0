"""Cross-entropy with label smoothing: --hard ce,smoothing=0.1"""

from kd import losses
from registry import register

register("loss", "ce")(losses.cross_entropy)
