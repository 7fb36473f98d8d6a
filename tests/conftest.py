"""What all tests share: reproducible properties, and a store of their own."""

import pytest
from hypothesis import HealthCheck, settings

from tests.others import other_models, pictures, texts  # noqa: F401

settings.register_profile(
    "repsim", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repsim")


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """No test reads or fills the user's store."""
    monkeypatch.setenv("REPSIM_STORE", str(tmp_path / "default_store"))
