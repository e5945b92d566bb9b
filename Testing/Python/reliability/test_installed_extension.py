"""The extension as Slicer installs it: configured by real cmake, flat, complete, and at work from there."""

import re
import shutil
import subprocess
import sys
import sysconfig

import pytest

MODULES = ("Speckle2Self", "SpeckleTrain")


def cmake(*arguments):
    program = shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")
    if program is None:
        pytest.skip("cmake is not installed")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(project, tmp_path_factory):
    """Return the flat folder of modules that installing the extension makes."""
    build, prefix = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("installed")
    stand_in = project / "Testing" / "CMake"
    done = cmake("-S", project, "-B", build, f"-DSlicer_DIR={stand_in}", "-DBUILD_TESTING=ON")
    assert done.returncode == 0, done.stderr
    done = cmake("--install", build, "--prefix", prefix)
    assert done.returncode == 0, done.stderr
    return prefix / "lib" / "Slicer-5.10" / "qt-scripted-modules"


def listed(project, module):
    text = (project / module / "CMakeLists.txt").read_text().replace("${MODULE_NAME}", module)
    return set(re.findall(r"^  ([\w/]+\.\w+)$", text, re.MULTILINE))


@pytest.mark.parametrize("module", MODULES)
def test_every_file_of_a_module_is_listed_and_installed(project, installed, module):
    folder = project / module
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    left_out = ("__pycache__", "Speckle2SelfBench", "CMakeLists.txt")
    files = {name for name in files if not any(part in name for part in left_out)}
    assert listed(project, module) == files
    for name in files:
        assert (installed / name).read_bytes() == (folder / name).read_bytes()


def test_a_missing_file_stops_the_configuration(project, tmp_path):
    shutil.copytree(project, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "build", "scratch", "__pycache__"))
    (tmp_path / "copy" / "Speckle2Self" / "Speckle2SelfLib" / "loss.py").unlink()
    done = cmake("-S", tmp_path / "copy", "-B", tmp_path / "build", f"-DSlicer_DIR={project / 'Testing' / 'CMake'}")
    assert done.returncode != 0 and "loss.py" in done.stderr


def test_only_modules_lie_directly_in_the_flat_folder(installed):
    assert sorted(path.stem for path in installed.glob("*.py")) == sorted(MODULES)


def test_the_core_works_from_the_installed_tree(installed, tmp_path):
    code = """
import sys
import sysconfig
sys.path.insert(0, sys.argv[1])
import numpy as np
import Speckle2SelfLib.despeckling as core
assert core.__file__.startswith(sys.argv[1]), core.__file__
frames = np.random.default_rng(0).rayleigh(50, (2, 64, 64)).clip(0, 255).astype(np.uint8)
assert core.despeckle(frames, region=None).std() < 0.5 * frames.std()
"""
    subprocess.run([sys.executable, "-I", "-c", code, str(installed)], check=True, cwd=tmp_path)


def test_the_module_despeckles_in_the_scene_from_the_installed_tree(project, installed, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import numpy as np
assert slicer.modules.speckle2self.path.startswith(sys.argv[1]), slicer.modules.speckle2self.path
frames = np.random.default_rng(0).rayleigh(50, (2, 64, 64)).clip(0, 255).astype(np.uint8)
node = slicer.util.addVolumeFromArray(frames, name="US")
output = slicer.util.getModuleLogic("Speckle2Self").process(node, region="none")
assert output.GetName() == "US despeckled"
assert slicer.util.arrayFromVolume(output).std() < 0.5 * frames.std()
""".replace("\nimport", "\nimport sys\nimport", 1)
    )
    launcher = project / "Testing" / "headless-slicer"
    command = [launcher, "--additional-module-paths", installed, script, installed]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
