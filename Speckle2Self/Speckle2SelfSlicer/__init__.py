"""What the modules share inside Slicer: the MRML scene on one side, the core's arrays on the other."""
