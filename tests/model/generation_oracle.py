"""transformers' own `generate` as the oracle, over tiny random models whose answers differ in
length: `lively` makes the end token likely now and then, so that beams end at different steps.

The parity tests compare our device threads with `reference`, one row at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from gpt2_oracle import random_gpt2
from t5_files import random_t5

END = 1
MOST = 20
SOURCES = [1, 9, 2, 33, 17, 9, 5, 40, 12, 3, 26, 9]
LIMITS = [MOST, MOST, 7, MOST, 1, MOST, MOST, 12, MOST, MOST, 2, MOST]


def lively(family: str, seed: int = 0, *, positions: int = 60, **shape: Any) -> Any:
    """A random model of `gpt2` or of a kind of T5 whose answers have many lengths.

    The end token's row of the head is longer than the others, so that its logit varies more: a row
    meets it early, late or never. That is enough for GPT-2, where positions differ; a T5 must not
    say the same token for ever.
    """
    if family == "gpt2":
        model: Any = random_gpt2(seed, eos_token_id=END, n_positions=positions, **shape)
        head = model.transformer.wte.weight
    else:
        model = random_t5(family, seed, **shape)
        _wander(model, sharp=8.0 if family == "v1_0" else 1.0)
        head = model.lm_head.weight
    with torch.no_grad():
        head[END] *= 1.6
        if family != "gpt2":
            head[END] += (0.5 if family == "v1_0" else 0.3) * _mean_direction(model)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = END
    return model


@torch.no_grad()
def _wander(model: Any, sharp: float) -> None:
    """Let each token lead to another: the MLP, the one part that depends on the last token alone,
    outweighs the others, without what it adds to every token alike. T5 1.0 divides what enters its
    head by 24 ** 0.5, which `sharp` makes up for."""
    for name, parameter in model.decoder.named_parameters():
        if name.endswith(".wo.weight"):
            parameter -= parameter.mean(dim=1, keepdim=True)
            parameter *= 6.0
    model.decoder.final_layer_norm.weight *= sharp


@torch.no_grad()
def _mean_direction(model: Any) -> torch.Tensor:
    """The direction of the mean of what enters the head; a row along it is often likely."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, model.config.vocab_size, (32, 10), generator=generator)
    out = model(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)
    mean: torch.Tensor = out.decoder_hidden_states[-1].flatten(0, 1).mean(dim=0)
    return mean / mean.norm()


def rows_for(model: Any, lengths: Sequence[int] = SOURCES, seed: int = 1) -> list[list[int]]:
    """Rows of random ids without the end token; a source of T5 has it last."""
    generator = torch.Generator().manual_seed(seed)
    vocab, seq2seq = model.config.vocab_size, model.config.is_encoder_decoder
    rows = [torch.randint(2, vocab, (n,), generator=generator).tolist() for n in lengths]
    return [[*ids[:-1], END] if seq2seq else ids for ids in rows]


@torch.inference_mode()
def reference(
    model: Any, ids: Sequence[int], most: int, decode: Mapping[str, Any]
) -> list[tuple[list[int], float]]:
    """What transformers gives for one row: the new tokens and score of each hypothesis, best first.
    Greedy search has no score: the sum of log-probabilities. `decode` has our keys."""
    beams = decode.get("beams", 1)
    ranked: dict[str, Any] = {}
    if beams > 1:
        ranked = {
            "length_penalty": decode.get("length_penalty", 1.0),
            "early_stopping": decode.get("early_stopping", False),
            "num_return_sequences": decode.get("n_best", 1),
        }
    made = model.generate(
        torch.tensor([list(ids)]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        do_sample=False,
        num_beams=beams,
        max_new_tokens=most,
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=False,  # it has too few layers where the decoder has more than the encoder
        **ranked,
    )
    start = 1 if model.config.is_encoder_decoder else len(ids)
    found = [_ended(new) for new in made.sequences[:, start:].tolist()]
    if beams > 1:
        scores = made.sequences_scores.tolist()
    else:
        logprobs = torch.cat(made.scores).log_softmax(1)
        scores = [logprobs[range(len(found[0])), found[0]].sum().item()]
    return list(zip(found, scores, strict=True))


@torch.inference_mode()
def logits_after(model: Any, ids: Sequence[int], new: Sequence[int]) -> torch.Tensor:
    """transformers' logits before each of the new tokens, all in one pass: [new, vocabulary]."""
    if model.config.is_encoder_decoder:
        begun = [[model.config.decoder_start_token_id, *new[:-1]]]
        out = model(input_ids=torch.tensor([list(ids)]), decoder_input_ids=torch.tensor(begun))
        logits: torch.Tensor = out.logits[0]
    else:
        logits = model(torch.tensor([[*ids, *new[:-1]]])).logits[0, len(ids) - 1 :]
    return logits


def _ended(ids: list[int]) -> list[int]:
    """The ids up to the end token; what follows fills the hypotheses up to one length."""
    return ids[: ids.index(END) + 1] if END in ids else ids
