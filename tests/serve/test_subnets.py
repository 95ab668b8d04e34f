"""Subnets by their ids: no server."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from models.bundle.folder import Bundle
from shiftnas_serve.http.options import read_query
from shiftnas_serve.http.subnets import find_subnet
from shiftnas_serve.latency import LatencyTable
from shiftnas_serve.planning.planner import Planner, describe
from shiftnas_serve.problem import Problem

TABLE = LatencyTable(((1e6, 1.0), (2e6, 2.0)))


def fresh(bundle: Bundle) -> Any:
    """A model that has answered nothing yet."""
    return SimpleNamespace(bundle=bundle, planner=Planner(bundle, None, TABLE))


def test_a_process_that_never_answered_a_subnet_finds_it_by_its_arch(vit: Bundle):
    """Another replica did, of a space whose answers are not stored."""
    arch = vit.space.from_indices([number % 2 for number in range(len(vit.space.decisions))])
    assert arch not in vit.archs()
    answered = describe(vit, arch)
    with pytest.raises(Problem, match=r"\?arch=") as unknown:
        find_subnet(fresh(vit), answered.id, None)
    assert unknown.value.status == 404
    text = json.dumps(answered.arch)
    assert find_subnet(fresh(vit), answered.id, text).value == arch
    with pytest.raises(Problem, match=f"is subnet {answered.id}, not '0123'") as other:
        find_subnet(fresh(vit), "0123", text)
    assert other.value.status == 400


@pytest.mark.parametrize(
    "text", ["", "7", "[]", '{"depth": NaN}', '{"x": 1}', "[" * 50_000, '"' + "9" * 5000, "\ud800"]
)
def test_what_is_no_arch_is_refused(vit: Bundle, text):
    with pytest.raises(Problem) as refused:
        find_subnet(fresh(vit), "0123", text)
    assert refused.value.status == 400
    assert len(refused.value.detail) < 300


def test_without_statistics_an_arch_is_no_subnet(bundle: Bundle):
    space, model = bundle.space, fresh(bundle)
    every = (space.from_indices([n] * len(space.decisions)) for n in range(2))
    unknown = next(arch for arch in every if arch not in bundle.archs())
    with pytest.raises(Problem, match=r"budget$") as refused:
        find_subnet(model, space.arch_id(unknown), json.dumps(space.arch_to_json(unknown)))
    assert refused.value.status == 404
    known = bundle.archs()[0]
    assert find_subnet(model, space.arch_id(known), None).value == known


def test_an_arch_beside_a_known_id_is_looked_at(bundle: Bundle):
    space, model = bundle.space, fresh(bundle)
    one, other = bundle.archs()[:2]
    assert find_subnet(model, space.arch_id(one), json.dumps(space.arch_to_json(one))).value == one
    with pytest.raises(Problem, match=f"is subnet {space.arch_id(other)}, not") as refused:
        find_subnet(model, space.arch_id(one), json.dumps(space.arch_to_json(other)))
    assert refused.value.status == 400
    with pytest.raises(Problem, match="not an arch"):
        find_subnet(model, space.arch_id(one), "")


@pytest.mark.parametrize("query", ["format=json&format=json", "format=onnx&format=json"])
def test_a_name_that_stands_twice_in_the_query_is_refused(query):
    with pytest.raises(Problem, match="'format' stands several times in the query") as refused:
        read_query(query.encode(), ("format",))
    assert refused.value.status == 400
