"""Controls with random weights: what they are compared by, and that they are measured once."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sanakit.alignment.similarity import agreement, frequent_words
from sanakit.config import make_config
from sanakit.data.cache import silent
from sanakit.placement import host
from sanakit.swap import control
from sanakit.swap.control import agreement_with_base, better_evaluation, first_images, remembered
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.text_encoders.random_weights import architecture


def test_words_are_the_most_frequent_ones_of_three_letters_or_more():
    captions = ["A red apple, a RED pear", "red apple 12 ab", "pear trees", "naïve дом"]
    assert frequent_words(captions) == ["apple", "pear", "red", "naïve", "trees", "дом"]
    assert frequent_words(captions, 2) == ["apple", "pear"]


def test_agreement_is_the_correlation_of_cosines_word_by_word():
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.nn.functional.normalize(torch.randn(*size, generator=generator).double(), dim=1)

    first, other = draw(64, 8), draw(64, 24)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator).double())[0]
    np.testing.assert_allclose(agreement(first, first @ rotation).mean(), 1)
    pairs = ~torch.eye(64, dtype=torch.bool)
    expected = np.corrcoef(*(np.asarray((f @ f.T)[pairs]) for f in (first, other)))[0, 1]
    assert agreement(first, other).mean() == pytest.approx(expected) and abs(expected) < 0.1


def test_an_encoder_agrees_with_itself_and_its_control_does_not():
    torch.manual_seed(7)  # not the control's own seed
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    words = [a + b + c for a in "abcd" for b in "efgh" for c in "ijkl"]
    terms = agreement_with_base(encoder, encoder, words)
    assert terms["agreement"].mean() == pytest.approx(1) and terms["control_agreement"].mean() < 0.9


class FakeSwap:
    def __init__(self, name="minilm", data="a"):
        self.candidate = TEXT_ENCODERS.get(name).tiny()
        self.images = type("ImageDataset", (), {"fingerprint": data})()
        self.config = type("Config", (), {"train": type("Train", (), {"seed": 0})()})()
        self.placement = host()


def test_a_control_is_measured_once_for_an_architecture_a_base_and_data(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path))
    asked = []

    def work():
        asked.append(1)
        return torch.arange(3.0)

    for _ in range(2):  # tiny twins draw their weights: another checkpoint of the same architecture
        assert torch.equal(remembered(FakeSwap(), ["key"], work), torch.arange(3.0))
    assert len(asked) == 1
    for swap, key in ((FakeSwap(data="b"), ["key"]), (FakeSwap(), ["other"]), (FakeSwap("wordllama"), ["key"])):
        remembered(swap, key, work)
    assert len(asked) == 4
    for path in tmp_path.glob("control-*.safetensors"):
        path.write_bytes(b"cut short")
    remembered(FakeSwap(), ["key"], work)
    assert len(asked) == 5 and not list(tmp_path.glob("*.tmp"))


def test_a_control_of_another_flow_shift_or_caption_temperature_is_measured_anew(tiny_system, monkeypatch):
    keys = []
    monkeypatch.setattr(control, "remembered", lambda swap, key, work: keys.append(json.dumps(key)) or work())
    monkeypatch.setattr(control, "short_race", lambda *arguments: torch.zeros(1, 3, 4))
    for shift, temperature in (("1", None), ("1", None), ("3", None), ("1", 0.5)):
        swap = SimpleNamespace(
            candidate=tiny_system.text_encoder,
            base_system=tiny_system,
            base_fingerprint={"flow_shift": shift},
            config=make_config({"data": {"caption_temperature": temperature}}),
            target=SimpleNamespace(weights=np.array([0, 0, 0.2, 0.3, 0.5]), unit=1.0),
            progress=silent,
        )
        control.control_evidence(swap, 16)
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_the_better_of_two_looks_counts():
    losses = torch.tensor([[[4.0, 2.0], [2.0, 2.0]], [[1.0, 3.0], [1.0, 3.0]]])
    np.testing.assert_allclose(better_evaluation(losses, np.array([0.5, 0.5])), [1.0, 3.0])


def test_the_first_images_keep_their_captions(tiny_data):
    part = first_images(tiny_data, 10)
    assert len(part) == len(part.names) == 10 and len(part.captions) == 20
    rows = torch.arange(10)
    for choice in (0, 1):
        both = [data.prompts(rows, torch.full((10,), choice)).embeds for data in (part, tiny_data)]
        assert torch.equal(*both)
    assert first_images(tiny_data, 64) is tiny_data
    assert control.IMAGES >= 1024


def test_a_control_whose_weights_are_drawn_by_the_candidates_widths_is_kept_by_them():
    encoder = TEXT_ENCODERS.get("wordllama").tiny()
    before = architecture(encoder)
    assert architecture(encoder) == before
    for parameter in encoder.model.parameters():
        parameter.data.mul_(20)
    assert architecture(encoder) != before
