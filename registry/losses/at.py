"""Attention transfer: --beta 1000"""

from kd import losses
from registry import register

register("loss", "at")(losses.attention_transfer)
