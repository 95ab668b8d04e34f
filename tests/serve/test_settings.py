"""The command line and the settings."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest

from shiftnas_serve.command import parser
from shiftnas_serve.hosts import HOSTS
from shiftnas_serve.runtimes import AUTO, RUNTIMES
from shiftnas_serve.settings import PREFIX, Settings, as_environment, load_settings
from tests.contract.process import ROOT

START_EACH = """
import contextlib, io, json, sys
from shiftnas_serve.command import main

def start(options):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(options)
    return status, said.getvalue()

print(json.dumps([start(options) for options in json.loads(sys.argv[1])]))
"""


def test_mistakes_on_the_command_line_are_one_line(tmp_path, bundle_folder):
    cases = [
        (("--bundle", str(tmp_path)), "is not a bundle"),
        (("--port", "70000"), "port"),
        (("--runtime", "onnx"), "onnxruntime"),
        (("--default-flops", "5"), "smallest subnet"),
        (("--pinned-flops", "1M,5"), "smallest subnet"),
        (("--pinned-flops", "much"), "pinned_flops"),
        (("--default-flops", "inf"), "default_flops"),
        (("--processes", "0"), "processes"),
        (("--server", "apache"), "uvicorn"),
    ]
    # in one process, since each takes its time to start; one that would serve never ends
    given = [("--bundle", str(bundle_folder), *options) for options, _ in cases]
    ended = subprocess.run(
        [sys.executable, "-c", START_EACH, json.dumps(given)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    for (options, words), (status, said) in zip(cases, json.loads(ended.stdout), strict=True):
        assert status == 2, options
        assert words in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1


def test_settings_are_layered_and_misspellings_get_a_hint(tmp_path):
    config = tmp_path / "settings.json"
    config.write_text('{"port": 9001, "workers": 2}')
    environment = {"SHIFTNAS_PORT": "9002", "HOME": "x"}
    settings = load_settings({"threads": "3"}, config=config, environment=environment)
    assert (settings.port, settings.workers, settings.threads) == (9002, 2, 3)
    for variable, advice in (
        ("SHIFTNAS_WORKER", "did you mean SHIFTNAS_WORKERS?"),
        ("SHIFTNAS_QUUX", "leave it out"),
        ("SHIFTNAS_SERVE_PORT_8000_TCP", "enableServiceLinks: false"),
    ):
        with pytest.raises(ValueError, match=f"no setting {variable};") as refused:
            load_settings({}, environment={variable: "1"})
        assert advice in str(refused.value)
        assert "--help" in str(refused.value)
    with pytest.raises(ValueError, match="enableServiceLinks: false"):
        load_settings({}, environment={"SHIFTNAS_PORT": "tcp://10.0.0.9:80"})
    config.write_text('{"prot": 1}')
    with pytest.raises(ValueError, match="did you mean 'port'"):
        load_settings({}, config=config, environment={})
    config.write_text('{"port": 9001, "workers": 2, "port": 9002}')
    with pytest.raises(ValueError, match="'port' stands several times"):
        load_settings({}, config=config, environment={})
    config.write_text('{"port":' * 100_000)
    with pytest.raises(ValueError, match="must be a JSON object of settings"):
        load_settings({}, config=config, environment={})


def test_help_lists_what_a_setting_can_be(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = parser().format_help().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for allowed in (
        f"--server {{{','.join(HOSTS)}}}",
        "--prebuild {true,false}",
        "--log-format {text,json}",
        "--log-level {critical,error,warning,info,debug}",
        f"--runtime {{{','.join((*RUNTIMES, AUTO))}}}",
        "--device {cpu,cuda,tensorrt}",
    ):
        assert allowed in text
    assert "(default: true)" in text
    for name, field in Settings.model_fields.items():
        if get_origin(field.annotation) is Literal:
            for value in get_args(field.annotation):
                assert load_settings({name: value, "runtime": AUTO}, environment={})


def test_flops_in_settings_are_read_as_in_requests(tmp_path):
    config = tmp_path / "settings.json"
    config.write_text('{"default_flops": "4M", "pinned_flops": ["1.3G", 5000000, "4e6"]}')
    read = load_settings({}, config=config, environment={})
    assert (read.default_flops, read.pinned_flops) == (4e6, (1.3e9, 5e6, 4e6))
    read = load_settings({"default_flops": "4M", "pinned_flops": "1M, 2e6"}, environment={})
    assert (read.default_flops, read.pinned_flops) == (4e6, (1e6, 2e6))
    for name in ("default_flops", "pinned_flops"):
        with pytest.raises(ValueError, match=rf"^{name}: 'much' is not a number of FLOPs; [^']*$"):
            load_settings({name: "much"}, environment={})


@pytest.mark.parametrize("name", ["api_keys", "admin_keys"])
@pytest.mark.parametrize("keys", [[""], ["good", " "], [" padded"]])
def test_a_blank_key_is_none(tmp_path, name, keys):
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({name: keys}))
    with pytest.raises(ValueError, match=f"^{name}: a key is blank") as refused:
        load_settings({}, config=config, environment={})
    assert "good" not in str(refused.value)


@pytest.mark.parametrize("name", ["api_keys", "admin_keys"])
def test_a_key_with_a_comma_would_become_two(tmp_path, name):
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({name: ["some,thing"]}))
    with pytest.raises(ValueError, match=f"^{name}: a key has a comma") as refused:
        load_settings({}, config=config, environment={})
    assert "some" not in str(refused.value)


@pytest.mark.parametrize("name", ["api_keys", "admin_keys"])
@pytest.mark.parametrize("keys", ["some\nthing", "some\r\nthing\n", "some\tthing", "some\x7fthing"])
def test_a_key_that_nobody_can_send_is_refused(name, keys):
    with pytest.raises(ValueError, match=f"^{name}: .* separate keys by commas$") as refused:
        load_settings({}, environment={PREFIX + name.upper(): keys})
    assert "some" not in str(refused.value)


@pytest.mark.parametrize(
    "origin",
    [
        *("example.org", "https://example.org/", "https://example.org/page", "HTTPS://example.org"),
        *("https://Example.org", "https://*.example.org", "https://example.org:443", "https://"),
        *("localhost:3000", "http://localhost:80", "https://me@example.org", "https://a b.org"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(ValueError, match="cors_origins: ") as refused:
        load_settings({"cors_origins": f"https://good.org, {origin}"}, environment={})
    assert f"{origin!r} is not an origin" in str(refused.value)


def test_origins_as_browsers_send_them_are_taken():
    every = (
        "https://example.org, http://localhost:3000, http://[::1]:8080, chrome-extension://ab, *"
    )
    settings = load_settings({"cors_origins": every}, environment={})
    assert ", ".join(settings.cors_origins) == every


def test_what_is_set_is_what_a_process_started_later_reads():
    given = {
        "api_keys": "first, second",
        "pinned_flops": "1M,2e6",
        "prebuild": "no",
        "workers": "3",
        "bundle": "somewhere",
    }
    settings = load_settings(given, environment={})
    environment = as_environment(settings)
    assert "SHIFTNAS_PORT" not in environment
    assert load_settings({}, environment=environment) == settings
    nothing = Settings(default_flops=None, engine_cache=None, workers=2)
    assert as_environment(nothing) == {"SHIFTNAS_WORKERS": "2"}


@pytest.mark.parametrize("name", ["timeout_s", "stall_s", "drain_s"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e999"])
def test_no_setting_is_without_end(name, value):
    with pytest.raises(ValueError, match=name) as refused:
        load_settings({name: value}, environment={})
    assert str(refused.value).count("\n") == 0
