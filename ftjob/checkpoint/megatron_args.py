"""What Megatron-LM's args say of a GPT, in the words of transformers' config.json.

Releases without args are described by their tensors' shapes and the number of heads that the
configuration gives. Settings under which Megatron computes something else than a GPT-2 are refused
by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ftjob.checkpoint.index import Known
from ftjob.checkpoint.pickles import Stub
from ftjob.checkpoint.stored import shown
from ftjob.checkpoint.torchfile import TorchFile
from ftjob.errors import CheckpointError

# Arguments that change what is computed -> the only values that are read.
_USUAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "apply_residual_connection_post_layernorm": (False,),
        "apply_layernorm_1p": (False,),
        "swiglu": (False,),
        "squared_relu": (False,),
        "add_bias_linear": (True,),
        "group_query_attention": (False,),
        "use_rotary_position_embeddings": (False,),
        "add_position_embedding": (True,),
        "num_experts": (None, 1),
        "onnx_safe": (None, False),
    }
)
_USUAL_WORDS: Mapping[str, str] = MappingProxyType(
    {"position_embedding_type": "learned_absolute", "normalization": "LayerNorm"}
)
_DEFAULT_EPS = 1e-5
_PADDED_TO = 128  # Megatron's default of make_vocab_size_divisible_by
# An argument of our own, written by `convert`: Megatron's args know only the padded vocabulary.
TRUE_VOCAB = "ftjob_vocab_size"


def read_args(opened: TorchFile) -> dict[str, Any]:
    """The arguments that a file holds, empty where it holds none.

    Raises:
        CheckpointError: where args are something else than named values.
    """
    args = opened.root.get("args")
    values = args.state if isinstance(args, Stub) else args
    if args is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise CheckpointError(f"{opened.file}: args={shown(args)} are no named values")
    return values


def gpt_config(
    args: Mapping[str, Any], file: Path, sizes: Mapping[str, int], known: Known
) -> tuple[dict[str, Any], dict[str, str]]:
    """config.json's keys, and remarks for the report. `sizes` are what the tensors' shapes say.

    Raises:
        CheckpointError: naming file, argument, value and rule.
    """
    for name, values in _USUAL.items():
        if name in args and not any(args[name] is v or args[name] == v for v in values):
            raise CheckpointError(
                f"{file}: args.{name}={shown(args[name])} is not supported, only {values[0]}"
            )
    for name, word in _USUAL_WORDS.items():
        if shown(args.get(name, word)).rpartition(".")[2] != word:
            raise CheckpointError(
                f"{file}: args.{name}={shown(args[name])} is not supported, only {word}"
            )
    for name, size in sizes.items():
        if args.get(name) is not None and args[name] != size:
            raise CheckpointError(
                f"{file}: args.{name}={shown(args[name])}, but the tensors say {size}"
            )
    heads = args.get("num_attention_heads", known.heads)
    if heads is not None and (type(heads) is not int or not 1 <= heads <= 1 << 16):
        raise CheckpointError(
            f"{file}: args.num_attention_heads={shown(heads)} must be a whole number of at least 1"
        )
    if heads is None:
        raise CheckpointError(
            f"{file}: does not say how many heads the model has; give model.arch.heads=N, or a "
            "model of conf/model that fits, such as model=gpt345m"
        )
    hidden = sizes["hidden_size"]
    whose = "args.num_attention_heads" if "num_attention_heads" in args else "model.arch.heads"
    if hidden % heads or args.get("kv_channels") not in (None, hidden // heads):
        raise CheckpointError(
            f"{file}: {heads} heads ({whose}) of "
            f"{shown(args.get('kv_channels') or hidden / heads)} do not make the hidden size of "
            f"{hidden} that the tensors say"
        )
    # Megatron's fused bias and GELU, its default, is the tanh form; unfused it is the exact one.
    exact = args.get("bias_gelu_fusion") is False and not args.get("openai_gelu")
    eps = args.get("layernorm_epsilon", args.get("norm_epsilon", _DEFAULT_EPS))
    if type(eps) is not float or not 0 < eps < 1:
        raise CheckpointError(
            f"{file}: args.layernorm_epsilon={shown(eps)} must be above 0, below 1"
        )
    rows, remarks = sizes["padded_vocab_size"], {}
    if "layernorm_epsilon" not in args and "norm_epsilon" not in args:
        remarks["layernorm eps"] = "1e-05, Megatron's own default: the checkpoint states none"
    vocab = _true_vocab(args, rows, known, file)
    if vocab < rows:
        remarks["padding of the vocabulary"] = f"{rows - vocab} rows, never emitted"
    return {
        "model_type": "gpt2",
        "n_layer": sizes["num_layers"],
        "n_head": heads,
        "n_embd": hidden,
        "n_inner": sizes["ffn_hidden_size"],
        "n_positions": sizes["max_position_embeddings"],
        "vocab_size": vocab,
        "activation_function": "gelu" if exact else "gelu_new",
        "layer_norm_epsilon": eps,
        "eos_token_id": known.end,
    }, remarks


def _true_vocab(args: Mapping[str, Any], rows: int, known: Known, file: Path) -> int:
    """The rows that stand for tokens: as many as the configuration says, else `convert` wrote, else
    the tokenizer has, else the args say; all where Megatron cannot have padded to their number.

    Raises:
        CheckpointError: where it can have, for what pads would be emitted like any token.
    """
    for vocab in (known.vocab, args.get(TRUE_VOCAB), known.padded(rows), args.get("vocab_size")):
        if type(vocab) is int and 0 < vocab <= rows:
            return vocab
    multiple = args.get("make_vocab_size_divisible_by", _PADDED_TO)
    if type(multiple) is not int or multiple < 1:
        multiple = _PADDED_TO
    if multiple > 1 and rows % multiple == 0:
        raise CheckpointError(
            f"{file}: the vocabulary's {rows} rows are padded to a multiple of {multiple}, and "
            "nothing says how many stand for tokens; give model.arch.vocab=N, or the model's own "
            "tokenizer with model.tokenizer=PATH"
        )
    return rows
