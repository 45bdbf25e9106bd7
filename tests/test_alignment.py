"""Closed forms against direct least squares and exact constructions."""

import pytest
import torch

from sanakit.adapters import ADAPTERS
from sanakit.alignment import (
    INPUT_METHODS,
    CrossMoments,
    align_caption,
    align_input,
    align_output,
    pair_captions,
)
from sanakit.alignment.tokens import pair_tokens
from sanakit.alignment.vae import head_rows, solve_input
from sanakit.errors import SanakitError


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator)
    y = x @ torch.randn(6, 4, generator=generator) + 0.1 * torch.randn(500, 4, generator=generator) + 2
    return x, y


def moments_of(x, y):
    moments = CrossMoments.empty(x.shape[1], y.shape[1])
    moments.add(x, y)
    return moments


def test_ridge_without_penalty_is_least_squares(rows):
    x, y = rows
    weight, bias = moments_of(x, y).ridge(penalty=1e-10)
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    solution = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(weight, solution[:-1].T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias, solution[-1], atol=1e-4, rtol=1e-4)


def test_merge_equals_one_pass(rows):
    x, y = rows
    merged = moments_of(x[:123], y[:123]).merge(moments_of(x[123:], y[123:]))
    torch.testing.assert_close(merged.ridge()[0], moments_of(x, y).ridge()[0])


@pytest.mark.parametrize(("wide", "narrow"), [(6, 4), (4, 6), (5, 5)])
def test_procrustes_is_semi_orthogonal_and_recovers_a_rotation(wide, narrow):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, wide, generator=generator)
    truth = torch.linalg.qr(torch.randn(max(wide, narrow), max(wide, narrow), generator=generator))[0][:narrow, :wide]
    rotation, _ = moments_of(x, x @ truth.T).procrustes()
    gram = rotation @ rotation.T if wide >= narrow else rotation.T @ rotation
    torch.testing.assert_close(gram, torch.eye(min(wide, narrow)), atol=1e-5, rtol=0)
    if wide <= narrow or wide == narrow:
        torch.testing.assert_close(rotation, truth, atol=0.1, rtol=0)


def test_too_few_rows_and_values_that_are_not_finite_are_refused():
    moments = CrossMoments.empty(3, 2)
    with pytest.raises(SanakitError, match="SK0403"):
        moments.ridge()
    with pytest.raises(SanakitError, match="SK0204"):
        moments.add(torch.full((4, 3), float("nan")), torch.zeros(4, 2))


def test_head_rows_invert_the_cores_unpatchify(tiny_system):
    """Feeding the head's order through the core's own unpatchify gives the velocity back."""
    core = ADAPTERS.get("linear-latents").fit(
        tiny_system.core,
        type(tiny_system.vae.spec)(latent_channels=4, spatial_compression_ratio=4),
        base_ratio=8,
        image_size=32,
    )
    assert core.config.patch_size == 2
    velocity = torch.randn(2, 4, 8, 8)
    wanted = head_rows(velocity, 2)
    core.proj_out = torch.nn.Identity()
    core.norm_out.forward = lambda *args: wanted
    out = core(torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 16), torch.ones(2), return_dict=False)[0]
    torch.testing.assert_close(out, velocity)


def test_aligning_a_vae_with_itself_changes_nothing(tiny_system, tiny_data):
    core = ADAPTERS.get("linear-latents").fit(tiny_system.core, tiny_system.vae.spec, base_ratio=8, image_size=32)
    torch.nn.init.normal_(core.patch_embed.proj.weight)
    latents = tiny_data.latents[:, 0]
    scores = align_input(core, tiny_system.core, latents, latents, method="ridge")
    assert scores["input_r2"] > 0.999
    torch.testing.assert_close(core.patch_embed(latents), tiny_system.core.patch_embed(latents), atol=2e-2, rtol=2e-2)


def test_output_alignment_lowers_the_loss(tiny_system, tiny_data):
    from sanakit.evaluation.held_out import held_out

    before = held_out(tiny_system, tiny_data).loss
    align_output(tiny_system, tiny_data, count=256)
    assert held_out(tiny_system, tiny_data).loss < before


def test_offsets_are_those_of_the_embedded_tokens(tiny_system):
    from sanakit.text_encoders import TEXT_ENCODERS

    prompts = ["ab c", "defgh", ""]
    for name in ("minilm", "wordllama"):
        encoder = TEXT_ENCODERS.get(name).tiny()
        spans, mask = encoder.offsets(prompts), encoder.encode(prompts).mask
        assert spans.shape == (3, encoder.spec.max_tokens, 2)
        assert not spans[~mask].any()
        for prompt, row in zip(prompts, spans.tolist(), strict=True):
            assert "".join(prompt[a:b] for a, b in row).replace(" ", "") == prompt.replace(" ", "")
    encoder.tokenizer = object()
    assert encoder.offsets(prompts) is None


def test_pairs_share_characters_and_marks_pair_with_marks():
    candidate_spans = torch.tensor([[[0, 0], [0, 6], [7, 9], [0, 0]]])  # <s> purple ox <pad>
    base = torch.tensor([[[0, 0], [0, 3], [3, 6], [6, 9], [0, 0]]])  # [CLS] pur ##ple _ox [SEP]
    shares = pair_tokens(candidate_spans, base, torch.tensor([[1, 1, 1, 0]]).bool(), torch.ones(1, 5).bool())[0]
    torch.testing.assert_close(shares[0], torch.tensor([1.0, 0, 0, 0, 0]))
    torch.testing.assert_close(shares[1], torch.tensor([0, 0.5, 0.5, 0, 0]))
    torch.testing.assert_close(shares[2], torch.tensor([0, 0, 0, 1.0, 0]))
    assert not shares[3].any()
    ends = torch.tensor([[[0, 3], [0, 0]]])  # a token and an end mark
    assert pair_tokens(ends, base, torch.ones(1, 2).bool(), torch.ones(1, 5).bool())[0, 1, 4] == 1


def test_captions_are_aligned_token_by_token_and_say_when_they_cannot(tiny_system, tiny_data):
    """A candidate whose tokens are a rotation of the base's: tokens recover the map, and the new core answers alike."""
    texts = [" ".join("abcdefgh"[(i * k) % 8] for k in range(1, 3 + i % 3)) for i in range(200)]
    base = tiny_system.text_encoder.encode(texts)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    turned = type(base)(base.embeds @ turn, base.mask)
    encoder = tiny_system.text_encoder
    for name, written, pairing in (("tokens", texts, "tokens"), ("none", [], "mean tokens")):
        core = ADAPTERS.get("linear-caption").fit(tiny_system.core, encoder.spec, seed=1)
        report = align_caption(core, tiny_system.core, pair_captions(turned, base, written, encoder, encoder))
        assert report["caption_pairing"] == pairing and ("caption_note" in report) == (not written), name
        assert report["caption_r2"] > (0.95 if written else 0.5)
    silent = type(encoder)(encoder.model, encoder.tokenizer, encoder.spec)
    silent.tokenizer, silent.name = None, "mute"
    assert "no offsets of mute" in pair_captions(turned, base, texts, silent, encoder).note


def test_few_rows_shrink_the_map_and_say_so():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 12, generator=generator), torch.randn(20, 3, generator=generator)
    few = moments_of(x, y)
    least_squares = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution
    assert "20 rows for 12 dimensions" in few.note and few.ridge(0.0)[0].norm() < 0.95 * least_squares.norm()
    assert not moments_of(x.repeat(10, 1), y.repeat(10, 1)).note


@pytest.mark.parametrize("method", INPUT_METHODS)
def test_constant_and_dependent_channels_give_a_finite_map(rows, method):
    x, y = rows
    x = torch.cat([x, torch.full((len(x), 2), 3.0), x[:, :2]], 1)  # constant, and twice the same
    moments = moments_of(x, y)
    weight, bias = solve_input(moments, method)
    assert weight.isfinite().all() and bias.isfinite().all()
    assert moments.r2(weight) > 0.3
    assert moments_of(x, torch.ones_like(y)).r2(torch.zeros(4, 10)) == 0.0


def test_values_that_are_not_finite_are_named():
    x = torch.zeros(8, 3)
    x[2, 1] = float("inf")
    with pytest.raises(SanakitError, match="candidate .* column 1"):
        CrossMoments.empty(3, 2).add(x, torch.zeros(8, 2))


def test_r2_is_that_of_the_residuals(rows):
    x, y = rows
    moments = moments_of(x, y)
    weight, bias = moments.ridge()
    residual = (y - x @ weight.T - bias).square().sum() / (y - y.mean(0)).square().sum()
    assert moments.r2(weight) == pytest.approx(1 - residual.item(), abs=1e-5)


def test_blend_lies_between_clean_regression_and_procrustes(rows):
    moments = moments_of(*rows)
    ridge, turn, blend = (solve_input(moments, m)[0] for m in ("ridge", "procrustes", "blend"))
    assert (blend - turn).norm() < (ridge - turn).norm() and (blend - ridge).norm() < (turn - ridge).norm()
    limit = moments.noisy(1e9, moments.procrustes()[0])[0]
    torch.testing.assert_close(limit, turn, atol=1e-4, rtol=0)


def test_r2_with_a_given_offset_pays_for_a_wrong_one(rows):
    moments = moments_of(*rows)
    weight, bias = moments.ridge()
    assert moments.r2(weight, bias) == pytest.approx(moments.r2(weight), abs=1e-6)
    assert moments.r2(weight, bias + 1) < moments.r2(weight, bias) - 0.1
