from __future__ import annotations

import math

import pytest
import torch

from kdtrans.config import ConformerConfig, MaskingConfig, PredictorConfig, StudentConfig
from kdtrans.models.build import build_student
from kdtrans.models.conformer import ConformerEncoder, rotary_angles, rotate
from kdtrans.models.predictor import build_predictor

TINY = ConformerConfig(dim=16, layers=2, heads=2, ffn_dim=32, conv_kernel=5, subsampling_channels=4)


@pytest.fixture
def encoder() -> ConformerEncoder:
    torch.manual_seed(0)
    return ConformerEncoder(TINY, MaskingConfig()).eval()


def test_frames_follow_the_contract(encoder: ConformerEncoder) -> None:
    for samples in (8000, 16000, 16080, 31999, 50240):
        features = encoder.extract(torch.randn(samples) * 0.1)
        assert features.shape == ((samples + 80) // 160, 80)
        output, lengths = encoder(features[None], torch.tensor([len(features)]))
        expected = math.ceil(math.ceil(len(features) / 2) / 2)
        assert output.shape == (1, expected, 16)
        assert int(lengths) == expected


def test_batch_of_n_equals_batches_of_one(encoder: ConformerEncoder) -> None:
    lengths = torch.tensor([61, 40, 9])
    features = torch.randn(3, 61, 80)
    padded = features.clone()
    for b, length in enumerate(lengths):
        padded[b, length:] = 100.0  # even garbage in the padding must not matter
    together, frames = encoder(padded, lengths)
    for b, length in enumerate(lengths):
        alone, _ = encoder(features[b : b + 1, :length], lengths[b : b + 1])
        torch.testing.assert_close(together[b, : frames[b]], alone[0], rtol=1e-4, atol=1e-5)


def test_rotation_makes_scores_depend_on_distance_only() -> None:
    query, key = torch.randn(8), torch.randn(8)
    rotation = rotary_angles(30, 8, torch.device("cpu"))
    rotated_query = rotate(query.expand(1, 1, 30, 8), rotation)[0, 0]
    rotated_key = rotate(key.expand(1, 1, 30, 8), rotation)[0, 0]
    scores = rotated_query @ rotated_key.T
    for distance in (-7, 0, 5):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


def test_training_masks_and_evaluation_does_not(encoder: ConformerEncoder) -> None:
    features, lengths = torch.randn(2, 80, 80), torch.tensor([80, 70])
    assert torch.equal(encoder(features, lengths)[0], encoder(features, lengths)[0])
    encoder.train()
    assert not torch.equal(encoder(features, lengths)[0], encoder(features, lengths)[0])


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
def test_predictor_steps_equal_the_whole_sequence(kind: str) -> None:
    torch.manual_seed(0)
    predictor = build_predictor(11, PredictorConfig(type=kind, dim=12, layers=2, context=3)).eval()  # type: ignore[arg-type]
    labels = torch.randint(1, 11, (4, 6))
    whole = predictor(labels)
    output, state = predictor.start(4)
    outputs = [output]
    for u in range(6):
        output, state = predictor.step(labels[:, u], state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), whole)
    # A search reorders hypotheses by indexing the state.
    order = torch.tensor([2, 0, 3, 1])
    step, _ = predictor.step(labels[order, 0], state[order])
    torch.testing.assert_close(step, predictor.step(labels[:, 0], state)[0][order])


def test_grid_is_the_joiner_at_every_node() -> None:
    torch.manual_seed(0)
    model = build_student(StudentConfig(encoder=TINY, predictor=PredictorConfig(dim=8), joiner_dim=6), 9).eval()
    enc, pred = torch.randn(2, 5, 6), torch.randn(2, 4, 6)
    grid = model.grid(enc, pred)
    assert grid.shape == (2, 5, 4, 9)
    torch.testing.assert_close(grid[1, 3, 2], model.joiner(enc[1, 3], pred[1, 2]))


@pytest.mark.parametrize("change", [{"frequency_warp": 0.3}, {"equalizer_db": 6.0}])
def test_features_are_changed_in_training_only(change: dict[str, float]) -> None:
    torch.manual_seed(0)
    config = ConformerConfig(dim=16, layers=1, heads=2, ffn_dim=16, dropout=0.0, **change)
    encoder = ConformerEncoder(config, MaskingConfig(time_masks=0, channel_masks=0))
    features, lengths = torch.randn(1, 40, 80), torch.tensor([40])
    plain, _ = encoder.eval()(features, lengths)
    again, _ = encoder(features, lengths)
    changed, _ = encoder.train()(features, lengths)
    assert torch.equal(plain, again)
    assert not torch.allclose(plain, changed, atol=1e-3)
