"""The Vision Transformer under its short name: the contents of `vitutils.models.vit`."""

from vitutils.models.vit import MLP, Block, PatchEmbed, SelfAttention, ViT, ViTConfig, init_weights, resize_positions

__all__ = ["MLP", "Block", "PatchEmbed", "SelfAttention", "ViT", "ViTConfig", "init_weights", "resize_positions"]
