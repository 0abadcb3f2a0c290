"""DeiT's ViT with a distillation token (Touvron et al. 2021). Chapter 11 writes it out in the same words.

Letters: B images, N patches, D width, K classes. Parameter names are timm's: a distilled DeiT's weights load into it.
"""

import torch
from torch import Tensor, nn

from vitutils.models.vit import ViT, ViTConfig, resize_positions


class DistilledViT(ViT):
    """A ViT with a distillation token beside the class token, and its head.

    images (B, C, H, W) -> in train mode two sets of logits (B, K), from the
    class token and from the distillation token; in eval mode their mean
    (B, K). With need_weights=True also attn (B, depth, h, T, T), T = 2 + N.
    Source: DeiT, section 4. Raises ValueError without a class token.
    """

    def __init__(self, config: ViTConfig):
        if config.global_pool != "token":
            raise ValueError("expected global_pool 'token', got 'avg'")
        super().__init__(config)
        D, K = config.embed_dim, config.num_classes
        self.dist_token = nn.Parameter(torch.zeros(1, 1, D))
        own = nn.init.trunc_normal_(torch.empty(1, 1, D), std=0.02)
        first, patches = self.pos_embed.data.tensor_split([1], dim=1)
        self.pos_embed = nn.Parameter(torch.cat([first, own, patches], dim=1))
        self.head_dist = nn.Linear(D, K)
        for parameter in self.head_dist.parameters():
            nn.init.zeros_(parameter)  # so that its first loss is ln K too

    def embed(self, images: Tensor) -> Tensor:
        """Class token, distillation token and patches: (B, 2 + N, D)."""
        patches = self.patch_embed(images)  # (B, N, D)
        tokens = self.cls_token, self.dist_token
        B = patches.shape[0]
        first = [token.expand(B, -1, -1) for token in tokens]
        first = torch.cat(first, dim=1)  # (B, 2, D)
        grid = tuple(s // self.config.patch_size for s in images.shape[-2:])
        own, positions = self.pos_embed.tensor_split([2], dim=1)
        positions = resize_positions(positions, self.config.grid, grid)
        return torch.cat([first + own, patches + positions], dim=1)

    def forward(self, images: Tensor, need_weights: bool = False):
        features = self.forward_features(images, need_weights)
        tokens, attn = features if need_weights else (features, None)
        pair = self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])
        logits = pair if self.training else sum(pair) / 2
        return (logits, attn) if need_weights else logits
