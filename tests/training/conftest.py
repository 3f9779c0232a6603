"""Every training test has accelerate to itself: it keeps precision and passes per process."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def own_accelerator():
    """No state of the test before, none for the test after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
