"""Pre-trained encoders for the teacher, each fitted to the `Encoder` protocol of `models.transducer`.

whisper.py   Whisper, log-mel input
wav2vec2.py  wav2vec 2.0, HuBERT and WavLM of transformers, waveform input
bundle.py    the same families of torchaudio.pipelines
common.py    pooling to 40 ms and the division of the parameters
"""

from kdtrans.models.pretrained.build import build_teacher_encoder, read_architecture

__all__ = ["build_teacher_encoder", "read_architecture"]
