import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from wsssfast.data.dataset import Item
from wsssfast.data.images import item_image, item_mask, item_size, read_mask, read_rgb, rgb_size
from wsssfast.errors import BadFile

ORIENTATION = 0x0112


def noise(*shape, most=255, dtype=np.uint8):
    return np.random.RandomState(0).randint(0, most + 1, shape).astype(dtype)


def colours(width=9, height=5):
    return Image.fromarray(noise(height, width, 3))


def assert_same_as_pil(path):
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")  # PIL's about palettes with several transparencies
        expected = ImageOps.exif_transpose(image).convert("RGB")
    found = read_rgb(path)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert rgb_size(path) == found.size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_every_exif_orientation_is_applied(tmp_path, orientation, extension):
    path = tmp_path / f"turned.{extension}"
    if extension == "tif":
        colours().save(path, tiffinfo={ORIENTATION: orientation})
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        colours().save(path, exif=exif)
    assert_same_as_pil(path)
    assert rgb_size(path) == ((5, 9) if orientation >= 5 else (9, 5))


def test_orientation_6_turns_the_pixels_a_quarter_clockwise(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    colours().save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(np.asarray(colours()), -1)
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "a.png")), expected)


def test_an_orientation_out_of_range_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 99
    colours().save(tmp_path / "a.jpg", exif=exif)
    assert_same_as_pil(tmp_path / "a.jpg")
    assert rgb_size(tmp_path / "a.jpg") == (9, 5)


def palette():
    image = Image.fromarray(noise(5, 9, most=3)).convert("P")
    image.putpalette([0, 0, 0, 200, 10, 20, 5, 180, 30, 90, 91, 250])
    return image


MODES = {
    "grey.png": Image.fromarray(noise(5, 9)),
    "grey.jpg": Image.fromarray(noise(5, 9)),
    "cmyk.jpg": Image.fromarray(noise(5, 9, 4)).convert("RGBA").convert("CMYK"),
    "palette.png": palette(),
    "palette.gif": palette(),
    "rgba.png": Image.fromarray(noise(5, 9, 4)),
    "la.png": Image.fromarray(noise(5, 9, 4)).convert("LA"),
    "bit.png": Image.fromarray(noise(5, 9)).convert("1"),
    "deep.png": Image.fromarray(noise(5, 9, most=65535, dtype=np.uint16)),
}


@pytest.mark.parametrize("name", [name for name in MODES if name != "deep.png"])
def test_every_mode_becomes_what_pil_makes_of_it(tmp_path, name):
    MODES[name].save(tmp_path / name)
    assert_same_as_pil(tmp_path / name)


@pytest.mark.parametrize(("name", "orientation"), [("a.png", 1), ("a.png", 6), ("a.tif", 1)])
def test_of_16_bits_grey_the_upper_8_are_kept(tmp_path, name, orientation):
    deep, exif = noise(5, 9, most=65535, dtype=np.uint16), Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(deep).save(tmp_path / name, exif=exif)
    found, upper = read_rgb(tmp_path / name), (deep >> 8).astype(np.uint8)
    expected = np.rot90(upper, -1) if orientation == 6 else upper
    np.testing.assert_array_equal(np.asarray(found), np.stack([expected] * 3, -1))
    assert rgb_size(tmp_path / name) == found.size


@pytest.mark.parametrize(("kind", "told"), [(np.int32, "integers"), (np.float32, "floats")])
def test_an_image_of_32_bits_a_channel_is_a_bad_file(tmp_path, kind, told):
    Image.fromarray(noise(5, 9).astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(BadFile, match=f"found 32-bit {told}: scale"):
        read_rgb(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["cmyk.jpg", "palette.png", "la.png", "bit.png", "deep.png"])
def test_the_mode_survives_being_written(tmp_path, name):
    MODES[name].save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode[:2] == {"c": "CM", "p": "P", "l": "LA", "b": "1", "d": "I;"}[name[0]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128, 255])])
def test_a_transparent_palette_keeps_its_colours(tmp_path, transparency):
    palette().save(tmp_path / "a.png", transparency=transparency)
    assert_same_as_pil(tmp_path / "a.png")
    opaque = np.asarray(palette().convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "a.png")), opaque)


def test_alpha_is_dropped_and_not_blended(tmp_path):
    MODES["rgba.png"].save(tmp_path / "a.png")
    found = np.asarray(read_rgb(tmp_path / "a.png"))
    np.testing.assert_array_equal(found, noise(5, 9, 4)[..., :3])


def test_a_truncated_jpeg_is_a_bad_file_though_its_header_is_good(tmp_path):
    path = tmp_path / "a.jpg"
    colours(64, 48).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert rgb_size(path) == (64, 48)
    with pytest.raises(BadFile, match="truncated"):
        read_rgb(path)


@pytest.mark.parametrize("content", [b"", b"this is no image\n" * 20])
def test_a_file_that_is_no_image_is_a_bad_file(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_rgb, rgb_size, read_mask):
        with pytest.raises(BadFile, match="UnidentifiedImageError: cannot identify image file"):
            read(path)


@pytest.mark.parametrize("read", [read_rgb, rgb_size, read_mask])
def test_a_missing_file_is_a_bad_file(tmp_path, read):
    with pytest.raises(BadFile, match=r"^file not found$"):
        read(tmp_path / "none.jpg")


def test_an_image_too_large_to_be_honest_is_a_bad_file(tmp_path, monkeypatch):
    colours(40, 30).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(BadFile, match="DecompressionBombError"):
        read_rgb(tmp_path / "a.png")


def test_a_reason_is_one_line_of_at_most_200_characters(tmp_path):
    path = tmp_path / f"{'long' * 50}.jpg"
    path.write_text("no image")
    with pytest.raises(BadFile) as caught:
        read_rgb(path)
    assert len(str(caught.value)) == 200
    assert "\n" not in str(caught.value)


def test_a_palette_mask_gives_indices_and_not_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 20], [255, 3, 0]], np.uint8)).convert("P")
    image.putpalette([v for i in range(256) for v in (255 - i, i // 2, 7)])
    image.putdata([0, 1, 20, 255, 3, 0])
    image.save(tmp_path / "a.png")
    found = read_mask(tmp_path / "a.png")
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1, 20], [255, 3, 0]]
    with Image.open(tmp_path / "a.png") as written:
        assert written.mode == "P"


def test_a_grey_mask_gives_its_values(tmp_path):
    Image.fromarray(np.array([[0, 7], [255, 1]], np.uint8)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 7], [255, 1]]


@pytest.mark.parametrize(("name", "mode"), [("rgba.png", "RGBA"), ("deep.png", "I;16")])
def test_a_mask_of_another_mode_is_a_bad_file(tmp_path, name, mode):
    MODES[name].save(tmp_path / name)
    with pytest.raises(BadFile, match=f"palette or 8-bit grey mask, found mode {mode}$"):
        read_mask(tmp_path / name)


def test_a_mask_of_colours_is_a_bad_file(tmp_path):
    colours().save(tmp_path / "a.png")
    with pytest.raises(BadFile, match=r"found mode RGB$"):
        read_mask(tmp_path / "a.png")


def test_a_truncated_mask_is_a_bad_file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadFile, match="truncated"):
        read_mask(path)


def test_an_item_is_read_by_its_paths(tmp_path):
    colours().save(tmp_path / "a.png")
    Image.fromarray(noise(5, 9)).save(tmp_path / "m.png")
    item = Item("a", (), tmp_path / "a.png", tmp_path / "m.png")
    assert item_size(item) == item_image(item).size == (9, 5)
    np.testing.assert_array_equal(item_mask(item), noise(5, 9))
    assert item_mask(Item("a", (), tmp_path / "a.png")) is None


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path):
    path = tmp_path / "a.png"
    colours().save(path)
    whole = path.read_bytes()
    pixels = whole.index(b"IDAT")
    path.write_bytes(whole[: pixels + 4] + bytes(len(whole) - pixels - 4))
    assert rgb_size(path) == colours().size
    with pytest.raises(BadFile):
        read_rgb(path)


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "a.png"
    colours().save(path, exif=exif)
    whole = path.read_bytes()
    start = whole.index(b"eXIf") - 4
    chunk = whole[start : start + 12 + int.from_bytes(whole[start : start + 4], "big")]
    end = whole.index(b"IEND") - 4
    path.write_bytes(whole[:start] + whole[start + len(chunk) : end] + chunk + whole[end:])
    width, height = colours().size
    assert width != height and rgb_size(path) == read_rgb(path).size == (height, width)
