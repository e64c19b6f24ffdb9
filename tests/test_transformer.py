import pytest
import torch

from sgmgm.transformer import MaskedTransformer, TransformerConfig
from sgmgm.utils.errors import InputError

CONFIG = TransformerConfig(
    num_vq_tokens=9,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    codebook_size=20,
    num_classes=5,
    dropout=0.5,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskedTransformer(CONFIG).eval()


def inputs(batch=3):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(20, (batch, 9), generator=draw), torch.arange(batch) % 5


def test_the_vocabulary_is_codes_classes_and_the_mask(model):
    assert CONFIG.mask_id == 25 and CONFIG.vocabulary == 26
    assert model.embed.word_embeddings.weight.shape == (26, 24)
    assert model.embed.position_embeddings.weight.shape == (10, 24)
    assert model.blank.shape == (1, 9) and (model.blank == 25).all()
    assert model.blank.dtype == torch.int64


def test_shapes_and_no_mutation(model):
    canvas, labels = inputs()
    before = canvas.clone(), labels.clone()
    logits, hidden = model(canvas, labels)
    assert logits.shape == (3, 9, 20) and hidden.shape == (3, 10, 24)
    assert logits.dtype == hidden.dtype == torch.float32
    assert canvas.equal(before[0]) and labels.equal(before[1])


def test_the_class_comes_first_and_its_id_follows_the_codes(model):
    canvas, labels = inputs()
    words, table = model.embed_tokens(canvas, labels), model.embed.word_embeddings.weight
    assert words[:, 0].equal(table[20 + labels])
    assert words[:, 1:].equal(table[canvas])


def test_the_label_beyond_the_last_is_the_mask(model):
    canvas, _ = inputs(1)
    words = model.embed_tokens(canvas, torch.tensor([5]))
    assert words[0, 0].equal(model.embed.word_embeddings.weight[CONFIG.mask_id])


def test_dropout_is_off_in_eval_and_on_in_training(model):
    canvas, labels = inputs()
    assert model(canvas, labels).logits.equal(model(canvas, labels).logits)
    model.train()
    assert not model(canvas, labels).logits.equal(model(canvas, labels).logits)


def test_every_position_sees_every_other(model):
    """Bidirectional: with a changed token all hidden states move, the class position's too."""
    canvas, labels = inputs(1)
    other = canvas.clone()
    other[0, 4] = (canvas[0, 4] + 1) % 20
    moved = (model(canvas, labels).hidden - model(other, labels).hidden).abs().sum(-1)
    assert (moved > 0).all()
    assert not model(canvas, labels).logits.equal(model(canvas, labels + 1).logits)


def test_the_batch_is_not_mixed(model):
    canvas, labels = inputs(4)
    whole = model(canvas, labels).logits
    alone = torch.cat([model(canvas[i : i + 1], labels[i : i + 1]).logits for i in range(4)])
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=0)


def test_attention_weights_are_those_of_the_forward_pass(model):
    attention = model.transformer_layers[0].attention
    x = torch.randn(2, 10, 24, generator=torch.Generator().manual_seed(1))
    weights = attention.weights(x)
    assert weights.shape == (2, 3, 10, 10)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 10))
    by_hand = attention.out(
        (weights @ attention.split(attention.value(x))).transpose(1, 2).flatten(2)
    )
    torch.testing.assert_close(attention(x), by_hand, atol=1e-6, rtol=1e-5)


def test_the_top_down_signal_is_added_to_the_values(model):
    attention = model.transformer_layers[0].attention
    torch.nn.init.normal_(attention.value.bias)
    x, td = torch.randn(2, 2, 10, 24, generator=torch.Generator().manual_seed(1))
    plus = attention(x, td) - attention(x)
    values = attention.split(attention.value(td))
    pushed = (attention.weights(x) @ values).transpose(1, 2).flatten(2) @ attention.out.weight.T
    torch.testing.assert_close(plus, pushed, atol=1e-5, rtol=1e-5)


def test_logits_of_chosen_positions_only(model):
    canvas, labels = inputs()
    only = torch.rand(canvas.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    some = model(canvas, labels, only).logits
    torch.testing.assert_close(some, model(canvas, labels).logits[only], atol=1e-6, rtol=1e-6)


def test_an_adopted_codebook_makes_near_codes_alike():
    torch.manual_seed(0)
    model = MaskedTransformer(TransformerConfig(9, 48, 1, 4, 48, 200, 5))
    special = model.embed.word_embeddings.weight[200:].clone()
    codebook = torch.randn(200, 3) * torch.tensor([1.0, 1.0, 5.0]) + 4
    model.init_from_codebook(codebook)
    code = (codebook - codebook.mean(0)) / codebook.std(0)
    near = torch.cdist(code, code)
    for layer in (model.embed.word_embeddings, model.mlm_layer.to_logits):
        weight = layer.weight.detach()[:200]
        assert weight.std() == pytest.approx(0.02, rel=0.3)
        apart = torch.cdist(weight, weight)
        assert torch.corrcoef(torch.stack((near.flatten(), apart.flatten())))[0, 1] > 0.9
    assert model.embed.word_embeddings.weight[200:].equal(special)  # classes and [MASK]


def test_fresh_weights_are_small_and_guess_evenly(model):
    canvas, labels = inputs()
    chances = model(canvas, labels).logits.softmax(-1)
    assert (chances - 1 / 20).abs().max() < 0.03
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.abs().max() <= 0.04, name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name


@pytest.mark.parametrize(
    "canvas, labels, fragment",
    [
        (torch.zeros(2, 8).long(), torch.zeros(2).long(), "canvas must be int64 of shape (B, 9)"),
        (torch.zeros(9).long(), torch.zeros(1).long(), "not torch.int64 (9,)"),
        (torch.zeros(2, 9), torch.zeros(2).long(), "not torch.float32 (2, 9)"),
        (torch.zeros(2, 9).int(), torch.zeros(2).long(), "not torch.int32 (2, 9)"),
        (torch.zeros(2, 9).long(), torch.zeros(3).long(), "labels must be int64 of shape (2,)"),
        (torch.zeros(2, 9).long(), torch.zeros(2), "not torch.float32 (2,)"),
        (torch.zeros(2, 9).long(), torch.zeros(2, 1).long(), "not torch.int64 (2, 1)"),
    ],
)
def test_wrong_shapes_and_types_give_one_sentence(canvas, labels, fragment, model):
    with pytest.raises(InputError) as caught:
        model(canvas, labels)
    text = str(caught.value)
    assert fragment in text and text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(
    "sizes, fragment",
    [
        ({"hidden_size": 10, "num_attention_heads": 4}, "must be a multiple of"),
        ({"num_attention_heads": 0}, "num_attention_heads cannot be 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers cannot be -1"),
        ({"codebook_size": 2.5}, "codebook_size cannot be 2.5"),
        ({"num_classes": True}, "num_classes cannot be True"),
        ({"dropout": "much"}, "dropout cannot be 'much'"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps cannot be nan"),
    ],
)
def test_impossible_sizes_give_one_sentence(sizes, fragment):
    with pytest.raises(InputError) as caught:
        TransformerConfig(**sizes)
    text = str(caught.value)
    assert fragment in text and text.endswith(".") and "\n" not in text
