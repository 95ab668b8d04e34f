"""The engine as a library: classify, in threads and on event loops; reload; what ends a wait."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shiftnas_serve
from models.bundle.folder import Bundle
from models.images.preprocess import Preprocess
from shiftnas_serve import Engine, Problem, library
from shiftnas_serve.engine import reload
from shiftnas_serve.engine.sessions import Sessions
from shiftnas_serve.planning.planner import Planner
from shiftnas_serve.scheduling import runners
from shiftnas_serve.scheduling.backlog import Backlog
from tests.pictures import encoded, picture


@pytest.fixture(scope="module")
def engine(bundle_folder: Path) -> Iterator[Engine]:
    with shiftnas_serve.load(bundle_folder, workers=2) as made:
        yield made


@pytest.fixture
def own(bundle_folder: Path) -> Iterator[Engine]:
    with shiftnas_serve.load(bundle_folder, prebuild=False, stall_s=0.1) as made:
        yield made


def test_every_form_of_an_image_gets_the_same_answer(engine: Engine, png: bytes, tmp_path: Path):
    path = tmp_path / "photo.png"
    path.write_bytes(png)
    photo = Image.open(path)
    forms = [png, path, str(path), photo, np.asarray(photo.convert("RGB"))]
    forms += [bytearray(png), memoryview(png)]
    first, *others = [engine.classify(form, flops="1M", top_k=np.int64(2)) for form in forms]
    assert first.subnet.flops <= 1_000_000
    for other in others:
        assert other.subnet is first.subnet
        np.testing.assert_allclose(other.probabilities, first.probabilities, atol=1e-6)


def _clear() -> Image.Image:
    image = picture(seed=3).convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.arange(40, dtype=np.uint8) * 6, (40, 1))))
    return image


def _deep() -> Image.Image:
    grey = np.asarray(picture(seed=4).convert("L"), np.uint16)
    return Image.fromarray(grey << 8 | 7)


def _turned() -> Image.Image:
    image = picture(seed=5)
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.parametrize(
    "made",
    [
        *(_clear, lambda: _clear().convert("LA"), lambda: _clear().quantize(), _deep),
        *(lambda: picture(seed=6).convert("L"), lambda: picture(seed=7).quantize()),
        lambda: _turned(),
    ],
    ids=["alpha", "grey-alpha", "palette-alpha", "16-bit", "grey", "palette", "turned"],
)
def test_an_image_of_pillow_is_answered_as_its_file_is(engine: Engine, made, tmp_path: Path):
    image, path = made(), tmp_path / "photo.png"
    image.save(path, exif=image.getexif())
    answers = [engine.classify(one).probabilities for one in (path, image, Image.open(path))]
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], atol=1e-6)


def test_an_image_of_pillow_that_is_damaged_or_says_not_enough_is_refused(engine, png, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png[: len(png) // 2])
    with Image.open(path) as photo, pytest.raises(Problem, match="damaged PNG file"):
        engine.classify(photo)
    for mode in ("I", "F"):
        with pytest.raises(Problem, match=f"mode {mode} does not say what is white"):
            engine.classify(Image.new(mode, (9, 9)))


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True])
def test_a_number_of_predictions_that_is_none_is_refused(engine: Engine, png: bytes, top_k):
    with pytest.raises(ValueError, match=f"top_k is {top_k}"):
        engine.classify(png, top_k=top_k)
    with pytest.raises(ValueError, match=f"top_k is {top_k}"):
        asyncio.run(engine.aclassify(png, top_k=top_k))


def test_a_file_is_not_read_on_the_event_loop(engine: Engine, png: bytes, tmp_path, monkeypatch):
    path, read, where = tmp_path / "photo.png", Path.read_bytes, []
    path.write_bytes(png)

    def noted(self: Path) -> bytes:
        where.append(threading.current_thread() is threading.main_thread())
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", noted)
    assert asyncio.run(engine.aclassify(path)).predictions
    assert where == [False]


@pytest.mark.parametrize("made", [np.asarray, lambda photo: photo], ids=["array", "pillow"])
@pytest.mark.parametrize("side", [40, 600])
def test_many_pixels_are_not_resized_on_the_event_loop(engine: Engine, monkeypatch, made, side):
    where, pixels = [], Preprocess.pixels

    def noted(self: Preprocess, *given):
        where.append(threading.current_thread().name.split("-")[0])
        return pixels(self, *given)

    monkeypatch.setattr(Preprocess, "pixels", noted)
    photo = made(picture(side))
    assert asyncio.run(engine.aclassify(photo)).predictions
    assert where == ["MainThread" if side == 40 else "decode"]


def test_crowds_of_threads_and_of_tasks_get_each_their_own(engine: Engine, bundle: Bundle):
    photos = [encoded(picture(seed=seed)) for seed in range(6)]
    budgets = np.linspace(bundle.min_flops, bundle.max_flops, 5)
    asked = [(photo, budget) for photo in photos for budget in budgets]
    alone = [engine.classify(photo, flops=budget) for photo, budget in asked]
    with ThreadPoolExecutor(8) as pool:
        threads = list(pool.map(lambda one: engine.classify(one[0], flops=one[1]), asked))

    async def tasks() -> list:
        return await asyncio.gather(*(engine.aclassify(p, flops=budget) for p, budget in asked))

    batches = [engine.classify_batch(photos, flops=budget) for budget in budgets]
    for crowd in (threads, asyncio.run(tasks())):
        for mine, same, (_, budget) in zip(crowd, alone, asked, strict=True):
            assert mine.subnet is same.subnet
            assert mine.subnet.flops <= budget
            np.testing.assert_allclose(mine.probabilities, same.probabilities, atol=1e-5)
    for batch, budget in zip(batches, budgets, strict=True):
        assert len({one.subnet for one in batch}) == 1
        assert batch[0].subnet.flops <= budget


@pytest.mark.parametrize(
    "given",
    [
        *("nowhere.png", np.zeros((4, 4)), np.zeros((2, 2, 3)), np.zeros((0, 9, 3), np.uint8)),
        *(Image.new("RGB", (0, 10)), Image.new("RGBA", (10, 0)), None, "nowhere\0"),
    ],
)
def test_what_is_no_image_is_one_line(engine: Engine, given):
    says = r"nowhere|uint8|must have pixels, not (0 x 10|10 x 0)$|None is not an image"
    with pytest.raises(ValueError, match=says):
        engine.classify(given)


@pytest.mark.parametrize("one", ["photo.png", b"photo", Path("photo.png"), picture()])
def test_one_image_is_not_several(engine: Engine, one):
    with pytest.raises(ValueError, match="takes several images: give a list"):
        engine.classify_batch(one)


@pytest.mark.parametrize(
    ("asked", "header"),
    [
        ({"flops": 10**400}, "FLOPs-Budget"),
        ({"flops": b"4M"}, "FLOPs-Budget"),
        ({"latency_ms": [1]}, "Latency-Budget"),
        ({"confidence": "0." + 20 * "9"}, "Confidence"),
        ({"confidence": "1e-400"}, "Confidence"),
    ],
)
def test_a_budget_that_is_no_number_in_range_is_named(engine: Engine, png: bytes, asked, header):
    with pytest.raises(Problem, match=f"^{header}: ") as refused:
        engine.classify(png, **asked)
    assert refused.value.status == 400


def test_a_closed_engine_reloads_nothing(own: Engine, monkeypatch):
    own.close()
    monkeypatch.setattr(reload, "load_model", lambda *_, **__: 1 // 0)
    with pytest.raises(Problem, match="is closed") as refused:
        own.reload()
    assert refused.value.status == 503


@pytest.mark.parametrize(
    "given",
    [
        *(b"not an image", encoded(picture())[:-40], encoded(picture(600))[:-40], "nowhere.png"),
        *(np.zeros((4, 4)), Image.new("RGB", (0, 10)), Image.new("F", (9, 9))),
    ],
)
def test_one_of_several_that_is_no_image_is_named(engine: Engine, png: bytes, given):
    with pytest.raises((ValueError, Problem), match=r"^image 2 of 3: "):
        engine.classify_batch([png, given, png])
    with pytest.raises((ValueError, Problem), match=r"^(?!image \d of)"):
        engine.classify(given)


def test_what_a_runtime_raises_concerns_its_subnet_alone(own: Engine, monkeypatch, png: bytes):
    run = Sessions.run
    bad = own.classify(png, flops="1M").subnet

    def fail(self: Sessions, arch, images, **named):
        if arch == bad.value:
            raise RuntimeError("out of memory")
        return run(self, arch, images, **named)

    monkeypatch.setattr(Sessions, "run", fail)
    with pytest.raises(Problem, match="RuntimeError: out of memory") as refused:
        own.classify(png, flops="1M")
    assert refused.value.status == 500
    assert own.classify(png).subnet is not bad


def test_a_thread_of_inference_that_ends_by_an_error_is_told(own: Engine, monkeypatch, png: bytes):
    told = threading.Event()
    own._on_wedged = lambda reason: told.set()

    def fail(*given) -> None:
        raise IndexError("no image")

    monkeypatch.setattr("shiftnas_serve.scheduling.backlog.next_group", fail)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(own.classify, png)
        assert told.wait(20)
        assert "has ended: IndexError('no image')" in str(own.wedged)
        own.close()
        with pytest.raises(Problem) as refused:
            asked.result(20)
    assert refused.value.status == 503


@pytest.mark.parametrize("decoding", [True, False])
def test_whoever_waits_when_it_is_closed_hears_so(own: Engine, monkeypatch, decoding):
    go, begun, run = threading.Event(), threading.Event(), Sessions.run

    def held(self: Sessions, *given, **named):
        begun.set()
        go.wait(20)
        return run(self, *given, **named)

    monkeypatch.setattr(Sessions, "run", held)
    monkeypatch.setattr(library, "_END_S", 0.0)
    photo = encoded(picture())
    with ThreadPoolExecutor(2) as pool:
        runs = pool.submit(own.classify, photo)
        assert begun.wait(20)
        if decoding:  # no thread takes it
            monkeypatch.setattr(Backlog, "next_to_decode", lambda *given: go.wait(20) and None)
        waits = pool.submit(own.classify, encoded(picture(1000)) if decoding else photo)
        while not len(own._backlog):
            time.sleep(0.001)
        own.close()
        with pytest.raises(Problem, match="closed") as refused:
            waits.result(20)
        go.set()
        assert runs.result(20).predictions
    assert refused.value.status == 503
    for another in (photo, encoded(picture(1000))):
        with pytest.raises(Problem, match="closed"):
            own.classify(another)


def test_where_the_second_subnet_fails_the_first_answers(own: Engine, monkeypatch, png: bytes):
    run = Sessions.run
    sure = own.classify(png, confidence=0.999999)
    assert sure.spent_flops > sure.subnet.flops

    def fails(self: Sessions, arch, images, **named):
        if arch == sure.subnet.value:
            raise RuntimeError("out of memory")
        return run(self, arch, images, **named)

    def nothing(self: Sessions, arch, images, **named):
        done = run(self, arch, images, **named)
        return replace(done, logits=np.nan * done.logits) if arch == sure.subnet.value else done

    for broken in (fails, nothing):
        monkeypatch.setattr(Sessions, "run", broken)
        result = own.classify(png, confidence=0.999999)
        assert result.degraded
        assert result.spent_flops == result.subnet.flops == sure.spent_flops - sure.subnet.flops


def test_nothing_is_built_ahead_of_time_before_it_has_been_quiet(bundle_folder, monkeypatch, png):
    """A build cannot be interrupted, and would be in the way of the first who asks."""
    built, session = [], Sessions.session
    building = threading.Event()

    def noted(self: Sessions, arch):
        found = session(self, arch)
        if found[1] and threading.current_thread().name.startswith("infer"):
            built.append(arch)
            building.set()
        return found

    monkeypatch.setattr(Sessions, "session", noted)
    monkeypatch.setattr(runners, "_IDLE_S", 60.0)
    with shiftnas_serve.load(bundle_folder) as engine:
        for _ in range(5):
            assert engine.classify(png).timing.build_ms == 0.0
            time.sleep(0.05)
        assert not built
        monkeypatch.setattr(runners, "_IDLE_S", 0.05)
        assert engine.classify(png).predictions
        assert building.wait(20)


def test_prebuilding_ends_where_it_is_in_vain(bundle_folder: Path, monkeypatch, png: bytes):
    session = Sessions.session

    def fail(self: Sessions, arch):
        if threading.current_thread().name.startswith("infer"):
            raise RuntimeError("no memory")
        return session(self, arch)

    monkeypatch.setattr(Sessions, "session", fail)
    with shiftnas_serve.load(bundle_folder) as engine:
        end = time.monotonic() + 20
        while engine.runners.prebuild_failures < 3 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        assert engine.runners.prebuild_failures == 3
        monkeypatch.setattr(Sessions, "session", session)
        assert engine.classify(png).predictions


def test_a_wait_ends_at_its_deadline_and_when_nobody_waits(own: Engine, monkeypatch, png: bytes):
    go, run = threading.Event(), Sessions.run

    def held(self: Sessions, *given, **named):
        go.wait(20)
        return run(self, *given, **named)

    monkeypatch.setattr(Sessions, "run", held)

    async def gone() -> None:
        await asyncio.sleep(0.01)

    async def ask(**more) -> int:
        try:
            await own.answer(png, {}, 1, **more)
        except Problem as problem:
            return problem.status
        return 200

    async def main() -> None:
        assert await ask(give_up_s=time.monotonic() + 0.05) == 504
        assert await ask(gone=gone) == 499
        go.set()
        assert await ask() == 200

    asyncio.run(main())
    assert own.room.images == 0


def test_a_build_may_take_as_long_as_its_runtime_says(own: Engine, monkeypatch, png: bytes):
    session = Sessions.session
    monkeypatch.setattr(runners, "_LOOK_S", 0.02)

    def slow(self: Sessions, arch):
        found = session(self, arch)
        if found[1]:
            time.sleep(0.5)
        return found

    monkeypatch.setattr(Sessions, "session", slow)
    assert own.classify(png, flops="700k").timing.build_ms > 0
    assert own.wedged is None


def test_an_answer_that_is_there_does_not_wait_for_a_build(own: Engine, monkeypatch, png: bytes):
    go, session = threading.Event(), Sessions.session
    own.classify(png)

    def held(self: Sessions, arch):
        if not self.is_resident(arch):
            go.wait(20)
        return session(self, arch)

    async def main() -> None:
        asked = [asyncio.create_task(own.aclassify(png, flops=flops)) for flops in (None, "700k")]
        await asyncio.wait(asked, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert [one.done() for one in asked] == [True, False]
        go.set()
        await asked[1]

    monkeypatch.setattr(Sessions, "session", held)
    asyncio.run(main())


def test_a_reload_changes_versions_between_two_answers(
    own: Engine, bundle: Bundle, other_folder: Path, bundle_folder: Path, tmp_path: Path, png: bytes
):
    """Under load: tests/contract/test_reload.py."""
    for folder, kind in ((other_folder, "kind"), (bundle_folder, "class")):
        done = own.reload(folder)
        assert done.changed
        result = own.classify(png)
        assert result.model == done.model
        assert {one.label.split()[0] for one in result.predictions} == {kind}
    assert not own.reload().changed
    with pytest.raises(Problem, match="is served on") as refused:
        own.reload(tmp_path)
    assert refused.value.status == 422
    assert own.classify(png).model.version == bundle.version


def test_a_reload_that_fails_as_nobody_foresaw_is_a_problem_too(own: Engine, monkeypatch):
    monkeypatch.setattr(reload, "load_model", lambda *_, **__: 1 // 0)
    with pytest.raises(Problem, match="ZeroDivisionError") as refused:
        own.reload()
    assert refused.value.status == 500


def test_an_engine_that_nobody_holds_ends_with_its_threads(bundle_folder: Path, png: bytes):
    engine = shiftnas_serve.load(bundle_folder, prebuild=False)
    assert engine.classify(png).predictions
    threads, known = engine.runners.threads, weakref.ref(engine)
    del engine
    gc.collect()
    assert known() is None
    assert not any(thread.is_alive() for thread in threads)


def test_one_reload_at_a_time(own: Engine, monkeypatch, bundle_folder: Path):
    begun, go = threading.Event(), threading.Event()
    init = Planner.__init__

    def held(self: Planner, *given, **named) -> None:
        begun.set()
        go.wait(20)
        init(self, *given, **named)

    monkeypatch.setattr(Planner, "__init__", held)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(own.reload)
        assert begun.wait(20)
        with pytest.raises(Problem) as second:
            own.reload()
        assert second.value.status == 409
        threading.Timer(0.1, go.set).start()
        assert not own.reload(wait=True).changed
        assert not first.result().changed


def test_a_budget_that_nobody_has_asked_for_is_planned_in_a_thread(vit_folder: Path, monkeypatch):
    """The generator takes milliseconds, in which an event loop would answer nobody."""
    from shiftnas_serve.engine import model as module

    load_bundle = module.load_bundle
    monkeypatch.setattr(module, "load_bundle", lambda path: replace(load_bundle(path), answers=()))
    where, answer = [], Bundle.answer

    def noted(self: Bundle, budget: float):
        where.append(threading.current_thread().name)
        return answer(self, budget)

    with shiftnas_serve.load(vit_folder, prebuild=False) as engine:
        monkeypatch.setattr(Bundle, "answer", noted)
        budget = (engine.model.bundle.min_flops + engine.model.bundle.max_flops) / 2 + 3.5
        for _ in range(2):
            result = asyncio.run(engine.aclassify(encoded(picture()), flops=budget))
            assert result.subnet.flops <= budget
    assert [name.split("-")[0] for name in where] == ["decode"]
