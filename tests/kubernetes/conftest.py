"""What these tests have from those of the engine."""

from tests.integration.conftest import new_kit

__all__ = ["new_kit"]
