"""Registers the three losses of kd/losses.py: --hard ce, --soft kd, and at (attention transfer) for --beta."""

from kd import losses
from registry import register

register("loss", "ce")(losses.cross_entropy)
register("loss", "kd")(losses.knowledge_distillation)
register("loss", "at")(losses.attention_transfer)
