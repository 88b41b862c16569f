"""The one place where the version stands: the package, the native core and the wheel read it."""

__version__ = "0.1.0"
