"""Makes the toy family available to every test of this folder that asks for it."""

from tests.finetuning.toys import toy_family

__all__ = ["toy_family"]
