"""Focal loss: --hard focal,gamma=1.5"""

from kd import losses
from registry import register

register("loss", "focal")(losses.focal)
