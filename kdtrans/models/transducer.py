"""The transducer: encoder h, predictor g and joiner z(t, u) = Joint(h_t, g_u); teacher and student are both this class.

Shapes: B utterances, S samples, F feature frames, T encoder frames (40 ms), U labels, E encoder width, P predictor
width, J joiner width, V vocabulary with blank = 0, N path nodes.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdtrans.models.predictor import Predictor


class Encoder(nn.Module):
    """What a transducer asks of an encoder; pre-trained ones and the Conformer are such."""

    dim: int
    tail_frames: int = 0  # how many of its frames lie behind the end of the audio

    def extract(self, waveform_S: Tensor) -> Tensor:
        """Fixed features of one utterance at 16 kHz: (S,) -> (F, C), or (S, 1) where the encoder eats samples.

        Without trainable parameters, hence constant between epochs and cacheable; one utterance at a time, hence blind
        to padding.
        """
        raise NotImplementedError

    def forward(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Zero-padded features and lengths -> (B, T, E) at 40 ms and lengths; padding does not change a result."""
        raise NotImplementedError


class Joiner(nn.Module):
    """z(t, u) = W tanh(A h_t + B g_u)."""

    def __init__(self, encoder_dim: int, predictor_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_projection = nn.Linear(encoder_dim, joiner_dim)
        self.predictor_projection = nn.Linear(predictor_dim, joiner_dim, bias=False)
        self.output = nn.Linear(joiner_dim, vocab_size)

    def forward(self, enc_J: Tensor, pred_J: Tensor) -> Tensor:
        """Logits (..., V) from projected encoder and predictor outputs (..., J) that broadcast together."""
        return self.output((enc_J + pred_J).tanh_())


class SimpleJoiner(nn.Module):
    """Two projections to the vocabulary whose sum is a joiner: where the pruned loss finds the mass (losses/pruned)."""

    def __init__(self, encoder_dim: int, predictor_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_projection = nn.Linear(encoder_dim, vocab_size)
        self.predictor_projection = nn.Linear(predictor_dim, vocab_size)

    def forward(self, enc_BTE: Tensor, pred_BUP: Tensor) -> tuple[Tensor, Tensor]:
        """What either adds: (B, T, V) and (B, U + 1, V)."""
        return self.encoder_projection(enc_BTE), self.predictor_projection(pred_BUP)


TRAINING_ONLY = ("ctc.", "simple.", "to_teacher.")  # how the names of such parameters begin


class Transducer(nn.Module):
    """Encoder, predictor, joiner; used in training only: a CTC head, for the pruned loss a simple joiner, and a map to
    the teacher's projected encoder output where a student learns that (losses/encoder.py).
    """

    fingerprint: str = ""  # identity of the weights, set when they are read from a file

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        joiner_dim: int,
        vocab_size: int,
        has_simple: bool = False,
        teacher_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Encoder = encoder
        self.predictor: Predictor = predictor
        self.vocab_size = vocab_size
        self.joiner = Joiner(encoder.dim, predictor.dim, joiner_dim, vocab_size)
        self.ctc = nn.Linear(encoder.dim, vocab_size)
        self.simple = SimpleJoiner(encoder.dim, predictor.dim, vocab_size) if has_simple else None
        self.to_teacher = nn.Linear(encoder.dim, teacher_dim) if teacher_dim else None

    def encode(self, features_BFC: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features and lengths -> encoder output (B, T, E) and lengths (B,) in frames of 40 ms."""
        return self.encoder(features_BFC, lengths_B)

    def project_encoder(self, enc_BTE: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, J), once an utterance: searches and losses join what is projected."""
        return self.joiner.encoder_projection(enc_BTE)

    def project_predictor(self, pred_BUP: Tensor) -> Tensor:
        """(..., P) -> (..., J)."""
        return self.joiner.predictor_projection(pred_BUP)

    def grid(self, enc_BTJ: Tensor, pred_BUJ: Tensor) -> Tensor:
        """Logits (B, T, U + 1, V) at every node of the grid."""
        return self.joiner(enc_BTJ[:, :, None], pred_BUJ[:, None])

    @property
    def num_parameters(self) -> int:
        """Parameters that decoding uses: all but those that are there for training only."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith(TRAINING_ONLY))
