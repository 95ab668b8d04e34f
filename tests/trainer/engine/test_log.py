"""The log survives being killed, and a resumed run leaves the log of an uninterrupted one."""

import json

import pytest

from trainer.engine.log import JsonlLog, number, numbers, read_log


def write_steps(path, steps, **options):
    with JsonlLog(path, **options) as log:
        for step in steps:
            log.write("step", step=step, loss=step / 2)


def test_one_json_object_a_line_readable_while_the_run_goes_on(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    log = JsonlLog(path)
    log.write("groups", step=1, groups=[1_000, 2_000], loss_drops=None)
    expected = {"kind": "groups", "step": 1, "groups": [1_000, 2_000], "loss_drops": None}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [expected]
    assert read_log(path) == [expected]
    log.close()


def test_what_json_cannot_say_becomes_null(tmp_path):
    with JsonlLog(tmp_path / "log.jsonl") as log:
        log.write("step", loss=float("nan"), drops=[1.0, float("inf")])
    assert read_log(tmp_path / "log.jsonl") == [
        {"kind": "step", "loss": None, "drops": [1.0, None]}
    ]


@pytest.mark.parametrize("torn", ['{"kind":"step","st', '{"kind":"step","step":9}', "\x00\x00"])
def test_a_line_without_its_end_is_left_out(tmp_path, torn):
    path = tmp_path / "log.jsonl"
    write_steps(path, range(3))
    with path.open("a") as file:
        file.write(torn)
    assert [record["step"] for record in read_log(path)] == [0, 1, 2]


def test_a_resumed_log_is_that_of_a_run_that_was_never_stopped(tmp_path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write_steps(whole, range(10))
    write_steps(resumed, range(7))
    with resumed.open("a") as file:
        file.write('{"kind":"done"}\n{"kind":"st')
    write_steps(resumed, range(5, 10), resume_step=4)
    assert resumed.read_bytes() == whole.read_bytes()


def test_resuming_at_step_0_starts_over(tmp_path):
    path = tmp_path / "log.jsonl"
    write_steps(path, range(1, 4))
    write_steps(path, [1], resume_step=0)
    assert [record["step"] for record in read_log(path)] == [1]


def test_a_new_log_does_not_mix_with_an_old_one(tmp_path):
    path = tmp_path / "log.jsonl"
    write_steps(path, range(3))
    with pytest.raises(ValueError, match=r"log.jsonl exists: resume"):
        JsonlLog(path)
    assert len(read_log(path)) == 3


@pytest.mark.parametrize("line", ["rubbish", "[1]", '{"step":1}'])
def test_a_bad_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"kind":"step"}}\n{line}\n{{"kind":"step"}}\n')
    with pytest.raises(ValueError, match=r"log.jsonl, line 2"):
        read_log(path)


def test_a_log_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_log(tmp_path / "log.jsonl")


def test_fields_of_the_wrong_type_are_named():
    record = {"kind": "step", "loss": "low", "groups": [1, None], "ok": True}
    with pytest.raises(ValueError, match="loss is 'low'"):
        number(record, "loss")
    with pytest.raises(ValueError, match="lr is None"):
        number(record, "lr")
    with pytest.raises(ValueError, match="ok is True"):
        number(record, "ok")
    with pytest.raises(ValueError, match="groups is None"):
        numbers(record, "groups")
    assert numbers({"kind": "x", "v": [1, 2.5]}, "v") == [1, 2.5]
