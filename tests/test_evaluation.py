"""Scores of what a system draws: distances agree with torchmetrics, comparisons are paired, a metric may raise."""

import json
import socket
import time
from math import nan

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from typer.testing import CliRunner

import sanakit as sk
from sanakit import hub
from sanakit.checks.policy import load_policy
from sanakit.cli import evaluate as _command  # noqa: F401  adds the command
from sanakit.cli import info as _listing  # noqa: F401  adds ls and describe
from sanakit.cli.app import app
from sanakit.config import make_config
from sanakit.evaluation import clip as clip_module
from sanakit.evaluation import drawing, image_features, scores
from sanakit.evaluation.drawing import Asked, Drawn, draw
from sanakit.evaluation.image_features import features_named, load_features
from sanakit.evaluation.metrics.base import METRICS, Measured, metric
from sanakit.evaluation.metrics.captions import recovered
from sanakit.evaluation.metrics.distances import frechet_distance, kernel_distance
from sanakit.evaluation.scores import compare_scores, scores_of
from sanakit.loading import load_base
from sanakit.placement import choose, host
from sanakit.reporting import write_report
from sanakit.reporting.samples import evaluated_on, evaluated_rows, sense_of
from sanakit.sampling import require_finite
from sanakit.swap import stages as engine
from sanakit.swap.evaluated import not_finite

N = 12


def sets(seed=0, dim=5, count=N):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator), torch.randn(count, dim, generator=generator) * 1.3 + 0.4


class AsGiven(nn.Module):
    """Features that are the input, for torchmetrics."""

    num_features = 5

    def forward(self, images):
        return images


def by_torchmetrics(kind, samples, reference, **options):
    measured = kind(feature=AsGiven(), **options)
    measured.set_dtype(torch.float64) if hasattr(measured, "set_dtype") else None
    measured.update(reference.double(), real=True)
    measured.update(samples.double(), real=False)
    value = measured.compute()
    return float(value[0] if isinstance(value, tuple) else value)


def test_distances_are_those_of_torchmetrics():
    samples, reference = sets()
    equal = np.full(N, 1 / N)
    kid = by_torchmetrics(KernelInceptionDistance, samples, reference, subsets=1, subset_size=N)
    assert kernel_distance(samples, reference)(equal) == pytest.approx(kid, rel=1e-5)
    fid = by_torchmetrics(FrechetInceptionDistance, samples, reference)
    assert frechet_distance(samples, reference)(equal) == pytest.approx(fid, rel=1e-4)


def test_weights_stand_for_repeated_samples():
    samples, reference = sets()
    counts = np.array([2, 0, 1, 3, 0, 1, 1, 0, 2, 1, 0, 1])
    repeated = samples.repeat_interleave(torch.from_numpy(counts), 0)
    distance_of_weights = frechet_distance(samples, reference)(counts / N)
    assert distance_of_weights == pytest.approx(
        by_torchmetrics(FrechetInceptionDistance, repeated, reference), rel=1e-4
    )
    distance, equal = kernel_distance(samples, reference), np.full(N, 1 / N)
    resampled = np.random.default_rng(0).multinomial(N, equal, size=4000) / N
    draws = np.array([distance(row) for row in resampled])
    assert abs(draws.mean() - distance(equal)) < 0.15 * draws.std()  # a pair of an image with itself would raise it


def test_a_small_set_of_true_images_shows_the_bias_of_the_frechet_distance():
    generator = torch.Generator().manual_seed(0)
    few, more = (
        frechet_distance(torch.randn(count, 64, generator=generator), torch.randn(count, 64, generator=generator))(
            np.full(count, 1 / count)
        )
        for count in (16, 256)
    )
    assert few > 4 * more > 0


def test_a_caption_is_recovered_before_those_that_are_less_like():
    likeness = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert recovered(likeness).tolist() == [1.0, 0.75, 0.0]  # a tie counts half


def drawn_of(images, truth=None, reference=None):
    generator = torch.Generator().manual_seed(1)
    count = images.shape[1]

    def random():
        return torch.randint(256, (count, *images.shape[2:]), generator=generator, dtype=torch.uint8)

    truth = random() if truth is None else truth
    reference = random() if reference is None else reference
    return Drawn(asked=Asked(prompts=[f"p{i}" for i in range(count)], truth=truth, reference=reference), images=images)


def coloured(count=N, seed=0):
    """Images of one colour each, so that thumbnails tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 1, 1), generator=generator, dtype=torch.uint8).expand(-1, -1, 16, 16)


NAMES = ("kid", "frechet", "caption-recovery", "diversity", "seed-diversity")


def test_scores_know_true_images_other_captions_and_one_image_for_all():
    truth, reference = coloured(), coloured(seed=1)
    perfect = drawn_of(torch.stack([truth, truth]), truth, reference)
    swapped = perfect.beside(torch.stack([truth, truth]).roll(1, 1))
    same = perfect.beside(truth[:1].expand(2, N, -1, -1, -1))
    best, other, one = (
        {s.metric: s for s in scores_of(sides, NAMES, ("thumbnail",))} for sides in (perfect, swapped, same)
    )
    assert best["caption-recovery"].value == 1 and best["diversity"].value == pytest.approx(1)
    assert best["kid"].value == pytest.approx(best["kid"].of_true_images)
    assert best["seed-diversity"].value == pytest.approx(0, abs=1e-6)
    assert other["kid"].value == pytest.approx(best["kid"].value)  # the same images for other prompts
    assert other["caption-recovery"].value < 0.75 < best["caption-recovery"].ci_low
    assert one["diversity"].value == pytest.approx(0, abs=1e-6) and one["kid"].value > best["kid"].value
    for score in best.values():
        assert score.ci_low <= score.value <= score.ci_high and score.features == "8x8 thumbnails"
        assert (score.num_prompts, score.num_seeds) == (N, 2)
    assert "biased" in best["frechet"].note and best["frechet"].references == N
    assert best["kid"].label == "kid (8x8 thumbnails)"


def test_a_comparison_is_paired_by_prompt():
    truth = coloured()
    base = drawn_of(torch.stack([coloured(seed=3), coloured(seed=4)]), truth, coloured(seed=1))
    (alone,) = compare_scores(base, base.beside(base.images), ["caption-recovery"], ("thumbnail",))
    assert (alone["difference"], alone["difference_low"], alone["difference_high"]) == (0, 0, 0)
    (row,) = compare_scores(base, base.beside(torch.stack([truth, truth])), ["caption-recovery"], ("thumbnail",))
    assert row["difference"] == pytest.approx(row["candidate"] - row["base"]) and row["difference_low"] > 0.1
    assert row["candidate"] == 1 and row["better"] == "higher" and row["label"] == "caption-recovery (8x8 thumbnails)"


def test_every_set_of_features_gives_a_distance_of_its_own(monkeypatch):
    monkeypatch.setattr(image_features.perceptual, "extractor", lambda: None)
    assert features_named("auto") == ("thumbnail",)
    monkeypatch.undo()
    assert features_named("auto") == ("efflite0", "thumbnail") == features_named("efflite0, thumbnail,auto")
    base = drawn_of(torch.stack([coloured(seed=3)]), coloured(), coloured(seed=1))
    rows = scores_of(base, ["kid", "diversity"], features_named("auto"))
    assert not [s.error for s in rows if s.error]
    assert [s.label for s in rows] == ["kid (EffLite0)", "kid (8x8 thumbnails)", "diversity (EffLite0)"]
    for wrong, code in (("efflite", "SK0104.*did you mean efflite0"), ("path:/nowhere", "SK0106"), (" , ", "SK0104")):
        with pytest.raises(sk.SanakitError, match=code):
            [load_features(name) for name in features_named(wrong)]


def test_noise_is_the_same_whatever_the_batches(tiny_system, monkeypatch):
    prompts = ["a red apple", "a cat", "a blue house"]
    options = {"num_seeds": 2, "seed": 5, "num_steps": 2}
    whole = draw(tiny_system, prompts, **options)
    monkeypatch.setattr(drawing, "BATCH", 2)
    parts = draw(tiny_system, prompts, **options)
    assert whole.shape == (2, 3, 3, 32, 32) and whole.dtype == torch.uint8
    assert (whole.int() - parts.int()).abs().max() <= 1
    assert not torch.equal(whole[0], whole[1])
    alone = draw(tiny_system, prompts[:1], **options)
    assert (whole[:, :1].int() - alone.int()).abs().max() <= 1
    monkeypatch.setattr(tiny_system.vae, "decode", lambda latents: torch.full((len(latents), 3, 32, 32), torch.nan))
    with pytest.raises(sk.SanakitError, match=r"SK0507.*not finite"):
        draw(tiny_system, prompts, **options)
    with pytest.raises(sk.SanakitError, match=r"SK0507.*1 of 2 images"):
        require_finite(torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), torch.inf)]))


def evaluated(small_world, *options):
    arguments = ["--model", small_world["base"].removeprefix("path:"), "--data", small_world["data"]["source"]]
    arguments += ["--count", "8", "--num-seeds", "2", "--num-steps", "2", *options]
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def test_the_command_line_gives_the_numbers_of_the_library(small_world, tmp_path):
    told = []
    evaluation = sk.evaluate(
        sk.load_base(small_world["base"]), sk.load_images(small_world["data"]["source"]), count=8, num_steps=2,
        on_step=lambda *step: told.append(step),
    )  # fmt: skip
    result = evaluated(small_world, "--json", "--out", tmp_path / "new" / "scores.json")
    record = json.loads(result.stdout)
    assert result.exit_code == 0 and record["scores"] == evaluation.as_dict()["scores"]
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == record
    assert told[0] == ("drawing samples", 0, 16) and told[-1] == ("drawing samples", 16, 16)
    assert list(evaluation.to_frame()["metric"]) == [
        "kid",
        "kid",
        "frechet",
        "frechet",
        "caption-recovery",
        "diversity",
    ]
    assert evaluation["kid (8x8 thumbnails)"].features == "8x8 thumbnails" and not evaluation.failed
    assert "KID, kernel distance" in evaluation._repr_html_() and "8 held-out prompts" in evaluation._repr_html_()
    with pytest.raises(AttributeError):
        evaluation.seed = 3
    shown = evaluated(small_world, "--metrics", "diversity,seed-diversity").stdout
    assert "diversity (EffLite0)" in shown and "true images: 1" in shown and max(map(len, shown.splitlines())) <= 200


def test_what_cannot_be_evaluated_is_refused_before_an_image_is_drawn(small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "sample_euler", lambda *_, **__: pytest.fail("an image was drawn"))
    data = small_world["data"]["source"]
    for options, said in (
        ({"metrics": ("kidd",)}, "SK0101.*did you mean kid"),
        ({"metrics": ()}, "SK0104.*no metric"),
        ({"count": 4}, "SK0104.*count is 4, expected a whole number of 8 or more"),
        ({"features": "dinoo"}, "SK0104.*did you mean dino"),
        ({"metrics": "clip-score", "clip": "openai"}, "SK0104.*expected path:DIR"),
        ({"metrics": "clip-score", "clip": f"path:{tmp_path}"}, "SK0106.*open_clip_config.json"),
        ({"metrics": "clip-score"}, "(?s)SK0902.*HF_HUB_OFFLINE.*hf download laion"),
    ):
        with pytest.raises(sk.SanakitError, match=said):
            sk.evaluate(small_world["base"], data, **options)
    with pytest.raises(sk.SanakitError, match="SK0403.*8 prompts are the fewest"):
        sk.evaluate(small_world["base"], sk.load_images(data).subset(range(40)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(sk.SanakitError, match="SK0106.*holds no model"):
        CliRunner().invoke(app, ["evaluate", "--model", str(tmp_path / "run")], catch_exceptions=False)


def test_metrics_are_listed_and_described():
    rows = json.loads(CliRunner().invoke(app, ["ls", "metrics", "--json"]).stdout)
    assert {row["name"] for row in rows} >= {"kid", "frechet", "caption-recovery", "diversity", "clip-score"}
    assert {row["name"] for row in rows if not row["embedded"]} == {"clip-score", "clip-recovery"}
    facts = json.loads(CliRunner().invoke(app, ["describe", "kid", "--json"]).stdout)
    assert facts["better"] == "lower" and "MMD" in facts["documentation"]


def test_without_a_network_nothing_hangs(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("a download was tried"))

    def unreachable(address, timeout):
        assert address == ("huggingface.co", 443) and timeout <= 5
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", unreachable)
    begun = time.monotonic()
    with pytest.raises(sk.SanakitError, match="(?s)SK0902.*does not answer.*path:DIR"):
        load_features("dino")
    assert time.monotonic() - begun < 5


@pytest.fixture
def clip_folder(tmp_path):
    """A small CLIP model with random weights, as open_clip saves one."""
    import open_clip

    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config).eval()
    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    prepared = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": prepared}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    yield folder, model
    clip_module.load_clip.cache_clear()


def test_a_clip_score_is_the_cosine_of_a_local_model(clip_folder):
    import open_clip

    folder, model = clip_folder
    sides = drawn_of(torch.stack([coloured(seed=3), coloured(seed=4)]))
    sides.clip = f"path:{folder}"
    scored = {s.metric: s for s in scores_of(sides, ["clip-score", "clip-recovery"], ("thumbnail",))}
    assert not [s.error for s in scored.values() if s.error]
    images = drawing.as_float(sides.images.flatten(0, 1))
    with torch.no_grad():
        large = nn.functional.interpolate(images / 2 + 0.5, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
        seen = model.encode_image(large * 2 - 1)
        ids = open_clip.get_tokenizer("ViT-B-32", context_length=16)(sides.prompts)
        read = model.encode_text(ids).repeat(2, 1)
        expected = 100 * torch.cosine_similarity(seen, read).clamp_min(0).mean()
    assert scored["clip-score"].value == pytest.approx(float(expected), rel=1e-4)
    assert scored["clip-score"].features == "CLIP tiny-clip" and 0 <= scored["clip-recovery"].value <= 1
    assert load_features("clip", sides.clip).compute(images[:2]).shape == (2, 8)


def test_a_timm_model_of_a_folder_gives_features_under_its_own_name(tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0).eval()
    facts = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3, "tag": "ours"}
    stated = {"architecture": "resnet10t", "num_classes": 0, "num_features": 512, "pretrained_cfg": facts}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    features = load_features(f"path:{tmp_path}")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = model((images / 2 + 0.5 - 0.5) / 0.25)
    torch.testing.assert_close(features.compute(images), expected, atol=1e-4, rtol=1e-4)
    assert features.label == "resnet10t.ours"
    with pytest.raises(sk.SanakitError, match="SK0111"):
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        image_features.load_timm.cache_clear()
        load_features(f"path:{tmp_path}")


@pytest.fixture
def registered():
    """Metrics of this process, forgotten afterwards."""
    before = dict(METRICS._objects)
    yield METRICS.register
    METRICS._objects.clear()
    METRICS._objects.update(before)


def test_a_metric_gives_values_or_a_statistic_and_nothing_else(registered):
    sides = drawn_of(torch.stack([coloured()] * 2))

    @registered("a-mean", title="t")
    @metric(better="higher")
    def a_mean(drawn):
        return drawn.images.float().mean((2, 3, 4))  # values alone

    @registered("no-numbers", title="t")
    def no_numbers(drawn):
        return Measured()

    @registered("wrong-shape", title="t")
    def wrong_shape(drawn):
        return np.zeros(3)

    @registered("not-finite", title="t")
    def not_finite(drawn):
        return np.full((2, N), np.nan)

    scored = scores_of(sides, ["a-mean", "no-numbers", "wrong-shape", "not-finite"], ("thumbnail",))
    assert scored[0].value == pytest.approx(float(sides.images.float().mean())) and scored[0].better == "higher"
    assert [bool(s.error) for s in scored] == [False, True, True, True]
    assert "expected one of them" in scored[1].error and "(2, 12): seeds, prompts" in scored[2].error
    with pytest.raises(ValueError, match="expected higher or lower"):
        metric(better="more")


def test_a_single_seed_says_nothing_of_seeds():
    (score,) = scores_of(drawn_of(coloured()[None]), ["seed-diversity"], ("thumbnail",))
    assert score.value is None and "ask for 2 or more" in score.error


@pytest.fixture
def full(small_world, tmp_path):
    """`full(**evaluate)` runs stage full of the small world, briefly; returns validation.json and the run folder."""

    def run(**evaluate):
        values = small_world | {"vae": {"name": "pca-f8c4"}, "evaluate": evaluate}
        values["train"] = values["train"] | {"max_steps": 2}
        folder = tmp_path / "run"
        swap = engine.prepare(make_config(values), folder, lambda *_: None, stages=["full"])
        return engine.run_stages(swap, ["full"], force=True), folder

    return run


def test_stage_full_compares_base_and_candidate_on_the_same_prompts(full, registered):
    @registered("broken", title="t")
    def broken(drawn):
        raise KeyError("missing")

    metrics = ["kid", "caption-recovery", "diversity", "broken"]
    validation, folder = full(num_prompts=8, num_seeds=2, metrics=metrics)
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["num_steps"] == 24 and record["guidance_scale"] == 3 and record["data_fingerprint"]
    assert validation["evaluation"] == record and (record["num_prompts"], record["num_seeds"]) == (8, 2)
    assert [row["metric"] for row in record["rows"]] == ["kid", "kid", *metrics[1:]]
    for row in record["rows"][:-1]:
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        assert row["difference"] == pytest.approx(row["candidate"] - row["base"])
    gates = {gate["gate"]: gate for gate in validation["stages"]["full"]["gates"]}
    assert (
        gates["full/metric broken"]["verdict"] == "inconclusive" and "missing" in gates["full/metric broken"]["error"]
    )
    decision = validation["decision"]
    named = {row["name"] for kind in ("gains", "losses") for row in decision[kind]} | set(decision["same"])
    assert {"kid", "colour-kid", "caption-recovery", "diversity"} <= named
    page = write_report(folder, folder / "page.html").read_text()
    assert "kid (8x8 thumbnails)" in page and "8 held-out prompts, 2 samples each" in page


def test_nothing_is_drawn_for_too_few_prompts_and_the_page_says_so(full):
    validation, folder = full(num_prompts=5)
    assert validation["evaluation"]["rows"] == [] and "fewest" in validation["evaluation"]["note"]
    assert "Samples were not scored: 5 held-out images" in write_report(folder, folder / "page.html").read_text()


def test_images_that_are_not_finite_cost_no_verdict(full, monkeypatch):
    """Hours of training lie behind them: the gates and the model are written."""
    from sanakit.evaluation import drawing

    monkeypatch.setattr(drawing, "sample_euler", lambda system, p, **_: torch.full((len(p), *system.latent_shape), nan))
    validation, folder = full(num_prompts=8)
    assert validation["evaluation"]["rows"] == [] and "not finite" in validation["evaluation"]["note"]
    gates = {gate["gate"]: gate for gate in validation["stages"]["full"]["gates"]}
    assert gates["full/images-finite"]["verdict"] == "inconclusive" and "base" in gates["full/images-finite"]["error"]
    failed = not_finite("candidate", "x")
    assert failed.verdict == "fail" and load_policy("strict").apply([failed]) == [failed]
    assert (folder / "model" / "card.json").is_file() and validation["stages"]["full"]["gates"]


def test_metrics_of_stage_full_are_refused_before_anything_is_trained(full, monkeypatch):
    monkeypatch.setattr(engine, "train_full", lambda swap: pytest.fail("it trained"))
    for evaluate, said in (
        ({"metrics": ["clip-score"]}, "SK0902"),
        ({"metrics": ["kidd"]}, "SK0101"),
        ({"features": "inception"}, "SK0902"),
    ):
        with pytest.raises(sk.SanakitError, match=said):
            full(**evaluate)


def test_rows_of_a_page_say_which_side_is_better():
    senses = [
        sense_of(*one) for one in ((0.1, 0.2, "lower"), (-2, -1, "lower"), (0.1, 0.2, "higher"), (-1, 1, "lower"))
    ]
    assert senses == ["worse", "better", "better", "same"]
    assert sense_of(0.1, 0.2, "") == "changed" and sense_of(None, None, "lower") == ""
    assert evaluated_rows({}) == [] and evaluated_on({}) == ""


def test_resamples_are_the_same_for_both_sides():
    measured = Measured(values=np.random.default_rng(0).random((1, 9)))
    first, second = scores._resampled(measured, 9), scores._resampled(measured, 9)
    assert first[0] == pytest.approx(measured.values.mean()) and np.array_equal(first[1], second[1])
    low, high = scores._ends(*first)
    assert low < first[0] < high


def test_a_device_gives_the_scores_of_the_cpu(small_world, fake_device):
    exact = {"vae": "fp32", "text_encoder": "fp32", "base": "fp32"}
    values = []
    for placement in (host(), choose("auto", **exact)):
        system = load_base(small_world["base"]).system(placement=placement, part="base")
        names = ("kid", "caption-recovery", "diversity")
        scored = sk.evaluate(system, small_world["data"]["source"], names, count=8, num_seeds=1, num_steps=1)
        assert not scored.failed
        values.append([score.value for score in scored.scores])
    scored = sk.evaluate(system, small_world["data"]["source"], names, count=8, num_seeds=1, num_steps=1, device="cpu")
    assert [score.value for score in scored.scores] == values[0]
    assert values[1] == pytest.approx(values[0], abs=0.02)
    assert all(p.device.type == "cpu" for p in image_features.perceptual.extractor().parameters())
