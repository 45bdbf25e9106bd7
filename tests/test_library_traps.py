"""What a newcomer types wrongly: every public function answers with a SanakitError that says what to type, and never
with a traceback or with silently wrong numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sanakit as sk
from sanakit.api.validation import Validation
from sanakit.contracts import GateResult, Verdict
from sanakit.integrations.watch import Watch
from sanakit.text_encoders import PromptEmbeds


def latents(seed=0, count=64, channels=3):
    return torch.randn(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed))


EMBEDS, MASK = torch.randn(40, 5, 8, generator=torch.Generator().manual_seed(0)), torch.ones(40, 5)
ADDED = (1 - MASK.clone().index_fill_(1, torch.tensor([4]), 0)) * -10000.0  # as transformers adds it to attention


def monitor(**options):
    return sk.DriftMonitor(latents(), **{"steps": 8} | options)


REFUSED = {
    "alpha as text": (lambda: sk.compare(latents(), latents(1), alpha="0.05"), "SK0104.*alpha is '0.05'"),
    "seed as text": (lambda: sk.compare(latents(), latents(1), seed="a"), "SK0104.*seed is 'a'"),
    "additive mask": (
        lambda: sk.compare(PromptEmbeds(EMBEDS, MASK.bool()), EMBEDS, current_mask=ADDED),
        "SK0701.*current_mask holds values from -10000 to 0, expected 1 = keep",
    ),
    "complex": (lambda: sk.compare(latents() + 0j, latents()), "SK0701.*Tensor of torch.complex64"),
    "sparse": (lambda: sk.compare(latents().to_sparse(), latents()), "SK0701.*sparse_coo"),
    "words in an array": (lambda: sk.compare(np.array([["a"]]), latents()), "SK0701.*ndarray of <U1"),
    "nothing": (lambda: sk.compare(latents()[:0], latents()), "SK0704.*0 images"),
    "one image without its batch": (lambda: sk.compare(latents()[0], latents()), r"SK0701.*\(3, 6, 6\)"),
    "steps as float": (lambda: monitor(steps=1e4), r"SK0104.*steps is 10000.0, expected a whole number"),
    "steps as text": (lambda: monitor(steps="8"), "SK0104.*steps is '8'"),
    "steps as truth": (lambda: monitor(steps=True), "SK0104.*steps is True"),
    "alpha of 5%": (lambda: monitor(alpha=5), "SK0104.*alpha is 5, expected a number above 0 and below 1"),
    "band of -1": (lambda: monitor(band=-1), "SK0104.*band is -1, expected a number above 0"),
    "alpha of a watch": (lambda: Watch(steps=8, alpha=0), "SK0104.*alpha is 0"),
    "steps of a watch": (lambda: Watch(steps=8.5), "SK0104.*steps is 8.5"),
    "empty reference": (lambda: sk.DriftMonitor(latents()[:0], steps=8), "SK0704.*0 finite rows"),
    "embeddings as latents": (lambda: sk.DriftMonitor(EMBEDS, steps=8), "SK0701.*expected .N, C, h, w.(\n.*)*kind="),
    "additive mask of a reference": (
        lambda: sk.DriftMonitor(EMBEDS, mask=ADDED, kind="embeddings", steps=8),
        "SK0701.*mask of reference holds values from -10000 to 0",
    ),
    "a repository without hub:": (
        lambda: sk.load_vae("stabilityai/sd-vae-ft-mse"),
        "SK0101(.*\n)*.*hub:stabilityai/sd",
    ),
    "an encoder without hub:": (lambda: sk.load_text_encoder("Qwen/Qwen3-0.6B"), "SK0101(.*\n)*.*hub:Qwen/Qwen3-0.6B"),
    "a base without hub:": (lambda: sk.load_base("owner/Sana_600M"), "SK0101(.*\n)*.*hub:owner/Sana_600M"),
    "a path without path:": (lambda: sk.load_vae("./my-vae"), r"SK0101(.*\n)*.*path:\./my-vae"),
    "a validated path": (lambda: sk.validate("./my-vae", data="embedded"), r"SK0101(.*\n)*.*path:\./my-vae"),
    "a name of many letters": (lambda: sk.load_vae("x" * 5000), "SK0101"),
    "a class": (lambda: sk.load_vae(type("AutoencoderKL", (), {})), "SK0106.*a type is no VAE"),
    "a scale as text": (lambda: sk.load_vae("pca-f8c4", scaling_factor="0.18"), "SK0104.*scaling_factor is '0.18'"),
    "a scale of 0": (lambda: sk.load_vae("pca-f8c4", scaling_factor=0), "SK0104.*scaling_factor is 0"),
    "stats as dict": (
        lambda: sk.load_vae("pca-f8c4", stats={"mean": 0.0}),
        r"SK0104.*stats is a dict(.*\n)*.*sk\.LatentStats",
    ),
    "tokens as text": (lambda: sk.load_text_encoder("wordllama", max_tokens="8"), "SK0306.*expected a whole number"),
    "tokens as float": (
        lambda: sk.load_text_encoder("wordllama", max_tokens=8.0),
        "SK0306.*max_tokens=8.0: expected a",
    ),
    "lower case as text": (
        lambda: sk.load_text_encoder("wordllama", lower_case="false"),
        "SK0306.*lower_case='false': expected True or False",
    ),
    "no instruction": (lambda: sk.load_text_encoder("wordllama", instruction=None), "SK0306.*expected a text"),
    "a layer as truth": (lambda: sk.load_text_encoder("minilm", layer=True), "SK0306.*layer=True: expected a whole"),
    "a layer of a race": (lambda: sk.load_text_encoder("minilm", layer="auto"), "SK0306.*measured against a base"),
    "no tokens": (lambda: sk.load_text_encoder("wordllama", max_tokens=0), "SK0306"),
    "a pipeline as a VAE": (lambda: sk.load_vae(SimpleNamespace(vae=1)), r"SK0106(.*\n)*.*its `\.vae`"),
    "a pipeline as a text encoder": (
        lambda: sk.load_text_encoder(SimpleNamespace(text_encoder=1)),
        r"SK0106(.*\n)*.*its `\.text_encoder`",
    ),
    "a text encoder as a VAE": (lambda: sk.load_vae("wordllama"), "SK0101(.*\n)*.*wordllama is a text encoder"),
    "a VAE as a text encoder": (lambda: sk.load_text_encoder("pca-f8c4"), "SK0101(.*\n)*.*pca-f8c4 is a VAE"),
    "labels for captions": (
        lambda: sk.load_images([(Image.new("RGB", (8, 8)), 3)] * 4),
        r"SK0401(.*\n)*.*\(image, 'text'\)",
    ),
    "no images": (lambda: sk.load_images([]), "SK0401"),
    "a stream": (lambda: sk.load_images(iter([])), "SK0401"),
    "paths alone": (lambda: sk.load_images([Path("a.png")] * 4), "SK0401|SK0402.*is a PosixPath, expected"),
    "metrics as number": (lambda: sk.evaluate("tiny-sana", "embedded", metrics=3), "SK0104.*metrics is a int"),
    "no metrics": (lambda: sk.evaluate("tiny-sana", "embedded", metrics=[]), "SK0104.*no metric was named"),
    "count as text": (lambda: sk.evaluate("tiny-sana", "embedded", count="8"), "SK0104.*count is '8'"),
    "guidance as text": (lambda: sk.evaluate("tiny-sana", "embedded", guidance_scale="3"), "SK0104.*guidance_scale"),
    "strategy as list": (
        lambda: sk.swap("tiny-sana", vae="pca-f8c4", data="embedded", strategy=["align"]),
        "SK0104.*strategy is a list, expected a name",
    ),
    "adapter as number": (lambda: sk.plan("tiny-sana", vae="pca-f8c4", adapter=3), "SK0104.*adapter is a int"),
    "seed as float": (lambda: sk.validate("pca-f8c4", data="embedded", seed=0.5), "SK0104.*seed is 0.5"),
    "sections as number": (
        lambda: sk.race("tiny-sana", vae="pca-f8c4", data="embedded", sections={"train": 3}),
        "SK0104.*sections is {'train': 3}",
    ),
    "on_step as truth": (
        lambda: sk.evaluate("tiny-sana", "embedded", metrics="kid", on_step=True),
        "SK0104.*on_step is True, expected a function",
    ),
    "strategies as numbers": (
        lambda: sk.race("tiny-sana", vae="pca-f8c4", data="embedded", strategies=[1]),
        "SK0104.*one of strategies is a int",
    ),
}


@pytest.mark.parametrize("trap", REFUSED)
def test_what_is_typed_wrongly_is_answered_with_what_to_type(trap):
    call, told = REFUSED[trap]
    with pytest.raises(sk.SanakitError, match=told) as refusal:
        call()
    assert refusal.value.fix and refusal.value.cause


@pytest.mark.parametrize("kind", [np.int64(8), torch.tensor(8)], ids=lambda kind: type(kind).__name__)
def test_a_count_of_numpy_or_torch_is_a_count(kind):
    assert monitor(steps=kind, num_evaluations=kind).every == 1 and Watch(steps=kind).every == 1


def test_arrays_as_they_come_from_files_are_read(tmp_path):
    """Read-only, of the other byte order, half precision, turned round: the numbers of the plain tensor."""
    values = latents().half().float()
    plain = sk.compare(values, latents(1)).as_dict()
    np.save(tmp_path / "values.npy", values.numpy())
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    other = values.numpy().astype(">f4")
    for given in (mapped, other, values.half(), values.double(), values.flip(0).numpy()[::-1]):
        assert sk.compare(given, latents(1)).as_dict()["verdict"] == plain["verdict"]
    assert sk.compare(mapped, latents(1)).as_dict() == sk.compare(other, latents(1)).as_dict() == plain


def test_a_mask_that_is_added_to_attention_does_not_pass_for_a_mask():
    """Its zeros are the tokens that count. An update never waits for the device, so the evaluation says so."""
    watched = sk.DriftMonitor(EMBEDS, mask=MASK.int(), kind="embeddings", steps=4, num_evaluations=2)
    for _ in range(2):
        watched.update(EMBEDS, ADDED)
    with pytest.raises(sk.SanakitError, match=r"SK0701.*keep no token(.*\n)*.*attention_mask"):
        watched.compute(2)
    watched.update(EMBEDS, MASK.double())
    assert not watched.compute(2)[0].alarm


def test_an_empty_batch_and_step_0_are_no_evaluation():
    watched = monitor(num_evaluations=4)
    assert [step for step in range(9) if watched.due(step)] == [2, 4, 6, 8]
    watched.update(latents()[:0])
    assert not any(reading.alarm for reading in watched.compute(2)) and watched.compute(4) == []


def test_a_notebook_shows_what_to_do_beside_what_failed_alone():
    facts = {"code": "SK0203", "metric": "sd", "value": 1.0, "ci_low": None, "ci_high": None, "threshold": 1.6}
    gates = [
        GateResult(gate=f"component/{verdict}", verdict=Verdict(verdict), hint=f"if {verdict}", **facts)
        for verdict in ("pass", "fail")
    ]
    record = {"verdict": "fail", "candidate": "ours", "base": "none"}
    shown = Validation(record=record, gates=tuple(gates))._repr_html_()
    assert shown.index("component/fail") < shown.index("component/pass")
    assert "if fail" in shown and "if pass" not in shown


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, number):
        if number == 3:
            raise KeyError("a row without its file")
        return Image.new("RGB", (8, 8), (number, 0, 0)), f"image {number}"


def test_a_row_that_raises_is_set_aside_and_a_table_of_pandas_is_read():
    import pandas as pd

    images = sk.load_images(Broken())
    assert len(images) == 39 and images.ledger == [{"name": "Broken/3", "reason": "KeyError: 'a row without its file'"}]
    rows = [{"image": image, "caption": caption} for image, caption in (Broken()[number] for number in range(4, 24))]
    table = sk.load_images(pd.DataFrame(rows, index=range(100, 120)))
    assert table.captions == [[row["caption"]] for row in rows] and table.names[0] == "DataFrame/0"


def test_a_data_set_with_a_transform_of_its_own_is_read_through_it():
    import datasets

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(10)]
    plain = datasets.Dataset.from_dict({"image": images, "text": ["a"] * 10}, features=features)
    turned = plain.with_transform(lambda rows: {"image": [i.rotate(90) for i in rows["image"]], "text": rows["text"]})
    as_arrays = plain.with_format("numpy")
    for given in (plain, turned, as_arrays):
        assert sk.load_images(given).pixels(8)[:, 0, 0, 0].tolist() == list(range(10))


def test_a_hint_names_the_scheme_of_a_folder_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for load in (sk.load_vae, sk.load_text_encoder, sk.load_base):
        with pytest.raises(sk.SanakitError, match=r"SK0101(.*\n)*.*path:mine"):
            load("mine")
    with pytest.raises(sk.SanakitError, match="SK0101") as plain:
        sk.load_vae("mien")
    assert "hub:mien" not in str(plain.value) and "path:mien" not in str(plain.value)


def test_a_swap_under_inference_mode_can_be_trained(small_world, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    base, images = sk.load_base(small_world["base"]), sk.load_images(small_world["data"]["source"])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.inference_mode():
        swapped = sk.swap(base, vae="pca-f8c4", data=images, strategy="align")
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()
    noisy = torch.randn(2, *swapped.system.latent_shape)
    prompt = swapped.system.text_encoder.encode(["a", "b"])
    with pytest.raises(sk.SanakitError, match=r"SK0104.*align trains nothing(.*\n)*.*'finetune'"):
        swapped.parameter_groups()
    optimizer = torch.optim.SGD(swapped.system.core.parameters(), lr=1e-3)
    swapped.system.velocity(noisy, torch.tensor([0.3, 0.6]), prompt).square().mean().backward()
    optimizer.step()
    # a result of `swap` stands for its system
    assert sk.load_base(swapped) is swapped.system
    assert sk.relative_error(swapped, images, base=base).as_dict() == (
        sk.relative_error(swapped.system, images, base=base).as_dict()
    )
    results = [swapped, swapped.quality, sk.plan(base, vae="pca-f8c4")]
    for shown in (*results, base, images):  # what a terminal prints of it
        assert repr(shown).startswith(f"<{type(shown).__name__}") and len(repr(shown)) < 250, repr(shown)
    assert "started by align" in repr(swapped) and "80 images, 0 set aside" in repr(images)
    assert all(json.loads(json.dumps(result.as_dict())) for result in results)
    swapped.save("~/saved")
    assert (tmp_path / "saved" / "card.json").is_file() and sk.load_base("path:~/saved").image_size == 32
    with pytest.raises(sk.SanakitError, match="SK0104.*lr is '1e-4'"):
        swapped.parameter_groups("1e-4")
