"""The README is true: its links lead somewhere, its options exist, and its recipes run."""

import argparse
import re
import runpy
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import add_sequence

from Speckle2SelfBench import quality, speed
from Speckle2SelfLib import checkpoint
from Speckle2SelfLib.__main__ import main, parser
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.network import build
from Speckle2SelfLib.simulation import SimulationConfig, simulate


def documents(project):
    folders = ("*.md", "Documentation/*.md", "Testing/**/*.md", "Speckle*/**/*.md")
    return [path for folder in folders for path in project.glob(folder)]


def recipes(project):
    text = (project / "README.md").read_text() + (project / "Documentation/console.md").read_text()
    return re.findall(r"<!-- recipe -->\n```python\n(.*?)```", text, re.DOTALL)


def test_every_link_within_the_project_leads_to_a_file(project):
    for document in documents(project):
        for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_each_page_can_be_read_in_five_minutes(project):
    for page in project.glob("Documentation/*.md"):
        text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", page.read_text(), flags=re.DOTALL)
        assert len(re.findall(r"[A-Za-z]{2,}", text)) <= 1200, page.name


def test_every_make_target_that_is_named_exists(project):
    targets = set(re.findall(r"^(\w+):", (project / "Makefile").read_text(), re.MULTILINE))
    for document in documents(project):
        assert set(re.findall(r"(?:`|^)make (\w+)", document.read_text(), re.MULTILINE)) <= targets
    if (project / ".venv" / ".ready").exists():  # the requirements of each target exist; nothing is run
        for target in targets:
            subprocess.run(["make", "--dry-run", target], cwd=project, check=True, capture_output=True)


def test_the_reference_is_generated_from_the_parser(project):
    reference = runpy.run_path(str(project / "Testing" / "make_reference.py"))["reference"]
    assert (project / "Documentation/command_line.md").read_text() == reference()


def test_the_reference_names_every_command_and_option_and_no_other(project):
    text = (project / "Documentation/command_line.md").read_text()
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert set(re.findall(r"^\| `speckle2self (\w+)", text, re.MULTILINE)) == set(commands)
    options = {}
    for command, sub in commands.items():
        for action in sub._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    options.setdefault(option, set()).add(command)
    rows = {}
    for option, names in re.findall(r"^\| `(--[\w-]+)` \| ([\w, ]+) \|", text, re.MULTILINE):
        rows.setdefault(option, set()).update(names.split(", "))
    assert rows == options


@pytest.fixture
def scene():
    """Return a scene with volumes 'Liver', 'US' and 'Volume', a box 'Box' and a sequence 'Cine' in a browser;
    simulated."""
    slicer = pytest.importorskip("slicer")
    slicer.mrmlScene.Clear()
    frames = simulate(SimulationConfig((64, 64), 3, (1.2, 1.6), "organ"), np.random.default_rng(0)).frames
    frames = np.round(frames * 255).astype(np.uint8)
    slicer.util.addVolumeFromArray(frames, name="Liver")
    slicer.util.addVolumeFromArray(frames[:1], name="US")
    slicer.util.addVolumeFromArray(frames[:, :16, :16].repeat(4, 0), name="Volume")
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    box.SetCenter(30, 30, 0)
    box.SetSize(40, 40, 8)
    add_sequence(frames)
    yield slicer
    slicer.mrmlScene.Clear()


COMMANDS = {  # row of the reference -> the command typed here, and the files it leaves
    "despeckle INPUT... OUTPUT": ("despeckle in.npy more.npy out --model median", "out/more.npy"),
    "train INPUT... --output MODEL": (
        "train in.npy --output mine.model --preset adapt --init start.model --steps 1 --batch 1 --device cpu",
        "mine.model",
    ),
    "evaluate INPUT OUTPUT": ("evaluate in.npy out/in.npy", None),
    "simulate OUTPUT.npz": ("simulate frames.npz --frames 1 --size 48 48", "frames.npz"),
    "benchmark WHAT FOLDER": ("benchmark quality figures --quick", "figures"),
}


def test_every_command_of_the_reference_runs(project, tmp_path, small_crops, monkeypatch):
    """The benchmarks run only up to their own functions, because they need minutes; core/test_benchmark.py and
    test_speed.py run them."""
    text = (project / "Documentation/command_line.md").read_text()
    rows = re.findall(r"^\| `speckle2self ([^`]+)`", text, re.MULTILINE)
    assert set(rows) == set(COMMANDS)
    monkeypatch.chdir(tmp_path)
    frames = simulate(SimulationConfig((64, 64), 8, (1.2, 1.6), "organ"), np.random.default_rng(0)).frames
    for name in ("in.npy", "more.npy"):
        np.save(name, np.round(frames * 255).astype(np.uint8))
    model = ModelConfig(width=4, grain=(0.75, 1.7))
    checkpoint.save("start.model", model, build(model), {})
    for part in (quality, speed):
        monkeypatch.setattr(part, "run", lambda folder, **options: Path(folder).mkdir(exist_ok=True))
    for line, left in (*COMMANDS.values(), ("benchmark speed times --quick", "times")):
        assert main(line.split()) == 0, line
        assert left is None or Path(left).exists(), line


def test_every_command_line_in_the_documents_is_understood(project):
    lines = []
    for document in documents(project):
        text = document.read_text()
        spans = re.findall(r"`(?:\.venv/bin/)?speckle2self ([^`]+)`", text)
        spans += re.findall(r"^(?:make \w+ +# or: )?(?:\.venv/bin/)?speckle2self ([^#\n]+)", text, re.MULTILINE)
        lines += [(document.name, re.sub(r"[\[\]]", "", span).split()) for span in spans]
    assert len(lines) > 8
    for document, words in lines:
        options = [word for word in words if word.startswith("--")]
        known = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices[words[0]]
        assert set(options) <= set(known._option_string_actions), f"{document}: {' '.join(words)}"


EXPECTED = [  # what each recipe leaves in the scene, and prints
    ("Liver despeckled", "Liver despeckled\n"),
    ("Cine despeckled", "The error on held-out simulated frames of your recordings did not change. My scanner\n"),
    ("Cine despeckled", "3 0.10 s\n"),
    ("Liver srad", ""),
    ("Liver despeckled", "homogeneity"),
    ("Cine despeckled", "3 of 3"),
    ("Liver despeckled", ""),
    ("US live", ""),
    ("Volume despeckled", ""),
]


def follow(slicer, live, timer):
    """Follow as a user would: the first image, and one more."""
    us, end = slicer.util.getNode("US"), time.monotonic() + 60
    for _ in range(2):
        while live.waiting:
            assert time.monotonic() < end
            slicer.app.processEvents()
        slicer.util.updateVolumeFromArray(us, 255 - slicer.util.arrayFromVolume(us))
    timer.stop()
    live.stop()


def test_every_recipe_is_run_here(project):
    assert len(recipes(project)) == len(EXPECTED)


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_a_recipe_runs_as_printed(project, scene, number, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path))
    text, console = recipes(project)[number].replace("minutes=5", "steps=1"), {"slicer": scene}
    if "qt." in text:
        import qt

        console["qt"] = qt
    try:
        exec(text, console)
        if "live" in console:
            follow(scene, console["live"], console["timer"])
        names = {node.GetName() for node in scene.util.getNodesByClass("vtkMRMLNode")}
        printed = capsys.readouterr().out
    finally:
        scene.util.getModuleLogic("SpeckleTrain").trainer.close()
        scene.util.getModuleLogic("Speckle2Self").close()
    name, words = EXPECTED[number]
    assert name in names and words in printed
