"""Dev scores: of a batch they are those of its utterances alone."""

from __future__ import annotations

import pytest
import torch

from kdtrans.data.batches import load_features
from kdtrans.data.manifest import text_of
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.losses.transducer import transducer_loss
from kdtrans.training.checkpoint import load_model
from kdtrans.training.evaluate import dev_evaluation
from tests.tiny import Workspace


def test_the_dev_loss_is_the_mean_of_every_references_loss_alone(toy: Workspace) -> None:
    tokenizer = Tokenizer(toy.tokenizer)
    model = load_model(toy.teacher, tokenizer)
    losses = []
    for cut in toy.cuts:
        if text := text_of(cut):
            features_FC = load_features(cut, model.encoder.extract)
            labels_BU = torch.tensor([tokenizer.encode(text)])
            with torch.no_grad():
                enc_BTE, frames_B = model.encode(features_FC[None], torch.tensor([len(features_FC)]))
                pred_BUJ = model.project_predictor(model.predictor(labels_BU))
                logits_BTUV = model.grid(model.project_encoder(enc_BTE), pred_BUJ)
                losses.append(
                    float(transducer_loss(logits_BTUV, labels_BU, frames_B, torch.tensor([labels_BU.shape[1]])))
                )
    scores = dev_evaluation(toy.cuts, tokenizer, model, 10.0)(model)
    assert len(losses) > 1
    assert scores.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
