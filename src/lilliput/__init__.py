"""Lilliput: tiny neural networks that you can trust.

The rooms are imported by name (``from lilliput import graph, mcu``); importing the package itself loads nothing heavy.
"""

__version__ = "0.1.0"
