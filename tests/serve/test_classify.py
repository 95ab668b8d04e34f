"""Photos in batches, without a server: ``python -m shiftnas_serve.classify``."""

from __future__ import annotations

import csv
import io
import os
import re
import resource
from pathlib import Path

import pytest

from shiftnas_serve import library, load
from shiftnas_serve.batch import tables
from shiftnas_serve.batch.photos import Photo, sources
from shiftnas_serve.classify import main, row_of
from tests.contract.process import ROOT
from tests.pictures import encoded, picture, write_photos


def rows_of(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_with_broken_files(bundle, bundle_folder, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", 6)
    (photos / "not, a photo.jpg").write_bytes(b"no")
    out = tmp_path / "out.csv"
    budget = str(bundle.min_flops)
    command = [str(photos), "--flops", budget, "--bundle", str(bundle_folder), "--csv", str(out)]
    assert main(command) == 1
    said = capsys.readouterr().err
    rows = rows_of(out)
    assert "7 photos in" in said
    assert "1 broken" in said
    assert main(command) == 1  # a scheduler that starts it again must not take it for clean
    assert "7 of 7 are done already; broken rows of the table: 1" in capsys.readouterr().err
    assert main([rows[0]["photo"], *command[1:]]) == 1
    assert "1 of 1 are done already; broken" in capsys.readouterr().err
    assert f"broken: {photos}/not, a photo.jpg: " in said
    assert [row["photo"] for row in rows] == sorted(map(str, photos.rglob("*.*")))
    with load(bundle_folder, prebuild=False) as engine:
        for row in rows:
            if "not" in row["photo"]:
                assert row["error"]
                assert not row["label"]
                continue
            result = engine.classify(row["photo"], flops=budget)
            assert (row["label"], row["subnet"]) == (
                result.predictions[0].label,
                result.subnet.id,
            )
            assert float(row["probability"]) == pytest.approx(result.predictions[0].probability)
            assert int(row["flops"]) <= bundle.min_flops


def test_images_of_other_formats_in_a_folder_are_told_of(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", 3)
    (found,) = sources([photos])
    assert not capsys.readouterr().err
    for name in ("a.HEIC", "b.gif", "b.txt", "deep/c.heic", ".hidden.gif"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"image")
    assert sources([photos])[0].count == found.count
    said = capsys.readouterr().err
    assert said == f"{photos}: 3 images are left out (.gif, .heic); convert them first\n"


def test_parquet_files_in_a_folder_are_told_of(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", 3)
    for name in ("a.parquet", "deep/b.parquet"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"table")
    assert sources([photos])[0].count == 3
    said = capsys.readouterr().err
    assert said.startswith(f"{photos}: 2 parquet files are left out; name those")


def test_names_that_are_not_utf_8_stay_apart(tmp_path):
    given = [b"a\xff.png", rb"a\xff.png", rb"a\\xff.png", b"a\\\xff.png", rb"a\b.png", b"a.png"]
    for name in given:
        (tmp_path / os.fsdecode(name)).write_bytes(b"image")
    (found,) = sources([tmp_path])
    names = [photo.name for photo in found.photos()]
    assert names == list(found.names())
    assert len(set(names)) == len(given)
    assert {f"{tmp_path}/{one}" for one in (r"a\xff.png", r"a\b.png", "a.png")} < set(names)


def test_it_goes_on_where_it_was_stopped(bundle_folder, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", 4)
    strange = photos / 'two\n"lines".png'
    strange.write_bytes(encoded(picture()))
    (photos / "one\rand two.png").write_bytes(encoded(picture()))
    out = tmp_path / "out.csv"
    command = [str(photos), "--bundle", str(bundle_folder), "--csv", str(out)]
    assert main(command) == 0
    whole = out.read_bytes().decode()
    for cut in (len(whole) - 30, whole.index("two\n") + 5, whole.index("\n") + 1):
        out.write_bytes(whole[:cut].encode())
        assert main(command) == 0
        assert sorted(map(str, rows_of(out))) == sorted(
            str(row) for row in csv.DictReader(io.StringIO(whole, newline=""))
        )
    assert "are done already" in capsys.readouterr().err


@pytest.mark.parametrize("error", [BrokenPipeError, KeyboardInterrupt])
def test_a_stop_ends_it_at_once_and_loses_no_row(error, bundle_folder, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", 12)
    out = tmp_path / "out.csv"
    write, written = tables.CsvTable.write, []

    def stop(self, row) -> None:
        if len(written) == 2:
            raise error
        written.append(row)
        write(self, row)

    command = [str(photos), "--bundle", str(bundle_folder), "--csv", str(out)]
    with monkeypatch.context() as patched:
        patched.setattr(tables.CsvTable, "write", stop)
        patched.setattr(os, "dup2", lambda *_: None)
        assert main(command) == (1 if error is BrokenPipeError else 130)
    assert len(rows_of(out)) == 2
    assert main(command) == 0
    assert len(rows_of(out)) == 12


def test_a_table_of_something_else_is_left_alone(bundle_folder, tmp_path, capsys):
    photo = write_photos(tmp_path / "photos", 1) / "0.jpeg"
    command = [str(photo), "--bundle", str(bundle_folder), "--csv"]
    mine = tmp_path / "mine.csv"
    assert main([*command, str(mine)]) == 0
    other = tmp_path / "other.csv"
    other.write_text("name,salary\n")
    for file, more in ((mine, ["--flops", "1G"]), (other, [])):
        before = file.read_text()
        assert main([*command, str(file), *more]) == 2
        assert file.read_text() == before
        assert "choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.jpg"], "there is no nothing.jpg"),
        ([__file__, "--flops", "1"], "below the smallest subnet"),
        ([__file__, "--flops", "many"], "FLOPs-Budget"),
        (
            [__file__, "--workers", "0"],
            "workers: Input should be greater than or equal to 1, not 0",
        ),
        ([__file__, "--runtime", "foo"], "foo"),
    ],
)
def test_mistakes_are_said_before_anything_is_done(bundle_folder, arguments, said, capsys):
    assert main([*arguments, "--bundle", str(bundle_folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_machine_of_many_cores_has_as_many_workers_as_there_may_be(
    bundle_folder, tmp_path, monkeypatch, capsys
):
    from shiftnas_serve import classify

    class NotMade(Exception):
        pass

    def noted(settings, **named):
        assert settings.workers == 64
        raise NotMade

    monkeypatch.setattr(classify, "cores", lambda: 96)
    monkeypatch.setattr(classify, "Engine", noted)
    with pytest.raises(NotMade):
        main([str(write_photos(tmp_path, 1)), "--bundle", str(bundle_folder)])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_names_that_are_not_utf_8_are_written_so_that_they_can_be_read(
    kind, bundle_folder, tmp_path, capsys
):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    photos = write_photos(tmp_path / "photos", 1)
    strange = os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png")
    try:
        Path(strange).write_bytes(encoded(picture()))
    except OSError:
        pytest.skip("this file system has no such names")
    out = tmp_path / "out"
    command = [str(photos), "--bundle", str(bundle_folder), f"--{kind}"]
    assert main([*command, str(out)]) == 0
    if kind == "csv":
        names = [row["photo"] for row in rows_of(out)]
    else:
        import pyarrow.parquet as pq

        names = [row["photo"] for row in pq.read_table(out).to_pylist()]
    assert f"{photos}/caf\\xe9.png" in names
    assert main([*command, str(out)]) == 0
    assert "2 of 2 are done already" in capsys.readouterr().err
    Path(strange).unlink()
    with load(bundle_folder, prebuild=False) as engine:
        row = row_of(engine, "m", "none", {}, Photo("a", strange))
    assert "cannot read" in str(row.error)
    assert str(row.error).encode("utf-8")


def test_an_error_that_nobody_foresaw_is_that_photos_own(bundle_folder, monkeypatch):
    with load(bundle_folder, prebuild=False) as engine:
        monkeypatch.setattr(library, "read_header", lambda *_: 1 // 0)
        row = row_of(engine, "m", "none", {}, Photo("a", encoded(picture())))
    assert str(row.error).startswith("ZeroDivisionError")


def test_parquet_files_may_be_more_than_can_be_open_at_once(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    files = [tmp_path / f"{number:02d}.parquet" for number in range(40)]
    for file in files:
        pq.write_table(pa.table({"image": [b"content"]}), file)
    softly, hardly = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 10, hardly))
    try:
        found = sources(files)
        photos = [photo for source in found for photo in source.photos()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (softly, hardly))
    assert [photo.name for photo in photos] == [f"{file}#0" for file in files]
    assert {photo.source for photo in photos} == {b"content"}


def test_a_parquet_file_that_cannot_be_read_is_one_line(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    file = tmp_path / "photos.parquet"
    pq.write_table(pa.table({"image": [b"content"]}), file)
    (source,) = sources([file])
    file.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*photos\.parquet"):
        list(source.photos())
    file.write_bytes(b"content")
    with pytest.raises(ValueError, match="is not a parquet file"):
        sources([file])


def test_parquet_in_and_out(bundle_folder, tmp_path, monkeypatch, capsys):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    photos = [encoded(picture(seed=seed)) for seed in range(5)]
    cells = [{"bytes": one, "path": None} for one in photos[:-1]] + [None]
    source = tmp_path / "photos.parquet"
    pq.write_table(pa.table({"img": cells}), source)
    out = tmp_path / "out"
    monkeypatch.setattr(tables, "PART_ROWS", 2)
    command = [str(source), "--bundle", str(bundle_folder), "--parquet", str(out)]
    assert main(command) == 2
    assert "--column names one of ['img']" in capsys.readouterr().err
    command += ["--column", "img"]
    assert main(command) == 1
    assert len(list(out.iterdir())) == 3
    first = pq.read_table(out).to_pylist()
    assert [row["photo"] for row in first] == [f"{source}#{row}" for row in range(5)]
    assert first[-1]["error"] == "there is no image in this row"
    # what was not finished is done again, and nothing twice
    (out / "part-00001.parquet").unlink()
    pq.write_table(pq.read_table(out / "part-00000.parquet")[:0], out / "part-mine.parquet")
    assert main(command) == 1  # of the row that is still there
    again = pq.read_table(out).to_pylist()
    assert sorted(row["photo"] for row in again) == [row["photo"] for row in first]


def test_the_program_of_the_document_runs(capsys, monkeypatch):
    text = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")
    program = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    monkeypatch.chdir(ROOT)
    exec(program, {})  # noqa: S102 (the project's own)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(int(line.split()[-1]) <= 100e6 for line in lines)
