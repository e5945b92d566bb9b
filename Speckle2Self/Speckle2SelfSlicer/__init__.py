"""The shared part of the modules inside Slicer: the MRML scene on one side, the core's arrays on the other."""
