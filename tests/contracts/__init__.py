"""One class of rules per interface; each implementation inherits it in its own tests."""

import pytest

pytest.register_assert_rewrite("contracts.camera_contract")
