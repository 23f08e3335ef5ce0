"""The losses that kd/losses.py holds, under the names of the command line: --hard ce, --soft kd, --beta (at)."""

from kd import losses
from registry import register

register("loss", "ce")(losses.cross_entropy)
register("loss", "kd")(losses.knowledge_distillation)
register("loss", "at")(losses.attention_transfer)
