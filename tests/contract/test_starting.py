"""Starting, and stopping meanwhile: the default host."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from PIL import Image

from shiftnas_serve.hosts.uvicorn import listen
from tests.contract import spoil
from tests.contract.problem import assert_problem
from tests.contract.process import ROOT, SERVE, Server, free_port, launch, serving, wait_for
from tests.pictures import encoded


def said_by(server: Server) -> str:
    """What a start says that ends with status 2, in one line."""
    try:
        status = server.process.wait(60)
        said = server.said()
        assert status == 2, said
        assert said.startswith("error: "), said
        assert said.count("\n") == 1, said
        return said
    finally:
        server.end()


def test_mistakes_are_one_line_that_names_them(tmp_path, bundle_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        there, nowhere = launch(bundle_folder, port=port), launch(tmp_path)
        assert f"{port} (Address already in use); choose another with --port" in said_by(there)
        assert "no bundle" in said_by(nowhere)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_that_is_not_of_this_machine_is_not_the_ports_fault(host):
    with pytest.raises(ValueError, match="choose an address of this machine with --host"):
        listen(host, free_port())


def test_an_answer_that_is_not_a_number_is_500_and_hurts_nobody(bundle_folder, tmp_path, png):
    bad = spoil.spoilt(bundle_folder, tmp_path / "bad", spoil.answers_no_number)
    white = encoded(Image.new("RGB", (32, 32), spoil.WHITE))
    with serving(bad) as server:
        for _ in range(2):
            assert_problem(server.post(white), 500)
            assert server.post(png).status_code == 200


def test_of_two_that_start_at_once_on_a_port_exactly_one_serves(bundle_folder, other_folder, png):
    port = free_port()
    both = [launch(folder, port=port) for folder in (bundle_folder, other_folder)]
    try:
        wait_for(lambda: any(one.process.poll() is not None for one in both), 60)
        (ended,) = [one for one in both if one.process.poll() is not None]
        (serves,) = [one for one in both if one is not ended]
        assert ended.process.returncode == 2
        assert ended.said().count(str(port)) == 1, "what is wrong is said once"
        assert ended.said().startswith("error: ")
        serves.wait_until_ready()
        versions = {serves.post(png).json()["model"]["version"] for _ in range(8)}
        assert len(versions) == 1
        wait_for(lambda: "ready" in serves.said())
        assert str(port) in serves.said()
        assert versions.pop() in serves.said()
    finally:
        for one in both:
            one.end()


def test_an_address_of_ipv6_can_be_asked_as_it_is_said(bundle_folder):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = launch(bundle_folder, "--host", "::1")
    try:
        wait_for(lambda: "ready" in server.said(), 60)
        url = f"http://[::1]:{server.port}"
        assert f"address={url} " in server.said()
        assert httpx.get(f"{url}/readyz").status_code == 200
        again = launch(bundle_folder, "--host", "::1", port=server.port)
        assert f"cannot listen on [::1]:{server.port} (" in said_by(again)
    finally:
        server.end()


def imports(server: Server, library: str) -> bool:
    """Whether it has come so far in its start that a library is loaded."""
    assert server.process.poll() is None, server.said()
    return any(library in Path(f"/proc/{pid}/maps").read_text() for pid in (server.process.pid,))


MOMENTS = ("_multiarray_umath", "onnxruntime")
"""Libraries whose loading tells how far a start has come."""


@pytest.mark.parametrize(
    ("number", "moment"),
    [*((signal.SIGTERM, moment) for moment in MOMENTS), (signal.SIGINT, MOMENTS[-1])],
)
def test_a_server_that_starts_can_be_stopped(bundle_folder, number, moment):
    server = launch(bundle_folder)
    try:
        wait_for(lambda: imports(server, moment))
        everything = server.pids()
        assert server.stop(number) in (0, -number, 128 + number)
        assert "Traceback" not in server.said()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everything))
    finally:
        server.end()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_hangup_while_it_starts_is_not_its_end(bundle_folder, moment):
    """What it would read again it is still reading."""
    server = launch(bundle_folder)
    try:
        wait_for(lambda: imports(server, moment))
        server.process.send_signal(signal.SIGHUP)
        server.wait_until_ready()
        assert "Traceback" not in server.said()
        assert server.stop() == 0
    finally:
        server.end()


OFFLINE = (
    ("models", "describe", "nano-cnn"),
    ("models", "generate", "{bundle}", "--flops", "1M"),
    ("shiftnas_serve.export", "{bundle}", "--flops", "1M", "--format", "onnx", "--out", "{out}"),
    ("serve", "{bundle}"),
)


UNSHARE = ("unshare", "--user", "--map-root-user", "--net")


def isolated() -> bool:
    """Whether this machine lets us have a network of our own."""
    command = ["unshare", "--user", "--map-root-user", "--net", "true"]
    return (
        shutil.which("unshare") is not None and not subprocess.run(command, check=False).returncode
    )


@pytest.mark.parametrize("command", OFFLINE, ids=lambda command: command[0])
def test_no_command_calls_anybody_or_writes_into_the_home(bundle_folder, tmp_path, command):
    """``tests.contract.offline`` runs another module, here with a network that ends nowhere."""
    if not isolated():
        pytest.skip("needs `unshare --user --net`; NOT TESTED: that no command calls out")
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    out.mkdir()
    given = [one.format(bundle=bundle_folder, out=out / "subnet.onnx") for one in command]
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "TMPDIR": str(out)}
    ended = subprocess.run(
        [*UNSHARE, SERVE[0], "-m", "tests.contract.offline", *given],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert [str(path) for path in home.rglob("*")] == []
