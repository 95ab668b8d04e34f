"""A full disk under all that the server writes: sockets, states, copies of bundles, metrics."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import RunningServer, encoded, picture, start_server, stop_server
from tests.serve.test_faults import assert_soon_gone, metric

# A small disk of its own, seen by the server alone, where temporary files go.
SMALL_DISK = ("unshare", "-rm", "sh", "-c")
MOUNT = 'mount -t tmpfs -o size=16m tmpfs "$TMPDIR"'
PNG = {"Content-Type": "image/png"}


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*SMALL_DISK, MOUNT]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def fill(server: RunningServer, folder: Path) -> Path:
    """Write until nothing fits any more; answers the file that takes the space."""
    ballast = Path(f"/proc/{server.process.pid}/root{folder}/ballast")
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    return ballast


def test_a_full_disk_stops_nothing_that_runs(
    bundle_folder: Path, png: bytes, tmp_path, monkeypatch
):
    if not can_mount(tmp_path):
        pytest.skip("no name spaces to mount a small disk in")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start_server(bundle_folder, within=(*SMALL_DISK, f'{MOUNT} && exec "$@"', "sh"))
    try:
        before = server.descendants()
        ballast = fill(server, tmp_path)
        bodies = {
            200: {"content": png, "headers": PNG},
            400: {"content": png, "headers": {**PNG, "FLOPs-Budget": "much"}},
            413: {"content": bytes(30_000_000)},
            415: {"content": b"words", "headers": {"Content-Type": "text/plain"}},
            422: {"content": png, "headers": {**PNG, "FLOPs-Budget": "1"}},
        }
        for _ in range(3):
            for status, body in bodies.items():
                assert server.client.post("/classify", **body).status_code == status
        photos = [encoded(picture(30 + n)) for n in range(20)]
        for number, photo in enumerate(photos):
            headers = {**PNG, "Latency-Budget": str(1000 + number)}
            assert (
                server.client.post("/classify", content=photo, headers=headers).status_code == 200
            )
        assert metric(server, "shiftnas_worker_losses_total") == 0
        assert server.client.get("/readyz").status_code == 200
        assert server.descendants() == before
        assert ballast.stat().st_size > 0
        assert server.stop() == 0
        assert_soon_gone(before)
    finally:
        stop_server(server)
