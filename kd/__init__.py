"""The core: each file does one thing and can be imported alone; a folder holds one step from images to a report."""

__version__ = "0.1.0"  # setup.cfg reads it from here
