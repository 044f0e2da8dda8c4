"""What a bundle's artifact costs is read from the bundle, packed or not."""

import pytest

from saap_edge.bundle.archive import pack
from saap_edge.bundle.schema import read_bundle
from saap_edge.errors import SaapError
from saap_edge.prediction.cost import artifact_cost


def test_a_bundle_costs_what_its_artifact_does(copy, tmp_path):
    bundle = read_bundle(copy)
    cost = artifact_cost(copy)
    assert cost == artifact_cost(copy / bundle.model, bundle.format)
    assert cost.kv_bytes_per_token == bundle.kv_bytes_per_token
    pack(copy, tmp_path / "packed.tar.zst")
    assert artifact_cost(tmp_path / "packed.tar.zst") == cost
    with pytest.raises(SaapError, match=f"holds {bundle.format}"):
        artifact_cost(copy, "gguf-f16")
