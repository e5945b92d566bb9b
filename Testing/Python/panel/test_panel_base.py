"""The common behavior of both panels: errors, message boxes, parameter nodes, reload."""

import gc
import os
import subprocess
import sys
import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

FRAMES = np.random.default_rng(0).rayleigh(40, (3, 48, 56)).clip(0, 255).astype(np.uint8)


def test_after_an_error_of_any_kind_the_panel_can_be_used_again(desk, panel, monkeypatch):
    panel.ui.inputSelector.setCurrentNode(desk.volume())

    def broken(*arguments, **options):
        panel.setStatus("Installing Python packages...")
        raise RuntimeError("It broke.")

    monkeypatch.setattr(panel.logic, "start", broken)
    panel.ui.applyButton.click()
    assert [kind for kind, _ in desk.asked] == ["message"] and "Despeckling failed." in desk.asked[0][1]
    assert panel.ui.statusLabel.text == "" and panel.ui.applyButton.visible and panel.ui.applyButton.enabled


def test_messages_of_the_core_are_shown_in_the_users_language(desk, panel, monkeypatch):
    """They come from another process, follow a file name or are raised here; their values are in the sentence."""
    from Speckle2SelfLib import library
    from Speckle2SelfSlicer import words
    from Speckle2SelfSlicer.panel import reporting_errors

    french = {
        ("Speckle2SelfLib.calibration", "The frames are constant ({value}): there is nothing to despeckle."): (
            "Rien à faire : les images sont constantes ({value})."
        ),
        ("Speckle2SelfLib.library", "There is no model '{name}'."): "Le modèle '{name}' n'existe pas.",
    }
    monkeypatch.setattr(words, "translate", lambda context, text: french.get((context, text), text))
    panel.ui.inputSelector.setCurrentNode(desk.volume(frames=FRAMES[:1] * 0 + 7))
    panel._parameterNode.region, panel._parameterNode.model = "none", "median"
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run is None)
    assert panel.ui.statusLabel.text == "Rien à faire : les images sont constantes (7)."
    with reporting_errors("It failed."):
        library.export("aucun", "model.safetensors")
    assert desk.asked[-1][1] == "Le modèle 'aucun' n'existe pas."
    assert words.translate_sentence("a: b.npy: There is no model 'x'.") == "a: b.npy: Le modèle 'x' n'existe pas."
    assert words.translate_sentence("There is no region.") == "There is no region."


def test_every_marked_sentence_of_the_core_is_recognized_with_its_values(monkeypatch):
    from Speckle2SelfSlicer import words

    monkeypatch.setattr(words, "translate", lambda context, text: f"{context}>{text}")
    sentences = words.core_sentences()
    assert len(sentences) > 15 and ("Speckle2SelfLib.system", "{path} cannot be written: {reason}.") in [
        sentence[:2] for sentence in sentences
    ]
    for context, template, pattern in sentences:
        values = {name: f"[{name}: 1.]" for name in pattern.groupindex}
        assert words.translate_sentence(template.format(**values)) == f"{context}>{template.format(**values)}"


def test_one_failure_shows_one_box_and_no_timer_runs_while_it_is_open(desk, panel, monkeypatch):
    panel.ui.inputSelector.setCurrentNode(desk.volume())
    boxes, steps = [], []

    def box(*arguments, **options):
        """Show a modal box: events are processed while it is open."""
        boxes.append(arguments[0])
        before, end = len(steps), time.monotonic() + 0.3
        while time.monotonic() < end:
            slicer.app.processEvents()
            time.sleep(0.005)
        assert len(steps) == before

    class Broken:
        ended = False

        def step(self):
            steps.append(1)
            self.ended, self.state, self.message = True, "failed", "Despeckling failed: RuntimeError: It broke."
            self.total = self.done = 0
            raise RuntimeError("It broke.")

        def abandon(self):
            pass

    monkeypatch.setattr(slicer.util, "errorDisplay", box)
    monkeypatch.setattr(panel.logic, "start", lambda *arguments, **options: Broken())
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run is None, 10)
    assert len(boxes) == len(steps) == 1
    assert "It broke." in panel.ui.statusLabel.text and panel.ui.applyButton.visible


@pytest.mark.parametrize("opens", ["an error", "a sentence", "a question"])
def test_no_timer_runs_while_a_box_of_a_button_is_open(desk, panel, monkeypatch, opens):
    """Qt itself lets no timer interrupt its own step, but the steps of all others."""
    from Speckle2SelfLib.system import InputError
    from Speckle2SelfSlicer.panel import confirm, reporting_errors

    steps, during = [], []
    timer = panel.makeTimer(1, lambda: steps.append(1))
    timer.start()
    desk.wait(lambda: steps)

    def box(*arguments, **options):
        before = len(steps)
        desk.rest()
        during.append(len(steps) - before)
        return True

    for name in ("errorDisplay", "confirmOkCancelDisplay"):
        monkeypatch.setattr(slicer.util, name, box)
    with reporting_errors("It failed."):
        if opens == "a question":
            assert confirm("Really?")
        else:
            raise RuntimeError("It broke.") if opens == "an error" else InputError("It is wrong.")
    after = len(steps)
    desk.wait(lambda: len(steps) > after)
    timer.stop()
    assert during == [0]


@pytest.mark.parametrize("name", ["Speckle2Self", "SpeckleTrain"])
def test_a_panel_keeps_one_wrapper_and_one_connection_for_a_parameter_node(desk, panel, monkeypatch, name):
    """In Slicer 5.10 each wrapper, and each connection, observes the node for as long as that lives."""
    slicer.util.selectModule(name)
    panel = getattr(slicer.modules, f"{name}Widget")
    wrapper, connected = panel._parameterNode, []
    monkeypatch.setattr(type(wrapper), "connectGui", lambda self, gui: connected.append(gui) or 0)
    for _ in range(3):
        slicer.util.selectModule("Sequences" if hasattr(slicer.modules, "SequencesWidget") else other(name))
        slicer.util.selectModule(name)
    assert panel._parameterNode is wrapper is panel.logic.getParameterNode() and not connected


def kept(kind) -> int:
    """Return the number of wrappers of a kind, including those that are still observed."""
    gc.collect()
    return sum(type(one) is kind for one in gc.get_objects())


@pytest.mark.parametrize("name", ["Speckle2Self", "SpeckleTrain"])
def test_closing_and_importing_scenes_leaves_no_observer_of_the_panel_behind(desk, panel, name, tmp_path):
    """In Slicer 5.10, disconnecting the widgets does not remove the observer that connecting them has added."""
    slicer.util.selectModule(name)
    kind = type(getattr(slicer.modules, f"{name}Widget")._parameterNode)
    scene = slicer.vtkMRMLScene()
    scene.AddNewNodeByClass("vtkMRMLTextNode", "Note")
    scene.SetURL(str(tmp_path / "other.mrml"))
    assert scene.Commit()
    slicer.mrmlScene.Clear()
    before = kept(kind)
    for _ in range(3):
        slicer.mrmlScene.Clear()
        slicer.util.loadScene(str(tmp_path / "other.mrml"))
    assert kept(kind) == before
    slicer.util.selectModule("Speckle2Self")


def test_changes_by_another_wrapper_or_a_script_are_seen_at_once(desk, panel):
    """Wrappers keep values, and are notified of changes in another order than they were created."""
    node, volume = panel._parameterNode.parameterNode, desk.volume()
    wrapper = type(panel._parameterNode)(node)
    wrapper.strength = 0.25
    assert panel._parameterNode.strength == 0.25 == panel.ui.strengthSlider.value == panel._lastParameters["strength"]
    wrapper.inputNode = volume
    assert panel.ui.inputSelector.currentNode() is volume and panel.ui.applyButton.enabled
    node.SetParameter("strength", "0.75")
    assert panel._parameterNode.strength == 0.75 == panel.ui.strengthSlider.value == panel._lastParameters["strength"]
    panel.ui.strengthSlider.value = 0.5
    assert wrapper.strength == 0.5


def broken(*_arguments, **_options):
    raise RuntimeError("It broke.")


@pytest.mark.parametrize("what", ["worker", "live", "look", "region"])
def test_work_that_fails_at_every_step_shows_one_box(desk, panel, monkeypatch, what):
    panel.ui.inputSelector.setCurrentNode(desk.volume())
    panel.ui.modelSelector.currentText = "median"
    panel.ui.regionSelector.currentText = "none"
    panel.ui.liveCheckBox.click()
    desk.wait(lambda: panel.live.output is not None)
    if what == "worker":
        monkeypatch.setattr(panel.session.worker, "poll", broken)
    elif what == "live":
        monkeypatch.setattr(panel, "stepLive", broken)
    elif what == "look":
        panel._relook = iter(broken, None)
    else:
        panel.outline._search = type("Search", (), {"step": broken, "abandon": lambda self: None})()
    desk.rest(0.6)
    assert [kind for kind, _ in desk.asked] == ["message"] and "It broke." in desk.asked[0][1]
    monkeypatch.undo()
    panel.endAll()


def test_training_reports_that_cannot_be_read_show_one_box(desk, panel, monkeypatch):
    slicer.util.selectModule("SpeckleTrain")
    train = slicer.modules.SpeckleTrainWidget
    monkeypatch.setattr(train.logic, "poll", broken)
    train.timer.start()
    desk.rest(0.8)
    assert [kind for kind, _ in desk.asked] == ["message"] and "It broke." in desk.asked[0][1]
    monkeypatch.undo()
    slicer.util.selectModule("Speckle2Self")


def test_entries_of_selectors_are_shown_in_the_users_language_and_stored_in_english(desk, panel, monkeypatch):
    from Speckle2SelfSlicer import panel as base

    monkeypatch.setattr(base, "_", lambda text: {"none": "keine", "given": "gegeben"}.get(text, text))
    panel.releaseParameters()
    panel.enter()
    texts = [panel.ui.regionSelector.itemText(number) for number in range(panel.ui.regionSelector.count)]
    assert texts[1:] == ["keine", "gegeben"]
    panel.ui.regionSelector.currentText = "keine"
    assert panel._parameterNode.region == "none"
    panel._parameterNode.region = "given"
    assert panel.ui.regionSelector.currentText == "gegeben"
    monkeypatch.undo()
    panel.releaseParameters()
    panel.enter()


def other(name):
    return "SpeckleTrain" if name == "Speckle2Self" else "Speckle2Self"


def test_a_change_of_a_parameter_does_not_read_the_models_file(desk, panel, monkeypatch):
    read = []
    monkeypatch.setattr(panel.logic, "description", lambda model: read.append(model) or "")
    panel.ui.strengthSlider.value = 0.5
    panel.ui.showRegionCheckBox.checked = True
    assert not read
    panel.ui.modelSelector.currentText = "median"
    assert read == ["median"]


def test_a_box_on_a_recording_that_no_browser_shows_lies_on_its_first_frame(desk, panel):
    sequence = desk.cine(FRAMES)
    panel.ui.inputSelector.setCurrentNode(sequence)
    browser = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    slicer.mrmlScene.RemoveNode(browser.GetProxyNode(sequence))
    slicer.mrmlScene.RemoveNode(browser)
    panel.ui.tissueSelector.addNode("vtkMRMLMarkupsROINode")
    assert panel._parameterNode.tissueNode.GetSize()[0] == pytest.approx(56 / 4)
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Empty")
    panel.ui.inputSelector.setCurrentNode(empty)
    panel.ui.lumenSelector.addNode("vtkMRMLMarkupsROINode")
    assert not desk.asked


def test_closing_the_scene_clears_its_messages(desk, panel):
    panel.ui.inputSelector.setCurrentNode(desk.cine(FRAMES))
    panel.ui.modelSelector.currentText = "median"
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run is None)
    assert "'Cine despeckled'" in panel.ui.statusLabel.text
    panel.ui.evaluateLabel.text = "Figures"
    slicer.mrmlScene.Clear()
    assert panel.ui.statusLabel.text == panel.ui.evaluateLabel.text == ""
    panel.ui.inputSelector.setCurrentNode(desk.cine(np.kron(FRAMES, np.ones((1, 8, 8), np.uint8))))
    panel.ui.modelSelector.currentText = "nlm"
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run.state == "despeckling")
    slicer.mrmlScene.Clear()
    desk.rest(0.2)
    assert panel.ui.statusLabel.text == "" and panel.run is None


def test_the_modules_name_the_modules_whose_nodes_they_need():
    needed = {"Sequences", "Segmentations", "Markups"}
    assert needed <= set(slicer.modules.speckle2self.dependencies)
    assert needed | {"Plots"} <= set(slicer.modules.speckletrain.dependencies)


def test_the_modules_do_not_look_for_each_other(project):
    for name in ("Speckle2Self", "SpeckleTrain"):
        text = (project / name / f"{name}.py").read_text()
        assert f"import {other(name)}" not in text and f"from {other(name)} " not in text
        assert f'getModuleLogic("{other(name)}")' not in text and "getModuleWidget" not in text
    for path in (project / "Speckle2Self" / "Speckle2SelfSlicer").glob("*.py"):
        assert "getModuleLogic" not in path.read_text() and "getModuleWidget" not in path.read_text(), path.name


RELOAD = """
import os, sys, time
import numpy as np
import slicer
from Speckle2SelfLib.config import Job
from Speckle2SelfSlicer import session

def alive(pid):
    return os.path.exists(f"/proc/{pid}/stat") and open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"

slicer.util.selectModule("Speckle2Self")
slicer.util.selectModule("SpeckleTrain")
held = session.applicationSession()
train, despeckle = slicer.modules.SpeckleTrainWidget, slicer.modules.Speckle2SelfWidget
held.worker.warm_up()
frames = np.random.default_rng(0).rayleigh(40, (16, 64, 64)).clip(0, 255).astype(np.uint8)
run = held.trainer.add("long", [frames], Job("", preset="standard", steps=10**6, simulated=0, batch=2, width=4,
                                             device="cpu"))
pid = run._child.process.pid
train.onReload()
fresh = slicer.modules.SpeckleTrainWidget
assert fresh is not train and fresh.logic.trainer is held.trainer and run in fresh.logic.trainer.jobs
assert alive(pid) and fresh.ui.runSelector.currentText == "long" and fresh.job is run
despeckle.onReload()
fresh.session.worker.warm_up()
assert slicer.modules.Speckle2SelfWidget.session is fresh.session is held, "one worker for both"
assert run in slicer.modules.SpeckleTrainWidget.logic.trainer.jobs and alive(pid)
run.cancel()
assert not alive(pid)
first = held.worker.pid
slicer.modules.Speckle2SelfWidget.onReload()
assert not alive(first)
from Speckle2SelfSlicer import session as renewed
assert renewed is not session, "the packages next to the modules are read again"
one, two = slicer.modules.Speckle2SelfWidget, slicer.modules.SpeckleTrainWidget
assert one.session is two.session is renewed.applicationSession() and type(one).__mro__[3].__module__ in sys.modules
volume = slicer.util.addVolumeFromArray(frames[:1], name="Liver")
one.logic.process(volume, model="median", region="none")
print("well")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_reload_keeps_training_starts_no_second_worker_and_reads_the_packages_again(project, tmp_path):
    (tmp_path / "reload.py").write_text(RELOAD)
    command = [project / "Testing" / "headless-slicer", "--main-window", tmp_path / "reload.py"]
    environment = {**os.environ, "SPECKLE2SELF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "well" in done.stdout, done.stderr[-3000:]
