"""Offer the extension's recording in Slicer's Sample Data module. It is downloaded when the user requests it there."""

from pathlib import Path

import slicer

FILE = "Speckle2SelfCine1.seq.nrrd"  # made by Testing/make_sample_data.py, kept in Testing/Data
SHA256 = "c5755c7abcc2cbbed12d1ab0c1f4f4ed6c91b8c2390a0954f38d16e92a66791a"
URI = f"https://github.com/Speckle2Self/SlicerSpeckle2Self/releases/download/sample-data/{FILE}"
THUMBNAIL = Path(__file__).resolve().parent.parent / "Resources" / "Icons" / "Speckle2SelfCine1.png"


def register() -> None:
    """Register the recording in the category Ultrasound; do nothing if the application has no Sample Data module."""
    if not hasattr(slicer.modules, "sampledata"):
        return
    from SampleData import SampleDataLogic

    SampleDataLogic.registerCustomSampleDataSource(
        category="Ultrasound",
        sampleName="Speckle2SelfCine",
        thumbnailFileName=str(THUMBNAIL),
        uris=URI,
        fileNames=FILE,
        checksums=f"SHA256:{SHA256}",
        nodeNames="Speckle2SelfCine",
    )
