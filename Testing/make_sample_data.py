"""Make the recording for Slicer's Sample Data module with our own simulator: a vessel in 20 frames of 128 x 128.

    .venv/bin/python Testing/make_sample_data.py [FOLDER]

Writes the sequence and its thumbnail into the folder (build/sample) and prints the SHA256. The numbers are drawn from
a fixed seed, but their last bits depend on the processor; therefore the file in Testing/Data is published, and a test
compares it with a new one. For an intended change: new name, file into Testing/Data, thumbnail into the module's
Resources/Icons, name and SHA256 into Speckle2SelfSlicer/sample_data.py.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from Speckle2SelfLib.simulation import SimulationConfig, simulate

NAME = "Speckle2SelfCine1"
SEED = 13
# The header that Slicer writes for sequences; the first row is on top in the red view. Spacing in mm, times in s.
HEADER = """NRRD0004
type: unsigned char
dimension: 4
space: left-posterior-superior
sizes: 128 128 1 20
space directions: (0.2,0,0) (0,0.2,0) (0,0,1) none
kinds: domain domain domain list
labels: "" "" "" "time"
units: "" "" "" "s"
encoding: raw
space origin: (0,0,0)
DataNodeClassName:=vtkMRMLScalarVolumeNode
axis 3 index type:=numeric
axis 3 index values:={times}

"""


def frames() -> np.ndarray:
    """Return the frames, (20, 128, 128) uint8."""
    config = SimulationConfig((128, 128), 20, (1.2, 1.8), "vessel", roughness=np.inf)
    return np.round(simulate(config, np.random.default_rng(SEED)).frames * 255).astype(np.uint8)


def sequence(images: np.ndarray) -> bytes:
    """Return the sequence file of (20, 128, 128) frames, 20 a second."""
    return HEADER.format(times=" ".join(f"{number * 0.05:.2f}" for number in range(20))).encode() + images.tobytes()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = frames()
    content = sequence(images)
    (folder / f"{NAME}.seq.nrrd").write_bytes(content)
    Image.fromarray(images[0]).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{NAME}.png", optimize=True)
    print(f"SHA256:{hashlib.sha256(content).hexdigest()}  {NAME}.seq.nrrd")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "build" / "sample")
