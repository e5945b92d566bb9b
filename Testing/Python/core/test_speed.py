"""The speed benchmark: its counts are right, its table is complete. No time is asked of a machine that others use."""

import csv
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from Speckle2SelfBench import speed
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.system import InputError

CPU = torch.device("cpu")
SIZES = ((32, 48), (64, 64))


@pytest.fixture(scope="module")
def pair():
    return speed.published_pair()


@pytest.fixture(scope="module")
def found(tmp_path_factory, pair):
    folder, measure, rates = tmp_path_factory.mktemp("speed"), speed.measure, []
    machine_rates = speed.machine_rates

    def measured_twice(*given):
        if len(rates) < 2:
            rates.append(machine_rates(*given))
        return rates[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "published_pair", lambda: pair)
        patch.setattr(speed, "machine_rates", measured_twice)
        patch.setattr(speed, "stages", partial(speed.stages, size=(48, 64)))
        patch.setattr(speed, "LENGTH_SIZES", ((48, 64),))
        patch.setattr(speed, "measure", lambda *given: measure(*given[:-1], 0.2))  # seconds
        return folder, speed.run(folder, quick=True, sizes=SIZES, device="cpu")


def test_multiply_adds_are_counted_from_the_layers():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),  # 16 x 16 pixels, 4 x 9 multiply-adds each
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),  # 8 x 8, 8 x 2 x 9
        torch.nn.ConvTranspose2d(8, 2, 3, stride=2, padding=1, output_padding=1),  # 8 x 8 pixels, 8 x 2 x 9
    )
    work = speed.count(network, torch.zeros(1, 1, 16, 16), 256)
    assert work.multiply_adds * 256 == 256 * 36 + 64 * 144 + 64 * 144
    assert work.elements * 256 == (256 + 1024) + (1024 + 512) + (512 + 512)
    assert work.weights == 36 + 144 + 144
    assert speed.count(network, torch.zeros(2, 1, 32, 32), 2048) == work


def test_the_published_script_does_three_times_the_work_of_its_full_scale_half(pair):
    whole, half = pair
    x = torch.zeros(1, 1, 32, 32)
    three, one = speed.count(whole, (x, x, x), 1024), speed.count(half.network, x, 1024)
    assert three.multiply_adds == 3 * one.multiply_adds


def test_all_methods_are_in_the_table_and_the_ratios_fit_the_times(found):
    folder, rows = found
    for size in ("48 x 32", "64 x 64"):
        some = [row for row in rows if row["size"] == size]
        assert {row["method"] for row in some} >= {speed.SCRIPT, speed.ENGINE, speed.DEFAULT, "median"}
        assert {row["frames"] for row in some if row["method"] == speed.DEFAULT} == {1, 8}
        script = next(row for row in some if row["method"] == speed.SCRIPT)
        assert script["ratio"] == 1
        for row in some:
            assert row["ratio"] == pytest.approx(script["milliseconds"] / row["milliseconds"])
            assert row["fps"] == pytest.approx(1000 / row["milliseconds"])
            if "gmacs" in row:
                assert row["gflops"] == pytest.approx(2 * row["gmacs"] * row["fps"])
    written = list(csv.DictReader((folder / "speed.csv").open()))
    assert [row["method"] for row in written] == [row["method"] for row in rows]


def test_the_page_contains_the_measurements_and_the_plot_is_drawn(found):
    folder, rows = found
    page = (folder / "speed.md").read_text()
    assert page.count("\n| ") == len(rows) + 2
    for words in ("matrix product", "copy", "our engine against the script", "From disk to disk", "of frames"):
        assert words in page
    assert 255 * imread(folder / "speed.png")[..., :3].std() > 5
    assert "WRONG LIMIT" not in page and all(0 < row["of_copy"] <= 1 for row in rows)


@pytest.fixture
def one_thread():
    """Use one thread: several wait for other programs, so that each measurement differs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_nothing_does_more_than_the_machine_can(one_thread, pair):
    """One library's matrix product is not the limit: on some processors that of another is three times as fast."""
    size = (192, 192)
    entries = [e for e in speed.entries(size, 0, True, CPU, [torch.float32], pair) if e.work]
    limits = speed.machine_rates(CPU, 0.2)
    rows = speed.measure(entries, size, 1, CPU, 0.1)
    speed.add_shares(rows, limits)
    if speed.beyond(rows):  # other programs may have run the first time
        again = speed.machine_rates(CPU, 0.2)
        speed.add_shares(rows, {name: max(rate, again[name]) for name, rate in limits.items()})
    assert not speed.beyond(rows), "the benchmark's limit is wrong"
    script = next(row for row in rows if row["method"] == speed.SCRIPT)
    assert 0 < script["of_matrix"] <= 1


def test_a_share_above_100_percent_is_reported_as_a_fault():
    row = {"method": "a", "size": "8 x 8", "precision": "float32", "gflops": 4.0, "gigabytes": 1.0}
    speed.add_shares([row], {torch.float32: 1e9, "copy": 2e9})
    assert row["of_matrix"] == 2 and row["of_copy"] == 0.5
    (line,) = speed.beyond([row])
    assert "WRONG LIMIT" in line and "200% of the limit" in line


def test_bm3d_is_timed_where_it_is_installed(monkeypatch, pair):
    for spec, there in ((None, False), (object(), True)):
        monkeypatch.setattr(speed, "find_spec", lambda name, spec=spec: spec)
        all_of_one = speed.entries((32, 32), torch.get_num_threads(), False, CPU, [torch.float32], pair)
        assert ("BM3D" in {entry.method for entry in all_of_one}) == there


def test_our_engine_matches_the_script(pair):
    assert speed.differences(pair, CPU, [torch.float32], size=48)["float32"] < 1e-4


def test_a_slower_default_is_reported(tmp_path):
    def rows(ratio):
        both = {"method": speed.DEFAULT, "size": "512 x 512", "threads": 2}
        return [{**both, "frames": 1, "ratio": ratio}, {**both, "frames": 8, "ratio": 2 * ratio}]

    history = tmp_path / "history.csv"
    speed.add_ratios(history, rows(8.0), "a kind")
    speed.add_ratios(history, rows(10.0), "a kind")
    assert history.read_text().count("version") == 1
    live, cine = speed.compare(history, rows(5.0), "a kind")
    assert "SLOWER" in live and "live" in live and "10.0 -> 5.0" in live and "20.0 -> 10.0" in cine
    assert not [line for line in speed.compare(history, rows(9.9), "a kind") if "SLOWER" in line]
    assert "no ratios" in speed.compare(history, rows(5.0), "another")[0]


def test_the_history_of_the_project_can_be_read(project):
    lines = list(csv.DictReader((project / "Documentation" / "speed_history.csv").open()))
    assert lines and all(float(line["ratio"]) > 0 and " x " in line["size"] for line in lines)


def test_impossible_measurements_are_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="history file"):
        speed.run(tmp_path / "out", history=tmp_path / "none.csv")
    assert main(["benchmark", "speed", str(tmp_path / "out"), "--minutes", "1"]) == 2
    assert "benchmark quality" in capsys.readouterr().err
    assert main(["benchmark", "quality", str(tmp_path / "out"), "--record"]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is done elsewhere")
@pytest.mark.parametrize(("first", "kept"), [("", False), ("keep_memory()", True)])
def test_freed_memory_is_kept(first, kept):
    program = f"""
import resource, numpy
from Speckle2SelfLib.system import keep_memory
{first}
faults = []
for _ in range(10):
    arrays = [numpy.ones(megabytes << 17) for megabytes in (4, 8, 12, 20)]
    del arrays
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(speed.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 100) == kept
