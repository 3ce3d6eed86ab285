"""Sizes of the tiny random LLaVA-OneVision of the tests."""

TINY = {
    "image_size": 32,
    "patch_size": 4,
    "vision_width": 16,
    "vision_layers": 2,
    "vision_heads": 2,
    "vision_mlp": 32,
    "text_width": 32,
    "text_layers": 3,
    "text_heads": 4,
    "text_kv_heads": 2,
    "text_mlp": 64,
}
