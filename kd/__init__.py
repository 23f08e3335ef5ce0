"""The core: each module does one thing and can be imported alone."""
