"""Native Sana checkpoints: the name map both ways, what is kept, what is refused."""

import json
import os

import pytest
import torch
from diffusers import SanaTransformer2DModel

from sanakit.core.dit import fold_guidance
from sanakit.errors import SanakitError
from sanakit.formats.native import build_native, converted, from_native, infer_config, read_native, to_native

WIDTH, CAPTION = 64, 24
HEADS = {"num_cross_attention_heads": 4, "cross_attention_head_dim": 16}


def native_checkpoint(*, qk_norm: bool = False, guided: bool = False, layers: int = 2) -> dict[str, torch.Tensor]:
    """Names and shapes as NVlabs/Sana saves them, written out here and not derived from the map under test."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "pos_embed": (1, 16, WIDTH),
        "x_embedder.proj.weight": (WIDTH, 8, 1, 1),
        "x_embedder.proj.bias": (WIDTH,),
        "t_embedder.mlp.0.weight": (WIDTH, 256),
        "t_embedder.mlp.0.bias": (WIDTH,),
        "t_embedder.mlp.2.weight": (WIDTH, WIDTH),
        "t_embedder.mlp.2.bias": (WIDTH,),
        "t_block.1.weight": (6 * WIDTH, WIDTH),
        "t_block.1.bias": (6 * WIDTH,),
        "y_embedder.y_embedding": (10, CAPTION),
        "y_embedder.y_proj.fc1.weight": (WIDTH, CAPTION),
        "y_embedder.y_proj.fc1.bias": (WIDTH,),
        "y_embedder.y_proj.fc2.weight": (WIDTH, WIDTH),
        "y_embedder.y_proj.fc2.bias": (WIDTH,),
        "attention_y_norm.weight": (WIDTH,),
        "final_layer.scale_shift_table": (2, WIDTH),
        "final_layer.linear.weight": (8, WIDTH),
        "final_layer.linear.bias": (8,),
    }
    if guided:
        for part in ("0.weight", "0.bias", "2.weight", "2.bias"):
            shapes[f"cfg_embedder.mlp.{part}"] = shapes[f"t_embedder.mlp.{part}"]
    for i in range(layers):
        shapes |= {
            f"blocks.{i}.scale_shift_table": (6, WIDTH),
            f"blocks.{i}.attn.qkv.weight": (3 * WIDTH, WIDTH),
            f"blocks.{i}.attn.proj.weight": (WIDTH, WIDTH),
            f"blocks.{i}.attn.proj.bias": (WIDTH,),
            f"blocks.{i}.cross_attn.q_linear.weight": (WIDTH, WIDTH),
            f"blocks.{i}.cross_attn.q_linear.bias": (WIDTH,),
            f"blocks.{i}.cross_attn.kv_linear.weight": (2 * WIDTH, WIDTH),
            f"blocks.{i}.cross_attn.kv_linear.bias": (2 * WIDTH,),
            f"blocks.{i}.cross_attn.proj.weight": (WIDTH, WIDTH),
            f"blocks.{i}.cross_attn.proj.bias": (WIDTH,),
            f"blocks.{i}.mlp.inverted_conv.conv.weight": (320, WIDTH, 1, 1),
            f"blocks.{i}.mlp.inverted_conv.conv.bias": (320,),
            f"blocks.{i}.mlp.depth_conv.conv.weight": (320, 1, 3, 3),
            f"blocks.{i}.mlp.depth_conv.conv.bias": (320,),
            f"blocks.{i}.mlp.point_conv.conv.weight": (WIDTH, 160, 1, 1),
        }
        if qk_norm:
            for part in ("attn.q_norm", "attn.k_norm", "cross_attn.q_norm", "cross_attn.k_norm"):
                shapes[f"blocks.{i}.{part}.weight"] = (WIDTH,)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


CARD = {"image_size": 128, "config": HEADS}


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_the_map_fills_a_core_and_goes_back(qk_norm, guided):
    native = native_checkpoint(qk_norm=qk_norm, guided=guided)
    core = SanaTransformer2DModel(**infer_config(native, 128) | HEADS)
    converted_state = from_native(native)
    assert core.state_dict().keys() == converted_state.keys()
    core.load_state_dict(converted_state)
    back = to_native(core.state_dict())
    dropped = {"pos_embed", "y_embedder.y_embedding"}
    assert back.keys() == native.keys() - dropped
    assert all(torch.equal(back[name], native[name]) for name in back)


def test_stacked_tensors_keep_their_order():
    native, block = native_checkpoint(), "transformer_blocks.1."
    state = from_native(native)
    q, k, v = (state[f"{block}attn1.to_{part}.weight"] for part in "qkv")
    assert torch.equal(torch.stack([q, k, v]), native["blocks.1.attn.qkv.weight"].reshape(3, WIDTH, WIDTH))
    k, v = state[f"{block}attn2.to_k.bias"], state[f"{block}attn2.to_v.bias"]
    assert torch.equal(torch.stack([k, v]), native["blocks.1.cross_attn.kv_linear.bias"].reshape(2, WIDTH))


def test_a_sprint_core_folds_exactly():
    native = native_checkpoint(qk_norm=True, guided=True)
    sprint = SanaTransformer2DModel(**infer_config(native, 128) | HEADS)
    sprint.load_state_dict(from_native(native))
    plain = fold_guidance(sprint)
    x, text, time = torch.randn(3, 8, 4, 4), torch.randn(3, 5, CAPTION), torch.tensor([0.1, 0.5, 0.9])
    guidance = torch.full((3,), 4.5 * sprint.config.guidance_embeds_scale)
    with torch.no_grad():
        expected = sprint(x, text, time, guidance=guidance).sample
        folded = plain(x, text, 1000 * time * plain.config.timestep_scale).sample
    torch.testing.assert_close(folded, expected)


def test_a_file_is_converted_once_with_leave(tmp_path):
    native, path = native_checkpoint(), tmp_path / "Sana.pth"
    torch.save({"state_dict": native}, path)
    (tmp_path / "Sana.json").write_text(json.dumps(CARD | {"vae": "pca-f8c4"}))
    cache = tmp_path / "cache"
    with pytest.raises(SanakitError, match="SK0601.*pickle"):
        converted(path, cache, allow_pickle=False)
    folder = converted(path, cache, allow_pickle=True)
    assert converted(path, cache, allow_pickle=False) == folder
    card = json.loads((folder / "card.json").read_text())
    assert card["vae"] == "pca-f8c4" and card["image_size"] == 128 and "kept" in card["null_embedding"]
    assert (folder / "null_embedding.safetensors").is_file()
    core = SanaTransformer2DModel.from_pretrained(folder)
    assert torch.equal(core.caption_norm.weight, native["attention_y_norm.weight"])


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_pickle_that_builds_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harm()}, tmp_path / "bad.pth")
    with pytest.raises(SanakitError, match="SK0602"):
        read_native(tmp_path / "bad.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"blocks.0.extra.weight": torch.zeros(1)}), "blocks.0.extra.weight"),
        (lambda s: s.pop("x_embedder.proj.weight"), "x_embedder.proj.weight"),
        (lambda s: s.pop("blocks.1.attn.proj.bias"), "to_out.0.bias"),
        (lambda s: s.update({"t_block.1.bias": torch.zeros(5)}), "time_embed.linear.bias"),
    ],
)
def test_what_is_no_sana_checkpoint_is_named(change, message):
    state = native_checkpoint()
    change(state)
    with pytest.raises(SanakitError, match=f"SK0602.*{message}"):
        build_native(state, CARD)


def test_unknown_heads_are_asked_for():
    with pytest.raises(SanakitError, match="SK0602.*width 64"):
        build_native(native_checkpoint(), {"image_size": 128})
