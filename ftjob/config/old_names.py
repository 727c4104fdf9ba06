"""FasterTransformer's parameter names and ftjob's: only used to say the new name.

`old_settings` adds the others: `compose` looks a refused key up there, README's table is its too.
"""

from __future__ import annotations

from types import MappingProxyType

OLD_NAMES = MappingProxyType(
    {
        "tensor_para_size": ("parallel.tensor", "devices that share each layer"),
        "pipeline_para_size": ("parallel.pipeline", "stages of layers"),
        "layer_para_size": ("parallel.pipeline", "the 2021 README's word for it"),
        "model_checkpoint_path": ("model.checkpoint", "any folder, not one per tensor size"),
        "ckpt_path": ("model.checkpoint", ""),
        "data_type": ("model.dtype", "fp32, fp16, bf16 are now f32, f16, bf16"),
        "is_half": ("model.dtype", "is_half=1 is model.dtype=f16"),
        "int8_mode": ("model.weights", "int8_mode=1 is model.weights=int8"),
        "model_name": ("model.name", "or choose one of conf/model: model=gpt345m"),
        "head_num": ("model.arch.heads", "read from the checkpoint if null"),
        "size_per_head": ("model.arch.hidden", "hidden = heads x size per head"),
        "inter_size": ("model.arch.ffn", ""),
        "decoder_layers": ("model.arch.layers", ""),
        "num_layer": ("model.arch.layers", ""),
        "vocab_size": ("model.arch.vocab", "without padding"),
        "max_seq_len": ("model.arch.positions", "longest prompt + output"),
        "max_input_len": ("plan.input_len", "sizes a plan; a run takes each row's own length"),
        "request_output_len": ("decode.max_new_tokens", "a row's own max_new_tokens comes first"),
        "max_output_len": ("decode.max_new_tokens", ""),
        "beam_width": ("decode.beams", "or decode=beam4"),
        "len_penalty": (
            "decode.length_penalty",
            "over new tokens alone, with decode.convention=ft a GPT's own prompt too; "
            "FasterTransformer's GPT counted the padded prompt too",
        ),
        "is_return_log_probs": ("decode.token_logprobs", "cum_logprob is always reported"),
        "is_return_context_cum_log_probs": ("decode.prompt_logprob", ""),
        "runtime_top_k": ("decode.top_k", "over 1024 is refused, not clipped"),
        "runtime_top_p": ("decode.top_p", "out of 0 to 1 is refused, not clipped"),
        "random_seed": ("decode.seed", "rows of equal seeds draw different numbers"),
        "top_p_reset_ids": ("decode.top_p_reset", ""),
        "bad_words_list": ("decode.bad_words", "a row of a file may have the array as it is"),
        "stop_words_list": ("decode.stop_words", "a row of a file may have the array as it is"),
        "d_model": ("model.arch.hidden", "T5"),
        "d_ff": ("model.arch.ffn", "T5"),
        "d_kv": ("model.arch.head_size", "T5"),
        "max_batch_size": ("batch.max_tokens", "batches are counted in tokens, not rows"),
    }
)
