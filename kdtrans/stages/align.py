"""Stage align: on which frame a model emits each label of the reference, along its Viterbi path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.transducer import Transducer


def main(config: Path, model: Path, cuts: list[Path], tokenizer: Path, out: Path) -> None:
    """Align the reference text of a test set under one model.

    Args:
        config: YAML of decoding (DecodeConfig), for max_duration_s.
        model: model.pt of the system.
        cuts: manifests of the test set; cuts without text, or with characters unknown to the tokenizer, are left out.
        tokenizer: sentencepiece model.
        out: Parquet file of alignments to write.
    """
    import pyarrow as pa
    import torch

    from kdtrans.artifacts import run_record
    from kdtrans.config import DecodeConfig, read
    from kdtrans.contracts import ALIGNMENTS, write_table
    from kdtrans.data.batches import inference_batches
    from kdtrans.data.manifest import read_cuts, text_of
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.training.checkpoint import ready_model

    settings = read(DecodeConfig, config)
    with run_record(out, "align", {"max_duration_s": settings.max_duration_s}, [model, *cuts, tokenizer]) as record:
        pieces = Tokenizer(tokenizer)
        system, device = ready_model(model, pieces)
        utterances = read_cuts(cuts)
        labels = {cut.id: found for cut in utterances if (found := labels_of(text_of(cut), pieces))}
        kept = [cut for cut in utterances if cut.id in labels]
        rows = {}
        for batch, features_BFC, lengths_B in inference_batches(kept, system.encoder.extract, settings.max_duration_s):
            with torch.inference_mode():
                enc_BTE, frames_B = system.encode(features_BFC.to(device), lengths_B.to(device))
                for cut, enc_TE, num_frames in zip(batch, enc_BTE, frames_B.tolist(), strict=True):
                    token_frames, logp = emission_frames(system, enc_TE[:num_frames], labels[cut.id])
                    rows[cut.id] = {
                        "utt_id": cut.id,
                        "tokens": labels[cut.id],
                        "token_frames": token_frames,
                        "num_frames": num_frames,
                        "path_logp": logp,
                    }
        facts = {
            "model_fingerprint": system.fingerprint,
            "tokenizer_sha256": pieces.sha256,
            "utterances": len(kept),
            "left_out": len(utterances) - len(kept),
        }
        table = pa.Table.from_pylist([rows[cut.id] for cut in kept], schema=ALIGNMENTS)
        write_table(table, out, {name: str(value) for name, value in facts.items()})
        record |= facts
    print(f"{out}: {len(kept)} utterances aligned, {facts['left_out']} left out", flush=True)


def labels_of(text: str | None, tokenizer: Tokenizer) -> list[int]:
    """The labels of a text; none where there is no text or the tokenizer does not know all of it."""
    from kdtrans.contracts import UNKNOWN

    labels = tokenizer.encode(text) if text else []
    return [] if UNKNOWN in labels else labels


def emission_frames(model: Transducer, enc_TE: Tensor, labels: list[int]) -> tuple[list[int], float]:
    """The frame of each label on the best path that spells the labels, and that path's log-probability.

    One utterance at a time: its grid of T x (U + 1) x V logits is what fills the memory.

    Args:
        model: in eval mode.
        enc_TE: encoder output of one utterance without padding, (T, E).
        labels: token ids, at least one.

    Returns:
        A frame of 40 ms for each label, and nats.
    """
    import torch

    from kdtrans.contracts import BLANK
    from kdtrans.lattice.path import nodes
    from kdtrans.lattice.recursion import viterbi
    from kdtrans.losses.fused import arc_scores

    labels_BU = torch.tensor([labels], device=enc_TE.device)
    pred_BUJ = model.project_predictor(model.predictor(labels_BU))
    grid = (labels_BU, *(torch.tensor([size], device=enc_TE.device) for size in (len(enc_TE), len(labels))))
    blank_BTU, label_BTU = arc_scores(model.joiner, model.project_encoder(enc_TE[None]), pred_BUJ, *grid)
    path_BN, logp_B = viterbi(blank_BTU, label_BTU, *grid)
    t_N, _ = nodes(path_BN[0])
    return t_N[path_BN[0] != BLANK].tolist(), float(logp_B[0])
