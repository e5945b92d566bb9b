"""Self-supervised speckle reduction for ultrasound: the core. It needs torch and numpy, never Slicer, Qt or VTK."""

__version__ = "0.1.0"
