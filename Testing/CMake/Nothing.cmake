# Slicer packages the extension here; the stand-in installs alone.
