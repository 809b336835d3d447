"""Fixtures of the fine-tuning tests."""

from tests.finetuning.toy_models import toy_family

__all__ = ["toy_family"]
