"""Class weights by effective number: --hard class_balanced,beta=0.999"""

from kd import losses
from registry import register

register("loss", "class_balanced")(losses.class_balanced)
