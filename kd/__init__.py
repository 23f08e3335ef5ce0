"""The core: each file does one thing and can be imported alone; a folder holds one step from images to a report."""
