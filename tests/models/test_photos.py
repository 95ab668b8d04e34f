"""Photos of a folder: what is found, what is left out, what is refused."""

import numpy as np
import pytest
from PIL import Image

from models.images.photos import find_photos, read_photos
from models.images.preprocess import Preprocess
from tests.pictures import encoded, picture, write_photos

PLAIN = Preprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_photos_are_found_however_deep_and_by_any_suffix(tmp_path):
    names = ["a.jpg", "deep/er/b.JPEG", "deep/c.png", "d.webp"]
    for name in [*names, "notes.txt", ".hidden.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_photos(tmp_path) == sorted(tmp_path / name for name in names)


@pytest.mark.parametrize("made", ["empty", "none", "file"])
def test_what_holds_no_photos_is_refused_in_one_line(tmp_path, made):
    folder = tmp_path / made
    if made == "empty":
        folder.mkdir()
    elif made == "file":
        folder.write_bytes(encoded(picture()))
    with pytest.raises(ValueError, match=r"holds no images|is not a folder") as refused:
        find_photos(folder)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)


def test_photos_come_out_as_the_server_reads_them(tmp_path):
    write_photos(tmp_path, 3)
    photos = read_photos(find_photos(tmp_path), PLAIN, {16, 24}, at_most=9, least=1)
    assert len(photos) == 3
    for side in (16, 24):
        wanted = {
            PLAIN.array(PLAIN.decode(file.read_bytes(), 24), side).tobytes()
            for file in find_photos(tmp_path)
        }
        got = photos.batch(np.arange(3), side)
        assert got.shape == (3, 3, side, side)
        assert {image.tobytes() for image in got} == wanted


def test_a_broken_photo_is_named_and_counted_and_another_takes_its_place(tmp_path):
    write_photos(tmp_path, 5)
    (tmp_path / "bad.jpg").write_bytes(encoded(picture(), "JPEG")[:200])
    (tmp_path / "words.png").write_text("no image")
    told = []
    photos = read_photos(
        find_photos(tmp_path), PLAIN, {16}, at_most=7, least=1, on_broken=told.append
    )
    assert len(photos) == 5
    assert sorted(told) == sorted(photos.broken)
    assert [line.split(":")[0] for line in sorted(told)] == [
        str(tmp_path / "bad.jpg"),
        str(tmp_path / "words.png"),
    ]


def test_as_many_as_were_asked_for_are_read_the_same_each_time(tmp_path):
    write_photos(tmp_path, 6)
    files = find_photos(tmp_path)
    twice = [read_photos(files, PLAIN, {16}, at_most=4, least=1).pixels[16] for _ in range(2)]
    assert len(twice[0]) == 4
    assert np.array_equal(*twice)
    other = read_photos(files, PLAIN, {16}, at_most=4, least=1, seed=3).pixels[16]
    assert not np.array_equal(other, twice[0])


def test_too_few_and_a_folder_of_broken_files_are_refused(tmp_path):
    write_photos(tmp_path, 2)
    with pytest.raises(ValueError, match=r"2 of the 2 images .* at least 3"):
        read_photos(find_photos(tmp_path), PLAIN, {16}, at_most=4, least=3)
    for index in range(50):
        (tmp_path / f"broken{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    told = []
    with pytest.raises(ValueError, match=r"of the 8 images that were tried"):
        read_photos(
            find_photos(tmp_path), PLAIN, {16}, at_most=2, least=3, on_broken=told.append, seed=1
        )
    assert 6 <= len(told) <= 8


def test_grey_and_large_photos_are_read(tmp_path):
    Image.new("L", (300, 200), 90).save(tmp_path / "grey.png")
    Image.new("RGB", (2000, 1500), (10, 200, 30)).save(tmp_path / "large.jpg")
    assert len(read_photos(find_photos(tmp_path), PLAIN, {16}, at_most=4, least=2)) == 2
