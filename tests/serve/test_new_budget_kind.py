"""A kind of budget of one's own: what docs/extending.md says, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

A_NEW_KIND = """
import json
import sys
from io import BytesIO
from pathlib import Path
import energy
import shiftnas_serve.budgets as budgets

budgets.BUDGET_KINDS = (*budgets.BUDGET_KINDS, energy.EnergyBudget())  # the line in the registry

from PIL import Image
from starlette.testclient import TestClient
from shiftnas_serve.app import App
from shiftnas_serve.settings import Settings

photo = BytesIO()
Image.new("RGB", (32, 32)).save(photo, "PNG")
app = App(Settings(bundle=Path(sys.argv[1]), prebuild=False, workers=1))
with TestClient(app) as client:
    ask = lambda path, **headers: client.post(path, content=photo.getvalue(), headers=headers)
    told = {"within": ask("/classify", **{"Energy-Budget": "5"}).json()}
    told["below"] = ask("/classify", **{"energy-budget": "0.1"}).json()
    told["wrong"] = ask("/classify", **{"energy-budgets": "5"}).json()
    told["schema"] = client.get("/openapi.json").json()["components"]["schemas"]["Budget"]
    engine = app.state.serving()
    told["engine"] = engine.classify(photo.getvalue(), energy_mj=5).subnet.flops
print(json.dumps(told))
"""


def test_a_kind_of_the_documentation_is_one_file_and_one_line(tmp_path):
    """Its header is read, it binds, and answers, OpenAPI and the library know it."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if "AbstractBudgetKind" in block)
    (tmp_path / "energy.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ran = subprocess.run(
        [sys.executable, "-c", A_NEW_KIND, str(ROOT / "models/zoo/cifar10-cnn")],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["within"]["budget"]["energy_mj"] == 5.0
    assert told["within"]["budget"]["flops"] is None
    assert 3_000_000 < told["within"]["subnet"]["flops"] <= 5_000_000
    assert told["engine"] == told["within"]["subnet"]["flops"]
    assert (told["below"]["status"], told["wrong"]["status"]) == (422, 400)
    assert "min_energy_mj" in told["below"]["allowed"]
    assert told["schema"]["properties"]["energy_mj"] == told["schema"]["properties"]["flops"]
