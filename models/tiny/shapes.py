"""The ladder's three shapes of model, all of bytes: every linear layer's sides are multiples of 32."""

import corpus
import torch

VOCAB = 256
HEAD = 16
SHARED = {
    "vocab_size": VOCAB,
    "max_position_embeddings": corpus.CONTEXT,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "attn_implementation": "sdpa",
}


def neox(width: int, layers: int):
    """Return a GPT-NeoX model (Pythia's shape: parallel residual, a quarter rotary)."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        intermediate_size=4 * width,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        **SHARED,
    )
    return GPTNeoXForCausalLM(config)


def llama(width: int, layers: int):
    """Return a Llama model (gated feed-forward, RMS norm, no biases)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        intermediate_size=3 * width,
        **SHARED,
    )
    return LlamaForCausalLM(config)


def opt(width: int, layers: int):
    """Return an OPT model (learned positions, ReLU)."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=width,
        word_embed_proj_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        ffn_dim=4 * width,
        dropout=0.0,
        # OPT's default padding id is a byte like any other here: it would never be trained.
        pad_token_id=None,
        **SHARED,
    )
    return OPTForCausalLM(config)


FAMILIES = {"tiny-neox": neox, "tiny-llama": llama, "tiny-opt": opt}


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Return (all parameters, tied ones once; those outside embedding, head and learned positions)."""
    total = sum(p.numel() for p in model.parameters())
    outside = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return total, sum(p.numel() for p in model.parameters() if id(p) not in outside)
