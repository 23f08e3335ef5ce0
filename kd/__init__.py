"""The core: each file does one thing and can be imported alone; a folder holds one step from images to a report."""

import os

__version__ = "0.1.0"  # setup.cfg reads it from here

# ONNX Runtime from 1.29 on writes an identifier of the machine into the user's cache folder as soon as it is imported,
# and sends events about its sessions over the network. Who wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
