"""What the tests of explanations share."""

from __future__ import annotations

import pytest

import pyvm
from pyvm.explain import Explanation
from tests.models.light import light_model


@pytest.fixture(scope="session")
def resnet() -> Explanation:
    return pyvm.compile(light_model("resnet50").SerializeToString()).explain(name="resnet50")
