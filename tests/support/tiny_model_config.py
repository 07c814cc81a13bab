"""A Hugging Face `config.json` of a model so small that the real engine runs it in a test."""

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}
