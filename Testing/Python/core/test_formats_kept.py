"""Written files of each kind keep the content of their input, as other readers confirm."""

import locale
import shutil
import struct
import subprocess
import sys
import zlib
from types import SimpleNamespace

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from Speckle2SelfLib import files
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.system import InputError

FRAMES = np.random.default_rng(0).integers(1, 255, (6, 48, 64)).astype(np.uint8)
WIDE = FRAMES.astype(np.uint16) * 200 + 7
COLOUR = np.random.default_rng(1).integers(1, 255, (2, 48, 64, 3)).astype(np.uint8)


def again(tmp_path, source, name=None, change=lambda frames: frames):
    """Reads a file and writes it as another one, with changed frames."""
    recording = files.read(source)
    target = tmp_path / (name or f"out{''.join(source.suffixes)}")
    files.check_output(target, recording)
    files.write(target, change(recording.frames), recording)
    return SimpleNamespace(path=target, recording=recording)


def despeckled(source, target, *options):
    return main(["despeckle", str(source), str(target), "--model", "median", "--region", "none", *options])


#
# TIFF
#


@pytest.mark.parametrize(
    "layout", ["tiled", "planar", "narrow planar", "deflated", "half", "double", "signed", "big", "motorola", "one"]
)
def test_a_tiff_keeps_its_type_shape_and_layout(tmp_path, layout):
    planar = {"planarconfig": "SEPARATE", "photometric": "RGB"}
    array, options = {
        "tiled": (WIDE, {"tile": (32, 32)}),
        "planar": (np.moveaxis(COLOUR[0], -1, 0).astype(np.uint16) * 9, planar),
        "narrow planar": (np.moveaxis(COLOUR[0, :, :4], -1, 0), planar),  # the last axis could hold colors
        "deflated": (FRAMES, {"compression": "zlib"}),
        "half": (WIDE.astype(np.float16), {}),
        "double": (WIDE.astype(np.float64) / 3, {}),
        "signed": (WIDE.astype(np.int32) - 9000, {}),
        "big": (FRAMES, {"bigtiff": True}),
        "motorola": (WIDE, {"byteorder": ">"}),
        "one": (FRAMES[0], {}),
    }[layout]
    source = tmp_path / "in.tif"
    options = {"photometric": "MINISBLACK", "metadata": None, **options}
    tifffile.imwrite(source, array, resolution=(50, 40), resolutionunit="CENTIMETER", **options)
    made = again(tmp_path, source)
    assert np.array_equal(
        made.recording.frames.ravel(), np.moveaxis(array, 0, -1).ravel() if "planar" in layout else array.ravel()
    )
    assert made.recording.spacing[1:] == pytest.approx((0.25, 0.2))
    with tifffile.TiffFile(made.path) as file, tifffile.TiffFile(source) as before:
        assert file.series[0].shape == before.series[0].shape and file.series[0].axes == before.series[0].axes
        assert file.asarray().dtype == array.dtype and np.array_equal(file.asarray(), array)
        for name in ("is_tiled", "planarconfig", "photometric", "resolution", "resolutionunit"):
            assert getattr(file.pages[0], name) == getattr(before.pages[0], name)
        assert file.is_bigtiff == before.is_bigtiff and file.byteorder == before.byteorder
        assert (file.pages[0].compression == 1) == (before.pages[0].compression == 1)


def test_white_stored_as_0_is_read_as_bright_and_written_as_0_again(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", 255 - FRAMES, photometric="MINISWHITE")
    made = again(tmp_path, tmp_path / "in.tif", change=lambda frames: frames // 2)
    assert np.array_equal(made.recording.frames, FRAMES)
    with tifffile.TiffFile(made.path) as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE
        assert np.array_equal(255 - file.asarray(), FRAMES // 2)


def test_imagej_files_keep_their_pixel_size_rate_and_axes(tmp_path):
    told = {
        "axes": "TYX",
        "unit": "mm",
        "finterval": 0.033,
        "Info": "probe = L14\ndepth = 4 cm",
        "min": 3.0,
        "max": 200.0,
    }
    tifffile.imwrite(tmp_path / "in.tif", FRAMES, imagej=True, resolution=(5, 4), metadata=told)
    made = again(tmp_path, tmp_path / "in.tif")
    assert made.recording.sequence and made.recording.times == pytest.approx(np.arange(6) * 0.033)
    assert made.recording.spacing[1:] == pytest.approx((0.25, 0.2))
    with tifffile.TiffFile(made.path) as file:
        assert file.is_imagej and file.series[0].axes == "TYX" and file.pages[0].resolution == (5, 4)
        kept = file.imagej_metadata
    assert {name: kept[name] for name in told if name != "axes"} == {n: told[n] for n in told if n != "axes"}
    assert kept["frames"] == 6


@pytest.mark.parametrize("axes", ["TZYX", "TCYX", "ZYX"])
def test_a_hyperstack_is_written_as_a_hyperstack(tmp_path, axes):
    array = FRAMES.reshape(2, 3, 48, 64) if len(axes) == 4 else FRAMES
    tifffile.imwrite(tmp_path / "in.tif", array, imagej=True, metadata={"axes": axes, "unit": "mm", "spacing": 2.0})
    made = again(tmp_path, tmp_path / "in.tif")
    assert made.recording.frames.shape == FRAMES.shape and made.recording.volumes == (2 if axes == "TZYX" else 1)
    assert not made.recording.sequence and (made.recording.spacing[0] == 2 or axes == "TCYX")
    with tifffile.TiffFile(made.path) as file:
        assert file.series[0].axes == axes and np.array_equal(file.asarray(), array)


def test_ome_files_keep_their_description(tmp_path):
    told = {"axes": "TYX", "PhysicalSizeX": 200.0, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25,
            "PhysicalSizeYUnit": "mm", "TimeIncrement": 40.0, "TimeIncrementUnit": "ms"}  # fmt: skip
    tifffile.imwrite(tmp_path / "in.ome.tif", FRAMES, metadata=told)
    made = again(tmp_path, tmp_path / "in.ome.tif")
    assert made.recording.spacing[1:] == pytest.approx((0.25, 0.2))
    assert made.recording.times == pytest.approx(np.arange(6) * 0.04)
    with tifffile.TiffFile(made.path) as file, tifffile.TiffFile(tmp_path / "in.ome.tif") as before:
        assert file.is_ome and file.ome_metadata == before.ome_metadata
        assert file.series[0].axes == "TYX" and np.array_equal(file.asarray(), FRAMES)


def test_texts_orientation_and_private_tags_of_a_tiff_are_kept(tmp_path):
    tags = [(274, "H", 1, 6, True), (65000, "s", 0, "scanner", True), (65001, "d", 2, (1.5, 2.5), True)]
    tifffile.imwrite(tmp_path / "in.tif", FRAMES, description="left lobe", software="S", datetime="2020:01:02 03:04:05",
                     extratags=tags, metadata=None)  # fmt: skip
    made = again(tmp_path, tmp_path / "in.tif")
    with tifffile.TiffFile(made.path) as file:
        kept = {tag.code: tag.value for tag in file.pages[0].tags.values()}
    assert kept[270] == "left lobe" and kept[305] == "S" and kept[306] == "2020:01:02 03:04:05"
    assert kept[274] == 6 and kept[65000] == "scanner" and kept[65001] == (1.5, 2.5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frames", [FRAMES[:1], FRAMES, COLOUR], ids=["one", "stack", "colour"])
def test_a_tiff_with_an_orientation_is_read_as_it_is_shown(tmp_path, orientation, frames):
    tags = [(274, "H", 1, orientation, True)]
    kind = "rgb" if frames.ndim == 4 else "minisblack"
    tifffile.imwrite(tmp_path / "in.tif", frames, extratags=tags, photometric=kind, metadata=None,
                     resolution=(50, 40), resolutionunit="CENTIMETER")  # fmt: skip
    shown = []
    for frame in frames:
        image = Image.fromarray(frame)
        image.getexif()[274] = orientation
        shown.append(np.asarray(ImageOps.exif_transpose(image)))
    made = again(tmp_path, tmp_path / "in.tif", change=lambda frames: frames // 2)
    assert np.array_equal(made.recording.frames, shown)
    assert made.recording.spacing[1:] == pytest.approx((0.25, 0.2) if orientation < 5 else (0.2, 0.25))
    with tifffile.TiffFile(made.path) as file:
        assert np.array_equal(file.asarray().reshape(frames.shape), frames // 2), "as stored"
        assert file.pages[0].tags[274].value == orientation
    other = again(tmp_path, tmp_path / "in.tif", "out.mha")
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(other.path)))
    assert np.array_equal(read.reshape(np.shape(shown)), shown)


def test_a_tiff_without_a_pixel_size_is_written_without_one(tmp_path):
    Image.fromarray(FRAMES[0]).save(tmp_path / "in.tif")
    made = again(tmp_path, tmp_path / "in.tif")
    assert made.recording.spacing == (1, 1, 1) and files.read(made.path).spacing == (1, 1, 1)


def test_a_tiff_of_several_stacks_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as file:
        file.write(FRAMES, photometric="MINISBLACK", metadata=None)
        file.write(WIDE[0, :20], photometric="MINISBLACK", metadata=None)
    with pytest.raises(InputError, match="holds 2 stacks"):
        files.read(tmp_path / "in.tif")


@pytest.mark.parametrize("name", ["lzw", "packbits", "jpeg"])
def test_other_compressions_of_a_tiff_are_read_without_messages(tmp_path, name, capfd):
    image = Image.fromarray(FRAMES[0])
    image.save(tmp_path / "in.tif", compression={"lzw": "tiff_lzw", "packbits": "packbits", "jpeg": "jpeg"}[name])
    frames = files.read(tmp_path / "in.tif").frames
    assert frames.dtype == np.uint8 and np.array_equal(frames[0], np.asarray(Image.open(tmp_path / "in.tif")))
    assert capfd.readouterr().err == ""


def test_compressed_color_planes_that_itk_orders_differently_are_refused(tmp_path):
    planes = np.repeat(np.arange(4, dtype=np.uint8), 48 * 64).reshape(4, 48, 64)
    layout = {"photometric": "RGB", "planarconfig": "SEPARATE", "extrasamples": ["UNASSALPHA"], "metadata": None}
    tifffile.imwrite(tmp_path / "in.tif", planes, **layout)
    with tifffile.TiffFile(tmp_path / "in.tif", mode="r+") as file:
        page, sizes = file.pages[0], []
        for plane, start in zip(planes, page.dataoffsets, strict=True):
            Image.fromarray(plane).save(tmp_path / "plane.tif", compression="tiff_lzw")
            with tifffile.TiffFile(tmp_path / "plane.tif") as packed:
                (at,), (size,) = packed.pages[0].dataoffsets, packed.pages[0].databytecounts
            file.filehandle.seek(start)
            file.filehandle.write((tmp_path / "plane.tif").read_bytes()[at : at + size])
            sizes.append(size)
        page.tags["StripByteCounts"].overwrite(sizes)
        page.tags["Compression"].overwrite(5)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "in.tif")), np.moveaxis(planes, 0, -1)), "a good file"
    with pytest.raises(InputError, match="compressed as LZW; install the package imagecodecs"):
        files.read(tmp_path / "in.tif")


def test_a_cine_becomes_a_tiff_with_its_rate_and_pixel_size(tmp_path):
    recording = files.read(cine(tmp_path, PixelSpacing=[0.25, 0.2]))
    files.write(tmp_path / "out.tif", recording.frames, recording)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_imagej and file.series[0].axes == "TYX" and np.array_equal(file.asarray(), FRAMES)
        assert file.imagej_metadata["finterval"] == pytest.approx(0.04) and file.imagej_metadata["unit"] == "mm"
        assert file.pages[0].resolution == pytest.approx((5, 4))


#
# PNG and JPEG
#


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_written_as_it_is_shown(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(FRAMES[0]).save(tmp_path / "in.jpg", exif=exif, quality=95)
    assert despeckled(tmp_path / "in.jpg", tmp_path / "out.png", "--strength", "0") == 0
    with Image.open(tmp_path / "in.jpg") as image, Image.open(tmp_path / "out.png") as written:
        shown = np.asarray(ImageOps.exif_transpose(image))
        assert not written.getexif() and np.array_equal(np.asarray(written), shown)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_read_as_pillow_and_itk_read_it(tmp_path, mode):
    smooth = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    image = Image.fromarray(np.dstack([smooth, 255 - smooth, smooth // 2, smooth // 3]), "RGBA").convert(mode)
    image.save(tmp_path / "in.jpg", dpi=(100, 50), subsampling=0)
    recording = files.read(tmp_path / "in.jpg")
    itk = sitk.ReadImage(str(tmp_path / "in.jpg"))
    assert np.abs(recording.frames[0].astype(int) - sitk.GetArrayFromImage(itk)).max() <= 1
    assert recording.frames.shape == ((1, 48, 64) if mode == "L" else (1, 48, 64, 3))
    assert recording.spacing[:0:-1] == pytest.approx(itk.GetSpacing()) == (0.254, 0.508)


def test_a_library_prints_nothing_about_a_damaged_jpeg(tmp_path):
    Image.fromarray(FRAMES[0]).save(tmp_path / "in.jpg")
    data = (tmp_path / "in.jpg").read_bytes()
    (tmp_path / "in.jpg").write_bytes(data.replace(b"\xff\xda", b"\1" * 20 + b"\xff\xda", 1))
    code = "import sys; from Speckle2SelfLib import files; assert files.read(sys.argv[1]).frames.shape == (1, 48, 64)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "in.jpg"], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""


def test_grey_with_transparency_keeps_it_or_is_refused(tmp_path):
    alpha = np.full((48, 64), 200, np.uint8)
    Image.fromarray(np.dstack([FRAMES[0], alpha])).save(tmp_path / "in.png")
    made = again(tmp_path, tmp_path / "in.png", change=lambda frames: frames // 2)
    assert made.recording.frames.shape == (1, 48, 64)
    written = np.asarray(Image.open(made.path))
    assert np.array_equal(written[..., 0], FRAMES[0] // 2) and np.array_equal(written[..., 1], alpha)
    with pytest.raises(InputError, match="transparency would be lost"):
        files.check_output(tmp_path / "out.tif", made.recording)
    Image.fromarray(np.dstack([FRAMES[0], np.full_like(alpha, 255)])).save(tmp_path / "opaque.png")
    assert np.array_equal(tifffile.imread(again(tmp_path, tmp_path / "opaque.png", "out.tif").path), FRAMES[0])


@pytest.mark.parametrize("mode", ["L", "RGB", "LA"])
def test_the_pixel_size_texts_and_color_profile_of_a_png_are_kept(tmp_path, mode):
    texts = PngInfo()
    texts.add_text("Description", "left lobe")
    texts.add_itxt("Probe", "L14 \u00b5")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    given = {} if mode == "LA" else {"icc_profile": profile}
    Image.fromarray(FRAMES[0]).convert(mode).save(tmp_path / "in.png", dpi=(254, 127), pnginfo=texts, **given)
    made = again(tmp_path, tmp_path / "in.png", change=lambda frames: frames // 2)
    with Image.open(made.path) as written:
        assert np.array_equal(np.asarray(written.convert("L"))[3], FRAMES[0, 3] // 2)
        assert written.info["dpi"] == pytest.approx((254, 127), abs=0.1)
        assert written.text["Description"] == "left lobe" and written.text["Probe"] == "L14 \u00b5"
        assert mode == "LA" or written.info["icc_profile"] == profile


def png(path, bits, kind, rows, *others):
    """Return a PNG of 64 x 48 pixels with other chunks before its pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, bits, kind, 0, 0, 0))
    data += b"".join(chunk(*other) for other in others)
    path.write_bytes(data + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def test_grey_with_one_transparent_value_is_read_with_its_transparency(tmp_path):
    rows = b"".join(b"\0" + row.tobytes() for row in FRAMES[0])
    recording = files.read(png(tmp_path / "in.png", 8, 0, rows, (b"tRNS", b"\0\x05")))
    assert np.array_equal(recording.frames[0], FRAMES[0])
    assert np.array_equal(recording.source["alpha"], np.where(FRAMES[0] == 5, 0, 255))
    with pytest.raises(InputError, match="transparency would be lost"):
        files.check_output(tmp_path / "out.tif", recording)


def test_an_animated_png_is_refused_and_not_read_as_one_frame(tmp_path):
    first, *others = [Image.fromarray(frame) for frame in FRAMES]
    first.save(tmp_path / "in.png", save_all=True, append_images=others, duration=40)
    with pytest.raises(InputError, match="animated PNG, but only one frame would be read"):
        files.read(tmp_path / "in.png")


@pytest.mark.parametrize("kind", ["colour", "transparent"])
def test_colors_of_16_bits_are_kept_in_a_png(tmp_path, kind):
    array = COLOUR[0].astype(np.uint16) * 257
    array = array if kind == "colour" else np.dstack([array, array[..., 0]])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    made = again(tmp_path, png(tmp_path / "in.png", 16, 2 if kind == "colour" else 6, rows))
    assert np.array_equal(made.recording.frames[0], array)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(made.path))), array)


def test_libraries_print_nothing_about_damaged_or_missing_fields(tmp_path, capfd):
    Image.fromarray(FRAMES[0]).save(tmp_path / "in.png", dpi=(254, 254))
    data = bytearray((tmp_path / "in.png").read_bytes())
    data[data.index(b"pHYs") + 4] ^= 1
    (tmp_path / "in.png").write_bytes(data)
    assert np.array_equal(files.read(tmp_path / "in.png").frames[0], FRAMES[0])
    data[data.index(b"IHDR") + 6] ^= 1
    (tmp_path / "in.png").write_bytes(data)
    with pytest.raises(InputError, match="is not an image that can be read"):
        files.read(tmp_path / "in.png")
    nibabel.Nifti1Image(FRAMES.T.copy(), np.eye(4)).to_filename(tmp_path / "in.nii")  # without a description
    again(tmp_path, tmp_path / "in.nii", "out.mha")
    assert capfd.readouterr().err == ""


def test_libraries_print_nothing_about_a_spacing_that_is_not_a_number(tmp_path, capfd):
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / "in.vtk"))
    data = (tmp_path / "in.vtk").read_bytes()
    (tmp_path / "in.vtk").write_bytes(data.replace(b"SPACING 1.0000000000000000e+00", b"SPACING nan", 1))
    assert np.array_equal(again(tmp_path, tmp_path / "in.vtk").recording.frames, FRAMES)
    assert capfd.readouterr() == ("", "")


CUT = [".vtk", ".gipl", ".gipl.gz", ".bmp", ".hdr", ".img", ".img.gz", ".tif", ".nii", ".nii.gz", ".mha", ".nrrd"]


@pytest.mark.parametrize("suffix", [*CUT, ".png", ".jpg"])
@pytest.mark.parametrize("missing", [30, 200, 3000])
def test_a_file_that_is_cut_short_is_refused(tmp_path, suffix, missing):
    path = tmp_path / f"in{suffix}"
    frames = FRAMES[:1] if suffix in (".bmp", ".png", ".jpg") else FRAMES
    sitk.WriteImage(sitk.GetImageFromArray(frames[0] if len(frames) == 1 else frames), str(path))
    assert files.read(path).frames.shape[:3] == frames.shape, "a good file"
    data = max(tmp_path.iterdir(), key=lambda part: part.stat().st_size)
    data.write_bytes(data.read_bytes()[:-missing])
    if (suffix, missing) == (".tif", 30):  # only the size of pixels is missing
        assert np.array_equal(files.read(path).frames, frames)
        return
    with pytest.raises(InputError):
        files.read(path)


def test_reading_does_not_change_the_locale_of_the_process(tmp_path):
    try:
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    except locale.Error:
        pytest.skip("there is no other locale")
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / "in.vtk"))
    before = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    again(tmp_path, tmp_path / "in.vtk")
    assert locale.setlocale(locale.LC_ALL) == before


def test_grey_of_16_bits_with_transparency_is_refused(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + struct.pack(">16H", *range(16)) for _ in range(8))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 4, 0, 0, 0))
    (tmp_path / "in.png").write_bytes(png + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match="grey of 16 bits with transparency"):
        files.read(tmp_path / "in.png")


#
# NIfTI
#

AFFINE = np.array([[0.2, 0, 0, -3], [0, 0.3, 0, 4], [0, 0, 1.5, 7], [0, 0, 0, 1.0]])
SHEARED = AFFINE + np.array([[0, 0.05, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def nifti(path, array, affine=AFFINE, codes=(1, 2), scaling=None, step=None):
    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine if codes[0] else None, codes[0], strip_shears=True)
    image.set_sform(affine if codes[1] else None, codes[1])
    image.header["descrip"], image.header["cal_max"], image.header["toffset"] = b"left lobe", 250, 1.5
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a note of the scanner"))
    if step:
        image.header.set_xyzt_units("mm", "msec")
        image.header.set_zooms((*image.header.get_zooms()[:3], step))
    image.to_filename(path)
    if scaling:
        import gzip

        opened = gzip.open if path.suffix == ".gz" else open
        data = bytearray(opened(path, "rb").read())
        struct.pack_into("<ff", data, 112, *scaling)
        opened(path, "wb").write(data)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", [AFFINE, SHEARED], ids=["straight", "sheared"])
@pytest.mark.parametrize("codes", [(0, 0), (0, 2), (1, 0), (2, 3), (4, 1)], ids=str)
def test_a_nifti_keeps_its_codes_matrices_texts_and_extensions(tmp_path, suffix, affine, codes):
    array = FRAMES.T.copy()
    made = again(tmp_path, nifti(tmp_path / f"in{suffix}", array, affine, codes), change=lambda frames: 255 - frames)
    before, after = nibabel.load(tmp_path / f"in{suffix}"), nibabel.load(made.path)
    assert np.array_equal(np.asarray(after.dataobj), 255 - array)
    assert after.header == before.header and np.array_equal(after.affine, before.affine)
    assert after.header.extensions[0].get_content() == before.header.extensions[0].get_content()


@pytest.mark.parametrize("codes", [(0, 0), (0, 2), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("signs", [(-1, 1, 1, 1), (1, 1, 1, 1), (1, -1, 1, 1), (-1, 1, 1, -1)], ids=str)
def test_a_nifti_lies_in_other_formats_where_slicer_shows_it(tmp_path, codes, signs):
    turned = AFFINE.copy()
    turned[:3, :2] = np.array([[0.8, -0.6], [0.6, 0.8], [0, 0]]) * 0.2
    source = nifti(tmp_path / "in.nii", FRAMES.T.copy(), turned, codes)
    data = bytearray(source.read_bytes())
    sizes = struct.unpack_from("<4f", data, 76)
    struct.pack_into("<4f", data, 76, *(abs(size) * sign for size, sign in zip(sizes, signs, strict=True)))
    source.write_bytes(data)
    expected = sitk.ReadImage(str(source))
    made = sitk.ReadImage(str(again(tmp_path, source, "out.mha").path))
    assert made.GetSpacing() == pytest.approx(expected.GetSpacing())
    assert made.GetOrigin() == pytest.approx(expected.GetOrigin(), abs=1e-5)
    assert made.GetDirection() == pytest.approx(expected.GetDirection(), abs=1e-5)


def test_the_scaling_of_a_nifti_is_kept_and_applied(tmp_path):
    source = nifti(tmp_path / "in.nii.gz", FRAMES.T.astype(np.int16), scaling=(0.5, -60))
    made = again(tmp_path, source, change=lambda frames: frames + np.float32(1))
    assert np.allclose(made.recording.frames, FRAMES * 0.5 - 60)
    before, after = nibabel.load(source), nibabel.load(made.path)
    assert after.header == before.header and after.get_data_dtype() == np.int16
    assert np.allclose(after.get_fdata(), before.get_fdata() + 1)
    written = again(tmp_path, source, "out.mha").path
    assert np.allclose(sitk.GetArrayFromImage(sitk.ReadImage(str(written))), FRAMES * 0.5 - 60)


def test_frames_in_time_of_a_nifti_are_a_cine(tmp_path):
    array = FRAMES.transpose(2, 1, 0)[:, :, None].copy()  # x, y, 1, t
    made = again(tmp_path, nifti(tmp_path / "in.nii.gz", array, step=33.0), change=lambda frames: 255 - frames)
    assert made.recording.sequence and np.array_equal(made.recording.frames, FRAMES)
    assert made.recording.times == pytest.approx(np.arange(6) * 0.033)
    after = nibabel.load(made.path)
    assert after.shape == array.shape and np.array_equal(np.asarray(after.dataobj), 255 - array)
    assert after.header.get_xyzt_units() == ("mm", "msec") and after.header.get_zooms()[3] == pytest.approx(33)


@pytest.mark.parametrize("name", ["in.nii", "in.mha", "in.nrrd"])
def test_volumes_in_time_are_despeckled_on_the_command_line_as_each_volume_is(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    volumes = np.random.default_rng(2).integers(20, 200, (2, 9, 20, 24)).astype(np.uint8)
    image = sitk.JoinSeries([sitk.GetImageFromArray(volume) for volume in volumes])
    image.SetSpacing((0.2, 0.2, 0.2, 1))
    sitk.WriteImage(image, name)
    for axis in ("k", "j", "average"):
        assert despeckled(name, f"out.{name}", "--axis", axis) == 0
        written = sitk.GetArrayFromImage(sitk.ReadImage(f"out.{name}")).reshape(volumes.shape)
        for number, volume in enumerate(volumes):
            np.save("one.npy", volume.astype(np.int16))
            assert despeckled("one.npy", "one despeckled.npy", "--axis", axis) == 0
            assert np.abs(np.load("one despeckled.npy") - written[number].astype(int)).max() <= 1


#
# Content before names; folders
#


def cine(folder, name="in.dcm", frames=FRAMES, series="1.2.3.4", **tags):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.UltrasoundMultiFrameImageStorage
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = series, "1.2.3", "US"
    dataset.PatientID, dataset.PatientName, dataset.ImageType = "4711", "Doe^Jane", ["ORIGINAL", "PRIMARY"]
    dataset.Rows, dataset.Columns = frames.shape[1:3]
    if len(frames) > 1:
        dataset.NumberOfFrames, dataset.FrameTime = len(frames), "40"
    colour = frames.ndim == 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * frames.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.PixelData = frames.tobytes()
    dataset["PixelData"].VR = "OB" if frames.dtype.itemsize == 1 else "OW"
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    save(dataset, folder / name)
    return folder / name


def save(dataset, path):
    if hasattr(dataset, "set_pixel_data"):
        dataset.save_as(path, enforce_file_format=True)
    else:  # pydicom 2.4, as in Slicer 5.10
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        dataset.save_as(path, write_like_original=False)


def test_files_named_by_their_uid_are_despeckled_as_all_others(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("1.2.826.0.1.3680043.8.498.4711", "IM0001", "good.dcm", "image.00017", "noise.png"):
        cine(tmp_path / "in", name)
    assert despeckled(tmp_path / "in", tmp_path / "out") == 2, (
        "a DICOM file that is named .png cannot be written as one"
    )
    assert capsys.readouterr().err.count("/in/noise.png: ") == 1
    (tmp_path / "in" / "noise.png").unlink()
    shutil.rmtree(tmp_path / "out")
    assert despeckled(tmp_path / "in", tmp_path / "out") == 0
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in written] == sorted(path.name for path in (tmp_path / "in").iterdir())
    assert all(pydicom.dcmread(path).pixel_array.shape == FRAMES.shape for path in written)
    assert capsys.readouterr().err == ""


def test_skipped_files_of_a_folder_are_named_once(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / "in" / "volume.mhd"))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "1.2.3").write_text("no image either")
    (tmp_path / "in" / ".hidden").write_text("")
    assert despeckled(tmp_path / "in", tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert error.count("notes.txt") == error.count("1.2.3") == 1 and len(error.splitlines()) == 1
    assert "volume.raw" not in error and ".hidden" not in error


def test_the_content_of_a_file_matters_and_not_its_name(tmp_path):
    np.save(tmp_path / "a.npy", FRAMES)
    (tmp_path / "a.npy").rename(tmp_path / "a.dcm")
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES[0]), str(tmp_path / "b.png"))
    (tmp_path / "b.png").rename(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c", WIDE, photometric="MINISBLACK")
    assert files.read(tmp_path / "a.dcm").frames.shape == FRAMES.shape
    assert np.array_equal(files.read(tmp_path / "b.tif").frames[0], FRAMES[0])
    assert files.read(tmp_path / "c").frames.dtype == np.uint16


def test_ten_of_twelve_files_are_despeckled_and_the_two_broken_ones_are_named(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    cine(folder, "a.dcm")
    cine(folder, "1.2.3.4.5")
    tifffile.imwrite(folder / "b.tif", WIDE, tile=(32, 32))
    tifffile.imwrite(folder / "c.tif", FRAMES, imagej=True, metadata={"axes": "TYX"})
    Image.fromarray(FRAMES[0]).save(folder / "d.png")
    Image.fromarray(FRAMES[0]).save(folder / "e.jpg")
    Image.fromarray(np.dstack([FRAMES[0], FRAMES[1]])).save(folder / "f.png")
    np.save(folder / "g.npy", FRAMES)
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(folder / "h.mha"))
    nifti(folder / "i.nii.gz", FRAMES.T.copy())
    (folder / "j.dcm").write_bytes((folder / "a.dcm").read_bytes()[:-5000])
    (folder / "k.tif").write_bytes((folder / "b.tif").read_bytes()[:3000])
    assert despeckled(folder, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "2 of 12 files" in error and error.count("/j.dcm: ") == error.count("/k.tif: ") == 1
    assert len(error.splitlines()) == 3
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {path.name for path in folder.iterdir()} - {"j.dcm", "k.tif", "e.jpg"} | {"e.png"}
