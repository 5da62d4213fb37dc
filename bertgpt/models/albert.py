"""ALBERT (Lan et al. 2020): BERT with a factorised embedding and one block shared by all layers, as numbers on BERT.

    h⁰ = W_E LN(E[token] + P[position] + T[type]),  E of width 128;   hˡ = Block(hˡ⁻¹), the same Block for every l

Scores are taken in the width of the embedding: eᵥᵀ LN(act(W h + b)) + cᵥ with W: D → 128. Sentence-order prediction
uses the pooled vector as next-sentence prediction does (`Bert.nsp_logits`).
"""

import dataclasses

from bertgpt.models.bert import BertConfig

# Version 2 of google-research/albert: no dropout.
ALBERT_BASE = BertConfig(vocab_size=30_000, embed_dim=128, shared_groups=1, dropout=0.0, attention_dropout=0.0)
ALBERT_LARGE = dataclasses.replace(ALBERT_BASE, d_model=1024, num_layers=24, num_heads=16, d_ff=4096)
ALBERT_XLARGE = dataclasses.replace(ALBERT_LARGE, d_model=2048, d_ff=8192)
ALBERT_XXLARGE = dataclasses.replace(ALBERT_BASE, d_model=4096, num_heads=64, d_ff=16384)
