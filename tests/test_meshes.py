"""Every family of models computes on every mesh what it computes on one device: the loss and every gradient."""

import functools

import pytest
from conftest import fast
from meshes import FAMILIES, MESHES, Update, batch_for, errors, update_on

from bertgpt.config import Mesh

PAIRS = [f"{family} on {mesh}" for family in FAMILIES for mesh in MESHES]


@functools.cache
def on_one_device(family: str) -> Update:
    return update_on(family, batch_for(family, 1), Mesh(), 1)


@pytest.mark.parametrize("pair", fast(PAIRS, "bert on 2 × 2 × 2"))
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(pair: str, capfd: pytest.CaptureFixture):
    family, mesh = pair.split(" on ")
    found = errors(update_on(family, batch_for(family, 1), MESHES[mesh], 8), on_one_device(family))
    assert {name: error for name, error in found.items() if not error <= 1e-5} == {}
    # XLA says so on the standard error of the process where it gathers an array whole to lay it out anew.
    assert "involuntary full rematerialization" not in capfd.readouterr().err.lower()
