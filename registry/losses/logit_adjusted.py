"""Logit adjustment for long-tailed classes: --hard logit_adjusted,tau=1"""

from kd import losses
from registry import register

register("loss", "logit_adjusted")(losses.logit_adjusted)
