"""A study as read from its files comes in; the blocks of each section of the report come out."""
