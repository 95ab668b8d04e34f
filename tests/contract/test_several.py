"""Several models on one port, as docs/serving.md has it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.contract.problem import assert_problem
from tests.contract.process import PNG, ROOT, Server, free_port, launch


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, bundle_folder: Path, other_folder: Path):
    """The script of the page, with other bundles and another port."""
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    script = page.partition("several.py\n")[2].partition("```")[0]
    port, file = free_port(), tmp_path_factory.mktemp("several") / "several.py"
    for said, meant in {
        "models/zoo/cifar10-cnn": str(bundle_folder),
        "models/zoo/imagenet-mobile": str(other_folder),
        "port=8000": f"port={port}",
    }.items():
        assert script.count(said) == 1
        script = script.replace(said, meant)
    file.write_text(script, encoding="utf-8")
    # (the options are the server's, which the script does not look at)
    server = launch(
        bundle_folder, command=(sys.executable, str(file)), port=port, PYTHONPATH=str(ROOT)
    )
    try:
        server.wait_until_ready(path="/cifar10/readyz")
        yield server
    finally:
        server.end()


def test_each_model_is_whole_below_its_path(several: Server, png, bundle, other):
    for name, served in (("cifar10", bundle), ("imagenet", other)):
        budgets = several.get(f"/{name}/budgets").json()
        assert budgets["labels"] == list(served.labels)
        least = {**PNG, "FLOPs-Budget": str(served.min_flops)}
        answer = several.post(png, f"/{name}/classify", **least).json()
        assert answer["model"]["version"] == served.version
        assert answer["subnet"]["flops"] <= served.min_flops
        assert f'version="{served.version}"' in several.get(f"/{name}/metrics").text
        assert several.get(f"/{name}/v2/models/{served.name}").json()["versions"] == [
            served.version
        ]
        assert several.get(f"/{name}/subnets/{answer['subnet']['id']}").status_code == 200
        assert "text/html" in several.get(f"/{name}/").headers["content-type"]
        (link,) = re.findall('href="(.*?)"', several.get(f"/{name}/docs").text)
        document = several.get(urljoin(f"/{name}/docs", link)).json()
        assert document["info"]["version"] == served.version


def test_errors_below_a_path_are_those_of_its_model(several: Server, png):
    refused = several.post(png, "/cifar10/classify?flops=4M", **PNG)
    assert_problem(refused, 400, "FLOPs-Budget")
    unknown = several.get("/imagenet/v2/models/nobody")
    assert assert_problem(unknown, 404)["error"]
    assert several.get("/nobody/budgets").status_code == 404
