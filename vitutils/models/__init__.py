"""The networks of the book, and the loading of other libraries' weights into them."""

from vitutils.models.cnn import BlurPool, ConvStack, ConvStem, LocallyConnected, PixelMLP, SmallCNN, blur_pooling
from vitutils.models.deit import DistilledViT
from vitutils.models.modes import eval_mode, modes_kept, own_modes, set_modes
from vitutils.models.vit import MLP, Block, PatchEmbed, SelfAttention, ViT, ViTConfig, init_weights, resize_positions

__all__ = [
    "MLP",
    "Block",
    "BlurPool",
    "ConvStack",
    "ConvStem",
    "DistilledViT",
    "LocallyConnected",
    "PatchEmbed",
    "PixelMLP",
    "SelfAttention",
    "SmallCNN",
    "ViT",
    "ViTConfig",
    "blur_pooling",
    "eval_mode",
    "init_weights",
    "modes_kept",
    "own_modes",
    "resize_positions",
    "set_modes",
]
