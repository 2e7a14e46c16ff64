"""The model: its pieces, its loss, the blend, and randomness of its own."""

import pytest
import torch

from spaner import registry
from spaner.align.methods import method as methods
from spaner.align.methods.losses import contrastive
from spaner.align.methods.method import Extendable, Fitted, Space, Stackable
from spaner.align.methods.spaner import Spaner
from spaner.align.methods.task import Facts
from spaner.align.train.config import TrainConfig
from spaner.errors import RecipeError

WIDTHS = {"image": 20, "text": 20}


def batch(rows=7, widths=WIDTHS, seed=4):
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.randn(rows, width, generator=generator) for m, width in widths.items()}


def test_loss_is_the_sum_of_its_terms():
    model, x = Spaner(WIDTHS, logit_scale=9.0, heads=5, lam=0.5), batch()
    labels = torch.tensor([0, 1, 2, 3, 0, 4, 5])
    terms = model.loss(x, labels)
    (f1, z1), (f2, z2) = model("image", x["image"]), model("text", x["text"])
    torch.testing.assert_close(terms["align"], contrastive(f1, f2, 9.0))
    torch.testing.assert_close(terms["ca"], contrastive(z1, z2, 9.0))
    torch.testing.assert_close(terms["loss"], terms["align"] + 0.5 * terms["ca"])
    assert terms["collision_rate"].item() == pytest.approx(2 / 7)


def test_the_prompt_is_one_tensor_for_all_modalities():
    model = Spaner(WIDTHS, logit_scale=9.0, heads=5, prompt_length=3)
    prompts = [name for name, _ in model.named_parameters() if "prompt" in name]
    assert prompts == ["prompt"]
    assert model.prompt.shape == (3, 20)
    for modality, x in batch().items():
        gradient = torch.autograd.grad(model(modality, x)[0].sum(), model.prompt)[0]
        assert gradient.abs().sum() > 0


def test_initial_prompt_has_the_asked_deviation():
    prompt = Spaner({"image": 512}, logit_scale=1.0, prompt_length=64, prompt_std=0.02).prompt
    assert prompt.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(prompt.mean().item()) < 0.001


def test_embed_gives_unit_vectors_whatever_the_length_of_x():
    model, x = Spaner(WIDTHS, logit_scale=9.0, heads=5, out_dim=13), batch()["image"]
    f = model.embed("image", x)
    assert f.shape == (7, 13)
    torch.testing.assert_close(f.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(model.embed("image", x * 17), f)


def test_blend_by_hand():
    model, x = Spaner(WIDTHS, logit_scale=9.0, heads=5, blend=0.25), batch()["image"]
    unit = x / x.norm(dim=1, keepdim=True)
    f, _ = model("image", x)
    mixed = 0.75 * f / f.norm(dim=1, keepdim=True) + 0.25 * unit
    torch.testing.assert_close(model.embed("image", x), mixed / mixed.norm(dim=1, keepdim=True))


def test_identity_start_embeds_as_the_encoder_does():
    model, x = Spaner(WIDTHS, logit_scale=9.0, heads=5, init="identity"), batch()["text"]
    torch.testing.assert_close(model.embed("text", x), x / x.norm(dim=1, keepdim=True))


def test_another_width_gets_a_linear_map():
    model = Spaner({"image": 20, "audio": 31}, logit_scale=9.0, heads=5)
    assert list(model.inputs) == ["audio"]
    assert model.embed("audio", torch.randn(3, 31)).shape == (3, 20)


def test_adding_a_modality_leaves_the_others_alone():
    model = Spaner(WIDTHS, logit_scale=9.0, heads=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    longer = model.joined("audio", 31, seed=3)
    assert set(model.state_dict()) == set(before), "the model itself stays as it is"
    assert all(torch.equal(longer.state_dict()[name], tensor) for name, tensor in before.items())
    new = {name for name, parameter in longer.named_parameters() if parameter.requires_grad}
    assert new == set(longer.state_dict()) - set(before)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = Spaner(WIDTHS, logit_scale=9.0, heads=5, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = Spaner(dict(reversed(WIDTHS.items())), logit_scale=9.0, heads=5, seed=3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = Spaner(WIDTHS, logit_scale=9.0, heads=5, seed=4).state_dict()
    assert not torch.equal(first["prompt"], other["prompt"])
    weights = "aligners.{}.attn.in_proj_weight"
    assert not torch.equal(first[weights.format("image")], first[weights.format("text")])


@pytest.mark.parametrize(
    "settings", [{}, {"init": "identity", "blend": 0.5}, {"lam": 0.1, "pool": "input", "heads": 2}]
)
def test_built_from_a_configuration(settings):
    config = TrainConfig(**{"heads": 5, **settings})
    model = Spaner.build(config, Facts((), "image", WIDTHS, 9.0))
    assert all(isinstance(model, kind) for kind in (Fitted, Space, Extendable, Stackable))
    assert (model.own.lam, model.own.blend, model.own.init) == (config.lam, config.blend, config.init)
    aligner = model.aligners["image"]
    assert (aligner.heads, aligner.pool, aligner.attend) == (config.heads, config.pool, config.attend)


def test_every_method_is_found():
    found = {name: methods.method(name).__name__.lower() for name in methods.METHODS}
    assert found["task_res"] == "taskres"
    assert all(name.replace("_", "") == kind for name, kind in found.items())


def test_plugins_come_in_by_entry_point(monkeypatch):
    entry = type("Entry", (), {"name": "mine", "value": "spaner.align.methods.attention:AttentionAligner"})
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "spaner.aligners" else [])
    config = TrainConfig(aligner="mine", heads=5)
    assert Spaner.build(config, Facts((), "image", WIDTHS, 9.0)).embed("text", batch()["text"]).shape == (
        7,
        20,
    )


def test_blend_needs_equal_widths():
    with pytest.raises(
        RecipeError, match=r"blend=0.5 mixes .* width 20 into .* width 13; use out_dim=20 or blend=0"
    ):
        Spaner(WIDTHS, logit_scale=9.0, heads=5, blend=0.5, out_dim=13)


def test_a_newcomer_is_neither_blended_nor_started_at_the_identity():
    """Its frozen embeddings mean nothing in the core's space; the core's modalities keep their blend."""
    model = Spaner({"image": 24, "text": 24}, logit_scale=10.0, heads=4, init="identity", blend=0.5)
    x = torch.nn.functional.normalize(torch.randn(5, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    model = model.joined("audio", 24, seed=3)
    assert torch.allclose(model.embed("image", x), x, atol=1e-6)
    f = torch.nn.functional.normalize(model("audio", x)[0], dim=1)
    assert torch.allclose(model.embed("audio", x), f, atol=1e-6)
    assert not torch.allclose(f, x, atol=0.1)
