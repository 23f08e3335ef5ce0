"""Knowledge distillation: --soft kd --temperature 4"""

from kd import losses
from registry import register

register("loss", "kd")(losses.knowledge_distillation)
