"""Films are read as they are shown, with their times, and written without loss."""

import builtins
import sys
from fractions import Fraction

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image, ImageSequence

from Speckle2SelfBench import speed
from Speckle2SelfLib import files
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.formats import base
from Speckle2SelfLib.formats.base import Recording
from Speckle2SelfLib.system import InputError

av = pytest.importorskip("av")
FRAMES = np.random.default_rng(0).integers(1, 255, (5, 34, 50)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(1, 255, (5, 34, 50, 3)).astype(np.uint8)
RATE = Fraction(30000, 1001)


def film(path, frames=FRAMES, codec="ffv1", pixels="gray", rate=RATE, pts=None, sound=False, **options):
    """Return a film as another program writes it."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "left lobe"
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.options = options
        stream.codec_context.thread_count = 2  # some encoders cut a frame into as many slices
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            audio = container.add_stream("pcm_s16le", rate=8000)
            audio.layout = "mono"
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24" if frames.ndim == 4 else "gray")
            frame.time_base, frame.pts = (1 / rate, number) if pts is None else (Fraction(1, 1000), pts[number])
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), format="s16", layout="mono")
            tone.sample_rate, tone.pts = 8000, 0
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
    return path


def shown(path, format="gray"):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        arrays, times = zip(*((f.to_ndarray(format=format), f.time) for f in container.decode(stream)), strict=True)
        return np.stack(arrays), np.array(times), stream.average_rate, dict(container.metadata)


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4", ".mov"])
@pytest.mark.parametrize("frames", [FRAMES, COLOUR], ids=["grey", "color"])
def test_a_film_keeps_its_frames_rate_and_title(tmp_path, suffix, frames):
    source = film(tmp_path / "in.mkv", frames, pixels="gray" if frames.ndim == 3 else "bgr0")
    recording = files.read(source)
    assert np.array_equal(recording.frames, frames) and recording.sequence
    assert recording.times == pytest.approx(np.arange(5) / float(RATE))
    target = tmp_path / f"out{suffix}"
    files.check_output(target, recording)
    files.write(target, recording.frames[:, ::-1], recording)
    written, times, rate, metadata = shown(target, "gray" if frames.ndim == 3 else "rgb24")
    assert np.array_equal(written, frames[:, ::-1]) and rate == RATE
    assert times == pytest.approx(np.arange(5) / float(RATE), abs=1e-3)
    assert suffix != ".mkv" or metadata["title"] == "left lobe"
    again = files.read(target)
    assert np.array_equal(again.frames, frames[:, ::-1]) and again.times == pytest.approx(recording.times)


def test_grey_pictures_in_a_color_film_are_grey(tmp_path):
    source = film(tmp_path / "in.mp4", np.repeat(FRAMES[..., None], 3, -1), "libx264", "yuv420p", crf="4")
    recording = files.read(source)
    assert recording.frames.shape == FRAMES.shape
    assert np.abs(recording.frames.astype(int) - FRAMES).mean() < 6, "in the full range of grey values"


def test_a_film_whose_color_begins_late_is_read_in_color(tmp_path):
    frames = np.repeat(FRAMES[..., None], 3, -1)
    frames[4] = COLOUR[4]
    recording = files.read(film(tmp_path / "in.mkv", frames, pixels="bgr0"))
    assert np.array_equal(recording.frames, frames)


def test_grey_values_of_16_bits_are_kept(tmp_path):
    deep = FRAMES.astype(np.uint16) * 256 + 7
    recording = Recording(deep, tmp_path / "in.dcm", "DICOM", sequence=True, times=np.arange(5) * 0.04)
    files.write(tmp_path / "out.mkv", deep, recording)
    assert np.array_equal(files.read(tmp_path / "out.mkv").frames, deep)
    with pytest.raises(InputError, match="does not hold frames of type uint16"):
        files.check_output(tmp_path / "out.mp4", recording)


def test_unevenly_spaced_frames_keep_their_times(tmp_path):
    pts = [0, 40, 130, 150, 300]
    recording = files.read(film(tmp_path / "in.mkv", pts=pts))
    assert recording.times == pytest.approx(np.array(pts) / 1000)
    for name in ("out.mkv", "out.mp4"):
        files.write(tmp_path / name, recording.frames, recording)
        assert files.read(tmp_path / name).times == pytest.approx(recording.times, abs=1e-3)
    with pytest.raises(InputError, match="its frames have one rate"):
        files.check_output(tmp_path / "out.avi", recording)


def test_times_that_a_film_or_a_stack_would_lose_are_reported_or_refused(tmp_path, caplog):
    def cine(*times):
        return Recording(FRAMES, tmp_path / "in.dcm", "DICOM", sequence=True, times=np.array(times))

    uneven, fine = cine(0, 0.04, 0.13, 0.15, 0.3), cine(0, 0.0002, 0.0003, 0.0009, 0.001)
    for name, recording in (("out.mp4", uneven), ("out.webp", uneven), ("out.h5", fine), ("out.mat", fine),
                            ("out.tif", cine(0, 0.033, 0.067, 0.1, 0.133))):  # fmt: skip
        files.check_output(tmp_path / name, recording)
    assert not caplog.records
    for name, recording in (("out.tif", uneven), ("out.mp4", fine), ("out.npy", fine), ("out.nii", fine),
                            ("out.webp", cine(0, 0.0014, 0.0028, 0.0042, 0.0056))):  # fmt: skip
        files.check_output(tmp_path / name, recording)
        assert caplog.records.pop().message.startswith(f"{name} does not hold the times"), name
    with pytest.raises(InputError, match="rounds times to milliseconds"):
        files.check_output(tmp_path / "out.mkv", cine(0, 0.0002, 0.01, 0.0102, 0.02))
    with pytest.raises(InputError, match="last at least a millisecond"):
        files.check_output(tmp_path / "out.webp", fine)
    with pytest.raises(InputError, match="holds 1000 frames a second at most"):
        files.check_output(tmp_path / "out.avi", cine(*(np.arange(5) / 5000)))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".tif", ".h5", ".seq.mha", ".igs.nrrd"])
@pytest.mark.parametrize("rate", [30, 120, 5000])
def test_high_rates_are_kept(tmp_path, suffix, rate):
    recording = Recording(FRAMES, tmp_path / "in.dcm", "DICOM", sequence=True, times=np.arange(5) / rate)
    files.write(tmp_path / f"out{suffix}", FRAMES, recording)
    assert files.read(tmp_path / f"out{suffix}").times == pytest.approx(recording.times, rel=1e-6)


def test_rounded_milliseconds_of_an_animation_do_not_accumulate(tmp_path):
    recording = Recording(FRAMES, tmp_path / "in.dcm", "DICOM", sequence=True, times=np.arange(5) / 30)
    files.write(tmp_path / "out.webp", FRAMES, recording)
    assert files.read(tmp_path / "out.webp").times == pytest.approx([0, 0.033, 0.067, 0.1, 0.133])


def test_a_film_that_begins_late_is_read_whole(tmp_path):
    recording = files.read(film(tmp_path / "in.mkv", rate=Fraction(25), pts=[5000, 5040, 5080, 5120, 5160]))
    assert np.array_equal(recording.frames, FRAMES) and recording.times == pytest.approx(np.arange(5) * 0.04, abs=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_films_keep_pixels_that_are_not_square(tmp_path, suffix):
    source = tmp_path / f"in{suffix}"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264" if suffix == ".mp4" else "png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 34, 50, "yuv420p" if suffix == ".mp4" else "gray"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode(None))
    recording = files.read(source)
    assert recording.spacing == pytest.approx((1, 1, 1.5))
    files.write(tmp_path / f"out{suffix}", recording.frames, recording)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(3, 2)
    with pytest.raises(InputError, match="its pixels would become square"):
        files.check_output(tmp_path / "out.mkv", recording)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_film_of_a_phone_is_read_in_the_orientation_that_is_shown(tmp_path, turn):
    frames = np.broadcast_to(np.arange(50, dtype=np.uint8) * 5, (3, 34, 50))
    data = bytearray(film(tmp_path / "in.mov", frames, "png").read_bytes())
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    matrix = np.array([cosine, sine, 0, -sine, cosine, 0, 0, 0, 2**14], ">i4") * 2**16
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = matrix.astype(">i4").tobytes()
    (tmp_path / "in.mov").write_bytes(data)
    assert np.array_equal(files.read(tmp_path / "in.mov").frames, np.rot90(frames, -turn // 90, (1, 2)))


def test_an_encoder_that_fails_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    recording = files.read(film(tmp_path / "in.mkv"))

    def fail(*arguments, **options):
        raise av.error.ArgumentError(22, "Invalid argument")

    monkeypatch.setattr("Speckle2SelfLib.formats.films.release", fail)
    with pytest.raises(InputError, match="cannot be written"):
        files.write(tmp_path / "out.mkv", recording.frames, recording)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_a_film_becomes_a_sequence_and_a_cine_a_film(tmp_path):
    source = film(tmp_path / "in.avi")
    arguments = ["--model", "median", "--region", "none", "--strength", "0"]
    assert main(["despeckle", str(source), str(tmp_path / "out.seq.mha"), *arguments]) == 0
    image = sitk.ReadImage(str(tmp_path / "out.seq.mha"))
    assert np.array_equal(sitk.GetArrayFromImage(image), FRAMES)
    assert float(files.read(tmp_path / "out.seq.mha").times[1]) == pytest.approx(1 / float(RATE))
    np.save(tmp_path / "cine.npy", FRAMES)
    assert main(["despeckle", str(tmp_path / "cine.npy"), str(tmp_path / "out.mp4"), *arguments]) == 0
    assert np.array_equal(shown(tmp_path / "out.mp4")[0], FRAMES)


def test_sound_is_left_out_with_a_message(tmp_path, caplog):
    assert np.array_equal(files.read(film(tmp_path / "in.mkv", sound=True)).frames, FRAMES)
    assert [record.message for record in caplog.records] == ["The sound of the film is left out."]


@pytest.mark.parametrize("name", ["out.webm", "out.wmv", "out.mpg"])
def test_a_format_that_loses_detail_is_refused(tmp_path, name):
    np.save(tmp_path / "in.npy", FRAMES)
    with pytest.raises(InputError, match=r"loses detail; choose \.mkv"):
        files.check_output(tmp_path / name, files.read(tmp_path / "in.npy"))


@pytest.mark.parametrize(
    "frames", [FRAMES.astype(np.float32), np.repeat(COLOUR, 2, -1)[..., :4]], ids=["float", "alpha"]
)
def test_types_that_no_film_can_hold_are_refused(tmp_path, frames):
    np.save(tmp_path / "in.npy", frames)
    for name in ("out.mkv", "out.mp4", "out.avi", "out.mov"):
        with pytest.raises(InputError, match="does not hold frames"):
            files.check_output(tmp_path / name, files.read(tmp_path / "in.npy"))


def test_a_cut_film_and_a_file_that_is_not_one_are_refused_without_library_messages(tmp_path, capfd):
    data = film(tmp_path / "in.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp4").write_text("no film")
    data = film(tmp_path / "in.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])  # it has no index
    for name in ("cut.avi", "cut.mkv", "text.mp4"):
        with pytest.raises(InputError) as error:
            files.read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("name", "codec"), [("in.mpg", "mpeg1video"), ("in.wmv", "wmv2"), ("in.flv", "flv1")])
def test_a_cut_film_without_the_number_of_its_frames_is_refused(tmp_path, name, codec):
    data = film(tmp_path / name, np.repeat(FRAMES, 5, 0), codec, "yuv420p", rate=Fraction(25)).read_bytes()
    assert len(files.read(tmp_path / name).frames) == 25
    for share in (0.5, 0.6):  # within a frame: without a frame count, missing whole frames go unnoticed
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match="is cut short"):
            files.read(tmp_path / name)


def test_damaged_frames_within_a_film_are_reported(tmp_path, caplog):
    data = bytearray(film(tmp_path / "in.mpg", np.repeat(FRAMES, 5, 0), "mpeg1video", "yuv420p").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    (tmp_path / "in.mpg").write_bytes(data)
    assert len(files.read(tmp_path / "in.mpg").frames) == 25
    assert "damaged frames" in caplog.text


def test_missing_pyav_is_named(tmp_path, monkeypatch):
    source, imported = film(tmp_path / "in.mkv"), builtins.__import__

    def without(name, *arguments):
        if name == "av":
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"need the package av \(PyAV\); install it"):
        files.read(source)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("shape", [(400, 480, 640), (10_000, 96, 128)])  # 123 MB
def test_a_long_film_is_kept_on_the_disk(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(base, "LARGE", 2**20)
    source, still = tmp_path / "in.mkv", np.zeros((1, *shape[1:]), np.uint8)
    film(source, np.broadcast_to(still, shape), codec="rawvideo")
    kept = []
    added = speed.peak_megabytes(lambda: kept.append(files.read(source)), torch.device("cpu"))
    assert kept[0].frames.shape == shape and isinstance(kept[0].frames, np.memmap)
    assert added < 60
    added = speed.peak_megabytes(
        lambda: files.write(tmp_path / "out.mkv", kept[0].frames, kept[0]), torch.device("cpu")
    )
    assert added < 60


#
# GIF and WebP
#


def animation(path, frames, durations, **options):
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, **options)
    return path


@pytest.mark.parametrize("name", ["in.gif", "in.webp"])
@pytest.mark.parametrize("frames", [FRAMES, FRAMES[:1], COLOUR], ids=["cine", "one", "color"])
def test_an_animation_keeps_its_frames_and_times(tmp_path, name, frames):
    if name == "in.gif" and frames.ndim == 4:
        pytest.skip("colors of a GIF are approximate")
    durations = [40, 80, 30, 50, 60][: len(frames)]
    options = {"lossless": True} if name == "in.webp" else {}
    recording = files.read(animation(tmp_path / name, frames, durations, **options))
    assert np.array_equal(recording.frames, frames) and recording.single == (len(frames) == 1)
    if len(frames) > 1:
        assert recording.times == pytest.approx([0, 0.04, 0.12, 0.15, 0.2])
    target = tmp_path / name.replace("in", "out")
    files.check_output(target, recording)
    files.write(target, recording.frames[:, ::-1].copy(), recording)
    with Image.open(target) as image:
        written = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
        assert image.info.get("duration", 60) == durations[-1] or len(frames) == 1
    expected = frames[:, ::-1] if frames.ndim == 4 else np.repeat(frames[:, ::-1, :, None], 3, -1)
    assert np.array_equal(np.stack(written), expected)
    again = files.read(target)
    assert again.times is None if len(frames) == 1 else again.times == pytest.approx(recording.times)


def test_a_gif_that_would_lose_colors_or_times_is_refused(tmp_path):
    times = np.arange(5) * 0.033
    recording = Recording(FRAMES, tmp_path / "in.dcm", "DICOM", sequence=True, times=times)
    with pytest.raises(InputError, match="hundredths of a second"):
        files.check_output(tmp_path / "out.gif", recording)
    recording = Recording(COLOUR, tmp_path / "in.dcm", "DICOM", sequence=True)
    with pytest.raises(InputError, match="grey GIF does not hold"):
        files.check_output(tmp_path / "out.gif", recording)
    files.check_output(tmp_path / "out.webp", recording)
