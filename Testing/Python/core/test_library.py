"""The user's models are found by name next to the bundled ones, and never outside their folder."""

import subprocess
import sys

import numpy as np
import pytest

from Speckle2SelfLib import checkpoint, library
from Speckle2SelfLib.config import Job, ModelConfig
from Speckle2SelfLib.library import cached_model, load_model
from Speckle2SelfLib.network import build
from Speckle2SelfLib.system import InputError, file_lock


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return a model file, and an empty home for models."""
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path / "home"))
    config = ModelConfig(width=4, grain=(0.75, 1.7))
    checkpoint.save(tmp_path / "mine.safetensors", config, build(config), {"description": "x"})
    return tmp_path / "mine.safetensors"


def test_a_model_is_imported_renamed_exported_and_deleted(file, tmp_path):
    assert library.own_models() == {}
    assert library.add(file) == "mine"
    assert library.add(file) == "mine 2"
    assert load_model("mine").card == {"description": "x"}
    library.rename("mine 2", "yours")
    assert set(library.own_models()) == {"mine", "yours"}
    library.export("yours", tmp_path / "copy.safetensors")
    checkpoint.load(tmp_path / "copy.safetensors")
    library.delete("yours")
    assert list(library.models()) == [*library.bundled_models(), "mine"]


TAKEN = ["default", "lee"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "x" * 99, ".hidden", "a\n", " a", *TAKEN])
def test_a_name_cannot_lead_out_of_the_folder_or_hide_a_bundled_model_or_filter(file, name):
    with pytest.raises(InputError):
        library.add(file, name)
    library.add(file, "mine")
    with pytest.raises(InputError):
        library.rename("mine", name)
    assert set(library.own_models()) == {"mine"}


@pytest.mark.parametrize("name", ["srad", "NLM"])
def test_no_model_may_have_the_name_of_a_classical_filter_which_would_hide_it(file, tmp_path, name):
    library.add(file, "mine")
    refused = pytest.raises(InputError, match=f"^'{name}' is a classical filter; choose another name for the model.$")
    with refused:
        library.add(file, name)
    with refused:
        library.rename("mine", name)
    with refused:
        Job(str(tmp_path / name))
    with refused:
        Job(str(tmp_path / f"{name}.safetensors"))
    assert set(library.own_models()) == {"mine"}
    assert library.free_name(name) == f"{name} 2"
    file.rename(library.home() / "models" / f"{name}.safetensors")  # an older version allowed such names
    library.rename(name, "yours")
    assert set(library.own_models()) == {"mine", "yours"}


def test_missing_models_used_names_and_bad_files_are_refused(file, tmp_path):
    library.add(file, "mine")
    for wrong in (
        lambda: library.add(file, "mine"),
        lambda: library.rename("mine", "mine"),
        lambda: library.rename("other", "x"),
        lambda: library.delete("other"),
        lambda: library.delete("default"),
        lambda: library.export("other", tmp_path / "x"),
        lambda: library.export("mine", tmp_path / "no" / "x"),
    ):
        with pytest.raises(InputError):
            wrong()
    (tmp_path / "text.pth").write_text("no model")
    with pytest.raises(InputError):
        library.add(tmp_path / "text.pth")
    assert set(library.own_models()) == {"mine"}


def test_any_name_is_changed_into_a_valid_one(file):
    assert library.free_name("  Carotid: 3/4 ") == "Carotid 3 4"
    assert library.free_name("///") == "model"
    assert library.free_name("") == "model"
    assert library.free_name("default") == "default 2" and library.free_name("SRAD") == "SRAD 2"
    assert library.free_name("Runs", {"runs"}) == "Runs 2", "not distinguished by every file system"


LONG = ["x" * 90, "x" * 79 + " y", "x" * 78 + ".y", "\u5fc3" * 90, "\U00020000" * 90]


@pytest.mark.parametrize("wanted", ["-5 dB", "+x", "- . +", *LONG], ids=repr)
def test_a_free_name_can_be_used_however_often_it_is_requested(file, wanted):
    names = [library.add(file, library.free_name(wanted)) for _ in range(2)]
    assert names[1].endswith(" 2") and set(library.own_models()) == set(names)
    library.rename(names[1], library.free_name(f"new {wanted}"))


def test_a_file_is_reserved_for_its_process_until_that_ends_or_is_killed(tmp_path):
    path = tmp_path / "x.model"
    code = "import sys, time; from Speckle2SelfLib.system import file_lock\n"
    code += "with file_lock(sys.argv[1]): print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(InputError, match="Another process is writing"), file_lock(path):
            pass
        holder.kill()
    with pytest.raises(KeyError), file_lock(path):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot be written"), file_lock(tmp_path / "no" / "x.model"):
        pass


def test_a_file_is_read_again_only_if_it_has_changed(tmp_path):
    network = build(ModelConfig(width=8))
    path = tmp_path / "own.safetensors"
    checkpoint.save(path, ModelConfig(width=8), network, {})
    first = cached_model(path)
    assert cached_model(path) is first and cached_model(str(path)) is first
    assert load_model(path) is not first, "training changes the loaded model"
    checkpoint.save(path, ModelConfig(width=8), network, {"name": "another"})
    assert cached_model(path).card["name"] == "another"
    path.unlink()
    with pytest.raises(InputError, match="There is no model"):
        cached_model(path)


def test_a_region_is_remembered_for_its_kind_of_recording(file):
    assert library.last_region("scanner 40 x 30") is None
    region = np.zeros((30, 40), bool)
    region[3:20, 5:9] = True
    library.save_region("scanner 40 x 30", region)
    assert np.array_equal(library.last_region("scanner 40 x 30"), region)
    assert library.last_region("scanner 41 x 30") is None


@pytest.mark.parametrize("content", [b"", b"PNG", "numbers", "objects", "one dimension"])
def test_a_file_that_is_not_a_region_is_ignored(file, content):
    library.save_region("a", np.ones((4, 5), bool))
    (path,) = (library.home() / "regions").iterdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        wrong = {"numbers": np.ones((4, 5)), "objects": np.array([[{}]]), "one dimension": np.ones(5, bool)}
        np.save(path, wrong[content], allow_pickle=True)
    assert library.last_region("a") is None
