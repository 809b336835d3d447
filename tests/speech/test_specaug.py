"""SpecAugment against torch's own interpolation, and the head that applies it."""

from __future__ import annotations

import torch
from torch.nn import functional

from speechft_ray.speech.heads.base import HEADS, check_head_options
from speechft_ray.speech.heads.ctc import CtcOptions
from speechft_ray.speech.heads.specaug import draw_masks, draw_warps, spec_augment, warp_time


def test_a_warp_is_two_bicubic_resizings() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.tensor([40, 11, 10, 25])
    features = torch.randn(4, 40, 3, generator=generator)
    for _ in range(20):
        lengths, centres, destinations = draw_warps(frames, generator)
        output = warp_time(features, lengths, centres, destinations)
        for row, length, centre, destination, result in zip(
            features, lengths, centres, destinations, output, strict=True
        ):
            expected = row.clone()
            if length > 10:
                assert 5 <= centre <= length - 6 and centre - 4 <= destination <= centre + 5
                for old, new in (
                    (slice(0, centre), slice(0, destination)),
                    (slice(centre, length), slice(destination, length)),
                ):
                    size = (int(new.stop - new.start), 3)
                    expected[new] = functional.interpolate(
                        row[None, None, old], size, mode="bicubic", align_corners=False
                    )[0, 0]
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_warps_cover_every_allowed_position() -> None:
    _, centres, destinations = draw_warps(torch.full((5000,), 14), torch.Generator().manual_seed(0))
    assert set(centres.tolist()) == {5, 6, 7, 8}
    assert set((destinations - centres).tolist()) == set(range(-4, 6))


def test_masks_are_spans_within_the_widths_of_the_configuration() -> None:
    generator = torch.Generator().manual_seed(0)
    single = draw_masks(4000, 100, 1, 40, generator)
    widths = single.sum(dim=1)
    assert (int(widths.min()), int(widths.max())) == (0, 39)
    edges = (single[:, 1:] != single[:, :-1]).sum(dim=1) + single[:, 0].int() + single[:, -1].int()
    assert set(edges.tolist()) <= {0, 2}  # one span, or none
    assert abs(widths.float().mean() - 19.5) < 4 * 11.5 / 4000**0.5
    # Four spans cover more than one could.
    assert draw_masks(500, 100, 4, 50, generator).sum(dim=1).max() > 100 - 50 + 1


def test_augmented_features_keep_their_shape_and_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 60, 200, generator=generator, requires_grad=True)
    frames = torch.tensor([60, 30, 8])
    output = spec_augment(features, frames, torch.Generator().manual_seed(2))
    assert output.shape == features.shape
    assert torch.equal(output, spec_augment(features, frames, torch.Generator().manual_seed(2)))
    output.sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None and features.grad.abs().sum() > 0
    zeros = output == 0
    # Some channel is masked in every frame.
    assert bool(zeros.all(dim=1).any()) and not bool(zeros.all())


def test_the_ctc_head_augments_in_training_mode_with_draws_of_the_global_seed() -> None:
    kind = HEADS.get("ctc")
    options = check_head_options(
        "ctc", {"specaug": True, "lstm_layers": 1, "lstm_hidden": 4, "dropout": 0.0}
    )
    torch.manual_seed(0)
    head = kind.build(options, 200, 5)
    features, frames = torch.randn(3, 60, 200), torch.tensor([60, 30, 8])

    def compute_logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        logits: torch.Tensor = head(features, frames)
        return logits

    assert torch.equal(compute_logits(1), compute_logits(1))
    assert not torch.equal(compute_logits(1), compute_logits(2))
    torch.manual_seed(1)
    augmented = spec_augment(features, frames)
    plain = kind.build(
        kind.options.model_validate({**options.model_dump(), "specaug": False}), 200, 5
    )
    plain.load_state_dict(head.state_dict())
    torch.testing.assert_close(compute_logits(1), plain(augmented, frames))
    assert torch.equal(head.eval()(features, frames), plain.eval()(features, frames))
    assert not CtcOptions().specaug
