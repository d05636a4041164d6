"""What this package is."""

from importlib.metadata import version

__version__ = version("dstash")
