"""Makes the toy family available to every test of this folder that asks for it."""

from tests.finetuning.toy_models import toy_family

__all__ = ["toy_family"]
